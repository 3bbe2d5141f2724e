//! Who allocated what is lost, where that was noted at the time: by an earlier trace of this boot, or by the kernel itself.

use std::{cell::RefCell, path::Path};

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{commands::saved, proc::alloc_traces, report::heap::model::Maker};

/// Functions that are named of one group.
const NAMED: usize = 3;

/// What an earlier trace knows by address, and what the kernel has noted of caches.
#[derive(Default)]
pub(super) struct Makers {
    by_address: FxHashMap<u64, String>,
    /// Of caches that were asked for: the kernel walks all slabs of one for that.
    noted: RefCell<FxHashMap<String, Vec<Maker>>>,
}

impl Makers {
    /// Reads the report of a trace.
    ///
    /// # Errors
    /// When it cannot be read, or is of another boot.
    pub(super) fn read(report: Option<&Path>) -> Result<Self> {
        let Some(path) = report else { return Ok(Self::default()) };
        let report = saved::read(path)?;
        saved::is_of_this_boot(&report, path)?;
        let of = |finding: &crate::report::model::Finding| finding.responsible.label();
        let all = report
            .findings
            .iter()
            .flat_map(|finding| finding.objects.iter().map(|object| (object.address, of(finding))));
        Ok(Self { by_address: all.collect(), ..Self::default() })
    }

    /// Who allocated some objects of a cache.
    pub(super) fn of(&self, cache: &str, addresses: impl Iterator<Item = u64>) -> Vec<Maker> {
        let mut by_report: FxHashMap<&str, u64> = FxHashMap::default();
        for place in addresses.filter_map(|address| self.by_address.get(&address)) {
            *by_report.entry(place).or_default() += 1;
        }
        let mut makers: Vec<Maker> = by_report
            .into_iter()
            .map(|(place, objects)| maker(place.to_owned(), objects, "report"))
            .collect();
        makers.sort_by(|a, b| (b.objects, &a.place).cmp(&(a.objects, &b.place)));
        if makers.is_empty() {
            let read = || {
                let noted = alloc_traces::of_cache(Path::new("/"), cache).into_iter().take(NAMED);
                noted.map(|(place, objects)| maker(place, objects, "alloc_traces")).collect()
            };
            makers.clone_from(self.noted.borrow_mut().entry(cache.to_owned()).or_insert_with(read));
        }
        makers.truncate(NAMED);
        makers
    }
}

fn maker(place: String, objects: u64, by: &str) -> Maker {
    Maker { place, objects, by: by.to_owned() }
}
