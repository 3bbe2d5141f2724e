//! The report for reading: the answer first, then the evidence, then what to run next.

use std::fmt::{self, Write as _};

use super::{
    columns::Columns,
    escape, findings,
    findings::place,
    kmemleak,
    model::{Account, Cache, LostReport, Module, Report},
    page::{WIDTH, paragraph, shorten, wrap},
    reach,
    unload::LeftSite,
};
use crate::units;

/// How to show it.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// With colours.
    pub colour: bool,
    /// With everything.
    pub verbose: bool,
    /// Findings and caches to show.
    pub top: usize,
    /// Columns.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self { colour: false, verbose: false, top: 10, width: WIDTH }
    }
}

/// Renders the report.
pub fn render(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, report, style);
    out
}

/// What was seen, missed, and what it cost.
pub fn coverage_and_cost(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = coverage(&mut out, report, style).and_then(|()| cost(&mut out, report, style));
    out
}

fn write_report(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    headline(out, report, style)?;
    if !report.findings.is_empty() {
        findings::write(out, report, style)?;
        modules(out, report, style)?;
    }
    unloads(out, report, style)?;
    caches(out, report, style)?;
    accounts(out, report, style)?;
    let kmemleak = kmemleak::render(report, style.width);
    if !kmemleak.is_empty() {
        write!(out, "\n{kmemleak}")?;
    }
    let reach = reach::render(report, style.width)?;
    if !reach.is_empty() {
        write!(out, "\n{reach}")?;
    }
    shake(out, report, style)?;
    coverage(out, report, style)?;
    cost(out, report, style)
}

/// Seconds by which a report has to be older than what is asked for to be told so.
const EARLIER: f64 = 1.0;

fn headline(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    for unload in report.unloads.iter().filter(|unload| unload.left.objects > 0) {
        let text = format!(
            "{} was removed after {} and left {} objects behind, {}.",
            escape(&unload.module),
            units::seconds(unload.after_s),
            units::count(unload.left.objects),
            units::bytes(unload.left.bytes as f64)
        );
        said(out, style, "1;31", &unload.verdict, &text)?;
    }
    let (colour, word) = match report.headline.verdict.as_ref() {
        "none" => ("1;32", "none"),
        "unknown" => ("1;33", "unknown"),
        word => ("1;31", word),
    };
    said(out, style, colour, word, &escape(&report.headline.text))?;
    if let Some(filters) = report.filters.in_words() {
        said(out, style, "0", "", &filters)?;
    }
    if report.coverage.sampling > 1 {
        let text = format!(
            "Sampled: 1 in {} addresses was tracked, and counts are scaled.",
            report.coverage.sampling
        );
        said(out, style, "0", "", &text)?;
    }
    if let Some(recorded) = &report.recorded {
        let mut text = format!(
            "From a recording: {} in {}, {} of {} sites.",
            units::plural(recorded.ticks as usize, "tick"),
            units::seconds(recorded.until_s),
            units::bytes(recorded.bytes as f64),
            units::count(recorded.sites)
        );
        if let Some(report_s) = recorded.report_s.filter(|report_s| report_s + EARLIER < recorded.until_s) {
            let _ = write!(text, " Its last report up to then is of {}.", units::seconds(report_s));
        }
        said(out, style, "0", "", &text)?;
        if let Some(damage) = &recorded.damage {
            said(out, style, "1;33", "damaged", &format!("Not readable: {}.", escape(damage)))?;
        }
    }
    Ok(())
}

/// A verdict in capitals, and a sentence whose later lines are set under its first.
fn said(out: &mut String, style: &Style, colour: &str, verdict: &str, text: &str) -> fmt::Result {
    let verdict = if verdict == "none" { "OK".to_owned() } else { escape(verdict).to_uppercase() };
    let text = wrap(text, style.width - 9).join("\n         ");
    writeln!(out, "{}", paint(style, colour, &format!("{verdict:<7}  {text}")))
}

