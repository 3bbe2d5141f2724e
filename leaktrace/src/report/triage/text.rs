//! A triage for reading: what it is, then where all memory is, then who has it.

use std::fmt::{self, Write as _};

use comfy_table::Table;

use super::model::{Row, Triage};
use crate::{
    analysis::triage::Diagnosis,
    report::{
        escape,
        page::{paragraph, plain_table, right_aligned, shorten, trimmed, wrap},
        text::{Style, paint},
    },
    units,
};

/// Characters of a full bar.
const BAR: usize = 10;
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
    processes(out, triage, style)?;
    caches(out, triage, style)?;
    vmalloc(out, triage, style)?;
    mounts(out, triage, style)?;
    cgroups(out, triage, style)?;
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

fn kb(value: f64) -> String {
    units::bytes(value * 1_024.0)
}

/// Growth in kB, with its sign; nothing for none.
fn grown(value: i64) -> String {
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
    paragraph(out, 0, style.width, &text)
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
    let moved = triage.window.looks > 1;
    let mut table = plain_table();
    let mut header = vec!["Where memory is", "", "", "share"];
    if moved {
        header.extend(["before", "per hour"]);
    }
    header.push("from");
    table.set_header(&header);
    let total = triage.memory.total_kb.max(1) as f64;
    let shown = |row: &&Row| {
        style.verbose || row.after_kb.abs().max(row.before_kb.abs()) >= SMALL_KB || row.class == "unaccounted"
    };
    let small: i64 = triage.ledger.iter().filter(|row| !shown(row)).map(|row| row.after_kb).sum();
    let (before, after) =
        triage.ledger.iter().fold((0, 0), |sum, row| (sum.0 + row.before_kb, sum.1 + row.after_kb));
    for row in triage.ledger.iter().filter(shown) {
        let share = row.after_kb as f64 / total;
        let mut cells =
            vec![row.title.clone(), bar(share), kb(row.after_kb as f64), format!("{:.1} %", share * 100.0)];
        if moved {
            cells.extend([kb(row.before_kb as f64), per_hour(row)]);
        }
        cells.push(row.source.clone());
        table.add_row(cells);
    }
    let mut sum = vec![
        "all".to_owned(),
        String::new(),
        kb(after as f64),
        format!("{:.1} %", after as f64 / total * 100.0),
    ];
    if moved {
        sum.extend([kb(before as f64), String::new()]);
    }
    sum.push("MemTotal".into());
    table.add_row(sum);
    right_aligned(&mut table, if moved { &[2, 3, 4, 5] } else { &[2, 3] });
    writeln!(out, "\n{}", fitted(&table, style.width))?;
    let small = if small > 0 {
        format!(" Smaller ones, left out here, have {}.", kb(small as f64))
    } else {
        String::new()
    };
    paragraph(
        out,
        2,
        style.width,
        &format!("What it is from are lines of /proc/meminfo, unless another file is named.{small}"),
    )
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

/// The table's lines, cut to the page.
fn fitted(table: &Table, width: usize) -> String {
    trimmed(table).lines().map(|line| shorten(line, width)).collect::<Vec<_>>().join("\n")
}

/// The rows of a list that are shown.
fn rows(style: &Style) -> usize {
    if style.verbose { usize::MAX } else { style.top }
}

fn processes(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let shown: Vec<_> = triage
        .processes
        .iter()
        .filter(|process| process.rss_kb + process.swap_kb > 0)
        .take(rows(style))
        .collect();
    let swapped = style.verbose || shown.iter().any(|process| process.swap_kb > 0);
    let title = format!("{} processes", units::count(triage.process_count as u64));
    let mut header = vec![title.as_str(), "pid", "own", "grown", "shared"];
    header.extend(swapped.then_some("swap"));
    header.push("rss");
    header.extend(style.verbose.then_some("pss"));
    header.extend(["tables", "threads", "files", ""]);
    let mut table = plain_table();
    table.set_header(&header);
    for process in shown {
        let mut cells = vec![
            shorten(&escape(&process.comm), 20),
            process.pid.to_string(),
            kb(process.anon_kb as f64),
            grown(process.anon_grown_kb),
            kb(process.shmem_kb as f64),
        ];
        cells.extend(swapped.then(|| kb(process.swap_kb as f64)));
        cells.push(kb(process.rss_kb as f64));
        cells.extend(style.verbose.then(|| process.pss_kb.map_or_else(|| "-".into(), |pss| kb(pss as f64))));
        cells.extend([
            kb(process.page_tables_kb as f64),
            process.threads.to_string(),
            process.fds.map_or_else(|| "-".into(), |fds| units::count(fds.into())),
            if process.fds_grown == 0 { String::new() } else { units::change(process.fds_grown) },
        ]);
        table.add_row(cells);
    }
    right_aligned(&mut table, &(1..header.len()).collect::<Vec<_>>());
    writeln!(out, "\n{}", fitted(&table, style.width))?;
    let several: Vec<_> = triage.process_names.iter().filter(|name| name.processes > 1).take(4).collect();
    if !several.is_empty() {
        let list: Vec<String> = several
            .iter()
            .map(|name| format!("{} {} {}", name.processes, escape(&name.comm), kb(name.anon_kb as f64)))
            .collect();
        paragraph(out, 2, style.width, &format!("Together: {}.", list.join(", ")))?;
    }
    Ok(())
}

fn caches(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    if triage.caches.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["Slab caches", "memory", "objects", "size", "grown", "what for"]);
    for cache in triage.caches.iter().take(rows(style)) {
        let mut what = cache.purpose.clone().unwrap_or_default();
        if let Some(module) = &cache.module {
            what = format!("module {}{}{what}", escape(module), if what.is_empty() { "" } else { ": " });
        }
        if cache.reclaimable == Some(true) {
            what += if what.is_empty() { "reclaimable" } else { "; reclaimable" };
        }
        table.add_row([
            shorten(&escape(&cache.name), 24),
            kb(cache.kb as f64),
            units::count(cache.objects),
            cache.object_size.to_string(),
            grown(cache.grown_kb),
            what,
        ]);
    }
    right_aligned(&mut table, &[1, 2, 3, 4]);
    writeln!(out, "\n{}", fitted(&table, style.width))
}

