//! Asking the running kernel's kmemleak, and comparing what it lists with a snapshot.

use std::{
    fs::{self, File},
    io::{BufReader, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    analysis::witness::{self, Found, Ours, YOUNG_S},
    proc::kmemleak::Listing,
    report::{
        kmemleak::{self, KmemleakReport},
        model::{Finding, Frame, Report},
    },
    tracer::{Snapshot, Tracer, monotonic_ns},
};

/// Where kmemleak is (`mm/kmemleak.c`), in debugfs.
const FILE: &str = "sys/kernel/debug/kmemleak";
/// Between two scans: the first notes what objects contain, the second lists those that have not changed
/// and that nothing points to.
pub(super) const BETWEEN: Duration = Duration::from_secs(6);

/// Readings of the list at most: the kernel begins each piece of it by counting objects (`kmemleak_seq_start`), and skips
/// as many as were freed since the last one.
const READINGS: usize = 4;

/// kmemleak of a kernel that has it switched on.
pub(super) struct Kmemleak(PathBuf);

/// What it listed, and when.
pub(super) struct Listed {
    listing: Listing,
    scanned_ns: u64,
}

impl Kmemleak {
    /// Finds it.
    ///
    /// # Errors
    /// Says what is missing.
    pub(super) fn find(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        match File::open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::read_dir(root.join("sys/kernel/debug"))
                    .is_ok_and(|mut entries| entries.next().is_none())
                {
                    bail!("debugfs is not mounted: mount -t debugfs none /sys/kernel/debug");
                }
                bail!(
                    "this kernel has no kmemleak (CONFIG_DEBUG_KMEMLEAK, and kmemleak=on where it is off by default)"
                )
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Scans once more, and reads the list. Nothing that was listed before is cleared.
    ///
    /// # Errors
    /// When the kernel refuses a scan or the list.
    pub(super) fn list(&self) -> Result<Listed> {
        let scanned_ns = monotonic_ns();
        self.scan()?;
        let unreadable = || format!("cannot read {}", self.0.display());
        let read = || -> Result<Listing> {
            let file = File::open(&self.0).with_context(unreadable)?;
            Listing::read(BufReader::new(file)).with_context(unreadable)
        };
        let mut listing = read()?;
        for _ in 1..READINGS {
            let next = read()?;
            if next.objects.len() <= listing.objects.len() {
                break;
            }
            listing = next;
        }
        Ok(Listed { listing, scanned_ns })
    }

    /// Scans.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn scan(&self) -> Result<()> {
        match fs::write(&self.0, "scan") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!(
                    "kmemleak has switched itself off (out of room for its notes, or after an error): see dmesg"
                )
            }
            Err(error) => Err(error).context("kmemleak cannot scan"),
        }
    }
}

/// Compares what was listed, if it could be, with the live objects of a snapshot, into the report.
///
/// # Errors
/// When the kernel refuses a look at the tables.
pub(super) fn compare(
    tracer: &mut Tracer,
    snapshot: &Snapshot,
    listed: Result<Listed>,
    report: &mut Report,
) -> Result<()> {
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => {
            let error = Some(format!("{error:#}"));
            report.kmemleak = Some(KmemleakReport { error, ..KmemleakReport::default() });
            return Ok(());
        }
    };
    let mut ours: Vec<Ours> = report.findings.iter().map(of_finding).collect();
    let finding_of: FxHashMap<usize, usize> =
        report.findings.iter().enumerate().map(|(index, finding)| (finding.site, index)).collect();
    let wanted: FxHashSet<u64> = listed.listing.objects.iter().map(|object| object.address).collect();
    let young_since = listed.scanned_ns.saturating_sub((YOUNG_S * 1e9) as u64);
    let mut found: FxHashMap<u64, Found> = FxHashMap::default();
    tracer.each_object(snapshot, |site, object| {
        let finding = finding_of.get(&site).copied();
        if let Some(finding) = finding
            && object.time_ns > young_since
        {
            ours[finding].young += 1;
        }
        if wanted.contains(&object.address) {
            found.insert(object.address, finding.map_or(Found::Elsewhere, Found::Finding));
        }
    })?;
    let find = |address: u64| found.get(&address).copied();
    let comparison = witness::compare(&listed.listing, &ours, find, snapshot.duration.as_secs_f64());
    kmemleak::put(report, &comparison, &listed.listing);
    Ok(())
}

/// Compares a saved list with a saved report, whose findings list some of their objects, into the report.
pub(super) fn compare_saved(listing: &Listing, report: &mut Report) {
    let mut objects: FxHashMap<u64, Found> = FxHashMap::default();
    for (index, finding) in report.findings.iter().enumerate() {
        objects.extend(finding.objects.iter().map(|object| (object.address, Found::Finding(index))));
    }
    let ours: Vec<Ours> = report
        .findings
        .iter()
        .map(|finding| Ours {
            listed: finding.objects.len() as u64,
            young: finding.objects.iter().filter(|object| object.age_s < YOUNG_S).count() as u64,
            ..of_finding(finding)
        })
        .collect();
    let comparison =
        witness::compare(listing, &ours, |address| objects.get(&address).copied(), report.window.duration_s);
    kmemleak::put(report, &comparison, listing);
}

fn of_finding(finding: &Finding) -> Ours {
    let function = |frame: &Frame| frame.symbol.as_ref().map(|symbol| (symbol.clone(), frame.module.clone()));
    // A function that allocates for others is on everybody's backtrace.
    let frames = if finding.split {
        vec![&finding.responsible]
    } else {
        vec![&finding.call_site, &finding.responsible]
    };
    Ours {
        functions: frames.into_iter().filter_map(function).collect(),
        followed: finding.family != "page",
        live: finding.live.objects,
        listed: finding.live.objects,
        young: 0,
        object_size: finding.live.bytes / finding.live.objects.max(1),
        linked: finding.linkage.as_ref().is_some_and(|linkage| linkage.linked * 2 > linkage.looked_at),
    }
}
