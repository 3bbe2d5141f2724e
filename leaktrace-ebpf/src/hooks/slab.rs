//! Slab: kmalloc and kmem_cache, on raw tracepoints.
//!
//! Arguments are those of `include/trace/events/kmem.h`. `call_site` comes first and the object
//! second on every version; the rest moved, so user space looks their positions up in BTF.

use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::raw_tracepoint, programs::RawTracePointContext};
use leaktrace_common::{FAMILY_KMALLOC, FAMILY_KMEM_CACHE, FREED_SHARED, ZERO_SIZE_PTR, encode_address};

use super::capturing;
use crate::{
    arguments::argument,
    book::{Free, allocated, begin_free, freed, is_left_out},
    config::config,
    maps::CPUS,
    pages,
    sites::Origin,
};

/// Set in a kmalloc site's discriminator, which then is no encoded cache address.
const KMALLOC_MARK: u64 = 1 << 63;

#[inline(always)]
fn call_site(ctx: &RawTracePointContext) -> u64 {
    argument(ctx, 0)
}

#[inline(always)]
fn object(ctx: &RawTracePointContext) -> u64 {
    argument(ctx, 1)
}

#[inline(always)]
fn on_kmalloc(ctx: &RawTracePointContext, program: u32) -> u32 {
    let object = object(ctx);
    if object <= ZERO_SIZE_PTR {
        return 0;
    }
    let bytes = argument(ctx, config!(kmalloc_bytes_alloc));
    let gfp = argument(ctx, config!(kmalloc_gfp)) as u32;
    let origin = Origin {
        call_site: call_site(ctx),
        discriminator: KMALLOC_MARK | u64::from(gfp & config!(gfp_class)) << 32 | bytes & 0xffff_ffff,
        object,
        cache: 0,
        bytes: bytes as u32,
        gfp,
        family: FAMILY_KMALLOC,
        stack: 0,
    };
    allocated(ctx, program, &origin, argument(ctx, config!(kmalloc_bytes_req)) as u32);
    0
}

#[inline(always)]
fn on_cache_alloc(ctx: &RawTracePointContext, program: u32) -> u32 {
    let object = object(ctx);
    if object <= ZERO_SIZE_PTR {
        return 0;
    }
    let cache = if config!(cache_alloc_cache) == 0 {
        // Before 6.1 the event does not name the cache.
        pages::cache_of(object).unwrap_or(0)
    } else {
        argument(ctx, config!(cache_alloc_cache))
    };
    let origin = Origin {
        call_site: call_site(ctx),
        discriminator: encode_address(cache) & !KMALLOC_MARK,
        object,
        cache,
        bytes: 0,
        gfp: argument(ctx, config!(cache_alloc_gfp)) as u32,
        family: FAMILY_KMEM_CACHE,
        stack: 0,
    };
    allocated(ctx, program, &origin, 0);
    0
}

/// Objects allocated by `kmalloc`.
#[raw_tracepoint(tracepoint = "kmalloc")]
pub(crate) fn kmalloc(ctx: RawTracePointContext) -> u32 {
    on_kmalloc(&ctx, capturing::KMALLOC)
}

/// Objects allocated from a cache.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub(crate) fn kmem_cache_alloc(ctx: RawTracePointContext) -> u32 {
    on_cache_alloc(&ctx, capturing::CACHE_ALLOC)
}

/// `kmalloc` on a named node, an event of its own up to 6.0.
#[raw_tracepoint(tracepoint = "kmalloc_node")]
pub(crate) fn kmalloc_node(ctx: RawTracePointContext) -> u32 {
    on_kmalloc(&ctx, capturing::KMALLOC_NODE)
}

/// Allocation from a cache on a named node, an event of its own up to 6.0.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc_node")]
pub(crate) fn kmem_cache_alloc_node(ctx: RawTracePointContext) -> u32 {
    on_cache_alloc(&ctx, capturing::CACHE_ALLOC_NODE)
}

/// Indices of the programs on the frees, each of which has a second one.
const KFREE: usize = 0;
const CACHE_FREE: usize = 1;

#[inline(always)]
fn on_kfree(ctx: &RawTracePointContext, program: usize) {
    freed(Free { program, object: object(ctx), cache: 0, count_unknown: true, caller: call_site(ctx) });
}

#[inline(always)]
fn on_cache_free(ctx: &RawTracePointContext, program: usize) {
    let cache = if config!(cache_free_cache) == 0 { 0 } else { argument(ctx, config!(cache_free_cache)) };
    freed(Free { program, object: object(ctx), cache, count_unknown: true, caller: call_site(ctx) });
}

/// Objects of any cache freed by `kfree`; also fires for NULL.
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn kfree(ctx: RawTracePointContext) -> u32 {
    if object(&ctx) > ZERO_SIZE_PTR {
        begin_free(KFREE, object(&ctx));
        on_kfree(&ctx, KFREE);
    }
    0
}

/// What `kfree` frees in an interrupt of that program.
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn kfree_nested(ctx: RawTracePointContext) -> u32 {
    if object(&ctx) > ZERO_SIZE_PTR && is_left_out(KFREE, object(&ctx)) {
        on_kfree(&ctx, FREED_SHARED);
    }
    0
}

/// Objects freed to a named cache.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn kmem_cache_free(ctx: RawTracePointContext) -> u32 {
    begin_free(CACHE_FREE, object(&ctx));
    on_cache_free(&ctx, CACHE_FREE);
    0
}

/// What `kmem_cache_free` frees in an interrupt of that program.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn kmem_cache_free_nested(ctx: RawTracePointContext) -> u32 {
    if is_left_out(CACHE_FREE, object(&ctx)) {
        on_cache_free(&ctx, FREED_SHARED);
    }
    0
}

/// A task took another name (`exec`): the next allocation on this CPU notes it.
#[raw_tracepoint(tracepoint = "task_rename")]
pub(crate) fn task_rename(_ctx: RawTracePointContext) -> u32 {
    // SAFETY: a helper without arguments, and this CPU's own map value.
    unsafe {
        if let Some(state) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) {
            (*state).last_pid = 0;
        }
    }
    0
}
