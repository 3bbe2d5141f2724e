//! A triage for reading: what it is, then where all memory is, then who has it.

use std::fmt::{self, Write as _};

use super::{
    model::{Row, Triage},
    tables,
};
use crate::{
    analysis::triage::Diagnosis,
    report::{
        columns::Columns,
        escape,
        page::{paragraph, wrap},
        text::{Style, paint},
    },
    units,
};

/// Characters of a full bar.
const BAR: usize = 8;
/// Smaller classes have no row of their own unless they grow: kB, and share of all memory.
const SMALL_KB: i64 = 256;
/// Change in kB from which growth per hour is told although it is not steady.
const MOVED_KB: i64 = 1_024;

/// Renders it.
pub fn render(triage: &Triage, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, triage, style);
    out
}

fn write(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    head(out, triage, style)?;
    for (index, diagnosis) in triage.diagnosis.iter().enumerate() {
        self::diagnosis(out, index + 1, diagnosis, style)?;
    }
    ledger(out, triage, style)?;
    tables::processes(out, triage, style)?;
    tables::caches(out, triage, style)?;
    tables::vmalloc(out, triage, style)?;
    tables::mounts(out, triage, style)?;
    tables::cgroups(out, triage, style)?;
    rest(out, triage, style)?;
    unreadable(out, triage, style)?;
    let cost = &triage.cost;
    let text = format!(
        "Cost: {:.2} s of CPU time, slowest look {:.0} ms, {} of memory at most.",
        cost.cpu_s,
        cost.slowest_look_ms,
        kb(cost.peak_rss_kb as f64)
    );
    writeln!(out)?;
    paragraph(out, 0, style.width, &text)
}

/// kB as people read them.
pub(super) fn kb(value: f64) -> String {
    units::bytes(value * 1_024.0)
}

/// Growth in kB, with its sign; nothing for none.
pub(super) fn grown(value: i64) -> String {
    match value {
        0 => String::new(),
        _ if value > 0 => format!("+{}", kb(value as f64)),
        _ => kb(value as f64),
    }
}

fn head(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let memory = &triage.memory;
    let share = memory.available_kb as f64 / memory.total_kb.max(1) as f64 * 100.0;
    let swap = match memory.swap_total_kb {
        0 => "no swap".to_owned(),
        total => format!("{} of {} of swap in use", kb(memory.swap_used_kb as f64), kb(total as f64)),
    };
    let looks = match triage.window.looks {
        1 => "one look".to_owned(),
        looks => format!("{looks} looks in {}", units::seconds(triage.window.duration_s)),
    };
    let text = format!(
        "{} of {} are available ({share:.0} %), {swap}; {} on {} ({}, {}).",
        kb(memory.available_kb as f64),
        kb(memory.total_kb as f64),
        looks,
        escape(&triage.kernel),
        escape(&triage.architecture),
        units::plural(triage.cpus as usize, "CPU")
    );
    paragraph(out, 0, style.width, &text)?;
    if triage.window.looks == 1 {
        // A row without growth would read as one that does not grow.
        paragraph(out, 0, style.width, "One look cannot show what grows: that takes a second one.")?;
    }
    Ok(())
}

fn diagnosis(out: &mut String, number: usize, diagnosis: &Diagnosis, style: &Style) -> fmt::Result {
    writeln!(out)?;
    let text = format!("{number}. {}", escape(&diagnosis.text));
    let lines = wrap(&text, style.width.saturating_sub(3));
    for (index, line) in lines.iter().enumerate() {
        let line = if index == 0 && diagnosis.grows { paint(style, "1", line) } else { line.clone() };
        writeln!(out, "{}{line}", if index == 0 { "" } else { "   " })?;
    }
    for next in &diagnosis.next {
        writeln!(out, "   {} {}", paint(style, "36", "next:"), escape(next))?;
    }
    Ok(())
}

