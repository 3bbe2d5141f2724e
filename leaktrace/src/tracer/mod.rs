//! The tracer: loads and attaches the programs, looks at their tables each tick, and takes the
//! last look when they are detached. The only user of aya.

pub mod cost;
pub mod hooks;
mod left;
mod linkage;
mod load;
mod mapped;
mod messages;
mod names;
mod page_uses;
mod peek;
mod processes;
mod programs;
mod records;
mod sampling;
mod scan;
mod series;
mod settings;
mod sites;
pub mod sizes;
mod snapshot;
mod subjects;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use leaktrace_common::{Bucket, Control, Counters, CpuState, Payload, Site, StackRecord};

use self::{
    cost::CostMeter, mapped::MappedArray, messages::Messages, peek::Peeker, programs::Programs, scan::Question,
    sites::SiteTable, sizes::Sizes, subjects::Subjects, watch::Watch,
};
pub use self::{
    cost::ProgramCost,
    left::Left,
    programs::HookState,
    scan::LiveObject,
    series::Series,
    settings::Settings,
    sites::{Attribute, Located, Tick},
    snapshot::{FreeCaller, Lost, SiteRecord, Snapshot, StackShare, TaskShare},
    watch::Stay,
};
use crate::{analysis::linkage::Linkage, kernel::layout::Layout};

/// What one process holds of one site.
#[derive(Clone, Copy, Debug)]
pub struct ProcessSite {
    /// Index of the site.
    pub site: usize,
    /// `kmalloc`, `kmalloc-large` or `kmem_cache`.
    pub family: &'static str,
    /// Live objects.
    pub objects: u64,
}

/// Part of a core that scanning the table may take.
const SCAN_SHARE: u32 = 200;
/// Most buckets of which one is looked at in a tick, when looking at all of them takes too long.
const MAX_STRIDE: usize = 16;

/// Sites whose stacks come first when the budget is short.
const SUSPECTS: usize = 16;

/// Age from which a note on an object that was handed to `kfree_rcu` is of no use: grace periods
/// end within a fraction of that, and batches within some seconds.
const PENDING: Duration = Duration::from_secs(20);

/// The same when the tables are full; then a free that is seen once more counts as an older object's.
const PENDING_WHEN_FULL: Duration = Duration::from_secs(1);

/// How often it is asked whether a watched module has come.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What a stack capture is taken to cost before any was measured.
const STACK_NS: f64 = 2_500.0;

/// Programs on their hooks, and the tables they fill.
pub struct Tracer {
    ebpf: Ebpf,
    programs: Programs,
    settings: Settings,
    sizes: Sizes,
    messages: Option<Messages>,
    live: MappedArray<Bucket>,
    stacks: MappedArray<StackRecord>,
    control: MappedArray<Control>,
    cpus: MappedArray<CpuState>,
    sites: SiteTable,
    subjects: Subjects,
    attribute: Arc<dyn Attribute>,
    peeker: Result<Peeker, String>,
    watch: Watch,
    page_struct: u32,
    meter: CostMeter,
    started: Instant,
    next_scan: Instant,
    stride: usize,
    scans: u64,
    ticks: u64,
    slowest_scan: Duration,
    last_allocated: (Instant, u64),
    lost_before: u64,
    last_forgotten: Instant,
    last: Option<snapshot::Last>,
}

impl Tracer {
    /// Makes the tables and loads the programs: all of them before the first is attached, because
    /// the kernel allocates and frees thousands of objects for each, which are nobody's leak.
    ///
    /// `attribute` says whose stacks are, and `loaded` has the text of watched modules that are loaded.
    ///
    /// # Errors
    /// One line on what the kernel refused.
    pub fn new(
        layout: &Layout,
        sizes: Sizes,
        settings: Settings,
        attribute: Arc<dyn Attribute>,
        loaded: &[(String, (u64, u64))],
    ) -> Result<Self> {
        let mut ebpf = load::create(layout.config, &sizes, &settings)?;
        let messages = if settings.verbose { Some(Messages::open(&mut ebpf)?) } else { None };
        let hooks =
            hooks::for_kernel(layout, &settings.families, !settings.modules.is_empty(), &settings.refused);
        let programs = Programs::load(&mut ebpf, hooks)?;
        let peeker = Peeker::load(&mut ebpf).map_err(|error| format!("{error:#}"));
        let control = MappedArray::map(&ebpf, "CONTROL", 1)?;
        let mut watch = Watch::new(
            settings.modules.clone(),
            MappedArray::map(
                &ebpf,
                "MODULES",
                (leaktrace_common::MAX_MODULES * leaktrace_common::MODULE_RANGES) as u32,
            )?,
            MappedArray::map(&ebpf, "MODULE_LOG", leaktrace_common::MODULE_EVENTS)?,
        );
        for (module, text) in loaded {
            watch.begin_with(&control, module, *text);
        }
        let now = Instant::now();
        Ok(Self {
            live: MappedArray::map(&ebpf, "LIVE", sizes.buckets)?,
            stacks: MappedArray::map(&ebpf, "STACKS", sizes.stacks)?,
            control,
            cpus: MappedArray::map(&ebpf, "CPUS", sizes.cpus)?,
            sites: SiteTable::new(
                MappedArray::<Site>::map(&ebpf, "SITES", sizes.sites)?,
                MappedArray::<Counters>::map(&ebpf, "COUNTERS", sizes.sites * sizes.shards)?,
                sizes.shards as usize,
                Arc::clone(&attribute),
            ),
            subjects: Subjects::default(),
            attribute,
            peeker,
            watch,
            page_struct: layout.config.page_size_of,
            ebpf,
            messages,
            programs,
            settings,
            sizes,
            meter: CostMeter::default(),
            started: now,
            next_scan: now,
            stride: 1,
            scans: 0,
            ticks: 0,
            slowest_scan: Duration::ZERO,
            last_allocated: (now, 0),
            lost_before: 0,
            last_forgotten: now,
            last: None,
        })
    }

