//! Slab: kmalloc and kmem_cache, on raw tracepoints.
//!
//! Arguments are those of `include/trace/events/kmem.h`. `call_site` comes first and the object
//! second on every version; the rest moved, so user space looks their positions up in BTF.

use core::{arch::asm, hint::cold_path};

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_jiffies64, bpf_ktime_get_ns},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::warn;
use leaktrace_common::{
    Control, CpuState, EXACT_TIME, FAMILY_KMALLOC, FAMILY_KMEM_CACHE, FAMILY_UNKNOWN_FREE, Payload,
    SITE_IGNORED, SITE_OTHER, UNKNOWN_FREE_CALL_SITE, ZERO_SIZE_PTR, address_hash, encode_address,
    has_exact_time, is_sampled, lifetime_class,
};
use leaktrace_ebpf::{
    atomic,
    table::{self, NO_SITE, Overflow},
};

use crate::{
    config::config,
    maps::{CPUS, OVERFLOW, bucket, control, counters},
    pages, sites,
    sites::Origin,
    stacks, tasks,
};

/// Set in a kmalloc site's discriminator, which then is no encoded cache address.
const KMALLOC_MARK: u64 = 1 << 63;

/// Reads an argument whose offset is constant in the instruction, as the verifier demands of
/// loads from the context: LLVM would merge the arms below into one load at a computed offset.
macro_rules! argument_at {
    ($ctx:expr, $offset:literal) => {{
        let value: u64;
        // SAFETY: the tracepoint has that many arguments, says BTF, or the verifier refuses.
        unsafe {
            asm!(concat!("{0} = *(u64 *)({1} + ", $offset, ")"), out(reg) value, in(reg) $ctx, options(pure, readonly, nostack));
        }
        value
    }};
}

#[inline(always)]
fn argument(ctx: &RawTracePointContext, index: u32) -> u64 {
    let args = ctx.as_ptr();
    match index {
        2 => argument_at!(args, "16"),
        3 => argument_at!(args, "24"),
        4 => argument_at!(args, "32"),
        5 => argument_at!(args, "40"),
        _ => 0,
    }
}

#[inline(always)]
fn call_site(ctx: &RawTracePointContext) -> u64 {
    argument_at!(ctx.as_ptr(), "0")
}

#[inline(always)]
fn object(ctx: &RawTracePointContext) -> u64 {
    argument_at!(ctx.as_ptr(), "8")
}

/// Adds one to a counter that one program adds to on this shard, unless it is shared after all.
#[inline(always)]
unsafe fn count(counter: *mut u64, site: u32) {
    // SAFETY: the caller passes a field of a map value.
    unsafe {
        if config!(counters_shared) != 0 || site == SITE_OTHER {
            cold_path();
            atomic::add(counter, 1);
        } else {
            *counter += 1;
        }
    }
}

/// Books an allocation.
#[inline(always)]
fn allocated(ctx: &RawTracePointContext, program: u32, origin: &Origin, size: u32) -> Option<()> {
    let control = control()?;
    let (site, flags) = sites::find(ctx, control, origin)?;
    if flags & SITE_IGNORED != 0 {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let cell = counters(site, cpu)?;
    let hash = address_hash(origin.object);
    // SAFETY: `control` and `cell` are map values, as are the bucket and the CPU's state below.
    unsafe {
        count(&raw mut (*cell).allocated, site);
        if !is_sampled(hash, (&raw const (*control).sample_shift).read_volatile() as u32) {
            count(&raw mut (*cell).unsampled, site);
            return None;
        }
        let state = CPUS.get_ptr_mut(cpu)?;
        let nth = (*cell).allocated;
        let time_ns = time_of_allocation(state, nth);
        let tgid = tasks::current(state);
        let stack = if config!(stack_depth) == 0 {
            0
        } else {
            stacks::capture(ctx, program, control, state, hash, flags, nth)
        };
        let payload = Payload { time_ns, site, stack, tgid, size };
        let key = encode_address(origin.object);
        let stored =
            table::put(bucket(hash)?, &mut OverflowMap(control), key, &payload, config!(weakly_ordered) != 0);
        if stored.replaced != NO_SITE {
            cold_path();
            implicit_free(stored.replaced, cpu);
        }
        if !stored.tracked {
            cold_path();
            atomic::add(&raw mut (*cell).overflowed, 1);
            if (&raw const (*control).overflow_lost).read_volatile() == 0 {
                warn!(
                    ctx,
                    "no place for an object of {:x}: bucket and overflow map are full", origin.call_site
                );
            }
            atomic::add(&raw mut (*control).overflow_lost, 1);
        }
    }
    None
}

/// The time that an object is given: exact for some, and that of the last timer tick for the others.
#[inline(always)]
unsafe fn time_of_allocation(state: *mut CpuState, nth: u64) -> u64 {
    // SAFETY: helpers without arguments, and this CPU's own map value. A program that interrupts
    // this one between the two writes leaves a time that is at most a tick older.
    unsafe {
        if has_exact_time(nth) {
            cold_path();
            let now = bpf_ktime_get_ns();
            // As good as the tick's for what comes after.
            (*state).tick_ns = now & !EXACT_TIME;
            return now | EXACT_TIME;
        }
        let tick = bpf_jiffies64();
        if (*state).tick != tick {
            cold_path();
            (*state).tick_ns = bpf_ktime_get_ns() & !EXACT_TIME;
            (*state).tick = tick;
        }
        (*state).tick_ns
    }
}

/// The free of the object that was at this address before was not seen.
#[inline(always)]
fn implicit_free(site: u32, cpu: u32) {
    if let Some(cell) = counters(site & config!(site_mask), cpu) {
        // SAFETY: a map value. Any program may find any site's, so always atomic.
        unsafe { atomic::add(&raw mut (*cell).implicit_frees, 1) };
    }
}

/// The hash map behind the buckets; the control block counts what it holds.
struct OverflowMap(*mut Control);

impl Overflow for OverflowMap {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        // SAFETY: the control block is a map value.
        unsafe { (&raw const (*self.0).overflow_live).read_volatile() == 0 }
    }

    #[inline(always)]
    fn put(&mut self, key: u64, payload: &Payload) -> bool {
        let room = OVERFLOW.insert(&key, payload, 0).is_ok();
        if room {
            // SAFETY: the control block is a map value.
            unsafe { atomic::add(&raw mut (*self.0).overflow_live, 1) };
        }
        room
    }

    #[inline(always)]
    fn take(&mut self, key: u64) -> Option<(u64, u32)> {
        // SAFETY: the entry is this address's, whose events are ordered: nobody else removes it.
        unsafe {
            let found = OVERFLOW.get_ptr(&key)?;
            let (time_ns, site) = ((*found).time_ns, (*found).site);
            if OVERFLOW.remove(&key).is_ok() {
                atomic::add(&raw mut (*self.0).overflow_live, u64::MAX);
            }
            Some((time_ns, site))
        }
    }
}

