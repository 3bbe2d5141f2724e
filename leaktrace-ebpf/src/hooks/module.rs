//! Watched modules that come and go: their code is known before it first runs.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes, generated::bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use leaktrace_common::{Control, MAX_MODULES, MODULE_EVENTS, MODULE_NAME_LEN, MODULE_RANGES, ModuleRange};
use leaktrace_ebpf::atomic;

use crate::{
    arguments::argument,
    config::config,
    maps::{MODULE_LOG, MODULES, WATCHED, control},
};

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Index of a `struct module` among those watched.
#[inline(always)]
fn watched(module: u64) -> Option<u32> {
    let mut name = [0; MODULE_NAME_LEN];
    let place = module + u64::from(config!(module_name));
    // SAFETY: the helper checks the address, and the name is ours.
    unsafe {
        bpf_probe_read_kernel_str_bytes(place as *const u8, &mut name).ok()?;
        WATCHED.get_ptr(&name).map(|index| *index)
    }
}

/// A range of code as `struct module` has it: base and size (a u32).
#[inline(always)]
fn range(module: u64, base: u32, size: u32) -> ModuleRange {
    let start = read::<u64>(module + u64::from(base)).unwrap_or(0);
    let size = read::<u32>(module + u64::from(size)).unwrap_or(0);
    if start == 0 || size == 0 {
        ModuleRange { start: 0, end: 0 }
    } else {
        ModuleRange { start, end: start.wrapping_add(u64::from(size)) }
    }
}

/// Notes the code of a watched module, or that it is going.
#[inline(always)]
fn changed(module: u64, loaded: bool) -> Option<()> {
    let control = control()?;
    // Below MAX_MODULES, a power of two: the mask is for the verifier.
    let index = watched(module)? & (MAX_MODULES as u32 - 1);
    let text = range(module, config!(module_text), config!(module_text_size));
    let init = range(module, config!(module_init), config!(module_init_size));
    // SAFETY: map values. The kernel runs one of these at a time for one module.
    unsafe {
        let number = atomic::fetch_add(&raw mut (*control).module_events, 1);
        let event = MODULE_LOG.get_ptr_mut(number as u32 % MODULE_EVENTS)?;
        (*event).module = index;
        (*event).loaded = u32::from(loaded);
        (*event).ranges[0] = text;
        (*event).ranges[1] = init;
        let first = MODULES.get_ptr_mut(0)?.cast::<ModuleRange>().add(index as usize * MODULE_RANGES);
        let second = first.add(1);
        if loaded {
            widen(control, text);
            widen(control, init);
            *first = text;
            *second = init;
            atomic::add(&raw mut (*control).watched, 1);
        } else {
            *first = ModuleRange { start: 0, end: 0 };
            *second = ModuleRange { start: 0, end: 0 };
            atomic::add(&raw mut (*control).watched, u64::MAX);
        }
        (*event).time_ns = bpf_ktime_get_ns();
        atomic::publish(&raw mut (*event).number, number + 1, config!(weakly_ordered) != 0);
    }
    None
}

/// Makes the bounds that are looked at first include a range.
#[inline(always)]
unsafe fn widen(control: *mut Control, range: ModuleRange) {
    if range.end == 0 {
        return;
    }
    // SAFETY: the caller's map value.
    unsafe {
        if (*control).watch_high == 0 || range.start < (*control).watch_low {
            (*control).watch_low = range.start;
        }
        if range.end > (*control).watch_high {
            (*control).watch_high = range.end;
        }
    }
}

/// The text of an initialisation is given back when that has ended, and may become another module's.
#[inline(always)]
fn forget_reused(module: u64) -> Option<()> {
    let text = range(module, config!(module_text), config!(module_text_size));
    let ranges = MODULES.get_ptr_mut(0)?.cast::<ModuleRange>();
    for slot in 0..MAX_MODULES {
        // SAFETY: a map value that has as many ranges.
        unsafe {
            let init = ranges.add(slot * MODULE_RANGES + 1);
            if (*init).start < text.end && text.start < (*init).end {
                *init = ModuleRange { start: 0, end: 0 };
            }
        }
    }
    None
}

/// A module is about to be initialised.
#[raw_tracepoint(tracepoint = "module_load")]
pub(crate) fn module_load(ctx: RawTracePointContext) -> u32 {
    forget_reused(argument(&ctx, 0));
    changed(argument(&ctx, 0), true);
    0
}

/// A module has ended, and its code is about to go.
#[raw_tracepoint(tracepoint = "module_free")]
pub(crate) fn module_free(ctx: RawTracePointContext) -> u32 {
    changed(argument(&ctx, 0), false);
    0
}
