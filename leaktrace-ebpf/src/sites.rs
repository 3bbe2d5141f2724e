//! Allocation sites: a call site and the slab cache that it allocates from.

use core::hint::cold_path;

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_log_ebpf::warn;
use leaktrace_common::{
    Control, FAMILY_KMALLOC, FAMILY_KMALLOC_LARGE, FAMILY_KMEM_CACHE, SITE_CACHE_KNOWN, SITE_IGNORED,
    SITE_NOT_SLAB, SITE_OTHER, SITE_PROBES, SITE_READY, Site, encode_address,
};
use leaktrace_ebpf::{
    atomic,
    probe::{SITE_SHIFT, Slot, claim, hash_pair},
};

use crate::{
    config::config,
    maps::{CACHES, SITES},
    pages,
};

/// What an event says of its site.
pub(crate) struct Origin {
    pub(crate) call_site: u64,
    pub(crate) discriminator: u64,
    pub(crate) object: u64,
    /// The `struct kmem_cache`, 0 when the event does not name it.
    pub(crate) cache: u64,
    /// Bytes that the object takes, 0 when only the cache knows.
    pub(crate) bytes: u32,
    pub(crate) gfp: u32,
    pub(crate) family: u32,
    /// Record of a stack that shows where it comes from, when `call_site` is 0.
    pub(crate) stack: u32,
}

/// The index and flags of the event's site, which is made if it is new.
#[inline(always)]
pub(crate) fn find(control: *mut Control, origin: &Origin) -> Option<(u32, u32)> {
    let key = hash_pair(origin.call_site, origin.discriminator);
    for probe in 0..SITE_PROBES {
        let index = ((key >> SITE_SHIFT) as u32).wrapping_add(probe) & config!(site_mask);
        if index == SITE_OTHER {
            continue;
        }
        let site = SITES.get_ptr_mut(index)?;
        // SAFETY: a map value whose first word is the key; a claimed site is ours to fill in.
        unsafe {
            match claim(site.cast(), key) {
                Slot::Found => return Some((index, (&raw const (*site).flags).read_volatile())),
                Slot::Taken => {}
                Slot::Claimed => {
                    cold_path();
                    return Some((index, fill(control, site, origin)));
                }
            }
        }
    }
    cold_path();
    // SAFETY: a map value.
    unsafe {
        if (&raw const (*control).sites_full).read_volatile() == 0 {
            warn!((), "the table of sites is full: {:x} and others are counted as one", origin.call_site);
        }
        atomic::add(&raw mut (*control).sites_full, 1);
    }
    Some((SITE_OTHER, 0))
}

/// Fills in a new site; returns its flags.
#[inline(always)]
unsafe fn fill(control: *mut Control, site: *mut Site, origin: &Origin) -> u32 {
    let mut flags = SITE_READY;
    let mut bytes = origin.bytes;
    let mut family = origin.family;
    let mut cache = origin.cache;
    if family == FAMILY_KMEM_CACHE && config!(cache_alloc_cache) != 0 {
        pages::verify(control, origin.object, cache);
    }
    if family == FAMILY_KMALLOC {
        if bytes > config!(max_cache_size) {
            family = FAMILY_KMALLOC_LARGE;
            flags |= SITE_NOT_SLAB;
        } else {
            cache = pages::cache_of(origin.object).unwrap_or(0);
        }
    }
    // SAFETY: the caller has claimed the site, a map value; user space waits for SITE_READY.
    unsafe {
        (*site).call_site = origin.call_site;
        (*site).discriminator = origin.discriminator;
        (*site).gfp = origin.gfp;
        let described = if cache == 0 { None } else { pages::describe(cache) };
        match described {
            // A kmalloc cache's objects are as large as the event said, or that is not the cache.
            Some(found) if family != FAMILY_KMALLOC || found.size == bytes => {
                (*site).cache = encode_address(cache);
                bytes = found.size;
                let named =
                    bpf_probe_read_kernel_str_bytes(found.name as *const u8, &mut (*site).cache_name).is_ok();
                if named {
                    flags |= SITE_CACHE_KNOWN;
                }
            }
            _ if family == FAMILY_KMALLOC || family == FAMILY_KMEM_CACHE => {
                warn!((), "the slab cache of {:x} cannot be read", origin.call_site);
                atomic::add(&raw mut (*control).cache_unknown, 1);
            }
            _ => {}
        }
        (*site).object_size = bytes;
        (*site).family = family;
        (*site).stack = u64::from(origin.stack);
        // Where one site has objects of many sizes, each is looked at instead.
        if bytes != 0 && (bytes < config!(min_size) || bytes > config!(max_size)) {
            flags |= SITE_IGNORED;
        }
        if config!(filter_caches) != 0 && CACHES.get_ptr(&(*site).cache_name).is_none() {
            flags |= SITE_IGNORED;
        }
        (&raw mut (*site).flags).write_volatile(flags);
    }
    flags
}
