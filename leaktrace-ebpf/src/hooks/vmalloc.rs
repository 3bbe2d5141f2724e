//! Areas of the vmalloc address space: vmalloc, vmap, ioremap, stacks of tasks, modules.
//!
//! On tracepoints where there are (`include/trace/events/vmalloc.h`, 6.3 and later), else on the
//! functions that fire them, which are static but too large, or called too often, to be inlined.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel},
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use leaktrace_common::{FAMILY_VMALLOC, FRAGMENT};
use leaktrace_ebpf::probe::hash_pair;

use super::capturing;
use crate::{
    arguments::{argument, function_argument, returned},
    book::{Free, allocated_at, freed, nothing_to_watch},
    config::config,
    maps::{CPUS, control},
    sites::Origin,
    stacks,
};

/// Tells a vmalloc site from others of the same stack.
const MARK: u64 = 0x7a;

#[inline(always)]
fn allocated(ctx: &impl EbpfContext, address: u64, size: u64) -> Option<()> {
    let control = control()?;
    if nothing_to_watch(control) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = CPUS.get_ptr_mut(cpu)?;
    // Before anything is decided by the size: the verifier goes through these loops once for each
    // way that leads here.
    let stack = stacks::capture_always(ctx, capturing::VMALLOC, control, state);
    if config!(filter_modules) != 0 && stack.watched == 0 {
        return None;
    }
    // A guard page ends nearly every area.
    let page = 1_u64 << config!(page_shift);
    let bytes = if size > page { size - page } else { size };
    let most = !FRAGMENT;
    let bytes = if bytes > u64::from(most) { most } else { bytes as u32 };
    if bytes < config!(min_size) || bytes > config!(max_size) {
        return None;
    }
    let origin = Origin {
        call_site: 0,
        discriminator: hash_pair(stack.place, MARK),
        object: address,
        cache: 0,
        bytes: 0,
        gfp: 0,
        family: FAMILY_VMALLOC,
        stack: stack.id,
    };
    allocated_at(control, state, cpu, &origin, bytes)
}

#[inline(always)]
fn freed_at(address: u64) {
    freed(Free { program: 0, object: address, cache: 0, count_unknown: false, caller: 0 });
}

/// `alloc_vmap_area(addr, size, align, vstart, vend, failed)`.
#[raw_tracepoint(tracepoint = "alloc_vmap_area")]
pub(crate) fn alloc_vmap_area(ctx: RawTracePointContext) -> u32 {
    if argument(&ctx, 5) as u32 == 0 {
        allocated(&ctx, argument(&ctx, 0), argument(&ctx, 1));
    }
    0
}

/// `free_vmap_area_noflush(va_start, nr_lazy, nr_lazy_max)`.
#[raw_tracepoint(tracepoint = "free_vmap_area_noflush")]
pub(crate) fn free_vmap_area_noflush(ctx: RawTracePointContext) -> u32 {
    freed_at(argument(&ctx, 0));
    0
}

/// An error that is returned as a pointer (`include/linux/err.h`).
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// `struct vmap_area *alloc_vmap_area(...)` has returned.
#[inline(always)]
fn area_allocated(ctx: &impl EbpfContext, area: u64) -> Option<()> {
    if area == 0 || area >= FIRST_ERROR {
        return None;
    }
    let (start, end) = (area_field(area, config!(area_start))?, area_field(area, config!(area_end))?);
    allocated(ctx, start, end.wrapping_sub(start))
}

#[inline(always)]
fn area_field(area: u64, offset: u32) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((area + u64::from(offset)) as *const u64) }.ok()
}

#[inline(always)]
fn area_freed(area: u64) {
    if let Some(start) = area_field(area, config!(area_start)) {
        freed_at(start);
    }
}

/// By the ftrace trampoline.
#[fexit(function = "alloc_vmap_area")]
pub(crate) fn fexit_alloc_vmap_area(ctx: FExitContext) -> u32 {
    area_allocated(&ctx, returned(ctx.as_ptr()));
    0
}

/// By a breakpoint or jump, and the return address.
#[kretprobe(function = "alloc_vmap_area")]
pub(crate) fn kretprobe_alloc_vmap_area(ctx: RetProbeContext) -> u32 {
    area_allocated(&ctx, ctx.ret());
    0
}

/// By the ftrace trampoline.
#[fentry(function = "free_vmap_area_noflush")]
pub(crate) fn fentry_free_vmap_area_noflush(ctx: FEntryContext) -> u32 {
    area_freed(function_argument(ctx.as_ptr(), 0));
    0
}

/// By a breakpoint or jump.
#[kprobe(function = "free_vmap_area_noflush")]
pub(crate) fn kprobe_free_vmap_area_noflush(ctx: ProbeContext) -> u32 {
    area_freed(ctx.arg(0).unwrap_or(0));
    0
}
