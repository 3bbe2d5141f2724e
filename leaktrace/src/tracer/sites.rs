//! The sites and their counters, as user space sees them.

use std::{collections::BTreeMap, sync::Arc};

use leaktrace_common::{
    Counters, FAMILY_KMALLOC_LARGE, FAMILY_PAGE, FAMILY_UNKNOWN_FREE, LIFETIME_CLASSES, SITE_IGNORED,
    SITE_READY, SITE_SUSPECT, Site, StackRecord,
};
use rustc_hash::FxHashMap;

use super::{
    mapped::MappedArray,
    names,
    sampling::{Epoch, Raw},
    watch::Stay,
};

/// What one tick shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick {
    /// Allocations seen since the start.
    pub allocated: u64,
    /// Those of pages among them.
    pub pages: u64,
    /// Frees seen since the start.
    pub freed: u64,
    /// Objects that are live now.
    pub live: u64,
    /// One address in so many is tracked.
    pub sampling: u64,
}

/// Where a site stands at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Its number.
    pub site: u32,
    /// Allocations since the start.
    pub allocated: u64,
    /// Live objects.
    pub live: u64,
}

/// A site's counters over all shards.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Allocations.
    pub allocated: u64,
    /// Allocations whose address is not in the sample, or that found no place.
    pub untracked: u64,
    /// Frees found late, when the address was allocated again.
    pub implicit_frees: u64,
    /// Frees that were seen.
    pub freed: u64,
    /// A sample of them by lifetime.
    pub lifetimes: [u64; LIFETIME_CLASSES],
}

impl Sum {
    /// What the scaling of samples needs.
    pub fn raw(&self) -> Raw {
        Raw { allocated: self.allocated, untracked: self.untracked, freed: self.freed + self.implicit_frees }
    }
}

/// What is kept of a site from tick to tick.
#[derive(Default)]
struct Memory {
    epoch: Epoch,
    /// Frees of unknown objects, scaled, up to the present epoch, and the raw count then.
    unknown: (f64, u64),
}

/// Says of stacks whose they are; `stays` are those of watched modules, which may have been loaded since
/// the symbols were read.
pub trait Attribute: Send + Sync {
    /// Finds the call site on a whole stack, of pages or not.
    fn call_site(&self, frames: &[u64], pages: bool, stays: &[Stay]) -> Located;

    /// Whether a call site may allocate for others, so that its objects have to be told apart by their stacks.
    fn is_shared(&self, call_site: u64, stays: &[Stay]) -> bool;

    /// The return address of the responsible frame on a stack that begins with the call site.
    fn responsible(&self, frames: &[u64], stays: &[Stay]) -> Option<u64>;
}

/// What a stack says of the site that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// The call site's return address; 0 when it cannot be told.
    At(u64),
    /// It allocates what is counted elsewhere.
    CountedElsewhere,
}

/// The site table, its counters, and what is remembered of each site.
///
/// Where events do not say where an allocation comes from, the programs tell sites apart by the
/// innermost frames of the stack. Those of one call site are put together here.
pub struct SiteTable {
    sites: MappedArray<Site>,
    counters: MappedArray<Counters>,
    shards: usize,
    memory: FxHashMap<usize, Memory>,
    /// One address in `2^shift` is tracked.
    shift: u32,
    attribute: Arc<dyn Attribute>,
    /// Sites in use, by index.
    in_use: Vec<usize>,
    /// Call site, and first site of the same one, of those sites whose events do not say it.
    located: FxHashMap<usize, (u64, usize)>,
    /// Frees of unknown objects when the programs were about to be detached.
    frozen: Option<FxHashMap<usize, u64>>,
    /// The first site of each call site, family and size.
    firsts: FxHashMap<(u64, u32, u32, u64), usize>,
}

impl SiteTable {
    pub(super) fn new(
        sites: MappedArray<Site>,
        counters: MappedArray<Counters>,
        shards: usize,
        attribute: Arc<dyn Attribute>,
    ) -> Self {
        Self {
            sites,
            counters,
            shards,
            memory: FxHashMap::default(),
            shift: 0,
            attribute,
            in_use: Vec::new(),
            located: FxHashMap::default(),
            frozen: None,
            firsts: FxHashMap::default(),
        }
    }

