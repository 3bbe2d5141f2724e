//! `leaktrace heap`: what is lost in the kernel's memory as it is, and who holds the rest. Nothing was traced.

mod areas;
mod caches;
mod closer;
mod content;
mod files;
mod groups;
mod holders;
mod makers;
mod witness;
mod work;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustc_hash::FxHashSet;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{runtime::Runtime, time::Instant as Deadline};

use self::{closer::Proven, files::Files, makers::Makers, work::Work};
use super::{
    filter::Filter,
    output::{Output, say},
    prove::{LOOKS, Pace, open, politely},
    session,
    stop::Stop,
};
use crate::{
    cli::{HeapArgs, limit_of},
    kernel::{
        machine::{Machine, boot_id},
        privilege,
        symbols::Symbols,
    },
    proc::modules,
    proof::{Limit, Prover, Survey},
    report::{
        escape,
        heap::{
            difference,
            forms::{self, HeapForm},
            model::{Amount, Asked, Heap, SCHEMA, Scanned},
            text,
        },
    },
    units,
};

/// Memory that is needed to note objects, at most: a part of all memory, and so much.
const PART_OF_MEMORY: u64 = 100;
const MOST_MEMORY: u64 = 256 << 20;
/// What may be read and taken if nothing else is asked for: whoever comes here waits for an answer.
const DEFAULT_LIMIT: Limit = Limit { bytes: 256 << 30, time: Duration::from_mins(10) };

/// Looks, and tells.
///
/// # Errors
/// When memory cannot be read, or the answer cannot be written.
pub(super) fn run(args: &HeapArgs) -> Result<()> {
    if args.watch.is_some() && args.format == HeapForm::Csv {
        bail!("--watch has no form in CSV, which has one line for each kind of lost objects");
    }
    let output = Output::open(args.output.as_deref())?;
    let mut filter = Filter::new(&args.cache)?;
    privilege::check()?;
    if let Some(module) = &args.module
        && !modules::read(Path::new("/"))?.iter().any(|loaded| loaded.name == *module)
    {
        bail!("module {module} is not loaded: what it left has no names any more");
    }
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    // Before programs are attached, so that no signal finds the default action.
    let stop = Stop::new().context("cannot catch signals")?;
    let makers = Makers::read(args.report.as_deref())?;
    let mut heap = look_once((&mut filter, args, &makers), (&runtime, &stop))?;
    if let Some(watch) = args.watch.filter(|_| heap.scanned.cut_short.is_none()) {
        if !args.quiet {
            say(&escape(&text::headline(&heap)));
            say(&format!(
                "The second look is in {}. Ctrl-C leaves it at the first one.",
                units::seconds(watch.as_secs_f64())
            ));
        }
        if runtime.block_on(stop.wait_until(Deadline::now() + watch)) {
            heap.notes
                .push("a signal came before the second look: nothing is known of what grows".to_owned());
        } else {
            let before = heap;
            heap = look_once((&mut filter, args, &makers), (&runtime, &stop))?;
            heap.grown = Some(difference::of(&before, &heap));
        }
    }
    let style = output.style(args.verbose, args.top as usize);
    output.write(&forms::render(&heap, args.format, &style)?)
}

/// Looks once.
fn look_once(
    (filter, args, makers): (&mut Filter, &HeapArgs, &Makers),
    (runtime, stop): (&Runtime, &Stop),
) -> Result<Heap> {
    let prover = open()?;
    let machine = Machine::current()?;
    let limit = limit_of(&args.limit, DEFAULT_LIMIT);
    let bytes = prover.bytes()?;
    if bytes > limit.bytes {
        bail!(
            "there are {} to read, more than the limit of {}: --limit raises it",
            units::bytes(bytes as f64),
            units::bytes(limit.bytes as f64)
        );
    }
    let room = args.max_memory.unwrap_or_else(|| MOST_MEMORY.min(machine.memory / PART_OF_MEMORY));
    // Refuses before anything is attached.
    let fitting = caches::fitting(room, filter)?;
    let pace = Pace::new(args.overhead / 100.0, machine.online_cpus, limit.time, args.quiet);
    // Objects are read once more, when something leads to them.
    let mut work = Work::begin((runtime, stop), pace, (limit, bytes * (LOOKS as u64 + 2)), &args.refuse);
    if !args.quiet {
        say(&escape(&work.plan(bytes, fitting.needed)));
    }
    work.resume();
    let heap = politely(|| look(&prover, &machine, (args, makers), (fitting, room), &mut work))?;
    work.finish();
    Ok(heap)
}

