//! What has much, whether it grows or not.

use std::collections::BTreeMap;

use super::{Culprit, Diagnosis, Kind, Observation, kernel::module_of, ledger::Class};
use crate::units;

/// Share of all memory from which a class is spoken of; of the kernel's own, and of what is nobody's.
const SHARE: f64 = 0.10;
pub(super) const KERNEL_SHARE: f64 = 0.05;
/// The page cache is spoken of from here on, so that nobody worries.
const CACHE_SHARE: f64 = 0.5;
/// Diagnoses of this kind at most.
const NAMED: usize = 5;
/// A control group is at its limit from this share on, if this share cannot be taken back.
const FULL: f64 = 0.95;
const STUCK: f64 = 0.8;

/// What has much and is not among those that were told already.
pub(super) fn all(seen: &Observation, told: &[Diagnosis]) -> Vec<Diagnosis> {
    let mut found = limits(seen);
    let last = seen.last();
    let total = last.total_kb.max(1) as f64;
    let others = |class: Class| last.level_of_others(class);
    let mut levels: Vec<_> =
        last.levels.iter().filter(|(class, _)| others(*class) >= total * share(*class)).collect();
    levels.sort_by_key(|(_, kb)| std::cmp::Reverse(*kb));
    let held = levels.into_iter().filter_map(|&(class, kb)| holder(seen, class, kb));
    let told = |diagnosis: &Diagnosis| {
        told.iter().any(|other| other.kind == diagnosis.kind && other.culprit == diagnosis.culprit)
    };
    found.extend(held.filter(|diagnosis| !told(diagnosis)).take(NAMED));
    found
}

fn share(class: Class) -> f64 {
    match class {
        Class::Free | Class::FreeOnCpus | Class::Balloon => f64::INFINITY,
        Class::PageCache | Class::Buffers | Class::SwapCache => CACHE_SHARE,
        Class::Anonymous | Class::Shmem | Class::HugePages => SHARE,
        _ => KERNEL_SHARE,
    }
}

/// Memory so short, or so much of it in one class.
fn percent(kb: f64, seen: &Observation) -> String {
    format!("{:.0} % of all memory", kb / seen.last().total_kb.max(1) as f64 * 100.0)
}

/// The processes of one name, with their anonymous memory in kB and how many they are; the largest first.
pub fn by_name(seen: &Observation) -> Vec<(String, f64, usize)> {
    let mut names: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for process in &seen.last().processes {
        let sum = names.entry(seen.comm(process.pid)).or_default();
        sum.0 += f64::from(process.anon_kb);
        sum.1 += 1;
    }
    let mut sums: Vec<_> =
        names.into_iter().map(|(name, (kb, count))| (name.to_owned(), kb, count)).collect();
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums
}

fn holder(seen: &Observation, class: Class, kb: i64) -> Option<Diagnosis> {
    let kb = kb as f64;
    let size = format!("{}, {}", units::bytes(kb * 1_024.0), percent(kb, seen));
    let (kind, culprit, text, next) = match class {
        Class::Anonymous => {
            let (name, most, count) = by_name(seen).into_iter().next()?;
            let who = if count == 1 {
                format!("{name} has")
            } else {
                format!("{count} processes named {name} have")
            };
            let pid = seen.last().processes.iter().filter(|process| seen.comm(process.pid) == name);
            let pid = pid.max_by_key(|process| process.anon_kb)?.pid;
            (
                Kind::ProcessMemory,
                Culprit { pid: (count == 1).then_some(pid), comm: Some(name), ..Culprit::default() },
                format!("Processes have {size}; {who} {} of it.", units::bytes(most * 1_024.0)),
                vec![format!("leaktrace triage --pid {pid}")],
            )
        }
        Class::Shmem => {
            let mount = seen.last().mounts.iter().max_by_key(|mount| mount.used_kb);
            let mount = mount.filter(|mount| mount.used_kb as f64 * 2.0 >= kb);
            let path = mount.map(|mount| mount.path.to_string_lossy().into_owned());
            let place = path.as_ref().map_or_else(String::new, |path| format!(", most of it on {path}"));
            (
                if path.is_some() { Kind::Tmpfs } else { Kind::SharedMemory },
                Culprit { path, ..Culprit::default() },
                format!("Files in memory and shared memory have {size}{place}."),
                vec!["df -h -t tmpfs; ipcs -m".into()],
            )
        }
        Class::PageCache | Class::Buffers | Class::SwapCache => (
            Kind::PageCache,
            Culprit::default(),
            format!("The {} has {size}. That is normal, and counts as available.", class.title()),
            Vec::new(),
        ),
        Class::SlabReclaimable | Class::SlabUnreclaimable => slab(seen, class, &size),
        Class::Vmalloc => {
            let callers = seen.last().callers.iter().flatten();
            let others = |caller: &str, pages: u64| {
                seen.last().caller_of_others(caller, (pages * seen.page_kb) as f64)
            };
            let most = callers.max_by(|a, b| others(a.0, a.1.pages).total_cmp(&others(b.0, b.1.pages)));
            let who = most.map_or_else(String::new, |(caller, areas)| {
                format!(
                    "; {caller} has {} of it",
                    units::bytes((areas.pages * seen.page_kb) as f64 * 1_024.0)
                )
            });
            let caller = most.map(|(caller, _)| caller.clone());
            (
                Kind::Vmalloc,
                Culprit { module: caller.as_deref().and_then(module_of), caller, ..Culprit::default() },
                format!("vmalloc has {size}{who}."),
                vec!["sudo leaktrace --family vmalloc --duration 60".into()],
            )
        }
        Class::Unaccounted => unaccounted(seen, &size),
        _ => (kind(class), Culprit::default(), format!("Memory of {} is {size}.", class.title()), Vec::new()),
    };
    let mut diagnosis = Diagnosis::new(kind, culprit, text, next);
    diagnosis.bytes = kb * 1_024.0;
    Some(diagnosis)
}

