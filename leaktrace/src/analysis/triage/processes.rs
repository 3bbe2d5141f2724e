//! Growth of processes: their memory, threads, number and page tables.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

use super::{
    Culprit, Diagnosis, Kind, Observation, Process, Ranked,
    growing::{FLOOR_KB, how},
    language::Language,
    ledger::Class,
    trend::Trend,
};
use crate::units;

/// Processes that are named at most of each kind.
const NAMED: usize = 3;
/// Processes of one name that grow together are told as one.
const TOGETHER: usize = 3;
/// Threads or processes by which something has to grow: all the time, or at once.
const STEADY_COUNT: f64 = 8.0;
const STEP_COUNT: f64 = 50.0;
/// kB that a thread takes at least: its stack, and what describes it.
const THREAD_KB: f64 = 24.0;
/// kB that a process takes at least.
const PROCESS_KB: f64 = 100.0;

/// What grew once counts as so much less than what grows all the time.
const STEP: f64 = 0.1;

/// Those whose trend rises by `floor`, the largest growth first; what grows all the time comes before what grew once.
pub fn growers(trends: BTreeMap<u32, Trend>, floor: f64) -> Vec<(u32, Trend)> {
    let mut growers: Vec<_> = trends.into_iter().filter(|(_, trend)| trend.change() >= floor).collect();
    let weight = |trend: &Trend| if trend.steady { trend.change() } else { trend.change() * STEP };
    growers.sort_by(|a, b| weight(&b.1).total_cmp(&weight(&a.1)));
    growers
}

/// Says after the last of those that are told how many are not.
pub(super) fn tell_the_rest(found: &mut [Ranked], rest: usize, what: &str) {
    if let (Some((_, last)), 1..) = (found.last_mut(), rest) {
        let (number, others) = (units::count(rest as u64), if rest == 1 { "process" } else { "processes" });
        let _ = write!(last.text, " {number} more {others} {what}, too: the table has the largest.");
    }
}

/// Processes whose memory grows: the largest ones, or many of one name together.
pub(super) fn memory(seen: &Observation) -> Vec<Ranked> {
    let growers = growers(seen.suspects(|process| f64::from(process.anon_kb)), FLOOR_KB / 8.0);
    let mut by_name: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let mut steady_of: BTreeMap<&str, usize> = BTreeMap::new();
    for &(pid, trend) in &growers {
        by_name.entry(seen.comm(pid)).or_default().push(pid);
        *steady_of.entry(seen.comm(pid)).or_default() += usize::from(trend.steady);
    }
    let mut found = Vec::new();
    // Of each name that was met: whether it is told as one.
    let mut told: BTreeMap<&str, bool> = BTreeMap::new();
    let mut rest = 0;
    for &(pid, trend) in &growers {
        if found.len() >= NAMED {
            let is_told = told.get(seen.comm(pid)).copied().unwrap_or(false);
            rest += usize::from(trend.change() >= FLOOR_KB && !is_told);
            continue;
        }
        let name = seen.comm(pid);
        let as_one = *told.entry(name).or_insert_with(|| {
            let same = &by_name[name];
            if same.len() < TOGETHER {
                return false;
            }
            let together = together(seen, same);
            // One that grows all the time is not hidden behind others that grew once.
            let steady = steady_of[name];
            let alike = steady == 0 || steady * 2 >= same.len();
            let as_one = alike && together.change() > 2.0 * trend.change();
            // Where most of them are new it is their number that grows.
            let before = &seen.first().processes;
            let new = same
                .iter()
                .filter(|pid| before.binary_search_by_key(*pid, |process| process.pid).is_err())
                .count();
            if as_one && new * 2 <= same.len() && together.change() >= FLOOR_KB {
                found.push(family(seen, name, same, &together));
            }
            as_one
        });
        if !as_one && trend.change() >= FLOOR_KB {
            found.push(one(seen, pid, &trend));
        }
    }
    tell_the_rest(&mut found, rest, "take more memory");
    found
}

/// The trend of several processes together.
fn together(seen: &Observation, pids: &[u32]) -> Trend {
    let pids: HashSet<u32> = pids.iter().copied().collect();
    seen.trend(|look| {
        let those = look.processes.iter().filter(|process| pids.contains(&process.pid));
        Some(those.map(|process| f64::from(process.anon_kb)).sum())
    })
}

