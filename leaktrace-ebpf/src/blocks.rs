//! Blocks of pages that are freed in parts.
//!
//! `alloc_pages_exact` gives the tail of its block back at once, `split_page` makes every page one
//! of its own, and `__free_pages` of a block with other references frees the rest in pieces
//! (`mm/page_alloc.c`). What is left is then kept as the buddy allocator would: by halves.

/// Highest order of a block that the page allocator has on any architecture and configuration.
pub const MAX_ORDER: u32 = 13;

/// Calls `keep` with the first page, counted from the block's, and the order of each part that is
/// left of a block of `order` when the block of order `part` at its page `at` is freed.
///
/// In arithmetic, not in jumps, like [`order_of`]: the verifier would follow each of them.
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
        // 0 when the freed block is in the lower half, which then is halved on: the upper one stays.
        let upper = at & half;
        keep(base + (half ^ upper), rest);
        base += upper;
    }
}

/// log2 of a number of pages that is a power of two up to 2^15: BPF has no instruction for it.
#[inline(always)]
pub fn order_of(pages: u32) -> u32 {
    let bit = |mask: u32| {
        let some = opaque(pages & mask);
        (some | some.wrapping_neg()) >> 31
    };
    bit(0xaaaa) | bit(0xcccc) << 1 | bit(0xf0f0) << 2 | bit(0xff00) << 3
}

/// A number of which the compiler knows nothing: it would make a jump of asking whether it is zero.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn opaque(number: u32) -> u32 {
    let mut number = u64::from(number);
    // An instruction that does nothing: without any, two lines of the source would have one place in
    // the program, which the kernel refuses.
    // SAFETY: it copies a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number as u32
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn opaque(number: u32) -> u32 {
    number
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
