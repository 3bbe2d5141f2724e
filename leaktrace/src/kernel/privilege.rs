//! Whether this process may load tracing programs, and how it gives up what it may once they are loaded.

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};

/// Refuses, with what is missing, unless the process has `CAP_SYS_ADMIN`, or `CAP_BPF` and `CAP_PERFMON`.
///
/// # Errors
/// Names the missing capabilities.
pub fn check() -> Result<()> {
    use procfs::process::Process;
    let effective = Process::myself().and_then(|me| me.status()).map_or(u64::MAX, |status| status.capeff);
    if let Some(missing) = missing(effective) {
        bail!("may not trace the kernel: {missing} missing; run it with sudo");
    }
    Ok(())
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn missing(effective: u64) -> Option<&'static str> {
    let has = |capability: Capability| effective & capability.bitmask() != 0;
    match (has(Capability::CAP_SYS_ADMIN), has(Capability::CAP_BPF), has(Capability::CAP_PERFMON)) {
        (true, _, _) | (_, true, true) => None,
        (_, false, true) => Some("CAP_BPF is"),
        (_, true, false) => Some("CAP_PERFMON is"),
        _ => Some("CAP_BPF and CAP_PERFMON are"),
    }
}

/// What looking at the tables may take: before 5.19 the kernel lets only those call `bpf()` at all who may load
/// programs, where others may not (`kernel/bpf/syscall.c`, `unprivileged_bpf_disabled`).
const LOOKING: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN];

/// Gives up all capabilities of this thread, for good, and those of what it might execute. If `works` does not hold without
/// them, the one is kept with which it does; returned is which.
///
/// # Errors
/// When the kernel refuses, or it does not work with any one alone.
pub fn give_up(works: impl Fn() -> bool) -> Result<Option<Capability>> {
    let refused = "cannot give up capabilities";
    // SAFETY: this takes integers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error()).context(refused);
    }
    // Who may not drop this set has nothing executed, either: it is one more lock on the same door.
    let _ = caps::clear(None, CapSet::Bounding);
    // Some kernels and containers have none.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).context(refused)?;
    let permitted = caps::read(None, CapSet::Permitted).context(refused)?;
    caps::clear(None, CapSet::Effective).context(refused)?;
    let mut kept = None;
    if !works() {
        for capability in LOOKING.into_iter().filter(|capability| permitted.contains(capability)) {
            caps::set(None, CapSet::Effective, &CapsHashSet::from([capability])).context(refused)?;
            if works() {
                kept = Some(capability);
                break;
            }
        }
        if kept.is_none() {
            bail!("without most capabilities the kernel shows none of its tables: nothing can be given up");
        }
    }
    caps::set(None, CapSet::Permitted, &kept.into_iter().collect()).context(refused)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing(u64::MAX), None);
        let (bpf, perfmon) = (Capability::CAP_BPF.bitmask(), Capability::CAP_PERFMON.bitmask());
        assert_eq!(missing(Capability::CAP_SYS_ADMIN.bitmask()), None);
        assert_eq!(missing(bpf | perfmon), None);
        assert_eq!(missing(bpf), Some("CAP_PERFMON is"));
        assert_eq!(missing(perfmon), Some("CAP_BPF is"));
        assert_eq!(missing(0), Some("CAP_BPF and CAP_PERFMON are"));
    }

    #[test]
    fn only_what_is_needed_is_kept() {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
        if !has(Capability::CAP_BPF) {
            // Who has nothing has nothing to give up.
            assert_eq!(give_up(|| true).unwrap(), None);
            return;
        }
        // Capabilities are of threads: another test's has its own.
        let kept = std::thread::spawn(move || give_up(|| has(Capability::CAP_BPF)).unwrap()).join().unwrap();
        assert_eq!(kept, Some(Capability::CAP_BPF));
        let left = std::thread::spawn(|| {
            give_up(|| true).unwrap();
            caps::set(None, CapSet::Effective, &CapsHashSet::from([Capability::CAP_BPF])).is_err()
                && caps::read(None, CapSet::Permitted).unwrap().is_empty()
        });
        assert!(left.join().unwrap());
    }
}
