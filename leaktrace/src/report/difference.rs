//! The difference of two reports, for reading.

use std::fmt::{self, Write as _};

use super::{
    columns::{Columns, shorten_place},
    escape,
    known::{Change, Diff},
    page::{paragraph, shorten},
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
        writeln!(out)?;
        paragraph(out, 0, width, "No leak or suspect appeared, grew, shrank or vanished.")?;
    } else {
        writeln!(out, "\n{}", findings(diff, width).lines(width))?;
    }
    if !diff.caches.is_empty() {
        let shown = || diff.caches.iter().take(20);
        let columns = Columns::default()
            .left(0, "/proc/slabinfo", shown().map(|change| shorten(&escape(&change.cache), 28)))
            .right(0, "A", shown().map(|change| units::rate(change.bytes_per_s[0])))
            .right(0, "B", shown().map(|change| units::rate(change.bytes_per_s[1])));
        writeln!(out, "\n{}", columns.lines(width))?;
    }
    Ok(())
}

fn findings(diff: &Diff, width: usize) -> Columns {
    let cells = |cell: &dyn Fn(&Change) -> String| diff.findings.iter().map(cell).collect::<Vec<_>>();
    let verdict = |change: &Change| {
        let verdict = match (change.verdicts[0].as_ref(), change.verdicts[1].as_ref()) {
            ("", verdict) | (verdict, "") => verdict.to_owned(),
            (a, b) if a == b => a.to_owned(),
            (a, b) => format!("{a} > {b}"),
        };
        escape(&verdict).into_owned()
    };
    Columns::default()
        .left(0, "", cells(&|change| change.what.to_string()))
        .place(0, "where", cells(&|change| shorten_place(&escape(&change.function), (width / 3).max(20))))
        .left(3, "cache", cells(&|change| shorten(&escape(&change.cache), 16)))
        .left(1, "verdict", cells(&verdict))
        .right(2, "A", cells(&|change| units::rate(change.bytes_per_s[0])))
        .right(0, "B", cells(&|change| units::rate(change.bytes_per_s[1])))
        .right(4, "live in B", cells(&|change| units::bytes(change.live_bytes[1] as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{known, sample};

    #[test]
    fn any_width_fits() {
        let (before, mut after) = (sample::report("none"), sample::report("leak"));
        after.findings[0].responsible.symbol = Some("some_function_with_a_long_name".to_owned());
        let diff = known::diff(&before, &after);
        assert!(!diff.findings.is_empty());
        for width in sample::WIDTHS {
            sample::assert_fits(&render(&diff, width), &render(&diff, 300), width);
        }
    }
}
