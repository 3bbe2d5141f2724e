//! Blocks of pages that are freed in parts.
//!
//! `alloc_pages_exact` gives the tail of its block back at once, `split_page` makes every page one
//! of its own, and `__free_pages` of a block with other references frees the rest in pieces
//! (`mm/page_alloc.c`). What is left is then kept as the buddy allocator would: by halves.

/// Highest order of a block that the page allocator has on any architecture and configuration.
pub const MAX_ORDER: u32 = 13;

/// Calls `keep` with the first page, counted from the block's, and the order of each part that is
/// left of a block of `order` when the block of order `part` at its page `at` is freed.
#[inline(always)]
pub fn remainder(order: u32, part: u32, at: u64, mut keep: impl FnMut(u64, u32)) {
    let mut base = 0;
    let mut rest = order;
    for _ in 0..MAX_ORDER {
        if rest <= part {
            break;
        }
        rest -= 1;
        let half = 1_u64 << (rest & 31);
        if at & half == 0 {
            keep(base + half, rest);
        } else {
            keep(base, rest);
            base += half;
        }
    }
}

/// log2 of a number of pages that is a power of two, in compares: BPF has no instruction for it.
#[inline(always)]
pub const fn order_of(pages: u32) -> u32 {
    let mut order = 0;
    let mut at = 0;
    while at < MAX_ORDER {
        at += 1;
        if pages >> at != 0 {
            order = at;
        }
    }
    order
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_twice(order in 0..MAX_ORDER, part in 0..MAX_ORDER, page: u64) {
            prop_assume!(part <= order);
            let at = (page % (1 << order)) & !((1 << part) - 1);
            let mut pages: Vec<u64> = (at..at + (1 << part)).collect();
            remainder(order, part, at, |first, kept| {
                assert_eq!(first % (1 << kept), 0, "a block lies at a multiple of its size");
                pages.extend(first..first + (1 << kept));
            });
            pages.sort_unstable();
            prop_assert_eq!(pages, (0..1_u64 << order).collect::<Vec<_>>());
        }
    }

    #[test]
    fn orders() {
        for order in 0..=MAX_ORDER {
            assert_eq!(order_of(1 << order), order);
        }
    }
}
