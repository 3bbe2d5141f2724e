//! The difference of two reports, for reading.

use std::fmt::{self, Write as _};

use super::{
    escape,
    known::{Change, Diff},
    page::{paragraph, plain_table, right_aligned, shorten, trimmed},
};
use crate::units;

/// Renders the difference at a width in columns.
pub fn render(diff: &Diff, width: usize) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, diff, width);
    out
}

fn write(out: &mut String, diff: &Diff, width: usize) -> fmt::Result {
    for (name, index) in [("A", 0), ("B", 1)] {
        let text = format!(
            "{name}: {} on {}, {}. {}",
            escape(&diff.started[index]),
            escape(&diff.kernels[index]),
            units::seconds(diff.duration_s[index]),
            escape(&diff.headlines[index])
        );
        paragraph(out, 0, width, &text)?;
    }
    if diff.findings.is_empty() {
        writeln!(out, "\nNo leak or suspect appeared, grew, shrank or vanished.")?;
    } else {
        let mut table = plain_table();
        table.set_header(["", "where", "cache", "verdict", "A", "B", "live in B"]);
        for change in &diff.findings {
            table.add_row(row(change, width));
        }
        right_aligned(&mut table, &[4, 5, 6]);
        writeln!(out, "\n{}", trimmed(&table))?;
    }
    if !diff.caches.is_empty() {
        let mut table = plain_table();
        table.set_header(["/proc/slabinfo", "A", "B"]);
        for change in diff.caches.iter().take(20) {
            table.add_row([
                shorten(&escape(&change.cache), 28),
                units::rate(change.bytes_per_s[0]),
                units::rate(change.bytes_per_s[1]),
            ]);
        }
        right_aligned(&mut table, &[1, 2]);
        writeln!(out, "\n{}", trimmed(&table))?;
    }
    Ok(())
}

fn row(change: &Change, width: usize) -> [String; 7] {
    let verdict = match (change.verdicts[0].as_ref(), change.verdicts[1].as_ref()) {
        ("", verdict) | (verdict, "") => verdict.to_owned(),
        (a, b) if a == b => a.to_owned(),
        (a, b) => format!("{a} > {b}"),
    };
    [
        change.what.to_string(),
        shorten(&escape(&change.function), (width / 3).max(20)),
        shorten(&escape(&change.cache), 16),
        escape(&verdict).into_owned(),
        units::rate(change.bytes_per_s[0]),
        units::rate(change.bytes_per_s[1]),
        units::bytes(change.live_bytes[1] as f64),
    ]
}