fn look(
    prover: &Prover,
    machine: &Machine,
    (args, makers): (&HeapArgs, &Makers),
    (fitting, room): (caches::Fitting, u64),
    work: &mut Work<'_>,
) -> Result<Heap> {
    let mut survey =
        prover
            .survey(&|name| fitting.names.contains(name), work.left().time, &mut |done, _| work.step(done))?;
    work.has_read(survey.bytes);
    let mut heap = begun(machine, &survey, fitting.needed);
    heap.scanned.unfit_bytes = fitting.unfit_bytes;
    heap.asked = Asked { caches: args.cache.clone(), module: args.module.clone() };
    heap.notes.extend(fitting.note);
    if let Some(why) = survey.cut_short {
        heap.scanned.cut_short =
            Some(format!("{why} after {}: nothing is known to be lost", units::bytes(survey.bytes as f64)));
        return Ok(heap);
    }
    if heap.scanned.objects == 0 {
        bail!("no object of slab could be read: this kernel has it in a way that leaktrace does not know");
    }
    let symbols = Symbols::read(Path::new("/")).unwrap_or_else(|_| Symbols::empty());
    heap.scanned.areas = survey.areas.len() as u64;
    heap.scanned.blocks = survey.blocks.len() as u64;
    heap.scanned.untold = survey.untold;
    heap.scanned.left_out += areas::add(&mut survey, &symbols) + areas::add_blocks(&mut survey);
    heap.scanned.left_out += survey.blocks_left_out;
    // Those of slab were counted before.
    heap.scanned.candidates = survey.unreached.len() as u64;
    heap.caches = caches::all(&survey);
    let Some(Proven { proof, lost }) = closer::look(prover, &survey, &mut heap, work)? else {
        return Ok(heap);
    };
    // What is lost comes first: for that there is time.
    let asked = (prover, &survey, &symbols);
    groups::conclude(&mut heap, asked, (&proof, &lost), makers, &mut || work.goes_on());
    let files = Files::read(prover, &survey, room, &mut || work.goes_on());
    heap.notes.extend(files.note());
    let largest = caches::largest(&survey, &fitting.asked, !args.cache.is_empty());
    heap.holders = holders::of(asked, &largest, &files, &mut || work.goes_on());
    heap.notes.extend(work.note());
    keep(&mut heap, &fitting.asked, args);
    Ok(heap)
}

/// Keeps what the user wants to be told of.
fn keep(heap: &mut Heap, asked: &FxHashSet<String>, args: &HeapArgs) {
    heap.scanned.lost_in_all = heap.groups.iter().map(|group| group.objects).sum();
    heap.groups.retain(|group| {
        asked.contains(&group.cache) && (args.module.is_none() || group.module == args.module)
    });
    heap.lost = Amount {
        objects: heap.groups.iter().map(|group| group.objects).sum(),
        bytes: heap.groups.iter().map(|group| group.bytes).sum(),
    };
}

fn begun(machine: &Machine, survey: &Survey, needed: u64) -> Heap {
    let mut notes = Vec::new();
    if survey.not_noted > 0 {
        notes.push(format!(
            "{} changed while they were noted: what is in them counts as holding",
            units::plural(survey.not_noted as usize, "slab")
        ));
    }
    if survey.blocks_left_out > 0 {
        notes.push(format!(
            "{} of pages or per-CPU memory were not noted, for there are too many: nothing is known of them",
            units::plural(survey.blocks_left_out as usize, "block")
        ));
    }
    if survey.left_out > 0 {
        notes.push(format!(
            "{} more objects that nothing leads to were not looked at once more: they are not counted",
            units::count(survey.left_out)
        ));
    }
    Heap {
        schema: SCHEMA.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: machine.release.clone(),
        architecture: machine.architecture.clone(),
        boot: boot_id(Path::new("/")).unwrap_or_default(),
        taken: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        scanned: Scanned {
            bytes: survey.bytes,
            seconds: survey.took.as_secs_f64(),
            kcore_bytes_per_s: survey.bytes as f64 / survey.reading.as_secs_f64().max(1e-9),
            objects: survey.caches.iter().map(|cache| cache.objects).sum(),
            slab_bytes: survey.caches.iter().map(|cache| cache.bytes).sum(),
            caches: survey.caches.iter().filter(|cache| cache.objects > 0).count(),
            memory_bytes: needed,
            candidates: survey.unreached.len() as u64,
            left_out: survey.left_out,
            ..Scanned::default()
        },
        notes,
        ..Heap::default()
    }
}