fn modules(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let loadable: Vec<_> = report.modules.iter().filter(|module| module.name != "vmlinux").take(8).collect();
    if loadable.is_empty() {
        return Ok(());
    }
    let cells =
        |cell: &dyn Fn(&Module) -> String| loadable.iter().map(|module| cell(module)).collect::<Vec<_>>();
    let columns = Columns::default()
        .left(0, "Modules that keep objects", cells(&|module| shorten(&escape(&module.name), 24)))
        .right(2, "sites", cells(&|module| units::count(module.findings as u64)))
        .right(1, "surviving", cells(&|module| units::bytes(module.survivor_bytes as f64)))
        .right(0, "growth", cells(&|module| units::rate(module.bytes_per_s)));
    writeln!(out, "\n{}", columns.lines(style.width))
}

/// What watched modules left behind when they were removed.
fn unloads(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    for unload in &report.unloads {
        let (module, after) = (escape(&unload.module), units::seconds(unload.after_s));
        if unload.sites.is_empty() {
            writeln!(out)?;
            let text = format!("{module} was removed after {after}, and left nothing that was traced.");
            paragraph(out, 0, style.width, &text)?;
            continue;
        }
        writeln!(out)?;
        paragraph(out, 0, style.width, &format!("Left behind by {module}, removed after {after}"))?;
        let cells = |cell: &dyn Fn(&LeftSite) -> String| unload.sites.iter().map(cell).collect::<Vec<_>>();
        let columns = Columns::default()
            .place(0, "where", cells(&|site| place(&site.function, 44)))
            .left(2, "cache", cells(&|site| shorten(&escape(&site.cache), 18)))
            .right(1, "objects", cells(&|site| units::count(site.left.objects)))
            .right(0, "bytes", cells(&|site| units::bytes(site.left.bytes as f64)));
        indented(out, columns, style)?;
        if let Some(doubt) = &unload.doubt {
            paragraph(out, 2, style.width, &escape(doubt))?;
        }
    }
    Ok(())
}

/// A table that belongs to the line above it.
fn indented(out: &mut String, columns: Columns, style: &Style) -> fmt::Result {
    columns.lines(style.width - 2).lines().try_for_each(|line| writeln!(out, "  {line}"))
}

/// Growth of an account from which on it is told, in bytes.
const GREW: i64 = 64 << 10;

/// What grew in the kernel's own accounts.
fn accounts(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let grown = |account: &Account| account.bytes_after as i64 - account.bytes_before as i64;
    let shown = report.accounts.iter().filter(|account| style.verbose || grown(account) >= GREW);
    let shown: Vec<_> = shown.take(style.top).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let cells =
        |cell: &dyn Fn(&Account) -> String| shown.iter().map(|account| cell(account)).collect::<Vec<_>>();
    let columns = Columns::default()
        .left(0, "The kernel's own accounts", cells(&|account| shorten(&escape(&account.place), 60)))
        .right(0, "before", cells(&|account| units::bytes(account.bytes_before as f64)))
        .right(0, "after", cells(&|account| units::bytes(account.bytes_after as f64)));
    writeln!(out, "\n{}", columns.lines(style.width))
}

/// What went away when caches were dropped.
fn shake(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let Some(shake) = &report.shake else { return Ok(()) };
    writeln!(out)?;
    let text = format!(
        "Dropping dentries and inodes freed {} traced objects, {}",
        units::count(shake.freed.objects),
        units::bytes(shake.freed.bytes as f64)
    );
    paragraph(out, 0, style.width, &text)?;
    if shake.caches.is_empty() {
        return Ok(());
    }
    let shown = || shake.caches.iter().take(style.top.min(8));
    let columns = Columns::default()
        .left(0, "cache", shown().map(|cache| shorten(&escape(&cache.cache), 28)))
        .right(0, "freed", shown().map(|cache| units::count(cache.freed.objects)))
        .right(1, "of", shown().map(|cache| units::count(cache.before)))
        .right(2, "bytes", shown().map(|cache| units::bytes(cache.freed.bytes as f64)));
    indented(out, columns, style)
}

