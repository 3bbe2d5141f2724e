//! Does what was traced agree with /proc/slabinfo?
//!
//! SLUB's `active_objs` is not the number of objects in use: objects in a CPU's slab, in its
//! partial slabs and in its sheaves count as active while they are free, and come back only when
//! those are flushed (`mm/slub.c`, `get_slabinfo`). What can sit there bounds the difference.

use crate::proc::slab::{CacheTraits, SlabCache};

/// What was traced of one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Allocations.
    pub allocated: u64,
    /// Frees of traced objects, implicit ones included.
    pub freed: u64,
    /// Frees of objects that were not seen allocated; most are older than the trace.
    pub unknown_freed: u64,
    /// Live objects.
    pub live: u64,
}

impl Traced {
    /// By how much the cache's objects should have changed.
    pub fn net(&self) -> i64 {
        self.allocated as i64 - self.freed as i64 - self.unknown_freed as i64
    }
}

/// How the two compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Within what SLUB may hold back.
    Agrees,
    /// Slabinfo shows less growth than was traced, but more than half of it.
    Partly,
    /// Slabinfo shows less than half of the growth that was traced: frees were not seen.
    Contradicts,
    /// Slabinfo shows more growth than was traced: allocations were not seen.
    MoreInSlabinfo,
    /// There is nothing to compare with.
    Unchecked,
}

impl Agreement {
    /// The word for it in the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Partly => "partly",
            Self::Contradicts => "contradicts",
            Self::MoreInSlabinfo => "more in slabinfo",
            Self::Unchecked => "unchecked",
        }
    }
}

/// One cache compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// The outcome.
    pub agreement: Agreement,
    /// Change in slabinfo, where it has the cache.
    pub change: Option<i64>,
    /// Difference up to which both agree, in objects.
    pub tolerance: u64,
    /// The part of it that does not depend on how much was traced: free objects that count as active.
    pub held_back: u64,
}

/// Objects that differ for reasons of timing: the two are not read in the same instant.
const TIMING: u64 = 32;

/// Full sheaves that each node keeps for its CPUs (`mm/slub.c`, `MAX_FULL_SHEAVES`, 6.18 and later).
const SHEAVES_PER_NODE: u64 = 10;

/// Where free objects can hide.
#[derive(Clone, Copy, Debug)]
pub struct Processors {
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory nodes.
    pub nodes: u32,
}

/// Compares one cache. `sampling` is 1, or the factor by which the traced numbers were scaled.
pub fn check(
    traced: &Traced,
    before: Option<&SlabCache>,
    after: Option<&SlabCache>,
    traits: Option<&CacheTraits>,
    processors: Processors,
    sampling: u64,
) -> Check {
    let Some(sample) = after.or(before) else {
        return Check { agreement: Agreement::Unchecked, change: None, tolerance: 0, held_back: 0 };
    };
    let active = |cache: Option<&SlabCache>| cache.map_or(0, |cache| cache.active_objects as i64);
    let change = active(after) - active(before);
    let net = traced.net();
    let (partial, sheaf) = traits.map_or((0, 0), |traits| (traits.cpu_partial, traits.sheaf_capacity));
    // A CPU has its current slab, its partial ones, and two sheaves and a spare one.
    let per_cpu = u64::from(sample.objects_per_slab) + partial + 3 * sheaf;
    let traffic = traced.allocated + traced.freed + traced.unknown_freed;
    let scaling = if sampling > 1 { ((traffic * sampling) as f64).sqrt() as u64 * 3 } else { 0 };
    let per_node = SHEAVES_PER_NODE * sheaf;
    let held_back =
        u64::from(processors.cpus) * per_cpu + u64::from(processors.nodes) * per_node + TIMING + scaling;
    let tolerance = held_back + net.unsigned_abs() / 50;
    let difference = net - change;
    let agreement = if difference.unsigned_abs() <= tolerance {
        Agreement::Agrees
    } else if difference < 0 {
        Agreement::MoreInSlabinfo
    } else if change * 2 < net {
        Agreement::Contradicts
    } else {
        Agreement::Partly
    };
    Check { agreement, change: Some(change), tolerance, held_back }
}

/// Whether a site's live objects may be real although its cache is contradicted: they alone, and
/// not less than half of them, are the growth that slabinfo shows beyond what SLUB may hold back;
/// and that growth is large beside what SLUB may hold back.
pub fn explains(check: &Check, live: u64) -> bool {
    let change = check.change.unwrap_or(0);
    let sure = change - check.held_back as i64;
    let live = live as i64;
    sure > check.held_back as i64 && live * 2 >= sure && live <= change + check.held_back as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: Processors = Processors { cpus: 2, nodes: 1 };

    fn slab(active: u64) -> SlabCache {
        SlabCache {
            active_objects: active,
            total_objects: active,
            object_size: 256,
            objects_per_slab: 16,
            pages: active / 16,
        }
    }

    fn compare(net: i64, change: i64) -> Check {
        let traced = Traced {
            allocated: net.max(0) as u64 + 1_000,
            freed: 1_000,
            unknown_freed: (-net).max(0) as u64,
            live: net.max(0) as u64,
        };
        let after = slab((100_000 + change) as u64);
        check(&traced, Some(&slab(100_000)), Some(&after), None, HERE, 1)
    }

    #[test]
    fn maple_node_is_contradicted() {
        // Seen on 6.18: frees by way of the sheaves fire no event.
        let found = compare(28_680, -584);
        assert_eq!((found.agreement, found.change), (Agreement::Contradicts, Some(-584)));
        assert!(!explains(&found, 28_680) && !explains(&found, 5));
    }

    #[test]
    fn buffer_head_agrees() {
        assert_eq!(compare(27_592, 27_522).agreement, Agreement::Agrees);
        assert_eq!(compare(-5_000, -4_990).agreement, Agreement::Agrees);
    }

    #[test]
    fn unseen_allocations_and_partial_agreement() {
        assert_eq!(compare(0, 9_000).agreement, Agreement::MoreInSlabinfo);
        assert_eq!(compare(10_000, 7_000).agreement, Agreement::Partly);
    }

    #[test]
    fn a_real_leak_beside_unseen_frees_is_kept() {
        let found = compare(50_000, 1_000);
        assert_eq!(found.agreement, Agreement::Contradicts);
        assert!(explains(&found, 1_000) && !explains(&found, 49_000) && !explains(&found, 3));
    }

    #[test]
    fn without_slabinfo_nothing_is_said() {
        assert_eq!(check(&Traced::default(), None, None, None, HERE, 1).agreement, Agreement::Unchecked);
    }

    proptest! {
        #[test]
        fn what_slub_holds_back_is_tolerated(net in -50_000_i64..50_000, held in 0..64_i64) {
            prop_assert_eq!(compare(net, net + held).agreement, Agreement::Agrees);
        }
    }
}
