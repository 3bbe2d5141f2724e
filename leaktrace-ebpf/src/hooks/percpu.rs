//! Per-CPU memory, on raw tracepoints (`include/trace/events/percpu.h`).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use leaktrace_common::FAMILY_PERCPU;

use super::capturing;
use crate::{
    arguments::argument,
    book::{Free, allocated, freed},
    config::config,
    sites::Origin,
};

/// Tells a per-CPU site from others of the same call site.
const MARK: u64 = 0xcc;

/// The address of the first CPU's copy: the pointer that the kernel hands out is no address.
#[inline(always)]
fn first_copy(base: u64, offset: u64) -> u64 {
    base.wrapping_add(offset as u32 as i32 as u64)
}

/// `percpu_alloc_percpu`.
#[raw_tracepoint(tracepoint = "percpu_alloc_percpu")]
pub(crate) fn percpu_alloc_percpu(ctx: RawTracePointContext) -> u32 {
    let object = first_copy(argument(&ctx, config!(percpu_base)), argument(&ctx, config!(percpu_offset)));
    let bytes = if config!(percpu_bytes) == 0 {
        argument(&ctx, config!(percpu_size)) * u64::from(config!(possible_cpus))
    } else {
        argument(&ctx, config!(percpu_bytes))
    } as u32;
    if bytes < config!(min_size) || bytes > config!(max_size) {
        return 0;
    }
    let origin = Origin {
        call_site: argument(&ctx, config!(percpu_call_site) - 1),
        discriminator: MARK,
        object,
        cache: 0,
        bytes: 0,
        gfp: 0,
        family: FAMILY_PERCPU,
        stack: 0,
    };
    allocated(&ctx, capturing::PERCPU, &origin, bytes);
    0
}

/// `percpu_free_percpu(base_addr, off, ptr)`.
#[raw_tracepoint(tracepoint = "percpu_free_percpu")]
pub(crate) fn percpu_free_percpu(ctx: RawTracePointContext) -> u32 {
    let object = first_copy(argument(&ctx, 0), argument(&ctx, 1));
    freed(Free { program: 0, object, cache: 0, count_unknown: false, caller: 0 });
    0
}
