//! Sites that are reported as one, because their call site is the same, and what is known of them together.

use anyhow::Result;
use leaktrace_common::{FAMILY_UNKNOWN_FREE, SITE_IGNORED, Site};
use rustc_hash::FxHashMap;

use super::{
    Tracer,
    births::BirthTable,
    names,
    records::{self, Share},
    scan::{Details, SiteLive},
    sites::{SiteTable, Sum},
    snapshot::{FreeCaller, SiteRecord, is_slab},
};

/// Callers that free a site's objects, reported for one site, the most frequent ones.
const FREE_CALLERS_PER_SITE: usize = 4;

/// One of the sites that are reported as one: its index, description and counters.
type Member = (usize, Site, Sum);

/// The site table, with the sites of one call site together.
#[derive(Default)]
pub(super) struct Merged {
    /// Sites by the first one of their call site, in the order of the table.
    pub(super) groups: Vec<(usize, Vec<Member>)>,
    /// Frees of objects that were not seen allocated, by cache; those of no known cache under "".
    pub(super) unknown_frees: FxHashMap<String, u64>,
    /// Frees that were not seen, found when the address was allocated again.
    pub(super) implicit_frees: u64,
}

impl Merged {
    /// Puts sites together; `trusted` says whether a page leads to its cache.
    pub(super) fn of(table: &SiteTable, trusted: bool) -> Self {
        let mut merged = Self::default();
        let mut group_of: FxHashMap<usize, usize> = FxHashMap::default();
        for (index, site) in table.used() {
            let sum = counters(table, index, &site);
            if site.family == FAMILY_UNKNOWN_FREE {
                // A free by kfree finds its cache by the page, so it is as trusted as that.
                let name = if trusted { names::cache_name(&site, true) } else { String::new() };
                *merged.unknown_frees.entry(name).or_default() += table.unknown_frees(index, &sum);
                continue;
            }
            merged.implicit_frees += sum.implicit_frees;
            if sum.allocated == 0 || site.flags & SITE_IGNORED != 0 {
                continue;
            }
            let first = table.first(index);
            let group = *group_of.entry(first).or_insert_with(|| {
                merged.groups.push((first, Vec::new()));
                merged.groups.len() - 1
            });
            merged.groups[group].1.push((index, site, sum));
        }
        merged
    }
}

fn counters(table: &SiteTable, index: usize, site: &Site) -> Sum {
    let mut sum = table.sum(index);
    if sum.implicit_frees > 0 && table.is_announced_twice(site) {
        // The second event took the first one's place: nothing was freed unseen.
        sum.allocated -= sum.implicit_frees.min(sum.allocated);
        sum.implicit_frees = 0;
    }
    sum
}

/// What the tables have of each site.
pub(super) struct Parts {
    /// When the live objects were allocated.
    pub(super) births: BirthTable,
    counts: Vec<SiteLive>,
    details: Details,
    /// Objects by stack and process.
    shares: FxHashMap<u32, Vec<Share>>,
    /// Frees by caller.
    callers: FxHashMap<u32, FxHashMap<u64, u64>>,
    trusted: bool,
    now_ns: u64,
}

impl Parts {
    /// Reads what a look at the live objects has not told.
    pub(super) fn read(
        tracer: &Tracer,
        counts: Vec<SiteLive>,
        mut details: Details,
        trusted: bool,
        now_ns: u64,
    ) -> Result<Self> {
        let shares = records::by_site(std::mem::take(&mut details.groups));
        let callers = names::read_free_callers(&tracer.ebpf)?;
        let births = std::mem::take(&mut details.births);
        Ok(Self { births, counts, details, shares, callers, trusted, now_ns })
    }

    /// The record of the sites that are reported as one, and who allocated their objects.
    pub(super) fn merge(
        &mut self,
        tracer: &Tracer,
        first: usize,
        members: &[Member],
    ) -> (SiteRecord, Vec<Share>) {
        let mut record = SiteRecord { site: first, ..SiteRecord::default() };
        let mut shares = Vec::new();
        let mut freed_by: FxHashMap<u64, u64> = FxHashMap::default();
        let mut samples = Vec::new();
        for (index, site, sum) in members {
            let id = *index as u32;
            let passed_over = self.details.excluded.get(&id).copied().unwrap_or_default();
            let count = self.counts[*index];
            add_member(&mut record, tracer, (*index, site, sum), count, passed_over.0, self.now_ns);
            record.excluded_survivors += passed_over.1;
            shares.extend(self.shares.remove(&id).unwrap_or_default());
            record.objects.extend(self.details.oldest.remove(&id).unwrap_or_default());
            samples.extend(self.details.samples.remove(&id).unwrap_or_default());
            for (caller, frees) in self.callers.get(&id).into_iter().flatten() {
                *freed_by.entry(*caller).or_default() += frees;
            }
        }
        let (_, site, _) = &members[0];
        describe(&mut record, &tracer.sites, site, self.trusted);
        record.free_callers = records::most(freed_by, FREE_CALLERS_PER_SITE)
            .into_iter()
            .map(|(caller, frees)| FreeCaller { caller, frees })
            .collect();
        record.objects.sort_unstable_by_key(|object| object.time_ns);
        samples.sort_unstable_by_key(|&(hash, _)| hash);
        record.samples = samples.into_iter().map(|(_, object)| object).collect();
        (record, shares)
    }
}

/// Says of a record what its first site is.
fn describe(record: &mut SiteRecord, table: &SiteTable, site: &Site, trusted: bool) {
    record.call_site = table.call_site(record.site, site);
    record.family = names::family_name(site.family);
    record.is_slab = is_slab(site.family);
    record.cache =
        if record.site == 0 { "(site table full)".to_owned() } else { names::cache_name(site, trusted) };
    record.object_size = if site.object_size == 0 && record.live > 0 {
        (record.live_bytes / record.live) as u32
    } else {
        site.object_size
    };
}

/// Adds one of the sites that are reported as one.
fn add_member(
    record: &mut SiteRecord,
    tracer: &Tracer,
    (index, site, sum): (usize, &Site, &Sum),
    count: SiteLive,
    passed_over: u64,
    now: u64,
) {
    let tracked = count.objects + passed_over;
    let estimate = |part| tracer.sites.estimate(index, sum, tracked, part);
    let live = estimate(count.objects);
    let survivors = estimate(count.survivors);
    // Slab objects take what their cache gives, whatever was asked for.
    let bytes = |objects: u64, seen: u64, seen_bytes: u64| {
        if is_slab(site.family) {
            objects * u64::from(site.object_size)
        } else if seen == 0 {
            seen_bytes
        } else {
            (seen_bytes as f64 * objects as f64 / seen as f64).round() as u64
        }
    };
    record.allocated += sum.allocated;
    record.freed += if sum.raw().untracked == 0 && tracer.sample_shift() == 0 {
        sum.raw().freed
    } else {
        sum.allocated - live.min(sum.allocated)
    };
    record.implicit_frees += sum.implicit_frees;
    record.live += live;
    record.live_bytes += bytes(live, count.objects, count.bytes);
    record.tracked_live += count.objects;
    record.seen += count.survivors;
    record.survivors += survivors;
    record.survivor_bytes += bytes(survivors, count.survivors, count.survivor_bytes);
    if count.oldest_ns != 0 {
        record.oldest_s = record.oldest_s.max(now.saturating_sub(count.oldest_ns) as f64 / 1e9);
    }
    for (total, count) in record.lifetimes.iter_mut().zip(sum.lifetimes) {
        *total += count;
    }
}
