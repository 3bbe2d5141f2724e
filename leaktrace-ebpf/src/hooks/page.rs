//! Pages straight from the page allocator, on raw tracepoints (`include/trace/events/kmem.h`).
//!
//! An object is a block, and its address that of the block's first `struct page`. User memory and
//! page cache can be moved, say their gfp flags, and are passed over; what else belongs to others
//! (slab, page tables, stacks) user space tells by the stack and by /proc/kpageflags.

use core::hint::cold_path;

use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::raw_tracepoint, programs::RawTracePointContext};
use leaktrace_common::{Control, FAMILY_PAGE, FRAGMENT, Payload, address_hash, encode_address};
use leaktrace_ebpf::{
    atomic,
    blocks::{MAX_ORDER, order_of, remainder},
    probe::hash_pair,
    table,
};

use super::capturing;
use crate::{
    arguments::argument,
    book::{account, allocated_at, nothing_to_watch, sampled},
    config::config,
    maps::{CPUS, bucket, control},
    overflow::OverflowMap,
    pages,
    sites::Origin,
    stacks,
};

/// `mm_page_alloc(page, order, gfp_flags, migratetype)`.
#[raw_tracepoint(tracepoint = "mm_page_alloc")]
pub(crate) fn mm_page_alloc(ctx: RawTracePointContext) -> u32 {
    allocated(&ctx);
    0
}

#[inline(always)]
fn allocated(ctx: &RawTracePointContext) -> Option<()> {
    if argument(ctx, 2) as u32 & config!(gfp_movable) != 0 {
        return None;
    }
    let control = control()?;
    if nothing_to_watch(control) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let state = CPUS.get_ptr_mut(cpu)?;
    // Before anything else is decided: the verifier goes through these loops once for each way that leads here.
    let stack = if config!(filter_modules) == 0 {
        let (hash, order) = (address_hash(argument(ctx, 0)), argument(ctx, 1) as u32);
        stacks::capture_place(ctx, capturing::PAGE, control, state, hash, order)
    } else {
        stacks::capture_always(ctx, capturing::PAGE, control, state)
    };
    if config!(filter_modules) != 0 && stack.watched == 0 {
        return None;
    }
    let (page, order, gfp) = (argument(ctx, 0), argument(ctx, 1) as u32 & 31, argument(ctx, 2) as u32);
    if page == 0 {
        // None was left.
        return None;
    }
    // SAFETY: map values.
    unsafe {
        if (&raw const (*control).vmemmap).read_volatile() == 0 {
            cold_path();
            (&raw mut (*control).vmemmap).write_volatile(pages::first_page());
        }
        if order != 0 && gfp & config!(gfp_compound) == 0 {
            let mask = 1_u64 << order;
            if (&raw const (*control).splittable).read_volatile() & mask == 0 {
                cold_path();
                atomic::or(&raw mut (*control).splittable, mask);
            }
        }
    }
    let bytes = (1_u32 << config!(page_shift)) << order;
    let origin = Origin {
        call_site: 0,
        discriminator: hash_pair(stack.place, u64::from(order)),
        object: page,
        cache: 0,
        bytes,
        gfp,
        family: FAMILY_PAGE,
        stack: stack.id,
    };
    allocated_at(control, state, cpu, &origin, bytes)
}

/// `mm_page_free(page, order)`: every free of a block, or of a part of one, also those in batches.
#[raw_tracepoint(tracepoint = "mm_page_free")]
pub(crate) fn mm_page_free(ctx: RawTracePointContext) -> u32 {
    freed(argument(&ctx, 0), argument(&ctx, 1) as u32 & 31);
    0
}

#[inline(always)]
fn freed(page: u64, order: u32) -> Option<()> {
    let control = control()?;
    if !sampled(control, page) {
        return None;
    }
    let weakly_ordered = config!(weakly_ordered) != 0;
    // SAFETY: map values.
    let found = unsafe {
        let bucket = bucket(address_hash(page))?;
        table::take(bucket, &mut OverflowMap(control), encode_address(page), weakly_ordered)
    };
    let Some(block) = found else {
        // SAFETY: a map value.
        if unsafe { (&raw const (*control).splittable).read_volatile() } != 0 {
            part_freed(control, page, order);
        }
        return None;
    };
    let whole = order_of((block.size & !FRAGMENT) >> config!(page_shift));
    if whole > order {
        cold_path();
        keep_rest(control, page, &block, whole, order, 0);
        return None;
    }
    if block.size & FRAGMENT == 0 {
        // SAFETY: a helper without arguments.
        account(block, 0, unsafe { bpf_get_smp_processor_id() }, 0);
    }
    None
}

