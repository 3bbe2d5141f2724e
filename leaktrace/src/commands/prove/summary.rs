//! From what was found of each object to what is said of each site.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    analysis::reach,
    proof::{Holder, Outcome, Proof},
    report::model::{HolderSide, LostStructure, OldPointers, ReachSide},
};

/// Bytes of a `list_head`: pointers from both its words are of one list.
const LIST_HEAD: u64 = 8;
/// Holders that are kept of one site.
const HOLDERS: usize = 20;

/// Sums up by group. `lives` has what was not freed meanwhile, `made_by` who made traced holders, `name` says where a
/// return address is.
pub(in crate::commands) fn sides(
    proof: &Proof,
    group_of: &[u32],
    groups: &[&str],
    lives: &[bool],
    made_by: &FxHashMap<u64, String>,
    name: &dyn Fn(u64) -> Option<String>,
) -> Vec<ReachSide> {
    let mut sides = vec![ReachSide::default(); groups.len()];
    let mut holders: Vec<BTreeMap<(String, Vec<String>), Held>> = vec![BTreeMap::new(); groups.len()];
    let mut old: Vec<BTreeMap<&'static str, u64>> = vec![BTreeMap::new(); groups.len()];
    let mut lost = Vec::new();
    for (index, found) in proof.found.iter().enumerate() {
        let group = group_of[index] as usize;
        let side = &mut sides[group];
        if !lives[index] {
            side.freed_meanwhile += 1;
            continue;
        }
        side.candidates += 1;
        match found.outcome {
            Outcome::Orphan => {
                side.orphans += 1;
                lost.push(index as u32);
                if let Some(place) = found.old {
                    *old[group].entry(place).or_default() += 1;
                }
            }
            Outcome::Held => {
                side.held += 1;
                let mapped =
                    || Holder { what: "a process that has it mapped".to_owned(), ..Holder::default() };
                let chain = found.held.and_then(|held| proof.holders.get(&held.root.place)).cloned();
                let chain = chain.unwrap_or_else(|| vec![mapped()]);
                let whole = |holder: &Holder| format!("{}{}", base(holder, made_by, name), holder.suffix);
                let beyond = chain[1..].iter().map(|next| in_words(next, next.at, made_by, name)).collect();
                let held = holders[group]
                    .entry((whole(&chain[0]), beyond))
                    .or_insert_with(|| Held { holder: chain[0].clone(), ..Held::default() });
                held.add(
                    chain[0].at,
                    found.held.map_or(0, |held| held.root.into),
                    found.held.is_none_or(|h| h.via.is_none()),
                );
            }
            Outcome::Undecided => side.undecided += 1,
            Outcome::Free => side.free += 1,
        }
    }
    for (side, held) in sides.iter_mut().zip(holders) {
        side.holders = held
            .into_iter()
            .map(|((_, chain), held)| HolderSide {
                what: in_words(&held.holder, held.place(), made_by, name),
                offset: held.into,
                objects: held.objects,
                directly: held.directly,
                chain,
            })
            .collect();
        side.holders.sort_by_key(|holder| std::cmp::Reverse(holder.objects));
        side.holders.truncate(HOLDERS);
    }
    for (side, old) in sides.iter_mut().zip(old) {
        side.old =
            old.into_iter().map(|(place, objects)| OldPointers { place: place.into(), objects }).collect();
    }
    structures(&mut sides, &lost, proof, group_of, groups);
    sides
}

/// Counts structures that were lost as a whole for all groups that have a part in them.
fn structures(sides: &mut [ReachSide], lost: &[u32], proof: &Proof, group_of: &[u32], groups: &[&str]) {
    let group = |object: u32| group_of[object as usize];
    let mut of_group: Vec<BTreeMap<u32, (u64, u64)>> = vec![BTreeMap::new(); sides.len()];
    for structure in reach::structures(lost, &proof.edges, group, |_| false) {
        if structure.members.len() < 2 {
            continue;
        }
        let mut parts: Vec<u32> = structure.members.iter().map(|&member| group(member)).collect();
        parts.sort_unstable();
        parts.dedup();
        for part in parts {
            let sum = of_group[part as usize].entry(group(structure.root)).or_default();
            sum.0 += 1;
            sum.1 += structure.members.len() as u64;
        }
    }
    for (side, structures) in sides.iter_mut().zip(of_group) {
        side.structures = structures
            .into_iter()
            .map(|(root, (structures, objects))| LostStructure {
                root: groups[root as usize].to_owned(),
                structures,
                objects,
            })
            .collect();
    }
}

