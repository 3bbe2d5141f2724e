//! Objects handed to `kfree_rcu` and `kvfree_rcu`, which fire no tracepoint when they are freed.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

use crate::{arguments::function_argument, book::freed_soon, config::config};

/// Finds the object among the arguments of `kvfree_call_rcu` (`mm/slab_common.c`, before 6.14
/// `kernel/rcu/tree.c`): the second one, or before 6.4 the distance of the head from it.
#[inline(always)]
fn booked(head: u64, second: u64) {
    let object = if config!(rcu_offset) != 0 && head != 0 { head.wrapping_sub(second) } else { second };
    freed_soon(object);
}

/// By the ftrace trampoline.
#[fentry(function = "kvfree_call_rcu")]
pub(crate) fn fentry_kvfree_call_rcu(ctx: FEntryContext) -> u32 {
    booked(function_argument(ctx.as_ptr(), 0), function_argument(ctx.as_ptr(), 1));
    0
}

/// By a breakpoint or jump.
#[kprobe(function = "kvfree_call_rcu")]
pub(crate) fn kprobe_kvfree_call_rcu(ctx: ProbeContext) -> u32 {
    booked(ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    0
}
