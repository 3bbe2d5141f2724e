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

/// What one site's counters meant when the sample last became smaller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epoch {
    at: Raw,
    tracked: f64,
    freed: f64,
}

impl Epoch {
    /// Tracked allocations, counted as if the present sample had been in force from the start.
    pub fn tracked(&self, raw: &Raw) -> f64 {
        let since = (raw.allocated - self.at.allocated).saturating_sub(raw.untracked - self.at.untracked);
        self.tracked + since as f64
    }

    /// Their frees, counted likewise.
    pub fn freed(&self, raw: &Raw) -> f64 {
        self.freed + raw.freed.saturating_sub(self.at.freed) as f64
    }

    /// The epoch that begins when the sample shrinks by `shift` more halvings and `kept` of the
    /// objects now in the table stay in it.
    #[must_use]
    pub fn shrink(&self, raw: &Raw, kept: u64, shift: u32) -> Self {
        let freed = self.freed(raw) / f64::from(1_u32 << shift);
        Self { at: *raw, tracked: kept as f64 + freed, freed }
    }

    /// All live objects of a site of which `tracked_live` tracked ones live.
    pub fn estimate(&self, raw: &Raw, tracked_live: u64) -> u64 {
        let tracked = self.tracked(raw);
        if raw.untracked == 0 && self.at == Raw::default() {
            return tracked_live;
        }
        if tracked <= 0.0 {
            return 0;
        }
        let share = (tracked_live as f64 / tracked).min(1.0);
        (raw.allocated as f64 * share).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_sampling_the_table_is_right() {
        let raw = Raw { allocated: 1_000, untracked: 0, freed: 400 };
        assert_eq!(Epoch::default().estimate(&raw, 600), 600);
        // Objects in flight while the counters were read: still what the table says.
        assert_eq!(Epoch::default().estimate(&raw, 603), 603);
    }

    #[test]
    fn a_site_that_never_frees_is_exact_at_any_sample() {
        let before = Raw { allocated: 900, untracked: 0, freed: 0 };
        let epoch = Epoch::default().shrink(&before, 57, 4);
        let raw = Raw { allocated: 5_000, untracked: 3_900, freed: 0 };
        assert_eq!(epoch.estimate(&raw, 57 + 200), 5_000);
    }

    #[test]
    fn nothing_tracked_is_nothing_known() {
        let raw = Raw { allocated: 3, untracked: 3, freed: 0 };
        assert_eq!(Epoch::default().estimate(&raw, 0), 0);
    }

    proptest! {
        #[test]
        fn balanced_sites_are_scaled_by_their_share(allocated in 1_u64..100_000, live_share in 0.0..1.0_f64, shift in 1_u32..6) {
            let sampled = allocated >> shift;
            let live = (sampled as f64 * live_share) as u64;
            let raw = Raw { allocated, untracked: allocated - sampled, freed: sampled - live };
            let estimate = Epoch::default().estimate(&raw, live) as f64;
            let expected = if sampled == 0 { 0.0 } else { allocated as f64 * live as f64 / sampled as f64 };
            prop_assert!((estimate - expected).abs() <= 1.0);
        }
    }
}
