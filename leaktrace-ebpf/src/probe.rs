//! Claiming a slot in an open-addressed table that only grows: the sites and the stacks.

use crate::atomic;

/// What a slot turned out to be for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The key is there already.
    Found,
    /// The slot was free and is now the key's: fill it in.
    Claimed,
    /// The slot belongs to another key: try the next.
    Taken,
}

/// Looks at one slot, whose first word is its key, and claims it if it is free.
///
/// # Safety
/// `word` points to 8 aligned, writable bytes that stay mapped and that are only ever
/// changed from 0 to a key.
#[inline(always)]
pub unsafe fn claim(word: *mut u64, key: u64) -> Slot {
    // SAFETY: the caller's promise.
    unsafe {
        let found = atomic::load(word);
        if found == key {
            return Slot::Found;
        }
        if found != 0 {
            return Slot::Taken;
        }
        if atomic::replace(word, 0, key) {
            return Slot::Claimed;
        }
        // Somebody else was faster, perhaps with the same key.
        if atomic::load(word) == key { Slot::Found } else { Slot::Taken }
    }
}

/// The bits of [`hash_pair`] from here up choose a slot: there are never more than 2^16.
pub const SITE_SHIFT: u32 = 48;

/// A 64-bit hash of two words that is never 0. Its upper quarter is the best one: what differs in
/// the words' lower bits gets there by the multiplications, which do not wait for each other.
#[inline(always)]
pub const fn hash_pair(a: u64, b: u64) -> u64 {
    (a.wrapping_mul(leaktrace_common::GOLDEN) ^ b.rotate_left(32).wrapping_mul(0xbf58_476d_1ce4_e5b9)) | 1
}
