//! How fast memory is looked at: it may take long, and others want the CPU and the memory's bandwidth.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::{commands::progress::bar, units};

/// The share of one core that is taken even if `--overhead` allows less.
const LEAST_SHARE: f64 = 0.25;
/// Time that is kept for what comes after the looks, as a share of the limit.
const SPARE: f64 = 0.1;

/// From one in so many of the bytes on it is told how long the rest takes.
const FIRST: u64 = 100;
/// The lowest priority that there is.
const NICEST: i32 = 19;

/// Rests between parts of a look.
pub(in crate::commands) struct Pace {
    share: f64,
    limit: Duration,
    begun: Instant,
    last: Instant,
    busy: Duration,
    bar: ProgressBar,
}

impl Pace {
    /// `overhead` is a share of all CPUs.
    pub(in crate::commands) fn new(overhead: f64, cpus: u32, limit: Duration, quiet: bool) -> Self {
        let now = Instant::now();
        Self {
            share: (overhead * f64::from(cpus)).clamp(LEAST_SHARE, 1.0),
            limit,
            begun: now,
            last: now,
            busy: Duration::ZERO,
            bar: bar(1, quiet),
        }
    }

    /// How long to rest after so many bytes of those that are expected.
    pub(in crate::commands) fn rest(&mut self, done: u64, expected: u64) -> Duration {
        let worked = self.last.elapsed();
        self.busy += worked;
        self.bar.set_length(expected.max(1));
        self.bar.set_position(done);
        self.bar.set_message(format!(
            "looking for pointers: {} of {}",
            units::bytes(done as f64),
            units::bytes(expected as f64)
        ));
        let left = self.limit.saturating_sub(self.begun.elapsed());
        let needed = needed(self.busy, (done, expected), left);
        // The first bytes say little. Behind all others nothing is done where they have all CPUs.
        let needed = if done.saturating_mul(FIRST) < expected { 0.0 } else { needed };
        set_priority(if needed >= 1.0 { 0 } else { NICEST });
        worked.mul_f64(1.0 / self.share.max(needed).min(1.0) - 1.0)
    }

    /// Goes on after a rest.
    pub(in crate::commands) fn resume(&mut self) {
        self.last = Instant::now();
    }

    /// Takes the progress line away.
    pub(in crate::commands) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The share of one core that is needed for what is still to be read, at the speed so far, in the time that is `left`.
fn needed(busy: Duration, (done, expected): (u64, u64), left: Duration) -> f64 {
    let per_byte = busy.as_secs_f64() / done.max(1) as f64;
    let needed = per_byte * expected.saturating_sub(done) as f64;
    let left = left.as_secs_f64() * (1.0 - SPARE);
    if left > 0.0 { needed / left } else { 1.0 }
}

/// How nice this thread is to others: 19 is the nicest.
fn set_priority(nice: i32) {
    // SAFETY: this has integers only. Priorities are the calling thread's. Where it is refused, it stays as polite as it was.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Does something with the lowest priority, as long as there is time for that.
pub(in crate::commands) fn politely<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: this has integers only.
    let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    set_priority(NICEST);
    let done = work();
    set_priority(before);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_more_the_less_time_is_left() {
        let of = |done: u64, expected: u64, left: u64| {
            needed(Duration::from_secs(1), (done, expected), Duration::from_secs(left))
        };
        let is = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value} {expected}");
        is(of(100, 200, 60), 1.0 / 54.0);
        is(of(10, 410, 60), 40.0 / 54.0);
        is(of(10, 3_910, 60), 390.0 / 54.0);
        is(of(10, 400, 0), 1.0);
    }
}
