//! What ticks alone tell, as a report: what is alive by site and cache, and by how much it grew. Nothing is judged.

use std::collections::BTreeMap;

use super::{
    format::Site,
    reader::{Course, Reading},
};
use crate::{
    report::{
        escape,
        model::{
            Amount, BlindSpot, Cache, Coverage, Filters, Finding, Frame, Growth, Headline, Lifetime,
            LostReport, Machine, MemoryChange, Overhead, Report, SCHEMA, Stack, Survivors, TracedReport,
            Window,
        },
    },
    units,
};

/// Sites that are told of: as many as reports have at most.
const MOST_FINDINGS: usize = 200;

/// Makes the report, without what all reports of recordings have.
pub(super) fn report(reading: &Reading) -> Report {
    let header = reading.header.clone().unwrap_or_default();
    let mut grown: Vec<(i64, &Course, Site)> =
        reading.courses.iter().map(|(id, course)| told(reading, *id, course)).collect();
    grown.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.2.id.cmp(&b.2.id)));
    let caches = caches(&grown);
    grown.retain(|(bytes, course, _)| *bytes > 0 || course.last > course.first);
    grown.truncate(MOST_FINDINGS);
    let seconds = (reading.last_ms - reading.base_ms.min(reading.last_ms)) as f64 / 1e3;
    let findings: Vec<Finding> = grown
        .into_iter()
        .enumerate()
        .map(|(index, (bytes, course, site))| finding(index + 1, bytes, seconds, course, site))
        .collect();
    let points = || reading.available.points().map(|(_, kb)| kb as u64);
    let memory = points().next().zip(points().last());
    Report {
        schema: SCHEMA.into(),
        tool_version: header.tool_version.into(),
        kernel: header.kernel,
        machine: Machine {
            architecture: header.architecture,
            cpus: header.cpus,
            memory_kb: header.memory_kb,
            boot_id: header.boot_id,
        },
        window: Window {
            started: header.started,
            duration_s: reading.last_ms as f64 / 1e3,
            ticks: reading.ticks,
            scans: 0,
            min_age_s: header.min_age_s,
            allocated: None,
        },
        filters: Filters::default(),
        headline: headline(reading, &findings),
        coverage: coverage(),
        overhead: Overhead {
            programs: Vec::new(),
            cpu_percent: None,
            user_space_cpu_s: 0.0,
            tables_kb: 0,
            max_objects: 0,
            slowest_scan_ms: 0.0,
            ranking_ms: 0.0,
        },
        memory: memory
            .map(|(before_kb, after_kb)| ("MemAvailable".into(), MemoryChange { before_kb, after_kb }))
            .into_iter()
            .collect(),
        caches,
        findings,
        groups: Vec::new(),
        modules: Vec::new(),
        unloads: Vec::new(),
        accounts: Vec::new(),
        kmemleak: None,
        reachability: None,
        shake: None,
        recorded: None,
    }
}

/// By how many bytes a site grew, and what it is, as far as that is not lost.
fn told<'a>(reading: &Reading, id: u32, course: &'a Course) -> (i64, &'a Course, Site) {
    let site = reading.sites.get(&id).cloned().unwrap_or_else(|| Site {
        id,
        symbol: format!("site {id}, whose name is lost"),
        cache: "(lost)".to_owned(),
        ..Site::default()
    });
    (course.last.saturating_sub(course.first).saturating_mul(site.object_size.into()), course, site)
}

fn headline(reading: &Reading, findings: &[Finding]) -> Headline {
    let grew = findings.first().map_or_else(
        || "No site grew in them.".to_owned(),
        |first| {
            format!(
                "{} grew most in them, by {} in {}.",
                escape(&first.responsible.label()),
                units::bytes(first.score),
                escape(&first.cache)
            )
        },
    );
    Headline {
        verdict: "unknown".into(),
        text: format!(
            "Cannot tell whether anything leaks: there is no report yet, only ticks, up to {} after the start. {grew}",
            units::seconds(reading.last_ms as f64 / 1e3)
        ),
        ..Headline::default()
    }
}

