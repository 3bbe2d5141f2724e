//! Reading the live table: a million objects in milliseconds.

use leaktrace_common::{BUCKET_SLOTS, Bucket, FRAGMENT, Payload, SITE_PENDING, decode_address};
use leaktrace_ebpf::live;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{births::BirthTable, mapped::MappedArray};

/// Objects listed for each site, the oldest ones.
pub const OBJECTS_PER_SITE: usize = 8;
/// Survivors of each site that may be looked at in memory: a sample by address.
const SAMPLES: usize = 24;
/// The same of sites that are told apart by their stacks.
const SPLIT_SAMPLES: usize = 512;

/// What the table holds of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteLive {
    /// Objects.
    pub objects: u64,
    /// Those older than the minimum age.
    pub survivors: u64,
    /// When the oldest was allocated; 0 without objects.
    pub oldest_ns: u64,
    /// Bytes that the events said: of slab objects those asked for.
    pub bytes: u64,
    /// Those of survivors.
    pub survivor_bytes: u64,
}

/// One outstanding object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveObject {
    /// Its address.
    pub address: u64,
    /// Requested bytes, 0 when only the cache knows.
    pub size: u32,
    /// When it was allocated.
    pub time_ns: u64,
    /// Its stack, 0 for none.
    pub stack: u32,
}

/// Objects of one site that one process allocated from one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Objects.
    pub objects: u64,
    /// Those older than the minimum age.
    pub survivors: u64,
    /// When the oldest was allocated; 0 without objects.
    pub oldest_ns: u64,
}

impl Group {
    /// Adds another one's objects.
    pub fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.survivors += other.survivors;
        if self.oldest_ns == 0 || (other.oldest_ns != 0 && other.oldest_ns < self.oldest_ns) {
            self.oldest_ns = other.oldest_ns;
        }
    }
}

/// Who allocated what is live.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Objects by (site, stack, process).
    pub groups: FxHashMap<(u32, u32, u32), Group>,
    /// The oldest objects of each site.
    pub oldest: FxHashMap<u32, Vec<LiveObject>>,
    /// Survivors of each site, a sample: those with the smallest hashes of their addresses.
    pub samples: FxHashMap<u32, Vec<(u64, LiveObject)>>,
    /// When they were allocated.
    pub births: BirthTable,
    /// Objects that were passed over, and the survivors among them, by site.
    pub excluded: FxHashMap<u32, (u64, u64)>,
    /// Objects by site, stack, and the number of instants given that they are older than; with bytes.
    pub left: FxHashMap<(u32, u32, usize), (u64, u64)>,
}

/// What is asked of a detailed look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'a> {
    /// Objects born before are survivors.
    pub born_before_ns: u64,
    /// Addresses that are passed over.
    pub excluded: Option<&'a FxHashSet<u64>>,
    /// Which sites are told apart by their stacks.
    pub split: &'a [bool],
    /// Instants, ascending, at which watched modules were removed.
    pub removals_ns: &'a [u64],
    /// The start of the trace, and now.
    pub window_ns: (u64, u64),
}

/// What a quick look at the table shows.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By site.
    pub sites: Vec<SiteLive>,
    /// Survivors by site and stack, of the sites that are told apart by their stacks.
    pub split: FxHashMap<(u32, u32), u64>,
}

/// Counts the live objects of each site.
pub fn count(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    split: &[bool],
    born_before_ns: u64,
) -> Counts {
    let mut counts = Counts { sites: vec![SiteLive::default(); split.len()], split: FxHashMap::default() };
    visit(table, overflow, |_, payload| {
        add(&mut counts.sites, &payload, born_before_ns);
        if payload.time_ns <= born_before_ns && split.get(payload.site as usize) == Some(&true) {
            *counts.split.entry((payload.site, payload.stack)).or_default() += 1;
        }
    });
    counts
}

/// Notes of all live objects when they were allocated; `window_ns` is the start of the trace, and now.
pub fn births(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    split: &[bool],
    window_ns: (u64, u64),
) -> BirthTable {
    let mut births = BirthTable::new(split.len(), window_ns);
    visit(table, overflow, |_, payload| births.add(&payload, split));
    births
}

