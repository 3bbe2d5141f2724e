//! The findings for reading: a table, and the first ones in full.

use std::fmt::{self, Write as _};

use super::{
    escape,
    model::{Finding, Frame, Group, Report},
    page::{plain_table, right_aligned, shorten, trimmed, wrap},
    text::{Style, paint},
};
use crate::units;

/// Findings that are told in full; the rest are in the table, or in full with `-v`. Leaks always are.
const TOLD: usize = 3;
/// Frames of the short stack.
const FRAMES: usize = 12;
/// Where the text of a finding begins.
const INDENT: usize = 10;
/// From this width on the table has all its columns.
const ROOMY: usize = 96;

/// Writes the findings.
///
/// # Errors
/// As writing to `out` has.
pub fn write(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    writeln!(out, "\n{}", table(report, style))?;
    let told = if style.verbose { style.top } else { TOLD.min(style.top) };
    for (index, (finding, group)) in lines(report).into_iter().enumerate() {
        if index < told || (finding.verdict == "leak" && !finding.known) {
            if let Some(group) = group {
                members(out, report, group, style)?;
            }
            in_full(out, finding, style)?;
        }
    }
    Ok(())
}

/// What has one line: a finding, or the first of a group that stands for all of them.
pub fn lines<'a>(report: &'a Report) -> Vec<(&'a Finding, Option<&'a Group>)> {
    let line = |finding: &'a Finding| {
        let group = report.groups.iter().find(|group| group.findings.contains(&finding.rank));
        let leads = group.is_none_or(|group| group.findings.first() == Some(&finding.rank));
        leads.then_some((finding, group))
    };
    report.findings.iter().filter_map(line).collect()
}

/// What a group consists of.
fn members(out: &mut String, report: &Report, group: &Group, style: &Style) -> fmt::Result {
    let what = format!(
        "{:>2}  suspect  {} {}: {} in {}, {}",
        group.findings.first().copied().unwrap_or_default(),
        group.who(),
        group.what(),
        units::bytes(group.live.bytes as f64),
        group.kinds(),
        units::rate(group.bytes_per_s)
    );
    writeln!(out, "\n{}", paint(style, "1", &what))?;
    let of = report.findings.iter().filter(|finding| group.findings.contains(&finding.rank));
    for (index, finding) in of.enumerate() {
        let text = format!(
            "{} at {}, {}",
            escape(&finding.what()),
            escape(&finding.responsible.label()),
            finding.growth.in_words()
        );
        labelled(out, style.width, if index == 0 { "of" } else { "" }, &text)?;
    }
    Ok(())
}

fn table(report: &Report, style: &Style) -> String {
    let roomy = style.width >= ROOMY;
    let mut table = plain_table();
    let mut header = vec!["#", "verdict", "where", "cache", "live", "bytes", "growth"];
    if roomy {
        header.extend(["freed", "oldest"]);
    }
    table.set_header(header);
    let shown = lines(report)
        .into_iter()
        .enumerate()
        .filter(|(index, (finding, _))| *index < style.top || finding.verdict == "leak");
    for (_, (finding, group)) in shown {
        let (place_width, cache_width) =
            if roomy { (style.width - 66, 18) } else { (style.width.saturating_sub(58).max(12), 12) };
        let mut row = vec![
            finding.rank.to_string(),
            if finding.known { "known".to_owned() } else { escape(&finding.verdict).into_owned() },
            place(&finding.responsible, place_width),
            shorten(&escape(&finding.what()), cache_width),
            units::count(finding.live.objects),
            units::bytes(finding.live.bytes as f64),
            finding.growth.in_words(),
        ];
        if let Some(group) = group {
            row[2] = shorten(&group.who(), place_width);
            row[3] = shorten(&group.keeps.clone().unwrap_or_else(|| group.kinds()), cache_width);
            row[4] = units::count(group.live.objects);
            row[5] = units::bytes(group.live.bytes as f64);
            row[6] = units::rate(group.bytes_per_s);
        }
        if roomy {
            row.push(share_freed(finding));
            row.push(units::seconds(finding.survivors.oldest_s));
        }
        table.add_row(row);
    }
    right_aligned(&mut table, &[0, 4, 5, 6, 7, 8]);
    trimmed(&table)
}

