//! One finding in full, as lines of text.

use super::lists::heights;
use crate::{
    report::{
        escape,
        findings::in_full,
        model::{Finding, Report},
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
/// Columns of the longest bar of lifetimes.
const BAR: f64 = 40.0;

/// The lines of a finding, in a width.
pub(super) fn lines(finding: &Finding, width: usize) -> Vec<String> {
    let mut text = String::new();
    let style = Style { colour: false, verbose: true, top: 0, width: width.max(40) };
    // Writing to a string cannot fail.
    let _ = in_full(&mut text, finding, &style);
    let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    lines.push(String::new());
    lines.extend(chart(finding, width));
    lines.extend(lifetimes(finding));
    lines.extend(stacks(finding));
    lines.extend(objects(finding));
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

fn lifetimes(finding: &Finding) -> Vec<String> {
    let classes = &finding.lifetime.classes;
    let most = classes.iter().map(|class| class.1).max().unwrap_or(0);
    if most == 0 {
        return Vec::new();
    }
    let mut lines = vec!["  Lifetimes of what was freed, of a sample".to_owned()];
    for &(end_us, freed) in classes {
        let bar = "█".repeat((freed as f64 / most as f64 * BAR).ceil() as usize);
        lines.push(format!("  up to {:>8} {bar} {}", units::seconds(end_us / 1e6), units::count(freed)));
    }
    lines.push(String::new());
    lines
}

fn stacks(finding: &Finding) -> Vec<String> {
    let mut lines = Vec::new();
    for stack in finding.stacks.iter().take(STACKS) {
        lines.push(format!("  Stack of {}", units::plural(stack.objects as usize, "object")));
        for frame in &stack.frames {
            let line = match (&frame.file, frame.line) {
                (Some(file), Some(line)) => format!("  {}:{line}", escape(file)),
                _ => String::new(),
            };
            lines.push(format!("    {}{line}", escape(&frame.label())));
        }
        lines.push(String::new());
    }
    lines
}

fn objects(finding: &Finding) -> Vec<String> {
    if finding.objects.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "  {} of {} live objects, the oldest first",
        finding.objects.len().min(OBJECTS),
        units::count(finding.live.objects)
    )];
    for object in finding.objects.iter().take(OBJECTS) {
        let reach = object.reach.as_deref().map(escape).unwrap_or_default();
        lines.push(format!(
            "    {:#x}  {:>7} B  {:>9}  {reach}",
            object.address,
            units::count(object.size.into()),
            units::seconds(object.age_s)
        ));
    }
    lines
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
        lines.push(format!("  {:<26} {how}", escape(&hook.name)));
    }
    lines.extend(crate::report::text::coverage_and_cost(report, &style).lines().map(str::to_owned));
    lines
}
