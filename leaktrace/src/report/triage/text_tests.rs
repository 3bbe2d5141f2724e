use super::*;
use crate::{
    analysis::triage::{Culprit, Kind},
    report::{
        sample::{WIDTHS, assert_fits},
        triage::{
            model,
            process::{self, InDepth},
        },
    },
};

fn sample() -> Triage {
    Triage {
        kernel: "6.12.95".into(),
        architecture: "x86_64".into(),
        cpus: 16,
        window: model::Window { started: "2026-01-01T00:00:00Z".into(), duration_s: 10.0, looks: 11 },
        memory: model::Memory {
            total_kb: 32 << 20,
            available_kb: 9 << 20,
            swap_total_kb: 4 << 20,
            swap_used_kb: 1 << 20,
        },
        diagnosis: diagnosis(),
        ledger: ledger(),
        processes: vec![model::Process {
            pid: 4_121,
            comm: "ja\u{1b}va".into(),
            rss_kb: 7 << 20,
            anon_kb: 15 << 19,
            swap_kb: 1 << 20,
            page_tables_kb: 16_000,
            threads: 140,
            fds: Some(1_310),
            fds_grown: 12,
            anon_grown_kb: 117_000,
            ..model::Process::default()
        }],
        process_count: 412,
        process_names: vec![model::Name { comm: "php-fpm".into(), processes: 40, anon_kb: 1 << 20 }],
        caches: caches(),
        vmalloc: vec![model::Caller { caller: "drv_load [drv]".into(), areas: 12, kb: 4_000, grown_kb: -40 }],
        mounts: vec![model::Mount {
            path: "/run\n".into(),
            kind: "tmpfs".into(),
            used_kb: 1_000,
            limit_kb: 0,
            grown_kb: 4,
        }],
        cgroups: vec![model::Cgroup {
            path: "/system.slice/web.service".into(),
            used_kb: 1 << 20,
            limit_kb: Some(2 << 20),
            anon_kb: 900_000,
            ..model::Cgroup::default()
        }],
        swap: vec![model::SwapArea { path: "/dev/zram0".into(), size_kb: 4 << 20, used_kb: 1 << 20 }],
        zram: vec![model::Zram { name: "zram0".into(), stored_kb: 1 << 20, memory_kb: 300_000 }],
        unreadable: vec![model::Unreadable {
            what: "/proc/slabinfo".into(),
            why: "it is for root".into(),
            effect: "slab memory is known as a whole only, not by cache".into(),
        }],
        cost: model::Cost { cpu_s: 0.21, slowest_look_ms: 12.0, peak_rss_kb: 9_000 },
        ..Triage::default()
    }
}

fn diagnosis() -> Vec<Diagnosis> {
    vec![
        Diagnosis {
            kind: Kind::ProcessMemory,
            culprit: Culprit { pid: Some(4_121), comm: Some("ja\u{1b}va".into()), ..Culprit::default() },
            grows: true,
            steady: true,
            bytes: 8e9,
            bytes_grown: 1.2e8,
            bytes_per_s: 1.2e7,
            count_grown: None,
            text: "ja\u{1b}va (pid 4121, Java): its own memory grows by 11.4 MiB/s, by 114 MiB in 10 s, \
                   to 7.5 GiB."
                .into(),
            next: vec!["jcmd 4121 GC.heap_info".into(), "leaktrace triage --pid 4121".into()],
        },
        Diagnosis::new(
            Kind::PageCache,
            Culprit::default(),
            "The page cache has 16.0 GiB, 50 % of all memory. That is normal, and counts as available."
                .into(),
            Vec::new(),
        ),
    ]
}

