//! What is judged: a site, or where a helper allocates for others each of its responsible callers.
//! And how the survivors of each changed over the ticks.

use std::hash::Hash;

use leaktrace_common::StackRecord;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    births::{BirthTable, ByOwner},
    mapped::MappedArray,
    names,
    scan::Counts,
    series::Series,
    sites::{Attribute, Level, SiteTable},
    watch::Stay,
};

/// Series that are kept. Subjects without survivors have none.
const MOST_SERIES: usize = 8_192;

/// Return address of the responsible frame; 0 where a site is judged as a whole, or no stack tells.
pub type Owner = u64;

/// What is kept of subjects from tick to tick.
#[derive(Default)]
pub struct Subjects {
    /// Sites that are told apart by their stacks, by index.
    split: Vec<bool>,
    known: FxHashSet<usize>,
    owner_of: FxHashMap<(u32, u64), Owner>,
    series: FxHashMap<(usize, Owner), Series>,
    last_push_s: f64,
    /// Live objects of whole sites at each tick.
    live: FxHashMap<usize, Series>,
    last_tick_s: f64,
    /// Subjects for which there was no room.
    pub untold: u64,
}

impl Subjects {
    /// Which sites are told apart by their stacks.
    pub fn split(&self) -> &[bool] {
        &self.split
    }

    /// Learns of sites that are new whether they allocate for others.
    pub fn learn(&mut self, sites: &SiteTable, attribute: &dyn Attribute, stays: &[Stay]) {
        self.split.resize(sites.len(), false);
        let new: Vec<_> = sites.used().filter(|(index, _)| !self.known.contains(index)).collect();
        for (index, site) in new {
            self.known.insert(index);
            let call_site = sites.call_site(index, &site);
            self.split[index] = index != 0 && call_site != 0 && attribute.is_shared(call_site, stays);
        }
    }

    /// The responsible frame of a stack of a site.
    pub fn owner(
        &mut self,
        stacks: &MappedArray<StackRecord>,
        (stack, call_site): (u32, u64),
        attribute: &dyn Attribute,
        stays: &[Stay],
    ) -> Owner {
        if stack == 0 {
            return 0;
        }
        *self.owner_of.entry((stack, call_site)).or_insert_with(|| {
            let frames = names::read_stack(stacks, stack, call_site);
            attribute.responsible(&frames, stays).unwrap_or(0)
        })
    }

    /// Puts births together by responsible callers.
    pub fn births(
        &mut self,
        table: &BirthTable,
        sites: &SiteTable,
        stacks: &MappedArray<StackRecord>,
        attribute: &dyn Attribute,
        stays: &[Stay],
    ) -> ByOwner {
        let mut by_owner = ByOwner::default();
        for (index, bins) in table.sites.iter().enumerate() {
            if let Some(bins) = bins {
                by_owner.entry((sites.first(index), 0)).or_default().add(&table.births(bins));
            }
        }
        for (&(site, stack), bins) in &table.split {
            let index = site as usize;
            let owner = self.owner(stacks, (stack, sites.call_site_of(index)), attribute, stays);
            if owner != 0 {
                by_owner.entry((sites.first(index), owner)).or_default().add(&table.births(bins));
            }
        }
        by_owner
    }

