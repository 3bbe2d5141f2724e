//! Reading a recording, which may have been cut off, or be of somebody who means harm.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use rustc_hash::FxHashMap;

use super::{
    LARGEST_BLOCK, LARGEST_FRAME, MAGIC,
    format::{Block, Header, Site, Ticks},
    older,
};
use crate::{
    report::model::{Recorded, Report, SCHEMA},
    tracer::Series,
    units,
};

/// Sites that are kept in mind.
const MOST_SITES: usize = 1_000_000;
/// Ticks of a block.
const MOST_TICKS: usize = 100_000;

/// Whether a file begins like a recording of any version.
///
/// # Errors
/// When it cannot be read.
pub fn is_recording(path: &Path) -> std::io::Result<bool> {
    let mut first = [0; MAGIC.len() - 1];
    match File::open(path)?.read_exact(&mut first) {
        Ok(()) => Ok(first == MAGIC[..first.len()]),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    header: Header,
    sites: FxHashMap<u32, Site>,
    live: FxHashMap<u32, Series>,
    available: Series,
    ticks: u64,
    last_ms: u64,
    bytes: u64,
    /// The last report that is wanted, packed as JSON.
    report: Vec<u8>,
    reports: u64,
    /// When the first report was made, whether wanted or not.
    first_ms: Option<u64>,
}

/// Reads the last report of a recording, or the last one up to so many seconds after its start, and what became of the
/// sites of its findings at every tick until then.
///
/// # Errors
/// When the file cannot be read, is no recording of this version, or has no report that early.
pub fn read(path: &Path, at_s: Option<f64>) -> Result<Report> {
    let name = path.display();
    let until_ms = at_s.map_or(u64::MAX, |seconds| (seconds * 1e3) as u64);
    let mut reading = Reading::default();
    let before = older(path);
    let header = first_header(path)?;
    let has_before = header.part > 0 && first_header(&before).is_ok_and(|other| precedes(&other, &header));
    let mut damage = None;
    if has_before {
        damage = reading.file(&before, until_ms)?;
    }
    damage = reading.file(path, until_ms)?.or(damage);
    reading.header = header;
    if reading.report.is_empty() {
        let why = match (&damage, at_s) {
            (Some(damage), _) => damage.clone(),
            (None, Some(_)) => match reading.first_ms {
                Some(first) => {
                    let first = units::seconds(first as f64 / 1e3);
                    format!("none was recorded that early, the first one is of {first} after the start")
                }
                None => "none was recorded".to_owned(),
            },
            (None, None) => "it was cut off before the first one was written".to_owned(),
        };
        bail!("{name} has no report: {why}");
    }
    let mut report: Report =
        serde_json::from_slice(&reading.report).with_context(|| format!("{name} has no whole report"))?;
    if report.schema != SCHEMA {
        bail!("{name} has a report of the schema {}, not {SCHEMA}", report.schema);
    }
    reading.last_ms = reading.last_ms.min(until_ms);
    reading.attach(&mut report, damage);
    Ok(report)
}

/// Whether a file is the one that was full before the other was begun.
fn precedes(older: &Header, newer: &Header) -> bool {
    (&older.started, &older.boot_id, older.part + 1) == (&newer.started, &newer.boot_id, newer.part)
}

fn first_header(path: &Path) -> Result<Header> {
    let mut frames = Frames::open(path)?;
    let header = frames.next().and_then(Result::ok).and_then(|block| block.header);
    header.with_context(|| format!("{} is no whole recording: it has no header", path.display()))
}

impl Reading {
    /// Reads a file; says what is wrong with it, if its end cannot be read.
    fn file(&mut self, path: &Path, until_ms: u64) -> Result<Option<String>> {
        let mut frames = Frames::open(path)?;
        for block in frames.by_ref() {
            let block = match block {
                Ok(block) => block,
                Err(damage) => return Ok(Some(format!("{damage} in {}", path.display()))),
            };
            for site in block.sites {
                if self.sites.len() < MOST_SITES {
                    self.sites.insert(site.id, site);
                }
            }
            if let Some(ticks) = &block.ticks {
                self.ticks(ticks, until_ms);
            }
            // A report is of the ticks before it.
            if !block.report.is_empty() {
                self.first_ms.get_or_insert(self.last_ms);
                if self.last_ms <= until_ms {
                    self.report = block.report;
                    self.reports += 1;
                }
            }
        }
        self.bytes += frames.read;
        Ok(None)
    }

    fn ticks(&mut self, ticks: &Ticks, until_ms: u64) {
        let mut times = vec![ticks.first_ms];
        for step in ticks.steps_ms.iter().take(MOST_TICKS) {
            times.push(times[times.len() - 1].saturating_add((*step).into()));
        }
        self.last_ms = self.last_ms.max(times[times.len() - 1]);
        times.retain(|&at| at <= until_ms);
        self.ticks += times.len() as u64;
        let push = |series: &mut Series, changes: &[i64]| {
            let mut level = 0_i64;
            for (at, change) in times.iter().zip(changes) {
                level = level.saturating_add(*change);
                series.push(*at as f64 / 1e3, level as f64);
            }
        };
        push(&mut self.available, &ticks.available_kb);
        for series in &ticks.series {
            if self.live.len() < MOST_SITES || self.live.contains_key(&series.site) {
                push(self.live.entry(series.site).or_default(), &series.live);
            }
        }
    }

    /// Gives the findings of a report what was recorded of their sites.
    fn attach(self, report: &mut Report, damage: Option<String>) {
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
                finding.recorded = self.live.get(id).map(points).unwrap_or_default();
            }
        }
        report.recorded = Some(Recorded {
            ticks: self.ticks,
            until_s: self.last_ms as f64 / 1e3,
            reports: self.reports,
            bytes: self.bytes,
            sites: self.sites.len() as u64,
            available_kb: points(&self.available),
            damage,
        });
    }
}

