//! A closer look at what nothing led to: objects come and go while everything is looked at.

use std::{
    hash::BuildHasher as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::{Work, content};
use crate::{
    proof::{Candidate, Kind, Outcome, Proof, Prover, Survey, Unreached, Vmalloced},
    report::heap::model::Heap,
};

/// The share of what is lost, one in so many, of which it may be unclear without another proof.
const DOUBTFUL: usize = 100;
/// Time in which the kernel frees what was given to `kfree_rcu` (`KFREE_DRAIN_JIFFIES`, five seconds), and more.
const UNTIL_FREED: Duration = Duration::from_secs(7);

/// How often it is asked once more whether what seems lost is allocated, and the time before each.
const ASKED_AGAIN: (u32, Duration) = (3, Duration::from_millis(300));
/// The same of few objects of one kind where not everything that was allocated meanwhile is known: an address that is used
/// again and again, always with the same content, is free now and then.
const ASKED_OFTEN: (u32, Duration) = (100, Duration::from_millis(30));
/// So many are few.
const FEW: usize = 64;

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
    survey: &Survey,
    heap: &mut Heap,
    work: &mut Work<'_>,
) -> Result<Option<Proven>> {
    let candidates: Vec<Candidate> = survey.unreached.iter().map(|one| candidate(*one, survey)).collect();
    let before = contents(prover, survey);
    let mut last: Option<Looked> = None;
    let (mut proof, allocated, same) = loop {
        let begun = Instant::now();
        let proof = match prover.prove(candidates.clone(), work.left(), &mut |done, _| work.step(done)) {
            Ok(proof) => proof,
            Err(error) => match last {
                Some(looked) => break looked,
                None => return Err(error),
            },
        };
        work.has_read(proof.cost.bytes * proof.cost.looks as u64);
        heap.scanned.bytes += proof.cost.bytes * proof.cost.looks as u64;
        heap.scanned.seconds += proof.cost.seconds;
        if let Some(why) = &proof.cut_short {
            // What the one before it has found stands.
            if let Some(looked) = last {
                break looked;
            }
            heap.scanned.cut_short = Some(why.clone());
            return Ok(None);
        }
        let after = contents(prover, survey);
        // Nobody has a pointer to what is lost, so nobody writes to it.
        let same: Vec<bool> =
            before.iter().zip(&after).map(|(before, after)| before.is_some() && before == after).collect();
        let allocated = prover.surely_allocated(&candidates, ASKED_AGAIN)?;
        let is_first = last.is_none();
        let doubtful = is_doubtful(&proof, &allocated, &same);
        let looked = (proof, allocated, same);
        // What was about to be freed has old pointers for some seconds.
        if !is_first || !doubtful || !work.rest(UNTIL_FREED, begun.elapsed() * 2)? {
            break looked;
        }
        last = Some(looked);
    };
    heap.notes.extend(proof.notes.iter().cloned());
    let seen = work.end(&survey.unreached)?;
    heap.notes.extend(seen.note);
    let sheaves = prover.sheaves();
    let now: FxHashSet<Vmalloced> = prover.vmalloced().into_iter().collect();
    let there: FxHashSet<u64> =
        survey.areas.iter().filter(|area| now.contains(area)).map(|area| area.start).collect();
    let is_old = |one: &Unreached| {
        !seen.objects.contains(&one.address)
            && match survey.caches[usize::from(one.cache)].kind {
                Kind::Slab => !sheaves.contains(&one.address),
                Kind::Area => there.contains(&one.address),
                Kind::Large | Kind::PerCpu | Kind::Page => true,
            }
    };
    let mut unclear = 0;
    let mut lost = Vec::with_capacity(proof.found.len());
    for (index, (one, found)) in survey.unreached.iter().zip(&proof.found).enumerate() {
        let is_orphan = found.outcome == Outcome::Orphan && allocated[index] && is_old(one);
        unclear += u64::from(found.outcome == Outcome::Undecided || is_orphan && !same[index]);
        lost.push(is_orphan && same[index]);
    }
    if !seen.is_whole {
        unclear += keep_allocated(prover, survey, &candidates, &mut lost)?;
    }
    heap.scanned.unclear = unclear;
    // Pages that nobody cleared are full of old pointers: what a lost area leads to was not lost with it.
    let has_pages = |index: u32| matches!(candidates[index as usize].kind, Kind::Area | Kind::Large);
    proof.edges.retain(|edge| !has_pages(edge.from));
    Ok(Some(Proven { proof, lost }))
}

/// Of kinds of which few are lost, keeps those that are never free. Returns how many were.
fn keep_allocated(
    prover: &Prover,
    survey: &Survey,
    candidates: &[Candidate],
    lost: &mut [bool],
) -> Result<u64> {
    let mut of_cache = vec![0_usize; survey.caches.len()];
    let cache = |index: usize| usize::from(survey.unreached[index].cache);
    for index in (0..lost.len()).filter(|&index| lost[index]) {
        of_cache[cache(index)] += 1;
    }
    let few: Vec<usize> =
        (0..lost.len()).filter(|&index| lost[index] && of_cache[cache(index)] <= FEW).collect();
    if few.is_empty() {
        return Ok(0);
    }
    let asked: Vec<Candidate> = few.iter().map(|&index| candidates[index]).collect();
    let mut gone = 0;
    for (index, is) in few.into_iter().zip(prover.surely_allocated(&asked, ASKED_OFTEN)?) {
        lost[index] = is;
        gone += u64::from(!is);
    }
    Ok(gone)
}

/// A proof, which of the objects were allocated whenever that was asked, and whose content stayed the same.
type Looked = (Proof, Vec<bool>, Vec<bool>);

/// Whether there are too many objects that nothing led to at first, and something does now although they did not change.
fn is_doubtful(proof: &Proof, allocated: &[bool], same: &[bool]) -> bool {
    let (mut lost, mut doubtful) = (0, 0);
    let are_there = allocated.iter().zip(same).map(|(allocated, same)| *allocated && *same);
    for (found, _) in proof.found.iter().zip(are_there).filter(|(_, is)| *is) {
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
