//! What leaktrace says of kernel objects whose number is known.

use std::{
    fs,
    process::Command,
    sync::mpsc,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map};
use leaktrace_common::{BUCKET_SLOTS, Bucket, Control, Payload};
use leaktrace_ebpf::live;
use leaktrace_tests::{
    Holder, Trace, allow_pipes, blind_caches, cache, findings, number, pipe_findings, pipes, require_root,
    tables, turn, until, within,
};
use serde_json::Value;

/// Pipes that are held open.
const PIPES: u64 = 5_000;

/// Both objects of each pipe are live, and as large as they are.
fn check_pipe_sites(report: &Value, live: u64, tolerance: f64) {
    for (site, size) in pipe_findings(report).into_iter().zip([192.0, 1_024.0]) {
        within(number(&site["live"]["objects"]), live as f64, tolerance);
        within(number(&site["live"]["bytes"]), number(&site["live"]["objects"]) * size, 1e-9);
    }
}

#[test]
fn open_pipes_are_live_with_cache_stack_and_task() {
    require_root();
    let _turn = turn();
    allow_pipes(PIPES);
    let begun = Instant::now();
    let trace = Trace::start(&["--overhead", "5"]);
    let made = Instant::now();
    let held = pipes(PIPES);
    sleep(Duration::from_millis(500));
    let aged = made.elapsed();
    let report = trace.stop();
    // The first one was made a moment after the clock was read.
    let ages = aged.as_secs_f64() * 0.9..begun.elapsed().as_secs_f64();
    check_pipe_sites(&report, PIPES, 0.01);
    for site in pipe_findings(&report) {
        assert!(number(&site["rank"]) <= 10.0);
        let name = site["cache"].as_str().unwrap();
        assert!(name.starts_with("kmalloc-cg-"), "{name}");
        let seen = cache(&report, name);
        assert_eq!(seen["agreement"], "agrees", "{seen:#}");
        assert!(
            number(&seen["slabinfo"]["after"]) >= number(&seen["slabinfo"]["before"]) + PIPES as f64 * 0.9
        );
        let frames: Vec<_> = site["stacks"][0]["frames"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["symbol"].as_str().unwrap())
            .collect();
        assert!(frames[0].contains("alloc_pipe_info"), "{frames:?}");
        for function in ["create_pipe_files", "do_pipe2", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"] {
            assert!(frames.contains(&function), "{function} is not in {frames:?}");
        }
        let task = &site["tasks"][0];
        assert_eq!(task["pid"], std::process::id());
        assert!(number(&task["objects"]) >= PIPES as f64 * 0.99, "{task}");
        let oldest = number(&site["survivors"]["oldest_s"]);
        assert!(ages.contains(&oldest), "{oldest} s, {ages:?}");
    }
    drop(held);
}

#[test]
fn closed_pipes_are_not_live() {
    require_root();
    let _turn = turn();
    allow_pipes(PIPES);
    let trace = Trace::start(&["--top", "10000"]);
    drop(pipes(PIPES));
    let report = trace.stop();
    // None, unless another process has made one.
    for site in findings(&report, "alloc_pipe_info") {
        assert!(number(&site["live"]["objects"]) < PIPES as f64 * 0.01, "{site:#}");
    }
    // Both ends were seen.
    for name in ["kmalloc-cg-1k", "kmalloc-cg-192"] {
        let traced = &cache(&report, name)["traced"];
        assert!(number(&traced["allocated"]) >= PIPES as f64, "{traced}");
        assert!(number(&traced["freed"]) >= PIPES as f64 * 0.99, "{traced}");
    }
}

/// Keeps this thread on one CPU.
fn move_to(cpu: usize) {
    // SAFETY: an all-zero set is empty, and the size is that of the set.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(result, 0, "there is no CPU {cpu}");
}