/// Looks for the block that a page is a part of, and takes the page out of it.
#[inline(always)]
fn part_freed(control: *mut Control, page: u64, order: u32) -> Option<()> {
    let page_struct = u64::from(config!(page_size_of));
    // SAFETY: a map value.
    let (first, splittable) = unsafe { ((*control).vmemmap, (*control).splittable) };
    if page_struct == 0 || first == 0 || page < first {
        return None;
    }
    let index = (page - first) / page_struct;
    for whole in 1..=MAX_ORDER {
        let at = index & ((1 << whole) - 1);
        if splittable >> whole & 1 == 0 || at == 0 {
            continue;
        }
        let head = page - at * page_struct;
        if covers(head, at) != 0 {
            free_part(head, at, order);
            return None;
        }
    }
    None
}

// Global functions of scalars only: the verifier goes through each by itself, and not again for
// each place that it is called from, in loops.

/// Whether the block that begins at a page is tracked and has another page `at` pages behind: 0 or 1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn covers(head: u64, at: u64) -> u32 {
    let Some(control) = control() else { return 0 };
    let Some(bucket) = bucket(address_hash(head)) else { return 0 };
    // SAFETY: map values.
    let size = unsafe { table::size(bucket, &OverflowMap(control), encode_address(head)) };
    // A part of a block may be the block of a part: then its size is its own.
    u32::from(u64::from(size & !FRAGMENT) >> config!(page_shift) > at)
}

/// Takes `2^order` pages out of the block that begins at a page, `at` pages behind it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn free_part(head: u64, at: u64, order: u32) -> u32 {
    let Some(control) = control() else { return 0 };
    let Some(bucket) = bucket(address_hash(head)) else { return 0 };
    let key = encode_address(head);
    // SAFETY: map values. Another CPU may be freeing other pages of this block: then only one of the two finds it.
    let taken = unsafe { table::take(bucket, &mut OverflowMap(control), key, config!(weakly_ordered) != 0) };
    let Some(block) = taken else { return 0 };
    let size = order_of((block.size & !FRAGMENT) >> config!(page_shift));
    keep_rest(control, head, &block, size, order, at);
    1
}

/// Puts a part of a block into the table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep_part(address: u64, time_ns: u64, site_and_stack: u64, tgid_and_size: u64) -> u32 {
    let Some(control) = control() else { return 1 };
    let payload = Payload {
        time_ns,
        site: (site_and_stack >> 32) as u32,
        stack: site_and_stack as u32,
        tgid: (tgid_and_size >> 32) as u32,
        size: tgid_and_size as u32,
    };
    let Some(bucket) = bucket(address_hash(address)) else { return 1 };
    // SAFETY: map values; the parts were in no table, because their block was, and it has been taken out.
    unsafe {
        let key = encode_address(address);
        let weakly_ordered = config!(weakly_ordered) != 0;
        let stored = table::put(bucket, &mut OverflowMap(control), key, &payload, weakly_ordered);
        if !stored.tracked {
            atomic::add(&raw mut (*control).overflow_lost, 1);
        }
        let order = order_of((payload.size & !FRAGMENT) >> config!(page_shift));
        atomic::or(&raw mut (*control).splittable, 1 << (order & 31));
    }
    0
}

/// Puts back what is left of a block when a part of it is freed.
#[inline(always)]
fn keep_rest(control: *mut Control, head: u64, block: &Payload, whole: u32, part: u32, at: u64) {
    // SAFETY: the control block is a map value, the helper has no arguments.
    unsafe {
        if (*control).sample_shift != 0 {
            // The parts' addresses are not those by which the block was chosen: it counts as freed.
            if block.size & FRAGMENT == 0 {
                account(*block, 0, bpf_get_smp_processor_id(), 0);
            }
            return;
        }
    }
    let mut mark = block.size & FRAGMENT;
    remainder(whole, part, at, |first, order| {
        let address = head + first * u64::from(config!(page_size_of));
        let size = (1_u32 << config!(page_shift)) << (order & 31) | mark;
        mark = FRAGMENT;
        keep_part(
            address,
            block.time_ns,
            u64::from(block.site) << 32 | u64::from(block.stack),
            u64::from(block.tgid) << 32 | u64::from(size),
        );
    });
}