/// Counts the live objects of each site and notes who allocated them.
pub fn detail(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    sites: usize,
    question: &Question<'_>,
) -> (Vec<SiteLive>, Details) {
    let mut counts = vec![SiteLive::default(); sites];
    let births = BirthTable::new(sites, question.window_ns);
    let mut details = Details { births, ..Details::default() };
    // Neighbours in the table are no neighbours in time, but a leaking site has most of the
    // table: the last group is often the next one's too.
    let mut last = ((0, 0, 0), Group::default());
    // The newest of the oldest objects that a site's list holds, once the list is full.
    let mut thresholds = vec![u64::MAX; sites];
    // The largest of the smallest hashes that a site's sample holds, once it is full.
    let mut largest = vec![u64::MAX; sites];
    visit(table, overflow, |key, payload| {
        let old = payload.time_ns <= question.born_before_ns;
        if let Some(excluded) = question.excluded
            && excluded.contains(&decode_address(key))
        {
            let whole = u64::from(payload.size & FRAGMENT == 0);
            let excluded = details.excluded.entry(payload.site).or_default();
            *excluded = (excluded.0 + whole, excluded.1 + if old { whole } else { 0 });
            return;
        }
        add(&mut counts, &payload, question.born_before_ns);
        if payload.size & FRAGMENT != 0 {
            return;
        }
        details.births.add(&payload, question.split);
        if !question.removals_ns.is_empty() {
            let later = question.removals_ns.partition_point(|&removed| removed < payload.time_ns);
            let left = details.left.entry((payload.site, payload.stack, later)).or_default();
            left.0 += 1;
            left.1 += u64::from(payload.size);
        }
        let group = (payload.site, payload.stack, payload.tgid);
        let one = Group { objects: 1, survivors: u64::from(old), oldest_ns: payload.time_ns };
        if group == last.0 {
            last.1.add(&one);
        } else {
            if last.1.objects > 0 {
                details.groups.entry(last.0).or_default().add(&last.1);
            }
            last = (group, one);
        }
        let site = payload.site as usize;
        let object = || LiveObject {
            address: decode_address(key),
            size: payload.size,
            time_ns: payload.time_ns,
            stack: payload.stack,
        };
        if let Some(threshold) = thresholds.get_mut(site)
            && payload.time_ns < *threshold
        {
            *threshold = keep_oldest(details.oldest.entry(payload.site).or_default(), object());
        }
        if old
            && let Some(largest) = largest.get_mut(site)
            && leaktrace_common::address_hash(decode_address(key)) < *largest
        {
            let limit = if question.split.get(site) == Some(&true) { SPLIT_SAMPLES } else { SAMPLES };
            *largest = keep_sample(details.samples.entry(payload.site).or_default(), object(), limit);
        }
    });
    if last.1.objects > 0 {
        details.groups.entry(last.0).or_default().add(&last.1);
    }
    (counts, details)
}

/// Adds an object to a sample; returns the hash below which more is wanted.
fn keep_sample(sample: &mut Vec<(u64, LiveObject)>, object: LiveObject, limit: usize) -> u64 {
    let hash = leaktrace_common::address_hash(object.address);
    let at = sample.partition_point(|other| other.0 <= hash);
    sample.insert(at, (hash, object));
    sample.truncate(limit);
    if sample.len() == limit { sample[limit - 1].0 } else { u64::MAX }
}

/// Adds an object to a list of the oldest; returns the time from which no more is wanted.
fn keep_oldest(list: &mut Vec<LiveObject>, object: LiveObject) -> u64 {
    let at = list.partition_point(|other| other.time_ns <= object.time_ns);
    list.insert(at, object);
    list.truncate(OBJECTS_PER_SITE);
    if list.len() == OBJECTS_PER_SITE { list[OBJECTS_PER_SITE - 1].time_ns } else { u64::MAX }
}

fn add(counts: &mut [SiteLive], payload: &Payload, born_before_ns: u64) {
    let Some(count) = counts.get_mut(payload.site as usize) else { return };
    let (old, bytes) = (payload.time_ns <= born_before_ns, u64::from(payload.size & !FRAGMENT));
    // The parts of one block are one object, but each has its own bytes.
    let whole = u64::from(payload.size & FRAGMENT == 0);
    count.objects += whole;
    count.bytes += bytes;
    if old {
        count.survivors += whole;
        count.survivor_bytes += bytes;
    }
    if count.oldest_ns == 0 || payload.time_ns < count.oldest_ns {
        count.oldest_ns = payload.time_ns;
    }
}