/// Pipes made on one CPU by a thread that soon ends, and closed on another by a thread that moves.
fn churn_over_cpus(waves: u64, each: u64) {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (sender, receiver) = mpsc::sync_channel::<Vec<_>>(4);
    let closer = std::thread::spawn(move || {
        for (wave, pipes) in receiver.into_iter().enumerate() {
            move_to(wave % cpus);
            drop(pipes);
        }
    });
    for wave in 0..waves {
        let sender = sender.clone();
        let made = std::thread::spawn(move || {
            move_to((wave as usize + 1) % cpus);
            let mut pipes = pipes(each / 2);
            move_to(wave as usize % cpus);
            pipes.extend(leaktrace_tests::pipes(each / 2));
            sender.send(pipes).unwrap();
        });
        made.join().unwrap();
    }
    drop(sender);
    closer.join().unwrap();
}

#[test]
fn a_million_balanced_allocations_add_up() {
    require_root();
    let _turn = turn();
    allow_pipes(4_000);
    let trace = Trace::start(&["--top", "10000", "--duration", "5m"]);
    churn_over_cpus(500, 300);
    let addresses = tracked_addresses(trace.pid());
    let report = trace.stop();
    let sum = |field: &str| {
        report["caches"].as_array().unwrap().iter().map(|c| number(&c["traced"][field])).sum::<f64>()
    };
    let (allocated, freed, live) = (sum("allocated"), sum("freed"), sum("live"));
    let lost = &report["coverage"]["lost"];
    eprintln!(
        "{allocated} allocated, {freed} freed, {live} live; {} addresses; lost: {lost}",
        addresses.len()
    );
    assert!(allocated >= 1e6, "only {allocated} allocations");
    assert_eq!(report["coverage"]["sampling"], 1);
    assert!((allocated - freed - live).abs() <= allocated * 0.001, "{allocated} - {freed} is not {live}");
    // A few thousand objects and sites have their places on any machine.
    for counter in ["live_overflow", "site_overflow"] {
        assert_eq!(lost[counter], 0, "{lost}");
    }
    // Stacks are captured of one in many, and a busy machine has very many different ones.
    assert!(number(&lost["stack_overflow"]) <= allocated * 0.001, "{lost}");
    // A program is interrupted by itself now and then.
    let missed = number(&lost["recursion_misses"]);
    assert!(missed <= allocated * 0.001, "{lost}");
    // What the kernel frees by ways that nobody sees is a small part, and nothing of a pipe.
    assert!(number(&lost["implicit_frees"]) <= allocated * 0.01, "{lost}");
    for site in findings(&report, "alloc_pipe_info") {
        // At most two, and none if nobody has a pipe.
        assert!(number(&site["live"]["objects"]) < 150.0, "{site:#}");
        assert!(number(&site["implicit_frees"]) <= missed, "{site:#}, {lost}");
    }
    let mut unique = addresses.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), addresses.len(), "an address is tracked twice");
    // As they are kept, they are no kernel addresses: kmemleak would take them for references.
    assert!(addresses.iter().all(|&key| key < 1 << 63));
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawBucket([u64; size_of::<Bucket>() / 8]);
// SAFETY: integers only.
unsafe impl aya::Pod for RawBucket {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawPayload([u64; size_of::<Payload>() / 8]);
// SAFETY: integers only.
unsafe impl aya::Pod for RawPayload {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct RawControl([u64; size_of::<Control>() / 8]);
// SAFETY: integers only.
unsafe impl aya::Pod for RawControl {}

/// Waits until a running trace tracks no more than one address in so many.
fn until_sampled(pid: u32, sampling: u64) {
    let control: Array<_, RawControl> = Map::Array(tables::open(pid, "CONTROL")).try_into().unwrap();
    // The first word.
    assert_eq!(std::mem::offset_of!(Control, sample_shift), 0);
    until("a smaller sample", || 1 << control.get(&0, 0).unwrap().0[0] >= sampling);
}

/// Waits until a process has slept and woken some times.
fn until_it_woke(pid: u32) {
    let sleeps = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let before = sleeps();
    until("it wakes", || sleeps() >= before + 3);
}

/// Encoded addresses of everything in a running trace's tables, read through the kernel.
fn tracked_addresses(pid: u32) -> Vec<u64> {
    let table: Array<_, RawBucket> = Map::Array(tables::open(pid, "LIVE")).try_into().unwrap();
    let overflow: HashMap<_, u64, RawPayload> =
        Map::HashMap(tables::open(pid, "OVERFLOW")).try_into().unwrap();
    let mut found: Vec<u64> = overflow.keys().map(Result::unwrap).collect();
    for index in 0..table.len() {
        let raw = table.get(&index, 0).unwrap();
        let mut bucket = Bucket::default();
        // SAFETY: both are as large, and any bytes are a bucket.
        unsafe { (&raw mut bucket).cast::<RawBucket>().write(raw) };
        // SAFETY: the bucket is ours.
        found.extend(
            (0..BUCKET_SLOTS).filter_map(|slot| unsafe { live::read(&raw const bucket, slot) }.map(|o| o.0)),
        );
    }
    found
}

#[test]
fn too_many_objects_are_sampled_and_scaled() {
    require_root();
    let _turn = turn();
    allow_pipes(PIPES);
    let trace = Trace::start(&["--max-objects", "1000", "--top", "1000", "--interval", "200ms"]);
    let mut held = Vec::new();
    for _ in 0..10 {
        held.extend(pipes(PIPES / 10));
        // The tables are full time and again.
        sleep(Duration::from_millis(50));
    }
    until_sampled(trace.pid(), 8);
    let report = trace.stop();
    let sampling = number(&report["coverage"]["sampling"]);
    let lost = &report["coverage"]["lost"];
    eprintln!("1 in {sampling} addresses; lost: {lost}");
    assert!(sampling >= 8.0, "{sampling}");
    assert_eq!(report["overhead"]["max_objects"], 1_000);
    check_pipe_sites(&report, PIPES, 0.05);
    for site in pipe_findings(&report) {
        let evidence = site["evidence"].to_string();
        assert!(evidence.contains("scaled from 1 in"), "{evidence}");
    }
    drop(held);
}

#[test]
fn frees_of_a_sample_are_scaled_too() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--max-objects", "60000", "--top", "1000", "--interval", "200ms"]);
    // What finds the tables full is lost, and whose it is depends on the time: on a busy machine they are not relieved at once.
    let mut held: Vec<_> = (0..32)
        .map(|_| {
            let holder = Holder::spawn(PIPES / 4);
            until_it_woke(trace.pid());
            holder
        })
        .collect();
    until_sampled(trace.pid(), 4);
    held.drain(..24);
    let report = trace.stop();
    let sampling = number(&report["coverage"]["sampling"]);
    eprintln!("1 in {sampling} addresses; lost: {}", report["coverage"]["lost"]);
    assert!(sampling >= 4.0);
    // The share that lives is told from a sample of all that was allocated. So far off is one of 100,000 samples.
    let (live, share) = (2.0 * PIPES as f64, 2.0 / 8.0);
    check_pipe_sites(&report, 2 * PIPES, 4.5 * ((1.0 - share) * sampling / live).sqrt());
    drop(held);
}

/// The files of thousands of pipes are freed by RCU at the end of an interrupt, which often comes while the program
/// for such frees is running.
#[test]
fn frees_in_an_interrupt_of_a_free_are_seen() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--interval", "100ms"]);
    let (rounds, holders) = (15, 6);
    for _ in 0..rounds {
        drop((0..holders).map(|_| Holder::spawn(PIPES)).collect::<Vec<_>>());
        // Their inodes are freed in interrupts that come now.
        sleep(Duration::from_millis(200));
    }
    let report = trace.stop();
    let programs = report["overhead"]["programs"].as_array().unwrap();
    let missed = |name: &str| {
        let program = programs.iter().find(|program| program["name"] == name);
        number(&program.unwrap_or_else(|| panic!("no {name} in {programs:#?}"))["recursion_misses"])
    };
    for name in ["filp", "inode_cache"] {
        let freed = number(&cache(&report, name)["traced"]["freed"]);
        // A grace period may still go on.
        assert!(freed >= (rounds * holders * PIPES) as f64 * 0.9, "only {freed} of {name}");
    }
    // Without the second program, 1,000 to 40,000.
    assert!(missed("kmem_cache_free_nested") < 1.0, "{programs:#?}");
    assert!(missed("kmem_cache_free") < 500.0, "{programs:#?}");
}

