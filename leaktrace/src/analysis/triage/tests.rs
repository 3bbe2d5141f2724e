use proptest::prelude::*;

use super::*;
use crate::proc::{kin::Maps, vmallocinfo::Areas};

/// Kilobytes of the machine of these tests: 16 GiB.
const TOTAL: i64 = 16 << 20;

/// Eleven looks, a second apart; `level` tells what each class has at a time from 0 to 1.
pub(super) fn observation(
    level: impl Fn(Class, f64) -> i64,
    mut more: impl FnMut(&mut Look, f64),
) -> Observation {
    let looks = (0..11).map(|second| {
        let time = f64::from(second) / 10.0;
        let classes = [
            Class::PageCache,
            Class::Anonymous,
            Class::Shmem,
            Class::SlabReclaimable,
            Class::SlabUnreclaimable,
            Class::Vmalloc,
            Class::PageTables,
            Class::Percpu,
            Class::Unaccounted,
        ];
        let mut levels: Vec<_> = classes.iter().map(|&class| (class, level(class, time))).collect();
        let used: i64 = levels.iter().map(|&(_, kb)| kb).sum();
        levels.push((Class::Free, TOTAL - used));
        let mut look = Look {
            at_s: f64::from(second),
            total_kb: TOTAL,
            available_kb: 8 << 20,
            levels,
            caches: Some(BTreeMap::new()),
            callers: Some(Callers::new()),
            ..Look::default()
        };
        more(&mut look, time);
        look
    });
    Observation { looks: looks.collect(), page_kb: 4, cpus: 4, ..Observation::default() }
}

/// Something that grows by so many kB all the time.
pub(super) fn growing(by: i64, time: f64) -> i64 {
    (by as f64 * time) as i64
}

pub(super) fn name(seen: &mut Observation, pid: u32, comm: &str) {
    seen.names.insert(pid, Identity { comm: comm.into(), state: 'S', ..Identity::default() });
}

pub(super) fn process(pid: u32, anon_kb: i64) -> Process {
    Process { pid, anon_kb: anon_kb as u32, threads: 1, fds: Some(10), ..Process::default() }
}

#[test]
fn a_heap_comes_before_any_page_cache() {
    let level = |class, time| match class {
        Class::PageCache => growing(6 << 20, time),
        Class::Anonymous => growing(20 << 10, time),
        Class::SlabReclaimable => growing(900 << 10, time),
        _ => 0,
    };
    let mut seen = observation(level, |look, time| {
        look.processes = vec![process(1, 100), process(7, 50 + growing(20 << 10, time))];
        let dentries = SlabCache {
            active_objects: growing(4_800_000, time) as u64,
            total_objects: 0,
            object_size: 192,
            objects_per_slab: 21,
            pages: 0,
        };
        look.caches = Some(BTreeMap::from([("dentry".to_owned(), dentries)]));
    });
    name(&mut seen, 7, "server");
    seen.natures.insert("dentry".into(), caches::Nature { reclaimable: true, ..caches::Nature::default() });
    let found = diagnose(&seen);
    let kinds: Vec<_> = found.iter().map(|diagnosis| diagnosis.kind).collect();
    assert_eq!(kinds, [Kind::ProcessMemory, Kind::PageCache, Kind::SlabReclaimable]);
    assert_eq!(found[0].culprit.pid, Some(7));
    assert!((found[0].bytes_grown - f64::from(20 << 20)).abs() < 1.0);
    assert!(
        found[0].text.starts_with("server (pid 7): its own memory grows by 2.0 MiB/s, by 20.0 MiB in 10 s"),
        "{}",
        found[0].text
    );
    assert!(found[2].text.contains("names of files that were looked up"), "{}", found[2].text);
}

#[test]
fn processes_of_one_name_are_told_as_one() {
    let mut seen = observation(
        |class, time| if class == Class::Anonymous { growing(40 << 10, time) } else { 0 },
        |look, time| look.processes = (1..=20).map(|pid| process(pid, growing(2 << 10, time))).collect(),
    );
    for pid in 1..=20 {
        name(&mut seen, pid, "worker");
    }
    let first = &diagnose(&seen)[0];
    assert_eq!((first.culprit.pid, first.culprit.comm.as_deref()), (None, Some("worker")));
    assert!((first.bytes_grown - f64::from(40 << 20)).abs() < 1.0);
    assert!(first.text.starts_with("20 processes named worker"), "{}", first.text);
}

