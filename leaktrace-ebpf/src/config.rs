//! What user space resolved about this kernel and this run.

use leaktrace_common::Config;

/// Overwritten at load, read-only and constant to the verifier from then on.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config {
    kmalloc_bytes_req: 2,
    kmalloc_bytes_alloc: 3,
    kmalloc_gfp: 4,
    cache_alloc_cache: 0,
    cache_alloc_gfp: 0,
    cache_free_cache: 0,
    cache_name: 0,
    cache_size: 0,
    slab_cache: 0,
    page_compound_head: 0,
    page_size_of: 0,
    page_shift: 0,
    gfp_class: 0,
    stack_depth: 0,
    vmemmap_symbol: 0,
    vmemmap: 0,
    page_offset_symbol: 0,
    page_offset: 0,
    stack_share: 0,
    bucket_mask: 0,
    site_mask: 0,
    stack_index_mask: 0,
    shard_mask: 0,
    site_bits: 0,
    counters_shared: 0,
    weakly_ordered: 0,
    filter_caches: 0,
    min_size: 0,
    max_size: 0,
    max_cache_size: 0,
    filter_modules: 0,
    gfp_movable: 0,
    gfp_compound: 0,
    percpu_call_site: 0,
    percpu_size: 0,
    percpu_base: 0,
    percpu_offset: 0,
    percpu_bytes: 0,
    possible_cpus: 0,
    rcu_offset: 0,
    bulk_returns_bool: 0,
    area_start: 0,
    area_end: 0,
    module_name: 0,
    module_text: 0,
    module_text_size: 0,
    module_init: 0,
    module_init_size: 0,
};

/// Reads a field as it is at run time: the compiler must not believe the values above.
#[inline(always)]
pub(crate) fn value<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::read_volatile(field) }
}

/// Reads one field of [`CONFIG`].
macro_rules! config {
    ($field:ident) => {
        $crate::config::value(&$crate::config::CONFIG.$field)
    };
}
pub(crate) use config;
