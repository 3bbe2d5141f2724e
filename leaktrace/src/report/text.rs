//! The report for reading, at 100 columns: the answer first, then the evidence, then what to run next.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{
    escape,
    model::{Cache, Finding, Frame, Report},
    page::{WIDTH, paragraph, shorten, wrap},
};
use crate::units;

/// How to show it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// With colours.
    pub colour: bool,
    /// With everything.
    pub verbose: bool,
    /// Findings and caches to show.
    pub top: usize,
}

/// Findings that are told in full; the rest are in the table, or in full with `-v`.
const TOLD: usize = 3;
/// Frames of the short stack.
const FRAMES: usize = 12;
/// Where the text of a finding begins.
const INDENT: usize = 10;

/// Renders the report.
pub fn render(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, report, style);
    out
}

fn write_report(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    headline(out, report, style)?;
    if !report.findings.is_empty() {
        writeln!(out, "\n{}", findings_table(&report.findings, style))?;
        let told = if style.verbose { style.top } else { TOLD.min(style.top) };
        for finding in report.findings.iter().take(told) {
            finding_in_full(out, finding, style)?;
        }
        modules(out, report)?;
    }
    unloads(out, report)?;
    caches(out, report, style)?;
    coverage(out, report)?;
    cost(out, report, style)
}

fn headline(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    for unload in report.unloads.iter().filter(|unload| unload.left.objects > 0) {
        let word = unload.verdict.to_uppercase();
        let text = format!(
            "{word:<7}  {} was removed after {} and left {} objects behind, {}.",
            escape(&unload.module),
            units::seconds(unload.after_s),
            units::count(unload.left.objects),
            units::bytes(unload.left.bytes as f64)
        );
        writeln!(out, "{}", paint(style, "1;31", &wrap(&text, WIDTH - 9).join("\n         ")))?;
    }
    let window = units::seconds(report.window.duration_s);
    let suspects = report.findings.iter().filter(|finding| finding.verdict == "suspect").count();
    match report.findings.first().filter(|_| suspects > 0) {
        Some(first) => {
            let text = format!(
                "SUSPECT  {} keeps {} in {} at {}, growing by {}/s.",
                escape(&first.module),
                units::bytes(first.survivors.bytes as f64),
                escape(&first.cache),
                escape(&first.call_site.label()),
                units::bytes(first.growth.bytes_per_s)
            );
            // Lines after the first are set under its text.
            let text = wrap(&text, WIDTH - 9).join("\n         ");
            writeln!(out, "{}", paint(style, "1;31", &text))?;
            if suspects > 1 {
                let more = units::plural(suspects - 1, "more suspect");
                writeln!(out, "         {more} below.")?;
            }
        }
        None => writeln!(
            out,
            "{}",
            paint(style, "1;32", &format!("No site kept a growing number of objects in {window}."))
        )?,
    }
    if report.coverage.sampling > 1 {
        writeln!(
            out,
            "         Sampled: 1 in {} addresses was tracked, and counts are scaled.",
            report.coverage.sampling
        )?;
    }
    Ok(())
}

fn findings_table(findings: &[Finding], style: &Style) -> String {
    let mut table = plain_table();
    table.set_header(["#", "verdict", "where", "cache", "live", "bytes", "growth", "freed", "oldest"]);
    for finding in findings.iter().take(style.top) {
        let freed = if finding.allocated == 0 {
            0.0
        } else {
            finding.freed as f64 / finding.allocated as f64 * 100.0
        };
        table.add_row([
            finding.rank.to_string(),
            finding.verdict.to_owned(),
            place(&finding.call_site, 34),
            shorten(&escape(&finding.cache), 18),
            units::count(finding.live.objects),
            units::bytes(finding.live.bytes as f64),
            growth(finding.growth.bytes_per_s),
            percent(freed),
            units::seconds(finding.survivors.oldest_s),
        ]);
    }
    align(&mut table, &[0, 4, 5, 6, 7, 8]);
    trimmed(&table)
}

