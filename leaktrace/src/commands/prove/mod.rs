//! Looking for pointers to survivors in all of the kernel's memory, while tracing goes on or for a saved report.

mod pace;
pub(super) mod saved;
mod summary;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use leaktrace_common::address_hash;
use rustc_hash::{FxHashMap, FxHashSet};

use super::assemble::Judgement;
use crate::{
    analysis::verdict::Verdict,
    kernel::places::Places,
    proof::{Candidate, Kind, Limit, Outcome, Proof, Prover},
    report::model::{ReachReport, ReachSide},
    tracer::{LiveObject, Snapshot, Tracer},
};
pub(super) use pace::{Pace, politely};
pub(super) use summary::sides;

/// Objects that are looked for at most; of more a sample of each site is.
const MOST: u64 = 200_000;
/// Looks at all memory that a proof takes at most.
pub(super) use crate::proof::MOST_LOOKS as LOOKS;

/// A site, or one of its callers.
type Key = (usize, u64);

/// Objects that are looked for, with what they are of.
#[derive(Default)]
pub(super) struct Chosen {
    candidates: Vec<Candidate>,
    /// When each was allocated, as the table has it.
    times: Vec<u64>,
    addresses: Vec<u64>,
    /// By group: the site, and how it is called.
    groups: Vec<(Key, String)>,
    left_out: u64,
}

/// What was proven.
#[derive(Default)]
pub(in crate::commands) struct Proofs {
    /// Of each site that was looked at.
    pub(in crate::commands) sides: FxHashMap<Key, ReachSide>,
    /// Of each object.
    pub(in crate::commands) outcomes: FxHashMap<u64, Outcome>,
    /// How.
    pub(in crate::commands) report: ReachReport,
}

impl Proofs {
    /// That nothing could be proven.
    pub(super) fn failed(error: &anyhow::Error) -> Self {
        let report = ReachReport { error: Some(format!("{error:#}")), ..ReachReport::default() };
        Self { report, ..Self::default() }
    }
}

/// A site whose survivors are looked for.
pub(super) struct Wanted {
    index: usize,
    key: Key,
    kind: Kind,
    name: String,
    survivors: u64,
    /// Whether its pages may be tables for a device.
    may_be_table: bool,
    /// Whether it is looked for only because it may hold others.
    may_hold: bool,
}

/// What is suspected, what may have been a burst that was lost, and what the kernel can give back: nodes of a tree that was
/// lost are such, and would hide all that hangs on them.
pub(super) fn sites(judgement: &Judgement<'_>, places: &Places) -> Vec<Wanted> {
    let of_note = judgement.judged.iter().filter(|judged| judged.evidence.verdict() >= Verdict::Cache);
    of_note
        .filter(|judged| judged.site.survivors > 0)
        .filter_map(|judged| {
            let site = judged.site;
            let address = site.owner.unwrap_or(site.call_site);
            let label =
                places.locate(address).map_or_else(|| format!("{address:#x}"), |location| location.label());
            Some(Wanted {
                index: judged.index,
                key: (site.site, site.owner.unwrap_or(0)),
                kind: kind(site.family)?,
                name: format!("{label} ({})", site.cache),
                survivors: site.survivors,
                may_be_table: judged.module.as_deref().is_none_or(makes_tables),
                may_hold: judged.evidence.verdict() == Verdict::Cache,
            })
        })
        .collect()
}

/// Chooses survivors of some sites; `cpus` is how many copies per-CPU memory has.
///
/// # Errors
/// When the kernel refuses a look at the tables.
pub(super) fn choose(
    tracer: &mut Tracer,
    snapshot: &Snapshot,
    sites: &[Wanted],
    min_age: Duration,
    cpus: u32,
) -> Result<Chosen> {
    let mut chosen = Chosen::default();
    let survivors = |may_hold: bool| -> u64 {
        sites.iter().filter(|wanted| wanted.may_hold == may_hold).map(|wanted| wanted.survivors).sum()
    };
    // The same decision for each object, whatever the order: by its address. What may only hold others has what is left.
    let wanted = survivors(false);
    let room = MOST.saturating_sub(wanted).max(1);
    let strides = [wanted.div_ceil(MOST).max(1), survivors(true).div_ceil(room).max(1)];
    let group_of: FxHashMap<usize, (u32, &Wanted)> =
        sites.iter().zip(0..).map(|(wanted, group)| (wanted.index, (group, wanted))).collect();
    chosen.groups = sites.iter().map(|wanted| (wanted.key, wanted.name.clone())).collect();
    let old = snapshot.taken_ns.saturating_sub(min_age.as_nanos() as u64);
    tracer.each_object(snapshot, |index, object| {
        let Some(&(group, wanted)) = group_of.get(&index).filter(|_| object.time_ns <= old) else { return };
        if !is_chosen(object.address, strides[usize::from(wanted.may_hold)]) {
            chosen.left_out += u64::from(!wanted.may_hold);
            return;
        }
        let bytes = bytes(object, wanted.kind, snapshot.sites[index].object_size, cpus);
        let candidate = Candidate::new(object.address, bytes, wanted.kind, group);
        chosen.candidates.push(candidate.or_table(wanted.may_be_table));
        chosen.addresses.push(object.address);
        chosen.times.push(object.time_ns);
    })?;
    Ok(chosen)
}

