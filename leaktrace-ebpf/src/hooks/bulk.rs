//! Objects allocated or freed many at a time, which fires no tracepoint.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel, generated::bpf_loop},
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use leaktrace_common::{FAMILY_KMEM_CACHE, FREED_IN_BULK, FREED_SHARED};
use leaktrace_ebpf::probe::hash_pair;

use super::capturing;
use crate::{
    arguments::{function_argument, returned},
    book::{Belongs, Free, allocated_there, belongs, freed, nothing_to_watch},
    config::config,
    maps::{CALLS, CPUS, control},
    sites::Origin,
    stacks,
};

/// Objects that one call may have: more are not looked at. The largest caller is the batch of kfree_rcu.
const MOST: u64 = 1 << 16;

/// The array that a bulk function was given.
struct Frees {
    objects: u64,
    cache: u64,
}

extern "C" fn free_one(index: u64, frees: *mut c_void) -> c_long {
    let frees = frees.cast::<Frees>();
    // SAFETY: the context is what `freed_in_bulk` gives bpf_loop; the helper checks the address.
    unsafe {
        if let Some(object) = object_at((*frees).objects, index) {
            let cache = (*frees).cache;
            freed(Free { program: FREED_SHARED, object, cache, count_unknown: true, caller: FREED_IN_BULK });
        }
    }
    0
}

/// `kmem_cache_free_bulk(s, size, p)`; `s` is NULL for kfree_bulk, whose objects may be of any caches.
#[inline(always)]
fn freed_in_bulk(cache: u64, size: u64, objects: u64) {
    let mut frees = Frees { objects, cache };
    let size = if size > MOST { MOST } else { size };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(size as u32, free_one as *mut c_void, (&raw mut frees).cast(), 0) };
}

/// By the ftrace trampoline.
#[fentry(function = "kmem_cache_free_bulk")]
pub(crate) fn fentry_kmem_cache_free_bulk(ctx: FEntryContext) -> u32 {
    let ctx = ctx.as_ptr();
    freed_in_bulk(function_argument(ctx, 0), function_argument(ctx, 1), function_argument(ctx, 2));
    0
}

/// By a breakpoint or jump.
#[kprobe(function = "kmem_cache_free_bulk")]
pub(crate) fn kprobe_kmem_cache_free_bulk(ctx: ProbeContext) -> u32 {
    freed_in_bulk(ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0), ctx.arg(2).unwrap_or(0));
    0
}

/// The array that a bulk function has filled, and where its objects belong.
struct Allocations {
    objects: u64,
    there: Belongs,
}

extern "C" fn allocate_one(index: u64, all: *mut c_void) -> c_long {
    let all = all.cast::<Allocations>();
    // SAFETY: the context is what `allocated_in_bulk` gives bpf_loop; the helper checks the address.
    unsafe {
        if let Some(object) = object_at((*all).objects, index) {
            allocated_there(&(*all).there, object, 0);
        }
    }
    0
}

#[inline(always)]
fn object_at(objects: u64, index: u64) -> Option<u64> {
    let place = objects.wrapping_add((index & 0xffff_ffff) * 8);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(place as *const u64) }.ok()
}

/// `kmem_cache_alloc_bulk(s, flags, size, p)` has returned.
#[inline(always)]
fn allocated_in_bulk(ctx: &impl EbpfContext, cache: u64, size: u64, objects: u64, result: u64) -> Option<()> {
    // All of them or none (`mm/slub.c`). Of a bool only the lowest byte is returned.
    let result = if config!(bulk_returns_bool) != 0 { result & 0xff } else { result & 0xffff_ffff };
    let control = control()?;
    if result == 0 || nothing_to_watch(control) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = CPUS.get_ptr_mut(cpu)?;
    let stack = stacks::capture_always(ctx, capturing::BULK, control, state);
    if config!(filter_modules) != 0 && stack.watched == 0 {
        return None;
    }
    let origin = Origin {
        call_site: 0,
        discriminator: hash_pair(stack.place, cache),
        object: object_at(objects, 0)?,
        cache,
        bytes: 0,
        gfp: 0,
        family: FAMILY_KMEM_CACHE,
        stack: stack.id,
    };
    let mut all = Allocations { objects, there: belongs(control, state, cpu, &origin)? };
    let size = if size > MOST { MOST } else { size };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(size as u32, allocate_one as *mut c_void, (&raw mut all).cast(), 0) };
    None
}

/// By the ftrace trampoline.
#[fexit(function = "kmem_cache_alloc_bulk")]
pub(crate) fn fexit_kmem_cache_alloc_bulk(ctx: FExitContext) -> u32 {
    let args = ctx.as_ptr();
    let (cache, size, objects) =
        (function_argument(args, 0), function_argument(args, 2), function_argument(args, 3));
    allocated_in_bulk(&ctx, cache, size, objects, returned(args));
    0
}

/// Notes the arguments until the function returns.
#[kprobe(function = "kmem_cache_alloc_bulk")]
pub(crate) fn kprobe_kmem_cache_alloc_bulk(ctx: ProbeContext) -> u32 {
    let call: [u64; 3] = [ctx.arg(0).unwrap_or(0), ctx.arg(2).unwrap_or(0), ctx.arg(3).unwrap_or(0)];
    // SAFETY: the registers are the kernel's, for the time of the program.
    let stack = unsafe { stack_pointer(ctx.regs.cast()) };
    // Full, it loses the oldest one, which then is an allocation that is not seen.
    let _ = CALLS.insert(&stack, &call, 0);
    0
}

/// By a breakpoint or jump, and the return address.
#[kretprobe(function = "kmem_cache_alloc_bulk")]
pub(crate) fn kretprobe_kmem_cache_alloc_bulk(ctx: RetProbeContext) -> u32 {
    // SAFETY: as above.
    let stack = unsafe { stack_pointer(ctx.regs.cast()) };
    // The function has popped its return address, where there is one on the stack.
    for behind in [8, 0, 16] {
        let key = stack.wrapping_sub(behind);
        if let Some(call) = CALLS.get_ptr(&key) {
            // SAFETY: the entry is this call's: the stack is this task's until the probe ends.
            let [cache, size, objects] = unsafe { *call };
            let _ = CALLS.remove(&key);
            allocated_in_bulk(&ctx, cache, size, objects, ctx.ret());
            break;
        }
    }
    0
}

/// The stack pointer of the probed code: different for each call that is on its way.
#[inline(always)]
unsafe fn stack_pointer(registers: *const aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the caller's.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        (*registers).rsp
    }
    // SAFETY: the caller's.
    #[cfg(not(bpf_target_arch = "x86_64"))]
    unsafe {
        (*registers).sp
    }
}
