//! What grows, and who makes it grow.

use super::{
    Culprit, Diagnosis, Kind, Observation, Ranked, files, kernel, ledger::Class, processes, trend::Trend,
};
use crate::units;

/// Growth in kB below which nothing is said.
pub(super) const FLOOR_KB: f64 = 1_024.0;
/// The page cache grows whenever a file is read.
const CACHE_FLOOR_KB: f64 = 8_192.0;
/// What the kernel gives back by itself counts as so much growth at most, and by so much less.
const HARMLESS_CAP_KB: f64 = 8_192.0;
const HARMLESS: f64 = 0.05;

/// All that grows, each with its rank.
pub(super) fn all(seen: &Observation) -> Vec<Ranked> {
    if seen.looks.len() < 2 {
        return Vec::new();
    }
    let files = files::fds(seen);
    let mut all = processes::threads(seen);
    all.extend(processes::processes(seen));
    let mut explained = files.explained;
    explained.extend(processes::explained(&all));
    all.extend(processes::memory(seen));
    all.extend(processes::page_tables(seen));
    all.extend(files::shmem(seen));
    all.extend(kernel::slab(seen, &explained));
    all.extend(files.found);
    all.extend(kernel::vmalloc(seen));
    all.extend(kernel::unaccounted(seen));
    all.extend(page_cache(seen));
    all.extend(rest(seen));
    all
}

/// What grew at one time is ranked below all that grows steadily and is not next to nothing: it was a start of something, mostly,
/// and a leak goes on. The same holds for what the kernel gives back by itself. Among themselves these keep their order.
pub(super) fn put_steps_below(found: &mut [Ranked]) {
    let goes_on = |diagnosis: &Diagnosis| {
        diagnosis.steady && !matches!(diagnosis.kind, Kind::PageCache | Kind::SlabReclaimable)
    };
    let steady = found.iter().filter(|(rank, diagnosis)| goes_on(diagnosis) && *rank >= FLOOR_KB);
    let least = steady.map(|(rank, _)| *rank).fold(f64::INFINITY, f64::min);
    if least.is_infinite() {
        return;
    }
    for (rank, diagnosis) in found {
        if !goes_on(diagnosis) {
            *rank = least * *rank / (least + *rank);
        }
    }
}

/// What grows in a single process, the worst first.
pub fn of_one(seen: &Observation) -> Vec<Diagnosis> {
    let mut all = processes::memory(seen);
    all.extend(processes::threads(seen));
    all.extend(processes::page_tables(seen));
    all.extend(files::fds(seen).found);
    all.extend(files::shmem(seen));
    put_steps_below(&mut all);
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().map(|(_, diagnosis)| diagnosis).collect()
}

/// How growth goes on: "grows by 1.2 MiB/s" or "grew by 12 MiB at one time".
pub(super) fn how(trend_kb: &Trend, duration_s: f64) -> String {
    let grown = units::bytes(trend_kb.change() * 1_024.0);
    let duration = units::seconds(duration_s);
    if trend_kb.steady {
        format!("grows by {}/s, by {grown} in {duration}", units::bytes(trend_kb.per_s * 1_024.0))
    } else {
        format!("grew by {grown} in {duration}, not all the time")
    }
}

/// The rank of growth, by whether the kernel can take it back.
pub(super) fn rank(reclaimable: bool, change_kb: f64) -> f64 {
    if reclaimable { harmless(change_kb) } else { change_kb }
}

fn harmless(change_kb: f64) -> f64 {
    // The larger of two first, although both are capped.
    (change_kb * HARMLESS).min(HARMLESS_CAP_KB) + change_kb * 1e-6
}

fn page_cache(seen: &Observation) -> Option<Ranked> {
    let trend = seen.trend(|look| Some((look.level(Class::PageCache) + look.level(Class::Buffers)) as f64));
    if trend.change() < CACHE_FLOOR_KB {
        return None;
    }
    let text = format!(
        "The page cache {}, to {}. That is normal: files that are read or written stay in free memory, and the kernel \
         drops them when something else needs it.",
        how(&trend, seen.duration_s()),
        units::bytes(trend.after * 1_024.0)
    );
    let next = vec![
        "sync; echo 1 > /proc/sys/vm/drop_caches   (as root) shows it: available memory stays the same"
            .into(),
    ];
    let diagnosis = Diagnosis::new(Kind::PageCache, Culprit::default(), text, next).grown(&trend);
    Some((harmless(trend.change()), diagnosis))
}

/// Classes that need no search for who it is.
fn rest(seen: &Observation) -> Vec<Ranked> {
    let rest = [
        (
            Class::Percpu,
            Kind::Percpu,
            "Each control group, mount, network device and counter has some, times the number of CPUs.",
            "sudo leaktrace --family percpu --duration 60",
        ),
        (
            Class::Sockets,
            Kind::Sockets,
            "It is data that waits in sockets: for a program that does not read, or for a peer that does not.",
            "ss -ampnO | sort   (skmem: r is waiting to be read, t to be sent)",
        ),
        (
            Class::HugePages,
            Kind::HugePages,
            "They were set aside, and nothing else can use them.",
            "grep Huge /proc/meminfo; sysctl vm.nr_hugepages",
        ),
        (
            Class::CompressedSwap,
            Kind::CompressedSwap,
            "It holds what was swapped out, compressed: memory is short already.",
            "zramctl; swapon --show",
        ),
        (
            Class::SecondaryPageTables,
            Kind::Other,
            "Virtual machines and IOMMUs have them.",
            "sudo leaktrace --family page --duration 60",
        ),
        (Class::Gpu, Kind::Other, "Graphics drivers hold it.", "cat /proc/*/fdinfo/* | grep -A3 drm-memory"),
        (Class::Balloon, Kind::Other, "The host takes it from this virtual machine.", "ask the host"),
        (
            Class::Writeback,
            Kind::Other,
            "FUSE and devices that cannot reach all memory copy through it.",
            "grep -e Writeback -e Bounce /proc/meminfo",
        ),
        (
            Class::OtherReclaimable,
            Kind::Other,
            "Drivers registered it as reclaimable.",
            "sudo leaktrace --family page --duration 60",
        ),
    ];
    let mut found = Vec::new();
    for (class, kind, meaning, next) in rest {
        let trend = seen.trend_of_others(class);
        let floor = if class == Class::Percpu { seen.floor_beside_kin() } else { FLOOR_KB };
        if trend.change() < floor {
            continue;
        }
        let text = format!(
            "Memory of {} {}, to {}. {meaning}",
            class.title(),
            how(&trend, seen.duration_s()),
            units::bytes(trend.after * 1_024.0)
        );
        let diagnosis = Diagnosis::new(kind, Culprit::default(), text, vec![next.into()]).grown(&trend);
        found.push((rank(class.is_reclaimable(), trend.change()), diagnosis));
    }
    found
}
