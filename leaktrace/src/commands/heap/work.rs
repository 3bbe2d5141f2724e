//! The work as a whole: how fast it goes, when it ends, and who watches what is allocated meanwhile.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustc_hash::FxHashSet;
use tokio::{runtime::Runtime, time::Instant as Deadline};

use super::witness::{Seen, Witness};
use crate::{
    commands::{prove::Pace, stop::Stop},
    proof::{Limit, Unreached},
    tracer::hooks::Mechanism,
    units,
};

/// The work: it rests in between, ends when a signal comes, and makes room for what is allocated meanwhile.
pub(super) struct Work<'a> {
    runtime: &'a Runtime,
    stop: &'a Stop,
    pace: Pace,
    /// Bytes that were read before the part that is going on, and those of all.
    before: u64,
    expected: u64,
    witness: Option<Witness>,
    /// Why nobody watches what is allocated meanwhile, if nobody does.
    no_witness: Option<String>,
    begun: Instant,
    limit: Limit,
    /// What was done since the last rest in the part that names things.
    since: u32,
    /// Why that part ended early, if it did.
    ended: Option<&'static str>,
}

/// Pieces of work between two rests where each is some reads of a few words.
const BETWEEN_RESTS: u32 = 64;

impl<'a> Work<'a> {
    /// Begins: from now on what is allocated is watched, where that is possible. `expected` is how many bytes are to be read.
    pub(super) fn begin(
        (runtime, stop): (&'a Runtime, &'a Stop),
        pace: Pace,
        (limit, expected): (Limit, u64),
        refused: &[Mechanism],
    ) -> Self {
        let witness = Witness::begin(refused);
        Self {
            runtime,
            stop,
            pace,
            before: 0,
            expected,
            no_witness: witness.as_ref().err().map(|error| {
                format!("what was allocated meanwhile is told by its content only, because nothing can be traced: {error:#}")
            }),
            witness: witness.ok(),
            begun: Instant::now(),
            limit,
            since: 0,
            ended: None,
        }
    }

    /// What is going to be done, and what it takes: `bytes` are read each time, and `own` of our own memory are needed.
    pub(super) fn plan(&self, bytes: u64, own: u64) -> String {
        let meanwhile = self.witness.as_ref().map_or_else(String::new, |witness| {
            let bytes = units::bytes(witness.table_bytes() as f64);
            format!(", and {bytes} of the kernel's for what is allocated meanwhile")
        });
        format!(
            "Looking at {} of kernel memory five times, eight times if something is unclear, for up to {}. It takes {} of our own memory to note objects{meanwhile}. Ctrl-C ends it.",
            units::bytes(bytes as f64),
            units::seconds(self.limit.time.as_secs_f64()),
            units::bytes(own as f64),
        )
    }

    /// So many bytes were read in a part of the work that has ended.
    pub(super) fn has_read(&mut self, bytes: u64) {
        self.before += bytes;
    }

    /// Takes the progress line away.
    pub(super) fn finish(&self) {
        self.pace.finish();
    }

    /// Goes on: what was done until now was no work of this.
    pub(super) fn resume(&mut self) {
        self.pace.resume();
    }

    /// Rests after so many bytes of this part of the work; false when it is to end.
    pub(super) fn step(&mut self, done: u64) -> Result<bool> {
        let done = (self.before + done).min(self.expected);
        let until = Deadline::now() + self.pace.rest(done, self.expected);
        self.wait(until)
    }

    /// Whether the part goes on that only names what was found: it rests now and then, and ends when a signal comes or the time
    /// is up.
    pub(super) fn goes_on(&mut self) -> bool {
        self.since += 1;
        if self.since < BETWEEN_RESTS || self.ended.is_some() {
            return self.ended.is_none();
        }
        self.since = 0;
        if self.left().time.is_zero() {
            self.ended = Some("the time was up");
        } else if !matches!(self.step(0), Ok(true)) {
            self.ended = Some("a signal came");
        }
        self.ended.is_none()
    }

    /// What is missing where that part ended early.
    pub(super) fn note(&self) -> Option<String> {
        self.ended.map(|why| {
            format!("{why} before everything had a name: some holders are not told, and objects that nothing leads to and that were not read are not counted as lost")
        })
    }

    /// Rests for a while; false when it is to end, or there is no time for it and for so much work behind it.
    pub(super) fn rest(&mut self, time: Duration, work: Duration) -> Result<bool> {
        if self.left().time < time + work {
            return Ok(false);
        }
        self.wait(Deadline::now() + time)
    }

    /// Waits, and makes room in the tables; false when a signal came.
    fn wait(&mut self, until: Deadline) -> Result<bool> {
        let stopped = self.runtime.block_on(self.stop.wait_until(until));
        if let Some(witness) = &mut self.witness {
            witness.relieve()?;
        }
        self.pace.resume();
        Ok(!stopped)
    }

    /// What was allocated since it began.
    pub(super) fn end(&mut self, of: &[Unreached]) -> Result<Seen> {
        if let Some(witness) = self.witness.take() {
            return witness.end(of.iter().map(|one| one.address));
        }
        let note = self.no_witness.take();
        Ok(Seen { objects: FxHashSet::default(), note, is_whole: false })
    }

    /// What time is left.
    pub(super) fn left(&self) -> Limit {
        Limit { time: self.limit.time.saturating_sub(self.begun.elapsed()), ..self.limit }
    }
}
