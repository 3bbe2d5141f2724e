//! Reading a recording, which may have been cut off or damaged, or be of somebody who means harm.

use std::path::Path;

use anyhow::{Result, bail};
use rustc_hash::FxHashMap;

use super::{
    format::{Block, Header, Site, Ticks},
    frames::{Frames, Part},
    gaps::Gaps,
    older, ticks,
};
use crate::{
    report::{
        model::{Recorded, Report},
        plausible,
    },
    tracer::Series,
    units,
};

/// Sites that are kept in mind, four times as many as a trace has, and bytes of their names.
const MOST_SITES: usize = 1 << 16;
const MOST_NAMES: usize = 64 << 20;
/// Ticks of a block.
const MOST_TICKS: usize = 100_000;

/// How a site's live objects went.
#[derive(Default)]
pub(super) struct Course {
    /// At each tick, in bounded memory.
    pub(super) live: Series,
    /// At the first tick that is known of, and at the last one.
    pub(super) first: i64,
    pub(super) last: i64,
    /// Allocations up to the last tick, or a few ticks after it.
    pub(super) allocated: u64,
}

/// What was read so far.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) header: Option<Header>,
    pub(super) sites: FxHashMap<u32, Site>,
    /// Bytes of their names.
    names: usize,
    pub(super) courses: FxHashMap<u32, Course>,
    pub(super) available: Series,
    pub(super) ticks: u64,
    /// The first tick, whether wanted or not, and the last one, in milliseconds since the start.
    pub(super) first_ms: Option<u64>,
    pub(super) last_ms: u64,
    /// Since when sites grew: 0, or the first tick where what was before is lost.
    pub(super) base_ms: u64,
    blocks: u64,
    bytes: u64,
    /// The last report that is wanted, packed as JSON, and the tick that it is of.
    report: Vec<u8>,
    report_ms: u64,
    reports: u64,
    gaps: Gaps,
}

/// Reads the last report of a recording, or the last one up to so many seconds after its start, and what became of the
/// sites of its findings at every tick until then. Where there is no report yet, the ticks alone are told.
///
/// # Errors
/// When the file cannot be read, is no recording of this version, has nothing that early, or has numbers that cannot be.
pub fn read(path: &Path, at_s: Option<f64>) -> Result<Report> {
    let name = path.display();
    let until_ms = at_s.map_or(u64::MAX, |seconds| (seconds * 1e3) as u64);
    let mut reading = Reading::default();
    let before = older(path);
    let frames = Frames::open(path)?;
    let begins = frames.begins;
    if let Some(header) = first_header(frames)
        && header.part > 0
        && Frames::open(&before).ok().and_then(first_header).is_some_and(|other| precedes(&other, &header))
    {
        reading.file(&before, until_ms)?;
    }
    reading.file(path, until_ms)?;
    reading.last_ms = reading.last_ms.min(until_ms);
    if reading.blocks == 0 {
        if begins {
            bail!(
                "nothing in {name} is whole: it is a recording that was cut off or damaged at its beginning"
            );
        }
        bail!("{name} is no recording");
    }
    let mut report = if !reading.report.is_empty() {
        plausible::parse(&reading.report, &format!("the report in {name}"))?
    } else if reading.ticks > 0 {
        ticks::report(&reading)
    } else {
        match reading.first_ms {
            Some(first) => {
                let first = units::seconds(first as f64 / 1e3);
                bail!("{name} has nothing that early: its first tick is {first} after the start");
            }
            None => bail!("{name} has no tick and no report: it ended before the first one was written"),
        }
    };
    reading.attach(&mut report);
    // Ticks may have been edited, too.
    plausible::check_report(&report, &name.to_string())?;
    Ok(report)
}

/// Whether a file is the one that was full before the other was begun.
fn precedes(older: &Header, newer: &Header) -> bool {
    (&older.started, &older.boot_id, older.part + 1) == (&newer.started, &newer.boot_id, newer.part)
}

/// The first header of a file, which reports have as well: the file's own may be damaged.
fn first_header(mut frames: Frames) -> Option<Header> {
    frames.find_map(|part| match part {
        Part::Block(block) => block.header,
        Part::Gap(_) => None,
    })
}

impl Reading {
    /// Reads a file up to a moment.
    fn file(&mut self, path: &Path, until_ms: u64) -> Result<()> {
        let mut frames = Frames::open(path)?;
        for part in frames.by_ref() {
            match part {
                Part::Block(block) => {
                    if !self.block(*block, until_ms) {
                        break;
                    }
                }
                // What comes later takes nothing away.
                Part::Gap(hole) if self.last_ms < until_ms => self.gaps.add(path, hole, self.last_ms),
                Part::Gap(_) => {}
            }
        }
        self.bytes += frames.read;
        Ok(())
    }

