//! Reading reports that were saved.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use super::output::say;
use crate::{
    kernel::machine::boot_id,
    recording,
    report::{
        escape,
        model::Report,
        plausible::{self, Saved},
    },
};

/// A larger file is no report.
const LARGEST: u64 = 256 << 20;

/// Reads a report, from standard input where the path is `-`; of a recording the last one.
///
/// # Errors
/// When the file cannot be read or has no report of this version, and of a recording that has ticks only: what was judged is
/// wanted, and they are not.
pub(super) fn read(path: &Path) -> Result<Report> {
    let report = read_at(path, None)?;
    if report.is_of_ticks() {
        let name = path.display();
        bail!("{name} has no report yet, only ticks: `leaktrace report {name}` tells them");
    }
    if let Some(damage) = report.recorded.as_ref().and_then(|recorded| recorded.damage.as_ref()) {
        say(&format!("note: not readable of {}: {}", path.display(), escape(damage)));
    }
    Ok(report)
}

/// The same, but of a recording the last report up to so many seconds after its start, or what ticks alone tell.
///
/// # Errors
/// As [`read`], and when a moment is asked for of what is no recording.
pub(super) fn read_at(path: &Path, at_s: Option<f64>) -> Result<Report> {
    let name = path.display();
    if path != Path::new("-") && recording::is_recording(path).is_ok_and(|is| is) {
        return recording::read(path, at_s);
    }
    if at_s.is_some() {
        bail!("--at is for recordings, and {name} is none");
    }
    plausible::parse(&bytes(path)?, &name.to_string())
}

/// Reads a report as [`read`] does, or a look at the heap.
///
/// # Errors
/// As [`read`].
pub(super) fn read_any(path: &Path) -> Result<Saved> {
    if path != Path::new("-") && recording::is_recording(path).is_ok_and(|is| is) {
        return read(path).map(|report| Saved::Report(Box::new(report)));
    }
    plausible::parse_any(&bytes(path)?, &path.display().to_string())
}

/// Refuses a report of another boot, whose addresses mean nothing now.
///
/// # Errors
/// When it is one, or the kernel does not say which boot this is.
pub(super) fn is_of_this_boot(report: &Report, path: &Path) -> Result<()> {
    let now = boot_id(Path::new("/")).context("this kernel does not say which boot this is")?;
    if report.machine.boot_id != now {
        bail!(
            "{} was made before this machine was started: the addresses in it mean nothing now",
            path.display()
        );
    }
    Ok(())
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let mut text = Vec::new();
    let read = |reader: &mut dyn Read, text: &mut Vec<u8>| reader.take(LARGEST + 1).read_to_end(text);
    let result = if path == Path::new("-") {
        read(&mut io::stdin().lock(), &mut text)
    } else {
        File::open(path).and_then(|mut file| read(&mut file, &mut text))
    };
    result.with_context(|| format!("cannot read the report {name}"))?;
    if text.len() as u64 > LARGEST {
        bail!("{name} is too large for a report");
    }
    Ok(text)
}
