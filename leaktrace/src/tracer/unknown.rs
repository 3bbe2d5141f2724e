//! What has no stack where nothing else says whose it is: it is shared out to the callers that are known.
//!
//! Which allocations get a stack is chosen by address and budget, not by caller: those without are as those with one.

use rustc_hash::FxHashMap;

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

/// Shares out the records without a call site to those of the same size class, in proportion to what survives of each. Where
/// none is known, they are returned.
pub(super) fn share_out(sites: &mut Vec<SiteRecord>) -> Vec<Nobodys> {
    let mut nobodys: FxHashMap<String, SiteRecord> = FxHashMap::default();
    sites.retain(|site| {
        // Site 0 has what did not fit the site table, and is told as such.
        let is_known = site.call_site != 0 || site.site == 0 || site.family == "unknown";
        if !is_known {
            nobodys.insert(site.cache.clone(), site.clone());
        }
        is_known
    });
    let mut left = Vec::new();
    for (cache, nobody) in nobodys {
        let of_same = |site: &&mut SiteRecord| site.cache == cache && site.family == nobody.family;
        let sum = |of: fn(&SiteRecord) -> u64| -> u64 {
            sites.iter().filter(|site| site.cache == cache && site.family == nobody.family).map(of).sum()
        };
        let known = [
            sum(|site| site.live),
            sum(|site| site.survivors),
            sum(|site| site.allocated),
            sum(|site| site.freed),
        ];
        // Of slab only bulk allocations have their place from a stack, and the other sites of the cache are no measure of them.
        let alike = matches!(nobody.family, "page" | "vmalloc" | "percpu");
        if !alike || known[0] == 0 {
            if nobody.live > 0 {
                left.push(Nobodys { cache, objects: nobody.live, bytes: nobody.live_bytes });
            }
            continue;
        }
        let part = |whole: u64, mine: u64, known: u64| {
            if known == 0 { 0 } else { (whole as f64 * mine as f64 / known as f64).round() as u64 }
        };
        for site in sites.iter_mut().filter(of_same) {
            site.shared = part(nobody.live, site.live, known[0]);
            site.live_bytes += part(nobody.live_bytes, site.live, known[0]);
            site.live += site.shared;
            site.survivor_bytes += part(nobody.survivor_bytes, site.survivors, known[1]);
            site.survivors += part(nobody.survivors, site.survivors, known[1]);
            site.allocated += part(nobody.allocated, site.allocated, known[2]);
            site.freed += part(nobody.freed, site.freed, known[3]);
        }
    }
    left.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.cache.cmp(&b.cache)));
    left
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
        let told: Vec<_> =
            sites.iter().map(|s| (s.site, s.live, s.survivors, s.allocated, s.shared)).collect();
        assert_eq!(
            told,
            [
                (1, 180, 180, 201, 90),
                (2, 20, 20, 19_899, 10),
                (3, 7, 7, 7, 0),
                (4, 8, 8, 8, 0),
                (0, 3, 3, 3, 0)
            ]
        );
        assert_eq!(sites[0].live_bytes, 180 * 4_096);
    }
}
