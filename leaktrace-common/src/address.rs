//! Addresses: how they are hashed, sampled and kept.

/// Multiplier of the multiplicative (Fibonacci) hash of an address: 2^64 / golden ratio.
///
/// Addresses at a fixed stride, which is what the objects of one slab are, fall evenly
/// over the hash's range (Weyl's equidistribution), so buckets fill more evenly, and a
/// sample by hash is closer to its share, than with a random hash.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of the address hash from here up choose the bucket; the topmost ones choose the sample.
pub const BUCKET_SHIFT: u32 = 24;

/// Largest `sample_shift`: one address in a million is kept.
pub const MAX_SAMPLE_SHIFT: u32 = 20;

/// The hash by which an address finds its bucket and its place in the sample.
#[inline(always)]
pub const fn address_hash(address: u64) -> u64 {
    address.wrapping_mul(GOLDEN)
}

/// Whether an address with this hash is tracked when one in `2^sample_shift` is.
#[inline(always)]
pub const fn is_sampled(hash: u64, sample_shift: u32) -> bool {
    // Two shifts: a single one by 64 would be undefined for a shift of 0.
    (hash >> 1) >> (63 - (sample_shift & 63)) == 0
}

/// An address as it is kept in any memory that outlives an event.
///
/// kmemleak scans BPF maps and our own reachability check scans everything: an address stored
/// as it is would count as a reference to the object and hide its leak. Kernel addresses lie in
/// the upper half, so the complement is a small number that is never [`KEY_EMPTY`](crate::KEY_EMPTY) or [`KEY_BUSY`](crate::KEY_BUSY).
#[inline(always)]
pub const fn encode_address(address: u64) -> u64 {
    !address
}

/// The inverse of [`encode_address`].
#[inline(always)]
pub const fn decode_address(encoded: u64) -> u64 {
    !encoded
}

/// Addresses up to this one are no objects: NULL, and `ZERO_SIZE_PTR` of `kmalloc(0)`
/// (`include/linux/slab.h`).
pub const ZERO_SIZE_PTR: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KEY_BUSY, KEY_EMPTY};

    #[test]
    fn sampling_keeps_its_share() {
        for shift in [0, 1, 4, 7] {
            let kept = (0..1_u64 << 16)
                .filter(|i| is_sampled(address_hash(0xffff_8880_0000_0000 + i * 64), shift))
                .count();
            let expected = (1_usize << 16) >> shift;
            assert!(kept.abs_diff(expected) * 100 <= expected, "{kept} of {expected} at shift {shift}");
        }
    }

    #[test]
    fn samples_nest() {
        for i in 0..100_000_u64 {
            let hash = address_hash(0xffff_8880_0000_0000 + i * 96);
            for shift in 0..MAX_SAMPLE_SHIFT {
                assert!(!is_sampled(hash, shift + 1) || is_sampled(hash, shift));
            }
        }
    }

    #[test]
    fn encoded_addresses_are_no_kernel_addresses_and_no_marks() {
        for address in [0xffff_8880_0000_0000, 0xff00_0000_0000_0000, 0xffff_ffff_ffff_f000] {
            let encoded = encode_address(address);
            assert!(encoded < 1 << 63 && encoded != KEY_EMPTY && encoded != KEY_BUSY);
            assert_eq!(decode_address(encoded), address);
        }
    }
}
