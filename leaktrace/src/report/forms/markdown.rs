//! Markdown, for a mailing list or an issue: what somebody who maintains the code needs, and nothing of the rest.

use std::fmt::{self, Write as _};

use crate::{
    report::{
        escape,
        model::{Finding, Report},
    },
    units,
};

/// Findings that are told in full.
const TOLD: usize = 10;
/// Frames of a stack, and stacks of a finding.
const FRAMES: usize = 24;
const STACKS: usize = 2;

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
    let verdict = match &*report.headline.verdict {
        "leak" => "kernel memory leak",
        "suspect" => "suspected kernel memory leak",
        "unknown" => "unknown",
        _ => "kernel memory",
    };
    writeln!(out, "## leaktrace: {verdict}\n\n{}\n", plain(&report.headline.text))?;
    let machine = &report.machine;
    writeln!(out, "* kernel {}", code(&report.kernel))?;
    writeln!(
        out,
        "* {}, {} CPUs, {}",
        plain(&machine.architecture),
        machine.cpus,
        units::bytes(machine.memory_kb as f64 * 1_024.0)
    )?;
    writeln!(
        out,
        "* traced for {} from {} by leaktrace {}",
        units::seconds(report.window.duration_s),
        plain(&report.window.started),
        plain(&report.tool_version)
    )?;
    if let Some(filters) = report.filters.in_words() {
        writeln!(out, "* {}", plain(&filters))?;
    }
    if let Some(damage) = report.recorded.as_ref().and_then(|recorded| recorded.damage.as_ref()) {
        writeln!(out, "* not readable of the recording: {}", plain(damage))?;
    }
    let findings: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.is_of_note() || report.is_of_ticks())
        .take(TOLD)
        .collect();
    for group in &report.groups {
        let ranks: Vec<String> = group.findings.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "* {} {}: findings {}, {}",
            plain(&group.who()),
            plain(&group.what()),
            ranks.join(", "),
            units::rate(group.bytes_per_s)
        )?;
    }
    if !findings.is_empty() {
        writeln!(out, "\n| # | verdict | where | cache | live | bytes | growth |")?;
        writeln!(out, "|--:|---------|-------|-------|-----:|------:|-------:|")?;
    }
    for finding in &findings {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            finding.rank,
            plain(&finding.verdict),
            code(&finding.responsible.label()),
            code(&finding.what()),
            units::count(finding.live.objects),
            units::bytes(finding.live.bytes as f64),
            units::rate(finding.growth.bytes_per_s)
        )?;
    }
    for finding in &findings {
        in_full(out, finding)?;
    }
    not_seen(out, report)
}

fn not_seen(out: &mut String, report: &Report) -> fmt::Result {
    writeln!(out, "\n### Not seen\n")?;
    for spot in &report.coverage.blind_spots {
        writeln!(out, "* {}: {}", plain(&spot.path), plain(&spot.effect))?;
    }
    if report.coverage.sampling > 1 {
        writeln!(out, "* 1 in {} addresses was tracked, and counts are scaled", report.coverage.sampling)?;
    }
    if report.is_of_ticks() {
        return Ok(());
    }
    let lost = &report.coverage.lost;
    writeln!(
        out,
        "* lost: {} events by recursion, {} allocations without a place; {} frees were noticed late",
        units::count(lost.recursion_misses),
        units::count(lost.live_overflow),
        units::count(lost.implicit_frees)
    )
}

fn in_full(out: &mut String, finding: &Finding) -> fmt::Result {
    writeln!(
        out,
        "\n### {}. {}: {} ({})\n",
        finding.rank,
        plain(&finding.verdict),
        code(&finding.responsible.label()),
        code(&finding.what())
    )?;
    if let (Some(file), Some(line)) = (&finding.responsible.file, finding.responsible.line) {
        writeln!(out, "* {}", code(&format!("{file}:{line}")))?;
    }
    for sentence in &finding.evidence {
        writeln!(out, "* {}", plain(sentence))?;
    }
    for sentence in &finding.open {
        writeln!(out, "* but {}", plain(sentence))?;
    }
    for stack in finding.stacks.iter().take(STACKS) {
        // An indented block has no end that a name could contain.
        writeln!(out, "\n{} objects from\n", units::count(stack.objects))?;
        for frame in stack.frames.iter().take(FRAMES) {
            writeln!(out, "    {}", escape(&frame.label()))?;
        }
    }
    Ok(())
}

/// Text that means itself.
pub(in crate::report) fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in escape(text).chars() {
        // A module's brackets are no link; with a bracket of the other kind behind them they would be.
        let link = c == '(' && out.ends_with(']');
        if link || matches!(c, '\\' | '`' | '*' | '<' | '|' | '&') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Text as code, which in a table's cell may have no bar.
pub(in crate::report) fn code(text: &str) -> String {
    format!("`{}`", escape(text).replace('`', "'").replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_leak_is_told_for_a_mail() {
        insta::assert_snapshot!(render(&sample::report("leak")));
    }

    #[test]
    fn names_mean_themselves() {
        assert_eq!(plain("a<b> *c* [d](e) [f] `g`|"), "a\\<b> \\*c\\* [d]\\(e) [f] \\`g\\`\\|");
        assert_eq!(code("x`|y"), "`x'\\|y`");
    }
}
