//! Stacks: which allocations get one, and where it is kept.

use core::hint::cold_path;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_stack, bpf_ktime_get_ns},
};
use leaktrace_common::{
    Control, CpuState, MAX_MODULES, MAX_STACK_DEPTH, MODULE_RANGES, ModuleRange, SITE_FRAMES, SITE_SUSPECT,
    STACK_MASK_SHIFT, STACK_PROBES, StackRecord,
};
use leaktrace_ebpf::{
    atomic,
    probe::{Slot, claim},
};

use crate::{
    config::config,
    maps::{MODULES, SCRATCH_WORDS, STACKS, scratch},
};

/// What the budget can save up: a burst of this much capturing needs no choice.
const BURST_NS: i64 = 20_000_000;

/// The first stacks of each site on each CPU are taken even into debt, so that no site is without one.
const FIRST_STACKS: u64 = 16;

/// `stack_share` of a whole CPU: the budget never runs out.
const WHOLE_CPU: u32 = 1 << 20;

/// A captured stack.
#[derive(Clone, Copy)]
pub(crate) struct Captured {
    /// Its record, 0 when there is none.
    pub(crate) id: u32,
    /// Whether it passes through a watched module: 0 or 1.
    pub(crate) watched: u32,
    /// Hash of its innermost frames.
    pub(crate) place: u64,
}

impl Captured {
    /// No stack.
    pub(crate) const NONE: Self = Self { id: 0, watched: 0, place: 0 };
}

/// The stack id of an allocation, 0 when it gets none.
#[inline(always)]
pub(crate) fn capture(
    ctx: &impl EbpfContext,
    program: u32,
    control: *mut Control,
    cpu: *mut CpuState,
    hash: u64,
    site_flags: u32,
    nth: u64,
) -> u32 {
    // SAFETY: the control block and this CPU's state are map values. A program that interrupts
    // this one may change the state between the accesses, which costs some nanoseconds of budget.
    unsafe {
        let first = nth <= FIRST_STACKS || site_flags & SITE_SUSPECT != 0;
        let mask = (&raw const (*control).stack_mask).read_volatile();
        if !first && (*cpu).plenty == 0 && hash & mask != 0 {
            return 0;
        }
        if (&raw const (*cpu).capturing).read_volatile() & 1_u64 << program != 0 {
            atomic::add(&raw mut (*control).stacks_failed, 1);
            return 0;
        }
        refill(cpu);
        let floor = if nth <= FIRST_STACKS { -BURST_NS } else { 0 };
        if (*cpu).tokens_ns <= floor && config!(stack_share) < WHOLE_CPU {
            (*cpu).plenty = 0;
            return 0;
        }
        cold_path();
        take(ctx, program, control, cpu).id
    }
}

/// The stack of a block of pages, of which the event does not say where it comes from: captured as long as the debt is
/// small. A block of twice the size is captured twice as often, and when there is more debt.
#[inline(always)]
pub(crate) fn capture_place(
    ctx: &impl EbpfContext,
    program: u32,
    control: *mut Control,
    cpu: *mut CpuState,
    hash: u64,
    order: u32,
) -> Captured {
    // SAFETY: as above.
    unsafe {
        refill(cpu);
        let mask = (&raw const (*control).page_mask).read_volatile();
        let mask = mask >> (order & 31) & (u64::MAX << STACK_MASK_SHIFT);
        let floor = -BURST_NS * i64::from(1 + if order > 3 { 3 } else { order });
        if (*cpu).plenty == 0
            && config!(stack_share) < WHOLE_CPU
            && (hash & mask != 0 || (*cpu).tokens_ns <= floor)
        {
            return Captured::NONE;
        }
    }
    capture_always(ctx, program, control, cpu)
}

/// The stack of an allocation whatever it costs; that is booked all the same.
#[inline(always)]
pub(crate) fn capture_always(
    ctx: &impl EbpfContext,
    program: u32,
    control: *mut Control,
    cpu: *mut CpuState,
) -> Captured {
    // SAFETY: as above.
    unsafe {
        if (&raw const (*cpu).capturing).read_volatile() & 1_u64 << program != 0 {
            atomic::add(&raw mut (*control).stacks_failed, 1);
            return Captured::NONE;
        }
        take(ctx, program, control, cpu)
    }
}

/// Captures and books what that took.
#[inline(always)]
unsafe fn take(ctx: &impl EbpfContext, program: u32, control: *mut Control, cpu: *mut CpuState) -> Captured {
    let busy = 1_u64 << program;
    // SAFETY: the caller's map values.
    unsafe {
        let begun = bpf_ktime_get_ns();
        atomic::or(&raw mut (*cpu).capturing, busy);
        let captured = read(ctx, program, control);
        atomic::and(&raw mut (*cpu).capturing, !busy);
        let spent = bpf_ktime_get_ns().wrapping_sub(begun);
        (*cpu).tokens_ns = (*cpu).tokens_ns.wrapping_sub(spent as i64);
        (*cpu).stacks += 1;
        (*cpu).stacks_ns += spent;
        if (*cpu).tokens_ns < BURST_NS / 2 && config!(stack_share) < WHOLE_CPU {
            (*cpu).plenty = 0;
        }
        captured
    }
}

