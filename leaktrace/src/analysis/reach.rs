//! Who still has a pointer to an object? What nothing reaches is lost, and what is lost together is one structure.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

/// A pointer to a candidate from memory that is no candidate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Index of the place that it is in.
    pub place: u32,
    /// How much the place says: the lowest says most.
    pub rank: u8,
    /// Where in the candidate it points to, in bytes.
    pub into: u64,
}

/// A pointer from one candidate to another, or into itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The candidate that has it.
    pub from: u32,
    /// Where in it, in bytes.
    pub at: u64,
    /// The candidate that it points to.
    pub to: u32,
    /// Where in that, in bytes.
    pub into: u64,
}

/// Pointers that one look at memory found, by candidate.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// The pointer from outside that says most, of each candidate.
    pub roots: Vec<Option<Root>>,
    /// Pointers among candidates.
    pub edges: Vec<Edge>,
}

/// How a candidate is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pointer from outside at the begin of the way.
    pub root: Root,
    /// The candidate before it on the way, and where in that the pointer is.
    pub via: Option<(u32, u64)>,
    /// Where in the object the last pointer leads, in bytes.
    pub into: u64,
}

/// How each candidate is reached from outside, by the way from the place that says most; `None` for what nothing reaches.
///
/// A candidate's own memory counts only once it is reached itself: what is lost keeps its old content.
pub fn held(links: &Links) -> Vec<Option<Held>> {
    let mut from: FxHashMap<u32, Vec<&Edge>> = FxHashMap::default();
    for edge in links.edges.iter().filter(|edge| edge.from != edge.to) {
        from.entry(edge.from).or_default().push(edge);
    }
    let mut starts: Vec<(u32, Root)> =
        (0..).zip(&links.roots).filter_map(|(index, root)| Some((index, (*root)?))).collect();
    starts.sort_by_key(|(_, root)| root.rank);
    let mut held: Vec<Option<Held>> = vec![None; links.roots.len()];
    let mut next = VecDeque::new();
    for same in starts.chunk_by(|a, b| a.1.rank == b.1.rank) {
        for &(index, root) in same {
            if held[index as usize].is_none() {
                held[index as usize] = Some(Held { root, via: None, into: root.into });
                next.push_back((index, root));
            }
        }
        while let Some((index, root)) = next.pop_front() {
            for edge in from.get(&index).into_iter().flatten() {
                let target = &mut held[edge.to as usize];
                if target.is_none() {
                    *target = Some(Held { root, via: Some((index, edge.at)), into: edge.into });
                    next.push_back((edge.to, root));
                }
            }
        }
    }
    held
}

/// Lost objects that were lost together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    /// The object at its root: what nothing in it points to, or else one of the rarest kind.
    pub root: u32,
    /// All its objects, the root among them.
    pub members: Vec<u32>,
}

/// Puts lost objects together that point to each other, as `kind` has them: what most objects of a kind have at the
/// same place is a part of the structure, and anything else old content. `ignore` names pointers that are none.
pub fn structures(
    lost: &[u32],
    edges: &[Edge],
    kind: impl Fn(u32) -> u32,
    ignore: impl Fn(&Edge) -> bool,
) -> Vec<Structure> {
    let is_lost: FxHashSet<u32> = lost.iter().copied().collect();
    let mut of_kind: FxHashMap<u32, usize> = FxHashMap::default();
    for &object in lost {
        *of_kind.entry(kind(object)).or_default() += 1;
    }
    let among: Vec<&Edge> = edges
        .iter()
        .filter(|edge| edge.from != edge.to && is_lost.contains(&edge.from) && is_lost.contains(&edge.to))
        .filter(|edge| !ignore(edge))
        .collect();
    let mut common: FxHashMap<(u32, u64, u32), usize> = FxHashMap::default();
    let key = |edge: &Edge| (kind(edge.from), edge.at, kind(edge.to));
    for edge in &among {
        *common.entry(key(edge)).or_default() += 1;
    }
    let mut parent: FxHashMap<u32, u32> = lost.iter().map(|&object| (object, object)).collect();
    let mut pointed_to: FxHashSet<u32> = FxHashSet::default();
    for edge in among {
        if common[&key(edge)] * 2 < of_kind[&kind(edge.from)] {
            continue;
        }
        pointed_to.insert(edge.to);
        let (a, b) = (find(&mut parent, edge.from), find(&mut parent, edge.to));
        parent.insert(a, b);
    }
    let mut together: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
    for &object in lost {
        together.entry(find(&mut parent, object)).or_default().push(object);
    }
    let mut structures: Vec<Structure> = together
        .into_values()
        .map(|members| {
            let mut counts: FxHashMap<u32, usize> = FxHashMap::default();
            for &member in &members {
                *counts.entry(kind(member)).or_default() += 1;
            }
            let root = members
                .iter()
                .copied()
                .min_by_key(|&member| (pointed_to.contains(&member), counts[&kind(member)], member))
                .unwrap_or_default();
            Structure { root, members }
        })
        .collect();
    structures.sort_by_key(|structure| structure.root);
    structures
}

