//! Which caches are looked at: those that fit into our own memory, and of these what the user wants to be told of.

use std::path::Path;

use anyhow::{Result, bail};
use rustc_hash::FxHashSet;

use super::areas::{self, PERCPU, VMALLOC};
use crate::{
    analysis::objects,
    commands::filter::Filter,
    proc::slab,
    proof::{Kind, Survey, Surveyed},
    report::heap::model::Cache,
    units,
};

/// Caches whose holders are asked for, and at most where the user names them.
const HOLDERS_OF: usize = 5;
const HOLDERS_OF_NAMED: usize = 32;

/// Caches that fit into so many bytes, those that were asked for and then the largest first, and what is to be said of the others.
///
/// # Errors
/// When a name that was asked for is no cache's, or it does not fit.
pub(super) fn fitting(room: u64, filter: &mut Filter) -> Result<Fitting> {
    let caches = slab::read_slabinfo(Path::new("/"))?;
    let traits = slab::read_traits(Path::new("/"), caches.keys().map(String::as_str));
    let mut fitting = Fitting::default();
    for name in areas::names() {
        if filter.matches(&name, None) {
            fitting.asked.insert(name);
        }
    }
    let is_on = filter.is_on();
    let mut caches: Vec<_> = caches
        .into_iter()
        .map(|(name, cache)| {
            let slabs = cache.total_objects.div_ceil(u64::from(cache.objects_per_slab.max(1)));
            let bytes = cache.total_objects * u64::from(cache.object_size);
            let is_asked = filter.matches(&name, traits.get(&name));
            if is_asked {
                fitting.asked.insert(name.clone());
            }
            (is_asked && is_on, bytes, objects::bytes_for(slabs, cache.total_objects), name)
        })
        .collect();
    if let Some(pattern) = filter.absent().next() {
        bail!(
            "no slab cache is called {pattern:?}; other memory is called {VMALLOC}, {PERCPU}, and pages-32k for compound pages of that size"
        );
    }
    caches.sort_unstable_by(|a, b| b.cmp(a));
    let mut others = Vec::new();
    for (is_named, bytes, takes, name) in caches {
        if fitting.needed + takes <= room {
            fitting.needed += takes;
            fitting.names.insert(name);
        } else if is_named {
            let needed = units::bytes((fitting.needed + takes) as f64);
            bail!("to look at {name} takes {needed} of our own memory: --max-memory allows more");
        } else {
            fitting.unfit_bytes += bytes;
            others.push(name);
        }
    }
    if let Some(largest) = others.first() {
        fitting.note = Some(format!(
            "{} did not fit into {} of our own memory, the largest of them {largest}: what is in them counts as holding. \
             --max-memory gives more",
            units::plural(others.len(), "cache"),
            units::bytes(room as f64)
        ));
    }
    Ok(fitting)
}

/// Which caches are looked at.
#[derive(Default)]
pub(super) struct Fitting {
    pub(super) names: FxHashSet<String>,
    /// Those that the user wants to be told of, and vmalloc if it is one.
    pub(super) asked: FxHashSet<String>,
    /// Bytes of our own that they need.
    pub(super) needed: u64,
    /// Bytes of the others.
    pub(super) unfit_bytes: u64,
    pub(super) note: Option<String>,
}

/// All that have objects, the most bytes first.
pub(super) fn all(survey: &Survey) -> Vec<Cache> {
    let mut all: Vec<Cache> = (survey.caches.iter())
        .filter(|of| of.objects > 0)
        .map(|of| {
            let (caller, module) =
                of.caller.clone().map_or((None, None), |(caller, module)| (Some(caller), module));
            Cache { cache: of.name.clone(), caller, module, objects: of.objects, bytes: of.bytes }
        })
        .collect();
    all.sort_by_key(|cache| std::cmp::Reverse(cache.bytes));
    all
}

/// Those that take the most, of the ones that were asked for.
pub(super) fn largest(survey: &Survey, asked: &FxHashSet<String>, by_name: bool) -> Vec<u16> {
    let is_asked = |of: &Surveyed| of.kind == Kind::Slab && of.objects > 0 && asked.contains(&of.name);
    let mut caches: Vec<(u64, u16)> = (survey.caches.iter().zip(0..))
        .filter(|(of, _)| is_asked(of))
        .map(|(of, number)| (of.bytes, number))
        .collect();
    caches.sort_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
    caches.truncate(if by_name { HOLDERS_OF_NAMED } else { HOLDERS_OF });
    caches.into_iter().map(|(_, number)| number).collect()
}