/// Adds what the time since the last refill has earned. By the time of the last tick, because a
/// busy site that may have stacks asks with every allocation: most get none, and reading the clock
/// would cost them more than all the rest.
#[inline(always)]
unsafe fn refill(cpu: *mut CpuState) {
    // SAFETY: the caller's map value.
    unsafe {
        let now = (*cpu).tick_ns;
        // Before it, when a program that interrupted this one has been quicker.
        if now <= (*cpu).refilled_ns {
            return;
        }
        let mut elapsed = now.wrapping_sub((*cpu).refilled_ns);
        if elapsed > 1 << 33 {
            // The first time, or after 8 s without a capture: full either way, and no overflow below.
            elapsed = 1 << 33;
        }
        (*cpu).refilled_ns = now;
        let mut tokens = (*cpu).tokens_ns + ((elapsed * u64::from(config!(stack_share))) >> 20) as i64;
        if tokens > BURST_NS {
            tokens = BURST_NS;
        }
        // What was captured whatever it cost is not paid back for ever.
        if tokens < -BURST_NS * 8 {
            tokens = -BURST_NS * 8;
        }
        if tokens > BURST_NS / 8 * 7 {
            (*cpu).plenty = 1;
        }
        (*cpu).tokens_ns = tokens;
    }
}

#[inline(always)]
unsafe fn read(ctx: &impl EbpfContext, program: u32, control: *mut Control) -> Captured {
    if config!(stack_depth) == 0 {
        return Captured::NONE;
    }
    let Some(buffer) = scratch(program) else { return Captured::NONE };
    // SAFETY: the buffer is this CPU's and this program's, and has MAX_STACK_DEPTH words and more.
    unsafe {
        let bytes = bpf_get_stack(ctx.as_ptr(), buffer.cast(), config!(stack_depth) * 8, 0);
        if bytes <= 0 {
            atomic::add(&raw mut (*control).stacks_failed, 1);
            return Captured::NONE;
        }
        let frames = buffer.cast::<u64>();
        // Each loop that ends by the depth tells the verifier, at each of its ends, how deep the stack
        // then is, and it would follow the rest of the program for all of them. What comes from memory
        // it knows nothing of.
        let kept = frames.add(SCRATCH_WORDS - 1);
        kept.write_volatile(bytes as u64 / 8);
        let depth = kept.read_volatile();
        let mut hash = depth;
        let mut place = 0;
        for i in 0..MAX_STACK_DEPTH {
            if i as u64 >= depth {
                break;
            }
            hash = (hash ^ *frames.add(i)).wrapping_mul(leaktrace_common::GOLDEN);
            hash ^= hash >> 29;
            if i < SITE_FRAMES {
                place = hash;
            }
        }
        let watched =
            if config!(filter_modules) == 0 { 0 } else { passes(control, frames, kept.read_volatile()) };
        if config!(filter_modules) != 0 && watched == 0 {
            // Not kept: nothing will refer to it.
            return Captured { id: 0, watched, place };
        }
        Captured { id: intern(control, frames, kept.read_volatile(), hash | 1), watched, place }
    }
}

/// Whether a frame lies in a watched module: 0 or 1.
///
/// In arithmetic, not in jumps: the verifier would follow what comes after each of two thousand of them.
#[inline(always)]
unsafe fn passes(control: *mut Control, frames: *const u64, depth: u64) -> u32 {
    let Some(ranges) = MODULES.get_ptr(0) else { return 0 };
    let mut found = 0;
    // SAFETY: the caller's buffer and map values.
    unsafe {
        let low = (&raw const (*control).watch_low).read_volatile();
        let high = (&raw const (*control).watch_high).read_volatile();
        for i in 0..MAX_STACK_DEPTH {
            if i as u64 >= depth {
                break;
            }
            // A return address is behind its call, which may be a function's last instruction.
            let frame = (*frames.add(i)).wrapping_sub(1);
            if frame.wrapping_sub(low) >= high.wrapping_sub(low) {
                continue;
            }
            for range in 0..MAX_MODULES * MODULE_RANGES {
                let range = ranges.cast::<ModuleRange>().add(range);
                let start = (&raw const (*range).start).read_volatile();
                let size = (&raw const (*range).end).read_volatile().wrapping_sub(start);
                // The sign says whether the distance is smaller; a frame before the start is far away.
                let distance = frame.wrapping_sub(start);
                found |= !distance & distance.wrapping_sub(size);
            }
        }
    }
    (found >> 63) as u32
}

const _: () = assert!(SCRATCH_WORDS > MAX_STACK_DEPTH, "the last word is for the depth");

#[inline(always)]
unsafe fn intern(control: *mut Control, frames: *const u64, depth: u64, hash: u64) -> u32 {
    for probe in 0..STACK_PROBES {
        let mut index = ((hash >> 32) as u32).wrapping_add(probe) & config!(stack_index_mask);
        if index == 0 {
            // Id 0 says that there is no stack.
            index = STACK_PROBES + 1;
        }
        let Some(record) = STACKS.get_ptr_mut(index) else { return 0 };
        // SAFETY: a map value whose first word is the key; a claimed record is ours to fill in.
        match unsafe { claim(record.cast(), hash) } {
            Slot::Found => return index,
            Slot::Taken => {}
            Slot::Claimed => {
                // SAFETY: as above.
                unsafe { fill(record, frames, depth) };
                return index;
            }
        }
    }
    // SAFETY: a map value.
    unsafe { atomic::add(&raw mut (*control).stacks_full, 1) };
    0
}

#[inline(always)]
unsafe fn fill(record: *mut StackRecord, frames: *const u64, depth: u64) {
    // SAFETY: the caller has claimed the record, and both have MAX_STACK_DEPTH words.
    unsafe {
        for i in 0..MAX_STACK_DEPTH {
            if i as u64 >= depth {
                break;
            }
            (&raw mut (*record).frames).cast::<u64>().add(i).write_volatile(*frames.add(i));
        }
        atomic::publish(&raw mut (*record).depth, depth, config!(weakly_ordered) != 0);
    }
}
