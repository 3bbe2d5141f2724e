//! eBPF programs seen from outside: what each cost, and empty ones to compare with.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;

/// Time and runs of one kind of program.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) ns: u64,
    pub(crate) runs: u64,
}

impl Cost {
    pub(crate) fn each(self) -> Option<f64> {
        (self.runs > 0).then(|| self.ns as f64 / self.runs as f64)
    }
}

/// What all programs of a subject have cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) allocations: Cost,
    pub(crate) frees: Cost,
}

impl Costs {
    /// What was added since an earlier look.
    pub(crate) fn since(self, before: Self) -> Self {
        let cost = |now: Cost, then: Cost| Cost { ns: now.ns - then.ns, runs: now.runs - then.runs };
        Self {
            allocations: cost(self.allocations, before.allocations),
            frees: cost(self.frees, before.frees),
        }
    }
}

/// Ids and names of all programs now loaded.
pub(crate) fn loaded() -> Result<HashMap<u32, String>> {
    loaded_programs()
        .map(|program| {
            let program = program.context("cannot list the eBPF programs")?;
            Ok((program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        })
        .collect()
}

/// What the programs that were not there before have cost, told apart by their names.
pub(crate) fn costs(before: &HashMap<u32, String>) -> Result<Costs> {
    let mut costs = Costs::default();
    for program in loaded_programs() {
        let program = program.context("cannot list the eBPF programs")?;
        let name = program.name_as_str().unwrap_or_default();
        let cost = match name {
            _ if before.contains_key(&program.id()) => continue,
            name if name.contains("free") => &mut costs.frees,
            // The kernel cuts names off after 15 bytes.
            name if name.contains("allo") => &mut costs.allocations,
            _ => continue,
        };
        cost.ns += program.run_time().as_nanos() as u64;
        cost.runs += program.run_count();
    }
    Ok(costs)
}

/// `BPF_PROG_LOAD`, `BPF_RAW_TRACEPOINT_OPEN` and `BPF_PROG_TYPE_RAW_TRACEPOINT` of `linux/bpf.h`.
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const TYPE_RAW_TRACEPOINT: u32 = 17;

/// The part of `union bpf_attr` that loading takes.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct OpenAttr {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// A program of two instructions, `return 0`, on each tracepoint; they stay until dropped.
pub(crate) fn attach_empty(tracepoints: &[&str]) -> Result<Vec<OwnedFd>> {
    let pairs: Vec<_> = tracepoints.iter().map(|tracepoint| attach_one(tracepoint)).collect::<Result<_>>()?;
    Ok(pairs.into_iter().flatten().collect())
}

fn attach_one(tracepoint: &str) -> Result<[OwnedFd; 2]> {
    // mov r0, 0; exit
    let code: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    let mut attr = LoadAttr {
        prog_type: TYPE_RAW_TRACEPOINT,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttr::default()
    };
    // The end of the tracepoint's name tells allocations from frees.
    let name = tracepoint.as_bytes();
    let tail = &name[name.len().saturating_sub(15)..];
    attr.prog_name[..tail.len()].copy_from_slice(tail);
    // SAFETY: the attribute's pointers are to live values, and its size is given.
    let program = unsafe { bpf(PROG_LOAD, &raw mut attr) }.context("cannot load an empty program")?;
    let name = CString::new(tracepoint)?;
    let prog_fd = std::os::fd::AsRawFd::as_raw_fd(&program) as u32;
    let mut attr = OpenAttr { name: name.as_ptr() as u64, prog_fd, padding: 0 };
    // SAFETY: as above.
    let link = unsafe { bpf(RAW_TRACEPOINT_OPEN, &raw mut attr) }
        .with_context(|| format!("cannot attach an empty program to {tracepoint}"))?;
    Ok([program, link])
}

unsafe fn bpf<T>(command: libc::c_int, attr: *mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; a result that is not negative is a new file descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}
