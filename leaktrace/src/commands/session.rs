//! A trace that is going on: programs on their hooks, what was read around them, and reports of how things stand.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use caps::Capability;
use procfs::{Current as _, Meminfo};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{runtime::Runtime, time::Instant as Deadline};

use super::{
    attribute::Attribution,
    filter::Filter,
    output::say,
    probe::{self, Kernel},
    saved,
    stop::Stop,
    surroundings::{Scope, Surroundings},
};
use crate::{
    analysis::accounts::Accounts,
    cli::WatchArgs,
    kernel::{
        data::DataPlaces,
        dwarf::DebugInfo,
        machine::{Machine, page_bytes},
        modules,
        places::Places,
        privilege,
    },
    proc::{
        profile,
        slab::{self, CacheTraits, SlabCache},
    },
    report::{escape, known::Known, model::Filters},
    tracer::{
        Attribute, Settings, Tick, Tracer,
        hooks::{Family, UNSEEN},
        sizes::Sizes,
    },
    units,
};

/// Frames that the tracing itself and the allocator put on a stack before the call site's.
const OWN_FRAMES: u32 = 6;
/// Part of an interval in which the kernel measures the programs, which slows them a little.
const MEASURED_PART: u32 = 20;
/// Intervals that are measured: the first ones, and one in so many later on. To switch measuring on and
/// off the kernel changes its code on all CPUs.
const MEASURED_FIRST: u64 = 3;
const MEASURED_LATER: u64 = 8;

/// How a session is run, beside what is traced.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Age from which a live object counts as a survivor.
    pub(super) min_age: Duration,
    /// Time between two looks.
    pub(super) interval: Duration,
    /// Findings that are reported.
    pub(super) top: u32,
    /// Whether the programs' own messages are wanted.
    pub(super) verbose: bool,
    /// Whether nothing but errors is.
    pub(super) quiet: bool,
}

impl How {
    /// Of a session without a set end.
    pub(super) fn watching(args: &WatchArgs, findings: u32, quiet: bool) -> Self {
        Self { min_age: args.survivor_age(), interval: args.interval(), top: findings, verbose: false, quiet }
    }
}

/// A trace that is going on.
pub(super) struct Session {
    pub(super) stop: Stop,
    pub(super) tracer: Tracer,
    pub(super) surroundings: Surroundings,
    pub(super) baseline: Option<Known>,
    attribution: Arc<Attribution>,
    filter: Filter,
    interval: Duration,
    /// When the last tick was due.
    due: Deadline,
    nth: u64,
}

/// Why a tick ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The interval is over.
    Tick,
    /// A signal came.
    Stopped,
}

/// How long what the programs cost is measured before privileges are given up.
const MEASURED_ONCE: Duration = Duration::from_secs(1);

/// Of a session without an end: so far away that it does not come.
pub(super) fn never() -> Deadline {
    Deadline::now() + Duration::from_hours(24 * 365)
}

/// What signals and timers need.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")
}

