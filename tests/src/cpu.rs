//! CPU time: in it, unlike in that of the clock, no other process has a part.

use std::time::Duration;

/// What a process has had so far, in user space and in system calls.
pub fn of_process(pid: u32) -> Duration {
    let mut clock = 0;
    // SAFETY: a valid pointer.
    let error = unsafe { libc::clock_getcpuclockid(pid as i32, &raw mut clock) };
    assert_eq!(error, 0, "there is no process {pid}");
    read(clock)
}

/// What this thread has had.
pub fn of_this_thread() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// What this thread takes for some work: the least of several times, because what others do to caches and to the
/// CPU's clock only ever adds to it.
pub fn least(times: u32, mut work: impl FnMut()) -> Duration {
    let took = (0..times).map(|_| {
        let begun = of_this_thread();
        work();
        of_this_thread().saturating_sub(begun)
    });
    took.min().expect("it is measured at least once")
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "clock {clock} cannot be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
