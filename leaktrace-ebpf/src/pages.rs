//! From an object's address to the slab cache that it lies in, by way of its `struct page`.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use leaktrace_common::Control;

use crate::config::config;
use leaktrace_ebpf::atomic;

/// Addresses below this belong to user space, so no kernel pointer is smaller.
const KERNEL_HALF: u64 = 1 << 63;

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails where nothing is mapped.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

#[inline(always)]
fn base(symbol: u64, constant: u64) -> u64 {
    if symbol != 0 { read(symbol).unwrap_or(0) } else { constant }
}

/// Address of the first `struct page`, 0 when it is not known.
#[inline(always)]
pub(crate) fn first_page() -> u64 {
    if config!(page_size_of) == 0 { 0 } else { base(config!(vmemmap_symbol), config!(vmemmap)) }
}

/// Begin of the direct map of physical memory, 0 when it is not known.
#[inline(always)]
pub(crate) fn direct_map() -> u64 {
    if config!(page_size_of) == 0 { 0 } else { base(config!(page_offset_symbol), config!(page_offset)) }
}

/// Address of the `struct kmem_cache` that the object's slab belongs to.
///
/// `include/linux/mm.h` (`virt_to_head_page`), `mm/slab.h` (`virt_to_slab`).
#[inline(always)]
pub(crate) fn cache_of(object: u64) -> Option<u64> {
    let page_struct = u64::from(config!(page_size_of));
    if page_struct == 0 {
        return None;
    }
    let direct_map = direct_map();
    let pages = first_page();
    if object < direct_map || direct_map < KERNEL_HALF || pages < KERNEL_HALF {
        return None;
    }
    let mut page = pages + ((object - direct_map) >> config!(page_shift)) * page_struct;
    let head: u64 = read(page + u64::from(config!(page_compound_head)))?;
    if head & 1 != 0 {
        // Up to 6.x the head's address plus one. From 7.0 on it may be a mask instead, which is
        // nearly all ones and so above any page; a head never is above its tail.
        page = if head > page { page & head } else { head - 1 };
    }
    let cache: u64 = read(page + u64::from(config!(slab_cache)))?;
    (cache >= KERNEL_HALF && cache & 7 == 0).then_some(cache)
}

/// Checks the page lookup against an object whose cache the event itself has named.
#[inline(always)]
pub(crate) fn verify(control: *mut Control, object: u64, cache: u64) {
    if config!(page_size_of) == 0 {
        return;
    }
    let right = cache_of(object) == Some(cache);
    // SAFETY: the control block is a map value.
    unsafe {
        let counter = if right {
            &raw mut (*control).page_lookups_right
        } else {
            &raw mut (*control).page_lookups_wrong
        };
        atomic::add(counter, 1);
    }
}

/// What a `struct kmem_cache` says of itself.
pub(crate) struct Cache {
    pub(crate) name: u64,
    pub(crate) size: u32,
}

/// Reads a cache's description; `None` where that is no memory.
#[inline(always)]
pub(crate) fn describe(cache: u64) -> Option<Cache> {
    Some(Cache {
        name: read(cache + u64::from(config!(cache_name)))?,
        size: read(cache + u64::from(config!(cache_size)))?,
    })
}