/// Books a free seen by a program; `cache` is the object's `struct kmem_cache` where the event
/// names it, else 0.
#[inline(always)]
fn freed(ctx: &RawTracePointContext, program: usize, object: u64, cache: u64) -> Option<()> {
    if object <= ZERO_SIZE_PTR {
        return None;
    }
    let control = control()?;
    let hash = address_hash(object);
    // SAFETY: `control` and the bucket are map values.
    let found = unsafe {
        if !is_sampled(hash, (&raw const (*control).sample_shift).read_volatile() as u32) {
            return None;
        }
        let key = encode_address(object);
        table::take(bucket(hash)?, &mut OverflowMap(control), key, config!(weakly_ordered) != 0)
    };
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some((time_ns, site)) = found else {
        cold_path();
        return unknown_free(ctx, control, program, object, cache, cpu);
    };
    let cell = counters(site & config!(site_mask), cpu)?;
    // SAFETY: a helper without arguments, and a map value. Both programs that free count lifetimes,
    // and one may interrupt the other, so that is atomic.
    unsafe {
        count(&raw mut (*cell).freed[program], site);
        if time_ns & EXACT_TIME != 0 {
            cold_path();
            let class = lifetime_class(bpf_ktime_get_ns().wrapping_sub(time_ns));
            atomic::add((&raw mut (*cell).lifetimes).cast::<u64>().add(class), 1);
        }
    }
    None
}

/// Counts the free of an object that the table does not have, by cache: most are older than the
/// trace, and the comparison with /proc/slabinfo needs them.
#[inline(always)]
fn unknown_free(
    ctx: &RawTracePointContext,
    control: *mut Control,
    program: usize,
    object: u64,
    cache: u64,
    cpu: u32,
) -> Option<()> {
    let cache = if cache == 0 { pages::cache_of(object).unwrap_or(0) } else { cache };
    let origin = Origin {
        call_site: UNKNOWN_FREE_CALL_SITE,
        discriminator: encode_address(cache),
        object,
        cache,
        bytes: 0,
        gfp: 0,
        family: FAMILY_UNKNOWN_FREE,
    };
    let (site, _) = sites::find(ctx, control, &origin)?;
    let cell = counters(site, cpu)?;
    // SAFETY: a map value.
    unsafe { count(&raw mut (*cell).freed[program], site) };
    None
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
    };
    allocated(ctx, program, &origin, 0);
    0
}

/// Objects allocated by `kmalloc`.
#[raw_tracepoint(tracepoint = "kmalloc")]
pub(crate) fn kmalloc(ctx: RawTracePointContext) -> u32 {
    on_kmalloc(&ctx, 0)
}

/// Objects allocated from a cache.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
pub(crate) fn kmem_cache_alloc(ctx: RawTracePointContext) -> u32 {
    on_cache_alloc(&ctx, 1)
}

/// `kmalloc` on a named node, an event of its own up to 6.0.
#[raw_tracepoint(tracepoint = "kmalloc_node")]
pub(crate) fn kmalloc_node(ctx: RawTracePointContext) -> u32 {
    on_kmalloc(&ctx, 2)
}

/// Allocation from a cache on a named node, an event of its own up to 6.0.
#[raw_tracepoint(tracepoint = "kmem_cache_alloc_node")]
pub(crate) fn kmem_cache_alloc_node(ctx: RawTracePointContext) -> u32 {
    on_cache_alloc(&ctx, 3)
}

/// Objects of any cache freed by `kfree`; also fires for NULL.
#[raw_tracepoint(tracepoint = "kfree")]
pub(crate) fn kfree(ctx: RawTracePointContext) -> u32 {
    freed(&ctx, 0, object(&ctx), 0);
    0
}

/// Objects freed to a named cache.
#[raw_tracepoint(tracepoint = "kmem_cache_free")]
pub(crate) fn kmem_cache_free(ctx: RawTracePointContext) -> u32 {
    let cache = if config!(cache_free_cache) == 0 { 0 } else { argument(&ctx, config!(cache_free_cache)) };
    freed(&ctx, 1, object(&ctx), cache);
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