fn finding(rank: usize, grown: i64, seconds: f64, course: &Course, site: Site) -> Finding {
    let size = u64::from(site.object_size);
    let objects = course.last.max(0) as u64;
    let live = Amount { objects, bytes: objects.saturating_mul(size) };
    let call_site = Frame {
        address: site.address,
        symbol: (!site.symbol.is_empty()).then_some(site.symbol),
        offset: site.offset,
        module: (!site.module.is_empty()).then_some(site.module),
        ..Frame::default()
    };
    let per_s = if seconds > 0.0 { grown as f64 / seconds } else { 0.0 };
    Finding {
        site: 0,
        rank,
        verdict: "unknown".into(),
        known: false,
        doubt: None,
        score: grown as f64,
        family: site.family.into(),
        cache: site.cache,
        object: None,
        module: call_site
            .module
            .clone()
            .or_else(|| call_site.symbol.clone())
            .unwrap_or_else(|| call_site.label()),
        is_module: call_site.module.is_some(),
        responsible: call_site.clone(),
        in_module: call_site.module.is_some().then(|| call_site.clone()),
        split: false,
        allocated: course.allocated,
        freed: course.allocated.saturating_sub(objects),
        implicit_frees: 0,
        live,
        survivors: Survivors { objects: 0, bytes: 0, oldest_s: 0.0, error_percent: 0.0 },
        growth: growth(per_s, course, size),
        recorded: Vec::new(),
        lifetime: Lifetime { p50_us: None, p99_us: None, classes: Vec::new() },
        freed_by: Vec::new(),
        linkage: None,
        tasks: Vec::new(),
        stacks: vec![Stack { objects, bytes: live.bytes, frames: vec![call_site.clone()] }],
        objects: Vec::new(),
        proof: None,
        evidence: vec![format!(
            "its live objects went from {} to {} in {} of ticks, which do not tell how old they are",
            units::count(course.first.max(0) as u64),
            units::count(objects),
            units::seconds(seconds)
        )],
        open: Vec::new(),
        settle: Vec::new(),
        call_site,
    }
}

fn growth(bytes_per_s: f64, course: &Course, size: u64) -> Growth {
    Growth {
        bytes_per_s,
        bytes_per_s_error: 0.0,
        p_value: None,
        ticks: course.live.points().len(),
        sure: false,
        sustained_s: 0.0,
        born_in: 0,
        parts: 0,
        walk: None,
        stayed: None,
        shape: "ticks".into(),
        points: course
            .live
            .points()
            .map(|(seconds, objects)| (seconds as f32, (objects * size as f64) as f32))
            .collect(),
    }
}

/// What all sites of each cache grew by together, the most bytes first.
fn caches(sites: &[(i64, &Course, Site)]) -> Vec<Cache> {
    let mut caches: BTreeMap<&str, Cache> = BTreeMap::new();
    for (_, course, site) in sites {
        let cache = caches.entry(&site.cache).or_insert_with(|| Cache {
            name: site.cache.clone(),
            aliases: Vec::new(),
            object_size: site.object_size,
            slabinfo: None,
            traced: TracedReport { allocated: 0, freed: 0, unknown_freed: 0, live: 0, net: 0 },
            agreement: "unchecked".into(),
            tolerance: 0,
        });
        let (live, traced) = (course.last.max(0) as u64, &mut cache.traced);
        traced.allocated = traced.allocated.saturating_add(course.allocated);
        traced.freed = traced.freed.saturating_add(course.allocated.saturating_sub(live));
        traced.live = traced.live.saturating_add(live);
        traced.net = traced.net.saturating_add(course.last.saturating_sub(course.first));
    }
    let mut caches: Vec<Cache> = caches.into_values().collect();
    caches.sort_by_key(|cache| std::cmp::Reverse(cache.traced.net.saturating_mul(cache.object_size.into())));
    caches
}

fn coverage() -> Coverage {
    let spot = BlindSpot {
        path: "all but live objects".to_owned(),
        effect:
            "who allocated them, what was lost and what it cost is told by reports, and there is none yet"
                .to_owned(),
        caches: Vec::new(),
    };
    Coverage { hooks: Vec::new(), blind_spots: vec![spot], lost: LostReport::default(), sampling: 1 }
}