    /// Attaches all hooks; what is not required may fail and is then told in the report.
    ///
    /// # Errors
    /// Names the required hook that the kernel refused.
    pub fn attach(&mut self) -> Result<()> {
        self.programs.attach(&mut self.ebpf)?;
        self.started = Instant::now();
        self.last_allocated = (self.started, 0);
        Ok(())
    }

    /// Lets `f` say of each cache that the filter has kept out whether it should be recorded after all.
    pub fn admit_caches(&mut self, f: impl Fn(&str) -> bool) {
        if self.settings.filter_caches {
            self.sites.admit(f, self.settings.min_size, self.settings.max_size);
        }
    }

    /// Turns the kernel's run-time statistics on for a moment; see [`Tracer::end_measuring`].
    pub fn begin_measuring(&mut self) {
        self.meter.begin();
    }

    /// Turns them off again.
    pub fn end_measuring(&mut self) {
        self.meter.end();
    }

    /// Looks at the tables: counts, growth, and what has to be adjusted.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn tick(&mut self) -> Result<Tick> {
        self.ticks += 1;
        self.watch.update(&self.control.read(0));
        self.sites.locate(&self.stacks, self.watch.stays());
        let totals = self.sites.totals();
        self.adjust_stacks(totals.allocated);
        if Instant::now() >= self.next_scan {
            self.scan()?;
        }
        self.adjust_sampling(totals.live)?;
        Ok(Tick { sampling: 1 << self.sample_shift(), ..totals })
    }

    /// Counts survivors, in a part of the table where it is large: so that it can be done with every tick,
    /// and costs no more than a small share of a core.
    fn scan(&mut self) -> Result<()> {
        let begun = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        let born_before = monotonic_ns().saturating_sub(self.settings.min_age.as_nanos() as u64);
        let overflow = self.overflowed()?;
        let stays = self.watch.stays();
        self.subjects.learn(&self.sites, &*self.attribute, stays);
        let counts = scan::count(&self.live, &overflow, self.subjects.split(), born_before, self.stride);
        self.subjects.push(seconds, &counts, &self.sites, &self.stacks, &*self.attribute, stays);
        self.sites.suspect(&self.subjects.most_growing(|site| self.sites.object_size(site), SUSPECTS));
        self.forget_pending(PENDING)?;
        self.scans += 1;
        let took = begun.elapsed();
        self.slowest_scan = self.slowest_scan.max(took);
        let allowed = self.settings.interval / SCAN_SHARE;
        if took > allowed && self.stride < MAX_STRIDE {
            self.stride *= 2;
        } else if took * 4 < allowed && self.stride > 1 {
            self.stride /= 2;
        }
        // What still takes too long is done less often; but a tick that comes a little early is in time.
        self.next_scan = begun + (took * SCAN_SHARE).saturating_sub(self.settings.interval / 2);
        Ok(())
    }

    /// Objects in the overflow map; a map that is empty costs no system call.
    fn overflowed(&self) -> Result<Vec<(u64, Payload)>> {
        if self.control.read(0).overflow_live == 0 {
            return Ok(Vec::new());
        }
        names::read_overflow(&self.ebpf).context("cannot read the overflow map")
    }

    fn sample_shift(&self) -> u32 {
        self.control.read(0).sample_shift as u32
    }

    /// Chooses how thinly stacks are sampled from how many there would be and what each cost.
    fn adjust_stacks(&mut self, allocated: u64) {
        let (then, before) = self.last_allocated;
        let elapsed = then.elapsed().as_secs_f64();
        if elapsed < 0.05 || self.settings.stack_share >= 1.0 {
            return;
        }
        let per_second = allocated.saturating_sub(before) as f64 / elapsed;
        self.last_allocated = (Instant::now(), allocated);
        let (captured, ns) = (0..self.cpus.len())
            .map(|cpu| self.cpus.read(cpu))
            .fold((0, 0), |(captured, ns), cpu| (captured + cpu.stacks, ns + cpu.stacks_ns));
        let each = if captured == 0 { STACK_NS } else { ns as f64 / captured as f64 };
        let budget = self.settings.stack_share * 1e9 * f64::from(self.sizes.cpus);
        let bits = (per_second * each / budget.max(1.0)).log2().ceil().clamp(0.0, 16.0) as u32;
        // Bits beside those that choose the bucket and those that choose the sample.
        let mask = ((1_u64 << bits) - 1) << 44;
        // SAFETY: the control block is mapped; programs only read this word.
        unsafe { (&raw mut (*self.control.at(0)).stack_mask).write_volatile(mask) };
    }

    /// Tracks a smaller sample when more objects are live than the tables were made for.
    fn adjust_sampling(&mut self, live: u64) -> Result<()> {
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
    fn forget_pending(&mut self, age: Duration) -> Result<()> {
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
        let sums = self.sites.sums();
        let born_before = monotonic_ns();
        // Room at once; and once more when no program is left that had read the old value.
        scan::purge(&self.live, self.sites.len(), shift, born_before);
        load::wait_for_programs();
        let mut kept = scan::purge(&self.live, self.sites.len(), shift, born_before);
        names::purge_overflow(&mut self.ebpf, &self.control, shift, &mut kept)
            .context("cannot purge the overflow map")?;
        self.sites.begin_epoch(&sums, &kept, shift - before);
        self.lost_before = self.control.read(0).overflow_lost;
        Ok(())
    }

    /// Takes the programs off their hooks; nothing is recorded any more.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn detach(&mut self) -> Result<()> {
        self.meter.end();
        let last = snapshot::Last { costs: self.programs.costs(&self.ebpf)?, duration: self.started.elapsed() };
        self.programs.detach(&mut self.ebpf)?;
        self.last = Some(last);
        Ok(())
    }

    /// Takes a whole look at the tables: the last one if the programs are detached.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        self.watch.update(&self.control.read(0));
        self.sites.locate(&self.stacks, self.watch.stays());
        self.subjects.learn(&self.sites, &*self.attribute, self.watch.stays());
        let last = match self.last.clone() {
            Some(last) => last,
            None => snapshot::Last { costs: self.programs.costs(&self.ebpf)?, duration: self.started.elapsed() },
        };
        snapshot::take(self, last)
    }

    /// Looks at survivors in memory: whether they are part of a structure there. `which` are indices of
    /// the snapshot's sites.
    ///
    /// # Errors
    /// Says why memory cannot be read.
    pub fn linkage(&self, snapshot: &Snapshot, which: &[usize]) -> Result<Vec<Linkage>> {
        linkage::look(self, snapshot, which)
    }

    /// Reads whether watched modules came or went; true when one came since the last call.
    pub fn watch_modules(&mut self) -> bool {
        if self.watch.is_on() {
            self.watch.update(&self.control.read(0));
        }
        self.watch.take_loaded()
    }

    /// When which watched module was loaded, and where.
    pub fn stays(&self) -> &[Stay] {
        self.watch.stays()
    }

    /// Bytes of kernel memory that the tables take.
    pub fn table_bytes(&self) -> u64 {
        self.sizes.bytes()
    }

    /// The objects that one process allocated and that live, by site.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn live_of_process(&self, pid: u32) -> Result<Vec<ProcessSite>> {
        let overflow = self.overflowed()?;
        let (_, details) = scan::detail(&self.live, &overflow, self.sites.len(), &Question::default());
        let mut sites: Vec<ProcessSite> = Vec::new();
        for (&(site, _, tgid), group) in &details.groups {
            let site = site as usize;
            match sites.iter_mut().find(|known| known.site == site) {
                _ if tgid != pid => {}
                Some(known) => known.objects += group.objects,
                None => sites.push(ProcessSite { site, family: self.sites.family(site), objects: group.objects }),
            }
        }
        Ok(sites)
    }

    /// Names of the processes that allocated, by process id.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn task_names(&self) -> Result<rustc_hash::FxHashMap<u32, String>> {
        names::read_tasks(&self.ebpf)
    }

    /// What the programs had to say since the last call, if the trace is verbose.
    pub fn messages(&mut self) -> Vec<String> {
        self.messages.as_mut().map(Messages::take).unwrap_or_default()
    }

    /// How often [`Tracer::relieve`] should be asked.
    pub fn relief_interval(&self) -> Duration {
        let interval = self.sizes.relief_interval();
        if self.watch.is_on() { interval.min(WATCH_INTERVAL) } else { interval }
    }

    /// Outstanding objects that the tables were made for.
    pub fn max_objects(&self) -> u64 {
        self.sizes.max_objects
    }

    /// The hooks as they were attached.
    pub fn hooks(&self) -> &[HookState] {
        self.programs.hooks()
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
