//! Reads of kernel memory for user space, which has no other way to them on every kernel.
//!
//! Attached to nothing: user space runs it, and puts into `PEEKS` what is to be read.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel, macros::raw_tracepoint, programs::RawTracePointContext,
};
use leaktrace_common::{MAX_PEEKS, PEEK_WORDS, decode_address};

use crate::{
    arguments::argument,
    maps::{PEEKS, control},
    pages,
};

/// Does the first so many reads as its argument says.
#[raw_tracepoint(tracepoint = "peek")]
pub(crate) fn peek(ctx: RawTracePointContext) -> u32 {
    let count = argument(&ctx, 0);
    if let Some(control) = control() {
        // SAFETY: a map value.
        unsafe {
            (&raw mut (*control).page_offset).write_volatile(pages::direct_map());
            (&raw mut (*control).vmemmap).write_volatile(pages::first_page());
        }
    }
    for index in 0..MAX_PEEKS {
        if u64::from(index) >= count {
            break;
        }
        let Some(peek) = PEEKS.get_ptr_mut(index) else { break };
        // SAFETY: a map value; the helper checks the address, and reads nothing that is not there.
        unsafe {
            let from = decode_address((&raw const (*peek).address).read_volatile());
            let result = bpf_probe_read_kernel(
                (&raw mut (*peek).words).cast(),
                (PEEK_WORDS * 8) as u32,
                from as *const core::ffi::c_void,
            );
            (&raw mut (*peek).read).write_volatile(u64::from(result == 0));
        }
    }
    0
}
