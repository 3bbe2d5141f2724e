//! Which of the tracked pages are no driver's, says the kernel.

use std::path::Path;

use leaktrace_common::{Control, FAMILY_PAGE, Payload};
use rustc_hash::FxHashSet;

use super::{Tracer, scan};
use crate::proc::kpageflags;

/// Addresses of tracked pages that are slab, a user's, of the page cache or free by now, and why
/// that is not known, if it is not.
pub(super) fn of_others(
    tracer: &Tracer,
    control: &Control,
    overflow: &[(u64, Payload)],
) -> (FxHashSet<u64>, Option<String>) {
    let mut is_page = vec![false; tracer.sites.len()];
    for (index, site) in tracer.sites.used() {
        is_page[index] = site.family == FAMILY_PAGE;
    }
    if !is_page.contains(&true) {
        return (FxHashSet::default(), None);
    }
    let each = u64::from(tracer.page_struct);
    if each == 0 || control.vmemmap == 0 {
        return (FxHashSet::default(), Some("the place of struct page is not known".to_owned()));
    }
    let addresses =
        scan::addresses(&tracer.live, overflow, |site| is_page.get(site as usize).copied().unwrap_or(false));
    let mut frames: Vec<u64> = addresses
        .iter()
        .filter(|&&page| page >= control.vmemmap)
        .map(|page| (page - control.vmemmap) / each)
        .collect();
    match kpageflags::not_a_drivers(Path::new("/"), &mut frames) {
        Ok(others) => (others.into_iter().map(|frame| control.vmemmap + frame * each).collect(), None),
        Err(error) => (FxHashSet::default(), Some(format!("{error:#}"))),
    }
}
