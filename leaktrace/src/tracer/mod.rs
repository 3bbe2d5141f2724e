//! The tracer: loads and attaches the programs, looks at their tables each tick, and takes the
//! last look when they are detached. The only user of aya.

mod births;
mod clock;
pub mod cost;
pub mod hooks;
mod left;
mod linkage;
mod load;
mod mapped;
mod merge;
mod messages;
mod names;
mod nested;
mod objects;
mod page_uses;
mod peek;
mod processes;
mod programs;
mod records;
mod relief;
mod sampling;
mod scan;
mod series;
mod settings;
mod sites;
pub mod sizes;
mod snapshot;
mod subjects;
mod tick;
mod unknown;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use leaktrace_common::{Bucket, Control, Counters, CpuState, Payload, Site, StackRecord};

use self::{
    births::Looks, cost::CostMeter, mapped::MappedArray, messages::Messages, nested::Wanted, peek::Peeker,
    programs::Programs, sites::SiteTable, sizes::Sizes, subjects::Subjects, watch::Watch,
};
pub use self::{
    clock::monotonic_ns,
    cost::ProgramCost,
    left::Left,
    objects::ProcessSite,
    programs::HookState,
    scan::LiveObject,
    series::Series,
    settings::Settings,
    sites::{Attribute, Level, Located, Tick},
    snapshot::{FreeCaller, Lost, SiteRecord, Snapshot, StackShare, TaskShare},
    watch::Stay,
};
use crate::{
    analysis::linkage::Linkage,
    kernel::{data::DataPlaces, layout::Layout, memory},
};

/// How often it is asked whether a watched module has come.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

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
    memory: Option<memory::Map>,
    meter: CostMeter,
    started: Instant,
    started_ns: u64,
    next_scan: Instant,
    looks: Looks,
    scans: u64,
    ticks: u64,
    slowest_scan: Duration,
    /// When stacks were adjusted last, and the allocations until then: of all, and of pages.
    last_allocated: (Instant, u64, u64),
    lost_before: u64,
    last_forgotten: Instant,
    last: Option<snapshot::Last>,
    /// Whether the last look has been taken already.
    ended: bool,
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
            memory: layout.memory.clone(),
            ebpf,
            messages,
            programs,
            settings,
            sizes,
            meter: CostMeter::default(),
            started: now,
            started_ns: monotonic_ns(),
            next_scan: now,
            looks: Looks::default(),
            scans: 0,
            ticks: 0,
            slowest_scan: Duration::ZERO,
            last_allocated: (now, 0, 0),
            lost_before: 0,
            last_forgotten: now,
            last: None,
            ended: false,
        })
    }

    /// Attaches all hooks; what is not required may fail and is then told in the report.
    ///
    /// # Errors
    /// Names the required hook that the kernel refused.
    pub fn attach(&mut self) -> Result<()> {
        self.programs.attach(&mut self.ebpf)?;
        self.sites.refresh();
        self.sites.forget_unknown_frees();
        (self.started, self.started_ns) = (Instant::now(), monotonic_ns());
        self.last_allocated = (self.started, 0, 0);
        Ok(())
    }

    /// Lets `f` say of each cache that the filter has kept out whether it should be recorded after all.
    pub fn admit_caches(&mut self, f: impl FnMut(&str) -> bool) {
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

    /// Prepares for being without privileges: what the programs cost cannot be measured then, and no program attached.
    ///
    /// # Errors
    /// When the kernel does not say what the programs missed.
    pub fn prepare_to_give_up(&mut self) -> Result<()> {
        self.meter.give_up();
        self.programs.miss_fewer(&mut self.ebpf, Wanted::All)
    }

    /// What each program cost, and the events that were missed.
    fn costs(&self) -> Result<Vec<(&'static str, ProgramCost, u64)>> {
        // Read before what was missed is: what comes between the two counts as missed.
        self.programs.costs(&self.ebpf, nested::booked(&self.cpus))
    }

    /// Whether the kernel lets this process look at its tables.
    pub fn may_look(&self) -> bool {
        names::read_overflow(&self.ebpf).is_ok() && self.costs().is_ok()
    }

    /// Waits for an RCU grace period: what was given to RCU before is being freed then.
    pub fn wait_for_grace_period(&self) {
        load::wait_for_programs();
    }

    /// Where all sites stand that ever allocated, at this moment.
    pub fn levels(&self) -> Vec<Level> {
        self.sites.levels()
    }

    /// What a site is: its call site, family, cache, and bytes of an object.
    pub fn describe(&self, site: u32) -> (u64, String, String, u32) {
        let trusted = self.control.read(0).page_lookups_wrong == 0;
        self.sites.describe(site as usize, trusted)
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

    /// Takes the programs off their hooks; nothing is recorded any more.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn detach(&mut self) -> Result<()> {
        self.meter.end();
        self.sites.refresh();
        self.sites.locate(&self.stacks, self.watch.stays());
        // The last tick that counted survivors may have been a while ago.
        if !self.ended {
            self.scan()?;
        }
        let last = snapshot::Last { costs: self.costs()?, duration: self.started.elapsed() };
        self.sites.freeze_unknown_frees();
        self.programs.detach(&mut self.ebpf)?;
        self.last = Some(last);
        Ok(())
    }

    /// Counts survivors once more, and takes a whole look at the tables: for a trace that ends here while its programs go on.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn snapshot_at_the_end(&mut self) -> Result<Snapshot> {
        self.sites.refresh();
        self.sites.locate(&self.stacks, self.watch.stays());
        self.scan()?;
        self.ended = true;
        self.snapshot()
    }

    /// Takes a whole look at the tables: the last one if the programs are detached.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        self.watch.update(&self.control.read(0));
        self.sites.refresh();
        self.sites.locate(&self.stacks, self.watch.stays());
        self.subjects.learn(&self.sites, &*self.attribute, self.watch.stays());
        let last = match self.last.clone() {
            Some(last) => last,
            None => snapshot::Last { costs: self.costs()?, duration: self.started.elapsed() },
        };
        snapshot::take(self, last)
    }

    /// Looks at survivors in memory: whether they are part of a structure there. `which` are indices of
    /// the snapshot's sites; `modules` are those whose data may hold them, and `places` says where data is.
    ///
    /// # Errors
    /// Says why memory cannot be read.
    pub fn linkage(
        &self,
        snapshot: &Snapshot,
        which: &[usize],
        modules: &[&str],
        places: &DataPlaces,
    ) -> Result<Vec<Linkage>> {
        linkage::look(self, snapshot, which, modules, places)
    }

    /// Calls `with` for each live object of the snapshot's sites, with the index of the site.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn each_object(&mut self, snapshot: &Snapshot, with: impl FnMut(usize, &LiveObject)) -> Result<()> {
        objects::visit(self, snapshot, with)
    }

    /// Calls `with` for the address of each object that was allocated, or given to `kfree_rcu`, since tracing began, and that
    /// the sample has.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub fn each_address(&self, with: impl FnMut(u64)) -> Result<()> {
        scan::each_address(&self.live, &self.overflowed()?, with);
        Ok(())
    }

    /// Whether survivors can be looked at in memory, or why not.
    ///
    /// # Errors
    /// The reason.
    pub fn can_look_at_memory(&self) -> Result<(), String> {
        linkage::ways(self).map(drop)
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
        objects::of_process(self, pid)
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