    /// Notes the survivors of a tick.
    pub fn push(
        &mut self,
        seconds: f64,
        counts: &Counts,
        sites: &SiteTable,
        stacks: &MappedArray<StackRecord>,
        attribute: &dyn Attribute,
        stays: &[Stay],
    ) {
        let mut now: FxHashMap<(usize, Owner), f64> = FxHashMap::default();
        for (index, count) in counts.sites.iter().enumerate().filter(|(_, count)| count.survivors > 0) {
            let survivors = sites.estimate(index, &sites.sum(index), count.objects, count.survivors);
            *now.entry((sites.first(index), 0)).or_default() += survivors as f64;
        }
        // What has no stack is taken to be as what has one: which it is depends on the budget, not on the caller.
        let (mut of, mut known): (FxHashMap<(u32, Owner), u64>, FxHashMap<u32, u64>) = Default::default();
        for (&(site, stack), &survivors) in &counts.split {
            let call_site = sites.call_site_of(site as usize);
            let owner = self.owner(stacks, (stack, call_site), attribute, stays);
            if owner != 0 {
                *of.entry((site, owner)).or_default() += survivors;
                *known.entry(site).or_default() += survivors;
            }
        }
        for ((site, owner), survivors) in of {
            let index = site as usize;
            let count = &counts.sites[index];
            let all = sites.estimate(index, &sites.sum(index), count.objects, count.survivors) as f64;
            let share = survivors as f64 / known[&site].max(1) as f64;
            *now.entry((sites.first(index), owner)).or_default() += all * share;
        }
        self.untold += note(&mut self.series, (self.last_push_s, seconds), now);
        self.last_push_s = seconds;
    }

    /// Notes the live objects of a tick. That costs no look at the tables, so it is done with each.
    pub fn push_live(&mut self, seconds: f64, levels: &[Level]) {
        let live = levels.iter().filter(|level| level.live > 0);
        let now = live.map(|level| (level.site as usize, level.live as f64)).collect();
        // Whoever finds no place here is judged by its survivors alone, as callers are.
        note(&mut self.live, (self.last_tick_s, seconds), now);
        self.last_tick_s = seconds;
    }

    /// How the live objects of a site changed.
    pub fn live(&self, site: usize) -> Series {
        self.live.get(&site).cloned().unwrap_or_default()
    }

    /// How the survivors of a subject changed.
    pub fn series(&self, site: usize, owner: Owner) -> Series {
        self.series.get(&(site, owner)).cloned().unwrap_or_default()
    }

    /// The sites whose survivors take the most bytes more than a while ago.
    pub fn most_growing(&self, size_of: impl Fn(usize) -> u32, limit: usize) -> Vec<usize> {
        let mut sites: Vec<_> = self
            .series
            .iter()
            .filter(|((_, owner), _)| *owner == 0)
            .map(|(&(site, _), series)| (series.recent_rise() * f64::from(size_of(site).max(1)), site))
            .filter(|&(rise, _)| rise > 0.0)
            .collect();
        sites.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        sites.into_iter().take(limit).map(|(_, site)| site).collect()
    }
}

/// Adds a number of objects to each series, zero where there is none, and begins those that are new with zero at the time
/// before. A series that stays at zero goes. Returns how many found no place.
fn note<K: Eq + Hash>(
    all: &mut FxHashMap<K, Series>,
    (before, seconds): (f64, f64),
    mut now: FxHashMap<K, f64>,
) -> u64 {
    all.retain(|key, series| {
        let objects = now.remove(key).unwrap_or(0.0);
        let gone = objects <= 0.0 && series.last() <= 0.0;
        series.push(seconds, objects);
        !gone
    });
    let mut untold = 0;
    for (key, objects) in now {
        if all.len() >= MOST_SERIES {
            untold += 1;
            continue;
        }
        let mut series = Series::default();
        series.push(before, 0.0);
        series.push(seconds, objects);
        all.insert(key, series);
    }
    untold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_objects_are_noted_until_a_site_is_empty_for_good() {
        let mut subjects = Subjects::default();
        let at =
            |live: u64| [Level { site: 3, allocated: 9, live }, Level { site: 4, allocated: 2, live: 0 }];
        for (second, live) in [(1.0, 0), (2.0, 5), (3.0, 0), (4.0, 7)] {
            subjects.push_live(second, &at(live));
        }
        let points: Vec<_> = subjects.live(3).points().collect();
        assert_eq!(points, [(1.0, 0.0), (2.0, 5.0), (3.0, 0.0), (4.0, 7.0)]);
        assert_eq!(subjects.live(4).points().len(), 0);
        subjects.push_live(5.0, &at(0));
        subjects.push_live(6.0, &[]);
        assert_eq!(subjects.live(3).points().len(), 0);
    }
}
