//! A report for tests, with one finding of each verdict.

use super::model::{
    Amount, BlindSpot, Cache, Coverage, Filters, Finding, Frame, FreedBy, Growth, Headline, HookReport,
    Lifetime, LinkageReport, LostReport, Machine, MemoryChange, Module, Object, Overhead, ProgramReport,
    Report, SCHEMA, SlabChange, Stack, Stayed, Survivors, Task, TracedReport, Window,
};

fn frame(symbol: &str, offset: u64, module: Option<&str>) -> Frame {
    Frame {
        address: 0xffff_ffff_c000_0000 + offset,
        symbol: Some(symbol.to_owned()),
        offset,
        module: module.map(str::to_owned),
        ..Frame::default()
    }
}

/// A finding of a verdict.
pub fn finding(verdict: &'static str) -> Finding {
    let leak = verdict == "leak";
    let grows = leak || verdict == "suspect";
    let call_site =
        if leak { frame("__alloc_skb", 0x5c, None) } else { frame("foo_alloc_ctx", 0x11, Some("foo")) };
    let responsible = if leak { frame("foo_rx", 0x31, Some("foo")) } else { call_site.clone() };
    Finding {
        site: 0,
        proof: None,
        rank: 1,
        verdict: verdict.into(),
        known: false,
        doubt: None,
        score: 1_000.0,
        family: "kmem_cache".into(),
        object: None,
        cache: "skbuff_head_cache".to_owned(),
        module: "foo".to_owned(),
        is_module: true,
        in_module: Some(responsible.clone()),
        split: leak,
        recorded: Vec::new(),
        allocated: 5_102,
        freed: if grows { 0 } else { 4_000 },
        implicit_frees: 0,
        live: Amount { objects: 5_102, bytes: 5_102 * 256 },
        survivors: Survivors { objects: 4_700, bytes: 4_700 * 256, oldest_s: 59.2, error_percent: 0.0 },
        growth: growth(grows),
        lifetime: Lifetime {
            p50_us: Some(800.0),
            p99_us: Some(3_800.0),
            classes: vec![(524.288, 90), (1_048.576, 200), (4_194.304, 12)],
        },
        freed_by: vec![FreedBy {
            caller: "foo_remove+0x20 [foo]".to_owned(),
            module: Some("foo".to_owned()),
            percent: 98.0,
        }],
        linkage: Some(LinkageReport { looked_at: 48, linked: 0, held: 0, unreadable: 0 }),
        tasks: vec![
            Task { comm: "kworker/1:2".to_owned(), pid: 77, objects: 3_000 },
            Task { comm: "evil\u{1b}[31m".to_owned(), pid: 391, objects: 2_102 },
        ],
        stacks: vec![of_a_worker(&call_site, &responsible)],
        objects: vec![Object { address: 0xffff_8880_0123_4500, size: 232, age_s: 59.2, reach: None }],
        evidence: vec![
            "5,102 of 5,102 objects allocated in 60 s are alive, the oldest 59 s old; 4,700 older than 5.0 s"
                .to_owned(),
            "grows steadily by 21.8 KiB/s, give or take 310 B/s, in 108 of 110 parts of the time, for 33 s"
                .to_owned(),
            "none of 2,311 that were older than 5.0 s 28 s ago was freed since: such objects live on for 6 h or more on average (95 %)"
                .to_owned(),
            "objects are normally freed by foo_remove+0x20 [foo] (98 %)".to_owned(),
            "skbuff_head_cache in /proc/slabinfo changed by +5,120 objects: agrees".to_owned(),
        ],
        open: if verdict == "suspect" {
            vec![
                "the process that allocated them (evil\u{1b}[31m, 391) still runs, and may hold them"
                    .to_owned(),
            ]
        } else {
            Vec::new()
        },
        settle: match verdict {
            "suspect" => vec!["end that process while tracing: what stays is leaked".to_owned()],
            "leak" => vec![format!(
                "leaktrace --duration 5m --module {}   (every stack, and what it leaves when it is removed)",
                responsible.module.as_deref().unwrap_or_default()
            )],
            "cache" => vec!["leaktrace --shake   (drops such objects, and tells what stays)".to_owned()],
            _ => Vec::new(),
        },
        call_site,
        responsible,
    }
}

