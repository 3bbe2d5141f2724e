//! The looks at memory: each one asks, too, who holds the holders that the one before it found.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Candidate, Kind, Prover,
    areas::Areas,
    holders::{Asked, first_asked, next_asked, overlaps},
    scan::{self, Pass},
};
use crate::{analysis::linkage::Span, proc::kcore::Kcore, units};

/// Looks at most: two decide, and each names one more step of who holds what.
pub const LOOKS: usize = 3;
/// Looks that decide.
const DECIDING: usize = 2;

/// Told of what is done: bytes of all looks so far, and what they are expected to be. False ends it.
pub type Step<'a> = &'a mut dyn FnMut(u64, u64) -> Result<bool>;

/// How far the looks are, and how long they may take.
pub(super) struct Pace<'a> {
    step: Step<'a>,
    begun: Instant,
    time: Duration,
    /// Bytes of one look.
    bytes: u64,
    /// Bytes of those that have ended.
    done: u64,
    /// What they took, without the rests in `step`.
    busy: Duration,
    /// Whether `step` ended it: a signal came.
    stopped: bool,
}

impl<'a> Pace<'a> {
    /// Begins.
    pub(super) fn new(bytes: u64, time: Duration, step: Step<'a>) -> Self {
        Self { step, begun: Instant::now(), time, bytes, done: 0, busy: Duration::ZERO, stopped: false }
    }

    /// Takes one look.
    fn take(&mut self, look: impl FnOnce(scan::Step<'_>) -> Result<Pass>) -> Result<Pass> {
        let expected = self.bytes * LOOKS as u64;
        let mut resting = Duration::ZERO;
        let start = Instant::now();
        let pass = look(&mut |read| {
            if self.begun.elapsed() > self.time {
                return Ok(false);
            }
            let before = Instant::now();
            let go_on = (self.step)(self.done + read, expected);
            resting += before.elapsed();
            self.stopped |= !matches!(go_on, Ok(true));
            go_on
        })?;
        self.busy += start.elapsed().saturating_sub(resting);
        self.done += pass.bytes;
        Ok(pass)
    }

    fn why_it_ended(&self) -> String {
        format!(
            "{} after {} of {}: nothing is proven",
            self.reason(),
            units::bytes(self.done as f64),
            units::bytes((self.bytes * DECIDING as u64) as f64)
        )
    }

    /// Two looks decide; the last one only asks further.
    fn why_names_are_missing(&self) -> String {
        format!("{} in the last look: some holders have no name", self.reason())
    }

    fn reason(&self) -> &'static str {
        if self.stopped { "a signal ended it" } else { "the time was up" }
    }
}

/// What all looks found.
pub(super) struct Looks {
    /// Those that looked at everything.
    pub(super) passes: Vec<Pass>,
    /// Holders, and who holds them.
    pub(super) asked: Vec<Asked>,
    /// What they took, without rests.
    pub(super) busy: Duration,
    /// Why they decide nothing, if they do not.
    pub(super) cut_short: Option<String>,
    /// What could not be told apart.
    pub(super) notes: Vec<String>,
}

impl Looks {
    /// Notes what is not known of where things are.
    fn note_unknown(&mut self, areas: &Areas) {
        if areas.cut {
            self.notes.push(
                "vmalloc has more pages than are kept in mind: some holders there have no name".to_owned(),
            );
        }
        if !areas.knows_us() {
            self.notes.push(
                "our own task was not found: what was found where the kernel copies what we read counts as holding"
                    .to_owned(),
            );
        }
    }

    /// Adds a look that is complete. `own` is the memory of the candidates.
    fn add(&mut self, pass: Pass, candidates: &[Candidate], own: &[Span]) {
        for (ask, place) in self.asked.iter_mut().zip(&pass.places[candidates.len()..]) {
            ask.held_by = ask.held_by.take().or_else(|| place.clone());
        }
        let next = if self.passes.is_empty() {
            first_asked(&pass, candidates)
        } else {
            next_asked(&self.asked, self.passes.len())
        };
        // Where a candidate lies, it is the candidate's.
        self.asked.extend(next.into_iter().filter(|ask| !overlaps(own, &ask.span)));
        self.passes.push(pass);
    }

    fn note_broken_lists(&mut self) {
        let broken: u64 = self.passes.iter().map(|pass| pass.broken_lists).sum();
        if broken > 0 {
            self.notes.push(format!(
                "{} of free objects changed while they were read: what is free there counts as holding",
                units::plural(broken as usize, "list")
            ));
        }
    }
}

impl Prover {
    /// Looks for candidates, until their time is up.
    pub(super) fn look(&self, candidates: &[Candidate], mut pace: Pace<'_>) -> Result<Looks> {
        // A file of its own for each, because the kernel copies what is read by way of a page that the file has.
        let bulk = Kcore::open(&self.root)?;
        let mut own: Vec<Span> = candidates.iter().map(|candidate| self.own(candidate)).collect();
        own.sort_unstable_by_key(|span| span.start);
        let mut looks = Looks {
            passes: Vec::new(),
            asked: Vec::new(),
            busy: Duration::ZERO,
            cut_short: None,
            notes: self.memory.notes(),
        };
        while looks.passes.len() < LOOKS {
            let areas = Areas::read(&self.memory);
            if looks.passes.is_empty() {
                looks.note_unknown(&areas);
            }
            let targets = self.targets(candidates, &looks.asked, &areas);
            let objects = candidates.len() + looks.asked.len();
            let wanted = (&targets, candidates.len() as u32, objects);
            let pass =
                pace.take(|step| scan::pass(&self.memory, &self.flags, &bulk, &areas, wanted, step))?;
            if !pass.complete {
                if looks.passes.len() < DECIDING {
                    looks.cut_short = Some(pace.why_it_ended());
                } else {
                    looks.notes.push(pace.why_names_are_missing());
                }
                break;
            }
            looks.add(pass, candidates, &own);
        }
        looks.note_broken_lists();
        looks.busy = pace.busy;
        Ok(looks)
    }

    /// A candidate's own memory.
    fn own(&self, candidate: &Candidate) -> Span {
        match candidate.kind {
            Kind::Page => Span::new(self.memory.address(candidate.frame), candidate.bytes),
            _ => Span::new(candidate.address, candidate.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who ended it is told: `go_on` is what a step says, `time` the limit.
    fn ended(go_on: bool, time: Duration) -> [String; 2] {
        let mut step = |_: u64, _: u64| Ok(go_on);
        let mut pace = Pace::new(1 << 30, time, &mut step);
        let look = |step: scan::Step<'_>| {
            assert!(!step(1 << 20)?);
            Ok(Pass { bytes: 1 << 20, ..Pass::default() })
        };
        pace.take(look).unwrap();
        [pace.why_it_ended(), pace.why_names_are_missing()]
    }

    #[test]
    fn a_signal_is_not_told_as_the_time() {
        let after = "after 1.0 MiB of 2.0 GiB: nothing is proven";
        let names = "in the last look: some holders have no name";
        assert_eq!(
            ended(false, Duration::from_hours(1)),
            [format!("a signal ended it {after}"), format!("a signal ended it {names}")]
        );
        assert_eq!(
            ended(true, Duration::ZERO),
            [format!("the time was up {after}"), format!("the time was up {names}")]
        );
    }
}
