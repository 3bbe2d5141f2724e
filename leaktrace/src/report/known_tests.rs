use super::*;
use crate::report::sample;

fn report(findings: Vec<Finding>) -> Report {
    Report { findings, ..sample::report("none") }
}

fn growing(verdict: &'static str, symbol: &str, bytes_per_s: f64) -> Finding {
    let mut finding = sample::finding(verdict);
    finding.responsible.symbol = Some(symbol.to_owned());
    finding.growth.bytes_per_s = bytes_per_s;
    finding
}

#[test]
fn a_baseline_knows_what_it_had_and_nothing_worse() {
    let known = Known::of(&report(vec![
        growing("suspect", "slow", 100.0),
        growing("plateau", "pool", 0.0),
        growing("leak", "old.constprop.0", 500.0),
    ]));
    let mut now = vec![
        growing("suspect", "slow", 150.0),
        growing("leak", "slow", 100.0),
        growing("leak", "pool", 10.0),
        growing("leak", "old", 900.0),
        growing("leak", "old", 1_100.0),
        growing("leak", "new", 1.0),
    ];
    for (index, finding) in now.iter_mut().enumerate() {
        finding.rank = index + 1;
    }
    known.mark(&mut now);
    let order: Vec<_> = now
        .iter()
        .map(|f| (f.rank, f.known, f.responsible.symbol.clone().unwrap(), f.growth.bytes_per_s))
        .collect();
    assert_eq!(
        order,
        [
            (1, false, "slow".to_owned(), 100.0),
            (2, false, "pool".to_owned(), 10.0),
            (3, false, "old".to_owned(), 1_100.0),
            (4, false, "new".to_owned(), 1.0),
            (5, true, "slow".to_owned(), 150.0),
            (6, true, "old".to_owned(), 900.0),
        ]
    );
}

#[test]
fn reports_differ_by_what_appeared_grew_shrank_and_vanished() {
    let a = report(vec![
        growing("suspect", "same", 100.0),
        growing("suspect", "more", 100.0),
        growing("leak", "less", 1_000.0),
        growing("leak", "gone", 50.0),
        growing("churn", "noise", 0.0),
    ]);
    let b = report(vec![
        growing("suspect", "same", 110.0),
        growing("leak", "more", 300.0),
        growing("leak", "less", 100.0),
        growing("leak", "new", 70.0),
        growing("plateau", "other noise", 0.0),
    ]);
    let diff = diff(&a, &b);
    let changes: Vec<_> = diff.findings.iter().map(|change| (&*change.what, &*change.function)).collect();
    assert_eq!(
        changes,
        [
            ("shrank", "less [foo]"),
            ("grew", "more [foo]"),
            ("appeared", "new [foo]"),
            ("vanished", "gone [foo]")
        ]
    );
    assert_eq!(diff.findings[1].verdicts, ["suspect", "leak"]);
    assert!(super::diff(&a, &a).findings.is_empty());
}

#[test]
fn reports_are_read_as_they_were_written() {
    let report = report(vec![sample::finding("leak")]);
    let text = serde_json::to_string(&report).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
}