fn one(seen: &Observation, pid: u32, trend: &Trend) -> Ranked {
    let details = seen.details.get(&pid);
    let program = details.and_then(|details| details.program.as_ref());
    let language = program.map(Language::of);
    let runs_on = language.map_or_else(String::new, |language| format!(", {}", language.name()));
    let swapped = seen.last().processes.iter().find(|process| process.pid == pid).map_or(0, |p| p.swap_kb);
    let swapped = if swapped > 0 {
        format!(" ({} of it swapped out)", units::bytes(f64::from(swapped) * 1_024.0))
    } else {
        String::new()
    };
    let text = format!(
        "{} (pid {pid}{runs_on}): its own memory {}, to {}{swapped}.",
        seen.comm(pid),
        how(trend, seen.duration_s()),
        units::bytes(trend.after * 1_024.0),
    );
    let mut next = match (language, program) {
        (Some(language), Some(program)) => language.next(pid, program),
        _ => vec![format!("heaptrack --pid {pid}   (of native code)")],
    };
    next.push(format!("leaktrace triage --pid {pid}"));
    let culprit = Culprit { pid: Some(pid), comm: Some(seen.comm(pid).into()), ..Culprit::default() };
    (trend.change(), Diagnosis::new(Kind::ProcessMemory, culprit, text, next).grown(trend))
}

fn family(seen: &Observation, name: &str, pids: &[u32], trend: &Trend) -> Ranked {
    let text = format!(
        "{} processes named {name}: their own memory {}, to {}.",
        units::count(pids.len() as u64),
        how(trend, seen.duration_s()),
        units::bytes(trend.after * 1_024.0)
    );
    let next = vec![format!("leaktrace triage --pid {}   (one of them)", pids[0])];
    let culprit = Culprit { comm: Some(name.into()), ..Culprit::default() };
    (trend.change(), Diagnosis::new(Kind::ProcessMemory, culprit, text, next).grown(trend))
}

/// Processes that start threads and keep them.
pub(super) fn threads(seen: &Observation) -> Vec<Ranked> {
    let growers = growers(seen.suspects(|process| f64::from(process.threads)), STEADY_COUNT);
    let worth = growers.into_iter().filter(|(_, trend)| trend.steady || trend.change() >= STEP_COUNT);
    worth
        .take(NAMED)
        .map(|(pid, trend)| {
            let text = format!(
                "{} (pid {pid}) has {} threads more than {} ago, {} in all. Each has a stack in the kernel, and one of its own.",
                seen.comm(pid),
                units::count(trend.change() as u64),
                units::seconds(seen.duration_s()),
                units::count(trend.after as u64)
            );
            let next = vec![format!("gdb -p {pid} -batch -ex 'thread apply all bt' | sort | uniq -c | sort -n   (what they wait for)")];
            let culprit = Culprit { pid: Some(pid), comm: Some(seen.comm(pid).into()), ..Culprit::default() };
            (trend.change() * THREAD_KB, counted(Kind::Threads, culprit, text, next, &trend, THREAD_KB))
        })
        .collect()
}

/// A diagnosis of something that is counted, each taking some kB.
pub(super) fn counted(
    kind: Kind,
    culprit: Culprit,
    text: String,
    next: Vec<String>,
    trend: &Trend,
    each_kb: f64,
) -> Diagnosis {
    let kb = Trend {
        before: trend.before * each_kb,
        after: trend.after * each_kb,
        per_s: trend.per_s * each_kb,
        steady: trend.steady,
    };
    let mut diagnosis = Diagnosis::new(kind, culprit, text, next).grown(&kb);
    diagnosis.count_grown = Some(trend.change() as i64);
    diagnosis
}

