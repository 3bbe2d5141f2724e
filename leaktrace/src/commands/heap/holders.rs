//! Who holds what is in a cache: from some of its objects back to what is no slab's.

use std::collections::BTreeMap;

use leaktrace_common::{address_hash, is_sampled};
use rustc_hash::FxHashMap;

use super::files::Files;
use crate::{
    analysis::objects::{From, Object},
    kernel::symbols::Symbols,
    proof::{Prover, Survey},
    report::heap::model::{Holder, Holding},
};

/// The cache of names in directories.
const DENTRY: &str = "dentry";
/// Objects of a cache whose holders are asked for.
const SAMPLED: u64 = 256;
/// Holders that are kept of one cache.
const MOST_HOLDERS: usize = 20;
/// Steps back that are taken for one cache, and those that have names.
const MOST_STEPS: usize = 5_000_000;
const NAMED_STEPS: usize = 4;
/// Steps of one chain whose place in the holder is read from memory.
const READ_STEPS: usize = 64;
/// Of objects that hang on one another, one in so many, as a power of two, is remembered with what all of them hang on: by its
/// address, which may be a multiple of anything.
const REMEMBERED: u32 = 6;

/// What an object hangs on: whether on others of its kind first, and then on what.
type Chain = (bool, Vec<String>);

/// Asks for the holders of some objects of caches; `files` says what hangs on open files, and `goes_on` whether there is time.
pub(super) fn of(
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
    caches: &[u16],
    files: &Files,
    goes_on: &mut dyn FnMut() -> bool,
) -> Vec<Holding> {
    caches.iter().map(|&cache| of_cache((prover, survey, symbols), cache, files, goes_on)).collect()
}

fn of_cache(
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
    cache: u16,
    files: &Files,
    goes_on: &mut dyn FnMut() -> bool,
) -> Holding {
    let known = &survey.caches[usize::from(cache)];
    let mut walk = Walk {
        prover,
        survey,
        symbols,
        left: MOST_STEPS,
        known: FxHashMap::default(),
        ends: FxHashMap::default(),
    };
    let stride = (known.objects / SAMPLED).max(1) as usize;
    let mut held: BTreeMap<By, u64> = BTreeMap::new();
    let mut sampled = 0;
    for address in survey.objects.reached(cache).step_by(stride).take(SAMPLED as usize) {
        let Some(object) = survey.objects.at(address) else { continue };
        if !goes_on() {
            break;
        }
        sampled += 1;
        let is_negative = known.name == DENTRY && prover.is_negative(address) == Some(true);
        let by = if is_negative {
            Some(By::Nobody)
        } else if let Some(file) = files.of(object) {
            Some(By::File(file.pid, file.comm.clone(), file.what.clone()))
        } else {
            walk.chain(object, cache).map(|(on_each_other, chain)| By::Chain(on_each_other, chain))
        };
        if let Some(by) = by {
            *held.entry(by).or_default() += 1;
        }
    }
    let mut holders: Vec<Holder> = held.into_iter().map(|(by, objects)| by.told(objects)).collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.objects));
    holders.truncate(MOST_HOLDERS);
    Holding { cache: known.name.clone(), objects: known.objects, bytes: known.bytes, sampled, holders }
}

/// Who holds an object.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// An open file: the process, its name, and what the file is.
    File(u32, String, String),
    /// Something in the kernel: whether others of its kind first, and then what.
    Chain(bool, Vec<String>),
    /// Nobody: it is a name of nothing, which the kernel keeps.
    Nobody,
}

impl By {
    fn told(self, objects: u64) -> Holder {
        match self {
            Self::File(pid, comm, what) => Holder {
                objects,
                by: "file".to_owned(),
                on_each_other: false,
                chain: vec![what],
                pid: Some(pid),
                comm: Some(comm),
            },
            Self::Chain(on_each_other, chain) => {
                Holder { objects, by: "chain".to_owned(), on_each_other, chain, ..Holder::default() }
            }
            Self::Nobody => Holder { objects, by: "negative".to_owned(), ..Holder::default() },
        }
    }
}

struct Walk<'a> {
    prover: &'a Prover,
    survey: &'a Survey,
    symbols: &'a Symbols,
    left: usize,
    /// What objects hang on that were passed, by their addresses.
    known: FxHashMap<u64, Vec<String>>,
    /// What others in long chains hang on in the end.
    ends: FxHashMap<u64, String>,
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
            if self.is_remembered(at) {
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
        let (mut at, mut chain, mut hops, mut passed) = (object, Vec::<String>::new(), 0, Vec::new());
        let end = loop {
            self.left = self.left.checked_sub(1)?;
            let next = match self.survey.objects.from_where(at)? {
                From::Object(next) => next,
                From::Outside(place) => break self.outside(place),
            };
            // Where in an object the next one hangs is read from memory: that is done for the first ones only.
            if hops < READ_STEPS && chain.len() < NAMED_STEPS {
                let step = self.step(next, at);
                if chain.last() != Some(&step) {
                    chain.push(step);
                }
            } else if let Some(end) = self.ends.get(&self.address(next)) {
                break end.clone();
            } else if self.is_remembered(next) {
                passed.push(self.address(next));
            }
            hops += 1;
            at = next;
        };
        self.ends.extend(passed.into_iter().map(|address| (address, end.clone())));
        chain.push(end);
        Some(chain)
    }

    fn is_remembered(&self, object: Object) -> bool {
        is_sampled(address_hash(self.address(object)), REMEMBERED)
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