    /// Takes a block; whether the next one may be wanted.
    fn block(&mut self, block: Block, until_ms: u64) -> bool {
        self.blocks += 1;
        if let Some(header) = block.header {
            self.header = Some(header);
        }
        for site in block.sites {
            let size =
                |site: &Site| site.family.len() + site.cache.len() + site.symbol.len() + site.module.len();
            let old = self.sites.get(&site.id).map(size);
            let names = self.names - old.unwrap_or(0) + size(&site);
            if names <= MOST_NAMES && (old.is_some() || self.sites.len() < MOST_SITES) {
                self.names = names;
                self.sites.insert(site.id, site);
            }
        }
        if let Some(ticks) = &block.ticks {
            self.gaps.close(ticks.first_ms);
            self.ticks(ticks, until_ms);
            if ticks.first_ms > until_ms {
                return false;
            }
        }
        if !block.report.is_empty() {
            // Before the time was noted with it, a report was of the ticks before it.
            let at_ms = if block.report_ms > 0 { block.report_ms } else { self.last_ms };
            self.gaps.close(at_ms);
            if at_ms <= until_ms {
                self.report = block.report;
                self.report_ms = at_ms;
                self.reports += 1;
            }
        }
        true
    }

    fn ticks(&mut self, ticks: &Ticks, until_ms: u64) {
        let mut times = vec![ticks.first_ms];
        for step in ticks.steps_ms.iter().take(MOST_TICKS) {
            times.push(times[times.len() - 1].saturating_add((*step).into()));
        }
        // Nothing was live when it began: where nothing before is lost, what is live now is what it grew by.
        let from_start = self.gaps.is_empty() && self.header.as_ref().is_some_and(|header| header.part == 0);
        let known = self.gaps.is_empty() && self.ticks > 0;
        if self.first_ms.is_none() {
            self.first_ms = Some(ticks.first_ms);
            self.base_ms = if from_start { 0 } else { ticks.first_ms };
        }
        let before_ms = self.last_ms;
        self.last_ms = self.last_ms.max(times[times.len() - 1]);
        times.retain(|&at| at <= until_ms);
        if times.is_empty() {
            return;
        }
        self.ticks += times.len() as u64;
        let levels = |changes: &[i64]| -> Vec<(f64, i64)> {
            let mut level = 0_i64;
            let sums = times.iter().zip(changes).map(|(at, change)| {
                level = level.saturating_add(*change);
                (*at as f64 / 1e3, level)
            });
            sums.collect()
        };
        for (at, level) in levels(&ticks.available_kb) {
            self.available.push(at, level as f64);
        }
        for series in &ticks.series {
            if self.courses.len() >= MOST_SITES && !self.courses.contains_key(&series.site) {
                continue;
            }
            let levels = levels(&series.live);
            let Some((first, last)) = levels.first().zip(levels.last()) else { continue };
            let course = self.courses.entry(series.site).or_insert_with(|| {
                if !(from_start || known) {
                    return Course { first: first.1, ..Course::default() };
                }
                // It was none at the tick before the one that it comes with.
                let mut course = Course::default();
                if first.1 != 0 && before_ms < times[0] {
                    course.live.push(before_ms as f64 / 1e3, 0.0);
                }
                course
            });
            course.last = last.1;
            course.allocated = series.allocated;
            for (at, level) in levels {
                course.live.push(at, level as f64);
            }
        }
    }

    /// Gives the findings of a report what was recorded of their sites.
    fn attach(mut self, report: &mut Report) {
        let points = |series: &Series| -> Vec<(f32, f32)> {
            series.points().map(|(seconds, level)| (seconds as f32, level as f32)).collect()
        };
        let mut by_place: FxHashMap<(u64, &str, &str), Vec<u32>> = FxHashMap::default();
        for site in self.sites.values() {
            by_place.entry((site.address, &site.family, &site.cache)).or_default().push(site.id);
        }
        for finding in &mut report.findings {
            let place = (finding.call_site.address, &*finding.family, &*finding.cache);
            // Of a function that allocates for others all callers were recorded as one.
            if let (false, Some([id])) = (finding.split, by_place.get(&place).map(Vec::as_slice)) {
                finding.recorded =
                    self.courses.get(id).map(|course| points(&course.live)).unwrap_or_default();
            }
        }
        let damage = self.gaps.in_words();
        let (gaps, bytes_lost) = std::mem::take(&mut self.gaps).into_parts();
        report.recorded = Some(Recorded {
            ticks: self.ticks,
            until_s: self.last_ms as f64 / 1e3,
            reports: self.reports,
            report_s: (self.reports > 0).then_some(self.report_ms as f64 / 1e3),
            bytes: self.bytes,
            sites: self.sites.len() as u64,
            available_kb: points(&self.available),
            damage,
            gaps,
            bytes_lost,
        });
    }
}
