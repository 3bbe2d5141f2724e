//! When the objects in the live table were allocated, and what earlier looks found.

use std::collections::VecDeque;

use leaktrace_common::{FRAGMENT, Payload};
use rustc_hash::FxHashMap;

use super::subjects::Owner;
use crate::analysis::{
    births::{Births, MOST_BINS, width_for},
    growth::Stay,
};

/// Objects of one site, or of one stack of it, by stretches of time.
type Bins = Box<[u32; MOST_BINS]>;

/// Births of live objects: of each site, and of the stacks of sites that are told apart by them.
#[derive(Clone, Debug, Default)]
pub struct BirthTable {
    started_ns: u64,
    width_ns: u64,
    width_s: f64,
    /// By site.
    pub sites: Vec<Option<Bins>>,
    /// By site and stack.
    pub split: FxHashMap<(u32, u32), Bins>,
}

impl BirthTable {
    /// One for so many sites, of a window that begins and ends at a time.
    pub fn new(sites: usize, (started_ns, now_ns): (u64, u64)) -> Self {
        let width_s = width_for(now_ns.saturating_sub(started_ns) as f64 / 1e9);
        Self {
            started_ns,
            width_ns: ((width_s * 1e9) as u64).max(1),
            width_s,
            sites: vec![None; sites],
            split: FxHashMap::default(),
        }
    }

    /// Adds an object. Parts of a block of pages are none.
    pub fn add(&mut self, payload: &Payload, split: &[bool]) {
        let Some(site) = self.sites.get_mut(payload.site as usize) else { return };
        if payload.size & FRAGMENT != 0 {
            return;
        }
        let bin = (payload.time_ns.saturating_sub(self.started_ns) / self.width_ns) as usize;
        let bin = bin.min(MOST_BINS - 1);
        site.get_or_insert_with(empty)[bin] += 1;
        if split.get(payload.site as usize) == Some(&true) {
            self.split.entry((payload.site, payload.stack)).or_insert_with(empty)[bin] += 1;
        }
    }

    /// Births as analysis has them.
    pub fn births(&self, bins: &Bins) -> Births {
        Births::new(self.width_s, bins.to_vec())
    }
}

fn empty() -> Bins {
    Box::new([0; MOST_BINS])
}

/// Births by site, and by the responsible caller where a site allocates for others; the site's own have the owner 0.
pub type ByOwner = FxHashMap<(usize, Owner), Births>;

/// Each look comes when the trace is this much longer than at the one before: of those that are kept there is always one
/// that divides the trace a little behind its middle.
const LATER: f64 = 1.25;
const KEPT: usize = 4;
/// The share of the trace that a look may have had behind it, at most, to say what stays.
const LATEST: f64 = 0.72;
/// The first look comes when objects may have been survivors for a moment.
const FIRST: f64 = 1.25;

/// Earlier looks at all objects.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    kept: VecDeque<(f64, ByOwner)>,
    next_s: f64,
}

impl Looks {
    /// Whether it is time for one.
    pub fn is_due(&self, now_s: f64, min_age_s: f64) -> bool {
        now_s >= self.next_s.max(min_age_s * FIRST)
    }

    /// Keeps a look.
    pub fn keep(&mut self, now_s: f64, births: ByOwner) {
        self.next_s = now_s * LATER;
        self.kept.push_back((now_s, births));
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Forgets all, because objects have left the table that nobody freed.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// What is left of the survivors of an earlier look; `None` where there was none in time.
    pub fn stay(&self, of: (usize, Owner), now: &Births, now_s: f64, min_age_s: f64) -> Option<Stay> {
        let (then_s, births) = self.kept.iter().rev().find(|(then_s, _)| *then_s <= now_s * LATEST)?;
        let then = births.get(&of).map(|then| then.widened(now.width_s())).unwrap_or_default();
        Some(Stay::of(&then, *then_s, now, now_s, min_age_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(site: u32, stack: u32, seconds: u64) -> Payload {
        Payload { time_ns: 7 + seconds * 1_000_000_000, site, stack, tgid: 1, size: 64 }
    }

    #[test]
    fn objects_are_booked_by_site_and_stack() {
        let mut table = BirthTable::new(2, (7, 7 + 60_000_000_000));
        for (site, stack, seconds) in [(0, 3, 1), (1, 3, 1), (1, 4, 59), (1, 4, 59), (9, 4, 59)] {
            table.add(&object(site, stack, seconds), &[false, true]);
        }
        table.add(&Payload { size: FRAGMENT | 4_096, ..object(0, 3, 1) }, &[false, true]);
        let births = |bins: &Bins| (0..MOST_BINS).map(|bin| table.births(bins).count(bin)).sum::<u32>();
        let sites: Vec<_> = table.sites.iter().flatten().map(births).collect();
        assert_eq!(sites, [1, 3]);
        assert_eq!(table.split.len(), 2);
        let late = table.births(&table.split[&(1, 4)]);
        assert_eq!((late.count(118), late.first()), (2, Some(118)));
    }

    /// Whenever one asks, a look near the middle is there.
    #[test]
    fn there_is_always_a_look_to_compare_with() {
        let births = |until: f64| {
            let width = width_for(until);
            Births::new(width, vec![2; (until / width) as usize])
        };
        let mut looks = Looks::default();
        for tick in 1..4_000 {
            let now = f64::from(tick);
            let stay = looks.stay((1, 0), &births(now), now, 5.0);
            if now >= 14.0 {
                let stay = stay.expect("there was a look in time");
                assert!((0.27..0.48).contains(&(stay.watched_s / now)), "{stay:?} at {now}");
                assert!(stay.aged > 0 || now < 20.0, "{stay:?} at {now}");
            }
            if looks.is_due(now, 5.0) {
                looks.keep(now, ByOwner::from_iter([((1, 0), births(now))]));
            }
        }
        let other = looks.stay((2, 0), &births(4_000.0), 4_000.0, 5.0).expect("it was looked for");
        assert_eq!(other.aged, 0);
        looks.forget();
        assert_eq!(looks.stay((1, 0), &births(4_000.0), 4_000.0, 5.0), None);
    }
}
