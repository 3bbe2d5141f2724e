//! What has no stack where nothing else says whose it is: it is shared out to the callers that are known.
//!
//! Which allocations get a stack is chosen by address and budget, not by caller: those without are as those with one.

use super::snapshot::SiteRecord;

/// Live objects of nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nobodys {
    /// Size class or family.
    pub cache: String,
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Shares out the records without a call site to those of the same kind (blocks of one size, areas, per-CPU memory), in
/// proportion to what survives of each. Where nothing is known to survive, they stay, and are returned.
pub(super) fn share_out(sites: &mut Vec<SiteRecord>) -> Vec<Nobodys> {
    let mut left = Vec::new();
    let mut index = 0;
    while index < sites.len() {
        // Site 0 has what did not fit the site table, and is told as such.
        if sites[index].call_site != 0 || sites[index].site == 0 {
            index += 1;
            continue;
        }
        let nobody = sites.swap_remove(index);
        if !give(&nobody, sites) {
            let (objects, bytes) = (nobody.live, nobody.live_bytes);
            left.push(Nobodys { cache: nobody.cache.clone(), objects, bytes });
            sites.push(nobody);
            let last = sites.len() - 1;
            sites.swap(index, last);
            index += 1;
        }
    }
    left.retain(|nobodys| nobodys.objects > 0);
    left.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.cache.cmp(&b.cache)));
    left
}

/// Gives a record's objects to those alike; false where there are none.
fn give(nobody: &SiteRecord, sites: &mut [SiteRecord]) -> bool {
    // Of slab only bulk allocations have their place from a stack, and the other sites of the cache are no measure of them.
    if !matches!(nobody.family, "page" | "vmalloc" | "percpu") {
        return false;
    }
    let alike =
        |site: &SiteRecord| site.call_site != 0 && site.cache == nobody.cache && site.family == nobody.family;
    let sum = |of: fn(&SiteRecord) -> u64| -> u64 { sites.iter().filter(|site| alike(site)).map(of).sum() };
    let (live, survivors) = (sum(|site| site.live), sum(|site| site.survivors));
    let (allocated, freed) = (sum(|site| site.allocated), sum(|site| site.freed));
    if allocated == 0 || (nobody.live > 0 && live == 0) || (nobody.survivors > 0 && survivors == 0) {
        return false;
    }
    let part = |whole: u64, mine: u64, known: u64| {
        if known == 0 { 0 } else { (whole as f64 * mine as f64 / known as f64).round() as u64 }
    };
    for site in sites.iter_mut().filter(|site| alike(site)) {
        let shared = part(nobody.live, site.live, live);
        site.shared += shared;
        site.live_bytes += part(nobody.live_bytes, site.live, live);
        site.survivor_bytes += part(nobody.survivor_bytes, site.survivors, survivors);
        site.survivors += part(nobody.survivors, site.survivors, survivors);
        site.allocated += part(nobody.allocated, site.allocated, allocated);
        site.freed += part(nobody.freed, site.freed, freed);
        site.live += shared;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(site: usize, cache: &str, live: u64, allocated: u64) -> SiteRecord {
        SiteRecord {
            site,
            call_site: site as u64 * 0x10,
            family: "page",
            cache: cache.to_owned(),
            live,
            live_bytes: live * 4_096,
            survivors: live,
            survivor_bytes: live * 4_096,
            allocated,
            freed: allocated - live,
            ..SiteRecord::default()
        }
    }

    #[test]
    fn who_keeps_pages_gets_those_that_have_no_stack() {
        let nobody = |cache, live, allocated| SiteRecord { call_site: 0, ..site(9, cache, live, allocated) };
        let mut sites = vec![
            site(1, "pages-4k", 90, 100),
            nobody("pages-4k", 100, 10_100),
            site(2, "pages-4k", 10, 9_900),
            site(3, "pages-16k", 7, 7),
            nobody("pages-1m", 5, 5),
            SiteRecord { family: "kmem_cache", ..nobody("skbuff_head_cache", 4, 4) },
            SiteRecord { family: "kmem_cache", ..site(4, "skbuff_head_cache", 8, 8) },
            SiteRecord { call_site: 0, site: 0, ..site(1, "(site table full)", 3, 3) },
        ];
        let left = share_out(&mut sites);
        let of = |cache: &str, objects: u64| Nobodys { cache: cache.into(), objects, bytes: objects * 4_096 };
        assert_eq!(left, [of("pages-1m", 5), of("skbuff_head_cache", 4)]);
        let mut told: Vec<_> =
            sites.iter().map(|s| (s.site, s.live, s.survivors, s.allocated, s.shared)).collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                (0, 3, 3, 3, 0),
                (1, 180, 180, 201, 90),
                (2, 20, 20, 19_899, 10),
                (3, 7, 7, 7, 0),
                (4, 8, 8, 8, 0),
                (9, 4, 4, 4, 0),
                (9, 5, 5, 5, 0)
            ]
        );
        assert_eq!(sites.iter().find(|site| site.site == 1).unwrap().live_bytes, 180 * 4_096);
        // A young page of another caller says nothing of those that stay.
        let young = SiteRecord { survivors: 0, survivor_bytes: 0, ..site(1, "pages-4k", 1, 50) };
        let mut sites = vec![nobody("pages-4k", 100, 100), young];
        assert_eq!(share_out(&mut sites), [of("pages-4k", 100)]);
        let mut kept: Vec<_> = sites.iter().map(|site| (site.survivors, site.live)).collect();
        kept.sort_unstable();
        assert_eq!(kept, [(0, 1), (100, 100)]);
    }
}
