//! One process in depth: `leaktrace triage --pid`.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::{
    model::{Process, Unreadable},
    tables::changed,
    text::{grown, kb},
};
use crate::{
    analysis::triage::Diagnosis,
    report::{
        columns::Columns,
        escape,
        page::{paragraph, shorten},
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

fn write(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    let process = &depth.process;
    let language = process.language.as_ref().map_or_else(String::new, |language| format!(", {language}"));
    let ended = if depth.ended { "; it has ended" } else { "" };
    let text = format!(
        "{} (pid {}, user {}{language}): {} of its own, {} resident, {} of address space, {} in page tables, {}, {}{ended}.",
        escape(&process.comm),
        process.pid,
        process.uid,
        kb(process.anon_kb as f64),
        kb(process.rss_kb as f64),
        kb(process.vsz_kb as f64),
        kb(process.page_tables_kb as f64),
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
    limits(out, depth, style)?;
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
    let rows = if style.verbose { usize::MAX } else { ROWS };
    let shown: Vec<_> = depth.segments.iter().take(rows).collect();
    let cells =
        |cell: &dyn Fn(&Segment) -> String| shown.iter().map(|segment| cell(segment)).collect::<Vec<_>>();
    let swap =
        |segment: &Segment| if segment.swap_kb == 0 { String::new() } else { kb(segment.swap_kb as f64) };
    let columns = Columns::default()
        .left(0, "Memory", cells(&|segment| shorten(&escape(&segment.name), 40)))
        .right(0, "resident", cells(&|segment| kb(segment.rss_kb as f64)))
        .right(0, "grown", cells(&|segment| grown(segment.grown_kb)))
        .right(0, "own", cells(&|segment| kb(segment.anon_kb as f64)))
        .right(3, "pss", cells(&|segment| kb(segment.pss_kb as f64)))
        .right(1, "swap", cells(&swap))
        .right(2, "mapped", cells(&|segment| kb(segment.size_kb as f64)))
        .right(1, "mappings", cells(&|segment| units::count(segment.mappings)))
        .right(1, "", cells(&|segment| changed(segment.mappings_grown)));
    writeln!(out, "\n{}", columns.lines(style.width))
}

fn files(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    if depth.files.is_empty() {
        return Ok(());
    }
    let example = |files: &Files| {
        let size = match files.bytes {
            0 => String::new(),
            bytes => format!("{} in memory or on disk  ", units::bytes(bytes as f64)),
        };
        format!("{size}{}", escape(&files.examples.join(" ")))
    };
    let cells = |cell: &dyn Fn(&Files) -> String| depth.files.iter().map(cell).collect::<Vec<_>>();
    let columns = Columns::default()
        .left(0, "Open files", cells(&|files| escape(&files.kind).into_owned()))
        .right(0, "", cells(&|files| units::count(files.count)))
        .right(1, "grown", cells(&|files| changed(files.grown)))
        .left(2, "for example", cells(&example));
    writeln!(out, "\n{}", columns.lines(style.width))?;
    if !depth.sockets.is_empty() {
        let list: Vec<_> =
            depth.sockets.iter().map(|(kind, count)| format!("{} {kind}", units::count(*count))).collect();
        paragraph(out, 2, style.width, &format!("Sockets: {}.", list.join(", ")))?;
    }
    Ok(())
}

fn limits(out: &mut String, depth: &InDepth, style: &Style) -> fmt::Result {
    let files = depth.limits.max_fds.map(|limit| format!("{} open files", units::count(limit)));
    let maps = depth.limits.max_maps.map(|limit| format!("{} mappings", units::count(limit)));
    let all: Vec<_> = files.into_iter().chain(maps).collect();
    if all.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    paragraph(out, 0, style.width, &format!("It may have {}.", all.join(" and ")))
}