type Parts = (Kind, Culprit, String, Vec<String>);

fn unaccounted(seen: &Observation, size: &str) -> Parts {
    let place = seen.places.as_ref().and_then(|(_, after)| after.iter().max_by_key(|(_, bytes)| **bytes));
    let by = place.map_or_else(String::new, |(place, bytes)| {
        format!(" The largest of the kernel's own accounts is {place} with {}.", units::bytes(*bytes as f64))
    });
    (
        Kind::Unaccounted,
        Culprit { caller: place.map(|(place, _)| place.clone()), ..Culprit::default() },
        format!(
            "Nobody accounts for {size}: pages that somebody in the kernel, mostly a driver, took from the page allocator.{by}"
        ),
        vec!["sudo leaktrace --family page --duration 60   (shows what is taken from now on)".into()],
    )
}

fn slab(seen: &Observation, class: Class, size: &str) -> Parts {
    let wanted = class == Class::SlabReclaimable;
    let kind = if wanted { Kind::SlabReclaimable } else { Kind::Slab };
    let caches = seen.last().caches.iter().flatten();
    let of_class = caches.filter(|(name, _)| seen.nature(name).reclaimable == wanted);
    let Some((name, cache)) = of_class.max_by_key(|(_, cache)| cache.pages) else {
        let text = format!("Memory of {} is {size}.", class.title());
        return (kind, Culprit::default(), text, vec!["sudo leaktrace triage".into()]);
    };
    let purpose = seen.nature(name).purpose(name).map_or_else(String::new, |purpose| format!(" ({purpose})"));
    let text = format!(
        "Memory of {} is {size}; most has {name}{purpose} with {}.{}",
        class.title(),
        units::bytes((cache.pages * seen.page_kb) as f64 * 1_024.0),
        if wanted { " The kernel shrinks it when memory is short." } else { "" }
    );
    let owner = seen.nature(name).owner.map(|owner| owner.module);
    let next = vec![format!("sudo leaktrace --cache '{name}' --duration 60")];
    (kind, Culprit { cache: Some(name.clone()), module: owner, ..Culprit::default() }, text, next)
}

fn kind(class: Class) -> Kind {
    match class {
        Class::KernelStacks => Kind::KernelStacks,
        Class::Percpu => Kind::Percpu,
        Class::PageTables => Kind::PageTables,
        Class::HugePages => Kind::HugePages,
        Class::CompressedSwap => Kind::CompressedSwap,
        Class::Sockets => Kind::Sockets,
        _ => Kind::Other,
    }
}

/// Control groups and processes at a limit.
fn limits(seen: &Observation) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    for group in &seen.last().groups.groups {
        let Some(limit) = group.limit_kb.filter(|&limit| limit > 0 && limit < seen.last().total_kb as u64)
        else {
            continue;
        };
        let stuck = (group.anon_kb + group.kernel_kb + group.shmem_kb) as f64;
        if (group.used_kb as f64) < limit as f64 * FULL || stuck < limit as f64 * STUCK {
            continue;
        }
        let kills = match group.oom_kills {
            0 => String::new(),
            times => format!(" The kernel killed in it for that {} times.", units::count(times)),
        };
        let text = format!(
            "The control group {} is at its limit: {} of {}, {} of it of processes, {} of the kernel.{kills} Memory is short in \
             there, whatever the machine has.",
            group.path,
            units::bytes(group.used_kb as f64 * 1_024.0),
            units::bytes(limit as f64 * 1_024.0),
            units::bytes(group.anon_kb as f64 * 1_024.0),
            units::bytes(group.kernel_kb as f64 * 1_024.0)
        );
        let culprit = Culprit { path: Some(group.path.clone()), ..Culprit::default() };
        let mut diagnosis = Diagnosis::new(Kind::CgroupLimit, culprit, text, Vec::new());
        diagnosis.bytes = group.used_kb as f64 * 1_024.0;
        found.push(diagnosis);
    }
    for (&pid, details) in &seen.details {
        let fds =
            seen.last().processes.iter().find(|process| process.pid == pid).and_then(|process| process.fds);
        let (Some(limit), Some(fds)) = (details.max_fds, fds) else { continue };
        if u64::from(fds) * 10 < limit * 9 {
            continue;
        }
        let text = format!(
            "{} (pid {pid}) has {} files open and may have {}: it will soon fail to open any.",
            seen.comm(pid),
            units::count(fds.into()),
            units::count(limit)
        );
        let culprit = Culprit { pid: Some(pid), comm: Some(seen.comm(pid).into()), ..Culprit::default() };
        found.push(Diagnosis::new(Kind::FdLimit, culprit, text, vec![format!("ls -l /proc/{pid}/fd")]));
    }
    found.truncate(NAMED);
    found
}

/// That there is nothing.
pub(super) fn nothing(seen: &Observation) -> Diagnosis {
    let last = seen.last();
    let available = last.available_kb as f64;
    let text = if seen.looks.len() < 2 {
        format!(
            "Nothing stands out: {} are available, {}.",
            units::bytes(available * 1_024.0),
            percent(available, seen)
        )
    } else {
        format!(
            "Nothing grew in {} and nothing stands out: {} are available, {}.",
            units::seconds(seen.duration_s()),
            units::bytes(available * 1_024.0),
            percent(available, seen)
        )
    };
    let next = vec!["leaktrace triage --duration 10m   (slow leaks take longer to be seen)".into()];
    Diagnosis::new(Kind::Nothing, Culprit::default(), text, next)
}
