//! The readers of /proc on files of real kernels: 5.10 to 7.2, x86-64 and arm64 (`fixtures/README.md`).

use std::path::{Path, PathBuf};

use leaktrace::{
    analysis::triage::{allocates_stacks, ledger},
    proc::{
        cgroups, fds, fields::Fields, kmemleak, maps, mounts, profile, slab, sockets, status, swap,
        vmallocinfo, zoneinfo,
    },
};

const KERNELS: [&str; 6] = ["5.10", "6.1", "6.12", "6.18", "7.2", "arm64-6.1"];
/// Those that were captured in a guest, where more than a few files could be taken.
const GUESTS: [&str; 5] = ["5.10", "6.1", "6.12", "7.2", "arm64-6.1"];

fn root(kernel: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(kernel)
}

/// The process that a fixture has in full, beside 1 and 2.
fn process(kernel: &str) -> u32 {
    let entries = std::fs::read_dir(root(kernel).join("proc")).unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid > 2).max().unwrap()
}

#[test]
fn ledgers_add_up_and_leave_little() {
    for kernel in KERNELS {
        let root = root(kernel);
        let meminfo = Fields::read(&root, "proc/meminfo").unwrap();
        let vmstat = Fields::read(&root, "proc/vmstat").unwrap();
        assert!(meminfo.unknown.is_empty() && vmstat.unknown.is_empty(), "{kernel}: {:?}", meminfo.unknown);
        let callers = vmallocinfo::read(&root).unwrap();
        let stacks_in_vmalloc =
            callers.iter().any(|(caller, areas)| areas.pages > 0 && allocates_stacks(caller));
        assert!(stacks_in_vmalloc, "{kernel}: {callers:?}");
        let (total, levels) = ledger::levels(&ledger::Sources {
            meminfo: &meminfo,
            vmstat: &vmstat,
            cpu_list_pages: zoneinfo::free_on_cpu_lists(&root).unwrap(),
            socket_pages: sockets::buffer_pages(&root).unwrap(),
            zram_kb: 0,
            stacks_in_vmalloc,
            page_kb: 4,
        });
        assert_eq!(levels.iter().map(|&(_, kb)| kb).sum::<i64>(), total, "{kernel}");
        let (last, left) = *levels.last().unwrap();
        assert_eq!(last, ledger::Class::Unaccounted);
        println!("{kernel}: {left} of {total} kB unaccounted");
        assert!(left.abs() * 100 < total * 3, "{kernel}: {left} of {total} kB: {levels:?}");
        // vmalloc's own count and that of its areas are the same memory.
        if kernel != "6.18" {
            let by_caller: u64 = callers.values().map(|areas| areas.pages * 4).sum();
            let used = meminfo.get("VmallocUsed").unwrap();
            assert!(by_caller.abs_diff(used) * 10 <= used, "{kernel}: {by_caller} and {used} kB");
        }
    }
}

#[test]
fn slab_caches_are_read() {
    for kernel in KERNELS {
        let root = root(kernel);
        let caches = slab::read_slabinfo(&root).unwrap();
        let kb: u64 = caches.values().map(|cache| cache.pages * 4).sum();
        let meminfo = Fields::read(&root, "proc/meminfo").unwrap();
        let all = meminfo.get("Slab").unwrap();
        // Large kmalloc is no cache's.
        assert!(kb <= all + all / 20 && kb * 10 > all * 7, "{kernel}: {kb} of {all} kB");
        if kernel != "6.18" {
            let sysfs = slab::read_sysfs(&root).unwrap();
            assert_eq!(sysfs["dentry"].object_size, caches["dentry"].object_size, "{kernel}");
            // Both were read one after the other, and reading makes names.
            assert!(sysfs["dentry"].pages.abs_diff(caches["dentry"].pages) < 40, "{kernel}");
            let traits = slab::read_traits(&root, ["dentry"].into_iter());
            assert!(traits["dentry"].reclaimable, "{kernel}");
        }
    }
}

