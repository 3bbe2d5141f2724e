//! What of a recording is not readable: how much, where, and when that was.

use std::path::Path;

use super::frames::Hole;
use crate::{report::model::Gap, units};

/// Gaps that are kept, and those that are told one by one.
const KEPT: usize = 100;
const TOLD: usize = 3;

/// The gaps of all files.
#[derive(Default)]
pub(super) struct Gaps {
    kept: Vec<Gap>,
    number: usize,
    bytes: u64,
    /// Those before this one have ticks after them.
    closed: usize,
}

impl Gaps {
    /// Notes a gap after a tick.
    pub(super) fn add(&mut self, file: &Path, hole: Hole, last_ms: u64) {
        self.number += 1;
        self.bytes += hole.bytes;
        if self.kept.len() < KEPT {
            self.kept.push(Gap {
                file: file.to_string_lossy().into_owned(),
                at_byte: hole.at,
                bytes: hole.bytes,
                from_s: last_ms as f64 / 1e3,
                to_s: None,
            });
        }
    }

    /// Notes that there is a tick after what was noted up to now.
    pub(super) fn close(&mut self, at_ms: u64) {
        for gap in &mut self.kept[self.closed..] {
            gap.to_s = Some(at_ms as f64 / 1e3);
        }
        self.closed = self.kept.len();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// All of it in a sentence without its full stop.
    pub(super) fn in_words(&self) -> Option<String> {
        let told: Vec<String> = self.kept.iter().take(TOLD).map(one).collect();
        let all = units::bytes(self.bytes as f64);
        match self.number.saturating_sub(TOLD) {
            0 if told.is_empty() => None,
            0 => Some(told.join("; ")),
            more => {
                Some(format!("{}; and {}, {all} in all", told.join("; "), units::plural(more, "more gap")))
            }
        }
    }

    /// What a report has of them: the gaps, and the bytes of all.
    pub(super) fn into_parts(self) -> (Vec<Gap>, u64) {
        (self.kept, self.bytes)
    }
}

fn one(gap: &Gap) -> String {
    let (bytes, file, from) = (units::bytes(gap.bytes as f64), &gap.file, units::seconds(gap.from_s));
    match gap.to_s {
        Some(to) => format!(
            "{bytes} at byte {} of {file}, between {from} and {} after the start",
            gap.at_byte,
            units::seconds(to)
        ),
        None => format!("the last {bytes} of {file}, later than {from} after the start: cut off or damaged"),
    }
}