impl Session {
    /// Makes the tables, loads the programs, and attaches them. To be called inside a runtime.
    ///
    /// # Errors
    /// What is wrong with the request or with this kernel.
    pub(super) fn begin(kernel: Kernel, args: &WatchArgs, how: &How) -> Result<Self> {
        let root = Path::new("/");
        let mut filter = Filter::new(&args.cache)?;
        let baseline =
            args.baseline.as_deref().map(saved::read).transpose()?.map(|report| Known::of(&report));
        let symbols = Arc::new(kernel.symbols);
        let debug = DebugInfo::open(&args.vmlinux, &symbols, root)?;
        let places = Places::new(Arc::clone(&symbols), debug, root);
        let tell = |text: &str| {
            if !how.quiet {
                say(text);
            }
        };
        let note = |text: &str| tell(&format!("note: {}", escape(text)));
        if let Some(text) = places.note() {
            note(text);
        }
        let slabinfo = slab::read_slabinfo(root);
        let slabinfo_error = slabinfo.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &slabinfo_error {
            note(&format!("{error}: what is traced cannot be compared with it"));
        }
        let before = slabinfo.ok();
        let traits = slab::read_traits(root, before.iter().flatten().map(|(name, _)| name.as_str()));
        let settings = settings(args, how, &mut filter, before.as_ref(), &traits);
        if settings.filter_caches && settings.caches.is_empty() {
            note("no slab cache has such a name now: one is recorded as soon as it appears");
        }
        let mut loaded = Vec::new();
        for module in args.modules() {
            match modules::text(root, &module, &symbols) {
                Some(text) => loaded.push((module, text)),
                None => note(&format!("module {module} is not loaded: waiting for it")),
            }
        }
        let sizes = Sizes::choose(&kernel.machine, args.max_objects)?;
        // Before anything is attached, so that no signal finds the default action.
        let stop = Stop::new().context("cannot catch signals")?;
        let attribution = Arc::new(Attribution::new(symbols, args.helper.clone()));
        attribution.learn(&places);
        let attribute: Arc<dyn Attribute> = Arc::<Attribution>::clone(&attribution);
        let mut tracer = Tracer::new(&kernel.layout, sizes, settings, attribute, &loaded)?;
        let memory = Meminfo::current().context("cannot read /proc/meminfo")?;
        let started = now();
        let accounts = profile::read(root, page_bytes());
        tracer.attach()?;
        // Once more, because the tables and programs themselves took slab memory.
        let before = before.and_then(|_| slab::read_slabinfo(root).ok());
        tell(&banner(&kernel.machine, &tracer, args));
        let surroundings = Surroundings {
            started,
            offers: probe::offers(root, Some(&kernel.machine)),
            machine: kernel.machine,
            slabinfo: before.map(|before| (before.clone(), before)),
            traits,
            memory: (memory.clone(), memory),
            places,
            data: DataPlaces::read(root),
            no_page_lookup: kernel.layout.no_page_lookup,
            slabinfo_error,
            scope: Scope {
                min_age: how.min_age,
                findings: how.top as usize,
                frames: args.stack_depth as usize,
            },
            filters: filters(args),
            accounts: accounts.map(|places| (places, Accounts::default())),
            proofs: None,
        };
        Ok(Self {
            stop,
            tracer,
            surroundings,
            baseline,
            attribution,
            filter,
            interval: how.interval,
            due: Deadline::now(),
            nth: 0,
        })
    }

    /// Measures for a moment, and gives up all capabilities: what is traced goes on, and what is shown only to the
    /// privileged is open already. Returns the one that this kernel demands for looking, if it does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn give_up_privileges(&mut self) -> Result<Option<Capability>> {
        self.tracer.begin_measuring();
        // A signal is for the tick that comes.
        tokio::time::sleep(MEASURED_ONCE.min(self.interval)).await;
        self.tracer.prepare_to_give_up()?;
        privilege::give_up(|| self.tracer.may_look())
    }

    /// Waits for the next tick, or for the end if that comes before, and looks at the tables then. Ticks keep their pace
    /// however long one takes; one that is late comes at once.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) async fn tick(&mut self, end: Deadline) -> Result<(Woken, Tick)> {
        self.due = (self.due + self.interval).max(Deadline::now());
        let next = self.due.min(end);
        let measures = self.nth < MEASURED_FIRST || self.nth.is_multiple_of(MEASURED_LATER);
        self.nth += 1;
        if measures {
            self.tracer.begin_measuring();
        }
        let measured = (Deadline::now() + self.interval / MEASURED_PART).min(end);
        let stopped = self.stop.wait_until(measured).await;
        self.tracer.end_measuring();
        self.learn();
        if stopped || self.rest(next).await? == Woken::Stopped {
            return Ok((Woken::Stopped, Tick::default()));
        }
        if self.surroundings.places.notice() {
            self.attribution.learn(&self.surroundings.places);
        }
        let tick = self.tracer.tick()?;
        self.admit();
        Ok((Woken::Tick, tick))
    }

    /// Records caches that have appeared, if their names were asked for.
    pub(super) fn admit(&mut self) {
        let filter = &mut self.filter;
        let surroundings = &mut self.surroundings;
        // A module makes its caches when it is loaded, and the kernel may merge them into others at once.
        if filter.absent().next().is_some()
            && let Ok(caches) = slab::read_slabinfo(Path::new("/"))
        {
            let names = caches.keys().map(String::as_str);
            surroundings.traits = slab::read_traits(Path::new("/"), names);
            for name in caches.keys() {
                filter.matches(name, surroundings.traits.get(name));
            }
        }
        self.tracer.admit_caches(|name| filter.matches(name, surroundings.traits.get(name)));
    }

    /// Notes what was asked for and never there.
    pub(super) fn note_absent(&mut self) {
        let stays = self.tracer.stays();
        let filters = &mut self.surroundings.filters;
        let absent = |module: &&String| !stays.iter().any(|stay| stay.module == **module);
        filters.absent_modules = filters.modules.iter().filter(absent).cloned().collect();
        filters.absent_caches = self.filter.absent().map(ToOwned::to_owned).collect();
    }

    /// Waits, but relieves the tables whenever they fill up.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) async fn rest(&mut self, deadline: Deadline) -> Result<Woken> {
        let interval = self.tracer.relief_interval();
        loop {
            if self.stop.wait_until((Deadline::now() + interval).min(deadline)).await {
                return Ok(Woken::Stopped);
            }
            self.tracer.relieve()?;
            self.learn();
            if Deadline::now() >= deadline {
                return Ok(Woken::Tick);
            }
        }
    }

    /// Reads the symbols of watched modules as soon as they are loaded: they may be gone at the end.
    fn learn(&mut self) {
        if !self.tracer.watch_modules() {
            return;
        }
        let (mut names, mut code) = (Vec::new(), Vec::new());
        for stay in self.tracer.stays().iter().filter(|stay| stay.removed_ns.is_none()) {
            names.push(stay.module.clone());
            code.extend(stay.ranges.iter().map(|&(start, end)| start..end));
        }
        self.surroundings.places.learn(&names, code);
        self.attribution.learn(&self.surroundings.places);
    }
}