    /// Finds the call sites of sites that are new and whose events do not say it.
    pub fn locate(&mut self, stacks: &MappedArray<StackRecord>, stays: &[Stay]) {
        let new: Vec<_> = self
            .used()
            .filter(|(index, site)| {
                *index != 0
                    && site.call_site == 0
                    && site.flags & SITE_IGNORED == 0
                    && !self.located.contains_key(index)
            })
            .collect();
        for (index, site) in new {
            let frames = names::read_whole_stack(stacks, site.stack as u32);
            match self.attribute.call_site(&frames, site.family == FAMILY_PAGE, stays) {
                Located::At(call_site) => {
                    let key = (call_site, site.family, site.object_size, site.cache);
                    let first = *self.firsts.entry(key).or_insert(index);
                    self.located.insert(index, (call_site, first));
                }
                Located::CountedElsewhere => self.write_flags(index, site.flags | SITE_IGNORED),
            }
        }
    }

    /// The first site of the same call site: itself but for those that are put together.
    pub fn first(&self, site: usize) -> usize {
        self.located.get(&site).map_or(site, |&(_, first)| first)
    }

    /// Whether a site is the first of two events of one large kmalloc: some kernels (6.12 is one)
    /// announce it once from inside the allocator, and once for the caller (`mm/slub.c`).
    pub fn is_announced_twice(&self, site: &Site) -> bool {
        site.family == FAMILY_KMALLOC_LARGE && self.is_allocators(site)
    }

    /// Whether a site lies in an allocator itself, which notes there what it gives out.
    pub fn is_allocators(&self, site: &Site) -> bool {
        site.call_site != 0 && self.attribute.call_site(&[site.call_site], false, &[]) == Located::At(0)
    }

    /// Call site of a site.
    pub fn call_site(&self, index: usize, site: &Site) -> u64 {
        self.located.get(&index).map_or(site.call_site, |&(call_site, _)| call_site)
    }

    /// Call site of the site of an index.
    pub fn call_site_of(&self, index: usize) -> u64 {
        self.call_site(index, &self.sites.read(index))
    }

    /// Bytes of an object of a site.
    pub fn object_size(&self, index: usize) -> u32 {
        self.sites.read(index).object_size
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Name of a site's family.
    pub fn family(&self, site: usize) -> &'static str {
        names::family_name(self.sites.read(site).family)
    }

    /// Finds the sites that are in use now; the first slot, for what did not fit, always is.
    pub fn refresh(&mut self) {
        let ready = |index: &usize| {
            // SAFETY: the index is in range; the flags are one aligned word.
            let flags = unsafe { (&raw const (*self.sites.at(*index)).flags).read_volatile() };
            *index == 0 || flags & SITE_READY != 0
        };
        self.in_use = (0..self.sites.len()).filter(ready).collect();
    }