fn caches(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    let worth = |cache: &&Cache| style.verbose || grew(cache);
    let shown: Vec<_> = report.caches.iter().filter(worth).take(style.top).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let cells = |cell: &dyn Fn(&Cache) -> String| shown.iter().map(|cache| cell(cache)).collect::<Vec<_>>();
    let in_slabinfo = |cache: &Cache| {
        let change = cache.slabinfo.as_ref().map(|change| change.after as i64 - change.before as i64);
        change.map_or_else(|| "-".to_owned(), units::change)
    };
    let aliases = |cache: &Cache| match cache.aliases.as_slice() {
        [] => String::new(),
        [one] => escape(one).into_owned(),
        [one, rest @ ..] => format!("{} and {} more", escape(one), rest.len()),
    };
    let columns = Columns::default()
        .left(0, "Caches that grew", cells(&|cache| shorten(&escape(&cache.name), 28)))
        .right(0, "traced", cells(&|cache| units::change(cache.traced.net)))
        .right(0, "/proc/slabinfo", cells(&in_slabinfo))
        .left(1, "", cells(&|cache| escape(&cache.agreement).into_owned()))
        .left(2, "merged with", cells(&|cache| shorten(&aliases(cache), 28)));
    writeln!(out, "\n{}", columns.lines(style.width))?;
    paragraph(
        out,
        2,
        style.width,
        "slabinfo counts objects that are free but kept by a CPU (its slab, partial slabs and sheaves) as active: \
         both agree when they differ by no more than that.",
    )
}

/// Whether a cache grew by what was traced, or by more than that may be off.
fn grew(cache: &Cache) -> bool {
    let in_slabinfo = cache.slabinfo.is_some_and(|slabinfo| slabinfo.after > slabinfo.before);
    cache.traced.net > 0 || (in_slabinfo && !matches!(&*cache.agreement, "agrees" | "unchecked"))
}

fn coverage(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    writeln!(out, "\nNot seen")?;
    for spot in &report.coverage.blind_spots {
        let mut text = format!("{}: {}", escape(&spot.path), escape(&spot.effect));
        if !spot.caches.is_empty() {
            let names: Vec<_> = spot.caches.iter().take(6).map(|name| escape(name)).collect();
            let more = spot.caches.len().saturating_sub(6);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = write!(text, " (here: {}{more})", names.join(", "));
        }
        paragraph(out, 2, style.width, &text)?;
    }
    if report.is_of_ticks() {
        return Ok(());
    }
    let text = format!("Lost: {}.", lost(&report.coverage.lost));
    paragraph(out, 0, style.width, &text)
}

/// What was missed, and only that.
fn lost(lost: &LostReport) -> String {
    let told = |parts: &[(u64, &str)]| -> Vec<String> {
        let some = parts.iter().filter(|(number, _)| *number > 0);
        some.map(|(number, what)| format!("{} {what}", units::count(*number))).collect()
    };
    let mut parts = told(&[
        (lost.recursion_misses, "events while their program was busy"),
        (lost.stacks_failed, "stacks that the kernel could not capture"),
        (lost.implicit_frees, "frees, noticed when the address was allocated again"),
    ]);
    let full = told(&[
        (lost.live_overflow, "objects"),
        (lost.site_overflow, "events of call sites"),
        (lost.stack_overflow, "stacks"),
        (lost.callers, "frees' callers"),
        (lost.series, "callers' growth"),
    ]);
    if !full.is_empty() {
        parts.push(format!("table full: {}", full.join(", ")));
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") }
}

fn cost(out: &mut String, report: &Report, style: &Style) -> fmt::Result {
    if report.is_of_ticks() {
        return Ok(());
    }
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
    paragraph(out, 0, style.width, &text)?;
    if style.verbose {
        for program in &overhead.programs {
            if let Some(ns) = program.ns_per_run {
                let text = format!(
                    "{:<30} {ns:>6.0} ns per event, {} measured, {} missed",
                    escape(&program.name),
                    units::count(program.runs),
                    units::count(program.recursion_misses)
                );
                row(out, style.width, &text)?;
            }
        }
        let text = format!(
            "slowest scan of the tables {:.1} ms, ranking {:.1} ms",
            overhead.slowest_scan_ms, overhead.ranking_ms
        );
        row(out, style.width, &text)?;
    }
    Ok(())
}

/// A line whose parts stand under those of others; a paragraph where there is no room for that.
fn row(out: &mut String, width: usize, text: &str) -> fmt::Result {
    if text.chars().count() + 2 <= width {
        return writeln!(out, "  {text}");
    }
    paragraph(out, 2, width, &text.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub(super) fn paint(style: &Style, code: &str, text: &str) -> String {
    if style.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
