//! What tracing costs: measured by the kernel in short windows, because measuring costs too.

use std::{os::fd::OwnedFd, time::Instant};

use anyhow::Result;
use aya::{Ebpf, sys::Stats};

use super::{hooks::Program, load};

/// Runs and time of one program while it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProgramCost {
    /// Measured runs.
    pub runs: u64,
    /// Nanoseconds that they took.
    pub ns: u64,
}

impl ProgramCost {
    /// Nanoseconds for each run, `None` when none was measured.
    pub fn ns_per_run(&self) -> Option<f64> {
        (self.runs > 0).then(|| self.ns as f64 / self.runs as f64)
    }
}

/// Turns the kernel's statistics on from time to time.
#[derive(Default)]
pub struct CostMeter {
    running: Option<(OwnedFd, Instant)>,
    measured_s: f64,
    ended: bool,
}

impl CostMeter {
    /// Begins a window; without the right to, nothing is measured.
    pub fn begin(&mut self) {
        if self.running.is_none() && !self.ended {
            self.running = aya::sys::enable_stats(Stats::RunTime).ok().map(|fd| (fd, Instant::now()));
        }
    }

    /// Ends the window.
    pub fn end(&mut self) {
        if let Some((fd, since)) = self.running.take() {
            drop(fd);
            self.measured_s += since.elapsed().as_secs_f64();
        }
    }

    /// Ends measuring for good.
    pub fn give_up(&mut self) {
        self.end();
        self.ended = true;
    }

    /// Whether it was given up: what was measured is of the beginning.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Seconds measured so far.
    pub fn measured_s(&self) -> f64 {
        self.measured_s
    }
}

/// What the kernel counted for one program: its cost, and the events it skipped because the
/// program was already running on that CPU.
///
/// # Errors
/// When the program's fdinfo cannot be read.
pub fn read(ebpf: &Ebpf, program: &Program) -> Result<(ProgramCost, u64)> {
    let text = load::program_fdinfo(ebpf, program.name)?;
    let number = |field: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok((ProgramCost { runs: number("run_cnt"), ns: number("run_time_ns") }, number("recursion_misses")))
}
