//! The answer in one sentence.

use std::fmt::Write as _;

use super::{
    escape,
    model::{Finding, Headline, Report, Word},
};
use crate::{analysis::verdict, units};

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
    // An empty sum would be -0.
    let rate = leaks.iter().fold(0.0, |sum, leak| sum + leak.growth.bytes_per_s.max(0.0));
    let available = report.memory.get("MemAvailable").map(|memory| memory.after_kb as f64 * 1_024.0);
    let lasts = available.filter(|_| rate > 0.0).map(|available| available / rate);
    let known = report.findings.iter().filter(|finding| finding.known).count();
    let verdict: Word = match (leaks.first(), suspects.first()) {
        (Some(_), _) => "leak".into(),
        (_, Some(_)) => "suspect".into(),
        _ => "none".into(),
    };
    let mut text = match (leaks.first(), suspects.first()) {
        (Some(first), _) => leaking(first, &leaks, rate, lasts),
        (None, Some(first)) => suspected(first, suspects.len(), window),
        (None, None) => format!("No leak found in {}.", units::seconds(window)),
    };
    if leaks.is_empty() {
        match floor {
            Some(floor) => {
                let bytes = units::bytes(floor * 4_096.0);
                let floor = rate_in_words(floor);
                let _ =
                    write!(text, " A leak of less than {floor} (of 4 KiB: {bytes}/s) would not have shown.");
            }
            None => text.push_str(" The window is too short to see one."),
        }
    }
    if known > 0 {
        let _ = write!(text, " {} the baseline has already.", units::plural(known, "finding"));
    }
    Headline { verdict, text, bytes_per_s: rate, memory_lasts_s: lasts, floor_objects_per_s: floor }
}

/// Objects in a time that reads well.
fn rate_in_words(per_s: f64) -> String {
    let steps = [(1.0, "a second"), (60.0, "a minute"), (3_600.0, "an hour")];
    let (seconds, word) =
        steps.into_iter().find(|(seconds, _)| per_s * seconds >= 1.0).unwrap_or((86_400.0, "a day"));
    format!("{:.0} objects {word}", (per_s * seconds).max(1.0))
}

/// Nobody plans for more than some years.
fn lasts_in_words(seconds: f64) -> String {
    const YEARS: f64 = 10.0 * 365.0 * 86_400.0;
    if seconds > YEARS { "more than 10 years".to_owned() } else { units::seconds(seconds) }
}

fn leaking(first: &Finding, leaks: &[&Finding], rate: f64, lasts: Option<f64>) -> String {
    let lasts = lasts
        .map(|seconds| format!(" At this rate memory lasts {}.", lasts_in_words(seconds)))
        .unwrap_or_default();
    let place = |finding: &Finding| escape(&finding.responsible.label()).into_owned();
    let what = if first.growth.bytes_per_s > 0.0 {
        format!("leaks {}/s", units::bytes(first.growth.bytes_per_s))
    } else {
        // It does not grow at present, but nothing has it any more.
        format!("has lost {}", units::bytes(first.survivors.bytes as f64))
    };
    let others = match leaks.len() - 1 {
        0 => String::new(),
        more if rate > 0.0 => {
            format!("; with {} it is {}/s", units::plural(more, "more leak"), units::bytes(rate))
        }
        more => format!("; there are {}", units::plural(more, "more leak")),
    };
    format!(
        "{} {what} in {} at {}{others}.{lasts}",
        escape(&first.module),
        escape(&first.cache),
        place(first)
    )
}

fn suspected(first: &Finding, suspects: usize, window: f64) -> String {
    let more = match suspects - 1 {
        0 => String::new(),
        more => format!(" ({} below)", units::plural(more, "more suspect")),
    };
    format!(
        "No leak is certain after {}. {} is suspected: it keeps {} in {}, growing by {}/s{more}.",
        units::seconds(window),
        escape(&first.responsible.label()),
        units::bytes(first.survivors.bytes as f64),
        escape(&first.cache),
        units::bytes(first.growth.bytes_per_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_well() {
        for (per_s, text) in [
            (12.4, "12 objects a second"),
            (0.2, "12 objects a minute"),
            (0.002, "7 objects an hour"),
            (1e-4, "9 objects a day"),
            (1e-9, "1 objects a day"),
        ] {
            assert_eq!(rate_in_words(per_s), text);
        }
    }
}
