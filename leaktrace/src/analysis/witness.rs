//! kmemleak as a witness: which of our live objects it calls unreferenced, too, and why the rest differs.

use std::collections::BTreeMap;

use crate::{
    analysis::blame::{self, Function},
    proc::kmemleak::{Frame, Listing},
};

/// kmemleak calls no object unreferenced that is younger (`mm/kmemleak.c`, `MSECS_MIN_AGE`).
pub const YOUNG_S: f64 = 5.0;

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// A finding of ours.
#[derive(Clone, Debug, Default)]
pub struct Ours {
    /// The functions that it may be known by: of its call site, and of the responsible frame.
    pub functions: Vec<(String, Option<String>)>,
    /// Whether kmemleak follows such objects: of slab, vmalloc and per-CPU memory, not pages.
    pub followed: bool,
    /// Live objects.
    pub live: u64,
    /// Those whose addresses are known: in a saved report not all.
    pub listed: u64,
    /// Those too young for kmemleak.
    pub young: u64,
    /// Bytes of each.
    pub object_size: u64,
    /// Whether survivors are known to be linked into a structure in memory.
    pub linked: bool,
}

/// Why kmemleak does not list what we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnlyHere {
    /// It is younger than kmemleak's shortest age.
    Young,
    /// kmemleak does not follow pages.
    NotFollowed,
    /// It is part of a structure that can be reached.
    Linked,
    /// Something points to it, or seems to; or kmemleak was told to ignore it.
    Referenced,
}

impl OnlyHere {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Young => "younger than 5 s, which kmemleak leaves alone",
            Self::NotFollowed => "pages, which kmemleak does not follow",
            Self::Linked => "linked into a structure in memory: reachable, so no leak to kmemleak",
            Self::Referenced => {
                "something in memory points to them, if only by chance or an old copy; or they are annotated as no leak"
            }
        }
    }
}

/// Why we do not have what kmemleak lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnlyThere {
    /// It is older than the trace.
    Before,
    /// It may be, or its address was not in the sample.
    Unknown,
}

impl OnlyThere {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Before => "allocated before the trace",
            Self::Unknown => "allocated before the trace, or left out by its options or its sample",
        }
    }
}

/// One of our findings beside kmemleak's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// In both.
    pub both: Amount,
    /// Only here.
    pub only_here: Amount,
    /// Why.
    pub reasons: Vec<(OnlyHere, u64)>,
    /// Of those in both, how many were matched by their function, not by their address.
    pub by_function: u64,
    /// Objects that kmemleak lists from the same function, and we do not have.
    pub only_there: Amount,
}

/// Objects of one function that only kmemleak lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Other {
    /// The function, and its module.
    pub function: (String, Option<String>),
    /// How many.
    pub amount: Amount,
    /// Age of the oldest, where it is known.
    pub oldest_s: Option<f64>,
    /// Why.
    pub reason: OnlyThere,
}

/// Where a live object is found here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Among those of a finding, by its index.
    Finding(usize),
    /// Among those of a site that is no finding.
    Elsewhere,
}

/// Both lists side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Listed, and live at sites that are no finding of ours.
    pub elsewhere: Amount,
    /// Our findings, in their order.
    pub ours: Vec<Side>,
    /// What only kmemleak lists, from functions that are no finding of ours; the most bytes first.
    pub others: Vec<Other>,
}

/// Compares. `find` tells which of our findings has a live object at an address; `window_s` is how long was traced.
pub fn compare(
    listing: &Listing,
    ours: &[Ours],
    find: impl Fn(u64) -> Option<Found>,
    window_s: f64,
) -> Comparison {
    let mut sides = vec![Side::default(); ours.len()];
    let mut elsewhere = Amount::default();
    let mut others: BTreeMap<(String, Option<String>), Other> = BTreeMap::new();
    for object in &listing.objects {
        match find(object.address) {
            Some(Found::Finding(index)) if index < sides.len() => {
                sides[index].both.add(object.bytes);
                continue;
            }
            Some(_) => {
                elsewhere.add(object.bytes);
                continue;
            }
            None => {}
        }
        let backtrace = listing.backtrace(object);
        let is_of = |ours: &Ours| {
            ours.functions.iter().any(|(symbol, module)| {
                backtrace.iter().any(|frame| *symbol == frame.symbol && *module == frame.module)
            })
        };
        if let Some(index) = ours.iter().position(is_of) {
            let side = &mut sides[index];
            let ours = &ours[index];
            // Per-CPU objects have another address there than here, and of others not all addresses may be known: as
            // many as there are without, and not older than the trace, may be the same.
            let without = ours.live - if object.percpu { 0 } else { ours.listed.min(ours.live) };
            let may_be_the_same =
                object.age_s.is_none_or(|age| age <= window_s) && side.by_function < without;
            if may_be_the_same {
                side.by_function += 1;
                side.both.add(object.bytes);
            } else {
                side.only_there.add(object.bytes);
            }
            continue;
        }
        let reason = match object.age_s {
            Some(age) if age > window_s => OnlyThere::Before,
            _ => OnlyThere::Unknown,
        };
        let function = responsible(backtrace);
        let other = others.entry(function.clone()).or_insert_with(|| Other {
            function,
            amount: Amount::default(),
            oldest_s: None,
            reason,
        });
        other.amount.add(object.bytes);
        other.reason = other.reason.max(reason);
        other.oldest_s = match (other.oldest_s, object.age_s) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }
    for (side, ours) in sides.iter_mut().zip(ours) {
        let left = ours.live.saturating_sub(side.both.objects);
        side.only_here = Amount { objects: left, bytes: left * ours.object_size };
        side.reasons = reasons(ours, left);
    }
    let mut others: Vec<Other> = others.into_values().collect();
    others.sort_by(|a, b| b.amount.bytes.cmp(&a.amount.bytes).then_with(|| a.function.cmp(&b.function)));
    Comparison { elsewhere, ours: sides, others }
}

