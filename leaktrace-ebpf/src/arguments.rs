//! Arguments of tracepoints and functions.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_func_arg, bpf_get_func_ret},
    programs::RawTracePointContext,
};

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

/// A tracepoint's argument by its index.
#[inline(always)]
pub(crate) fn argument(ctx: &RawTracePointContext, index: u32) -> u64 {
    let args = ctx.as_ptr();
    match index {
        0 => argument_at!(args, "0"),
        1 => argument_at!(args, "8"),
        2 => argument_at!(args, "16"),
        3 => argument_at!(args, "24"),
        4 => argument_at!(args, "32"),
        5 => argument_at!(args, "40"),
        6 => argument_at!(args, "48"),
        7 => argument_at!(args, "56"),
        8 => argument_at!(args, "64"),
        9 => argument_at!(args, "72"),
        _ => 0,
    }
}

/// An argument of the function that an fentry or fexit program watches. By the helper, because the
/// verifier of 6.1 refuses to load pointers to what is no struct.
#[inline(always)]
pub(crate) fn function_argument(ctx: *mut core::ffi::c_void, index: u32) -> u64 {
    let mut value = 0;
    // SAFETY: the helper checks the index, and the value is ours.
    unsafe { bpf_get_func_arg(ctx, index, &raw mut value) };
    value
}

/// What the function that an fexit program watches returns.
#[inline(always)]
pub(crate) fn returned(ctx: *mut core::ffi::c_void) -> u64 {
    let mut value = 0;
    // SAFETY: the value is ours.
    unsafe { bpf_get_func_ret(ctx, &raw mut value) };
    value
}