/// Removes the notes on objects that were handed to `kfree_rcu` before some time: most have been
/// freed since, and of the others no event will tell.
pub fn forget_pending(table: &MappedArray<Bucket>, before_ns: u64) {
    for index in 0..table.len() {
        let bucket = table.at(index);
        for slot in 0..BUCKET_SLOTS {
            // SAFETY: as in `visit`.
            unsafe {
                live::forget(bucket, slot, |_, payload| {
                    payload.site == SITE_PENDING && payload.time_ns < before_ns
                });
            }
        }
    }
}

/// Addresses of the objects of some sites.
pub fn addresses(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    of: impl Fn(u32) -> bool,
) -> Vec<u64> {
    let mut found = Vec::new();
    visit(table, overflow, |key, payload| {
        if of(payload.site) {
            found.push(decode_address(key));
        }
    });
    found
}

/// Calls `with` for each live object that is no part of a block of pages, with its site.
pub fn each(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    mut with: impl FnMut(u32, &LiveObject),
) {
    visit(table, overflow, |key, payload| {
        if payload.size & FRAGMENT == 0 && payload.site != SITE_PENDING {
            let object = LiveObject {
                address: decode_address(key),
                size: payload.size,
                time_ns: payload.time_ns,
                stack: payload.stack,
            };
            with(payload.site, &object);
        }
    });
}

/// Calls `with` for the address of everything that is noted: what lives, and what was given to `kfree_rcu`.
pub fn each_address(table: &MappedArray<Bucket>, overflow: &[(u64, Payload)], mut with: impl FnMut(u64)) {
    visit(table, overflow, |key, _| with(decode_address(key)));
}

/// At most `limit` objects of those that are wanted: of each its address and site.
pub fn some_objects(
    table: &MappedArray<Bucket>,
    overflow: &[(u64, Payload)],
    limit: usize,
    wanted: impl Fn(&Payload) -> bool,
) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    visit(table, overflow, |key, payload| {
        if found.len() < limit && wanted(&payload) {
            found.push((decode_address(key), payload.site));
        }
    });
    found
}

/// Calls `with` for each object once: the table's, and those of the overflow map that it does not have.
fn visit(table: &MappedArray<Bucket>, overflow: &[(u64, Payload)], mut with: impl FnMut(u64, Payload)) {
    for index in 0..table.len() {
        let bucket = table.at(index);
        for slot in 0..BUCKET_SLOTS {
            // SAFETY: the bucket is mapped, and programs follow the same rules.
            if let Some((key, payload)) = unsafe { live::read(bucket, slot) } {
                with(key, payload);
            }
        }
    }
    for &(key, payload) in overflow {
        if !contains(table, key) {
            with(key, payload);
        }
    }
}

fn contains(table: &MappedArray<Bucket>, key: u64) -> bool {
    let hash = leaktrace_common::address_hash(decode_address(key));
    let bucket = table.at((hash >> leaktrace_common::BUCKET_SHIFT) as usize & (table.len() - 1));
    // SAFETY: as in `visit`.
    (0..BUCKET_SLOTS).any(|slot| unsafe { live::read(bucket, slot) }.is_some_and(|(found, _)| found == key))
}

/// Takes the objects out of the table that are no longer in the sample, and counts by site those
/// born before a time that stay.
pub fn purge(table: &MappedArray<Bucket>, sites: usize, sample_shift: u32, born_before_ns: u64) -> Vec<u64> {
    let mut kept = vec![0; sites];
    for index in 0..table.len() {
        let bucket = table.at(index);
        for slot in 0..BUCKET_SLOTS {
            // SAFETY: as in `visit`. A program that still uses the larger sample may free the object meanwhile.
            unsafe {
                let gone = live::forget(bucket, slot, |key, _| {
                    let hash = leaktrace_common::address_hash(decode_address(key));
                    !leaktrace_common::is_sampled(hash, sample_shift)
                });
                if !gone
                    && let Some((_, payload)) = live::read(bucket, slot)
                    && payload.time_ns <= born_before_ns
                    && let Some(kept) = kept.get_mut(payload.site as usize)
                {
                    *kept += 1;
                }
            }
        }
    }
    kept
}
