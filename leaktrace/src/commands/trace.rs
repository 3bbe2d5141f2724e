//! `leaktrace`: trace, and report.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use globset::{Glob, GlobSet, GlobSetBuilder};
use procfs::{Current as _, Meminfo};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{runtime::Runtime, time::Instant as Deadline};

use super::{
    assemble::{self, Before},
    attribute::Attribution,
    judging::{self, Judging},
    kmemleak::{self, Kmemleak},
    objects,
    output::Output,
    probe,
    progress::Progress,
    prove::{self, Proofs},
    saved,
    stop::Stop,
};
use crate::{
    analysis::{accounts::Accounts, verdict::Proven},
    cli::{TraceArgs, prove_limit},
    kernel::{
        dwarf::DebugInfo,
        machine::{Machine, page_bytes},
        modules,
        places::Places,
    },
    proc::{
        profile,
        slab::{self, CacheTraits, SlabCache},
    },
    proof::Prover,
    report::{
        escape,
        known::Known,
        model::{Object, ReachSide},
    },
    tracer::{
        LiveObject, Settings, SiteRecord, Snapshot, Tracer,
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

/// What was read around the trace.
pub(super) struct Surroundings {
    pub(super) started: String,
    pub(super) machine: Machine,
    pub(super) slabinfo: Option<(BTreeMap<String, SlabCache>, BTreeMap<String, SlabCache>)>,
    pub(super) traits: HashMap<String, CacheTraits>,
    pub(super) memory: (Meminfo, Meminfo),
    pub(super) places: Places,
    pub(super) no_page_lookup: Option<String>,
    pub(super) slabinfo_error: Option<String>,
    pub(super) min_age_s: f64,
    /// What the kernel's own accounts had at the beginning and at the end, where it keeps them.
    pub(super) accounts: Option<(profile::Places, Accounts)>,
    /// What looking for pointers in memory found, with `--prove`.
    pub(super) proofs: Option<Proofs>,
}

impl Surroundings {
    /// What was found in memory of a site's survivors.
    pub(super) fn reachability(&self, site: &SiteRecord) -> Option<&ReachSide> {
        self.proofs.as_ref()?.sides.get(&(site.site, site.owner.unwrap_or(0)))
    }

    /// The same as numbers; none where nothing was finished.
    pub(super) fn proven(&self, site: &SiteRecord) -> Option<Proven> {
        let side = self.reachability(site)?;
        Some(Proven { checked: side.candidates, orphans: side.orphans, held: side.held, free: side.free })
    }

    /// One object of a site, as it is reported.
    pub(super) fn object(&self, object: &LiveObject, site: &SiteRecord, snapshot: &Snapshot) -> Object {
        let outcome = self.proofs.as_ref().and_then(|proofs| proofs.outcomes.get(&object.address));
        Object {
            address: object.address,
            size: if object.size == 0 { site.object_size } else { object.size },
            age_s: snapshot.taken_ns.saturating_sub(object.time_ns) as f64 / 1e9,
            reach: outcome.map(|outcome| prove::word(*outcome).into()),
        }
    }

    /// Reads again what changes meanwhile.
    pub(super) fn refresh(&mut self, root: &Path) {
        if let Some((_, after)) = &mut self.slabinfo
            && let Ok(now) = slab::read_slabinfo(root)
        {
            *after = now;
        }
        if let Ok(now) = Meminfo::current() {
            self.memory.1 = now;
        }
        if let Some((before, accounts)) = &mut self.accounts
            && let Some(now) = profile::read(root, page_bytes())
        {
            *accounts = Accounts::new(before, &now);
        }
        self.places.refresh(root);
    }
}

/// Traces and reports.
///
/// # Errors
/// When tracing cannot work here, or the report cannot be written.
pub(super) fn run(args: &TraceArgs) -> Result<ExitCode> {
    let root = Path::new("/");
    let filter = Filter::new(&args.cache)?;
    let baseline = args.baseline.as_deref().map(saved::read).transpose()?.map(|report| Known::of(&report));
    let output = Output::open(args.output.as_deref())?;
    output.check(args.format)?;
    let kernel = probe::probe(root)?;
    let symbols = Arc::new(kernel.symbols);
    let debug = DebugInfo::open(&args.vmlinux, &symbols, root)?;
    let places = Places::new(Arc::clone(&symbols), debug, root);
    let note = |text: &str| {
        if !args.quiet {
            eprintln!("note: {}", escape(text));
        }
    };
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
    let kmemleak = args.kmemleak.then(|| Kmemleak::find(root));
    if let Some(Err(error)) = &kmemleak {
        note(&format!("kmemleak cannot be asked: {error:#}"));
    }
    let prover = args.prove.then(prove::open);
    if let Some(Err(error)) = &prover {
        note(&format!("nothing can be proven: {error:#}"));
    }
    let settings = settings(args, &filter, before.as_ref(), &traits);
    if settings.filter_caches && settings.caches.is_empty() {
        note("no slab cache has such a name now: one is recorded as soon as it appears");
    }
    let loaded: Vec<_> = args
        .modules()
        .into_iter()
        .filter_map(|module| modules::text(root, &module, &symbols).map(|text| (module, text)))
        .collect();
    for module in args.modules() {
        if !loaded.iter().any(|(name, _)| *name == module) {
            note(&format!("module {module} is not loaded: waiting for it"));
        }
    }
    let sizes = Sizes::choose(&kernel.machine, args.max_objects)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let _guard = runtime.enter();
    // Before anything is attached, so that no signal finds the default action.
    let stop = Stop::new().context("cannot catch signals")?;
    let attribution = Arc::new(Attribution { symbols, helpers: args.helper.clone() });
    let mut tracer = Tracer::new(&kernel.layout, sizes, settings, attribution, &loaded)?;
    let memory = Meminfo::current().context("cannot read /proc/meminfo")?;
    let started = OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or_else(|_| OffsetDateTime::now_utc())
        .format(&Rfc3339)
        .unwrap_or_default();
    let accounts = profile::read(root, page_bytes());
    tracer.attach()?;
    // Once more, because the tables and programs themselves took slab memory.
    let before = before.and_then(|_| slab::read_slabinfo(root).ok());
    if !args.quiet {
        eprintln!("{}", banner(&kernel.machine, &tracer, args));
    }
    let mut surroundings = Surroundings {
        started,
        machine: kernel.machine,
        slabinfo: before.map(|before| (before.clone(), before)),
        traits,
        memory: (memory.clone(), memory),
        places,
        no_page_lookup: kernel.layout.no_page_lookup,
        slabinfo_error,
        min_age_s: args.survivor_age().as_secs_f64(),
        accounts: accounts.map(|places| (places, Accounts::default())),
        proofs: None,
    };
    let mut judging = Judging::new(args, baseline.as_ref());
    let shaken = runtime.block_on(watch(&mut tracer, &filter, &stop, &mut surroundings, &mut judging))?;
    let listed = kmemleak.map(|kmemleak| {
        let kmemleak = kmemleak?;
        kmemleak.scan()?;
        let second = Deadline::now() + kmemleak::BETWEEN;
        runtime.block_on(rest(&mut tracer, &stop, second, &mut surroundings.places))?;
        kmemleak.list()
    });
    if let Some(prover) = prover {
        let proofs = prover.and_then(|prover| {
            prove(&prover, &mut tracer, &runtime, &stop, &mut surroundings, (args, shaken.as_ref()))
        });
        surroundings.proofs = Some(proofs.unwrap_or_else(|error| Proofs::failed(&error)));
    }
    // What is freed while programs are detached one by one is not seen, so /proc is read before.
    surroundings.refresh(root);
    tracer.detach()?;
    let snapshot = tracer.snapshot()?;
    let begun = Instant::now();
    let look =
        |snapshot: &Snapshot, which: &[usize], modules: &[&str]| tracer.linkage(snapshot, which, modules);
    let judgement = assemble::judge(&snapshot, &surroundings, shaken.as_ref(), &look);
    let mut report =
        assemble::report(&snapshot, judgement, shaken.as_ref(), &surroundings, baseline.as_ref(), args);
    objects::list(&mut tracer, &snapshot, &surroundings, &mut report)?;
    if let Some(listed) = listed {
        kmemleak::compare(&mut tracer, &snapshot, listed, &mut report)?;
    }
    report.overhead.ranking_ms = begun.elapsed().as_secs_f64() * 1e3;
    output.tell(&report, args.format, args.verbose, args.top())?;
    Ok(judging::exit_code(&report, args))
}

/// Looks for pointers to survivors, while tracing goes on: what is freed meanwhile is no orphan.
fn prove(
    prover: &Prover,
    tracer: &mut Tracer,
    runtime: &Runtime,
    stop: &Stop,
    surroundings: &mut Surroundings,
    (args, shaken): (&TraceArgs, Option<&Before>),
) -> Result<Proofs> {
    surroundings.refresh(Path::new("/"));
    let snapshot = tracer.snapshot()?;
    let chosen = {
        let look =
            |snapshot: &Snapshot, which: &[usize], modules: &[&str]| tracer.linkage(snapshot, which, modules);
        let judgement = assemble::judge(&snapshot, surroundings, shaken, &look);
        let sites = prove::sites(&judgement, &surroundings.places);
        prove::choose(tracer, &snapshot, sites, args.survivor_age(), surroundings.machine.possible_cpus)?
    };
    if chosen.is_empty() {
        return Ok(Proofs::default());
    }
    let limit = prove_limit(&args.prove_limit);
    let cpus = surroundings.machine.online_cpus;
    let mut pace = prove::Pace::new(args.overhead / 100.0, cpus, limit.time, args.quiet);
    let mut go_on = |done: u64, expected: u64| {
        let until = Deadline::now() + pace.rest(done, expected);
        let stopped = runtime.block_on(rest(tracer, stop, until, &mut surroundings.places))?;
        pace.resume();
        Ok(!stopped)
    };
    let proof = prove::look(prover, &chosen, limit, &mut go_on)?;
    pace.finish();
    prove::conclude(tracer, &snapshot, &chosen, &proof, &surroundings.places)
}

fn banner(machine: &Machine, tracer: &Tracer, args: &TraceArgs) -> String {
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
    args: &TraceArgs,
    filter: &Filter,
    slabinfo: Option<&BTreeMap<String, SlabCache>>,
    traits: &HashMap<String, CacheTraits>,
) -> Settings {
    let caches = slabinfo
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|name| filter.is_on() && filter.matches(name, traits.get(*name)))
        .cloned()
        .collect();
    Settings {
        stack_share: args.overhead / 100.0,
        stack_depth: if args.stack_depth == 0 { 0 } else { args.stack_depth + OWN_FRAMES },
        min_size: args.min_size,
        max_size: args.max_size.unwrap_or(u32::MAX),
        filter_caches: filter.is_on(),
        caches,
        families: args.families(),
        modules: args.modules(),
        refused: args.refuse.clone(),
        min_age: args.survivor_age(),
        interval: args.interval,
        verbose: args.verbose,
    }
}

/// Ticks until the time is up, a signal comes or what is waited for is found; and then drops caches, if
/// that is asked for, and returns what was alive before.
async fn watch(
    tracer: &mut Tracer,
    filter: &Filter,
    stop: &Stop,
    surroundings: &mut Surroundings,
    judging: &mut Judging<'_>,
) -> Result<Option<Before>> {
    let args = judging.args;
    let begun = Instant::now();
    let end = Deadline::from_std(begun + args.duration);
    let mut progress = Progress::new(args.duration, args.quiet);
    let mut next = Deadline::from_std(begun);
    for nth in 0_u64.. {
        next = (next + args.interval).max(Deadline::now());
        if nth < MEASURED_FIRST || nth % MEASURED_LATER == 0 {
            tracer.begin_measuring();
        }
        let measured = stop.wait_until((Deadline::now() + args.interval / MEASURED_PART).min(end)).await;
        tracer.end_measuring();
        learn(tracer, &mut surroundings.places);
        if measured || rest(tracer, stop, next.min(end), &mut surroundings.places).await? {
            break;
        }
        progress.show(&tracer.tick()?);
        progress.say(&tracer.messages());
        tracer.admit_caches(|name| filter.matches(name, None));
        if Deadline::now() >= end || judging.has_leak(tracer, surroundings)? {
            break;
        }
    }
    progress.finish();
    progress.say(&tracer.messages());
    if args.shake { judging::shake(tracer).await } else { Ok(None) }
}

/// Waits for the next tick, but relieves the tables whenever they fill up; true when a signal came first.
async fn rest(tracer: &mut Tracer, stop: &Stop, deadline: Deadline, places: &mut Places) -> Result<bool> {
    let interval = tracer.relief_interval();
    loop {
        if stop.wait_until((Deadline::now() + interval).min(deadline)).await {
            return Ok(true);
        }
        tracer.relieve()?;
        learn(tracer, places);
        if Deadline::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Reads the symbols of watched modules as soon as they are loaded: they may be gone at the end.
fn learn(tracer: &mut Tracer, places: &mut Places) {
    if !tracer.watch_modules() {
        return;
    }
    let (mut names, mut code) = (Vec::new(), Vec::new());
    for stay in tracer.stays().iter().filter(|stay| stay.removed_ns.is_none()) {
        names.push(stay.module.clone());
        code.extend(stay.ranges.iter().map(|&(start, end)| start..end));
    }
    places.learn(Path::new("/"), &names, code);
}

/// The `--cache` options.
struct Filter {
    globs: Option<GlobSet>,
}

impl Filter {
    fn new(patterns: &[String]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Self { globs: None });
        }
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            set.add(Glob::new(pattern).with_context(|| format!("cannot understand --cache {pattern}"))?);
        }
        Ok(Self { globs: Some(set.build()?) })
    }

    fn is_on(&self) -> bool {
        self.globs.is_some()
    }

    /// Whether a cache has such a name, or one that was merged with it has.
    fn matches(&self, name: &str, traits: Option<&CacheTraits>) -> bool {
        let Some(globs) = &self.globs else { return true };
        globs.is_match(name)
            || traits.is_some_and(|traits| traits.aliases.iter().any(|alias| globs.is_match(alias)))
    }
}
