//! Live objects: those behind a snapshot's sites, one by one, and those of one process.

use anyhow::Result;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Snapshot, Tracer, page_uses, scan,
    scan::{LiveObject, Question},
};

/// What one process holds of one site.
#[derive(Clone, Copy, Debug)]
pub struct ProcessSite {
    /// Index of the site.
    pub site: usize,
    /// `kmalloc`, `kmalloc-large` or `kmem_cache`.
    pub family: &'static str,
    /// Live objects.
    pub objects: u64,
}

/// Calls `with` for each live object of the snapshot's sites, with the index of the site. Parts of blocks of
/// pages, and objects of sites that the snapshot does not have, are left out.
///
/// # Errors
/// When the kernel refuses a look.
pub(super) fn visit(
    tracer: &mut Tracer,
    snapshot: &Snapshot,
    mut with: impl FnMut(usize, &LiveObject),
) -> Result<()> {
    let overflow = tracer.overflowed()?;
    let index_of: FxHashMap<(usize, u64), usize> = snapshot
        .sites
        .iter()
        .enumerate()
        .map(|(index, site)| ((site.site, site.owner.unwrap_or(0)), index))
        .collect();
    let split: FxHashSet<usize> =
        snapshot.sites.iter().filter(|site| site.owner.is_some()).map(|site| site.site).collect();
    // Pages that turned out to be others' are no objects of anybody's.
    let excluded = if snapshot.sites.iter().any(|site| site.family == "page") {
        let control = tracer.control.read(0);
        page_uses::of_others(tracer, &control, &overflow).0
    } else {
        FxHashSet::default()
    };
    let Tracer { live, sites, subjects, stacks, attribute, watch, .. } = tracer;
    scan::each(live, &overflow, |site, object| {
        // A proof takes time: what is newer is none of the snapshot's.
        if excluded.contains(&object.address) || object.time_ns > snapshot.taken_ns {
            return;
        }
        let first = sites.first(site as usize);
        let owner = if split.contains(&first) {
            let call_site = sites.call_site_of(site as usize);
            subjects.owner(stacks, (object.stack, call_site), &**attribute, watch.stays())
        } else {
            0
        };
        if let Some(&index) = index_of.get(&(first, owner)) {
            with(index, object);
        }
    });
    Ok(())
}

/// The objects that one process allocated and that live, by site.
///
/// # Errors
/// When the kernel refuses a look.
pub(super) fn of_process(tracer: &Tracer, pid: u32) -> Result<Vec<ProcessSite>> {
    let overflow = tracer.overflowed()?;
    let (_, details) = scan::detail(&tracer.live, &overflow, tracer.sites.len(), &Question::default());
    let mut sites: Vec<ProcessSite> = Vec::new();
    for (&(site, _, tgid), group) in &details.groups {
        let site = site as usize;
        match sites.iter_mut().find(|known| known.site == site) {
            _ if tgid != pid => {}
            Some(known) => known.objects += group.objects,
            None => {
                let family = tracer.sites.family(site);
                sites.push(ProcessSite { site, family, objects: group.objects });
            }
        }
    }
    Ok(sites)
}