/// Objects of one site that are reached from one holder.
#[derive(Clone, Default)]
struct Held {
    holder: Holder,
    objects: u64,
    directly: u64,
    /// Where the holder's pointers are: the first, the last.
    at: Option<(u64, u64)>,
    /// The least offset in the objects that it points to.
    into: u64,
}

impl Held {
    fn add(&mut self, at: Option<u64>, into: u64, directly: bool) {
        self.into = if self.objects == 0 { into } else { self.into.min(into) };
        self.objects += 1;
        self.directly += u64::from(directly);
        if let Some(at) = at {
            let (first, last) = self.at.unwrap_or((at, at));
            self.at = Some((first.min(at), last.max(at)));
        }
    }

    /// The place in the holder, if it is one.
    fn place(&self) -> Option<u64> {
        self.at.filter(|(first, last)| last - first <= LIST_HEAD).map(|(first, _)| first)
    }
}

fn base(holder: &Holder, made_by: &FxHashMap<u64, String>, name: &dyn Fn(u64) -> Option<String>) -> String {
    let maker =
        holder.object.and_then(|object| made_by.get(&object).cloned()).or_else(|| name(holder.caller?));
    match maker {
        Some(maker) => format!("{} from {maker}", holder.what),
        None => holder.what.clone(),
    }
}

/// A holder with the place in it.
fn in_words(
    holder: &Holder,
    at: Option<u64>,
    made_by: &FxHashMap<u64, String>,
    name: &dyn Fn(u64) -> Option<String>,
) -> String {
    let at = at.map(|at| format!("+{at:#x}")).unwrap_or_default();
    let whole = base(holder, made_by, name);
    let rest = whole.strip_prefix(holder.what.as_str()).unwrap_or_default();
    format!("{}{at}{}{rest}", holder.what, holder.suffix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::reach::{Edge, Held as Reached, Root},
        proof::{Cost, Found},
    };

    fn reached(place: u32, via: Option<(u32, u64)>) -> Found {
        let root = Root { place, rank: 0, into: 0 };
        Found { outcome: Outcome::Held, held: Some(Reached { root, via, into: 0 }), old: None }
    }

    fn orphan() -> Found {
        Found { outcome: Outcome::Orphan, held: None, old: Some("a free page") }
    }

    #[test]
    fn a_list_and_a_lost_structure_are_told() {
        let head = |at| {
            vec![Holder {
                what: "sessions".into(),
                at: Some(at),
                suffix: " [drv]".into(),
                ..Holder::default()
            }]
        };
        let proof = Proof {
            found: vec![
                reached(0, None),
                reached(0, Some((0, 0))),
                reached(2, None),
                orphan(),
                orphan(),
                orphan(),
            ],
            edges: vec![Edge { from: 3, at: 0, to: 4, into: 0 }, Edge { from: 3, at: 8, to: 5, into: 0 }],
            holders: [(0, head(0)), (2, head(8))].into_iter().collect(),
            cost: Cost::default(),
            cut_short: None,
            notes: Vec::new(),
        };
        let lives = [true, true, true, true, true, true];
        let of = [0, 0, 0, 1, 2, 2];
        let sides = sides(&proof, &of, &["list", "root", "leaf"], &lives, &FxHashMap::default(), &|_| None);
        assert_eq!(sides[0].held, 3);
        assert_eq!(sides[0].holders.len(), 1);
        assert_eq!(sides[0].holders[0].what, "sessions+0x0 [drv]");
        assert_eq!((sides[0].holders[0].objects, sides[0].holders[0].directly), (3, 2));
        let whole = LostStructure { root: "root".into(), structures: 1, objects: 3 };
        for side in &sides[1..] {
            assert_eq!(side.structures, std::slice::from_ref(&whole));
        }
        assert_eq!((sides[2].orphans, sides[2].old[0].objects), (2, 2));
        insta::assert_snapshot!([&sides[0], &sides[2]].map(|side| side.sentences().join("\n")).join("\n"));
    }

    #[test]
    fn what_was_freed_meanwhile_is_not_judged() {
        let proof = Proof {
            found: vec![orphan(), orphan()],
            edges: Vec::new(),
            holders: FxHashMap::default(),
            cost: Cost::default(),
            cut_short: None,
            notes: Vec::new(),
        };
        let sides = sides(&proof, &[0, 0], &["site"], &[true, false], &FxHashMap::default(), &|_| None);
        assert_eq!((sides[0].candidates, sides[0].orphans, sides[0].freed_meanwhile), (1, 1, 1));
    }
}
