//! What has much, whether it grows or not.

use std::collections::BTreeMap;

use super::{Culprit, Diagnosis, Kind, Observation, kernel::module_of, ledger::Class};
use crate::units;

/// Share of all memory from which a class is spoken of; of the kernel's own, and of what is nobody's.
const SHARE: f64 = 0.10;
pub(super) const KERNEL_SHARE: f64 = 0.05;
/// Slab that the kernel does not take back is told before what grows from here on: it has leaked already.
const FIRST_SHARE: f64 = 0.2;
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
    let next = vec![
        heap_of(name),
        format!("sudo leaktrace --cache '{name}' --duration 60   (shows what is allocated from now on)"),
    ];
    (kind, Culprit { cache: Some(name.clone()), module: owner, ..Culprit::default() }, text, next)
}

/// The command that looks at a cache as it is.
pub(super) fn heap_of(cache: &str) -> String {
    format!("sudo leaktrace heap --cache '{cache}'   (what of it is lost, and who holds the rest)")
}

/// Whether a cache has so much that it is told first, whatever grows meanwhile.
pub(super) fn is_told_first(seen: &Observation, diagnosis: &Diagnosis) -> bool {
    diagnosis.kind == Kind::Slab && diagnosis.bytes >= seen.last().total_kb as f64 * 1_024.0 * FIRST_SHARE
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::triage::{
            diagnose,
            tests::{growing, name, observation, process},
        },
        proc::{cgroups::Group, slab::SlabCache},
    };

    #[test]
    fn what_has_much_is_told_though_it_does_not_grow() {
        let level = |class, _| match class {
            Class::Anonymous => 9 << 20,
            Class::SlabUnreclaimable => 1 << 20,
            Class::Unaccounted => 2 << 20,
            _ => 0,
        };
        let mut seen = observation(level, |look, _| {
            look.processes = vec![process(5, 8 << 20), process(6, 1 << 20)];
            let pages = SlabCache {
                active_objects: 1,
                total_objects: 1,
                object_size: 64,
                objects_per_slab: 64,
                pages: 200_000,
            };
            look.caches = Some(BTreeMap::from([("kmalloc-64".to_owned(), pages)]));
            look.groups.groups = vec![Group {
                path: "/web".into(),
                used_kb: 1_000,
                limit_kb: Some(1_024),
                anon_kb: 900,
                oom_kills: 2,
                ..Group::default()
            }];
        });
        name(&mut seen, 5, "java");
        let found = diagnose(&seen);
        let kinds: Vec<_> = found.iter().map(|diagnosis| diagnosis.kind).collect();
        assert_eq!(kinds, [Kind::CgroupLimit, Kind::ProcessMemory, Kind::Unaccounted, Kind::Slab]);
        assert!(found.iter().all(|diagnosis| !diagnosis.grows));
        assert_eq!(found[1].culprit.pid, Some(5));
        assert!(found[1].text.contains("java has 8.0 GiB of it"), "{}", found[1].text);
        assert!(found[0].text.contains("killed in it for that 2 times"), "{}", found[0].text);
        // One look is enough for that.
        seen.looks.truncate(1);
        assert_eq!(diagnose(&seen).len(), found.len());
    }

    /// What has leaked is told before what grows a little meanwhile, but not before slab that grows.
    #[test]
    fn slab_that_has_leaked_is_told_first() {
        let look = |slab_kb: i64, slab_grows_kb: i64| {
            let level = move |class, time| match class {
                Class::Anonymous => 1_024 + growing(50 << 10, time),
                Class::SlabUnreclaimable => slab_kb + growing(slab_grows_kb, time),
                _ => 0,
            };
            let seen = observation(level, |look, time| {
                look.processes = vec![process(5, 1_024 + growing(50 << 10, time))];
                let objects = (slab_kb + growing(slab_grows_kb, time)) as u64 * 16;
                let cache = SlabCache {
                    active_objects: objects,
                    total_objects: objects,
                    object_size: 64,
                    objects_per_slab: 64,
                    pages: objects / 64,
                };
                look.caches = Some(BTreeMap::from([("kmalloc-64".to_owned(), cache)]));
            });
            diagnose(&seen).into_iter().map(|found| (found.kind, found.grows, found.next)).collect::<Vec<_>>()
        };
        // A quarter of 16 GiB; an eighth.
        let found = look(4 << 20, 0);
        assert_eq!((found[0].0, found[0].1, found[1].0), (Kind::Slab, false, Kind::ProcessMemory));
        assert!(found[0].2[0].starts_with("sudo leaktrace heap --cache 'kmalloc-64'"), "{:?}", found[0].2);
        let kinds: Vec<_> = look(2 << 20, 0).iter().map(|found| found.0).collect();
        assert_eq!(kinds, [Kind::ProcessMemory, Kind::Slab]);
        let found = look(4 << 20, 100 << 10);
        assert_eq!((found[0].0, found[0].1), (Kind::Slab, true));
        assert!(found[0].2.iter().any(|next| next.starts_with("sudo leaktrace heap")), "{:?}", found[0].2);
    }
}
