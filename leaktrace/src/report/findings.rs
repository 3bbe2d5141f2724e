//! The findings for reading: a table, and the first ones in full.

use std::fmt::{self, Write as _};

use super::{
    columns::{Columns, shorten_place},
    escape,
    model::{Amount, Finding, Frame, Group, Report},
    page::{shorten, wrap},
    text::{Style, paint},
};
use crate::units;

/// Findings that are told in full; the rest are in the table, or in full with `-v`. Leaks always are.
const TOLD: usize = 3;
/// Frames of the short stack.
const FRAMES: usize = 12;
/// Where the text of a finding begins.
const INDENT: usize = 10;
/// Where later lines of its head begin.
const HANGING: usize = 4;
/// From this width on the table has all its columns.
const ROOMY: usize = 96;

/// Writes the findings.
///
/// # Errors
/// As writing to `out` has.
pub fn write(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    writeln!(out, "\n{}", table(report, style))?;
    let told = if style.verbose { style.top } else { TOLD.min(style.top) };
    for (index, line) in lines(report).into_iter().enumerate() {
        if index < told || (line.finding.verdict == "leak" && !line.finding.known) {
            line_in_full(out, report, line, style)?;
        }
    }
    Ok(())
}

/// What has one line: a finding, or the first of a group that stands for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The finding, or the first one.
    pub finding: &'a Finding,
    /// What it stands for.
    pub group: Option<&'a Group>,
}

impl Line<'_> {
    /// The verdict; `known` for what a baseline has.
    pub fn verdict(&self) -> String {
        if self.finding.known { "known".to_owned() } else { escape(&self.finding.verdict).into_owned() }
    }

    /// Whose it is: a place in code, or a process.
    pub fn place(&self) -> String {
        self.group.map_or_else(|| escape(&self.finding.responsible.label()).into_owned(), Group::who)
    }

    /// What is allocated.
    pub fn what(&self) -> String {
        let keeps = |group: &Group| group.keeps.as_deref().map(|keeps| escape(keeps).into_owned());
        match self.group {
            Some(group) => keeps(group).unwrap_or_else(|| group.kinds()),
            None => escape(&self.finding.what()).into_owned(),
        }
    }

    /// What is alive.
    pub fn live(&self) -> Amount {
        self.group.map_or(self.finding.live, |group| group.live)
    }

    /// Growth in bytes a second.
    pub fn rate(&self) -> f64 {
        self.group.map_or_else(|| self.finding.growth.rate(), |group| group.bytes_per_s)
    }

    /// How it grows.
    pub fn growth(&self) -> String {
        self.group.map_or_else(|| self.finding.growth.in_words(), |group| units::rate(group.bytes_per_s))
    }
}

/// The lines of a report.
pub fn lines<'a>(report: &'a Report) -> Vec<Line<'a>> {
    let line = |finding: &'a Finding| {
        let group = report.groups.iter().find(|group| group.findings.contains(&finding.rank));
        let leads = group.is_none_or(|group| group.findings.first() == Some(&finding.rank));
        leads.then_some(Line { finding, group })
    };
    report.findings.iter().filter_map(line).collect()
}

/// The findings of a group.
pub fn of_group<'a>(report: &'a Report, group: &Group) -> impl Iterator<Item = &'a Finding> {
    report.findings.iter().filter(|finding| group.findings.contains(&finding.rank))
}

/// Writes all of a line: what a group consists of, and its first finding.
///
/// # Errors
/// As writing to `out` has.
pub fn line_in_full(out: &mut String, report: &Report, line: Line<'_>, style: &Style) -> fmt::Result {
    if let Some(group) = line.group {
        members(out, report, group, style)?;
    }
    in_full(out, line.finding, style)
}

/// What a group consists of.
fn members(out: &mut String, report: &Report, group: &Group, style: &Style) -> fmt::Result {
    let what = format!(
        "suspect  {} {}: {} in {}, {}",
        group.who(),
        group.what(),
        units::bytes(group.live.bytes as f64),
        group.kinds(),
        units::rate(group.bytes_per_s)
    );
    heading(out, style, group.findings.first().copied().unwrap_or_default(), &what)?;
    for (index, finding) in of_group(report, group).enumerate() {
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

fn table<'a>(report: &'a Report, style: &Style) -> String {
    let roomy = style.width >= ROOMY;
    // Where there is less room than for these, the table leaves columns out.
    let (place_width, cache_width) =
        if roomy { (style.width - 66, 18) } else { (style.width.max(80) - 58, 12) };
    let shown: Vec<_> = lines(report)
        .into_iter()
        .enumerate()
        .filter(|(index, line)| *index < style.top || line.finding.verdict == "leak")
        .map(|(_, line)| line)
        .collect();
    let cells = |cell: &dyn Fn(&Line<'a>) -> String| shown.iter().map(cell).collect::<Vec<_>>();
    let mut columns = Columns::default()
        .right(2, "#", cells(&|line| line.finding.rank.to_string()))
        .left(0, "verdict", cells(&Line::verdict))
        .place(0, "where", cells(&|line| shorten_place(&line.place(), place_width)))
        .left(4, "cache", cells(&|line| shorten(&line.what(), cache_width)))
        .right(3, "live", cells(&|line| units::count(line.live().objects)))
        .right(1, "bytes", cells(&|line| units::bytes(line.live().bytes as f64)))
        .right(0, "growth", cells(&Line::growth));
    if roomy {
        columns = columns.right(6, "freed", cells(&|line| share_freed(line.finding))).right(
            5,
            "oldest",
            cells(&|line| units::seconds(line.finding.survivors.oldest_s)),
        );
    }
    columns.lines(style.width)
}

/// Where a frame lies in so many characters: of a long name the module is what must be seen.
pub fn place(frame: &Frame, limit: usize) -> String {
    shorten_place(&escape(&frame.label()), limit)
}

/// How much of what a site allocated was freed; 100 % only if it is all.
pub fn share_freed(finding: &Finding) -> String {
    let value = finding.freed as f64 * 100.0 / finding.allocated.max(1) as f64;
    if value > 99.0 && value < 100.0 { "99 %".into() } else { format!("{value:.0} %") }
}

/// The first line of a finding or a group, and what of it does not fit.
fn heading(out: &mut String, style: &Style, rank: usize, text: &str) -> fmt::Result {
    let lines = wrap(text, style.width - HANGING);
    let text: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    let text = text.join(&format!("\n{:HANGING$}", ""));
    writeln!(out, "\n{}", paint(style, "1", &format!("{rank:>2}  {text}")))
}

/// Writes all of a finding.
fn in_full(out: &mut String, finding: &Finding, style: &Style) -> fmt::Result {
    let known = if finding.known { " (known from the baseline)" } else { "" };
    let head = format!("{}  {}{known}", escape(&finding.verdict), escape(&finding.responsible.label()));
    heading(out, style, finding.rank, &head)?;
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