fn ledger() -> Vec<Row> {
    let row = |class: &str, title: &str, before_kb, after_kb, source: &str| Row {
        class: class.into(),
        title: title.into(),
        before_kb,
        after_kb,
        kb_per_hour: (after_kb - before_kb) as f64 * 360.0,
        steady: after_kb != before_kb,
        reclaimable: false,
        source: source.into(),
    };
    vec![
        row("free", "free", 6 << 20, (6 << 20) - 120_000, "MemFree"),
        row("page_cache", "page cache", 16 << 20, 16 << 20, "Cached - Shmem"),
        row("anonymous", "processes (anonymous)", 10 << 20, (10 << 20) + 120_000, "AnonPages"),
        row("percpu", "percpu", 200, 200, "Percpu"),
        row("unaccounted", "unaccounted", -200, -200, "MemTotal - all others"),
    ]
}

fn caches() -> Vec<model::Cache> {
    vec![
        model::Cache {
            name: "dentry".into(),
            purpose: Some("names of files that were looked up".into()),
            reclaimable: Some(true),
            objects: 1_200_000,
            object_size: 192,
            kb: 230_000,
            grown_kb: 12,
            ..model::Cache::default()
        },
        model::Cache {
            name: "numa_policy".into(),
            module: Some("leakdrv".into()),
            merged_with: vec!["leakdrv_cache".into(), "dio".into()],
            objects: 90_000,
            object_size: 272,
            kb: 24_000,
            ..model::Cache::default()
        },
    ]
}

#[test]
fn texts_at_three_widths() {
    for width in [80, 100, 150] {
        let text = render(&sample(), &Style { width, ..Style::default() });
        assert!(text.lines().all(|line| line.chars().count() <= width || line.contains("next:")), "{text}");
        insta::with_settings!({ snapshot_path => "../snapshots" }, {
            insta::assert_snapshot!(format!("triage_{width}"), text);
        });
    }
}

#[test]
fn any_width_fits() {
    let mut sample = sample();
    sample.caches[0].name = "a_cache_with_a_long_name_and_more".into();
    let at = |width: usize| render(&sample, &Style { width, verbose: true, ..Style::default() });
    for width in WIDTHS {
        assert_fits(&at(width), &at(300), width);
    }
    insta::with_settings!({ snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("triage_40", at(40));
    });
    let depth = depth();
    let at = |width: usize| process::render(&depth, &Style { width, ..Style::default() });
    for width in WIDTHS {
        assert_fits(&at(width), &at(300), width);
    }
}

#[test]
fn one_look_has_no_growth() {
    let mut sample = sample();
    sample.window.looks = 1;
    let text = render(&sample, &Style { width: 100, verbose: true, ..Style::default() });
    assert!(
        text.contains("one look")
            && text.contains("that takes a second one")
            && !text.contains("per hour")
            && text.contains("percpu"),
        "{text}"
    );
}

#[test]
fn bars_are_as_long_as_the_share() {
    assert_eq!((bar(0.0), bar(1.0).chars().count(), bar(0.55).chars().count()), (String::new(), BAR, 5));
    assert_eq!(bar(0.125), "\u{2588}");
    assert_eq!(bar(1.0 / 64.0), "\u{258f}");
}

fn depth() -> InDepth {
    InDepth {
        process: sample().processes[0].clone(),
        segments: vec![process::Segment {
            name: "[heap]".into(),
            mappings: 1,
            size_kb: 9_000,
            rss_kb: 8_000,
            pss_kb: 8_000,
            anon_kb: 8_000,
            grown_kb: 1_200,
            ..process::Segment::default()
        }],
        files: vec![process::Files {
            kind: "deleted file".into(),
            count: 3,
            grown: 2,
            bytes: 12_288,
            examples: vec!["/tmp/\u{7}x (deleted)".into()],
        }],
        sockets: vec![("TCP CLOSE_WAIT".into(), 1_200)],
        limits: process::Limits { max_fds: Some(1_024), max_maps: Some(65_530) },
        ..InDepth::default()
    }
}

#[test]
fn a_process_in_depth() {
    let text = process::render(&depth(), &Style::default());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    insta::with_settings!({ snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("triage_process", text);
    });
}