/// Whether an object is looked for if one in `stride` is. Addresses are multiples of eight, and so are their hashes: these are mixed
/// once more.
fn is_chosen(address: u64, stride: u64) -> bool {
    let hash = address_hash(address);
    (address_hash(hash ^ hash >> 32) >> 32).is_multiple_of(stride)
}

/// Whether a module is one that makes page tables for devices; the kernel itself may.
fn makes_tables(module: &str) -> bool {
    ["iommu", "smmu", "vfio"].iter().any(|part| module.contains(part))
}

fn kind(family: &str) -> Option<Kind> {
    Some(match family {
        "kmalloc" | "kmem_cache" => Kind::Slab,
        "kmalloc-large" => Kind::Large,
        "page" => Kind::Page,
        "vmalloc" => Kind::Area,
        "percpu" => Kind::PerCpu,
        _ => return None,
    })
}

fn bytes(object: &LiveObject, kind: Kind, cache_size: u32, cpus: u32) -> u64 {
    let bytes = u64::from(if kind == Kind::Slab || object.size == 0 { cache_size } else { object.size });
    if kind == Kind::PerCpu { bytes / u64::from(cpus.max(1)) } else { bytes }
}

impl Chosen {
    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }
}

/// Looks for them; `go_on` rests and serves the tracer.
///
/// # Errors
/// Says why memory cannot be read.
pub(super) fn look(
    prover: &Prover,
    chosen: &Chosen,
    limit: Limit,
    go_on: &mut dyn FnMut(u64, u64) -> Result<bool>,
) -> Result<Proof> {
    politely(|| prover.prove(chosen.candidates.clone(), limit, go_on))
}

/// Puts together what was found, with what the tracer knows by now of candidates and holders.
///
/// # Errors
/// When the kernel refuses a look at the tables.
pub(super) fn conclude(
    tracer: &mut Tracer,
    snapshot: &Snapshot,
    chosen: &Chosen,
    proof: &Proof,
    places: &Places,
) -> Result<Proofs> {
    let wanted: FxHashSet<u64> =
        proof.holders.values().flatten().filter_map(|holder| holder.object).collect();
    let candidates: FxHashMap<u64, u64> =
        chosen.addresses.iter().copied().zip(chosen.times.iter().copied()).collect();
    let mut live: FxHashSet<u64> = FxHashSet::default();
    let mut made_by: FxHashMap<u64, String> = FxHashMap::default();
    tracer.each_object(snapshot, |index, object| {
        if candidates.get(&object.address) == Some(&object.time_ns) {
            live.insert(object.address);
        }
        if wanted.contains(&object.address) {
            let site = &snapshot.sites[index];
            if let Some(location) = places.locate(site.owner.unwrap_or(site.call_site)) {
                made_by.insert(object.address, location.label());
            }
        }
    })?;
    let lives: Vec<bool> = chosen.addresses.iter().map(|address| live.contains(address)).collect();
    let name = |caller: u64| places.locate(caller).map(|location| location.label());
    let groups: Vec<&str> = chosen.groups.iter().map(|(_, name)| name.as_str()).collect();
    let group_of: Vec<u32> = chosen.candidates.iter().map(|candidate| candidate.group).collect();
    let sides = sides(proof, &group_of, &groups, &lives, &made_by, &name);
    Ok(Proofs {
        sides: chosen.groups.iter().map(|(key, _)| *key).zip(sides).collect(),
        outcomes: chosen
            .addresses
            .iter()
            .zip(&proof.found)
            .zip(&lives)
            .filter(|(_, lives)| **lives)
            .map(|((address, found), _)| (*address, found.outcome))
            .collect(),
        report: report(proof, chosen.candidates.len() as u64, chosen.left_out),
    })
}

fn report(proof: &Proof, candidates: u64, left_out: u64) -> ReachReport {
    ReachReport {
        error: None,
        cut_short: proof.cut_short.clone(),
        notes: proof.notes.clone(),
        candidates,
        left_out,
        looks: proof.cost.looks,
        bytes: proof.cost.bytes,
        seconds: proof.cost.seconds,
        bytes_per_s: proof.cost.bytes_per_s,
        kcore_bytes_per_s: proof.cost.kcore_bytes_per_s,
    }
}

/// The word for an outcome.
pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Orphan => "orphan",
        Outcome::Held => "held",
        Outcome::Undecided => "undecided",
        Outcome::Free => "free",
    }
}

/// Opens what is needed, before anything is traced.
///
/// # Errors
/// Says why memory cannot be read here.
pub(super) fn open() -> Result<Prover> {
    Prover::open(Path::new("/")).context("memory cannot be looked at")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_chosen_wherever_objects_lie() {
        for (bytes, stride) in [(8, 2), (64, 2), (96, 3), (192, 4), (256, 8), (1_024, 5), (4_096, 16)] {
            let chosen =
                (0..16_000).filter(|nth| is_chosen(0xffff_8880_0123_0000 + nth * bytes, stride)).count();
            let expected = 16_000 / stride as usize;
            assert!(chosen.abs_diff(expected) * 10 < expected, "{chosen} of {expected} at {bytes}, {stride}");
        }
        assert!((0..100).all(|nth| is_chosen(nth * 64, 1)));
    }
}