#[test]
fn more_processes_are_no_growing_memory() {
    let mut seen = observation(
        |class, time| if class == Class::Anonymous { growing(40 << 10, time) } else { 0 },
        |look, time| {
            look.processes = (1..=1 + growing(400, time) as u32).map(|pid| process(pid, 100)).collect();
        },
    );
    for pid in 1..=401 {
        name(&mut seen, pid, "fork");
    }
    seen.names.get_mut(&400).unwrap().state = 'Z';
    let found = diagnose(&seen);
    assert_eq!(found[0].kind, Kind::Processes);
    assert_eq!(found[0].count_grown, Some(400));
    assert!(found[0].text.contains("1 of them have ended"), "{}", found[0].text);
    assert!(found.iter().all(|diagnosis| diagnosis.kind != Kind::ProcessMemory), "{found:#?}");
}

#[test]
fn caches_behind_open_files_are_explained_by_them() {
    let cache = |objects: i64, object_size| SlabCache {
        active_objects: objects as u64,
        total_objects: objects as u64,
        object_size,
        objects_per_slab: 16,
        pages: 0,
    };
    let mut seen = observation(
        |class, time| if class == Class::SlabUnreclaimable { growing(20 << 10, time) } else { 0 },
        |look, time| {
            look.processes = vec![Process { fds: Some(10 + growing(4_000, time) as u32), ..process(7, 100) }];
            let caches = [
                ("filp", cache(growing(4_000, time), 256)),
                ("kmalloc-cg-1k", cache(growing(2_000, time), 1_024)),
                ("foo_ctx", cache(growing(30_000, time), 512)),
            ];
            look.caches = Some(caches.into_iter().map(|(name, cache)| (name.to_owned(), cache)).collect());
        },
    );
    name(&mut seen, 7, "server");
    let found = diagnose(&seen);
    let kinds: Vec<_> =
        found.iter().map(|diagnosis| (diagnosis.kind, diagnosis.culprit.cache.as_deref())).collect();
    assert_eq!(kinds, [(Kind::Slab, Some("foo_ctx")), (Kind::Fds, None)]);
    assert!(found[1].text.contains("filp, kmalloc-cg-1k"), "{}", found[1].text);
    assert_eq!(found[1].count_grown, Some(4_000));
    // A file takes a kilobyte at least, whatever could be found of it.
    assert!((found[1].bytes_grown - 4_000.0 * 1_024.0).abs() < 1.0, "{:#?}", found[1]);
}

#[test]
fn large_kmalloc_is_no_caches() {
    let seen = observation(
        |class, time| if class == Class::SlabUnreclaimable { growing(30 << 10, time) } else { 0 },
        |_, _| {},
    );
    let first = &diagnose(&seen)[0];
    assert!(
        first.kind == Kind::Slab
            && first.culprit.cache.is_none()
            && first.next[0].contains("--min-size 8193")
    );
    assert!((first.bytes_grown - f64::from(30 << 20)).abs() < 1.0);
}

#[test]
fn vmalloc_is_its_callers_and_stacks_are_not() {
    let areas = |pages: i64| Areas { areas: 1, pages: pages as u64, bytes: 0 };
    let seen = observation(
        |class, time| if class == Class::Vmalloc { growing(40 << 10, time) } else { 0 },
        |look, time| {
            let callers =
                [("drv_load [drv]", growing(10_000, time)), ("kernel_clone", growing(20_000, time))];
            look.callers =
                Some(callers.into_iter().map(|(caller, pages)| (caller.to_owned(), areas(pages))).collect());
        },
    );
    let found = diagnose(&seen);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].culprit.module.as_deref(), Some("drv"));
    assert_eq!(found[0].next, ["sudo leaktrace --module drv --duration 60"]);
}

#[test]
fn what_counters_do_by_themselves_is_nothing() {
    // Each of the four CPUs may keep half a MiB to itself.
    let small = observation(
        |class, time| if class == Class::Unaccounted { growing(2_900, time) } else { 0 },
        |_, _| {},
    );
    let found = diagnose(&small);
    assert_eq!((found.len(), found[0].kind), (1, Kind::Nothing));
    let mut large = observation(
        |class, time| if class == Class::Unaccounted { growing(64 << 10, time) } else { 0 },
        |_, _| {},
    );
    assert_eq!(diagnose(&large)[0].kind, Kind::Unaccounted);
    large.places =
        Some((Places::new(), Places::from([("drv.c:7 [drv] take".into(), 66 << 20), ("x".into(), 1 << 40)])));
    let first = &diagnose(&large)[0];
    assert_eq!(first.culprit.module.as_deref(), Some("drv"));
    assert!(
        first.next[0].contains("--module drv") && first.text.contains("66.0 MiB more at drv.c:7"),
        "{first:#?}"
    );
}

