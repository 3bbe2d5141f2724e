//! How fast memory is looked at: it may take long, and others want the CPU and the memory's bandwidth.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::{commands::progress::bar, units};

/// The share of one core that is taken even if `--overhead` allows less.
const LEAST_SHARE: f64 = 0.25;
/// Time that is kept for what comes after the looks, as a share of the limit.
const SPARE: f64 = 0.1;

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
        rest(self.share, worked, self.busy, (done, expected), self.limit.saturating_sub(self.begun.elapsed()))
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

/// The rest after `worked`, which leaves `left` enough for what is still to be read at the speed so far.
fn rest(
    share: f64,
    worked: Duration,
    busy: Duration,
    (done, expected): (u64, u64),
    left: Duration,
) -> Duration {
    let per_byte = busy.as_secs_f64() / done.max(1) as f64;
    let needed = per_byte * expected.saturating_sub(done) as f64;
    let left = left.as_secs_f64() * (1.0 - SPARE);
    let share = share.max(if left > 0.0 { needed / left } else { 1.0 }).min(1.0);
    worked.mul_f64(1.0 / share - 1.0)
}

/// Does something with the lowest priority.
pub(in crate::commands) fn politely<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: these calls have integers only. Priorities are the calling thread's.
    let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    let done = work();
    // SAFETY: as above. Where it is refused, the rest of the run is polite, too.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, before) };
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_as_long_as_there_is_time() {
        let second = Duration::from_secs(1);
        let minute = Duration::from_mins(1);
        // A quarter of a core: three times as long as it worked.
        assert_eq!(rest(0.25, second, second, (100, 200), minute), second * 3);
        // 40 s of work in 54 s: only a third of a rest.
        assert!(rest(0.25, second, second, (10, 410), minute) < second / 2);
        // No time left.
        assert_eq!(rest(0.25, second, second, (10, 400), Duration::ZERO), Duration::ZERO);
        assert_eq!(rest(1.0, second, second, (100, 200), minute), Duration::ZERO);
    }
}
