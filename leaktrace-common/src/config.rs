//! What the programs are told at load.

/// Everything about the running kernel and the run that the programs need to know, resolved
/// at load and passed in as one read-only global: the verifier then drops the branches not taken.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// Index of `bytes_req` among the arguments of kmalloc.
    pub kmalloc_bytes_req: u32,
    /// Index of `bytes_alloc` among the arguments of kmalloc.
    pub kmalloc_bytes_alloc: u32,
    /// Index of `gfp_flags` among the arguments of kmalloc.
    pub kmalloc_gfp: u32,
    /// Index of `s` among the arguments of `kmem_cache_alloc`; 0: there is none (before 6.1).
    pub cache_alloc_cache: u32,
    /// Index of `gfp_flags` among the arguments of `kmem_cache_alloc`.
    pub cache_alloc_gfp: u32,
    /// Index of `s` among the arguments of `kmem_cache_free`; 0: there is none.
    pub cache_free_cache: u32,
    /// Offset of `kmem_cache.name`.
    pub cache_name: u32,
    /// Offset of `kmem_cache.size`.
    pub cache_size: u32,
    /// Offset of `slab_cache` in `struct slab` (5.17 and later) or `struct page`.
    pub slab_cache: u32,
    /// Offset of `page.compound_head`.
    pub page_compound_head: u32,
    /// `sizeof(struct page)`; 0 when pages cannot be looked up.
    pub page_size_of: u32,
    /// log2 of the page size.
    pub page_shift: u32,
    /// Mask of the gfp bits that choose another kmalloc cache of the same size.
    pub gfp_class: u32,
    /// Number of frames to capture, 0 for none.
    pub stack_depth: u32,
    /// Allocations larger than this come straight from the page allocator.
    pub max_cache_size: u32,
    /// 1 where stores may overtake stores (arm64): publish with a full barrier.
    pub weakly_ordered: u32,
    /// Address of the variable `vmemmap_base`, or 0: take `vmemmap`.
    pub vmemmap_symbol: u64,
    /// Address of the first `struct page`.
    pub vmemmap: u64,
    /// Address of the variable `page_offset_base`, or 0: take `page_offset`.
    pub page_offset_symbol: u64,
    /// Address of the direct map of physical memory.
    pub page_offset: u64,
    /// Share of a CPU for stack captures, in parts per 2^20.
    pub stack_share: u32,
    /// Mask of the bucket index.
    pub bucket_mask: u32,
    /// Mask of the site index.
    pub site_mask: u32,
    /// Mask of the stack index.
    pub stack_index_mask: u32,
    /// Mask that makes a counter shard of a CPU number.
    pub shard_mask: u32,
    /// log2 of the number of sites; a cell of the counters is `shard << site_bits | site`.
    pub site_bits: u32,
    /// 1 when counters must be added to atomically: several CPUs share a shard, or a program may
    /// interrupt itself.
    pub counters_shared: u32,
    /// 1 when only caches in the `CACHES` map are recorded.
    pub filter_caches: u32,
    /// Smallest object size recorded.
    pub min_size: u32,
    /// Largest object size recorded.
    pub max_size: u32,
    /// 1 when only objects are recorded whose stack passes through a watched module.
    pub filter_modules: u32,
    /// gfp bits of pages that can be moved: user memory and page cache, which are not recorded.
    pub gfp_movable: u32,
    /// gfp bit of blocks that are freed as a whole.
    pub gfp_compound: u32,
    /// Index of `call_site` among the arguments of `percpu_alloc_percpu` plus one; 0: there is none.
    pub percpu_call_site: u32,
    /// Index of its `size`, and of each of the following likewise.
    pub percpu_size: u32,
    /// `base_addr`.
    pub percpu_base: u32,
    /// `off`.
    pub percpu_offset: u32,
    /// `bytes_alloc`; 0: there is none, and `size` is multiplied by the CPUs.
    pub percpu_bytes: u32,
    /// CPUs that per-CPU memory is for.
    pub possible_cpus: u32,
    /// 1 when the second argument of `kvfree_call_rcu` is the offset of the `rcu_head` (before 6.4).
    pub rcu_offset: u32,
    /// 1 when `kmem_cache_alloc_bulk` returns a bool.
    pub bulk_returns_bool: u32,
    /// Offset of `vmap_area.va_start`.
    pub area_start: u32,
    /// Offset of `vmap_area.va_end`.
    pub area_end: u32,
    /// Offset of `module.name`.
    pub module_name: u32,
    /// Offset of the base of a module's text, in `struct module`.
    pub module_text: u32,
    /// Offset of its size.
    pub module_text_size: u32,
    /// Offset of the base of the text of its initialisation.
    pub module_init: u32,
    /// Offset of its size.
    pub module_init_size: u32,
}

// 44 words and 4 double words: no padding, which would be uninitialised bytes for bpf().
const _: () = assert!(size_of::<Config>() == 44 * 4 + 4 * 8);
