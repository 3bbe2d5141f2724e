//! Booking allocations and frees, for every hook alike.

use core::hint::cold_path;

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_jiffies64, bpf_ktime_get_ns},
    },
};
use aya_log_ebpf::warn;
use leaktrace_common::{
    Control, Counters, CpuState, EXACT_TIME, FAMILY_UNKNOWN_FREE, FREED_BY_RCU, FREED_SHARED, Payload,
    SITE_IGNORED, SITE_OTHER, SITE_PENDING, UNKNOWN_FREE_CALL_SITE, ZERO_SIZE_PTR, address_hash,
    encode_address, has_exact_time, is_sampled, lifetime_class,
};
use leaktrace_ebpf::{
    atomic,
    table::{self, NO_SITE},
};

use crate::{
    callers::note_free_caller,
    config::config,
    maps::{CPUS, bucket, control, counters},
    overflow::OverflowMap,
    pages, sites,
    sites::Origin,
    stacks::{self, Captured},
    tasks,
};

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

/// Adds one to a site's counter of a program's frees.
#[inline(always)]
unsafe fn count_freed(cell: *mut Counters, program: usize, site: u32) {
    // SAFETY: the caller's map value.
    unsafe {
        if program == FREED_SHARED {
            atomic::add(&raw mut (*cell).freed[FREED_SHARED], 1);
        } else {
            count(&raw mut (*cell).freed[program], site);
        }
    }
}

/// Whether an allocated address is in the sample.
#[inline(always)]
pub(crate) fn sampled(control: *mut Control, object: u64) -> bool {
    // SAFETY: the control block is a map value.
    is_sampled(address_hash(object), unsafe { (&raw const (*control).sample_shift).read_volatile() } as u32)
}

/// Whether only watched modules are recorded, and none is loaded.
#[inline(always)]
pub(crate) fn nothing_to_watch(control: *mut Control) -> bool {
    // SAFETY: the control block is a map value.
    config!(filter_modules) != 0 && unsafe { (&raw const (*control).watched).read_volatile() } == 0
}

/// Books the allocation of an object whose event says where it comes from.
#[inline(always)]
pub(crate) fn allocated(ctx: &impl EbpfContext, program: u32, origin: &Origin, size: u32) -> Option<()> {
    let control = control()?;
    if nothing_to_watch(control) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = CPUS.get_ptr_mut(cpu)?;
    let mut stack = Captured::NONE;
    if config!(filter_modules) != 0 {
        stack = stacks::capture_always(ctx, program, control, state);
        if stack.watched == 0 {
            return None;
        }
    }
    let (site, flags) = sites::find(control, origin)?;
    if flags & SITE_IGNORED != 0 {
        return None;
    }
    let cell = counters(site, cpu)?;
    let hash = address_hash(origin.object);
    // SAFETY: `control`, `cell` and the CPU's state are map values.
    unsafe {
        count(&raw mut (*cell).allocated, site);
        if !sampled(control, origin.object) {
            count(&raw mut (*cell).untracked, site);
            return None;
        }
        let nth = (*cell).allocated;
        if config!(stack_depth) != 0 && config!(filter_modules) == 0 {
            stack.id = stacks::capture(ctx, program, control, state, hash, flags, nth);
        }
        store(control, cell, state, cpu, Object { address: origin.object, site, nth, stack: stack.id, size })
    }
}

/// Where an allocation belongs whose stack has been captured because its event does not say where
/// it comes from.
#[derive(Clone, Copy)]
pub(crate) struct Belongs {
    pub(crate) control: *mut Control,
    pub(crate) state: *mut CpuState,
    pub(crate) cell: *mut Counters,
    pub(crate) cpu: u32,
    pub(crate) site: u32,
    pub(crate) stack: u32,
}

/// Finds the site of an origin that names a stack; `None` when it is not recorded.
#[inline(always)]
pub(crate) fn belongs(
    control: *mut Control,
    state: *mut CpuState,
    cpu: u32,
    origin: &Origin,
) -> Option<Belongs> {
    let (site, flags) = sites::find(control, origin)?;
    if flags & SITE_IGNORED != 0 {
        return None;
    }
    Some(Belongs { control, state, cell: counters(site, cpu)?, cpu, site, stack: origin.stack })
}

