//! What a site's numbers mean: the verdict, what speaks against a stronger one, and the rank.
//!
//! `leak` is said only when everything agrees: a wrong one is worse than ten suspects.

use std::cmp::Ordering;

use super::{
    blame::Context,
    crosscheck::Agreement,
    growth::{Growth, Shape},
    holders::Holder,
    linkage::Linkage,
};

/// The verdict on a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Objects come and go.
    Churn,
    /// Objects survive, and the kernel frees such objects when memory is short.
    Cache,
    /// Objects survive and their number is steady, or the cache's is.
    Plateau,
    /// Objects survive, their number grows, and something is open.
    Suspect,
    /// Objects survive, their number grows surely, and nothing speaks for anybody's holding them.
    Leak,
}

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Suspect => "suspect",
            Self::Plateau => "plateau",
            Self::Cache => "cache",
            Self::Churn => "churn",
        }
    }
}

/// Who allocated a site's survivors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allocators {
    /// In whose name.
    pub context: Context,
    /// Share of the survivors whose process still runs, 0 to 1; kernel threads are none.
    pub alive: f64,
    /// Whether something uses the module, as its reference count says; `None` without a module.
    pub module_in_use: Option<bool>,
}

/// What is known of a site.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Allocations.
    pub allocated: u64,
    /// Live objects.
    pub live: u64,
    /// Live objects older than the minimum age.
    pub survivors: u64,
    /// Those of them that were really seen: fewer than `survivors` where a sample was tracked.
    pub seen: u64,
    /// Bytes of one object.
    pub object_size: u32,
    /// Growth of the survivors.
    pub growth: Growth,
    /// Age from which objects are survivors, in seconds.
    pub min_age_s: f64,
    /// Length of the window in seconds.
    pub window_s: f64,
    /// Lifetime that 99.9 % of the freed objects did not exceed, in seconds; `None` if none was freed.
    pub lifetime_s: Option<f64>,
    /// Whether the cache is of the reclaimable kind.
    pub reclaimable: bool,
    /// Survivors that went away when caches were shaken, where they were.
    pub shaken: Option<u64>,
    /// Whether the module whose code allocated them was removed since, and left them.
    pub left_behind: bool,
    /// Whether the cache lost older objects meanwhile, whose place these take: see [`replaces`].
    pub replaces: bool,
    /// Whether the cache is one of kmalloc's.
    pub for_everybody: bool,
    /// Whether some frees may not have been seen.
    pub doubted: bool,
    /// Events that were missed while their program was busy.
    pub missed: u64,
    /// What /proc/slabinfo says to the cache, where it was asked.
    pub agreement: Option<Agreement>,
    /// By how many objects the cache grew in /proc/slabinfo, likewise.
    pub cache_grew: Option<i64>,
    /// Whether the culprit is a loadable module.
    pub in_module: bool,
    /// Who allocated.
    pub allocators: Allocators,
    /// Who is known to hold such objects.
    pub holder: Option<Holder>,
    /// Whether objects of this family can be looked at in memory.
    pub can_be_linked: bool,
    /// What looking at them found; `None` when nobody looked.
    pub linkage: Option<Linkage>,
    /// What looking for pointers to them in all of memory found; `None` when nobody did.
    pub proven: Option<Proven>,
}

/// What looking for pointers to a site's survivors in all of the kernel's memory found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proven {
    /// Survivors that were looked for, and that live.
    pub checked: u64,
    /// Those that nothing points to.
    pub orphans: u64,
    /// Those that something points to.
    pub held: u64,
    /// Those that are free, though no free was seen.
    pub free: u64,
}

impl Proven {
    /// Orphans that make a leak, and the share of those looked for that they have to be: a site may lose objects on one of
    /// its ways only.
    const FEWEST: u64 = 6;
    const SHARE: u64 = 4;

    /// Whether objects of the site are lost beyond doubt.
    pub fn is_lost(&self) -> bool {
        self.orphans >= Self::FEWEST && self.orphans * Self::SHARE >= self.checked
    }

    /// Whether most of them are held.
    pub fn is_held(&self) -> bool {
        self.held * 2 > self.checked
    }
}

/// Whether `live` objects of a site may stand for as many older ones: the traced cache has grown by
/// less than half of them (`net`), because objects that are older than the trace were freed
/// (`unknown_freed`). Such a site grows from zero in every trace, however long it has been steady.
pub fn replaces(live: u64, net: i64, unknown_freed: u64) -> bool {
    net * 2 < live as i64 && unknown_freed * 2 >= live
}

