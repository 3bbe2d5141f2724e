//! Writing a recording.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    MAGIC,
    format::{Block, Header, Series, Site, Ticks},
    frames::is_recording,
    older,
};
use crate::{report::model::Report, tracer::Level};

/// Ticks in a block, and how long one is kept back at most: what a kill loses. At first it is so small a part of the time since
/// the start.
const TICKS: usize = 60;
const LONGEST_MS: u64 = 20_000;
const PART: u64 = 4;
/// After so long all sites are told anew, and where they stand: damage takes no longer part of them.
const ANEW_MS: u64 = 600_000;
/// How hard zstd tries: more costs more than it saves.
const EFFORT: i32 = 6;

/// What a recording is of.
#[derive(Clone, Debug)]
pub struct Start {
    /// Release of the kernel.
    pub kernel: String,
    /// In RFC 3339.
    pub started: String,
    /// Which boot.
    pub boot_id: String,
    /// The machine, as `uname -m` says.
    pub architecture: String,
    /// CPUs online.
    pub cpus: u32,
    /// Memory.
    pub memory_kb: u64,
    /// Age from which a live object is a survivor.
    pub min_age_s: f64,
}

/// A recording that is being written.
pub struct Recorder {
    path: PathBuf,
    file: File,
    /// Bytes of this file, of files before it, and how many both may have.
    bytes: u64,
    bytes_before: u64,
    most: u64,
    header: Header,
    told: FxHashSet<u32>,
    sites: Vec<Site>,
    /// Ticks that are not written yet: milliseconds since the start, available memory, and sites.
    ticks: Vec<(u64, u64, Vec<Level>)>,
    /// Where each site stood in the last block.
    last: FxHashMap<u32, Level>,
    /// Milliseconds since the start: of the last tick, of the last one that was written, and of when all sites were told.
    at_ms: u64,
    written_ms: u64,
    told_ms: u64,
}

