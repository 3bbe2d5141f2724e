//! A closer look at what nothing led to: objects come and go while everything is looked at.

use std::{hash::BuildHasher as _, time::Duration};

use anyhow::Result;
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::{Work, content};
use crate::{
    proof::{Candidate, Kind, Outcome, Proof, Prover, Survey, Unreached, Vmalloced},
    report::heap::model::Heap,
};

/// Proofs at most, and the share of what is lost, one in so many, of which it may be unclear without another one.
const MOST_PROOFS: usize = 2;
const DOUBTFUL: usize = 100;
/// Time in which the kernel frees what was given to `kfree_rcu` (`KFREE_DRAIN_JIFFIES`, five seconds), and more.
const UNTIL_FREED: Duration = Duration::from_secs(7);

/// What a closer look found.
pub(super) struct Proven {
    pub(super) proof: Proof,
    /// Of each object that nothing led to whether it is lost.
    pub(super) lost: Vec<bool>,
}

/// Looks more closely; `None` where that came to no end, of which `heap` has the reason then.
///
/// # Errors
/// When memory cannot be read.
pub(super) fn look(
    prover: &Prover,
    (survey, areas_before): (&Survey, &FxHashSet<Vmalloced>),
    heap: &mut Heap,
    work: &mut Work<'_>,
) -> Result<Option<Proven>> {
    let candidates: Vec<Candidate> = survey.unreached.iter().map(|one| candidate(*one, survey)).collect();
    let before = contents(prover, survey);
    let mut proofs = 0;
    let (mut proof, same) = loop {
        let proof = prover.prove(candidates.clone(), work.left(), &mut |done, _| work.step(done))?;
        proofs += 1;
        heap.scanned.bytes += proof.cost.bytes * proof.cost.looks as u64;
        heap.scanned.seconds += proof.cost.seconds;
        if let Some(why) = &proof.cut_short {
            heap.scanned.cut_short = Some(why.clone());
            return Ok(None);
        }
        let after = contents(prover, survey);
        // Nobody has a pointer to what is lost, so nobody writes to it.
        let same: Vec<bool> = (prover.surely_allocated(&candidates)?.into_iter())
            .zip(before.iter().zip(&after))
            .map(|(allocated, (before, after))| allocated && before.is_some() && before == after)
            .collect();
        // What was about to be freed has old pointers for some seconds.
        if proofs == MOST_PROOFS || !is_doubtful(&proof, &same) || !work.rest(UNTIL_FREED)? {
            break (proof, same);
        }
    };
    heap.scanned.unclear =
        proof.found.iter().filter(|found| found.outcome == Outcome::Undecided).count() as u64;
    heap.notes.extend(proof.notes.iter().cloned());
    let seen = work.end(&survey.unreached)?;
    heap.notes.extend(seen.note);
    let sheaves = prover.sheaves();
    let areas: FxHashSet<Vmalloced> = prover.vmalloced().into_iter().collect();
    let there: FxHashSet<u64> = areas_before.intersection(&areas).map(|area| area.start).collect();
    let is_old = |one: &Unreached| {
        let is_slab = survey.caches[usize::from(one.cache)].kind == Kind::Slab;
        !seen.objects.contains(&one.address)
            && if is_slab { !sheaves.contains(&one.address) } else { there.contains(&one.address) }
    };
    let found = survey.unreached.iter().zip(&proof.found).zip(same);
    let lost =
        found.map(|((one, found), same)| found.outcome == Outcome::Orphan && same && is_old(one)).collect();
    // Pages that nobody cleared are full of old pointers: what a lost area leads to was not lost with it.
    let is_area = |index: u32| candidates[index as usize].kind == Kind::Area;
    proof.edges.retain(|edge| !is_area(edge.from));
    Ok(Some(Proven { proof, lost }))
}

/// Whether there are too many objects that nothing led to at first, and something does now although they did not change.
fn is_doubtful(proof: &Proof, same: &[bool]) -> bool {
    let (mut lost, mut doubtful) = (0, 0);
    for (found, _) in proof.found.iter().zip(same).filter(|(_, same)| **same) {
        match found.outcome {
            Outcome::Orphan => lost += 1,
            Outcome::Held | Outcome::Undecided => doubtful += 1,
            Outcome::Free => {}
        }
    }
    lost > 0 && doubtful * DOUBTFUL > lost
}

fn candidate(one: Unreached, survey: &Survey) -> Candidate {
    Candidate::new(one.address, one.bytes, survey.caches[usize::from(one.cache)].kind, one.cache.into())
}

/// What is in objects that nothing leads to, as a hash; nothing where that cannot be read any more.
fn contents(prover: &Prover, survey: &Survey) -> Vec<Option<u64>> {
    let read = |one: &Unreached| prover.contents(one.address, one.bytes.min(content::MOST)).ok();
    survey.unreached.iter().map(|one| read(one).map(|words| FxBuildHasher.hash_one(words))).collect()
}