/// Where a frame lies in so many characters: of a long name the module is what must be seen.
pub fn place(frame: &Frame, limit: usize) -> String {
    let label = frame.label();
    let label = escape(&label);
    match (label.rsplit_once(' '), &frame.module) {
        (Some((symbol, module)), Some(_)) if label.chars().count() > limit => {
            let room = limit.saturating_sub(module.chars().count() + 1).max(limit / 2);
            shorten(&format!("{} {module}", shorten(symbol, room)), limit)
        }
        _ => shorten(&label, limit),
    }
}

/// How much of what a site allocated was freed; 100 % only if it is all.
pub fn share_freed(finding: &Finding) -> String {
    let value = finding.freed as f64 * 100.0 / finding.allocated.max(1) as f64;
    if value > 99.0 && value < 100.0 { "99 %".into() } else { format!("{value:.0} %") }
}

/// Writes all of a finding.
///
/// # Errors
/// As writing to `out` has.
pub fn in_full(out: &mut String, finding: &Finding, style: &Style) -> fmt::Result {
    let known = if finding.known { " (known from the baseline)" } else { "" };
    let head = format!(
        "{:>2}  {}  {}{known}",
        finding.rank,
        escape(&finding.verdict),
        escape(&finding.responsible.label())
    );
    writeln!(out, "\n{}", paint(style, "1", &head))?;
    let labelled = |out: &mut String, label: &str, text: &str| labelled(out, style.width, label, text);
    if let Some(line) = source_line(&finding.responsible) {
        labelled(out, "line", &line)?;
    }
    if finding.responsible.address != finding.call_site.address {
        labelled(out, "via", &escape(&finding.call_site.label()))?;
    }
    let module_frame =
        finding.in_module.as_ref().filter(|frame| frame.address != finding.responsible.address);
    if let Some(frame) = module_frame {
        let line = source_line(frame).map(|line| format!(", {line}")).unwrap_or_default();
        labelled(out, "for", &format!("{}{line}", escape(&frame.label())))?;
    }
    for (index, evidence) in finding.evidence.iter().enumerate() {
        labelled(out, if index == 0 { "why" } else { "" }, &escape(evidence))?;
    }
    for (index, open) in finding.open.iter().enumerate() {
        labelled(out, if index == 0 { "but" } else { "" }, &escape(open))?;
    }
    who_and_from_where(out, finding, style)?;
    for (index, settle) in finding.settle.iter().enumerate() {
        labelled(out, if index == 0 { "next" } else { "or" }, &escape(settle))?;
    }
    Ok(())
}

fn who_and_from_where(out: &mut String, finding: &Finding, style: &Style) -> fmt::Result {
    let total: u64 = finding.tasks.iter().map(|task| task.objects).sum();
    if total > 0 {
        let share = |objects: u64| objects as f64 / total as f64 * 100.0;
        let tasks: Vec<_> = finding
            .tasks
            .iter()
            .take(4)
            .map(|task| format!("{} ({}) {:.0} %", escape(&task.comm), task.pid, share(task.objects)))
            .collect();
        labelled(out, style.width, "who", &tasks.join(", "))?;
    }
    let Some(stack) = finding.stacks.first() else {
        let text = "none was captured: the call site above is exact; more --overhead captures more";
        return labelled(out, style.width, "stack", text);
    };
    let mut frames: Vec<_> =
        stack.frames.iter().take(FRAMES).map(|frame| escape(&frame.label()).into_owned()).collect();
    if stack.frames.len() > FRAMES {
        frames.push(format!("{} more", stack.frames.len() - FRAMES));
    }
    labelled(out, style.width, "stack", &frames.join(" < "))?;
    if finding.stacks.len() > 1 {
        let others = units::plural(finding.stacks.len() - 1, "other stack");
        labelled(out, style.width, "", &format!("and {others}"))?;
    }
    Ok(())
}

fn source_line(frame: &Frame) -> Option<String> {
    Some(format!("{}:{}", escape(frame.file.as_deref()?), frame.line?))
}

fn labelled(out: &mut String, width: usize, label: &str, text: &str) -> fmt::Result {
    for (index, line) in wrap(text, width - INDENT).into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(out, "    {label:<5} {line}")?;
    }
    Ok(())
}