impl Recorder {
    /// Begins a file, in the place of one that is there; it and the one before it together never have more than `most`
    /// bytes, but for one block.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, start: &Start, most: u64) -> Result<Self> {
        let header = Header {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: start.kernel.clone(),
            started: start.started.clone(),
            boot_id: start.boot_id.clone(),
            part: 0,
            version: MAGIC[7].into(),
            architecture: start.architecture.clone(),
            cpus: start.cpus,
            memory_kb: start.memory_kb,
            min_age_s: start.min_age_s,
        };
        let older = older(path);
        if older.exists() && !is_recording(&older).is_ok_and(|is| is) {
            bail!(
                "{} is no recording, and would be replaced by the older half of this one: give another name",
                older.display()
            );
        }
        let file = open(path)?;
        // What another recording left would be taken for a part of this one.
        if older.exists() {
            fs::remove_file(&older).with_context(|| format!("cannot remove {}", older.display()))?;
        }
        let mut recorder = Self {
            file,
            path: path.to_owned(),
            bytes: 0,
            bytes_before: 0,
            most,
            header,
            told: FxHashSet::default(),
            sites: Vec::new(),
            ticks: Vec::new(),
            last: FxHashMap::default(),
            at_ms: 0,
            written_ms: 0,
            told_ms: 0,
        };
        recorder.begin()?;
        Ok(recorder)
    }

    /// Bytes that were written, in files that are gone, too.
    pub fn bytes(&self) -> u64 {
        self.bytes_before + self.bytes
    }

    /// Files that were begun.
    pub fn parts(&self) -> u32 {
        self.header.part + 1
    }

    /// Notes where all sites stand; `describe` says of a new one what it is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn tick(
        &mut self,
        at_ms: u64,
        available_kb: u64,
        levels: Vec<Level>,
        describe: impl Fn(u32) -> Site,
    ) -> Result<()> {
        if at_ms.saturating_sub(self.told_ms) >= ANEW_MS {
            self.flush()?;
            self.told.clear();
            self.last.clear();
            self.told_ms = at_ms;
        }
        self.sites.extend(
            levels.iter().filter(|level| self.told.insert(level.site)).map(|level| describe(level.site)),
        );
        self.at_ms = at_ms;
        self.ticks.push((at_ms, available_kb, levels));
        let kept_back = at_ms.saturating_sub(self.written_ms);
        if self.ticks.len() >= TICKS || kept_back >= LONGEST_MS.min(at_ms / PART) {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes a whole report; what comes before it is on the disk then.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn report(&mut self, report: &Report) -> Result<()> {
        self.flush()?;
        let report = serde_json::to_vec(report).context("cannot write JSON")?;
        let header = Some(self.header.clone());
        self.write(&Block { header, report, report_ms: self.at_ms, ..Block::default() })?;
        self.file.sync_data().with_context(|| self.unwritable())
    }

    /// Writes what was kept back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        let sites = std::mem::take(&mut self.sites);
        let ticks = std::mem::take(&mut self.ticks);
        if ticks.is_empty() && sites.is_empty() {
            return Ok(());
        }
        let packed = self.pack(&ticks);
        self.written_ms = self.at_ms;
        self.write(&Block { sites, ticks: packed, ..Block::default() })?;
        if self.bytes >= self.most / 2 {
            self.rotate()?;
        }
        Ok(())
    }

    fn pack(&mut self, ticks: &[(u64, u64, Vec<Level>)]) -> Option<Ticks> {
        let first_ms = ticks.first()?.0;
        let mut levels: FxHashMap<u32, Vec<Option<Level>>> = FxHashMap::default();
        for (index, (_, _, of_tick)) in ticks.iter().enumerate() {
            for level in of_tick {
                levels.entry(level.site).or_insert_with(|| vec![None; ticks.len()])[index] = Some(*level);
            }
        }
        let mut series = Vec::new();
        for (site, of_site) in levels {
            let before = self.last.get(&site).copied();
            // A site that comes later had nothing before.
            let mut at = before.unwrap_or(Level { site, allocated: 0, live: 0 });
            let filled: Vec<Level> = of_site
                .into_iter()
                .map(|level| {
                    at = level.unwrap_or(at);
                    at
                })
                .collect();
            self.last.insert(site, at);
            if before.is_some_and(|before| filled.iter().all(|level| *level == before)) {
                continue;
            }
            let mut last = 0;
            let live = filled.iter().map(|level| {
                let change = level.live as i64 - last;
                last = level.live as i64;
                change
            });
            series.push(Series { site, live: live.collect(), allocated: at.allocated });
        }
        series.sort_unstable_by_key(|series| series.site);
        let steps = ticks.windows(2).map(|pair| u32::try_from(pair[1].0 - pair[0].0).unwrap_or(u32::MAX));
        let mut last = 0;
        let available = ticks.iter().map(|&(_, kb, _)| {
            let change = kb as i64 - last;
            last = kb as i64;
            change
        });
        Some(Ticks { first_ms, steps_ms: steps.collect(), available_kb: available.collect(), series })
    }

    /// The full file is kept as the one before, and a new one tells all sites again.
    fn rotate(&mut self) -> Result<()> {
        self.file.sync_data().with_context(|| self.unwritable())?;
        fs::rename(&self.path, older(&self.path)).with_context(|| self.unwritable())?;
        self.file = open(&self.path)?;
        self.bytes_before += std::mem::take(&mut self.bytes);
        self.header.part += 1;
        self.told.clear();
        self.last.clear();
        self.begin()
    }

    fn begin(&mut self) -> Result<()> {
        self.put(&MAGIC)?;
        self.write(&Block { header: Some(self.header.clone()), ..Block::default() })
    }

    fn write(&mut self, block: &Block) -> Result<()> {
        let packed = zstd::bulk::compress(&block.encode_to_vec(), EFFORT).context("zstd failed")?;
        let mut frame = Vec::with_capacity(packed.len() + 8);
        frame.extend((packed.len() as u32).to_le_bytes());
        frame.extend(crc32fast::hash(&packed).to_le_bytes());
        frame.extend(packed);
        self.put(&frame)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // On a full disk a part of it may be there: what is whole ends before it. Where that is refused, a reader finds out.
            let _ = self.file.set_len(self.bytes);
            return Err(error).with_context(|| self.unwritable());
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn unwritable(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

/// Opens a new recording, in the place of one that nobody writes any more. It has kernel addresses: for the owner and the group,
/// not for everyone.
fn open(path: &Path) -> Result<File> {
    let unwritable = || format!("cannot write {}", path.display());
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
        .with_context(unwritable)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("cannot write {}: another recording is going on there", path.display())
        }
        // Some file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    file.set_permissions(Permissions::from_mode(0o640)).with_context(unwritable)?;
    file.set_len(0).with_context(unwritable)?;
    Ok(file)
}
