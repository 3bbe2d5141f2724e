//! Names of the tasks that allocate.

use core::hint::cold_path;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use leaktrace_common::CpuState;

use crate::maps::TASKS;

/// Returns the current process, and notes its name when the CPU has changed to another task.
#[inline(always)]
pub(crate) fn current(cpu: *mut CpuState) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tgid) = (pid_tgid & 0xffff_ffff, (pid_tgid >> 32) as u32);
    // SAFETY: this CPU's own map value.
    unsafe {
        if (*cpu).last_pid != pid {
            cold_path();
            (*cpu).last_pid = pid;
            note_name(pid as u32, tgid);
        }
    }
    tgid
}

/// A process goes by the name of its first thread; another thread's is taken only until that is known.
#[inline(always)]
fn note_name(pid: u32, tgid: u32) {
    let Ok(name) = bpf_get_current_comm() else { return };
    let flags = if pid == tgid { aya_ebpf::bindings::BPF_ANY } else { aya_ebpf::bindings::BPF_NOEXIST };
    // A failure leaves an older name, or none: user space then asks /proc.
    let _ = TASKS.insert(&tgid, &name, u64::from(flags));
}