/// Books the allocation of an object there.
#[inline(always)]
pub(crate) fn allocated_there(there: &Belongs, address: u64, size: u32) -> Option<()> {
    let Belongs { control, state, cell, cpu, site, stack } = *there;
    // SAFETY: all of them are map values.
    unsafe {
        count(&raw mut (*cell).allocated, site);
        if !sampled(control, address) {
            count(&raw mut (*cell).untracked, site);
            return None;
        }
        let nth = (*cell).allocated;
        store(control, cell, state, cpu, Object { address, site, nth, stack, size })
    }
}

/// Books the allocation of one object whose origin names a stack.
#[inline(always)]
pub(crate) fn allocated_at(
    control: *mut Control,
    state: *mut CpuState,
    cpu: u32,
    origin: &Origin,
    size: u32,
) -> Option<()> {
    allocated_there(&belongs(control, state, cpu, origin)?, origin.object, size)
}

/// What is to be stored of an object.
struct Object {
    address: u64,
    site: u32,
    /// The how manieth of its site on this CPU it is.
    nth: u64,
    stack: u32,
    size: u32,
}

/// Puts an object into the table.
#[inline(always)]
unsafe fn store(
    control: *mut Control,
    cell: *mut Counters,
    state: *mut CpuState,
    cpu: u32,
    object: Object,
) -> Option<()> {
    // SAFETY: the caller's map values, and the bucket is one too.
    unsafe {
        let time_ns = time_of_allocation(state, object.nth);
        let tgid = tasks::current(state);
        let payload = Payload { time_ns, site: object.site, stack: object.stack, tgid, size: object.size };
        let key = encode_address(object.address);
        let bucket = bucket(address_hash(object.address))?;
        let stored =
            table::put(bucket, &mut OverflowMap(control), key, &payload, config!(weakly_ordered) != 0);
        if stored.replaced != NO_SITE {
            cold_path();
            implicit_free(stored.replaced, cpu);
        }
        if !stored.tracked {
            cold_path();
            lost(control, cell);
        }
    }
    None
}

/// There was no place for an object.
#[inline(always)]
unsafe fn lost(control: *mut Control, cell: *mut Counters) {
    // SAFETY: the caller's map values.
    unsafe {
        atomic::add(&raw mut (*cell).untracked, 1);
        if (&raw const (*control).overflow_lost).read_volatile() == 0 {
            warn!((), "no place for an object: bucket and overflow map are full");
        }
        atomic::add(&raw mut (*control).overflow_lost, 1);
    }
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
    if site == SITE_PENDING {
        // It was: by kfree_rcu.
        return;
    }
    if let Some(cell) = counters(site & config!(site_mask), cpu) {
        // SAFETY: a map value. Any program may find any site's, so always atomic.
        unsafe { atomic::add(&raw mut (*cell).implicit_frees, 1) };
    }
}

/// Notes that the first program of a pair books this free; see [`is_left_out`].
#[inline(always)]
pub(crate) fn begin_free(program: usize, object: u64) {
    // SAFETY: a helper without arguments, and this CPU's own map value.
    unsafe {
        if let Some(state) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) {
            (&raw mut (*state).freeing[program]).write_volatile(encode_address(object));
        }
    }
}

/// Whether the first program of a pair was left out for this free, which the second one asks.
///
/// The kernel leaves out a program that is already running on that CPU. An interrupt in the middle of it often ends with
/// the callbacks of RCU, which free thousands of objects: these the second program books. It begins when the first
/// one has ended, so it is only left out itself for what interrupts it.
#[inline(always)]
pub(crate) fn is_left_out(program: usize, object: u64) -> bool {
    // SAFETY: a helper without arguments, and this CPU's own map value.
    unsafe {
        let Some(state) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return false };
        let freeing = &raw mut (*state).freeing[program];
        if freeing.read_volatile() != encode_address(object) {
            // Nothing else adds to it, and this program does not interrupt itself.
            (*state).booked_instead[program] += 1;
            return true;
        }
        // The same object may be freed again.
        freeing.write_volatile(0);
    }
    false
}

/// A free of an object.
#[derive(Clone, Copy)]
pub(crate) struct Free {
    /// Its counter in [`Counters::freed`].
    pub(crate) program: usize,
    /// The object.
    pub(crate) object: u64,
    /// Its `struct kmem_cache` where the event names it, else 0.
    pub(crate) cache: u64,
    /// Whether objects that are not in the table are counted by their cache.
    pub(crate) count_unknown: bool,
    /// Return address of the code that frees, or a `FREED_*` value; 0 when not known.
    pub(crate) caller: u64,
}