/// Names of which there are more and more processes.
pub(super) fn processes(seen: &Observation) -> Vec<Ranked> {
    let mut names: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for identity in seen.names.values() {
        names.entry(&identity.comm).or_default();
    }
    for look in &seen.looks {
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        for process in &look.processes {
            *counts.entry(seen.comm(process.pid)).or_default() += 1.0;
        }
        for (name, points) in &mut names {
            points.push((look.at_s, counts.get(name).copied().unwrap_or(0.0)));
        }
    }
    let mut growing: Vec<_> = names.into_iter().map(|(name, points)| (name, Trend::of(&points))).collect();
    growing.retain(|(_, trend)| trend.change() >= if trend.steady { STEADY_COUNT } else { STEP_COUNT });
    growing.sort_by(|a, b| b.1.change().total_cmp(&a.1.change()));
    growing
        .into_iter()
        .take(NAMED)
        .map(|(name, trend)| {
            let zombies = zombies(seen, name);
            let dead = if zombies > 0 {
                format!(
                    " {} of them have ended, and wait for their parent to ask for their status.",
                    units::count(zombies)
                )
            } else {
                String::new()
            };
            let text = format!(
                "There are {} processes named {name} more than {} ago, {} in all.{dead}",
                units::count(trend.change() as u64),
                units::seconds(seen.duration_s()),
                units::count(trend.after as u64)
            );
            let next = vec![
                "ps -eo pid,ppid,stat,etime,comm --sort=start_time | tail -50   (who is their parent)".into(),
            ];
            let culprit = Culprit { comm: Some(name.into()), ..Culprit::default() };
            (trend.change() * PROCESS_KB, counted(Kind::Processes, culprit, text, next, &trend, PROCESS_KB))
        })
        .collect()
}

/// Slab caches of which each thread or process has objects.
const OF_PROCESSES: [&str; 16] = [
    "task_struct",
    "thread_stack",
    "mm_struct",
    "vm_area_struct",
    "vma_lock",
    "maple_node",
    "anon_vma",
    "anon_vma_chain",
    "sighand_cache",
    "signal_cache",
    "files_cache",
    "fs_cache",
    "cred",
    "cred_jar",
    "pid",
    "task_delay_info",
];

/// Slab caches that grew because there are more threads and processes.
pub(super) fn explained(found: &[Ranked]) -> Vec<String> {
    let more = found.iter().any(|(_, diagnosis)| matches!(diagnosis.kind, Kind::Threads | Kind::Processes));
    if more { OF_PROCESSES.iter().map(|&name| name.to_owned()).collect() } else { Vec::new() }
}

/// Processes of a name that have ended and were not waited for.
fn zombies(seen: &Observation, name: &str) -> u64 {
    let there = |process: &&Process| {
        seen.names.get(&process.pid).is_some_and(|identity| identity.comm == name && identity.state == 'Z')
    };
    seen.last().processes.iter().filter(there).count() as u64
}

/// Processes whose page tables grow.
pub(super) fn page_tables(seen: &Observation) -> Vec<Ranked> {
    let total = seen.class_trend(Class::PageTables);
    if total.change() < FLOOR_KB {
        return Vec::new();
    }
    let growers = growers(seen.suspects(|process| f64::from(process.page_tables_kb)), FLOOR_KB);
    let found: Vec<Ranked> = growers
        .into_iter()
        .take(NAMED)
        .map(|(pid, trend)| {
            let address_space =
                seen.last().processes.iter().find(|process| process.pid == pid).map_or(0, |process| process.vsz_kb);
            let text = format!(
                "{} (pid {pid}): its page tables {}, to {}, for {} of address space. It touches memory far apart, or maps \
                 much that many share; a page table is 4 KiB for each 2 MiB in which a page was touched.",
                seen.comm(pid),
                how(&trend, seen.duration_s()),
                units::bytes(trend.after * 1_024.0),
                units::bytes(address_space as f64 * 1_024.0)
            );
            let next = vec![format!("leaktrace triage --pid {pid}"), "huge pages for what is shared and large".into()];
            let culprit = Culprit { pid: Some(pid), comm: Some(seen.comm(pid).into()), ..Culprit::default() };
            (trend.change(), Diagnosis::new(Kind::PageTables, culprit, text, next).grown(&trend))
        })
        .collect();
    if !found.is_empty() {
        return found;
    }
    // Each process has some.
    let processes = seen.trend(|look| Some(look.processes.len() as f64));
    if processes.change() >= STEP_COUNT {
        return Vec::new();
    }
    let text = format!(
        "Memory of page tables {}, to {}; no single process has it.",
        how(&total, seen.duration_s()),
        units::bytes(total.after * 1_024.0)
    );
    let next = vec!["grep -H VmPTE /proc/[0-9]*/status | sort -k2n | tail".into()];
    vec![(total.change(), Diagnosis::new(Kind::PageTables, Culprit::default(), text, next).grown(&total))]
}