/// Something for which a site is no more than suspected, and what would settle it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Open {
    /// Too few survivors for certainty.
    Few,
    /// Growing for too short a time, or at too few times.
    Short,
    /// It may be chance, or go yet.
    Uncertain,
    /// Such objects may live as long as the window is.
    LongLived,
    /// Frees may not have been seen.
    FreesUnseen,
    /// /proc/slabinfo does not agree.
    Contradicted,
    /// They are in structures in memory.
    Linked,
    /// Nobody could look whether they are.
    NotLookedAt,
    /// Processes that still run may hold them.
    ProcessesRun,
    /// Such objects are known to be held.
    Held(Holder),
    /// In the kernel itself, where growth has many innocent reasons, it takes a longer look.
    Core,
    /// Memory has pointers to them.
    Reached,
    /// The cache lost as many older objects.
    Replaced,
}

/// Survivors without which nothing is suspected.
pub const FEWEST_SUSPECT: u64 = 5;
/// Survivors without which nothing is a leak.
const FEWEST_LEAK: u64 = 30;
/// Stretches of time with survivors that a leak takes: what was allocated at one time is one event.
pub const FEWEST_BINS: usize = 10;
/// Seconds of growth that a leak takes.
const SUSTAINED_S: f64 = 10.0;
/// The same for the kernel itself.
const CORE_SUSTAINED_S: f64 = 150.0;
/// Survivors below this share of the allocations are what is in flight, unless they grow.
const IN_FLIGHT: f64 = 0.01;
/// Freed objects must have lived so many times shorter than the survivors' ages span.
const LIFETIMES: f64 = 4.0;
/// Share of survivors whose processes run from which these may hold them.
const ALIVE: f64 = 0.25;

impl Evidence {
    /// Judges the site.
    pub fn verdict(&self) -> Verdict {
        match self.growing() {
            // What nothing points to is leaked, however it came about.
            Some(Verdict::Suspect | Verdict::Plateau)
                if self.proven.is_some_and(|proven| proven.is_lost()) =>
            {
                Verdict::Leak
            }
            Some(Verdict::Suspect) if self.open().is_empty() => Verdict::Leak,
            Some(verdict) => verdict,
            None => Verdict::Churn,
        }
    }

    /// The verdict by numbers alone, `Suspect` at most.
    fn growing(&self) -> Option<Verdict> {
        let grows = self.growth.grows();
        let in_flight = (self.survivors as f64) < self.allocated as f64 * IN_FLIGHT;
        if self.survivors == 0 || (!grows && !self.is_left_behind() && in_flight) {
            return None;
        }
        // The kernel's notes on other objects go when these go: what they describe is judged itself.
        let describes_others = self.holder.is_some_and(|holder| holder.describes_others());
        Some(if self.went_away() || self.reclaimable || describes_others {
            Verdict::Cache
        } else if (self.is_left_behind() || grows && !self.may_stand_for_others())
            && self.survivors >= FEWEST_SUSPECT
        {
            // What is left of a module that is gone fills up nothing.
            Verdict::Suspect
        } else {
            Verdict::Plateau
        })
    }

    /// Whether the module is gone that allocated them, and they are still there for sure.
    fn is_left_behind(&self) -> bool {
        self.left_behind && !self.may_be_freed()
    }

    /// Whether some frees may not have been seen.
    fn may_be_freed(&self) -> bool {
        self.doubted || (self.missed * 10 > self.seen && !self.is_confirmed())
    }

    /// Whether they may stand for older objects that were freed meanwhile. Those of a cache for everybody are mostly somebody
    /// else's: what a module surely keeps there is suspected all the same.
    fn may_stand_for_others(&self) -> bool {
        self.is_replaced() && !(self.for_everybody && self.in_module && self.growth.surely())
    }

    /// Whether older objects of the cache went, and its size does not show that these came on top.
    fn is_replaced(&self) -> bool {
        self.replaces && !self.is_confirmed()
    }

    /// Whether /proc/slabinfo shows that at least half of the live objects are there.
    fn is_confirmed(&self) -> bool {
        matches!(self.agreement, Some(Agreement::Agrees | Agreement::MoreInSlabinfo))
            && self.cache_grew.is_some_and(|grew| grew * 2 >= self.live as i64)
    }

    /// Whether shaking caches freed most of them.
    fn went_away(&self) -> bool {
        self.shaken.is_some_and(|gone| gone > self.survivors)
    }

    /// Whether looking at the objects in memory would tell something.
    pub fn is_worth_a_look(&self) -> bool {
        self.can_be_linked && self.growing() == Some(Verdict::Suspect)
    }

