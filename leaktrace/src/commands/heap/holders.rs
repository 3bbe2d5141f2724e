//! Who holds what is in a cache: from some of its objects back to what is no slab's.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    analysis::objects::{From, Object},
    kernel::symbols::Symbols,
    proof::{Prover, Survey},
    report::heap::model::{Holder, Holding},
};

/// Objects of a cache whose holders are asked for.
const SAMPLED: u64 = 256;
/// Holders that are kept of one cache.
const MOST_HOLDERS: usize = 20;
/// Steps back that are taken for one cache, and those that have names.
const MOST_STEPS: usize = 5_000_000;
const NAMED_STEPS: usize = 4;
/// Of objects that hang on one another, one in so many is remembered with what all of them hang on.
const REMEMBERED: u64 = 64;

/// What an object hangs on: whether on others of its kind first, and then on what.
type Chain = (bool, Vec<String>);

/// Asks for the holders of some objects of a cache.
pub(super) fn of(prover: &Prover, survey: &Survey, symbols: &Symbols, cache: u16) -> Holding {
    let known = &survey.caches[usize::from(cache)];
    let mut walk = Walk { prover, survey, symbols, left: MOST_STEPS, known: FxHashMap::default() };
    let stride = (known.objects / SAMPLED).max(1) as usize;
    let mut chains: BTreeMap<Chain, u64> = BTreeMap::new();
    let mut sampled = 0;
    for address in survey.objects.reached(cache).step_by(stride).take(SAMPLED as usize) {
        let Some(object) = survey.objects.at(address) else { continue };
        sampled += 1;
        if let Some(chain) = walk.chain(object, cache) {
            *chains.entry(chain).or_default() += 1;
        }
    }
    let mut holders: Vec<Holder> = chains
        .into_iter()
        .map(|((on_each_other, chain), objects)| Holder { objects, on_each_other, chain })
        .collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.objects));
    holders.truncate(MOST_HOLDERS);
    Holding {
        cache: known.name.clone(),
        objects: known.objects,
        bytes: known.objects * known.size,
        sampled,
        holders,
    }
}

struct Walk<'a> {
    prover: &'a Prover,
    survey: &'a Survey,
    symbols: &'a Symbols,
    left: usize,
    /// What objects hang on that were passed, by their addresses.
    known: FxHashMap<u64, Vec<String>>,
}

impl Walk<'_> {
    /// What an object hangs on; `None` where that takes too long to find.
    fn chain(&mut self, object: Object, cache: u16) -> Option<Chain> {
        let (mut at, mut passed) = (object, Vec::new());
        let is_own = |from: From| matches!(from, From::Object(next) if self.cache(next) == cache);
        let on_each_other = self.survey.objects.from_where(object).is_some_and(is_own);
        // First others of its kind: a list, a tree.
        let chain = loop {
            let address = self.address(at);
            if let Some(known) = self.known.get(&address) {
                break known.clone();
            }
            if (address / 8).is_multiple_of(REMEMBERED) {
                passed.push(address);
            }
            match self.survey.objects.from_where(at)? {
                From::Object(next) if self.cache(next) == cache => {
                    self.left = self.left.checked_sub(1)?;
                    at = next;
                }
                _ => break self.beyond(at)?,
            }
        };
        self.known.extend(passed.into_iter().map(|address| (address, chain.clone())));
        Some((on_each_other, chain))
    }

    /// What holds an object that no other of its kind holds, and what that.
    fn beyond(&mut self, object: Object) -> Option<Vec<String>> {
        let (mut at, mut chain) = (object, Vec::<String>::new());
        loop {
            self.left = self.left.checked_sub(1)?;
            match self.survey.objects.from_where(at)? {
                From::Object(next) => {
                    let step = self.step(next, at);
                    if chain.len() < NAMED_STEPS && chain.last() != Some(&step) {
                        chain.push(step);
                    }
                    at = next;
                }
                From::Outside(place) => {
                    chain.push(self.outside(place));
                    return Some(chain);
                }
            }
        }
    }

    fn cache(&self, object: Object) -> u16 {
        self.survey.objects.slab(object.slab).cache
    }

    fn address(&self, object: Object) -> u64 {
        self.survey.objects.slab(object.slab).address(object.nth)
    }

    /// An object that holds another one, and where in it.
    fn step(&self, holder: Object, held: Object) -> String {
        let of = self.survey.objects.slab(holder.slab);
        let (start, size) = (self.address(held), u64::from(self.survey.objects.slab(held.slab).size));
        let words = self.prover.contents(self.address(holder), u64::from(of.own)).unwrap_or_default();
        let at = words.iter().position(|word| (start..start + size).contains(word));
        let at = at.map(|index| format!("+{:#x}", index * 8)).unwrap_or_default();
        format!("{}{at}", self.survey.caches[usize::from(of.cache)].name)
    }

    fn outside(&self, place: u32) -> String {
        let Some(holder) = self.prover.outside(self.survey, place) else { return "others".to_owned() };
        let maker = holder.caller.and_then(|caller| self.symbols.locate_return(caller));
        let maker = maker.map(|maker| format!(" from {}", maker.label())).unwrap_or_default();
        // Of a variable only an array has places that say more than its name.
        format!("{}{}{maker}", holder.what, holder.suffix)
    }
}
