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

/// Text follows the width of narrow terminals, too.
#[test]
fn any_width_fits() {
    for verdict in ["leak", "suspect", "plateau", "cache", "churn", "none"] {
        let mut report = sample::report(verdict);
        for finding in &mut report.findings {
            finding.responsible.symbol = Some("some_function_with_a_long_name".to_owned());
            (finding.live.bytes, finding.live.objects) = (1_023_900, 1_234_567);
        }
        report.shake = Some(shaken());
        let all = |width: usize| render(&report, &Style { verbose: true, ..at(width) });
        let widest = all(300);
        for width in sample::WIDTHS {
            sample::assert_fits(&all(width), &widest, width);
        }
        if ["leak", "suspect"].contains(&verdict) {
            assert_snapshot!(format!("{verdict}_at_40"), render(&report, &at(40)));
        }
    }
    let report = grouped();
    for width in sample::WIDTHS {
        sample::assert_fits(&render(&report, &at(width)), &render(&report, &at(300)), width);
    }
}

#[test]
fn known_findings_and_shaken_caches() {
    let mut report = sample::report("leak");
    report.findings[0].known = true;
    report.headline = crate::report::headline::headline(&report);
    report.shake = Some(shaken());
    assert_snapshot!("known_and_shaken", render(&report, &at(WIDTH)));
}

fn shaken() -> Shake {
    Shake {
        freed: Amount { objects: 12_000, bytes: 12_000 * 192 },
        caches: vec![ShakenCache {
            cache: "dentry".to_owned(),
            before: 12_044,
            freed: Amount { objects: 12_000, bytes: 12_000 * 192 },
        }],
    }
}

#[test]
fn colours_are_for_terminals_only() {
    let coloured = render(&sample::report("leak"), &Style { colour: true, ..at(WIDTH) });
    assert!(coloured.starts_with("\u{1b}[1;31mLEAK"));
}

/// Three findings, of which two are a group.
fn grouped() -> Report {
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
    report
}

/// What one process keeps is one line, and says what it is made of.
#[test]
fn a_group_is_one_line() {
    assert_snapshot!(render(&grouped(), &Style { top: 10, ..Style::default() }));
}
