//! Whether all frees of a site's objects can be seen: where they cannot, a site that frees
//! everything looks like one that leaks, and it must never be called a leak.

use super::crosscheck::Agreement;
use crate::units;

/// What is known of the ways in which a site's objects are freed.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Whether it is of slab.
    pub slab: bool,
    /// Its cache.
    pub cache: &'a str,
    /// Whether the cache has per-CPU sheaves, through which objects are freed unseen (6.18 and later).
    pub sheaves: bool,
    /// Frees that were noticed only when the address was allocated again.
    pub implicit_frees: u64,
    /// Live objects.
    pub live: u64,
    /// What /proc/slabinfo says to the cache, where it was asked.
    pub agreement: Option<Agreement>,
    /// Paths of freeing slab objects that no hook sees in this run.
    pub missing: &'a [&'static str],
}

/// Caches whose objects the kernel frees by `kfree_rcu` or in bulk (`lib/maple_tree.c`,
/// `net/core/skbuff.c`, `kernel/fork.c`).
const FREED_UNSEEN: [&str; 5] =
    ["maple_node", "skbuff_head_cache", "skbuff_fclone_cache", "skbuff_small_head", "files_cache"];

/// For each free that was noticed late so many may not have been noticed.
const UNNOTICED: u64 = 10;

/// Why the frees of a site's objects may not all be seen; `None` when nothing says so.
pub fn doubt(seen: &Seen<'_>) -> Option<String> {
    if !seen.slab {
        return None;
    }
    // Others like them have not been noticed yet; one now and then means nothing.
    if seen.implicit_frees * UNNOTICED > seen.live {
        return Some(format!(
            "{} frees were not seen when they happened: some of the live objects may be freed too",
            units::count(seen.implicit_frees)
        ));
    }
    if !seen.missing.is_empty() {
        let paths = seen.missing.join(" and ");
        if seen.sheaves || FREED_UNSEEN.contains(&seen.cache) {
            return Some(format!(
                "objects of {} are freed by {paths} too, which cannot be seen on this kernel",
                seen.cache
            ));
        }
        if matches!(seen.agreement, Some(Agreement::Contradicts | Agreement::Partly)) {
            return Some(format!(
                "/proc/slabinfo shows less of {} than was traced, and {paths} cannot be seen on this kernel",
                seen.cache
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen<'_> = Seen {
        slab: true,
        cache: "kmalloc-256",
        sheaves: false,
        implicit_frees: 0,
        live: 500,
        agreement: Some(Agreement::Agrees),
        missing: &[],
    };
    const BLIND: [&str; 1] = ["kfree_rcu, kvfree_rcu"];

    #[test]
    fn doubts_have_reasons() {
        assert_eq!(doubt(&SEEN), None);
        assert_eq!(doubt(&Seen { missing: &BLIND, ..SEEN }), None);
        assert!(doubt(&Seen { implicit_frees: 60, ..SEEN }).unwrap().starts_with("60 frees"));
        assert_eq!(doubt(&Seen { implicit_frees: 3, ..SEEN }), None);
        let maple = Seen { cache: "maple_node", missing: &BLIND, ..SEEN };
        assert!(doubt(&maple).unwrap().contains("kfree_rcu"));
        // Where everything is hooked, how a cache is freed is no reason.
        assert_eq!(doubt(&Seen { missing: &[], ..maple }), None);
        assert!(doubt(&Seen { sheaves: true, missing: &BLIND, ..SEEN }).is_some());
        let partly = Seen { agreement: Some(Agreement::Partly), missing: &BLIND, ..SEEN };
        assert!(doubt(&partly).unwrap().contains("slabinfo"));
        assert_eq!(doubt(&Seen { slab: false, implicit_frees: 90, ..SEEN }), None);
    }
}