/// Where a frame lies in so many characters: of a long name the module is what must be seen.
fn place(frame: &Frame, limit: usize) -> String {
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

/// 100 % only if it is all.
fn percent(value: f64) -> String {
    if value > 99.0 && value < 100.0 { "99 %".into() } else { format!("{value:.0} %") }
}

fn growth(bytes_per_s: f64) -> String {
    if bytes_per_s.abs() < 1.0 {
        return "0".into();
    }
    format!("{}{}/s", if bytes_per_s > 0.0 { "+" } else { "" }, units::bytes(bytes_per_s))
}

fn finding_in_full(out: &mut String, finding: &Finding, style: &Style) -> fmt::Result {
    let head = format!("{:>2}  {}  {}", finding.rank, finding.verdict, escape(&finding.call_site.label()));
    writeln!(out, "\n{}", paint(style, "1", &head))?;
    if let (Some(file), Some(line)) = (&finding.call_site.file, finding.call_site.line) {
        labelled(out, "line", &format!("{}:{line}", escape(file)))?;
    }
    for (index, evidence) in finding.evidence.iter().enumerate() {
        labelled(out, if index == 0 { "why" } else { "" }, &escape(evidence))?;
    }
    let total: u64 = finding.tasks.iter().map(|task| task.objects).sum();
    if total > 0 {
        let tasks: Vec<_> = finding
            .tasks
            .iter()
            .take(4)
            .map(|task| {
                format!(
                    "{} ({}) {:.0} %",
                    escape(&task.comm),
                    task.pid,
                    task.objects as f64 / total as f64 * 100.0
                )
            })
            .collect();
        labelled(out, "who", &tasks.join(", "))?;
    }
    if let Some(stack) = finding.stacks.first() {
        let mut frames: Vec<_> =
            stack.frames.iter().take(FRAMES).map(|frame| escape(&frame.label()).into_owned()).collect();
        if stack.frames.len() > FRAMES {
            frames.push(format!("{} more", stack.frames.len() - FRAMES));
        }
        labelled(out, "stack", &frames.join(" < "))?;
        if finding.stacks.len() > 1 {
            labelled(out, "", &format!("and {}", units::plural(finding.stacks.len() - 1, "other stack")))?;
        }
    } else {
        labelled(
            out,
            "stack",
            "none was captured: the call site above is exact; more --overhead captures more",
        )?;
    }
    let next = match finding.verdict {
        "suspect" if finding.is_module => {
            format!("leaktrace --duration 5m --module {}", escape(&finding.module))
        }
        "suspect" => match finding.family {
            family @ ("page" | "vmalloc" | "percpu") => {
                format!("leaktrace --duration 5m --family {family} --overhead 5")
            }
            _ => format!("leaktrace --duration 5m --cache '{}' --overhead 5", escape(&finding.cache)),
        },
        "cache" => "echo 2 > /proc/sys/vm/drop_caches frees such objects if nothing holds them".to_owned(),
        _ => return Ok(()),
    };
    labelled(out, "next", &next)
}

fn modules(out: &mut String, report: &Report) -> fmt::Result {
    let loadable: Vec<_> = report.modules.iter().filter(|module| module.name != "vmlinux").take(8).collect();
    if loadable.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nModules that keep objects")?;
    for module in loadable {
        writeln!(
            out,
            "  {:<24} {:>10} {:>10} survive {:>14}",
            shorten(&escape(&module.name), 24),
            units::plural(module.findings, "site"),
            units::bytes(module.survivor_bytes as f64),
            growth(module.bytes_per_s)
        )?;
    }
    Ok(())
}

/// What watched modules left behind when they were removed.
fn unloads(out: &mut String, report: &Report) -> fmt::Result {
    for unload in &report.unloads {
        let (module, after) = (escape(&unload.module), units::seconds(unload.after_s));
        if unload.sites.is_empty() {
            writeln!(out, "\n{module} was removed after {after}, and left nothing that was traced.")?;
            continue;
        }
        writeln!(out, "\nLeft behind by {module}, removed after {after}")?;
        for site in &unload.sites {
            writeln!(
                out,
                "  {:<44} {:<18} {:>10} {:>10}",
                place(&site.function, 44),
                shorten(&escape(&site.cache), 18),
                units::count(site.left.objects),
                units::bytes(site.left.bytes as f64)
            )?;
        }
        if let Some(doubt) = &unload.doubt {
            paragraph(out, 2, &escape(doubt))?;
        }
    }
    Ok(())
}

fn caches(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let worth = |cache: &&Cache| style.verbose || grew(cache);
    let shown: Vec<_> = report.caches.iter().filter(worth).take(style.top).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["Caches that grew", "traced", "/proc/slabinfo", "", "merged with"]);
    for cache in shown {
        let change = cache.slabinfo.as_ref().map_or_else(
            || "-".to_owned(),
            |change| units::change(change.after as i64 - change.before as i64),
        );
        let aliases = match cache.aliases.as_slice() {
            [] => String::new(),
            [one] => escape(one).into_owned(),
            [one, rest @ ..] => format!("{} and {} more", escape(one), rest.len()),
        };
        table.add_row([
            shorten(&escape(&cache.name), 28),
            units::change(cache.traced.net),
            change,
            cache.agreement.to_owned(),
            shorten(&aliases, 28),
        ]);
    }
    align(&mut table, &[1, 2]);
    writeln!(out, "\n{}", trimmed(&table))?;
    paragraph(
        out,
        2,
        "slabinfo counts objects that are free but kept by a CPU (its slab, partial slabs and sheaves) as active: \
         both agree when they differ by no more than that.",
    )
}

