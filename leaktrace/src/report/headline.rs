//! The answer in one sentence.

use std::fmt::Write as _;

use super::{
    escape,
    model::{Finding, Group, Headline, Report, Word},
};
use crate::{analysis::verdict, units};

/// Seconds in which a leak can be seen if survivors are counted each second.
const ENOUGH_S: f64 = 30.0;

/// The blind spot of caches whose sites are no findings, because frees without an event must have been.
pub const UNSEEN_FREES: &str = "frees without an event";
/// Of such caches so many are named.
const NAMED: usize = 3;

/// Makes the headline of a report from its findings.
pub fn headline(report: &Report) -> Headline {
    let of = |verdict: &str| -> Vec<&Finding> {
        report.findings.iter().filter(|finding| finding.verdict == verdict && !finding.known).collect()
    };
    let (leaks, suspects) = (of("leak"), of("suspect"));
    let window = report.window.duration_s;
    let floor = verdict::detection_floor(
        window,
        report.window.min_age_s,
        report.window.scans,
        report.coverage.sampling,
    );
    let certain = total(&leaks);
    // What the same modules take beside is most likely lost with it: packets with what they carry, pages with their notes.
    let beside: Vec<&Finding> = suspects
        .iter()
        .copied()
        .filter(|suspect| suspect.is_module && leaks.iter().any(|leak| leak.module == suspect.module))
        .collect();
    let rate = certain + total(&beside);
    let available = report.memory.get("MemAvailable").map(|memory| memory.after_kb as f64 * 1_024.0);
    let lasts = available.filter(|_| rate > 0.0).map(|available| available / rate);
    let known = report.findings.iter().filter(|finding| finding.known).count();
    let unknown = unknown(report, floor);
    let (verdict, mut text): (Word, String) = match (leaks.first(), suspects.first(), unknown) {
        (Some(first), ..) => ("leak".into(), leaking(first, &leaks, (certain, &beside, rate), lasts)),
        (None, Some(first), _) => ("suspect".into(), suspected(report, first, &suspects)),
        (None, None, Some(why)) => ("unknown".into(), format!("Cannot tell whether anything leaks: {why}.")),
        (None, None, None) => ("none".into(), format!("No leak found in {}.", units::seconds(window))),
    };
    if let (true, Some(floor)) = (leaks.is_empty() && verdict != "unknown", floor) {
        let bytes = units::bytes(floor * 4_096.0);
        let floor = rate_in_words(floor);
        let _ = write!(text, " A leak slower than {floor} (of 4 KiB: {bytes}/s) would not have shown.");
    }
    if let Some(caches) = not_judged(report).filter(|_| verdict != "unknown" && verdict != "leak") {
        let _ = write!(text, " Not judged, because frees were not seen: {caches}.");
    }
    if known > 0 {
        let _ = write!(text, " {} the baseline has already.", units::plural(known, "finding"));
    }
    Headline { verdict, text, bytes_per_s: rate, memory_lasts_s: lasts, floor_objects_per_s: floor }
}

/// Why nothing can be said, if it cannot, of a report without a leak or a suspect: what was asked for was not traced, or
/// not long enough to tell growth from chance.
pub fn unknown(report: &Report, floor: Option<f64>) -> Option<String> {
    if let Some(absent) = report.filters.absent() {
        return Some(absent);
    }
    let seconds = units::seconds(report.window.duration_s);
    if report.window.allocated == Some(0) && report.filters.in_words().is_some() && report.unloads.is_empty()
    {
        return Some(format!("nothing of what was asked for was allocated in {seconds}"));
    }
    if let Some(caches) = not_judged(report).filter(|_| report.findings.is_empty()) {
        return Some(format!(
            "frees of {caches} were not seen, as /proc/slabinfo shows, so they could not be judged"
        ));
    }
    if floor.is_some() || report.all_removed() {
        return None;
    }
    let window = &report.window;
    Some(if window.duration_s >= ENOUGH_S {
        format!("survivors were counted only {} in {seconds}; give a shorter --interval", times(window.scans))
    } else {
        let between = if window.scans == 0 { 1.0 } else { window.duration_s / window.scans as f64 };
        // A busy machine may be late with some of them, and survivors of a longer trace have to be older.
        let enough = units::seconds(((window.min_age_s + verdict::FEWEST_LOOKS * between) * 1.5).ceil());
        format!("{seconds} is too short to tell growth from chance; trace for {enough} or longer")
    })
}

/// Caches whose sites could not be judged, because their frees were not seen.
fn not_judged(report: &Report) -> Option<String> {
    let spots = report.coverage.blind_spots.iter().filter(|spot| spot.path == UNSEEN_FREES);
    let caches: Vec<_> = spots.flat_map(|spot| &spot.caches).map(|cache| escape(cache)).collect();
    match caches.as_slice() {
        [] => None,
        few if few.len() <= NAMED => Some(few.join(", ")),
        many => Some(format!("{} and {} more caches", many[..NAMED].join(", "), many.len() - NAMED)),
    }
}

fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        number => format!("{} times", units::count(number)),
    }
}

/// Objects in a time that reads well.
fn rate_in_words(per_s: f64) -> String {
    let steps = [(1.0, "a second"), (60.0, "a minute"), (3_600.0, "an hour")];
    let (seconds, word) =
        steps.into_iter().find(|(seconds, _)| per_s * seconds >= 1.0).unwrap_or((86_400.0, "a day"));
    let objects = (per_s * seconds).round().max(1.0);
    format!("{} {word}", units::plural(objects as usize, "object"))
}

/// Nobody plans for more than some years.
fn lasts_in_words(seconds: f64) -> String {
    const YEARS: f64 = 10.0 * 365.0 * 86_400.0;
    if seconds > YEARS { "more than 10 years".to_owned() } else { units::seconds(seconds) }
}

/// What findings take together.
fn total(findings: &[&Finding]) -> f64 {
    // An empty sum would be -0.
    findings.iter().fold(0.0, |sum, finding| sum + finding.growth.rate().max(0.0))
}

fn leaking(
    first: &Finding,
    leaks: &[&Finding],
    (certain, beside, rate): (f64, &[&Finding], f64),
    lasts: Option<f64>,
) -> String {
    let lasts = lasts
        .map(|seconds| format!(" At this rate memory lasts {}.", lasts_in_words(seconds)))
        .unwrap_or_default();
    let place = |finding: &Finding| escape(&finding.responsible.label()).into_owned();
    let what = if first.growth.rate() > 0.0 {
        format!("leaks {}/s", units::bytes(first.growth.rate()))
    } else {
        // It does not grow at present, but nothing has it any more.
        format!("has lost {}", units::bytes(first.survivors.bytes as f64))
    };
    let mut others = match leaks.len() - 1 {
        0 => String::new(),
        more if certain > 0.0 => {
            format!("; with {} it is {}/s", units::plural(more, "more leak"), units::bytes(certain))
        }
        more => format!("; there are {}", units::plural(more, "more leak")),
    };
    // Not of what is as little as the rates are off.
    if rate > certain * 1.1 {
        let suspects = units::plural(beside.len(), "suspect");
        let whose = if leaks.len() == 1 { "the same module" } else { "the same modules" };
        let _ = write!(others, "; with {suspects} of {whose} it is {}/s", units::bytes(rate));
    }
    format!(
        "{} {what} in {} at {}{others}.{lasts}",
        escape(&first.module),
        escape(&first.what()),
        place(first)
    )
}

