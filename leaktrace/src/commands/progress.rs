//! The progress line, on a terminal only.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;
use crate::{report::escape, tracer::Tick, units};

/// A bar with the time left, and what is going on.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    last: (Instant, Tick),
}

/// A bar of such a length, with a message behind it.
pub(super) fn bar(length: u64, quiet: bool) -> ProgressBar {
    // indicatif draws nothing where standard error is no terminal.
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(4) };
    let bar = ProgressBar::with_draw_target(Some(length.max(1)), target);
    if let Ok(style) = ProgressStyle::with_template("[{bar:28}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Progress {
    pub(super) fn new(duration: Duration, quiet: bool) -> Self {
        let bar = bar(duration.as_millis() as u64, quiet);
        let now = Instant::now();
        Self { bar, started: now, last: (now, Tick::default()) }
    }

    /// Shows a tick.
    pub(super) fn show(&mut self, tick: &Tick) {
        let elapsed = self.started.elapsed();
        let since = self.last.0.elapsed().as_secs_f64().max(1e-3);
        let events = (tick.allocated + tick.freed).saturating_sub(self.last.1.allocated + self.last.1.freed);
        let total = Duration::from_millis(self.bar.length().unwrap_or(0));
        let sampled =
            if tick.sampling > 1 { format!("  1 in {} tracked", tick.sampling) } else { String::new() };
        self.bar.set_position(elapsed.as_millis() as u64);
        self.bar.set_message(format!(
            "{} left of {}  {} events/s  {} live{sampled}",
            units::seconds(total.saturating_sub(elapsed).as_secs_f64().round()),
            units::seconds(total.as_secs_f64()),
            units::count((events as f64 / since) as u64),
            units::count(tick.live),
        ));
        self.last = (Instant::now(), *tick);
    }

    /// Says something above the progress line, or where that would be.
    pub(super) fn say(&self, notes: &[String]) {
        for note in notes {
            self.bar.suspend(|| say(&format!("note: {}", escape(note))));
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
