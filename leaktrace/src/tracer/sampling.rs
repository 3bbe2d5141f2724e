//! Counts of everything from counts of a sample.
//!
//! Every allocation is counted, but when the tables run short only those with certain address
//! hashes are tracked. Address and fate have nothing to do with each other, so the share of the
//! tracked objects that lives is the share of all. That is exact where it matters most: of a
//! site that never frees, all tracked objects live, and so do all.

/// Raw counters of one site since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// Allocations.
    pub allocated: u64,
    /// Those not in the sample, or with no place in the tables.
    pub untracked: u64,
    /// Frees of tracked objects, seen and implicit.
    pub freed: u64,
}

/// One site's counters when the sample last became smaller, in terms of the present sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epoch {
    at: Raw,
    /// Objects that were live then.
    kept: f64,
    /// Frees until then.
    freed: f64,
    /// Whether there was a larger sample before.
    shrunk: bool,
}

impl Epoch {
    /// Frees of objects in the present sample.
    fn freed(&self, raw: &Raw) -> f64 {
        self.freed + raw.freed.saturating_sub(self.at.freed) as f64
    }

    /// Live objects in the present sample, from counters alone.
    pub fn tracked_live(&self, raw: &Raw) -> f64 {
        let allocated = (raw.allocated - self.at.allocated).saturating_sub(raw.untracked - self.at.untracked);
        (self.kept + allocated as f64 - raw.freed.saturating_sub(self.at.freed) as f64).max(0.0)
    }

    /// The epoch that begins when the sample shrinks by `halvings`: `raw` is what the counters were
    /// when it did, and `kept` how many of the objects then in the table stay in the sample.
    #[must_use]
    pub fn shrink(&self, raw: &Raw, kept: u64, halvings: u32) -> Self {
        Self {
            at: *raw,
            kept: kept as f64,
            freed: self.freed(raw) / f64::from(1_u32 << halvings),
            shrunk: true,
        }
    }

    /// Of all the site's objects, those like `part` of the `tracked_live` ones.
    ///
    /// The share is taken of what the present sample has had, live and freed: so nothing but the
    /// frees before the sample shrank is an estimate.
    pub fn estimate(&self, raw: &Raw, tracked_live: f64, part: f64) -> f64 {
        let seen = tracked_live + self.freed(raw);
        if !self.shrunk && raw.untracked == 0 {
            part
        } else if seen <= 0.0 {
            0.0
        } else {
            raw.allocated as f64 * part / seen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_sampling_the_table_is_right() {
        let raw = Raw { allocated: 1_000, untracked: 0, freed: 400 };
        for found in [600.0, 603.0] {
            // Objects in flight while the counters were read: still what the table says.
            assert!((Epoch::default().estimate(&raw, found, found) - found).abs() < 1e-9);
        }
        assert!((Epoch::default().tracked_live(&raw) - 600.0).abs() < 1e-9);
    }

    #[test]
    fn a_site_that_never_frees_is_exact_at_any_sample() {
        let before = Raw { allocated: 900, untracked: 0, freed: 0 };
        let epoch = Epoch::default().shrink(&before, 57, 4);
        let raw = Raw { allocated: 5_000, untracked: 3_900, freed: 0 };
        for found in [57.0 + 200.0, 240.0, 300.0] {
            assert!((epoch.estimate(&raw, found, found) - 5_000.0).abs() < 1e-9);
        }
    }

    #[test]
    fn nothing_tracked_is_nothing_known() {
        let raw = Raw { allocated: 3, untracked: 3, freed: 0 };
        assert!(Epoch::default().estimate(&raw, 0.0, 0.0).abs() < 1e-9);
    }

    proptest! {
        /// A site that allocates, shrinks to `1 / 2^shift`, and allocates and frees on: evenly, so
        /// the estimate has to be right but for rounding.
        #[test]
        fn a_shrinking_sample_stays_true(
            before in 1_000_u64..100_000,
            after in 0_u64..100_000,
            freed_before in 0.0..1.0_f64,
            freed_after in 0.0..1.0_f64,
            shift in 1_u32..6,
        ) {
            let part = |count: u64, share: f64| (count as f64 * share) as u64;
            let first = Raw { allocated: before, untracked: 0, freed: part(before, freed_before) };
            let left = first.allocated - first.freed;
            let epoch = Epoch::default().shrink(&first, left >> shift, shift);
            let sampled = after >> shift;
            let freed = part((left >> shift) + sampled, freed_after);
            let raw = Raw {
                allocated: before + after,
                untracked: after - sampled,
                freed: first.freed + freed,
            };
            let live = epoch.tracked_live(&raw);
            let expected = (left + after) as f64 * (1.0 - freed_after);
            let found = epoch.estimate(&raw, live, live);
            prop_assert!((found - expected).abs() <= f64::from(8 << shift), "{} for {}", found, expected);
        }
    }
}