fn suspected(report: &Report, first: &Finding, suspects: &[&Finding]) -> String {
    let window = units::seconds(report.window.duration_s);
    let others = |number: usize| match number {
        0 => String::new(),
        more => format!(" ({} below)", units::plural(more, "more suspect")),
    };
    // What has one cause is one suspect.
    let grouped = |group: &Group| group.findings.len() - 1;
    let more = suspects.len() - 1 - report.groups.iter().map(grouped).sum::<usize>().min(suspects.len() - 1);
    if let Some(group) = report.groups.iter().find(|group| group.findings.contains(&first.rank)) {
        return format!(
            "No leak is certain after {window}. {} is suspected: it {}, {} in {}, growing by {}/s{}.",
            group.who(),
            group.what(),
            units::bytes(group.live.bytes as f64),
            group.kinds(),
            units::bytes(group.bytes_per_s),
            others(more),
        );
    }
    let same: Vec<&Finding> = suspects
        .iter()
        .copied()
        .filter(|suspect| suspect.is_module && suspect.module == first.module)
        .collect();
    let mut more = others(more);
    if same.len() > 1 {
        let _ = write!(
            more,
            "; the {} of {} take {}/s together",
            units::plural(same.len(), "suspect"),
            escape(&first.module),
            units::bytes(total(&same))
        );
    }
    format!(
        "No leak is certain after {window}. {} is suspected: it keeps {} older than {}, of {} alive, in {}, growing by \
         {}/s{more}.",
        escape(&first.responsible.label()),
        units::bytes(first.survivors.bytes as f64),
        units::seconds(report.window.min_age_s),
        units::bytes(first.live.bytes as f64),
        escape(&first.what()),
        units::bytes(first.growth.bytes_per_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// The certain part may be the smaller one: how long memory lasts is told from all that the module takes.
    #[test]
    fn what_a_module_takes_is_summed_up() {
        let mut report = sample::report("leak");
        let of = |verdict: &'static str, module: &str, bytes_per_s: f64| {
            let mut finding = report.findings[0].clone();
            finding.verdict = verdict.into();
            module.clone_into(&mut finding.module);
            finding.growth.bytes_per_s = bytes_per_s;
            finding
        };
        let findings =
            vec![of("leak", "foo", 1_024.0), of("suspect", "foo", 71_680.0), of("suspect", "bar", 9e9)];
        report.findings = findings;
        let text = |report: &Report| headline(report);
        let told = text(&report);
        assert!((told.bytes_per_s - 72_704.0).abs() < 1e-6, "{told:?}");
        assert!(
            told.text.starts_with("foo leaks 1.0 KiB/s in ")
                && told.text.contains("; with 1 suspect of the same module it is 71.0 KiB/s."),
            "{told:?}"
        );
        report.findings[0].verdict = "suspect".into();
        let told = text(&report);
        assert!(
            told.text.contains("(2 more suspects below); the 2 suspects of foo take 71.0 KiB/s together."),
            "{told:?}"
        );
        assert!(told.memory_lasts_s.is_none());
        report.findings.truncate(1);
        assert!(!text(&report).text.contains("together"));
    }

    /// A gate that asked for the wrong module, or for too little time, is not told that nothing leaks.
    #[test]
    fn what_was_not_traced_is_unknown() {
        let mut report = sample::report("none");
        assert_eq!(headline(&report).verdict, "none");
        report.filters.modules = vec!["nosuch".to_owned()];
        assert_eq!(headline(&report).verdict, "none");
        report.filters.absent_modules.clone_from(&report.filters.modules);
        let told = headline(&report);
        assert_eq!(told.verdict, "unknown");
        assert_eq!(
            told.text,
            "Cannot tell whether anything leaks: module nosuch was never loaded, so nothing was traced."
        );
        report.filters.absent_modules.clear();
        // It was there, and nothing of it was allocated.
        report.window.allocated = Some(0);
        assert!(headline(&report).text.ends_with(": nothing of what was asked for was allocated in 60 s."));
        report.window.allocated = Some(5);
        // All that was recorded is of a cache whose frees were not seen.
        report.coverage.blind_spots.push(crate::report::model::BlindSpot {
            path: UNSEEN_FREES.to_owned(),
            effect: String::new(),
            caches: vec!["kmalloc-256".to_owned()],
        });
        assert!(headline(&report).text.contains("frees of kmalloc-256 were not seen"));
        report.findings = sample::report("plateau").findings;
        assert!(headline(&report).text.ends_with(" Not judged, because frees were not seen: kmalloc-256."));
        report.coverage.blind_spots.pop();
        report.findings.clear();
        (report.window.duration_s, report.window.scans) = (6.0, 6);
        let told = headline(&report);
        assert_eq!(told.verdict, "unknown");
        assert!(
            told.text.ends_with(": 6.0 s is too short to tell growth from chance; trace for 26 s or longer.")
        );
        // It was removed, and what it left behind then is known.
        let left = crate::report::model::Amount::default();
        report.unloads.push(crate::report::model::Unload {
            module: "nosuch".to_owned(),
            after_s: 3.0,
            left,
            sites: Vec::new(),
            verdict: "none".into(),
            doubt: None,
        });
        assert_eq!(headline(&report).verdict, "none");
        report.unloads.clear();
        (report.window.duration_s, report.window.scans) = (60.0, 6);
        let told = headline(&report);
        assert!(told.text.ends_with(" only 6 times in 60 s; give a shorter --interval."), "{told:?}");
        // What was found stays found.
        report.findings = sample::report("suspect").findings;
        assert_eq!(headline(&report).verdict, "suspect");
    }

    /// The process is what one looks for, and not one of the five functions that allocate for it.
    #[test]
    fn a_process_leads_its_findings() {
        let mut report = sample::report("suspect");
        report.findings = [1, 2, 3].map(|rank| Finding { rank, ..report.findings[0].clone() }).to_vec();
        report.groups = vec![Group {
            findings: vec![1, 3],
            comm: "pipeleaker".to_owned(),
            pid: 391,
            call: "pipe2".to_owned(),
            keeps: Some("pipes".to_owned()),
            caches: 2,
            live: crate::report::model::Amount { objects: 10_000, bytes: 2 << 20 },
            bytes_per_s: 22.0 * 1_024.0,
        }];
        let text = headline(&report).text;
        assert!(
            text.starts_with(
                "No leak is certain after 60 s. pipeleaker (391) is suspected: it keeps pipes open, 2.0 MiB in \
                 2 caches, growing by 22.0 KiB/s (1 more suspect below)."
            ),
            "{text}"
        );
    }

    #[test]
    fn rates_read_well() {
        for (per_s, text) in [
            (12.4, "12 objects a second"),
            (0.2, "12 objects a minute"),
            (0.002, "7 objects an hour"),
            (1e-4, "9 objects a day"),
            (1.2, "1 object a second"),
            (1e-9, "1 object a day"),
        ] {
            assert_eq!(rate_in_words(per_s), text);
        }
    }
}
