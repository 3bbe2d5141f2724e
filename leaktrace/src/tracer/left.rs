//! What removed modules left behind.

use leaktrace_common::{SITE_IGNORED, Site};
use rustc_hash::FxHashMap;

use super::{Tracer, names, scan, snapshot::is_slab, watch::Stay};

/// Objects that live and that are older than the removal of a watched module.
#[derive(Clone, Debug)]
pub struct Left {
    /// Index of the last stay that had ended when they were older than its end; see [`Tracer::stays`](super::Tracer::stays).
    pub stay: usize,
    /// `kmalloc`, `kmem_cache` and so on.
    pub family: &'static str,
    /// Name of the slab cache, or what stands for it.
    pub cache: String,
    /// Return addresses, the call site first.
    pub frames: Vec<u64>,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frees of its site that were not seen when they happened.
    pub implicit_frees: u64,
}

/// Stays that have ended, by when they ended.
pub(super) fn ended(stays: &[Stay]) -> impl Iterator<Item = (usize, u64)> {
    let mut ended: Vec<_> =
        stays.iter().enumerate().filter_map(|(index, stay)| Some((index, stay.removed_ns?))).collect();
    ended.sort_unstable_by_key(|&(_, removed)| removed);
    ended.into_iter()
}

/// What lives and is older than the removal of a watched module. An object is given to the first
/// module that was removed after it was allocated: whose it is, the frames tell.
pub(super) fn behind(tracer: &Tracer, details: &scan::Details, trusted: bool) -> Vec<Left> {
    let stays: Vec<_> = ended(tracer.watch.stays()).collect();
    if stays.is_empty() {
        return Vec::new();
    }
    let sites: FxHashMap<usize, Site> = tracer.sites.used().collect();
    let mut left = Vec::new();
    for (&(index, stack, later), &(objects, bytes)) in &details.left {
        let site_index = index as usize;
        let Some(&(stay, _)) = stays.get(later) else { continue };
        let Some(site) = sites.get(&site_index) else { continue };
        if site.flags & SITE_IGNORED != 0 {
            continue;
        }
        let bytes = if is_slab(site.family) { objects * u64::from(site.object_size) } else { bytes };
        left.push(Left {
            stay,
            family: names::family_name(site.family),
            cache: names::cache_name(site, trusted),
            frames: names::read_stack(&tracer.stacks, stack, tracer.sites.call_site(site_index, site)),
            objects,
            bytes,
            implicit_frees: tracer.sites.sum(site_index).implicit_frees,
        });
    }
    left
}