/// The blocks of a file.
struct Frames {
    file: BufReader<File>,
    read: u64,
}

impl Frames {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read the recording {name}"))?;
        let mut file = BufReader::new(file);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).with_context(|| format!("{name} is no recording"))?;
        if magic[..7] != MAGIC[..7] {
            bail!("{name} is no recording");
        }
        if magic != MAGIC {
            bail!("{name} is a recording of version {}, and this leaktrace reads {}", magic[7], MAGIC[7]);
        }
        Ok(Self { file, read: MAGIC.len() as u64 })
    }

    /// The next packed block; `None` at the end, also where the last frame was cut off by it.
    fn packed(&mut self) -> Option<Result<Vec<u8>, String>> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head).ok()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, sum) = (word(0), word(4));
        let damaged = |what: &str| Some(Err(format!("{what} at byte {}", self.read)));
        if length > LARGEST_FRAME {
            return damaged("there is a frame that is too large");
        }
        let mut packed = Vec::new();
        let wanted = u64::from(length);
        if self.file.by_ref().take(wanted).read_to_end(&mut packed).ok()? < length as usize {
            return None;
        }
        if crc32fast::hash(&packed) != sum {
            return damaged("there is a damaged frame");
        }
        self.read += wanted + head.len() as u64;
        Some(Ok(packed))
    }
}

impl Iterator for Frames {
    type Item = Result<Block, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let packed = match self.packed()? {
            Ok(packed) => packed,
            Err(damage) => return Some(Err(damage)),
        };
        let mut bytes = Vec::new();
        let unpacked = zstd::stream::read::Decoder::new(packed.as_slice())
            .and_then(|decoder| decoder.take(LARGEST_BLOCK + 1).read_to_end(&mut bytes));
        let block = match unpacked {
            Ok(_) if bytes.len() as u64 <= LARGEST_BLOCK => Block::decode(bytes.as_slice()).ok(),
            _ => None,
        };
        Some(block.ok_or_else(|| format!("there is no block in the frame before byte {}", self.read)))
    }
}
