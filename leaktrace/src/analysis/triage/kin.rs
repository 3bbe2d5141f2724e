//! Other leaktraces: what they take is their own bookkeeping, ends with them, and is nobody's leak.

use std::collections::BTreeMap;

use super::{
    Culprit, Diagnosis, Kind, Look, Observation, Process, growing::FLOOR_KB, holding::KERNEL_SHARE,
    ledger::Class, trend::Trend,
};
use crate::{proc::kin::Maps, units};

/// Process ids that are told.
const NAMED: usize = 3;
/// Part of their maps by which the kernel's own sums differ from them.
const OFF: f64 = 0.03;

/// A leaktrace at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kin {
    /// Process id.
    pub pid: u32,
    /// What its BPF maps take, where that may be read.
    pub maps: Option<Maps>,
}

impl Look {
    /// kB of something of the maps of all leaktraces.
    fn of_kin(&self, kb: impl Fn(&Maps) -> u64) -> f64 {
        self.kin.iter().filter_map(|kin| kin.maps.as_ref()).map(|maps| kb(maps) as f64).sum()
    }

    /// kB of a class without what leaktraces have of it.
    pub(super) fn level_of_others(&self, class: Class) -> f64 {
        let of_kin = match class {
            Class::Vmalloc => self.of_kin(|maps| maps.arrays_kb + maps.tables_kb),
            Class::Percpu => self.of_kin(|maps| maps.percpu_kb),
            _ => 0.0,
        };
        self.level(class) as f64 - of_kin
    }

    /// kB of what a caller of vmalloc has, without what it took for leaktraces.
    pub(super) fn caller_of_others(&self, caller: &str, kb: f64) -> f64 {
        let of_kin = match caller {
            "array_map_alloc" => self.of_kin(|maps| maps.arrays_kb),
            "htab_map_alloc" => self.of_kin(|maps| maps.tables_kb),
            _ => 0.0,
        };
        (kb - of_kin).max(0.0)
    }
}

impl Observation {
    /// Whether a process is a leaktrace.
    fn is_kin(&self, pid: u32) -> bool {
        self.looks.iter().any(|look| look.kin.iter().any(|kin| kin.pid == pid))
    }

    /// The trends of something of each process that may be to blame.
    pub(super) fn suspects(&self, level: impl Fn(&Process) -> f64) -> BTreeMap<u32, Trend> {
        let mut trends = self.process_trends(level);
        trends.retain(|&pid, _| !self.is_kin(pid));
        trends
    }

    /// The trend of a class without what leaktraces have of it, in kB.
    pub(super) fn trend_of_others(&self, class: Class) -> Trend {
        self.trend(|look| Some(look.level_of_others(class)))
    }

    /// Growth in kB below which nothing is said of where leaktraces have some, too.
    pub(super) fn floor_beside_kin(&self) -> f64 {
        let grown = self.trend(|look| Some(look.of_kin(Maps::all_kb))).change();
        FLOOR_KB + grown.abs() * OFF
    }

    /// What is known of a leaktrace whose maps may not be read.
    pub(super) fn unread_kin(&self) -> Option<u32> {
        self.last().kin.iter().find(|kin| kin.maps.is_none()).map(|kin| kin.pid)
    }
}

impl Look {
    fn kin_of(&self, pid: u32) -> Option<&Kin> {
        self.kin.iter().find(|kin| kin.pid == pid)
    }
}

/// What a leaktrace takes in kB.
struct Share {
    pid: u32,
    maps: f64,
    own: f64,
    grown: f64,
}

/// What leaktraces take, which comes after all that may be a leak: of those that grew, or have much.
pub(super) fn all(seen: &Observation) -> Option<Diagnosis> {
    let anon = seen.process_trends(|process| f64::from(process.anon_kb));
    let share = |kin: &Kin| {
        let kb = |look: &Look| {
            look.kin_of(kin.pid).and_then(|kin| kin.maps).map_or(0.0, |maps| maps.all_kb() as f64)
        };
        let (before, maps) = (kb(seen.first()), kb(seen.last()));
        let own = anon.get(&kin.pid).copied().unwrap_or_default();
        Share { pid: kin.pid, maps, own: own.after, grown: maps - before + own.change() }
    };
    let much = seen.last().total_kb as f64 * KERNEL_SHARE;
    let mut shares: Vec<Share> = seen.last().kin.iter().map(share).collect();
    shares.retain(|share| share.grown >= FLOOR_KB || share.maps + share.own >= much);
    shares.sort_by(|a, b| (b.maps + b.own).total_cmp(&(a.maps + a.own)));
    let sum = |part: &dyn Fn(&Share) -> f64| shares.iter().map(part).sum::<f64>() * 1_024.0;
    let (maps, own) = (sum(&|share| share.maps), sum(&|share| share.own));
    let pids: Vec<String> = shares.iter().take(NAMED).map(|share| share.pid.to_string()).collect();
    let text = match shares.len() {
        0 => return None,
        1 => format!(
            "A trace by leaktrace (pid {}) holds {} in BPF maps, and {} of its own. That is its own bookkeeping, and ends \
             with it.",
            pids[0],
            units::bytes(maps),
            units::bytes(own)
        ),
        number => format!(
            "{number} traces by leaktrace (pids {}{}) hold {} in BPF maps, and {} of their own. That is their own \
             bookkeeping, and ends with them.",
            pids.join(", "),
            if number > NAMED { " and others" } else { "" },
            units::bytes(maps),
            units::bytes(own)
        ),
    };
    let pid = shares[0].pid;
    let culprit = Culprit { pid: Some(pid), comm: Some(seen.comm(pid).into()), ..Culprit::default() };
    let mut diagnosis = Diagnosis::new(Kind::Leaktrace, culprit, text, Vec::new());
    diagnosis.bytes = maps + own;
    diagnosis.bytes_grown = sum(&|share| share.grown);
    diagnosis.grows = shares.iter().any(|share| share.grown >= FLOOR_KB);
    Some(diagnosis)
}
