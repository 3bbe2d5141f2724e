//! Addresses: how they are hashed, sampled and kept.

/// Multiplier of the multiplicative (Fibonacci) hash of an address: 2^64 / golden ratio.
///
/// Addresses at a fixed stride, which is what the objects of one slab are, fall evenly
/// over the hash's range (Weyl's equidistribution), so buckets fill more evenly than with a
/// random hash.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of the address hash from here up choose the bucket.
pub const BUCKET_SHIFT: u32 = 24;

/// Largest `sample_shift`: one address in a million is kept.
pub const MAX_SAMPLE_SHIFT: u32 = 20;

/// The hash by which an address finds its bucket and its place in the sample.
#[inline(always)]
pub const fn address_hash(address: u64) -> u64 {
    address.wrapping_mul(GOLDEN)
}

/// Whether an address with this hash is tracked when one in `2^sample_shift` is.
///
/// The hash is mixed once more, as at some strides its values fall into few places: at 96 and 192
/// bytes into three. Of the objects of a slab, which often share their fate, a sample by that would
/// have many or none, and be much further off than the interval that reports give.
#[inline(always)]
pub const fn is_sampled(hash: u64, sample_shift: u32) -> bool {
    sample_shift == 0 || (hash ^ hash >> 32).wrapping_mul(GOLDEN) >> (64 - (sample_shift & 63)) == 0
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
            // Four standard deviations.
            assert!(kept.abs_diff(expected).pow(2) <= 16 * expected, "{kept} of {expected} at shift {shift}");
            assert!(shift > 0 || kept == expected, "{kept} of {expected}");
        }
    }

    /// The variance of how many objects of a slab are in the sample is that of chance, so that it is as far off as
    /// reports say.
    #[test]
    fn slabs_are_sampled_as_by_chance() {
        const SLABS: u64 = 4_000;
        for stride in [48_u64, 64, 72, 96, 104, 120, 192, 512, 1_024] {
            for shift in [1, 3, 5] {
                let (objects, share) = (16_384 / stride, 1.0 / f64::from(1_u32 << shift));
                let expected = objects as f64 * share;
                let squares = (0..SLABS).map(|slab| {
                    // Slabs lie anywhere in memory.
                    let base = 0xffff_8880_0000_0000 + (slab * slab * 37 % 1_000_000) * 16_384;
                    let kept =
                        (0..objects).filter(|i| is_sampled(address_hash(base + i * stride), shift)).count();
                    (kept as f64 - expected).powi(2)
                });
                let variance = squares.sum::<f64>() / SLABS as f64;
                let chance = expected * (1.0 - share);
                assert!(
                    (0.8..1.2).contains(&(variance / chance)),
                    "stride {stride}, shift {shift}: {variance} instead of {chance}"
                );
            }
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
