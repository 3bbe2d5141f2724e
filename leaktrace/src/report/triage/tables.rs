//! The lists of a triage: processes, slab caches, vmalloc, file systems in memory, control groups.

use std::fmt::{self, Write as _};

use super::{
    model::{Cache, Triage},
    text::{grown, kb},
};
use crate::{
    report::{
        columns::Columns,
        escape,
        page::{paragraph, shorten},
        text::Style,
    },
    units,
};

/// The rows of a list that are shown.
pub(super) fn rows(style: &Style) -> usize {
    if style.verbose { usize::MAX } else { style.top }
}

/// Cells of a column.
fn cells<T>(rows: &[&T], cell: impl Fn(&T) -> String) -> Vec<String> {
    rows.iter().map(|row| cell(row)).collect()
}

/// Nothing for a change of nothing.
pub(super) fn changed(change: i64) -> String {
    if change == 0 { String::new() } else { units::change(change) }
}

/// Nothing for none.
fn unless_zero(kb_or_nothing: u64) -> String {
    if kb_or_nothing == 0 { String::new() } else { kb(kb_or_nothing as f64) }
}

pub(super) fn processes(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let has_memory = triage.processes.iter().filter(|process| process.rss_kb + process.swap_kb > 0);
    let shown: Vec<_> = has_memory.take(rows(style)).collect();
    let title = format!("{} processes", units::count(triage.process_count as u64));
    let pss = |pss: Option<u64>| {
        if style.verbose { pss.map_or_else(|| "-".into(), |pss| kb(pss as f64)) } else { String::new() }
    };
    let columns = Columns::default()
        .left(0, &title, cells(&shown, |process| shorten(&escape(&process.comm), 20)))
        .right(0, "pid", cells(&shown, |process| process.pid.to_string()))
        .right(0, "own", cells(&shown, |process| kb(process.anon_kb as f64)))
        .right(1, "grown", cells(&shown, |process| grown(process.anon_grown_kb)))
        .right(5, "shared", cells(&shown, |process| unless_zero(process.shmem_kb)))
        .right(2, "swap", cells(&shown, |process| unless_zero(process.swap_kb)))
        .right(4, "rss", cells(&shown, |process| kb(process.rss_kb as f64)))
        .right(3, "pss", cells(&shown, |process| pss(process.pss_kb)))
        .right(6, "tables", cells(&shown, |process| kb(process.page_tables_kb as f64)))
        .right(3, "threads", cells(&shown, |process| process.threads.to_string()))
        .right(
            1,
            "files",
            cells(&shown, |process| process.fds.map_or_else(|| "-".into(), |fds| units::count(fds.into()))),
        )
        .right(1, "", cells(&shown, |process| changed(process.fds_grown)));
    writeln!(out, "\n{}", columns.lines(style.width))?;
    let several: Vec<String> = triage
        .process_names
        .iter()
        .filter(|name| name.processes > 1)
        .take(4)
        .map(|name| format!("{} {} {}", name.processes, escape(&name.comm), kb(name.anon_kb as f64)))
        .collect();
    if several.is_empty() {
        return Ok(());
    }
    paragraph(out, 2, style.width, &format!("Together: {}.", several.join(", ")))
}

/// What a cache is, in few words.
fn what(cache: &Cache) -> String {
    let mut parts = Vec::new();
    if let Some(module) = &cache.module {
        parts.push(format!("module {}", escape(module)));
    }
    parts.extend(cache.purpose.clone());
    if let [first, rest @ ..] = cache.merged_with.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        parts.push(format!("merged with {}{more}", escape(first)));
    }
    if cache.reclaimable == Some(true) {
        parts.push("reclaimable".into());
    }
    parts.join("; ")
}

pub(super) fn caches(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    if triage.caches.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = triage.caches.iter().take(rows(style)).collect();
    let columns = Columns::default()
        .left(0, "Slab caches", cells(&shown, |cache| shorten(&escape(&cache.name), 24)))
        .right(0, "memory", cells(&shown, |cache| kb(cache.kb as f64)))
        .right(0, "objects", cells(&shown, |cache| units::count(cache.objects)))
        .right(0, "grown", cells(&shown, |cache| grown(cache.grown_kb)))
        .right(0, "size", cells(&shown, |cache| cache.object_size.to_string()))
        .left(0, "what for", cells(&shown, what));
    writeln!(out, "\n{}", columns.lines(style.width))
}

pub(super) fn vmalloc(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let shown: Vec<_> = triage.vmalloc.iter().filter(|caller| caller.kb > 0).take(rows(style)).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let columns = Columns::default()
        .left(0, "vmalloc by caller", cells(&shown, |caller| shorten(&escape(&caller.caller), 48)))
        .right(0, "memory", cells(&shown, |caller| kb(caller.kb as f64)))
        .right(0, "areas", cells(&shown, |caller| units::count(caller.areas)))
        .right(1, "grown", cells(&shown, |caller| grown(caller.grown_kb)));
    writeln!(out, "\n{}", columns.lines(style.width))
}

pub(super) fn mounts(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    let shown: Vec<_> = triage.mounts.iter().filter(|mount| mount.used_kb > 0).take(rows(style)).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let limit = |kb_or_none: u64| if kb_or_none == 0 { "no limit".into() } else { kb(kb_or_none as f64) };
    let columns = Columns::default()
        .left(0, "Files in memory", cells(&shown, |mount| shorten(&escape(&mount.path), 44)))
        .left(2, "", cells(&shown, |mount| escape(&mount.kind).into_owned()))
        .right(0, "used", cells(&shown, |mount| kb(mount.used_kb as f64)))
        .right(0, "of", cells(&shown, |mount| limit(mount.limit_kb)))
        .right(1, "grown", cells(&shown, |mount| grown(mount.grown_kb)));
    writeln!(out, "\n{}", columns.lines(style.width))
}

pub(super) fn cgroups(out: &mut String, triage: &Triage, style: &Style) -> fmt::Result {
    if triage.cgroups.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = triage.cgroups.iter().take(rows(style)).collect();
    let killed = |times: u64| if times == 0 { String::new() } else { units::count(times) };
    let limit = |limit: Option<u64>| limit.map_or_else(String::new, |limit| kb(limit as f64));
    let columns = Columns::default()
        .left(0, "Control groups", cells(&shown, |group| shorten(&escape(&group.path), 40)))
        .right(0, "memory", cells(&shown, |group| kb(group.used_kb as f64)))
        .right(1, "limit", cells(&shown, |group| limit(group.limit_kb)))
        .right(0, "processes", cells(&shown, |group| kb(group.anon_kb as f64)))
        .right(3, "files", cells(&shown, |group| kb(group.file_kb as f64)))
        .right(2, "kernel", cells(&shown, |group| kb(group.kernel_kb as f64)))
        .right(1, "grown", cells(&shown, |group| grown(group.grown_kb)))
        .right(1, "killed", cells(&shown, |group| killed(group.oom_kills)));
    writeln!(out, "\n{}", columns.lines(style.width))
}
