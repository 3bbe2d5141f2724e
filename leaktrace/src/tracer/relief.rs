//! Adjusting while a trace goes on: how many stacks are captured, and how large the sample is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use leaktrace_common::STACK_MASK_SHIFT;

use super::{Tracer, load, monotonic_ns, names, scan};

/// The same when the tables are full; then a free that is seen once more counts as an older object's.
const PENDING_WHEN_FULL: Duration = Duration::from_secs(1);

/// What a stack capture is taken to cost before any was measured.
const STACK_NS: f64 = 2_500.0;

impl Tracer {
    /// Chooses how thinly stacks are sampled from how many there would be and what each cost.
    pub(super) fn adjust_stacks(&mut self, allocated: u64, pages: u64) {
        let (then, before, pages_before) = self.last_allocated;
        let elapsed = then.elapsed().as_secs_f64();
        if elapsed < 0.05 || self.settings.stack_share >= 1.0 {
            return;
        }
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed;
        let (slab, pages_per_s) = (
            per_second(allocated.saturating_sub(pages), before.saturating_sub(pages_before)),
            per_second(pages, pages_before),
        );
        self.last_allocated = (Instant::now(), allocated, pages);
        let (captured, ns) = (0..self.cpus.len())
            .map(|cpu| self.cpus.read(cpu))
            .fold((0, 0), |(captured, ns), cpu| (captured + cpu.stacks, ns + cpu.stacks_ns));
        let each = if captured == 0 { STACK_NS } else { ns as f64 / captured as f64 };
        let budget = self.settings.stack_share * 1e9 * f64::from(self.sizes.cpus);
        let mask = |per_second: f64, budget: f64| {
            let bits = (per_second * each / budget.max(1.0)).log2().ceil().clamp(0.0, 16.0) as u32;
            ((1_u64 << bits) - 1) << STACK_MASK_SHIFT
        };
        // Of slab the site is known without a stack, so pages have half of it if they need so much.
        let for_pages = (pages_per_s * each).min(budget / 2.0);
        // SAFETY: the control block is mapped; programs only read these words.
        unsafe {
            let control = self.control.at(0);
            (&raw mut (*control).stack_mask).write_volatile(mask(slab, budget - for_pages));
            (&raw mut (*control).page_mask).write_volatile(mask(pages_per_s, budget / 2.0));
        }
    }

    /// Tracks a smaller sample when more objects are live than the tables were made for.
    pub(super) fn adjust_sampling(&mut self, live: u64) -> Result<()> {
        let tracked = live >> self.sample_shift();
        let mut halvings = 0;
        while tracked >> halvings > self.sizes.max_objects {
            halvings += 1;
        }
        self.shrink_sample(halvings)
    }

    /// Tracks a smaller sample at once when the tables are about to lose objects, or do: which ones
    /// they lose depends on the time, and what was allocated last may well live longest.
    /// Costs next to nothing when there is room, so it can be asked often.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn relieve(&mut self) -> Result<()> {
        let control = self.control.read(0);
        if control.overflow_lost == self.lost_before
            && control.overflow_live <= u64::from(self.sizes.overflow) / 8
        {
            return Ok(());
        }
        if self.last_forgotten.elapsed() >= PENDING_WHEN_FULL && self.programs.has("kvfree_call_rcu") {
            // A storm of kfree_rcu fills the tables with notes: those go first.
            self.forget_pending(PENDING_WHEN_FULL)?;
            let control = self.control.read(0);
            if control.overflow_live <= u64::from(self.sizes.overflow) / 8 {
                self.lost_before = control.overflow_lost;
                return Ok(());
            }
        }
        self.shrink_sample(1)
    }

    /// Removes the notes on objects that were handed to `kfree_rcu` at least so long ago.
    pub(super) fn forget_pending(&mut self, age: Duration) -> Result<()> {
        if !self.programs.has("kvfree_call_rcu") {
            return Ok(());
        }
        self.last_forgotten = Instant::now();
        let before_ns = monotonic_ns().saturating_sub(age.as_nanos() as u64);
        scan::forget_pending(&self.live, before_ns);
        if self.control.read(0).overflow_live > 0 {
            names::forget_pending(&mut self.ebpf, &self.control, before_ns)
                .context("cannot purge the overflow map")?;
        }
        Ok(())
    }

    fn shrink_sample(&mut self, halvings: u32) -> Result<()> {
        let before = self.sample_shift();
        let shift = (before + halvings).min(leaktrace_common::MAX_SAMPLE_SHIFT);
        if shift == before {
            return Ok(());
        }
        // SAFETY: the control block is mapped; programs only read this word.
        unsafe { (&raw mut (*self.control.at(0)).sample_shift).write_volatile(u64::from(shift)) };
        self.sites.refresh();
        let sums = self.sites.sums();
        let born_before = monotonic_ns();
        // Room at once; and once more when no program is left that had read the old value.
        scan::purge(&self.live, self.sites.len(), shift, born_before);
        load::wait_for_programs();
        let mut kept = scan::purge(&self.live, self.sites.len(), shift, born_before);
        names::purge_overflow(&mut self.ebpf, &self.control, shift, &mut kept)
            .context("cannot purge the overflow map")?;
        self.sites.begin_epoch(&sums, &kept, shift - before);
        self.looks.forget();
        self.lost_before = self.control.read(0).overflow_lost;
        Ok(())
    }
}
