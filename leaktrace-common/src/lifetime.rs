//! Lifetimes: which objects they are measured of, and how they are counted.

use crate::GOLDEN;

/// In [`Payload::time_ns`](crate::Payload::time_ns): the time was read for this very object. Reading the clock costs as much
/// as everything else that a free does, so lifetimes are measured on a sample.
pub const EXACT_TIME: u64 = 1;

/// Allocations of a site on one CPU that all have their exact time, before a sample has.
pub const FIRST_EXACT: u64 = 16;

/// Whether the `nth` allocation of a site gets its exact time: 1 in 16 later on. The golden ratio
/// spreads them evenly over every rhythm in which a site may allocate objects of different fates.
#[inline(always)]
pub const fn has_exact_time(nth: u64) -> bool {
    nth <= FIRST_EXACT || nth.wrapping_mul(GOLDEN) >> 60 == 0
}

/// Number of lifetime classes in a [`Counters`](crate::Counters) cell.
pub const LIFETIME_CLASSES: usize = 26;

/// log2 of the nanoseconds that a lifetime is counted in.
const LIFETIME_SHIFT: u32 = 12;

/// The lifetime class of an age in nanoseconds.
#[inline(always)]
pub fn lifetime_class(age_ns: u64) -> usize {
    let class = log2_floor_plus_one(age_ns >> LIFETIME_SHIFT);
    if class < LIFETIME_CLASSES { class } else { LIFETIME_CLASSES - 1 }
}

/// Number of significant bits, in shifts and compares: BPF has no instruction for it.
#[inline(always)]
fn log2_floor_plus_one(value: u64) -> usize {
    let mut v = value;
    let mut bits = 0;
    if v >> 32 != 0 {
        return LIFETIME_CLASSES;
    }
    if v >> 16 != 0 {
        v >>= 16;
        bits += 16;
    }
    if v >> 8 != 0 {
        v >>= 8;
        bits += 8;
    }
    if v >> 4 != 0 {
        v >>= 4;
        bits += 4;
    }
    if v >> 2 != 0 {
        v >>= 2;
        bits += 2;
    }
    if v >> 1 != 0 {
        v >>= 1;
        bits += 1;
    }
    bits + v as usize
}

/// Upper end of a lifetime class in microseconds.
pub const fn lifetime_class_end_us(class: usize) -> f64 {
    (1_u64 << class << LIFETIME_SHIFT) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_classes_cover_their_ranges() {
        assert_eq!(lifetime_class(0), 0);
        assert_eq!(lifetime_class(4_095), 0);
        assert_eq!(lifetime_class(4_096), 1);
        assert_eq!(lifetime_class(8_192), 2);
        assert_eq!(lifetime_class(1 << 20), 9);
        assert_eq!(lifetime_class(60_000_000_000), LIFETIME_CLASSES - 2);
        assert_eq!(lifetime_class(70_000_000_000), LIFETIME_CLASSES - 1);
        assert_eq!(lifetime_class(u64::MAX), LIFETIME_CLASSES - 1);
        for class in 1..LIFETIME_CLASSES - 1 {
            assert_eq!(lifetime_class((1 << (class - 1)) << LIFETIME_SHIFT), class);
            assert_eq!(lifetime_class(((1 << class) << LIFETIME_SHIFT) - 1), class);
        }
    }

    #[test]
    fn exact_times_are_a_fair_sample() {
        // Of every object in a rhythm of up to 48 the same share is measured.
        for period in 1..=48_u64 {
            for phase in 0..period {
                let all = 16_384;
                let exact =
                    (1..=all).filter(|i| has_exact_time(FIRST_EXACT + phase + i * period)).count() as u64;
                assert!(exact.abs_diff(all / 16) * 10 <= all / 16, "{exact} at {phase} of {period}");
            }
        }
    }
}