/// Books a free.
#[inline(always)]
pub(crate) fn freed(free: Free) -> Option<()> {
    if free.object <= ZERO_SIZE_PTR {
        return None;
    }
    let control = control()?;
    if !sampled(control, free.object) {
        return None;
    }
    let key = encode_address(free.object);
    // SAFETY: `control` and the bucket are map values.
    let found = unsafe {
        let bucket = bucket(address_hash(free.object))?;
        table::take(bucket, &mut OverflowMap(control), key, config!(weakly_ordered) != 0)
    };
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(old) = found else {
        cold_path();
        if config!(filter_modules) != 0 || !free.count_unknown {
            return None;
        }
        return unknown_free(control, free, cpu);
    };
    account(old, free.program, cpu, free.caller)
}

/// Counts an object that was taken out of the table.
#[inline(always)]
pub(crate) fn account(old: Payload, program: usize, cpu: u32, caller: u64) -> Option<()> {
    if old.site == SITE_PENDING {
        return None;
    }
    let cell = counters(old.site & config!(site_mask), cpu)?;
    // SAFETY: a helper without arguments, and a map value. Several programs count lifetimes,
    // and one may interrupt the other, so that is atomic.
    unsafe {
        count_freed(cell, program, old.site);
        if old.time_ns & EXACT_TIME != 0 {
            cold_path();
            let class = lifetime_class(bpf_ktime_get_ns().wrapping_sub(old.time_ns));
            atomic::add((&raw mut (*cell).lifetimes).cast::<u64>().add(class), 1);
            if caller != 0 {
                note_free_caller(u64::from(old.site), caller);
            }
        }
    }
    None
}

/// Books the free of an object that was handed to `kfree_rcu`, and leaves a note in the table: the
/// same object may be seen to be freed again when the grace period is over, or may not.
#[inline(always)]
pub(crate) fn freed_soon(object: u64) -> Option<()> {
    if object <= ZERO_SIZE_PTR {
        return None;
    }
    let control = control()?;
    if !sampled(control, object) {
        return None;
    }
    let key = encode_address(object);
    // SAFETY: `control` and the bucket are map values, and the rest are helpers without arguments.
    unsafe {
        let cpu = bpf_get_smp_processor_id();
        let bucket = bucket(address_hash(object))?;
        let weakly_ordered = config!(weakly_ordered) != 0;
        match table::take(bucket, &mut OverflowMap(control), key, weakly_ordered) {
            Some(old) => {
                account(old, FREED_SHARED, cpu, FREED_BY_RCU);
            }
            None if config!(filter_modules) != 0 => return None,
            None => {
                let free = Free {
                    program: FREED_SHARED,
                    object,
                    cache: 0,
                    count_unknown: true,
                    caller: FREED_BY_RCU,
                };
                unknown_free(control, free, cpu);
            }
        }
        let note = Payload {
            time_ns: bpf_ktime_get_ns() & !EXACT_TIME,
            site: SITE_PENDING,
            stack: 0,
            tgid: 0,
            size: 0,
        };
        // Without a place for the note the second free counts as one of an older object.
        table::put(bucket, &mut OverflowMap(control), key, &note, weakly_ordered);
    }
    None
}

/// Counts the free of an object that the table does not have, by cache: most are older than the
/// trace, and the comparison with /proc/slabinfo needs them.
#[inline(always)]
fn unknown_free(control: *mut Control, free: Free, cpu: u32) -> Option<()> {
    let cache = if free.cache == 0 { pages::cache_of(free.object).unwrap_or(0) } else { free.cache };
    let origin = Origin {
        call_site: UNKNOWN_FREE_CALL_SITE,
        discriminator: encode_address(cache),
        object: free.object,
        cache,
        bytes: 0,
        gfp: 0,
        family: FAMILY_UNKNOWN_FREE,
        stack: 0,
    };
    let (site, _) = sites::find(control, &origin)?;
    let cell = counters(site, cpu)?;
    // SAFETY: a map value.
    unsafe { count_freed(cell, free.program, site) };
    None
}