#[test]
fn processes_are_read() {
    for kernel in GUESTS {
        let root = root(kernel);
        let processes = status::Reader::new(&root).read().unwrap();
        assert_eq!(processes.found.len(), 3, "{kernel}");
        let status = |pid: u32| processes.found.iter().find(|found| found.pid == pid).unwrap().status.clone();
        assert_eq!((status(1).comm.as_str(), status(2).comm.as_str()), ("init", "kthreadd"), "{kernel}");
        assert!(status(1).has_memory && !status(2).has_memory && status(1).threads == 1, "{kernel}");
        let pid = process(kernel);
        let own = status(pid);
        let segments = maps::segments(&root, pid).unwrap();
        let rss: u64 = segments.values().map(|segment| segment.rss_kb).sum();
        // The counters of a process lag behind, by 64 pages a thread, and faults that map many count once.
        assert!(own.rss_kb() <= rss && own.rss_kb() > 0, "{kernel}: {rss} and {} kB", own.rss_kb());
        let program = maps::program(&root, pid).unwrap();
        assert!(program.files.contains("busybox"), "{kernel}: {program:?}");
        let pss: u64 = segments.values().map(|segment| segment.pss_kb).sum();
        assert!(maps::pss_kb(&root, pid).unwrap().abs_diff(pss) < 64, "{kernel}");
        assert!(fds::socket_kinds(&root, pid, &[1]).contains_key("other"), "{kernel}");
    }
}

#[test]
fn mounts_groups_and_the_rest_are_read() {
    for kernel in GUESTS {
        let root = root(kernel);
        let mounts = mounts::read(&root).unwrap();
        assert!(mounts.iter().any(|mount| mount.path == Path::new("/run/a b")), "{kernel}: {mounts:?}");
        let groups = cgroups::read(&root, &mounts);
        assert_eq!(groups.version, 2, "{kernel}");
        let web = groups.groups.iter().find(|group| group.path == "/web.slice").unwrap();
        assert!(web.used_kb > 0 && web.limit_kb.is_some_and(|kb| kb < 50_000), "{kernel}: {web:?}");
        let worker = groups.groups.iter().find(|group| group.path == "/web.slice/worker").unwrap();
        assert!(worker.limit_kb.is_none() && worker.used_kb <= web.used_kb, "{kernel}");
        // That of 5.10 has what it consists of, and had not been added up yet.
        assert!(web.kernel_kb > 0 || kernel == "5.10", "{kernel}: {web:?}");
        assert!(swap::areas(&root).is_empty(), "{kernel}");
    }
    for kernel in KERNELS {
        let protocols = sockets::protocols(&root(kernel)).unwrap();
        assert!(
            protocols.iter().all(|protocol| protocol.sockets > 0 && !protocol.module.is_empty()),
            "{kernel}"
        );
    }
}

#[test]
fn lists_of_kmemleak_are_read() {
    for (kernel, objects, percpu) in [("6.12", 40, 5), ("7.2", 10, 5)] {
        let file = std::fs::File::open(root(kernel).join("sys/kernel/debug/kmemleak")).unwrap();
        let listing = kmemleak::Listing::read(std::io::BufReader::new(file)).unwrap();
        assert_eq!((listing.objects.len(), listing.unknown_lines), (objects, 0), "{kernel}");
        assert!(!listing.cut_short && listing.dropped == 0, "{kernel}");
        assert_eq!(listing.objects.iter().filter(|object| object.percpu).count(), percpu, "{kernel}");
        for object in &listing.objects {
            let driver = |frame: &kmemleak::Frame| frame.module.as_deref() == Some("leakdrv");
            assert!(listing.backtrace(object).iter().any(driver), "{kernel}: {object:?}");
        }
    }
}

#[test]
fn the_kernels_own_accounts_are_read() {
    let root = root("7.2");
    let places = profile::allocinfo(&root).unwrap();
    assert!(places.len() > 50 && places.keys().any(|place| place.contains(".c:")), "{places:?}");
    let owners = profile::page_owners(&root).unwrap();
    assert!(!owners.is_empty() && owners.values().all(|&pages| pages > 0), "{owners:?}");
    assert!(!owners.keys().any(|owner| owner.starts_with("post_alloc_hook")), "{owners:?}");
}
