//! Whether this process may load tracing programs.

use anyhow::{Result, bail};

/// Bits of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

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

fn missing(effective: u64) -> Option<&'static str> {
    let has = |capability: u32| effective >> capability & 1 != 0;
    match (has(CAP_SYS_ADMIN), has(CAP_BPF), has(CAP_PERFMON)) {
        (true, _, _) | (_, true, true) => None,
        (_, false, true) => Some("CAP_BPF is"),
        (_, true, false) => Some("CAP_PERFMON is"),
        _ => Some("CAP_BPF and CAP_PERFMON are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing(u64::MAX), None);
        assert_eq!(missing(1 << CAP_SYS_ADMIN), None);
        assert_eq!(missing(1 << CAP_BPF | 1 << CAP_PERFMON), None);
        assert_eq!(missing(1 << CAP_BPF), Some("CAP_PERFMON is"));
        assert_eq!(missing(1 << CAP_PERFMON), Some("CAP_BPF is"));
        assert_eq!(missing(0), Some("CAP_BPF and CAP_PERFMON are"));
    }
}
