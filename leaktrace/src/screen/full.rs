//! One finding in full, as lines of text.

use super::lists::heights;
use crate::{
    report::{
        columns::Columns,
        escape,
        findings::{Line, line_in_full},
        model::{Finding, Report},
        page::paragraph,
        text::Style,
    },
    units,
};

/// Rows of the chart, columns before it, and its columns at most.
const ROWS: usize = 6;
const AXIS: usize = 10;
const WIDEST: usize = 100;
/// Eighths of a block.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Objects, stacks and lifetimes that are listed.
const OBJECTS: usize = 20;
const STACKS: usize = 8;
/// Columns of the longest bar of lifetimes, and of what stands beside it.
const BAR: f64 = 40.0;
const BESIDE: usize = 30;

/// The lines of a finding or of a group with its first one, in a width.
pub(super) fn lines(report: &Report, line: Line<'_>, width: usize) -> Vec<String> {
    let finding = line.finding;
    let mut text = String::new();
    let style = Style { colour: false, verbose: true, top: 0, width: width.max(40) };
    // Writing to a string cannot fail.
    let _ = line_in_full(&mut text, report, line, &style);
    let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    lines.push(String::new());
    lines.extend(chart(finding, width));
    lines.extend(lifetimes(finding, width));
    lines.extend(stacks(finding, width));
    lines.extend(objects(finding, width));
    lines
}

fn chart(finding: &Finding, width: usize) -> Vec<String> {
    let points = &finding.growth.points;
    let columns = heights(points, width.saturating_sub(AXIS + 2).clamp(10, WIDEST));
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    if columns.is_empty() {
        return Vec::new();
    }
    let most = points.iter().map(|point| f64::from(point.1)).fold(0.0, f64::max);
    let mut lines = vec!["  Surviving bytes".to_owned()];
    for row in (0..ROWS).rev() {
        let label = match row {
            0 => "0".to_owned(),
            row if row == ROWS - 1 => units::bytes(most),
            _ => String::new(),
        };
        let eighths =
            |height: f64| ((height * ROWS as f64 - row as f64) * 8.0).round().clamp(0.0, 8.0) as usize;
        let bars: String = columns.iter().map(|&height| EIGHTHS[eighths(height)]).collect();
        lines.push(format!("{label:>AXIS$} {}", bars.trim_end()));
    }
    let (from, to) = (units::seconds(first.0.into()), units::seconds(last.0.into()));
    lines.push(format!("{:>AXIS$} {from:<half$}{to:>half$}", "", half = columns.len() / 2));
    lines.push(String::new());
    lines
}

fn lifetimes(finding: &Finding, width: usize) -> Vec<String> {
    let classes = &finding.lifetime.classes;
    let most = classes.iter().map(|class| class.1).max().unwrap_or(0);
    if most == 0 {
        return Vec::new();
    }
    let mut lines = set(2, width, "Lifetimes of what was freed, of a sample");
    let bar = BAR.min(width.saturating_sub(BESIDE) as f64);
    for &(end_us, freed) in classes {
        let bar = "█".repeat((freed as f64 / most as f64 * bar).ceil() as usize);
        lines.push(format!("  up to {:>8} {bar} {}", units::seconds(end_us / 1e6), units::count(freed)));
    }
    lines.push(String::new());
    lines
}

fn stacks(finding: &Finding, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for stack in finding.stacks.iter().take(STACKS) {
        lines.push(format!("  Stack of {}", units::plural(stack.objects as usize, "object")));
        for frame in &stack.frames {
            let label = escape(&frame.label()).into_owned();
            let source = frame.file.as_deref().zip(frame.line);
            let source = source.map(|(file, line)| format!("{}:{line}", escape(file)));
            match source {
                Some(source) if label.chars().count() + source.chars().count() + 6 <= width => {
                    lines.push(format!("    {label}  {source}"));
                }
                source => {
                    lines.extend(set(4, width, &label));
                    lines.extend(source.map(|source| format!("      {source}")));
                }
            }
        }
        lines.push(String::new());
    }
    lines
}

fn objects(finding: &Finding, width: usize) -> Vec<String> {
    if finding.objects.is_empty() {
        return Vec::new();
    }
    let shown = || finding.objects.iter().take(OBJECTS);
    let title = format!(
        "{} of {} live objects, the oldest first",
        shown().count(),
        units::count(finding.live.objects)
    );
    let mut lines = set(2, width, &title);
    let columns = Columns::default()
        .right(0, "address", shown().map(|object| format!("{:#x}", object.address)))
        .right(2, "size", shown().map(|object| format!("{} B", units::count(object.size.into()))))
        .right(0, "age", shown().map(|object| units::seconds(object.age_s)))
        .left(
            1,
            "",
            shown().map(|object| object.reach.as_deref().map(escape).unwrap_or_default().into_owned()),
        );
    lines.extend(columns.lines(width.saturating_sub(4)).lines().map(|line| format!("    {line}")));
    lines
}

/// A text at an indent, in as many lines as it takes.
fn set(indent: usize, width: usize, text: &str) -> Vec<String> {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = paragraph(&mut out, indent, width, text);
    out.lines().map(str::to_owned).collect()
}

/// What is seen, missed, and what it costs, in a width.
pub(super) fn coverage(report: &Report, width: usize) -> Vec<String> {
    let style = Style { colour: false, verbose: true, top: 0, width: width.max(40) };
    let mut lines = Vec::new();
    for hook in &report.coverage.hooks {
        let how = match &hook.error {
            Some(error) => format!("refused: {}", escape(error)),
            None => escape(&hook.mechanism).into_owned(),
        };
        let line = format!("{:<26} {how}", escape(&hook.name));
        if line.chars().count() + 2 <= width {
            lines.push(format!("  {line}"));
        } else {
            lines.extend(set(2, width, &line.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    lines.extend(crate::report::text::coverage_and_cost(report, &style).lines().map(str::to_owned));
    lines
}