#[test]
fn a_tmpfs_is_named_and_other_shared_memory_told() {
    let mount = |path: &str, used_kb: i64| InMemory {
        path: path.into(),
        kind: "tmpfs".into(),
        used_kb: used_kb as u64,
        limit_kb: 1 << 20,
    };
    let level = |class, time| if class == Class::Shmem { growing(50 << 10, time) } else { 0 };
    let filling = observation(level, |look, time| {
        look.mounts = vec![mount("/run", 5), mount("/dev/shm/it's", growing(50 << 10, time))];
    });
    let first = &diagnose(&filling)[0];
    assert_eq!((first.kind, first.culprit.path.as_deref()), (Kind::Tmpfs, Some("/dev/shm/it's")));
    assert_eq!(first.next[0], r"du -xah '/dev/shm/it'\''s' | sort -h | tail");
    let mut mapped = observation(level, |look, time| {
        look.processes = vec![Process { shmem_kb: growing(50 << 10, time) as u32, ..process(9, 10) }];
    });
    name(&mut mapped, 9, "db");
    assert_eq!((diagnose(&mapped)[0].kind, diagnose(&mapped)[0].culprit.pid), (Kind::SharedMemory, Some(9)));
    let nobodys = observation(level, |_, _| {});
    assert!(diagnose(&nobodys)[0].text.contains("mapped by no process"));
}

#[test]
fn without_root_slab_is_told_as_a_whole() {
    let seen = observation(
        |class, time| if class == Class::SlabUnreclaimable { growing(30 << 10, time) } else { 0 },
        |look, _| {
            look.caches = None;
            look.callers = None;
        },
    );
    let found = diagnose(&seen);
    assert_eq!((found.len(), found[0].kind), (1, Kind::Slab));
    assert_eq!(found[0].next, ["sudo leaktrace triage"]);
}

proptest! {
    #[test]
    fn any_numbers_are_survived(values in prop::collection::vec(any::<u32>(), 44), looks in 1_usize..11) {
        let mut seen = observation(
            |class, time| i64::from(values[(class as usize + (time * 10.0) as usize) % 44]),
            |look, time| {
                let value = |at: usize| values[(at + (time * 10.0) as usize) % 44];
                look.processes = (0..3)
                    .map(|pid| Process {
                        fds: Some(value(pid) % 100_000),
                        shmem_kb: value(pid + 7),
                        page_tables_kb: value(pid + 9),
                        threads: value(pid + 11) % 5_000,
                        ..process(pid as u32, i64::from(value(pid + 20)))
                    })
                    .collect();
                look.total_kb = i64::from(value(1));
            },
        );
        seen.looks.truncate(looks);
        let found = diagnose(&seen);
        prop_assert!(!found.is_empty() && found.iter().all(|diagnosis| !diagnosis.text.is_empty()));
        prop_assert!(found.iter().all(|diagnosis| diagnosis.bytes_per_s.is_finite()));
    }
}

/// A server that grows by 20 MiB all the time, and at half of it a trace by leaktrace, pid 9, whose maps take 82 MiB and more;
/// `beside` is what else array maps take.
fn beside_a_trace(beside: impl Fn(f64) -> i64) -> Observation {
    let came = |time: f64| time >= 0.5;
    let maps = Maps { arrays_kb: 82 << 10, tables_kb: 7 << 10, percpu_kb: 3 << 10, others_kb: 144 };
    let arrays = |time: f64| beside(time) + if came(time) { 82 << 10 } else { 0 };
    let level = |class, time| match (class, came(time)) {
        (Class::Anonymous, _) => growing(20 << 10, time),
        // The kernel's own sums are off by a little.
        (Class::Vmalloc, true) => arrays(time) + (7 << 10) + 1_400,
        (Class::Vmalloc, false) => arrays(time),
        (Class::Percpu, true) => 3 << 10,
        _ => 0,
    };
    let mut seen = observation(level, |look, time| {
        let areas = |kb: i64| Areas { areas: 9, pages: kb as u64 / 4, bytes: 0 };
        look.callers = Some(Callers::from([
            ("array_map_alloc".to_owned(), areas(arrays(time))),
            ("htab_map_alloc".to_owned(), areas(if came(time) { (7 << 10) + 1_400 } else { 0 })),
        ]));
        look.processes = vec![process(7, 50 + growing(20 << 10, time))];
        if came(time) {
            look.processes.push(Process { fds: Some(400), ..process(9, 60 << 10) });
            look.kin = vec![kin::Kin { pid: 9, maps: Some(maps) }];
        }
    });
    name(&mut seen, 7, "server");
    name(&mut seen, 9, "leaktrace");
    seen
}

