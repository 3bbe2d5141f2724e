//! How long the objects that were freed had lived.

use std::time::Duration;

use leaktrace_common::{LIFETIME_CLASSES, lifetime_class_end_us};

/// The lifetime, in microseconds, that `share` (0 to 1) of the freed objects did not exceed:
/// the upper end of its class, so at most twice too long, and no more than the trace took. `None` when none was freed.
pub fn percentile_us(lifetimes: &[u64; LIFETIME_CLASSES], share: f64, traced: Duration) -> Option<f64> {
    let total: u64 = lifetimes.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = (total as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    lifetimes
        .iter()
        .position(|count| {
            seen += count;
            seen >= wanted
        })
        .map(|class| lifetime_class_end_us(class).min(traced.as_secs_f64() * 1e6))
}

/// The classes in which some were freed: their upper end in microseconds, and how many.
pub fn classes(lifetimes: &[u64; LIFETIME_CLASSES]) -> Vec<(f64, u64)> {
    let ends = (0..).map(lifetime_class_end_us);
    ends.zip(lifetimes.iter().copied()).filter(|&(_, count)| count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaktrace_common::lifetime_class;
    use proptest::prelude::*;

    #[test]
    fn nothing_freed_has_no_lifetime() {
        assert_eq!(percentile_us(&[0; LIFETIME_CLASSES], 0.5, Duration::MAX), None);
        assert_eq!(classes(&[0; LIFETIME_CLASSES]), []);
    }

    #[test]
    fn classes_have_their_ends() {
        let mut lifetimes = [0; LIFETIME_CLASSES];
        lifetimes[lifetime_class(5_000)] = 3;
        lifetimes[lifetime_class(1_000_000)] = 1;
        assert_eq!(classes(&lifetimes), [(8.192, 3), (1_048.576, 1)]);
    }

    #[test]
    fn nothing_lives_longer_than_the_trace() {
        let mut lifetimes = [0; LIFETIME_CLASSES];
        lifetimes[lifetime_class(35_000_000_000)] = 1;
        assert_eq!(percentile_us(&lifetimes, 0.99, Duration::from_secs(40)), Some(40e6));
        assert!(percentile_us(&lifetimes, 0.99, Duration::from_hours(1)).unwrap() > 60e6);
    }

    proptest! {
        #[test]
        fn within_a_factor_of_two(ages_us in proptest::collection::vec(8_u64..1_000_000, 1..100), share in 0.01..1.0_f64) {
            let mut lifetimes = [0; LIFETIME_CLASSES];
            for &us in &ages_us {
                lifetimes[lifetime_class(us * 1_000)] += 1;
            }
            let mut sorted = ages_us;
            sorted.sort_unstable();
            let exact = sorted[((sorted.len() as f64 * share).ceil() as usize).max(1) - 1] as f64;
            let found = percentile_us(&lifetimes, share, Duration::from_hours(1)).unwrap();
            prop_assert!(found >= exact && found <= exact * 2.1, "{} for {}", found, exact);
        }
    }
}
