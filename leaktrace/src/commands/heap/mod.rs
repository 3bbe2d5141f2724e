//! `leaktrace heap`: what is lost in the kernel's memory as it is, and who holds the rest. Nothing was traced.

mod content;
mod holders;

use std::{hash::BuildHasher as _, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant as Deadline;

use super::{
    filter::Filter,
    output::Output,
    prove::{Pace, open, politely, sides},
    stop::Stop,
};
use crate::{
    analysis::{
        content::{Group, Sign, group},
        objects,
    },
    cli::{Format, HeapArgs, prove_limit},
    kernel::{machine::Machine, privilege, symbols::Symbols},
    proc::{modules, slab},
    proof::{Candidate, Kind, Limit, Outcome, Proof, Prover, Survey, Surveyed, Unreached},
    report::{
        forms::without_controls,
        heap::{
            model::{self, Amount, Heap, Known, Object, SCHEMA, Scanned},
            text,
        },
        reach::ReachSide,
    },
    units,
};

/// Memory that is needed to note objects, at most: a part of all memory, and so much.
const PART_OF_MEMORY: u64 = 100;
const MOST_MEMORY: u64 = 256 << 20;
/// Caches whose holders are asked for.
const HOLDERS_OF: usize = 5;
/// Objects of a group that are named.
const NAMED: usize = 8;

/// Looks, and tells.
///
/// # Errors
/// When memory cannot be read, or the answer cannot be written.
pub(super) fn run(args: &HeapArgs) -> Result<()> {
    let output = Output::open(args.output.as_deref())?;
    let mut filter = Filter::new(&args.cache)?;
    privilege::check()?;
    if let Some(module) = &args.module
        && !modules::read(Path::new("/"))?.iter().any(|loaded| loaded.name == *module)
    {
        bail!("module {module} is not loaded: what it left has no names any more");
    }
    let prover = open()?;
    let machine = Machine::current()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let _guard = runtime.enter();
    let stop = Stop::new().context("cannot catch signals")?;
    let limit = prove_limit(&args.limit);
    let mut pace = Pace::new(args.overhead / 100.0, machine.online_cpus, limit.time, args.quiet);
    let mut go_on = |done: u64, expected: u64| {
        let until = Deadline::now() + pace.rest(done, expected);
        let stopped = runtime.block_on(stop.wait_until(until));
        pace.resume();
        Ok(!stopped)
    };
    let room = args.max_memory.unwrap_or_else(|| MOST_MEMORY.min(machine.memory / PART_OF_MEMORY));
    let heap = politely(|| look(&prover, &machine, (&mut filter, args), (room, limit), &mut go_on))?;
    pace.finish();
    let answer = match args.format {
        Format::Json => {
            without_controls(&serde_json::to_string_pretty(&heap).context("cannot write JSON")?) + "\n"
        }
        Format::Text => text::render(&heap, &output.style(args.verbose, args.top as usize)),
    };
    output.write(answer.as_bytes())
}

/// Caches that fit into so many bytes, the largest first, and what is to be said of the others.
fn fitting(room: u64) -> Result<Fitting> {
    let caches = slab::read_slabinfo(Path::new("/"))?;
    let mut caches: Vec<_> = caches
        .into_iter()
        .map(|(name, cache)| {
            let slabs = cache.total_objects.div_ceil(u64::from(cache.objects_per_slab.max(1)));
            let bytes = cache.total_objects * u64::from(cache.object_size);
            (bytes, objects::bytes_for(slabs, cache.total_objects), name)
        })
        .collect();
    caches.sort_unstable_by(|a, b| b.cmp(a));
    let mut fitting = Fitting::default();
    let mut others = Vec::new();
    for (bytes, takes, name) in caches {
        if fitting.needed + takes > room {
            fitting.unfit_bytes += bytes;
            others.push(name);
        } else {
            fitting.needed += takes;
            fitting.names.insert(name);
        }
    }
    if let Some(largest) = others.first() {
        fitting.note = Some(format!(
            "{} did not fit into {} of our own memory, the largest of them {largest}: what is in them counts as holding. \
             --max-memory gives more",
            units::plural(others.len(), "cache"),
            units::bytes(room as f64)
        ));
    }
    Ok(fitting)
}

/// Which caches are looked at.
#[derive(Default)]
struct Fitting {
    names: FxHashSet<String>,
    /// Bytes of our own that they need.
    needed: u64,
    /// Bytes of the others.
    unfit_bytes: u64,
    note: Option<String>,
}

fn look(
    prover: &Prover,
    machine: &Machine,
    (filter, args): (&mut Filter, &HeapArgs),
    (room, limit): (u64, Limit),
    go_on: &mut dyn FnMut(u64, u64) -> Result<bool>,
) -> Result<Heap> {
    let bytes = prover.bytes()?;
    if bytes > limit.bytes {
        bail!(
            "there are {} to read, more than the limit of {}: --limit raises it",
            units::bytes(bytes as f64),
            units::bytes(limit.bytes as f64)
        );
    }
    let begun_at = Instant::now();
    let fitting = fitting(room)?;
    let survey = prover.survey(&|name| fitting.names.contains(name), limit.time, go_on)?;
    let mut heap = begun(machine, &survey, fitting.needed);
    heap.scanned.unfit_bytes = fitting.unfit_bytes;
    heap.notes.extend(fitting.note);
    if let Some(why) = survey.cut_short {
        heap.scanned.cut_short =
            Some(format!("{why} after {}: nothing is known to be lost", units::bytes(survey.bytes as f64)));
        return Ok(heap);
    }
    let named = named(&survey, filter)?;
    let largest = largest(&survey, &named);
    let candidates: Vec<Candidate> = survey
        .unreached
        .iter()
        .map(|one| {
            let cache = &survey.caches[usize::from(one.cache)];
            Candidate::new(one.address, cache.own.min(cache.size), Kind::Slab, one.cache.into())
        })
        .collect();
    let before = contents(prover, &survey);
    let left = Limit { time: limit.time.saturating_sub(begun_at.elapsed()), ..limit };
    let proof = prover.prove(candidates.clone(), left, go_on)?;
    heap.notes.extend(proof.notes.iter().cloned());
    if let Some(why) = &proof.cut_short {
        heap.scanned.cut_short = Some(why.clone());
        return Ok(heap);
    }
    let after = contents(prover, &survey);
    // Nobody has a pointer to what is lost, so nobody writes to it.
    let allocated = prover.surely_allocated(&candidates)?;
    let sheaves = prover.sheaves();
    let is_allocators = |one: &Unreached| sheaves.contains(&one.address);
    let same: Vec<bool> = survey
        .unreached
        .iter()
        .zip(before.iter().zip(&after))
        .zip(allocated)
        .map(|((one, (before, after)), allocated)| {
            allocated && before.is_some() && before == after && !is_allocators(one)
        })
        .collect();
    heap.scanned.bytes += proof.cost.bytes * proof.cost.looks as u64;
    heap.scanned.seconds += proof.cost.seconds;
    heap.scanned.unclear = unclear(&proof);
    let symbols = Symbols::read(Path::new("/")).unwrap_or_else(|_| Symbols::empty());
    heap.holders = largest.iter().map(|&cache| holders::of(prover, &survey, &symbols, cache)).collect();
    conclude(&mut heap, (prover, &survey, &symbols), (&proof, &same));
    heap.scanned.lost_in_all = heap.groups.iter().map(|group| group.objects).sum();
    if let Some(module) = &args.module {
        heap.groups.retain(|group| group.module.as_ref() == Some(module));
    }
    heap.groups
        .retain(|group| named.iter().any(|&cache| survey.caches[usize::from(cache)].name == group.cache));
    heap.lost = Amount {
        objects: heap.groups.iter().map(|group| group.objects).sum(),
        bytes: heap.groups.iter().map(|group| group.bytes).sum(),
    };
    Ok(heap)
}

fn begun(machine: &Machine, survey: &Survey, needed: u64) -> Heap {
    let bytes = |cache: &Surveyed| cache.objects * cache.size;
    let mut notes = Vec::new();
    if survey.not_noted > 0 {
        notes.push(format!(
            "{} changed while they were noted: what is in them counts as holding",
            units::plural(survey.not_noted as usize, "slab")
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
        taken: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        scanned: Scanned {
            bytes: survey.bytes,
            seconds: survey.took.as_secs_f64(),
            kcore_bytes_per_s: survey.bytes as f64 / survey.reading.as_secs_f64().max(1e-9),
            objects: survey.caches.iter().map(|cache| cache.objects).sum(),
            slab_bytes: survey.caches.iter().map(bytes).sum(),
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

/// The caches that the user wants to be told of.
fn named(survey: &Survey, filter: &mut Filter) -> Result<Vec<u16>> {
    let traits = slab::read_traits(Path::new("/"), survey.caches.iter().map(|cache| cache.name.as_str()));
    let caches = (0_u16..).zip(&survey.caches);
    let named = caches.filter(|(_, cache)| filter.matches(&cache.name, traits.get(&cache.name)));
    let named = named.map(|(cache, _)| cache).collect();
    if let Some(pattern) = filter.absent().next() {
        bail!("no slab cache with objects is called {pattern:?}");
    }
    Ok(named)
}

/// Those of them that take the most.
fn largest(survey: &Survey, named: &[u16]) -> Vec<u16> {
    let mut caches: Vec<u16> = named.to_vec();
    caches.retain(|&cache| survey.caches[usize::from(cache)].objects > 0);
    caches.sort_by_key(|&cache| {
        let cache = &survey.caches[usize::from(cache)];
        std::cmp::Reverse(cache.objects * cache.size)
    });
    caches.truncate(HOLDERS_OF);
    caches
}

/// What is in objects that nothing leads to, as a hash; nothing where that cannot be read any more.
fn contents(prover: &Prover, survey: &Survey) -> Vec<Option<u64>> {
    let own = |cache: u16| survey.caches[usize::from(cache)].own;
    let read = |one: &Unreached| prover.contents(one.address, own(one.cache)).ok();
    survey.unreached.iter().map(|one| read(one).map(|words| FxBuildHasher.hash_one(words))).collect()
}

/// Objects of which looks differ. What changed meanwhile is in somebody's hands, and not among them.
fn unclear(proof: &Proof) -> u64 {
    proof.found.iter().filter(|found| found.outcome == Outcome::Undecided).count() as u64
}

/// Groups what is lost.
fn conclude(
    heap: &mut Heap,
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
    (proof, same): (&Proof, &[bool]),
) {
    let lost: Vec<usize> = (0..same.len())
        .filter(|&index| same[index] && proof.found[index].outcome == Outcome::Orphan)
        .collect();
    let known: Vec<_> = lost
        .iter()
        .map(|&index| {
            let object = survey.unreached[index];
            let own = survey.caches[usize::from(object.cache)].own.min(content::MOST);
            let words = prover.contents(object.address, own).unwrap_or_default();
            content::of(&words, object, (prover, survey, symbols))
        })
        .collect();
    let mut groups = group(&known);
    heap.known = set_known_aside(&mut groups, survey);
    // Behind the groups, what is in none of them.
    let mut group_of = vec![groups.len() as u32; same.len()];
    for (number, group) in (0_u32..).zip(&groups) {
        group.members.iter().for_each(|&member| group_of[lost[member]] = number);
    }
    let cache = |group: &Group| &survey.caches[usize::from(group.cache)];
    let labels: Vec<String> = groups.iter().map(|group| label(group, &cache(group).name)).collect();
    let mut names: Vec<&str> = labels.iter().map(String::as_str).collect();
    names.push("others");
    let place = |caller: u64| symbols.locate_return(caller).map(|location| location.label());
    let sides = sides(proof, &group_of, &names, same, &FxHashMap::default(), &place);
    let modules: FxHashMap<&str, Option<&String>> =
        names.iter().copied().zip(groups.iter().map(|group| group.module.as_ref())).collect();
    for (group, side) in groups.iter().zip(sides) {
        let (size, objects) = (cache(group).size, group.members.len() as u64);
        heap.groups.push(model::Group {
            verdict: "lost".to_owned(),
            cache: cache(group).name.clone(),
            module: group.module.clone().or_else(|| module_of_root(&side, &modules)),
            objects,
            bytes: objects * size,
            content: group.shared.iter().map(content::told).collect(),
            proof: side,
            objects_sample: group
                .members
                .iter()
                .take(NAMED)
                .map(|&member| Object { address: survey.unreached[lost[member]].address, size })
                .collect(),
        });
    }
    heap.groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
}

/// How a group is called where it is the root of a structure.
fn label(group: &Group, cache: &str) -> String {
    let first = group.shared.iter().find_map(|shared| match &shared.sign {
        Sign::Symbol(name, _) => Some(name.as_str()),
        _ => None,
    });
    first.map_or_else(|| cache.to_owned(), |first| format!("{cache} with {first}"))
}

/// The module of what a group was lost with.
fn module_of_root(side: &ReachSide, modules: &FxHashMap<&str, Option<&String>>) -> Option<String> {
    let root = side.structures.iter().max_by_key(|structure| structure.objects)?;
    modules.get(root.root.as_str()).copied().flatten().cloned()
}

/// What nothing leads to on any kernel: a variable that is in it, why, and where in the kernel's source that is done.
const ALWAYS: [(&str, &str); 3] = [
    ("sysctl_mount_point", EMPTY_DIRECTORY),
    // Older kernels have no variable for that. What is no empty directory hangs in a tree by its entries.
    ("sysctl_table_root", EMPTY_DIRECTORY),
    (
        "kernel_base_table",
        "the kernel registers the directories of /proc/sys once, and keeps no pointer to the list of what it made \
         (__register_sysctl_base of fs/proc/proc_sysctl.c)",
    ),
];
/// More of them are none of those.
const MOST_ALWAYS: usize = 8;
const EMPTY_DIRECTORY: &str = "the kernel registers an empty directory for a file system under /proc/sys, and keeps no pointer to what it \
                               made (register_sysctl_mount_point of fs/proc/proc_sysctl.c)";

/// Takes what is always there out of the groups.
fn set_known_aside(groups: &mut Vec<Group>, survey: &Survey) -> Vec<Known> {
    let mut known = Vec::new();
    groups.retain(|group| {
        let few = group.members.len() <= MOST_ALWAYS;
        let why = ALWAYS.iter().filter(|_| few).find(|(symbol, _)| {
            group
                .shared
                .iter()
                .any(|shared| matches!(&shared.sign, Sign::Symbol(name, None) if name.split('+').next() == Some(symbol)))
        });
        if let Some((_, why)) = why {
            known.push(Known {
                cache: survey.caches[usize::from(group.cache)].name.clone(),
                objects: group.members.len() as u64,
                why: (*why).to_owned(),
            });
        }
        why.is_none()
    });
    known
}