/// Why `left` objects of ours are not in kmemleak's list.
fn reasons(ours: &Ours, left: u64) -> Vec<(OnlyHere, u64)> {
    if left == 0 {
        return Vec::new();
    }
    if !ours.followed {
        return vec![(OnlyHere::NotFollowed, left)];
    }
    let young = ours.young.min(left);
    let rest = left - young;
    let why = if ours.linked { OnlyHere::Linked } else { OnlyHere::Referenced };
    [(OnlyHere::Young, young), (why, rest)].into_iter().filter(|(_, objects)| *objects > 0).collect()
}

/// The function of a backtrace that is responsible: past those that allocate for others.
fn responsible(backtrace: &[Frame]) -> (String, Option<String>) {
    let functions: Vec<Option<Function<'_>>> = backtrace
        .iter()
        .map(|frame| Some(Function { symbol: &frame.symbol, module: frame.module.as_deref() }))
        .collect();
    let at = blame::responsible(&functions, &[], &blame::NoneKnown).unwrap_or(0);
    backtrace.get(at).map_or_else(
        || ("(no backtrace)".to_owned(), None),
        |frame| (frame.symbol.clone(), frame.module.clone()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listing(objects: &[(u64, &str, Option<f64>)]) -> Listing {
        let text: String = objects
            .iter()
            .map(|(address, function, age)| {
                let age = age.map_or_else(String::new, |age| format!(" (age {age:.3}s)"));
                format!(
                    "unreferenced object {address:#x} (size 256):\n  comm \"x\", pid 1, jiffies 1{age}\n  backtrace:\n    __kmalloc_noprof+0x10/0x20\n    {function}+0x10/0x20 [drv]\n"
                )
            })
            .collect::<Vec<_>>()
            .concat();
        Listing::read(text.as_bytes()).unwrap()
    }

    fn ours(function: &str, live: u64) -> Ours {
        Ours {
            functions: vec![(function.into(), Some("drv".into()))],
            followed: true,
            live,
            listed: live,
            object_size: 256,
            ..Ours::default()
        }
    }

    #[test]
    fn objects_are_matched_by_address() {
        let listing = listing(&[
            (0x1000, "leak", Some(9.0)),
            (0x2000, "leak", Some(9.0)),
            (0x3000, "leak", Some(99.0)),
            (0x4000, "older", Some(99.0)),
            (0x5000, "older", Some(120.0)),
            (0x6000, "other", None),
        ]);
        let mut mine = [ours("leak", 5), ours("listed", 3), ours("pages", 2)];
        mine[0].young = 1;
        mine[1].linked = true;
        mine[2].followed = false;
        let found = compare(&listing, &mine, |address| (address < 0x3000).then_some(Found::Finding(0)), 60.0);
        let leak = &found.ours[0];
        assert_eq!(
            (leak.both, leak.only_here.objects, leak.only_there.objects),
            (Amount { objects: 2, bytes: 512 }, 3, 1)
        );
        assert_eq!(leak.reasons, [(OnlyHere::Young, 1), (OnlyHere::Referenced, 2)]);
        assert_eq!(found.ours[1].reasons, [(OnlyHere::Linked, 3)]);
        assert_eq!(found.ours[2].reasons, [(OnlyHere::NotFollowed, 2)]);
        let others: Vec<_> = found
            .others
            .iter()
            .map(|other| (other.function.0.as_str(), other.amount.objects, other.reason))
            .collect();
        assert_eq!(others, [("older", 2, OnlyThere::Before), ("other", 1, OnlyThere::Unknown)]);
        assert_eq!(found.others[0].oldest_s, Some(120.0));
        // Of a saved report only some addresses are known: the function tells, but not of what is older.
        mine[0].listed = 1;
        let found = compare(&listing, &mine, |address| (address < 0x2000).then_some(Found::Finding(0)), 60.0);
        let leak = &found.ours[0];
        assert_eq!((leak.both.objects, leak.by_function, leak.only_there.objects), (2, 1, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice(addresses in prop::collection::vec(0_u64..40, 0..40), live in 0_u64..50) {
            let objects: Vec<_> = addresses.iter().map(|&at| (at * 0x100, if at % 3 == 0 { "leak" } else { "other" }, None)).collect();
            let listing = listing(&objects);
            let found = compare(&listing, &[ours("leak", live)], |address| (address < 0x800).then_some(Found::Finding(0)), 1.0);
            let side = &found.ours[0];
            let others: u64 = found.others.iter().map(|other| other.amount.objects).sum();
            prop_assert_eq!(side.both.objects + side.only_there.objects + others, objects.len() as u64);
            prop_assert!(side.only_here.objects <= live);
            prop_assert_eq!(side.reasons.iter().map(|(_, n)| n).sum::<u64>(), side.only_here.objects);
        }
    }
}
