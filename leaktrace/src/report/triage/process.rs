//! One process in depth: `leaktrace triage --pid`.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::model::{Process, Unreadable};
use crate::{
    analysis::triage::Diagnosis,
    report::{
        escape,
        page::{paragraph, plain_table, right_aligned, shorten, trimmed},
        text::Style,
    },
    units,
};

/// Name and version of the schema.
pub const SCHEMA: &str = "leaktrace.triage.process/1";

/// A process in depth.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InDepth {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of leaktrace.
    pub tool_version: String,
    /// From the first look to the last.
    pub duration_s: f64,
    /// The process at the end.
    pub process: Process,
    /// Whether it ended before the last look.
    pub ended: bool,
    /// What grows in it.
    pub diagnosis: Vec<Diagnosis>,
    /// Its memory by segment, the largest growth first.
    pub segments: Vec<Segment>,
    /// Its open files by kind, the largest growth first.
    pub files: Vec<Files>,
    /// Its sockets by protocol and state.
    pub sockets: Vec<(String, u64)>,
    /// Its limits.
    pub limits: Limits,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// Mappings of one name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Segment {
    /// A file's path, `[heap]`, `[stack]`, `anonymous` ...
    pub name: String,
    /// Mappings.
    pub mappings: u64,
    /// Address space.
    pub size_kb: u64,
    /// Resident.
    pub rss_kb: u64,
    /// Resident, shared pages by parts.
    pub pss_kb: u64,
    /// Anonymous part of what is resident.
    pub anon_kb: u64,
    /// Swapped out.
    pub swap_kb: u64,
    /// Change of what is resident or swapped out.
    pub grown_kb: i64,
    /// Change of the number of mappings.
    pub mappings_grown: i64,
}

/// Open files of one kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// The kind.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// Change.
    pub grown: i64,
    /// What files without a name take.
    pub bytes: u64,
    /// Some names.
    pub examples: Vec<String>,
}

/// Limits of a process, where they could be read.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Files that it may open.
    pub max_fds: Option<u64>,
    /// Mappings that it may have.
    pub max_maps: Option<u64>,
}

/// Segments that are shown.
const ROWS: usize = 12;

/// Renders it.
pub fn render(process: &InDepth, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, process, style);
    out
}

fn kb(value: u64) -> String {
    units::bytes(value as f64 * 1_024.0)
}

fn grown(kb: i64) -> String {
    let bytes = units::bytes(kb as f64 * 1_024.0);
    match kb {
        0 => String::new(),
        _ if kb > 0 => format!("+{bytes}"),
        _ => bytes,
    }
}

fn changed(count: i64) -> String {
    if count == 0 { String::new() } else { units::change(count) }
}

fn write(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    let process = &depth.process;
    let language = process.language.as_ref().map_or_else(String::new, |language| format!(", {language}"));
    let ended = if depth.ended { "; it has ended" } else { "" };
    let text = format!(
        "{} (pid {}, user {}{language}): {} of its own, {} resident, {} of address space, {} in page tables, {}, {}{ended}.",
        escape(&process.comm),
        process.pid,
        process.uid,
        kb(process.anon_kb),
        kb(process.rss_kb),
        kb(process.vsz_kb),
        kb(process.page_tables_kb),
        units::plural(process.threads as usize, "thread"),
        process
            .fds
            .map_or_else(|| "open files not readable".into(), |fds| units::plural(fds as usize, "open file")),
    );
    paragraph(out, 0, style.width, &text)?;
    for (index, diagnosis) in depth.diagnosis.iter().enumerate() {
        writeln!(out)?;
        paragraph(out, 0, style.width, &format!("{}. {}", index + 1, escape(&diagnosis.text)))?;
        for next in &diagnosis.next {
            writeln!(out, "   next: {}", escape(next))?;
        }
    }
    segments(out, depth, style)?;
    files(out, depth, style)?;
    limits(out, depth)?;
    for item in &depth.unreadable {
        let text = format!("Not readable: {}: {}; {}", item.what, item.why, item.effect);
        paragraph(out, 0, style.width, &escape(&text))?;
    }
    Ok(())
}

fn segments(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    if depth.segments.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["Memory", "resident", "grown", "own", "pss", "swap", "mapped", "mappings", ""]);
    let rows = if style.verbose { usize::MAX } else { ROWS };
    for segment in depth.segments.iter().take(rows) {
        table.add_row([
            shorten(&escape(&segment.name), 40),
            kb(segment.rss_kb),
            grown(segment.grown_kb),
            kb(segment.anon_kb),
            kb(segment.pss_kb),
            kb(segment.swap_kb),
            kb(segment.size_kb),
            units::count(segment.mappings),
            changed(segment.mappings_grown),
        ]);
    }
    right_aligned(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let lines: Vec<_> = trimmed(&table).lines().map(|line| shorten(line, style.width)).collect();
    writeln!(out, "\n{}", lines.join("\n"))
}

fn files(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    if depth.files.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["Open files", "", "", "for example"]);
    for files in &depth.files {
        let size = if files.bytes > 0 {
            format!("{} in memory or on disk  ", units::bytes(files.bytes as f64))
        } else {
            String::new()
        };
        let examples = files.examples.join(" ");
        table.add_row([
            escape(&files.kind).into_owned(),
            units::count(files.count),
            changed(files.grown),
            format!("{size}{}", escape(&examples)),
        ]);
    }
    right_aligned(&mut table, &[1, 2]);
    let lines: Vec<_> = trimmed(&table).lines().map(|line| shorten(line, style.width)).collect();
    writeln!(out, "\n{}", lines.join("\n"))?;
    if !depth.sockets.is_empty() {
        let list: Vec<_> =
            depth.sockets.iter().map(|(kind, count)| format!("{} {kind}", units::count(*count))).collect();
        paragraph(out, 2, style.width, &format!("Sockets: {}.", list.join(", ")))?;
    }
    Ok(())
}

fn limits(out: &mut String, depth: &InDepth) -> fmt::Result {
    let files = depth.limits.max_fds.map(|limit| format!("{} open files", units::count(limit)));
    let maps = depth.limits.max_maps.map(|limit| format!("{} mappings", units::count(limit)));
    let all: Vec<_> = files.into_iter().chain(maps).collect();
    if all.is_empty() { Ok(()) } else { writeln!(out, "\nIt may have {}.", all.join(" and ")) }
}