    /// The sites that were in use at the last [`SiteTable::refresh`].
    pub fn used(&self) -> impl Iterator<Item = (usize, Site)> + '_ {
        self.in_use.iter().map(|&index| (index, self.sites.read(index)))
    }

    /// Adds up a site's counters.
    pub fn sum(&self, site: usize) -> Sum {
        let mut sum = Sum::default();
        for shard in 0..self.shards {
            let cell = self.counters.read(shard * self.sites.len() + site);
            sum.allocated += cell.allocated;
            sum.untracked += cell.untracked;
            sum.implicit_frees += cell.implicit_frees;
            sum.freed += cell.freed.iter().sum::<u64>();
            for (total, count) in sum.lifetimes.iter_mut().zip(cell.lifetimes) {
                *total += count;
            }
        }
        sum
    }

    /// Where all sites together stand at a tick.
    pub fn totals(&self) -> Tick {
        let mut tick = Tick::default();
        let used: Vec<_> = self
            .used()
            .filter(|(_, site)| site.flags & SITE_IGNORED == 0)
            .map(|(index, site)| (index, site.family))
            .collect();
        for (index, family) in used {
            let sum = self.sum(index);
            let freed = sum.freed;
            tick.freed += freed;
            if family == FAMILY_UNKNOWN_FREE {
                continue;
            }
            let epoch = self.memory.get(&index).map_or_else(Epoch::default, |memory| memory.epoch);
            let raw = sum.raw();
            let live = epoch.tracked_live(&raw);
            tick.allocated += sum.allocated;
            tick.pages += if family == FAMILY_PAGE { sum.allocated } else { 0 };
            tick.live += epoch.estimate(&raw, live, live) as u64;
        }
        tick
    }

    /// Allocations and live objects of all call sites that ever allocated, scaled to all addresses.
    pub fn levels(&self) -> Vec<Level> {
        let mut levels: BTreeMap<usize, Level> = BTreeMap::new();
        for (index, site) in self.used() {
            if site.family == FAMILY_UNKNOWN_FREE || site.flags & SITE_IGNORED != 0 {
                continue;
            }
            let sum = self.sum(index);
            if sum.allocated == 0 {
                continue;
            }
            let epoch = self.memory.get(&index).map_or_else(Epoch::default, |memory| memory.epoch);
            let raw = sum.raw();
            let tracked = epoch.tracked_live(&raw);
            let live = epoch.estimate(&raw, tracked, tracked).round() as u64;
            let first = self.first(index);
            let level = levels.entry(first).or_insert(Level { site: first as u32, allocated: 0, live: 0 });
            level.allocated += sum.allocated;
            level.live += live;
        }
        levels.into_values().collect()
    }

    /// What a site is: its call site, family, cache, and bytes of an object. `trusted` says whether a page tells the cache
    /// of its objects.
    pub fn describe(&self, index: usize, trusted: bool) -> (u64, String, String, u32) {
        let site = self.sites.read(index);
        (
            self.call_site(index, &site),
            names::family_name(site.family).to_owned(),
            names::cache_name(&site, trusted),
            site.object_size,
        )
    }

    /// Where every site stands at this moment.
    pub fn sums(&self) -> Vec<(usize, u32, Sum)> {
        self.used().map(|(index, site)| (index, site.family, self.sum(index))).collect()
    }

    /// Begins counting on a sample that is `halvings` halvings smaller; `sums` is where every site
    /// stood when it shrank, and `kept` how many objects of each stayed.
    pub fn begin_epoch(&mut self, sums: &[(usize, u32, Sum)], kept: &[u64], halvings: u32) {
        for (index, family, sum) in sums {
            let before = self.shift;
            let memory = self.memory.entry(*index).or_default();
            if *family == FAMILY_UNKNOWN_FREE {
                memory.unknown = (scaled(memory.unknown, sum.freed, before), sum.freed);
            } else {
                memory.epoch = memory.epoch.shrink(&sum.raw(), kept[*index], halvings);
            }
        }
        self.shift += halvings;
    }

    /// Begins counting frees of unknown objects at this moment. While programs are attached one by one,
    /// frees are seen and allocations are not yet: what was freed then is nobody's older object.
    pub fn forget_unknown_frees(&mut self) {
        for (index, family, sum) in self.sums() {
            if family == FAMILY_UNKNOWN_FREE {
                self.memory.entry(index).or_default().unknown = (0.0, sum.freed);
            }
        }
    }

    /// Ends counting them, for the same reason: programs are detached one by one, too.
    pub fn freeze_unknown_frees(&mut self) {
        let sums = self.sums().into_iter().filter(|(_, family, _)| *family == FAMILY_UNKNOWN_FREE);
        self.frozen = Some(sums.map(|(index, _, sum)| (index, sum.freed)).collect());
    }

    /// Frees of objects that were not tracked, scaled to all addresses.
    pub fn unknown_frees(&self, site: usize, sum: &Sum) -> u64 {
        let freed = match &self.frozen {
            Some(frozen) => frozen.get(&site).copied().unwrap_or(0),
            None => sum.freed,
        };
        let before = self.memory.get(&site).map_or((0.0, 0), |memory| memory.unknown);
        scaled(before, freed, self.shift).round() as u64
    }

    /// Scales `part` of the `tracked_live` objects of a site to all of them.
    pub fn estimate(&self, site: usize, sum: &Sum, tracked_live: u64, part: u64) -> u64 {
        let epoch = self.memory.get(&site).map_or_else(Epoch::default, |memory| memory.epoch);
        epoch.estimate(&sum.raw(), tracked_live as f64, part as f64).round() as u64
    }

    /// Puts these sites on the list whose stacks come first, and takes all others off it.
    pub fn suspect(&self, suspects: &[usize]) {
        for (index, site) in self.used() {
            let (is, wanted) = (site.flags & SITE_SUSPECT != 0, suspects.contains(&index));
            if is != wanted && site.flags & SITE_READY != 0 {
                self.write_flags(index, site.flags ^ SITE_SUSPECT);
            }
        }
    }

    fn write_flags(&self, site: usize, flags: u32) {
        // SAFETY: `at` checks the index; programs only read the word of a site that is ready.
        unsafe { (&raw mut (*self.sites.at(site)).flags).write_volatile(flags) };
    }

    /// Records from now on the sites that were ignored but whose cache `admits` and whose size fits.
    pub fn admit(&self, mut admits: impl FnMut(&str) -> bool, min_size: u32, max_size: u32) {
        for (index, site) in self.used() {
            if site.flags & SITE_IGNORED != 0
                && site.cache != 0
                && (min_size..=max_size).contains(&site.object_size)
                && admits(&names::cache_name(&site, true))
            {
                self.write_flags(index, site.flags & !SITE_IGNORED & !SITE_SUSPECT);
            }
        }
    }
}

fn scaled((before, at): (f64, u64), now: u64, shift: u32) -> f64 {
    before + now.saturating_sub(at) as f64 * f64::from(1_u32 << shift)
}
