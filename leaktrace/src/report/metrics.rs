//! The report as `OpenMetrics`, for Prometheus and what understands it. Label sets are bounded: so many modules, caches and
//! findings, those that matter most.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use rustc_hash::FxHashSet;

use super::{
    escape,
    model::{Finding, Report},
};

/// Modules, caches, and leaks and suspects that are told.
const MODULES: usize = 50;
const CACHES: usize = 50;
const FINDINGS: usize = 50;

type Labels = Vec<(&'static str, String)>;

const VERDICTS: [&str; 5] = ["leak", "suspect", "plateau", "cache", "churn"];

/// Connections that there was no place for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnedAway {
    /// Idle ones that were closed, because another came.
    pub dropped: u64,
    /// Those that came while everyone else was being answered.
    pub refused: u64,
}

/// Renders the metrics.
pub fn render(report: &Report, turned_away: TurnedAway) -> String {
    let mut registry = Registry::with_prefix("leaktrace");
    whole(&mut registry, report);
    findings(&mut registry, report);
    modules(&mut registry, report);
    caches(&mut registry, report);
    coverage(&mut registry, report);
    let family = Family::<Labels, Counter>::default();
    for (why, number) in [("idle", turned_away.dropped), ("busy", turned_away.refused)] {
        family.get_or_create(&vec![label("why", why)]).inc_by(number);
    }
    let help = "Connections that there was no place for: idle ones dropped for others, and refused ones while all were busy";
    registry.register("turned_away_connections", help, family);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut out, &registry);
    out
}

/// The same in the older text format of Prometheus (0.0.4), for those that do not ask for `OpenMetrics`: counters are described
/// by their whole name there, units not at all, and nothing marks the end.
pub fn older(open: &str) -> String {
    let counters: FxHashSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(open.len());
    for line in open.lines() {
        let about = ["# HELP ", "# TYPE "].iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        match about.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) if counters.contains(name) => {
                out.extend([kind, name, "_total ", rest, "\n"]);
            }
            None if line.starts_with('#') => {}
            _ => out.extend([line, "\n"]),
        }
    }
    out
}

