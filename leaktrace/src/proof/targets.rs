//! What is looked for in memory: which object a word may point to, told fast.

use std::ops::Range;

use crate::analysis::linkage::Span;

/// Ranges of addresses that targets lie in: what is in none of them is no pointer to one.
const RANGES: usize = 4;
/// Bits of the filter, by page.
const FILTER_BITS: u32 = 20;
/// Addresses of one bit of the filter.
const FILTER_SHIFT: u32 = 12;

/// How a span stands for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// It is the object's memory.
    Itself,
    /// It is the object's memory, and that is an area of vmalloc.
    Area,
    /// It is the `vm_struct` of an area.
    Description,
    /// It is what the kernel has for the object: the `struct page`s of one that has pages to itself, the per-CPU address.
    Handle,
    /// It is the `struct page` of one page at this address, in which objects lie that are pointed to by page and offset
    /// (`struct scatterlist`, `struct bio_vec`).
    PageOf(u64),
}

/// A span with what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) span: Span,
    /// Index of the object; of no meaning for [`Stands::PageOf`].
    pub(super) object: u32,
    pub(super) stands: Stands,
}

/// What a word points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointed {
    pub(super) object: u32,
    /// Bytes into the object.
    pub(super) offset: u64,
    /// Bytes of the span that it points into.
    pub(super) bytes: u64,
    pub(super) stands: Stands,
}

/// All targets.
pub(super) struct Targets {
    all: Vec<Target>,
    /// First addresses, and how many there are from them on: of all of them together, and of each.
    whole: (u64, u64),
    ranges: [(u64, u64); RANGES],
    filter: Vec<u64>,
}

impl Targets {
    /// Prepares looking for targets. Those of one object may overlap none of another's.
    pub(super) fn new(mut targets: Vec<Target>) -> Self {
        targets.sort_unstable_by_key(|target| target.span.start);
        let mut filter = vec![0; 1 << (FILTER_BITS - 6)];
        for target in &targets {
            let pages = target.span.start >> FILTER_SHIFT..=target.span.end.saturating_sub(1) >> FILTER_SHIFT;
            for page in pages {
                let bit = bit_of(page);
                filter[bit / 64] |= 1 << (bit % 64);
            }
        }
        let ranges = ranges(&targets);
        let used = || ranges.iter().filter(|(_, length)| *length > 0);
        let start = used().map(|(start, _)| *start).min().unwrap_or(0);
        let end = used().map(|(start, length)| start + length).max().unwrap_or(start);
        Self { all: targets, whole: (start, end - start), ranges, filter }
    }

    /// Whether any of some words may point to a target at all.
    #[inline]
    pub(super) fn any_may_be(&self, words: &[u64]) -> bool {
        let (start, length) = self.whole;
        words.iter().fold(false, |any, word| any | (word.wrapping_sub(start) < length))
    }

    /// Whether a word may point to a target at all.
    #[inline]
    pub(super) fn may_be(&self, word: u64) -> bool {
        let mut may = false;
        for (start, length) in self.ranges {
            may |= word.wrapping_sub(start) < length;
        }
        may
    }

    /// What a word points to: pointers carry marks in their lowest bits, which lie within the object all the same.
    pub(super) fn pointed_to(&self, word: u64) -> Option<Pointed> {
        let bit = bit_of(word >> FILTER_SHIFT);
        if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
            return None;
        }
        let after = self.all.partition_point(|target| target.span.start <= word);
        let target = self.all[after.checked_sub(1)?];
        target.span.contains(word).then(|| Pointed {
            object: target.object,
            offset: word - target.span.start,
            bytes: target.span.end - target.span.start,
            stands: target.stands,
        })
    }

    /// The object whose own memory an address lies in.
    pub(super) fn object_at(&self, address: u64) -> Option<(u32, u64)> {
        self.pointed_to(address)
            .filter(|pointed| matches!(pointed.stands, Stands::Itself | Stands::Area))
            .map(|pointed| (pointed.object, pointed.offset))
    }
}

fn bit_of(page: u64) -> usize {
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS)) as usize
}

/// At most so many ranges that have all targets, cut at the largest gaps.
fn ranges(targets: &[Target]) -> [(u64, u64); RANGES] {
    let mut gaps: Vec<(u64, usize)> = targets
        .windows(2)
        .enumerate()
        .map(|(index, pair)| (pair[1].span.start.saturating_sub(pair[0].span.end), index + 1))
        .collect();
    gaps.sort_unstable_by_key(|&(gap, _)| std::cmp::Reverse(gap));
    let mut cuts: Vec<usize> = gaps.iter().take(RANGES - 1).map(|&(_, index)| index).collect();
    cuts.extend([0, targets.len()]);
    cuts.sort_unstable();
    let mut found = [(0, 0); RANGES];
    let parts = cuts.windows(2).map(|pair| pair[0]..pair[1]).filter(|part: &Range<usize>| !part.is_empty());
    for (range, part) in found.iter_mut().zip(parts) {
        let start = targets[part.start].span.start;
        let end = targets[part].iter().map(|target| target.span.end).max().unwrap_or(start);
        *range = (start, end - start);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(start: u64, size: u64, object: u32) -> Target {
        Target { span: Span::new(start, size), object, stands: Stands::Itself }
    }

    #[test]
    fn finds_start_and_interior() {
        let mut all = vec![target(0xffff_8880_0000_1000, 64, 0), target(0xffff_8880_0000_1040, 64, 1)];
        all.push(Target { stands: Stands::Handle, ..target(0xffff_ea00_0000_0040, 64, 1) });
        let targets = Targets::new(all);
        let at = |word| targets.pointed_to(word).map(|pointed| (pointed.object, pointed.offset));
        assert_eq!(at(0xffff_8880_0000_1000), Some((0, 0)));
        assert_eq!(at(0xffff_8880_0000_1041), Some((1, 1)));
        assert_eq!(at(0xffff_8880_0000_1080), None);
        assert_eq!(at(0xffff_ea00_0000_0042), Some((1, 2)));
        assert_eq!(targets.object_at(0xffff_ea00_0000_0042), None);
        assert!(!targets.may_be(0x1000) && targets.may_be(0xffff_8880_0000_1001));
        let none = Targets::new(Vec::new());
        assert!(!none.may_be(0) && none.pointed_to(0).is_none());
    }

    proptest! {
        /// What the ranges and the filter let through has every pointer to every target.
        #[test]
        fn nothing_is_missed(
            mut starts in prop::collection::btree_set(0_u64..1 << 20, 1..60), size in 1_u64..16_000, word: u64,
        ) {
            starts.insert(1 << 48);
            let all: Vec<Target> =
                (0..).zip(&starts).map(|(object, &start)| target(start << 14, size, object)).collect();
            let targets = Targets::new(all.clone());
            for target in all {
                for word in [target.span.start, target.span.end - 1] {
                    prop_assert!(targets.may_be(word) && targets.any_may_be(&[1, word]));
                    prop_assert_eq!(targets.object_at(word), Some((target.object, word - target.span.start)));
                }
                prop_assert_eq!(targets.object_at(target.span.end), None);
            }
            prop_assert!(targets.pointed_to(word).is_none() || targets.may_be(word));
        }
    }
}
