//! What a site's numbers mean, and how it ranks.
//!
//! This version says `suspect` at most: `leak` needs the statistics and the proof that are to come.

use std::cmp::Ordering;

/// What is asked of a site.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence {
    /// Allocations.
    pub allocated: u64,
    /// Live objects.
    pub live: u64,
    /// Live objects older than the minimum age.
    pub survivors: u64,
    /// Bytes of one object.
    pub object_size: u32,
    /// Growth of the live objects, in objects per second.
    pub growth: f64,
    /// Length of the window in seconds.
    pub window_s: f64,
    /// Whether the cache is of the reclaimable kind.
    pub reclaimable: bool,
    /// Whether the cache lost older objects meanwhile, whose place these take: see [`replaces`].
    pub replaces: bool,
}

/// Whether `live` objects of a site may stand for as many older ones: the traced cache has grown by
/// less than half of them (`net`), because objects that are older than the trace were freed
/// (`unknown_freed`). Such a site grows from zero in every trace, however long it has been steady.
pub fn replaces(live: u64, net: i64, unknown_freed: u64) -> bool {
    net * 2 < live as i64 && unknown_freed * 2 >= live
}

/// The verdict on a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Objects survive and their number grows.
    Suspect,
    /// The same, but the kernel frees such objects when memory is short.
    Cache,
    /// Objects survive and their number is steady, or the cache's is.
    Plateau,
    /// Objects come and go.
    Churn,
}

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Cache => "cache",
            Self::Plateau => "plateau",
            Self::Churn => "churn",
        }
    }

    /// What surviving bytes count for under this verdict.
    fn weight(self) -> f64 {
        match self {
            Self::Suspect => 1.0,
            Self::Plateau => 0.2,
            Self::Cache => 0.1,
            Self::Churn => 0.01,
        }
    }
}

/// Growth over the window below this share of what lives is none.
const STEADY: f64 = 0.1;
/// Survivors below this share of the allocations are what is in flight.
const IN_FLIGHT: f64 = 0.01;

impl Evidence {
    /// Growth over the window as a share of what lives now, from 0 to 1.
    fn growing(&self) -> f64 {
        if self.live == 0 { 0.0 } else { (self.growth * self.window_s / self.live as f64).clamp(0.0, 1.0) }
    }

    /// Judges the site.
    pub fn verdict(&self) -> Verdict {
        let growing = self.growing() >= STEADY;
        if self.survivors == 0 || (!growing && (self.survivors as f64) < self.allocated as f64 * IN_FLIGHT) {
            Verdict::Churn
        } else if self.reclaimable {
            Verdict::Cache
        } else if growing && !self.replaces {
            Verdict::Suspect
        } else {
            Verdict::Plateau
        }
    }

    /// The weight of a site in the ranking: surviving bytes, weighed by verdict and growth.
    pub fn score(&self) -> f64 {
        let bytes = self.survivors as f64 * f64::from(self.object_size);
        bytes * self.verdict().weight() * (0.1 + 0.9 * self.growing())
    }
}

/// Orders by score, the highest first, and equal ones by live bytes.
pub fn by_rank(a: &Evidence, b: &Evidence) -> Ordering {
    let bytes = |evidence: &Evidence| evidence.live * u64::from(evidence.object_size);
    b.score().total_cmp(&a.score()).then_with(|| bytes(b).cmp(&bytes(a)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEAK: Evidence = Evidence {
        allocated: 5_000,
        live: 5_000,
        survivors: 4_500,
        object_size: 256,
        growth: 90.0,
        window_s: 60.0,
        reclaimable: false,
        replaces: false,
    };

    #[test]
    fn verdicts() {
        assert_eq!(LEAK.verdict(), Verdict::Suspect);
        assert_eq!(Evidence { reclaimable: true, ..LEAK }.verdict(), Verdict::Cache);
        assert_eq!(Evidence { growth: 0.0, ..LEAK }.verdict(), Verdict::Plateau);
        assert_eq!(Evidence { growth: -5.0, ..LEAK }.verdict(), Verdict::Plateau);
        assert_eq!(Evidence { replaces: true, ..LEAK }.verdict(), Verdict::Plateau);
        assert_eq!(Evidence { survivors: 0, ..LEAK }.verdict(), Verdict::Churn);
        assert_eq!(Evidence { allocated: 10_000_000, growth: 0.0, ..LEAK }.verdict(), Verdict::Churn);
    }

    #[test]
    fn only_frees_of_older_objects_make_room_for_these() {
        // 1,521 live objects that appeared while the cache lost 1,700 older ones.
        assert!(replaces(1_521, -179, 1_700));
        // A leak in a busy cache, and one in a cache that nothing else uses.
        assert!(!replaces(1_500, 1_100, 400));
        assert!(!replaces(5_000, 5_000, 0));
        // The cache did not grow because frees were not seen: for slabinfo to say.
        assert!(!replaces(5_000, 0, 100));
    }

    #[test]
    fn a_small_leak_ranks_above_a_large_cache_and_a_large_plateau() {
        let cache = Evidence { object_size: 1_024, reclaimable: true, ..LEAK };
        let plateau = Evidence { object_size: 4_096, growth: 0.0, ..LEAK };
        let mut sites = [cache, plateau, LEAK];
        sites.sort_by(by_rank);
        assert_eq!(sites[0].verdict(), Verdict::Suspect);
    }

    proptest! {
        #[test]
        fn more_survivors_never_rank_lower(a in 0_u64..5_000, b in 0_u64..5_000) {
            let (low, high) = (a.min(b), a.max(b));
            let low = Evidence { survivors: low, ..LEAK };
            let high = Evidence { survivors: high, ..LEAK };
            prop_assert!(low.score() <= high.score());
        }
    }
}