fn ledger(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let total = triage.memory.total_kb.max(1) as f64;
    let is_shown = |row: &&Row| {
        style.verbose || row.after_kb.abs().max(row.before_kb.abs()) >= SMALL_KB || row.class == "unaccounted"
    };
    let all = triage.ledger.iter().fold((0, 0), |sum, row| (sum.0 + row.before_kb, sum.1 + row.after_kb));
    let all = Row {
        title: "all".into(),
        before_kb: all.0,
        after_kb: all.1,
        source: "MemTotal".into(),
        ..Row::default()
    };
    let rows: Vec<&Row> = triage.ledger.iter().filter(is_shown).chain([&all]).collect();
    let cells = |cell: &dyn Fn(&Row) -> String| rows.iter().map(|row| cell(row)).collect::<Vec<_>>();
    let share = |row: &Row| row.after_kb as f64 / total;
    let mut columns = Columns::default()
        .left(0, "Where memory is", cells(&|row| row.title.clone()))
        .left(1, "", cells(&|row| if row.title == "all" { String::new() } else { bar(share(row)) }))
        .right(0, "", cells(&|row| kb(row.after_kb as f64)))
        // Adding zero takes the sign of a negative one.
        .right(0, "share", cells(&|row| format!("{:.1} %", (share(row) * 1e3).round() / 10.0 + 0.0)));
    if triage.window.looks > 1 {
        columns = columns.right(2, "before", cells(&|row| kb(row.before_kb as f64))).right(
            0,
            "per hour",
            cells(&per_hour),
        );
    }
    let columns = columns.left(0, "from", cells(&|row| row.source.clone()));
    writeln!(out, "\n{}", columns.lines(style.width))?;
    let small: i64 = triage.ledger.iter().filter(|row| !is_shown(row)).map(|row| row.after_kb).sum();
    let small = if small > 0 {
        format!(" Smaller ones, left out here, have {}.", kb(small as f64))
    } else {
        String::new()
    };
    let text = format!("What it is from are lines of /proc/meminfo, unless another file is named.{small}");
    paragraph(out, 2, style.width, &text)
}

/// Growth per hour, of what changed by more than counters do by themselves.
fn per_hour(row: &Row) -> String {
    let moved = (row.after_kb - row.before_kb).abs() >= MOVED_KB;
    if moved || row.steady { grown(row.kb_per_hour as i64) } else { String::new() }
}

/// A bar for a share of one.
fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let mut bar = "\u{2588}".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.extend(char::from_u32(0x2590 - (eighths % 8) as u32));
    }
    bar
}

/// What is worth a line only where it is there.
fn rest(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let mut lines = Vec::new();
    for area in &triage.swap {
        lines.push(format!(
            "swap {}: {} of {} in use",
            area.path,
            kb(area.used_kb as f64),
            kb(area.size_kb as f64)
        ));
    }
    for zram in &triage.zram {
        lines.push(format!(
            "{}: {} stored in {}",
            zram.name,
            kb(zram.stored_kb as f64),
            kb(zram.memory_kb as f64)
        ));
    }
    for pool in triage.huge_pages.iter().filter(|pool| pool.pages > 0) {
        let (pages, free) = (units::count(pool.pages), units::count(pool.free));
        lines.push(format!("huge pages of {}: {pages}, {free} of them free", kb(pool.page_kb as f64)));
    }
    for place in triage.places.iter().take(tables::rows(style)) {
        let change = if place.bytes_grown == 0 {
            String::new()
        } else {
            format!(", {}", grown(place.bytes_grown / 1_024))
        };
        lines.push(format!("{}: {}{change}", place.place, units::bytes(place.bytes as f64)));
    }
    if style.verbose {
        for protocol in &triage.protocols {
            let buffers = protocol
                .buffers_kb
                .map_or_else(String::new, |size| format!(", {} of buffers", kb(size as f64)));
            lines.push(format!(
                "{}: {}{buffers}",
                protocol.name,
                units::plural(protocol.sockets as usize, "socket")
            ));
        }
        for module in &triage.modules {
            lines.push(format!("module {}: {}", module.name, units::bytes(module.bytes as f64)));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nBesides")?;
    for line in lines {
        paragraph(out, 2, style.width, &escape(&line))?;
    }
    Ok(())
}

fn unreadable(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    if triage.unreadable.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nNot readable")?;
    for item in &triage.unreadable {
        let text = format!("{}: {}; {}", item.what, item.why, item.effect);
        paragraph(out, 2, style.width, &escape(&text))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
