use insta::assert_snapshot;

use super::*;
use crate::report::{
    model::{Amount, Finding, Group, Shake, ShakenCache},
    sample,
};

fn at(width: usize) -> Style {
    Style { width, ..Style::default() }
}

/// The text for each verdict, on a page, on a narrow terminal and on a wide one.
#[test]
fn texts_for_each_verdict() {
    for verdict in ["leak", "suspect", "plateau", "cache", "churn", "none"] {
        for (name, width) in [("page", WIDTH), ("narrow", 80), ("wide", 150)] {
            let text = render(&sample::report(verdict), &at(width));
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{verdict} at {width}: {line}");
                assert!(!line.contains('\u{1b}'), "{line:?}");
            }
            // The rest is the same on every width.
            let shown =
                if name == "page" { text } else { text.split("\nNot seen").next().unwrap().to_owned() };
            assert_snapshot!(format!("{verdict}_{name}"), shown);
        }
    }
}

#[test]
fn known_findings_and_shaken_caches() {
    let mut report = sample::report("leak");
    report.findings[0].known = true;
    report.headline = crate::report::headline::headline(&report);
    report.shake = Some(Shake {
        freed: Amount { objects: 12_000, bytes: 12_000 * 192 },
        caches: vec![ShakenCache {
            cache: "dentry".to_owned(),
            before: 12_044,
            freed: Amount { objects: 12_000, bytes: 12_000 * 192 },
        }],
    });
    assert_snapshot!("known_and_shaken", render(&report, &at(WIDTH)));
}

#[test]
fn colours_are_for_terminals_only() {
    let coloured = render(&sample::report("leak"), &Style { colour: true, ..at(WIDTH) });
    assert!(coloured.starts_with("\u{1b}[1;31mLEAK"));
}

/// What one process keeps is one line, and says what it is made of.
#[test]
fn a_group_is_one_line() {
    let mut report = sample::report("suspect");
    report.findings = [1, 2, 3].map(|rank| Finding { rank, ..report.findings[0].clone() }).to_vec();
    report.findings[1].cache = "filp".to_owned();
    report.groups = vec![Group {
        findings: vec![1, 2],
        comm: "pipe\u{1b}leaker".to_owned(),
        pid: 391,
        call: "pipe2".to_owned(),
        keeps: Some("pipes".to_owned()),
        caches: 2,
        live: Amount { objects: 10_204, bytes: 2 << 20 },
        bytes_per_s: 44_600.0,
    }];
    report.headline = crate::report::headline::headline(&report);
    assert_snapshot!(render(&report, &Style { top: 10, ..Style::default() }));
}