/// Whether a cache grew by what was traced, or by more than that may be off.
fn grew(cache: &Cache) -> bool {
    let in_slabinfo = cache.slabinfo.is_some_and(|slabinfo| slabinfo.after > slabinfo.before);
    cache.traced.net > 0 || (in_slabinfo && !matches!(cache.agreement, "agrees" | "unchecked"))
}

fn coverage(out: &mut String, report: &Report) -> fmt::Result {
    writeln!(out, "\nNot seen")?;
    for spot in &report.coverage.blind_spots {
        let mut text = format!("{}: {}", escape(&spot.path), escape(&spot.effect));
        if !spot.caches.is_empty() {
            let names: Vec<_> = spot.caches.iter().take(6).map(|name| escape(name)).collect();
            let more = spot.caches.len().saturating_sub(6);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = write!(text, " (here: {}{more})", names.join(", "));
        }
        paragraph(out, 2, &text)?;
    }
    let lost = &report.coverage.lost;
    let text = format!(
        "Lost: {} events skipped by recursion, {} allocations without a place, {} events of sites without a place, \
         {} stacks without a place, {} stacks not captured; {} frees were noticed late.",
        units::count(lost.recursion_misses),
        units::count(lost.live_overflow),
        units::count(lost.site_overflow),
        units::count(lost.stack_overflow),
        units::count(lost.stacks_failed),
        units::count(lost.implicit_frees)
    );
    paragraph(out, 0, &text)
}

fn cost(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let overhead = &report.overhead;
    let programs = overhead.cpu_percent.map_or_else(
        || "not measured (the kernel would not say)".to_owned(),
        |percent| format!("{percent:.2} % of all CPUs in the kernel"),
    );
    let text = format!(
        "Cost: {programs}, {:.2} s of CPU time beside it in {}, {} of tables for {} objects.",
        overhead.user_space_cpu_s,
        units::seconds(report.window.duration_s),
        units::bytes(overhead.tables_kb as f64 * 1_024.0),
        units::count(overhead.max_objects)
    );
    paragraph(out, 0, &text)?;
    if style.verbose {
        for program in &overhead.programs {
            if let Some(ns) = program.ns_per_run {
                writeln!(
                    out,
                    "  {:<30} {ns:>6.0} ns per event, {} measured, {} missed",
                    program.name,
                    units::count(program.runs),
                    units::count(program.recursion_misses)
                )?;
            }
        }
        writeln!(
            out,
            "  slowest scan of the tables {:.1} ms, ranking {:.1} ms",
            overhead.slowest_scan_ms, overhead.ranking_ms
        )?;
    }
    Ok(())
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Aligns columns to the right, and the first with the text around the table.
fn align(table: &mut Table, right: &[usize]) {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table without the blanks that fill its lines.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn labelled(out: &mut String, label: &str, text: &str) -> fmt::Result {
    for (index, line) in wrap(text, WIDTH - INDENT).into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(out, "    {label:<5} {line}")?;
    }
    Ok(())
}

fn paint(style: &Style, code: &str, text: &str) -> String {
    if style.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