#[test]
fn a_trace_beside_is_no_suspect() {
    let found = diagnose(&beside_a_trace(|_| 0));
    let kinds: Vec<_> = found.iter().map(|diagnosis| (diagnosis.kind, diagnosis.culprit.pid)).collect();
    assert_eq!(kinds, [(Kind::ProcessMemory, Some(7)), (Kind::Leaktrace, Some(9))]);
    assert_eq!(
        found[1].text,
        "A trace by leaktrace (pid 9) holds 92.1 MiB in BPF maps, and 60.0 MiB of its own. That is its own bookkeeping, and \
         ends with it."
    );
    // Of what is held a trace is no part either, and so nothing stands out.
    let mut small = beside_a_trace(|_| 0);
    for look in &mut small.looks {
        look.total_kb = 1 << 20;
    }
    small.looks.drain(..10);
    let found = diagnose(&small);
    assert_eq!(
        found.iter().map(|diagnosis| diagnosis.kind).collect::<Vec<_>>(),
        [Kind::Nothing, Kind::Leaktrace]
    );
}

#[test]
fn other_maps_beside_a_trace_are_suspects() {
    let found = diagnose(&beside_a_trace(|time| growing(40 << 10, time)));
    let first = &found[0];
    assert_eq!((first.kind, first.culprit.caller.as_deref()), (Kind::Vmalloc, Some("array_map_alloc")));
    assert!((first.bytes_grown - f64::from(40 << 20)).abs() < 1e6, "{}", first.text);
    assert_eq!(found.last().unwrap().kind, Kind::Leaktrace);
}

/// Who may not read of another's maps is told whose they may be.
#[test]
fn a_trace_whose_maps_may_not_be_read_is_told() {
    let mut seen = beside_a_trace(|_| 0);
    for look in &mut seen.looks {
        look.callers = None;
        for kin in &mut look.kin {
            kin.maps = None;
        }
    }
    let found = diagnose(&seen);
    let vmalloc = found.iter().find(|diagnosis| diagnosis.kind == Kind::Vmalloc).unwrap();
    assert!(
        vmalloc
            .text
            .ends_with("leaktrace (pid 9) runs, and its BPF maps are a part of it that only root may see.")
    );
    assert_eq!((found[0].kind, found[0].culprit.pid), (Kind::ProcessMemory, Some(7)));
}

#[test]
fn steps_are_ranked_below_what_grows_steadily() {
    let step = |by: i64, time: f64| if time >= 0.7 { by } else { 0 };
    let level = |class, time| match class {
        Class::Percpu => growing(4 << 10, time),
        Class::Vmalloc => step(500 << 10, time),
        Class::PageTables => step(60 << 10, time),
        Class::PageCache => growing(1 << 20, time),
        _ => 0,
    };
    let kinds =
        |seen: &Observation| diagnose(seen).iter().map(|diagnosis| diagnosis.kind).collect::<Vec<_>>();
    let seen = observation(level, |_, _| {});
    assert_eq!(kinds(&seen), [Kind::Percpu, Kind::Vmalloc, Kind::PageTables, Kind::PageCache]);
    let found = diagnose(&seen);
    assert_eq!(
        found.iter().map(|diagnosis| diagnosis.steady).collect::<Vec<_>>(),
        [true, false, false, true]
    );
    // Where nothing grows steadily the largest step is first, also before the page cache.
    let seen =
        observation(|class, time| if class == Class::Percpu { 0 } else { level(class, time) }, |_, _| {});
    assert_eq!(kinds(&seen), [Kind::Vmalloc, Kind::PageTables, Kind::PageCache]);
}