fn growth(grows: bool) -> Growth {
    Growth {
        bytes_per_s: if grows { 22_300.0 } else { 0.0 },
        bytes_per_s_error: if grows { 310.0 } else { 0.0 },
        p_value: None,
        ticks: 55,
        sure: grows,
        sustained_s: if grows { 33.0 } else { 0.0 },
        born_in: if grows { 108 } else { 9 },
        parts: 110,
        walk: Some(1e-9),
        stayed: grows.then_some(Stayed {
            aged: 2_311,
            freed: 0,
            watched_s: 28.4,
            lives_on_s: Some(22_000.0),
        }),
        shape: if grows { "steady" } else { "plateau" }.into(),
        points: (0_u16..60)
            .map(f32::from)
            .map(|second| (second, if grows { second * 22_300.0 } else { 1_203_200.0 }))
            .collect(),
    }
}

/// The stack of a worker thread.
fn of_a_worker(call_site: &Frame, responsible: &Frame) -> Stack {
    Stack {
        objects: 5_102,
        bytes: 5_102 * 256,
        frames: vec![
            call_site.clone(),
            responsible.clone(),
            frame("process_one_work", 0x1a2, None),
            frame("worker_thread", 0x99, None),
            frame("kthread", 0xf8, None),
        ],
    }
}

/// A report with one finding of this verdict; none for `none`.
pub fn report(verdict: &'static str) -> Report {
    let findings = if verdict == "none" { Vec::new() } else { vec![finding(verdict)] };
    let mut report = Report {
        schema: SCHEMA.into(),
        tool_version: "0.1.0".into(),
        kernel: "6.12.95".to_owned(),
        machine: Machine {
            architecture: "x86_64".to_owned(),
            cpus: 2,
            memory_kb: 1 << 20,
            boot_id: String::new(),
        },
        window: Window {
            started: "2026-11-25T12:00:00Z".to_owned(),
            duration_s: 60.0,
            ticks: 60,
            scans: 60,
            min_age_s: 5.0,
            allocated: Some(5_102),
        },
        filters: Filters::default(),
        headline: Headline::default(),
        coverage: Coverage {
            hooks: vec![HookReport {
                name: "kmalloc".into(),
                path: "kmalloc".into(),
                mechanism: "raw_tracepoint".into(),
                attached: true,
                error: None,
            }],
            blind_spots: vec![BlindSpot {
                path: "alloc_pages_bulk".to_owned(),
                effect: "pages allocated in bulk are not seen, and a leak of them neither".to_owned(),
                caches: Vec::new(),
            }],
            lost: LostReport::default(),
            sampling: 1,
        },
        overhead: Overhead {
            programs: vec![ProgramReport {
                name: "kmalloc".into(),
                runs: 1_000,
                ns_per_run: Some(93.0),
                recursion_misses: 0,
            }],
            cpu_percent: Some(0.4),
            user_space_cpu_s: 0.3,
            tables_kb: 41 << 10,
            max_objects: 131_072,
            slowest_scan_ms: 3.0,
            ranking_ms: 1.0,
        },
        memory: [("MemAvailable".into(), MemoryChange { before_kb: 800_000, after_kb: 780_000 })].into(),
        caches: vec![Cache {
            name: "skbuff_head_cache".to_owned(),
            aliases: Vec::new(),
            object_size: 256,
            slabinfo: Some(SlabChange { before: 100, after: 5_220 }),
            traced: TracedReport { allocated: 5_102, freed: 0, unknown_freed: 0, live: 5_102, net: 5_102 },
            agreement: "agrees".into(),
            tolerance: 128,
        }],
        findings,
        groups: Vec::new(),
        modules: vec![Module {
            name: "foo".to_owned(),
            findings: 1,
            live_bytes: 5_102 * 256,
            survivor_bytes: 4_700 * 256,
            bytes_per_s: 22_300.0,
        }],
        unloads: Vec::new(),
        accounts: Vec::new(),
        kmemleak: None,
        reachability: None,
        shake: None,
        recorded: None,
    };
    report.headline = super::headline::headline(&report);
    report
}

/// The widths that everything is shown in.
pub const WIDTHS: std::ops::RangeInclusive<usize> = 40..=140;

/// Fails unless a text fits a width, but for words that cannot be broken and commands that are copied, and unless its
/// numbers are those of the widest text: whole, or not there.
pub fn assert_fits(text: &str, widest: &str, width: usize) {
    let numbers = |text: &str| -> std::collections::BTreeSet<String> {
        let is_number = |word: &&str| {
            word.trim_start_matches(['+', '-']).starts_with(|first: char| first.is_ascii_digit())
        };
        text.split_whitespace().filter(is_number).map(str::to_owned).collect()
    };
    for line in text.lines() {
        let may =
            line.contains("next:") || line.split_whitespace().any(|word| word.chars().count() > width - 12);
        assert!(may || line.chars().count() <= width, "at {width}: {line}");
    }
    let torn: Vec<_> = numbers(text).difference(&numbers(widest)).cloned().collect();
    assert!(torn.is_empty(), "at {width}: {torn:?} in {text}");
}
