//! From what the table holds of a site to one record, or one for each responsible caller.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{
    Tracer,
    births::{ByOwner, Looks},
    names,
    processes::People,
    scan::{self, Group},
    snapshot::{SiteRecord, StackShare, TaskShare},
    subjects::Owner,
};
use crate::analysis::{births::Births, growth};

/// Distinct stacks reported for one site, the most frequent ones.
const STACKS_PER_SITE: usize = 16;
/// Processes reported for one site, likewise.
const TASKS_PER_SITE: usize = 16;
/// Survivors of one record that may be looked at.
const SAMPLES: usize = 24;

/// Objects of one stack and process.
pub(super) type Share = (u32, u32, Group);

/// Sorts groups by their site: stack, process, objects.
pub(super) fn by_site(groups: FxHashMap<(u32, u32, u32), Group>) -> FxHashMap<u32, Vec<Share>> {
    let mut by_site: FxHashMap<u32, Vec<Share>> = FxHashMap::default();
    for ((site, stack, tgid), group) in groups {
        by_site.entry(site).or_default().push((stack, tgid, group));
    }
    by_site
}

/// The largest counts, and of equal ones the smaller key.
pub(super) fn most<K: Ord + Copy>(counts: FxHashMap<K, u64>, limit: usize) -> Vec<(K, u64)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|&(key, count)| (Reverse(count), key));
    counts.truncate(limit);
    counts
}

/// When the objects were allocated that live at a time, in seconds since the start.
pub(super) struct Cohorts {
    births: ByOwner,
    now_s: f64,
    /// What of them has a stack, of callers whose births have a share of what has none, and whether it is nearly all of the
    /// site's.
    with_stack: FxHashMap<(usize, Owner), (Births, bool)>,
    /// Births of whole sites that are told apart by their stacks.
    whole: FxHashMap<usize, Births>,
}

/// From which share of a site's survivors on a caller is as good as all of it.
const NEARLY_ALL: f64 = 0.95;

impl Cohorts {
    pub(super) fn new(births: ByOwner, now_s: f64) -> Self {
        Self { births, now_s, with_stack: FxHashMap::default(), whole: FxHashMap::default() }
    }

    /// Gives a site's objects without a stack to its callers, by what each keeps: those with one are mostly the first ones.
    fn share_out(&mut self, site: usize, known: u64, owners: &FxHashMap<Owner, Vec<Share>>) {
        let Some(all) = self.births.get(&(site, 0)).cloned() else { return };
        let mut of_known = Births::default();
        for owner in owners.keys() {
            if let Some(births) = self.births.get(&(site, *owner)) {
                of_known.add(births);
            }
        }
        for (owner, shares) in owners {
            let share = total(shares).survivors as f64 / known.max(1) as f64;
            let Some(births) = self.births.get_mut(&(site, *owner)) else { continue };
            self.with_stack.insert((site, *owner), (births.clone(), share >= NEARLY_ALL));
            births.add_share(&all, &of_known, share);
        }
        self.whole.insert(site, all);
    }

    /// What became of a subject's survivors of an earlier look, of those that have a stack then and now; or of all of the
    /// site's, where they are nearly all.
    fn stay(
        &self,
        looks: &Looks,
        (site, owner): (usize, Owner),
        births: &Births,
        min_age_s: f64,
    ) -> Option<growth::Stay> {
        match (self.with_stack.get(&(site, owner)), self.whole.get(&site)) {
            (Some((_, true)), Some(whole)) => looks.stay((site, 0), whole, self.now_s, min_age_s),
            (Some((births, _)), _) => looks.stay((site, owner), births, self.now_s, min_age_s),
            _ => looks.stay((site, owner), births, self.now_s, min_age_s),
        }
    }
}