fn vmalloc(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let shown: Vec<_> = triage.vmalloc.iter().filter(|caller| caller.kb > 0).take(rows(style)).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["vmalloc by caller", "memory", "areas", "grown"]);
    for caller in shown {
        table.add_row([
            shorten(&escape(&caller.caller), 48),
            kb(caller.kb as f64),
            units::count(caller.areas),
            grown(caller.grown_kb),
        ]);
    }
    right_aligned(&mut table, &[1, 2, 3]);
    writeln!(out, "\n{}", fitted(&table, style.width))
}

fn mounts(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let shown: Vec<_> = triage.mounts.iter().filter(|mount| mount.used_kb > 0).take(rows(style)).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["Files in memory", "", "used", "of", "grown"]);
    for mount in shown {
        table.add_row([
            shorten(&escape(&mount.path), 44),
            escape(&mount.kind).into_owned(),
            kb(mount.used_kb as f64),
            if mount.limit_kb == 0 { "no limit".into() } else { kb(mount.limit_kb as f64) },
            grown(mount.grown_kb),
        ]);
    }
    right_aligned(&mut table, &[2, 3, 4]);
    writeln!(out, "\n{}", fitted(&table, style.width))
}

fn cgroups(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    if triage.cgroups.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header([
        "Control groups",
        "memory",
        "limit",
        "processes",
        "files",
        "kernel",
        "grown",
        "killed",
    ]);
    for group in triage.cgroups.iter().take(rows(style)) {
        table.add_row([
            shorten(&escape(&group.path), 40),
            kb(group.used_kb as f64),
            group.limit_kb.map_or_else(|| "-".into(), |limit| kb(limit as f64)),
            kb(group.anon_kb as f64),
            kb(group.file_kb as f64),
            kb(group.kernel_kb as f64),
            grown(group.grown_kb),
            if group.oom_kills == 0 { String::new() } else { units::count(group.oom_kills) },
        ]);
    }
    right_aligned(&mut table, &[1, 2, 3, 4, 5, 6, 7]);
    writeln!(out, "\n{}", fitted(&table, style.width))
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
    for place in triage.places.iter().take(rows(style)) {
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
        writeln!(out, "  {}", shorten(&escape(&line), style.width - 2))?;
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