fn gauge(registry: &mut Registry, (name, help): (&str, &str), unit: Option<Unit>, rows: Vec<(Labels, f64)>) {
    let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).set(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn label(name: &'static str, text: &str) -> (&'static str, String) {
    (name, escape(text).into_owned())
}

fn whole(registry: &mut Registry, report: &Report) {
    let one = |value: f64| vec![(Vec::new(), value)];
    let build = vec![label("version", &report.tool_version), label("kernel", &report.kernel)];
    gauge(registry, ("build", "What runs here; always 1"), None, vec![(build, 1.0)]);
    gauge(
        registry,
        ("traced", "Time since tracing began"),
        Some(Unit::Seconds),
        one(report.window.duration_s),
    );
    gauge(
        registry,
        ("leaks", "What all leaks together take, a second"),
        Some(Unit::Other("bytes_per_second".into())),
        one(report.headline.bytes_per_s),
    );
    gauge(
        registry,
        ("memory_lasts", "How long available memory lasts at the rate of the leaks; absent without any"),
        Some(Unit::Seconds),
        report.headline.memory_lasts_s.map(one).unwrap_or_default(),
    );
    if let Some(memory) = report.memory.get("MemAvailable") {
        gauge(
            registry,
            ("memory_available", "MemAvailable of /proc/meminfo"),
            Some(Unit::Bytes),
            one(memory.after_kb as f64 * 1_024.0),
        );
    }
    let overhead = &report.overhead;
    if let Some(percent) = overhead.cpu_percent {
        gauge(
            registry,
            ("programs_cpu", "Share of all CPUs that the programs in the kernel take"),
            Some(Unit::Other("ratio".into())),
            one(percent / 100.0),
        );
    }
    let own = Counter::<f64, AtomicU64>::default();
    own.inc_by(overhead.user_space_cpu_s);
    registry.register_with_unit("own_cpu", "CPU time of leaktrace itself", Unit::Seconds, own);
    gauge(
        registry,
        ("tables", "Kernel memory of the tables"),
        Some(Unit::Bytes),
        one(overhead.tables_kb as f64 * 1_024.0),
    );
}

fn findings(registry: &mut Registry, report: &Report) {
    let by_verdict = |value: &dyn Fn(&Finding) -> f64| {
        let of = |verdict: &str| {
            let of_verdict =
                report.findings.iter().filter(|finding| finding.verdict == verdict && !finding.known);
            // An empty sum would be -0.
            of_verdict.map(value).fold(0.0, |sum, value| sum + value)
        };
        VERDICTS.map(|verdict| (vec![label("verdict", verdict)], of(verdict))).to_vec()
    };
    gauge(registry, ("findings", "Call sites by verdict"), None, by_verdict(&|_| 1.0));
    gauge(
        registry,
        ("live", "Live bytes of call sites by verdict"),
        Some(Unit::Bytes),
        by_verdict(&|finding| finding.live.bytes as f64),
    );
    let of_note = |finding: &&Finding| finding.is_of_note() && !finding.known;
    let rows = |value: &dyn Fn(&Finding) -> f64| -> Vec<(Labels, f64)> {
        let told = report.findings.iter().filter(of_note).take(FINDINGS);
        told.map(|finding| {
            let labels = vec![
                label("verdict", &finding.verdict),
                label("function", &finding.responsible.label()),
                label("call_site", &finding.call_site.label()),
                label("module", &finding.module),
                label("cache", &finding.cache),
            ];
            (labels, value(finding))
        })
        .collect()
    };
    gauge(
        registry,
        ("finding_live", "Live bytes of a leak or a suspect"),
        Some(Unit::Bytes),
        rows(&|finding| finding.live.bytes as f64),
    );
    gauge(
        registry,
        ("finding_growth", "Growth of a leak or a suspect"),
        Some(Unit::Other("bytes_per_second".into())),
        rows(&|finding| finding.growth.bytes_per_s),
    );
}

fn modules(registry: &mut Registry, report: &Report) {
    let rows = |value: &dyn Fn(&super::model::Module) -> f64| {
        let told = report.modules.iter().take(MODULES);
        told.map(|module| (vec![label("module", &module.name)], value(module))).collect()
    };
    gauge(
        registry,
        ("module_live", "Live bytes that a module's call sites allocated"),
        Some(Unit::Bytes),
        rows(&|module| module.live_bytes as f64),
    );
    gauge(
        registry,
        ("module_surviving", "Those of them that survived the minimum age"),
        Some(Unit::Bytes),
        rows(&|module| module.survivor_bytes as f64),
    );
}

fn caches(registry: &mut Registry, report: &Report) {
    let rows = |value: &dyn Fn(&super::model::Cache) -> f64| {
        let told = report.caches.iter().take(CACHES);
        told.map(|cache| (vec![label("cache", &cache.name)], value(cache))).collect()
    };
    gauge(
        registry,
        ("cache_net_objects", "By how many objects a slab cache grew, as traced"),
        None,
        rows(&|cache| cache.traced.net as f64),
    );
    gauge(
        registry,
        ("cache_contradicted", "Whether /proc/slabinfo contradicts what was traced of a slab cache"),
        None,
        rows(&|cache| f64::from(u8::from(cache.agreement == "contradicts"))),
    );
}

fn coverage(registry: &mut Registry, report: &Report) {
    let lost = &report.coverage.lost;
    let family = Family::<Labels, Counter>::default();
    for (kind, number) in [
        ("recursion", lost.recursion_misses),
        ("live_objects", lost.live_overflow),
        ("sites", lost.site_overflow),
        ("stacks", lost.stack_overflow),
        ("stacks_failed", lost.stacks_failed),
        ("free_callers", lost.callers),
        ("series", lost.series),
        ("late_frees", lost.implicit_frees),
    ] {
        family.get_or_create(&vec![label("kind", kind)]).inc_by(number);
    }
    registry.register("lost_events", "Events that were missed, by what was missing", family);
    let attached = report.coverage.hooks.iter().filter(|hook| hook.attached).count();
    let refused = report.coverage.hooks.len() - attached;
    let hooks = [("attached", attached), ("refused", refused)];
    let rows = hooks.map(|(state, number)| (vec![label("state", state)], number as f64)).to_vec();
    gauge(registry, ("hooks", "Hooks of this kernel"), None, rows);
    let one = |value: f64| vec![(Vec::new(), value)];
    gauge(
        registry,
        ("blind_spots", "What cannot be seen here"),
        None,
        one(report.coverage.blind_spots.len() as f64),
    );
    gauge(
        registry,
        ("sampling", "One address in so many is tracked"),
        None,
        one(report.coverage.sampling as f64),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_leak_is_told() {
        let mut report = sample::report("leak");
        report.findings[0].cache = "a\"b\\c\nd".to_owned();
        let text = render(&report, TurnedAway { dropped: 7, refused: 0 });
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("leaktrace_findings{verdict=\"leak\"} 1"), "{text}");
        assert!(text.contains("leaktrace_findings{verdict=\"suspect\"} 0"));
        assert!(text.contains("leaktrace_turned_away_connections_total{why=\"idle\"} 7"), "{text}");
        assert!(text.contains("leaktrace_memory_available_bytes 798720000"), "{text}");
        assert!(text.contains("function=\"foo_rx+0x31 [foo]\"") && text.contains("module=\"foo\""));
        // A name ends no label and no line.
        assert!(text.contains("cache=\"a\\\"b\\\\c\\\\nd\""), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("leaktrace_")), "{text}");
    }

    #[test]
    fn the_older_format_has_the_same() {
        let open = render(&sample::report("leak"), TurnedAway::default());
        let text = older(&open);
        assert!(text.contains("# HELP leaktrace_lost_events_total Events"), "{text}");
        assert!(text.contains("# TYPE leaktrace_lost_events_total counter\n"), "{text}");
        assert!(text.contains("# TYPE leaktrace_findings gauge\n") && !text.contains("# UNIT"), "{text}");
        assert!(open.ends_with("# EOF\n") && !text.contains("# EOF"));
        let values = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(values(&text), values(&open));
    }

    /// What alerts and the dashboard ask for is there.
    #[test]
    fn what_is_deployed_asks_for_what_there_is() {
        let text = render(&sample::report("leak"), TurnedAway::default());
        let declared: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let asked = [
            include_str!("../../../deploy/prometheus/leaktrace.rules.yml"),
            include_str!("../../../deploy/grafana/leaktrace.json"),
        ]
        .concat();
        let names: Vec<&str> = asked
            .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
            .filter(|word| word.starts_with("leaktrace_"))
            .map(|word| word.trim_end_matches("_total"))
            .collect();
        assert!(names.len() > 15);
        for name in names {
            assert!(declared.contains(&name), "{name} is none of {declared:?}");
        }
    }

    #[test]
    fn label_sets_are_bounded() {
        let mut report = sample::report("leak");
        for number in 0..1_000 {
            let mut finding = sample::finding("suspect");
            finding.cache = format!("cache-{number}");
            report.findings.push(finding);
            report.caches.push(report.caches[0].clone());
            report.caches.last_mut().unwrap().name = format!("cache-{number}");
        }
        assert!(render(&report, TurnedAway::default()).lines().count() < 400);
    }
}