#[test]
fn unseen_frees_are_a_blind_spot_and_no_finding() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--duration", "5m"]);
    // So many that what is not seen is more than slabinfo may be off by.
    for _ in 0..1_500 {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    let report = trace.stop();
    let maple = cache(&report, "maple_node");
    eprintln!("{maple:#}");
    assert!(number(&maple["traced"]["allocated"]) >= 5_000.0, "{maple:#}");
    // The kernel frees these by paths that have no tracepoint, and that only fentry shows.
    assert_eq!(maple["agreement"], "contradicts", "{maple:#}");
    assert!(number(&maple["traced"]["net"]) > 1_000.0, "{maple:#}");
    assert!(
        blind_caches(&report).contains(&"maple_node".to_owned()),
        "{:#}",
        report["coverage"]["blind_spots"]
    );
    let findings = report["findings"].as_array().unwrap();
    assert!(!findings.is_empty(), "nothing is live");
    for finding in findings {
        assert_ne!(finding["cache"], "maple_node", "{finding:#}");
        assert_ne!(finding["verdict"], "leak", "{finding:#}");
    }
}

#[test]
fn where_frees_cannot_be_seen_findings_say_so() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--top", "10000", "--refuse", "fentry,kprobe"]);
    // Packets that wait: their heads come from a cache that is freed in bulk, too.
    let pairs: Vec<_> = (0..300)
        .map(|_| {
            let (from, to) = std::os::unix::net::UnixDatagram::pair().unwrap();
            from.send(b"waiting").unwrap();
            (from, to)
        })
        .collect();
    let report = trace.stop();
    drop(pairs);
    let heads: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["cache"].as_str().unwrap().starts_with("skbuff_"))
        .collect();
    assert!(!heads.is_empty(), "{:#}", report["findings"]);
    for finding in heads {
        let doubt = finding["doubt"].as_str().unwrap_or_else(|| panic!("there is no doubt: {finding:#}"));
        assert!(doubt.contains("cannot be seen") || doubt.contains("were not seen"), "{doubt}");
        assert_ne!(finding["verdict"], "leak");
    }
    let spots = report["coverage"]["blind_spots"].to_string();
    for path in ["kfree_rcu", "kmem_cache_free_bulk", "kmem_cache_alloc_bulk"] {
        assert!(spots.contains(path), "{path} is not in {spots}");
    }
    assert!(report["coverage"]["hooks"].as_array().unwrap().iter().any(|hook| hook["mechanism"] == "none"));
}

