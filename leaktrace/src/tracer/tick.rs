//! Looking at the tables with every tick: what survives, how it grows, and what has to be adjusted.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Tick, Tracer,
    births::{BirthTable, ByOwner},
    clock::thread_cpu,
    monotonic_ns,
    nested::Wanted,
    scan,
};

/// Part of a core that counting survivors may take, before it is done less often.
const SCAN_SHARE: u32 = 33;
/// Ticks in a row that count no survivors at most.
const MOST_SKIPPED: u32 = 8;

/// Sites whose stacks come first when the budget is short.
const SUSPECTS: usize = 16;

/// Age from which a note on an object that was handed to `kfree_rcu` is of no use: grace periods
/// end within a fraction of that, and batches within some seconds.
const PENDING: Duration = Duration::from_secs(20);

impl Tracer {
    /// Looks at the tables: counts, growth, and what has to be adjusted.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn tick(&mut self) -> Result<Tick> {
        self.ticks += 1;
        self.watch.update(&self.control.read(0));
        self.sites.refresh();
        self.sites.locate(&self.stacks, self.watch.stays());
        let totals = self.sites.totals();
        self.adjust_stacks(totals.allocated, totals.pages);
        self.subjects.push_live(self.started.elapsed().as_secs_f64(), &self.sites.levels());
        self.programs.miss_fewer(&mut self.ebpf, Wanted::Missing)?;
        if Instant::now() >= self.next_scan {
            self.scan()?;
        }
        self.adjust_sampling(totals.live)?;
        Ok(Tick { sampling: 1 << self.sample_shift(), ..totals })
    }

    /// Counts survivors, so seldom that it costs no more than a small share of a core.
    pub(super) fn scan(&mut self) -> Result<()> {
        let (begun, cpu_before) = (Instant::now(), thread_cpu());
        let seconds = self.started.elapsed().as_secs_f64();
        let now = monotonic_ns();
        let born_before = now.saturating_sub(self.settings.min_age.as_nanos() as u64);
        let overflow = self.overflowed()?;
        let stays = self.watch.stays();
        self.subjects.learn(&self.sites, &*self.attribute, stays);
        let counts = scan::count(&self.live, &overflow, self.subjects.split(), born_before);
        self.subjects.push(seconds, &counts, &self.sites, &self.stacks, &*self.attribute, stays);
        self.sites.suspect(&self.subjects.most_growing(|site| self.sites.object_size(site), SUSPECTS));
        if self.looks.is_due(seconds, self.settings.min_age.as_secs_f64()) {
            let window = (self.started_ns, now);
            let births = scan::births(&self.live, &overflow, self.subjects.split(), window);
            let births = self.by_owner(&births);
            self.looks.keep(seconds, births);
        }
        self.forget_pending(PENDING)?;
        self.scans += 1;
        self.slowest_scan = self.slowest_scan.max(begun.elapsed());
        // Of the time on the clock, others may have had the most, or the machine was suspended. A tick that comes a
        // little early is in time.
        let took = thread_cpu().saturating_sub(cpu_before);
        let pause = (took * SCAN_SHARE).saturating_sub(self.settings.interval / 2);
        self.next_scan = begun + pause.min(self.settings.interval * MOST_SKIPPED);
        Ok(())
    }

    /// Puts births together by responsible callers.
    pub(super) fn by_owner(&mut self, births: &BirthTable) -> ByOwner {
        let stays = self.watch.stays();
        self.subjects.births(births, &self.sites, &self.stacks, &*self.attribute, stays)
    }
}