/// Completes a record, and splits it by responsible callers where the site allocates for others.
pub(super) fn complete(
    tracer: &mut Tracer,
    record: SiteRecord,
    shares: &[Share],
    (people, cohorts): (&mut People, &mut Cohorts),
    now_ns: u64,
    out: &mut Vec<SiteRecord>,
) {
    // What a library allocated, and nobody ever gave back, is told of the library: who should have is not known.
    let is_librarys = || tracer.attribute.responsible(&[record.call_site], tracer.watch.stays()).is_some();
    let split =
        tracer.subjects.split().get(record.site) == Some(&true) && !(record.freed == 0 && is_librarys());
    let mut owners: FxHashMap<Owner, Vec<Share>> = FxHashMap::default();
    for share in shares.iter().filter(|_| split) {
        owners.entry(owner(tracer, share.0, record.call_site)).or_default().push(*share);
    }
    // Objects without a stack are taken to be like those that have one.
    let without = owners.remove(&0).unwrap_or_default();
    if owners.is_empty() {
        let shares = if split { &without } else { shares };
        let series = tracer.subjects.series(record.site, 0);
        out.push(filled(tracer, record, shares, series, (people, cohorts)));
        return;
    }
    if owners.len() == 1 && owners.contains_key(&record.call_site) {
        // It may allocate for others, and does not.
        let mut shares: Vec<Share> = owners.remove(&record.call_site).unwrap_or_default();
        shares.extend(without);
        let series = tracer.subjects.series(record.site, 0);
        out.push(filled(tracer, record, &shares, series, (people, cohorts)));
        return;
    }
    let known = total(owners.values().flatten());
    cohorts.share_out(record.site, known.survivors, &owners);
    let mut owners: Vec<_> = owners.into_iter().collect();
    owners.sort_unstable_by_key(|&(owner, _)| owner);
    for (owner, shares) in owners {
        let part = total(&shares);
        let of = |whole: u64, part: u64, known: u64| {
            if known == 0 { 0 } else { (whole as f64 * part as f64 / known as f64).round() as u64 }
        };
        let mut one = SiteRecord {
            owner: Some(owner),
            live: of(record.live, part.objects, known.objects),
            tracked_live: of(record.tracked_live, part.objects, known.objects),
            live_bytes: of(record.live_bytes, part.objects, known.objects),
            survivors: of(record.survivors, part.survivors, known.survivors),
            survivor_bytes: of(record.survivor_bytes, part.survivors, known.survivors),
            // No more than have been seen with a stack of this caller.
            seen: part.survivors,
            oldest_s: now_ns.saturating_sub(part.oldest_ns) as f64 / 1e9,
            ..record.clone()
        };
        one.objects.retain(|object| self::owner(tracer, object.stack, record.call_site) == owner);
        one.samples.retain(|object| self::owner(tracer, object.stack, record.call_site) == owner);
        let series = tracer.subjects.series(record.site, owner);
        let factor = if series.last() > 0.0 { one.survivors as f64 / series.last() } else { 1.0 };
        // The series was shared out like these, a moment ago.
        let series = series.scaled(factor.clamp(0.1, 1e6));
        out.push(filled(tracer, one, &shares, series, (people, cohorts)));
    }
}

fn owner(tracer: &mut Tracer, stack: u32, call_site: u64) -> Owner {
    tracer.subjects.owner(&tracer.stacks, (stack, call_site), &*tracer.attribute, tracer.watch.stays())
}

fn total<'a>(shares: impl IntoIterator<Item = &'a Share>) -> Group {
    let mut total = Group::default();
    for (_, _, group) in shares {
        total.add(group);
    }
    total
}

/// Fills in who allocated the objects, from where, and how their number changed.
fn filled(
    tracer: &Tracer,
    mut record: SiteRecord,
    shares: &[Share],
    series: super::series::Series,
    (people, cohorts): (&mut People, &mut Cohorts),
) -> SiteRecord {
    let (mut tasks, mut stacks): (FxHashMap<u32, u64>, FxHashMap<u32, u64>) = Default::default();
    let (mut survivors, mut held) = (0, 0);
    for &(stack, tgid, group) in shares {
        *tasks.entry(tgid).or_default() += group.objects;
        *stacks.entry(stack).or_default() += group.objects;
        survivors += group.survivors;
        if group.survivors > 0 && people.runs(tgid) {
            held += group.survivors;
        }
    }
    record.alive = if survivors == 0 { 0.0 } else { held as f64 / survivors as f64 };
    record.tasks = most(tasks, TASKS_PER_SITE)
        .into_iter()
        .map(|(pid, objects)| TaskShare { pid, comm: people.name(pid), objects })
        .collect();
    record.stacks = most(stacks, STACKS_PER_SITE)
        .into_iter()
        .filter(|&(stack, _)| stack != 0)
        .map(|(stack, objects)| StackShare {
            objects,
            frames: names::read_stack(&tracer.stacks, stack, record.call_site),
        })
        .collect();
    record.objects.truncate(scan::OBJECTS_PER_SITE);
    record.samples.truncate(SAMPLES);
    // What turned out to be others' pages was counted with every tick, and at earlier looks.
    let counted = record.seen + record.excluded_survivors;
    let factor = if record.excluded_survivors > 0 { record.seen as f64 / counted as f64 } else { 1.0 };
    record.series = series.scaled(factor);
    if record.owner.is_none() && record.excluded_survivors == 0 {
        record.levels = tracer.subjects.live(record.site);
    }
    let subject = (record.site, record.owner.unwrap_or(0));
    record.births = cohorts.births.remove(&subject).unwrap_or_default();
    if record.excluded_survivors == 0 {
        let min_age_s = tracer.settings.min_age.as_secs_f64();
        record.stay = cohorts.stay(&tracer.looks, subject, &record.births, min_age_s);
    }
    record
}