fn find(parent: &mut FxHashMap<u32, u32>, object: u32) -> u32 {
    let mut at = object;
    while parent[&at] != at {
        let above = parent[&parent[&at]];
        parent.insert(at, above);
        at = above;
    }
    at
}

/// What several looks say of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing reached it in the last two looks.
    Orphan,
    /// Something did in the last one, and in the one before.
    Held,
    /// They differ, or there was only one.
    Undecided,
}

/// Judges by whether each look reached the object, in order: a pointer that is on its way from one place to another may
/// be missed once, and an old one may be overwritten any time.
pub fn fate(reached: &[bool]) -> Fate {
    match reached {
        [.., false, false] => Fate::Orphan,
        [.., true, true] => Fate::Held,
        _ => Fate::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(place: u32, rank: u8) -> Root {
        Root { place, rank, into: 0 }
    }

    fn edge(from: u32, to: u32) -> Edge {
        Edge { from, at: 8, to, into: 0 }
    }

    #[test]
    fn a_list_is_held_by_its_head() {
        // 0 -> 1 -> 2, and 3 <-> 4, which nothing holds.
        let links = Links {
            roots: vec![Some(root(7, 0)), None, Some(root(9, 5)), None, None],
            edges: vec![edge(0, 1), edge(1, 2), edge(3, 4), edge(4, 3), edge(4, 4)],
        };
        let held = held(&links);
        assert_eq!(held[2].unwrap().root.place, 7, "the place that says most");
        assert_eq!(held[2].unwrap().via, Some((1, 8)));
        assert_eq!((held[3], held[4]), (None, None));
    }

    #[test]
    fn what_is_lost_together_is_one() {
        // 0 has a list of 1, 2 and 3, each of which points back to it; 4 and 5 are alone, but 5 has an old pointer to 1.
        let mut edges: Vec<Edge> = (1..4).map(|to| edge(0, to)).collect();
        edges.extend((1..4).map(|from| Edge { at: 16, ..edge(from, 0) }));
        edges.push(Edge { at: 24, ..edge(5, 1) });
        let kind = |object: u32| match object {
            0 => 0,
            1..4 => 1,
            _ => 2,
        };
        let found = structures(&[0, 1, 2, 3, 4, 5, 6, 7], &edges, kind, |_| false);
        assert_eq!(found.len(), 5);
        assert_eq!(found[0].root, 0, "the rarest kind");
        assert_eq!(found[0].members.len(), 4);
        let apart = structures(&[0, 1, 2, 3], &edges, kind, |edge| edge.at < 24);
        assert_eq!(apart.len(), 4);
        // A chain that begins somewhere begins there.
        let chain: Vec<Edge> =
            [(3, 2), (2, 1), (1, 0)].into_iter().map(|(from, to)| edge(from, to)).collect();
        let found = structures(&[0, 1, 2, 3], &chain, |_| 0, |_| false);
        assert_eq!((found.len(), found[0].root), (1, 3));
    }

    #[test]
    fn two_looks_decide() {
        assert_eq!(fate(&[false]), Fate::Undecided);
        assert_eq!(fate(&[false, false]), Fate::Orphan);
        assert_eq!(fate(&[true, false, false]), Fate::Orphan);
        assert_eq!(fate(&[false, true]), Fate::Undecided);
        assert_eq!(fate(&[false, true, true]), Fate::Held);
        assert_eq!(fate(&[]), Fate::Undecided);
    }

    proptest! {
        /// Whatever points to whom: an object is held just if there is a way to it from outside.
        #[test]
        fn held_is_what_can_be_reached(
            roots in prop::collection::vec(prop::option::weighted(0.2, 0_u8..4), 1..24),
            pairs in prop::collection::vec((0_u32..24, 0_u32..24), 0..60),
        ) {
            let n = roots.len() as u32;
            let edges: Vec<Edge> =
                pairs.into_iter().filter(|&(a, b)| a < n && b < n).map(|(a, b)| edge(a, b)).collect();
            let links = Links {
                roots: roots.iter().map(|rank| rank.map(|rank| Root { place: 0, rank, into: 0 })).collect(),
                edges: edges.clone(),
            };
            let found = held(&links);
            let mut reached: Vec<bool> = roots.iter().map(Option::is_some).collect();
            for _ in 0..n {
                for edge in &edges {
                    if reached[edge.from as usize] {
                        reached[edge.to as usize] = true;
                    }
                }
            }
            prop_assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), reached.clone());
            let lost: Vec<u32> = (0..n).filter(|&index| !reached[index as usize]).collect();
            let structures = structures(&lost, &edges, |_| 0, |_| false);
            prop_assert_eq!(structures.iter().map(|s| s.members.len()).sum::<usize>(), lost.len());
            prop_assert!(structures.iter().all(|s| s.members.contains(&s.root)));
        }
    }
}