/// The time, to the second, as reports have it.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// What is recorded, where that is not everything.
fn filters(args: &WatchArgs) -> Filters {
    let families = args.families();
    let some = families.len() < Family::ALL.len();
    let mut filters = Filters {
        modules: args.modules(),
        caches: args.cache.clone(),
        families: families.into_iter().filter(|_| some).map(|family| family.word().into()).collect(),
        min_size: args.min_size,
        max_size: args.max_size,
        ..Filters::default()
    };
    filters.text = filters.in_words().unwrap_or_default();
    filters
}

fn banner(machine: &Machine, tracer: &Tracer, args: &WatchArgs) -> String {
    let (attached, failed): (Vec<_>, Vec<_>) = tracer.hooks().iter().partition(|state| state.error.is_none());
    let families: Vec<_> = args.families().into_iter().map(Family::word).collect();
    let unseen = UNSEEN.iter().filter(|unseen| args.families().contains(&unseen.family)).count();
    let blind = match failed.len() + unseen {
        0 => "no blind spots".to_owned(),
        spots => units::plural(spots, "blind spot"),
    };
    format!(
        "Tracing kernel memory on {} ({}, {} CPUs): {}; {} hooks, {blind}; tables for {} objects take {} of kernel memory. Ctrl-C ends early.",
        escape(&machine.release),
        machine.architecture,
        machine.online_cpus,
        families.join(", "),
        attached.len(),
        units::count(tracer.max_objects()),
        units::bytes(tracer.table_bytes() as f64),
    )
}

fn settings(
    args: &WatchArgs,
    how: &How,
    filter: &mut Filter,
    slabinfo: Option<&BTreeMap<String, SlabCache>>,
    traits: &HashMap<String, CacheTraits>,
) -> Settings {
    let filter_caches = filter.is_on();
    let caches = slabinfo
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|name| filter_caches && filter.matches(name, traits.get(*name)))
        .cloned()
        .collect();
    Settings {
        stack_share: args.overhead / 100.0,
        stack_depth: if args.stack_depth == 0 { 0 } else { args.stack_depth + OWN_FRAMES },
        min_size: args.min_size,
        max_size: args.max_size.unwrap_or(u32::MAX),
        filter_caches,
        caches,
        families: args.families(),
        modules: args.modules(),
        refused: args.refuse.clone(),
        min_age: how.min_age,
        interval: how.interval,
        verbose: how.verbose,
    }
}