    /// What speaks against `leak`; empty when nothing does.
    pub fn open(&self) -> Vec<Open> {
        let mut open = Vec::new();
        let mut say = |is: bool, what: Open| {
            if is {
                open.push(what);
            }
        };
        // Whose free was missed looks alive, unless the cache itself has grown by as many.
        say(self.may_be_freed(), Open::FreesUnseen);
        say(self.is_replaced(), Open::Replaced);
        say(matches!(self.agreement, Some(Agreement::Contradicts | Agreement::Partly)), Open::Contradicted);
        say(self.linkage.is_some_and(|linkage| linkage.is_loose() == Some(false)), Open::Linked);
        say(self.proven.is_some_and(|proven| proven.is_held()), Open::Reached);
        let looked = self.linkage.and_then(|linkage| linkage.is_loose()).is_some();
        // Kernel stacks are vmalloc areas, and processes that stay are no leak.
        let must_be_looked_at = self.can_be_linked || !self.in_module;
        say(must_be_looked_at && !looked, Open::NotLookedAt);
        if let Some(holder) = self.holder {
            // Who has seen them outlive their time has seen enough.
            let outlived = holder.seconds.is_some_and(|seconds| self.growth.sustained_s > seconds * 2.0);
            say(!outlived, Open::Held(holder));
        }
        let by_processes = self.allocators.context != Context::Kernel
            && self.allocators.alive >= ALIVE
            && self.allocators.module_in_use != Some(false);
        say(by_processes, Open::ProcessesRun);
        say(self.seen < FEWEST_LEAK, Open::Few);
        let sustained = if self.in_module { SUSTAINED_S } else { CORE_SUSTAINED_S };
        let short = self.growth.born_in < FEWEST_BINS || self.growth.sustained_s < SUSTAINED_S;
        say(short, Open::Short);
        // What runs now and then fills its caches in bursts.
        let in_bursts = !self.in_module && self.growth.shape == Shape::Bursty;
        say(!short && (self.growth.sustained_s < sustained || in_bursts), Open::Core);
        say(!self.growth.surely(), Open::Uncertain);
        let span = self.growth.sustained_s + self.min_age_s;
        say(self.lifetime_s.is_some_and(|lifetime| lifetime * LIFETIMES > span), Open::LongLived);
        open
    }

    /// Bytes that it will have taken in an hour, if it goes on: of plateaus and what comes and goes
    /// the bytes that survive.
    pub fn score(&self) -> f64 {
        let size = f64::from(self.object_size);
        if self.growth.grows() { self.growth.per_s * size * 3_600.0 } else { self.survivors as f64 * size }
    }

    /// Whether it stopped at what it has: one step, or filled up.
    pub fn stopped(&self) -> bool {
        matches!(self.growth.shape, Shape::Plateau | Shape::Step)
    }
}

/// Orders by verdict, then by score, the highest first, and equal ones by live bytes. What grows by less than the error of that
/// comes after the others.
pub fn by_rank(a: &Evidence, b: &Evidence) -> Ordering {
    let bytes = |evidence: &Evidence| evidence.live * u64::from(evidence.object_size);
    let may_be_none =
        |evidence: &Evidence| evidence.growth.grows() && evidence.growth.error_per_s > evidence.growth.per_s;
    b.verdict()
        .cmp(&a.verdict())
        .then_with(|| may_be_none(a).cmp(&may_be_none(b)))
        .then_with(|| b.score().total_cmp(&a.score()))
        .then_with(|| bytes(b).cmp(&bytes(a)))
}

/// Seconds of tracing before which nothing can be a leak: survivors have to come of age, and of their growth the first
/// third is not looked at, and neither is the first tenth of the rest.
pub fn soonest(min_age_s: f64) -> f64 {
    min_age_s + SUSTAINED_S * 1.5 / 0.9
}

/// Objects that a leak has to take in the time in which survivors can come of age to be suspected 19 times of 20, as the
/// simulation in `growth_rates.rs` shows: of what comes by chance, in a site that is busy.
const FLOOR: f64 = 22.0;
/// Looks at the survivors without which nothing is told from chance.
pub const FEWEST_LOOKS: f64 = 12.0;

/// The slowest leak that would have been suspected, 19 times of 20, in objects per second, when the survivors were looked at
/// so many times. `None` when the window is too short to tell any from chance.
pub fn detection_floor(window_s: f64, min_age_s: f64, looks: u64, sampling: u64) -> Option<f64> {
    let seen_s = window_s - min_age_s;
    (seen_s > 0.0 && looks as f64 * seen_s / window_s >= FEWEST_LOOKS)
        .then(|| FLOOR * sampling as f64 / seen_s)
}

/// 95 % of the time the true number lies within so much of an estimate that rests on `seen` objects
/// of a sample of 1 in `sampling`; as a share of it.
pub fn sampling_error(seen: u64, sampling: u64) -> f64 {
    if sampling <= 1 || seen == 0 {
        return 0.0;
    }
    1.96 * ((1.0 - 1.0 / sampling as f64) / seen as f64).sqrt()
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
