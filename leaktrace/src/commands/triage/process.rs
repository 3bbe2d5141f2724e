//! `leaktrace triage --pid`: one process in depth.

use std::{collections::BTreeMap, io, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{assemble, depth, look};
use crate::{
    analysis::triage::{Details, Diagnosis, Identity, Look, Observation, growing, ledger::Class},
    proc::{
        fds::{self, OpenFiles},
        maps::{self, Segments},
        status::{Found, Reader},
    },
    report::triage::{model::Unreadable, process as report},
};

/// A process that is looked at several times.
pub(super) struct Subject {
    root: std::path::PathBuf,
    pid: u32,
    reader: Reader,
    seen: Observation,
    segments: Option<(Segments, Segments)>,
    files: Option<(OpenFiles, OpenFiles)>,
    unreadable: Vec<Unreadable>,
    ended: bool,
}

impl Subject {
    /// Takes the first look.
    ///
    /// # Errors
    /// When there is no such process.
    pub(super) fn new(root: &Path, pid: u32) -> Result<Self> {
        let mut reader = Reader::new(root);
        let found = match reader.one(pid) {
            Ok(Some(found)) => found,
            Ok(None) => bail!("there is no process {pid}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("there is no process {pid}"),
            Err(error) => return Err(error).with_context(|| format!("cannot read process {pid}")),
        };
        let mut subject = Self {
            root: root.to_owned(),
            pid,
            reader,
            seen: Observation { page_kb: look::page_kb(), ..Observation::default() },
            segments: None,
            files: None,
            unreadable: Vec::new(),
            ended: false,
        };
        subject.add(&found, 0.0);
        subject.segments = subject
            .read(maps::segments(root, pid), "smaps", "its segments are missing")
            .map(|segments| (segments.clone(), segments));
        subject.files = subject
            .read(fds::read(root, pid), "fd", "its open files are missing")
            .map(|files| (files.clone(), files));
        Ok(subject)
    }

    fn read<T>(&mut self, result: io::Result<T>, file: &str, effect: &str) -> Option<T> {
        result
            .map_err(|error| {
                self.unreadable.push(Unreadable {
                    what: format!("/proc/{}/{file}", self.pid),
                    why: look::why(&error.into()),
                    effect: effect.into(),
                });
            })
            .ok()
    }

    fn add(&mut self, found: &Found, at_s: f64) {
        let status = &found.status;
        // Growth of page tables is only spoken of where all of them grow; here there are no others.
        let levels =
            vec![(Class::PageTables, status.page_tables_kb as i64), (Class::Shmem, status.shmem_kb as i64)];
        let processes = vec![look::process(found)];
        self.seen.looks.push(Look { at_s, levels, processes, ..Look::default() });
        let identity =
            Identity { comm: status.comm.clone(), uid: status.uid, ppid: status.ppid, state: status.state };
        self.seen.names.insert(self.pid, identity);
    }

    /// Takes another look; false when the process has ended.
    pub(super) fn look(&mut self, at_s: f64) -> bool {
        match self.reader.one(self.pid) {
            Ok(Some(found)) => self.add(&found, at_s),
            _ => self.ended = true,
        }
        !self.ended
    }

    /// Takes the last look in depth, and puts the answer together.
    pub(super) fn answer(mut self) -> report::InDepth {
        let (root, pid) = (self.root.clone(), self.pid);
        if let (Some(segments), Ok(now)) = (&mut self.segments, maps::segments(&root, pid)) {
            segments.1 = now;
        }
        if let (Some(files), Ok(now)) = (&mut self.files, fds::read(&root, pid)) {
            files.1 = now;
        }
        let sockets = self.files.as_ref().map(|(_, files)| fds::socket_kinds(&root, pid, &files.sockets));
        let details = Details {
            program: maps::program(&root, pid).ok().filter(|program| program.mappings > 0),
            files_before: self.files.as_ref().map(|(before, _)| before.clone()),
            files: self.files.as_ref().map(|(_, after)| after.clone()),
            sockets: sockets.clone().unwrap_or_default(),
            pss_kb: maps::pss_kb(&root, pid).ok(),
            max_fds: depth::max_fds(&root, pid),
        };
        let max_fds = details.max_fds;
        self.seen.details.insert(pid, details);
        let process = self.seen.last().processes[0];
        let before = self.seen.first().processes[0];
        let anon_grown = i64::from(process.anon_kb) - i64::from(before.anon_kb);
        let fds_grown = i64::from(process.fds.unwrap_or(0)) - i64::from(before.fds.unwrap_or(0));
        report::InDepth {
            schema: report::SCHEMA.into(),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            duration_s: self.seen.duration_s(),
            process: assemble::row(&self.seen, &process, anon_grown, fds_grown),
            ended: self.ended,
            diagnosis: diagnosis(&self.seen),
            segments: self
                .segments
                .as_ref()
                .map(|(before, after)| segments(before, after))
                .unwrap_or_default(),
            files: self.files.as_ref().map(|(before, after)| files(before, after)).unwrap_or_default(),
            sockets: sockets.unwrap_or_default().into_iter().collect(),
            limits: report::Limits { max_fds, max_maps: max_maps(&root) },
            unreadable: self.unreadable,
        }
    }
}

/// What grows, without the advice to look at this process.
fn diagnosis(seen: &Observation) -> Vec<Diagnosis> {
    let mut growing = growing::of_one(seen);
    for diagnosis in &mut growing {
        diagnosis.next.retain(|next| !next.starts_with("leaktrace triage --pid"));
    }
    growing
}

fn max_maps(root: &Path) -> Option<u64> {
    std::fs::read_to_string(root.join("proc/sys/vm/max_map_count")).ok()?.trim().parse().ok()
}

fn segments(before: &Segments, after: &Segments) -> Vec<report::Segment> {
    let held = |segment: &maps::Segment| (segment.rss_kb + segment.swap_kb) as i64;
    let mut rows: Vec<_> = after
        .iter()
        .map(|(name, segment)| {
            let before = before.get(name).copied().unwrap_or_default();
            report::Segment {
                name: name.clone(),
                mappings: segment.mappings,
                size_kb: segment.size_kb,
                rss_kb: segment.rss_kb,
                pss_kb: segment.pss_kb,
                anon_kb: segment.anon_kb,
                swap_kb: segment.swap_kb,
                grown_kb: held(segment) - held(&before),
                mappings_grown: segment.mappings as i64 - before.mappings as i64,
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse((row.grown_kb.max(0), row.rss_kb)));
    rows
}

fn files(before: &OpenFiles, after: &OpenFiles) -> Vec<report::Files> {
    let kinds: BTreeMap<_, _> = before.kinds.iter().map(|(kind, files)| (kind, files.count)).collect();
    let mut rows: Vec<_> = after
        .kinds
        .iter()
        .map(|(kind, files)| report::Files {
            kind: kind.clone(),
            count: files.count,
            grown: files.count as i64 - kinds.get(kind).map_or(0, |&count| count as i64),
            bytes: files.bytes,
            examples: files.examples.clone(),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse((row.grown.max(0), row.count)));
    rows
}