#[test]
fn families_and_modules_are_chosen() {
    require_root();
    let _turn = turn();
    let hooks = |report: &Value| -> Vec<String> {
        let hooks = report["coverage"]["hooks"].as_array().unwrap();
        hooks.iter().map(|hook| hook["name"].as_str().unwrap().to_owned()).collect()
    };
    let report = Trace::start(&["--family", "page"]).stop();
    assert_eq!(hooks(&report), ["mm_page_free", "task_rename", "mm_page_alloc"]);
    let trace = Trace::start(&["--module", "no_such-module.ko"]);
    let held = pipes(100);
    let report = trace.stop();
    drop(held);
    // Nothing passes through a module that is not there.
    assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{:#}", report["findings"]);
    assert_eq!(report["unloads"].as_array().unwrap().len(), 0);
}

#[test]
fn pages_in_pipes_are_live_with_their_writer() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--family", "page", "--overhead", "100", "--top", "1000"]);
    let held: Vec<_> = (0..400)
        .map(|_| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            std::io::Write::write_all(&mut writer, b"x").unwrap();
            (reader, writer)
        })
        .collect();
    let report = trace.stop();
    drop(held);
    let pages: f64 = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["call_site"]["symbol"].as_str().unwrap_or_default().contains("pipe_write"))
        .map(|finding| number(&finding["live"]["objects"]))
        .sum();
    within(pages, 400.0, 0.02);
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(finding["family"], "page");
        let symbol = finding["call_site"]["symbol"].as_str().unwrap_or_default();
        assert!(!symbol.contains("slab") && !symbol.contains("pte_alloc"), "{symbol} is counted elsewhere");
    }
}
