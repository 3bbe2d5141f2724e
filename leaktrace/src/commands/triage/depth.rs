//! Looking at single processes and caches in depth, once it is known which are worth it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    analysis::triage::{Details, Look, Observation, caches, caches::Nature, processes::growers},
    proc::{fds, fds::OpenFiles, maps, modules::Module, slab},
};

/// Processes of each sort that are looked at.
const EACH: usize = 5;
/// Files of a process by which it has to grow to be noticed, and processes whose files are kept.
const OPENED: u32 = 4;
const OPENERS: usize = 16;
/// The kernel walks a process's page tables for its PSS, and holds up its page faults meanwhile.
const PSS_BUDGET: Duration = Duration::from_millis(200);
const PSS_LARGEST_KB: u32 = 2 << 20;
/// Open files from which on a process is looked at.
const MANY_FILES: u32 = 1_000;
/// Caches whose owners are looked for: the largest, and those that grow most.
const CACHES: usize = 40;

/// Open files of processes at the moment when they were found to open more.
#[derive(Default)]
pub(super) struct Openers(BTreeMap<u32, OpenFiles>);

impl Openers {
    /// Notes those that have more open files than a look ago.
    pub(super) fn note(&mut self, root: &Path, before: &Look, now: &Look) {
        let known: BTreeMap<u32, u32> =
            before.processes.iter().filter_map(|process| Some((process.pid, process.fds?))).collect();
        for process in &now.processes {
            let opened =
                process.fds.zip(known.get(&process.pid)).is_some_and(|(now, &before)| now >= before + OPENED);
            if opened && self.0.len() < OPENERS && !self.0.contains_key(&process.pid) {
                self.0.extend(fds::read(root, process.pid).ok().map(|files| (process.pid, files)));
            }
        }
    }

    /// What was noted of a process.
    fn of(&self, pid: u32) -> Option<&OpenFiles> {
        self.0.get(&pid)
    }
}

/// Process ids that are worth a look: those that grow, and the largest.
fn worth(seen: &Observation) -> Vec<u32> {
    let mut worth = BTreeSet::new();
    // Of kB and of files alike less than one is none.
    let mut most = |trends| worth.extend(growers(trends, 1.0).into_iter().take(EACH).map(|(pid, _)| pid));
    if seen.looks.len() > 1 {
        most(seen.process_trends(|process| f64::from(process.anon_kb)));
        most(seen.process_trends(|process| process.fds.map_or(0.0, f64::from)));
    }
    let mut largest: Vec<_> =
        seen.last().processes.iter().map(|process| (process.anon_kb, process.pid)).collect();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    worth.extend(largest.into_iter().take(EACH).map(|(_, pid)| pid));
    worth.into_iter().collect()
}

/// Looks at them.
pub(super) fn details(root: &Path, seen: &Observation, openers: &Openers) -> BTreeMap<u32, Details> {
    let begun = Instant::now();
    let mut details = BTreeMap::new();
    for pid in worth(seen) {
        let process = seen.last().processes.iter().find(|process| process.pid == pid);
        let before = openers.of(pid);
        let many = process.and_then(|process| process.fds).is_some_and(|fds| fds >= MANY_FILES);
        let files = (before.is_some() || many).then(|| fds::read(root, pid).ok()).flatten();
        let sockets =
            files.as_ref().map(|files| fds::socket_kinds(root, pid, &files.sockets)).unwrap_or_default();
        let small = process.is_some_and(|process| process.anon_kb < PSS_LARGEST_KB);
        let pss_kb = (small && begun.elapsed() < PSS_BUDGET).then(|| maps::pss_kb(root, pid).ok()).flatten();
        details.insert(
            pid,
            Details {
                program: maps::program(root, pid).ok().filter(|program| program.mappings > 0),
                files_before: before.cloned(),
                files,
                sockets,
                pss_kb,
                max_fds: max_fds(root, pid),
            },
        );
    }
    details
}

/// Files that a process may open, by /proc/PID/limits.
pub(super) fn max_fds(root: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc").join(pid.to_string()).join("limits")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_ascii_whitespace().next()?.parse().ok())
}

/// Whose the largest and most growing caches are, and which are shrunk when memory is short.
pub(super) fn caches(root: &Path, seen: &mut Observation, modules: &[Module]) {
    let Some(last) = &seen.last().caches else { return };
    let first = seen.first().caches.as_ref();
    let mut by_size: Vec<_> = last.iter().map(|(name, cache)| (cache.pages, name)).collect();
    by_size.sort_unstable_by(|a, b| b.cmp(a));
    let grown = |name: &String, objects: u64| {
        let before = first.and_then(|caches| caches.get(name)).map_or(0, |cache| cache.active_objects);
        objects.saturating_sub(before)
    };
    let mut by_growth: Vec<_> = last
        .iter()
        .map(|(name, cache)| (grown(name, cache.active_objects) * u64::from(cache.object_size), name))
        .collect();
    by_growth.sort_unstable_by(|a, b| b.cmp(a));
    let largest = by_size.iter().take(CACHES).chain(by_growth.iter().take(CACHES));
    let names: BTreeSet<&str> = largest.map(|(_, name)| name.as_str()).collect();
    let traits = slab::read_traits(root, names.iter().copied());
    let loaded = modules.iter().map(|module| module.name.as_str());
    seen.natures = names
        .into_iter()
        .map(|name| {
            let traits = traits.get(name).cloned().unwrap_or_default();
            let constructor = slab::constructor(root, name);
            let owner = caches::owner_of_merged(name, &traits.aliases, constructor.as_deref(), &loaded);
            let nature = Nature { reclaimable: traits.reclaimable, aliases: traits.aliases, owner };
            (name.to_owned(), nature)
        })
        .collect();
}
