//! Is an object part of a structure in memory? What is on a list, in a tree or in a hash table
//! points to its neighbour, and the neighbour points back; what was lost does not.
//!
//! This is no proof: an array may hold an object that knows nothing of it, and a structure may be
//! lost as a whole. So it only ever takes a verdict back.

use std::{cmp::Reverse, hash::Hash};

use rustc_hash::FxHashMap;

/// Memory from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
}

impl Span {
    /// `size` bytes from `start`.
    pub fn new(start: u64, size: u64) -> Self {
        Self { start, end: start.saturating_add(size) }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Bits that pointers carry beside the address: colours, marks and kinds (`rbtree.h`, `list_nulls.h`).
const TAGS: u64 = 7;

/// Addresses that a word may stand for: as it is, without tags.
pub fn address_in(word: u64) -> u64 {
    word & !TAGS
}

/// Where an address lies in an object of one or two spans: the offset, and in its upper half the span.
pub fn offset_in(address: u64, object: &[Span]) -> Option<u64> {
    object
        .iter()
        .position(|span| span.contains(address))
        .map(|index| (index as u64) << 32 | (address - object[index].start))
}

/// The pointers in an object, given as offsets and words, that lead out of it into `readable` memory: their offsets
/// and addresses.
pub fn pointers_out(words: &[(u64, u64)], object: &[Span], readable: &[Span]) -> Vec<(u64, u64)> {
    words
        .iter()
        .map(|&(offset, word)| (offset, address_in(word)))
        .filter(|&(_, address)| readable.iter().any(|span| span.contains(address)))
        .filter(|&(_, address)| offset_in(address, object).is_none())
        .collect()
}

/// What most of the objects have in common, of what each has; each counts once.
///
/// A structure has its links at the same place in all its elements. Memory that was used for something else before
/// has old links that may still be answered, but wherever they happen to lie.
pub fn in_common<K: Copy + Eq + Hash + Ord>(of: &[&[K]]) -> Option<K> {
    let mut counts: FxHashMap<K, usize> = FxHashMap::default();
    for has in of {
        let mut has = has.to_vec();
        has.sort_unstable();
        has.dedup();
        for key in has {
            *counts.entry(key).or_default() += 1;
        }
    }
    counts.into_iter().max_by_key(|&(key, count)| (count, Reverse(key))).map(|(key, _)| key)
}

/// What was found of a sample of one site's survivors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// Survivors whose memory was read.
    pub looked_at: u64,
    /// Those of them that a neighbour points back to.
    pub linked: u64,
    /// Others that are pointed to by data of the kernel or its modules, or by a traced object that is linked.
    pub held: u64,
    /// Survivors whose memory could not be read.
    pub unreadable: u64,
}

impl Linkage {
    /// Objects without which nothing is concluded.
    const FEWEST: u64 = 6;
    /// Of a leak so many may look linked, by what their memory was used for before.
    const BY_CHANCE: f64 = 0.2;

    /// Whether nearly all of them are in no structure that could be seen; `None` when too few were read.
    pub fn is_loose(&self) -> Option<bool> {
        (self.looked_at >= Self::FEWEST)
            .then(|| (self.linked + self.held) as f64 <= self.looked_at as f64 * Self::BY_CHANCE)
    }

    /// Whether most of them are.
    pub fn is_bound(&self) -> bool {
        self.looked_at > 0 && (self.linked + self.held) * 2 > self.looked_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM: [Span; 1] = [Span { start: 0xffff_8880_0000_0000, end: 0xffff_8890_0000_0000 }];

    #[test]
    fn only_pointers_to_elsewhere_count() {
        let object = [Span::new(0xffff_8880_0000_1000, 64), Span::new(0xffff_8880_0000_9000, 64)];
        // An empty list head, a number, a user's address, a red-black parent with its colour.
        let words = [0xffff_8880_0000_1008, 42, 0x7fff_0000_1000, 0xffff_8880_0000_2001];
        let words: Vec<(u64, u64)> = (0..).step_by(8).zip(words).collect();
        assert_eq!(pointers_out(&words, &object, &RAM), [(24, 0xffff_8880_0000_2000)]);
        assert_eq!(offset_in(0xffff_8880_0000_1008, &object), Some(8));
        assert_eq!(offset_in(0xffff_8880_0000_9010, &object), Some(1 << 32 | 16));
        assert_eq!(offset_in(0xffff_8880_0000_2000, &object), None);
    }

    #[test]
    fn what_lies_anywhere_is_not_in_common() {
        assert_eq!(in_common(&[&[(8, 8), (40, 3)], &[(8, 8), (8, 8)], &[(16, 8)]]), Some((8, 8)));
        assert_eq!(in_common::<u64>(&[&[], &[]]), None);
    }

    #[test]
    fn a_few_by_chance_are_no_structure() {
        let found = Linkage { looked_at: 32, linked: 5, ..Linkage::default() };
        assert_eq!(found.is_loose(), Some(true));
        assert_eq!(Linkage { held: 2, ..found }.is_loose(), Some(false));
        assert!(!found.is_bound() && Linkage { linked: 30, ..found }.is_bound());
        assert_eq!(Linkage { looked_at: 5, ..Linkage::default() }.is_loose(), None);
    }

    proptest! {
        /// Elements of a list are found linked wherever they lie, and whatever else they hold.
        #[test]
        fn neighbours_find_each_other(at in 0_u64..1_000, offset in 0_u64..8, noise in prop::collection::vec(any::<u32>(), 8)) {
            let address = |index: u64| RAM[0].start + (at + index) * 64;
            let words = |previous: u64, next: u64| -> Vec<(u64, u64)> {
                let mut words: Vec<u64> = noise.iter().map(|&word| u64::from(word)).collect();
                words[offset as usize] = address(next) + offset * 8;
                words[(offset as usize + 1) % 8] = address(previous) + offset * 8;
                (0..).step_by(8).zip(words).collect()
            };
            let middle = [Span::new(address(1), 64)];
            let out = pointers_out(&words(0, 2), &middle, &RAM);
            prop_assert_eq!(out.len(), 2);
            prop_assert!(out.contains(&(offset * 8, address(2) + offset * 8)));
            let answers = |words: Vec<(u64, u64)>| words.iter().any(|&(_, word)| offset_in(word, &middle).is_some());
            prop_assert!(answers(words(1, 3)));
            prop_assert!(!answers(words(2, 4)));
        }
    }
}
