//! Who frees a site's objects, on the sample whose lifetimes are measured.

use aya_ebpf::bindings::BPF_NOEXIST;
use leaktrace_ebpf::atomic;

use crate::maps::{FREE_CALLERS, control};

/// Counts a free of a site's object by its caller.
///
/// A function that the verifier sees once: it is called from programs that it goes through many times.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn note_free_caller(site: u64, caller: u64) -> u64 {
    let key = [site, caller];
    if let Some(count) = FREE_CALLERS.get_ptr_mut(&key) {
        // SAFETY: a map value.
        unsafe { atomic::add(count, 1) };
        return 0;
    }
    // Another CPU may be quicker, which loses one of two, or the table may be full.
    if FREE_CALLERS.insert(&key, &1, u64::from(BPF_NOEXIST)).is_err()
        && FREE_CALLERS.get_ptr(&key).is_none()
        && let Some(control) = control()
    {
        // SAFETY: a map value.
        unsafe { atomic::add(&raw mut (*control).callers_full, 1) };
    }
    0
}
