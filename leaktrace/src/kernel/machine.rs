//! The machine and its kernel: release, processors, memory.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, Result, bail};
use procfs::{Current as _, Meminfo};

use super::privilege::is_root;

/// First kernel with what the programs need: BPF atomics (5.12) and everything else before.
/// 5.15 is the oldest that is supported, because it is the oldest long-term one with them.
const OLDEST: (u32, u32) = (5, 15);

/// What `uname` says, and what there is of processors and memory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Release of the kernel, like `6.12.95`.
    pub release: String,
    /// Architecture, like `x86_64`.
    pub architecture: String,
    /// Highest possible CPU number plus one.
    pub possible_cpus: u32,
    /// CPUs that are online.
    pub online_cpus: u32,
    /// Memory nodes that are online.
    pub nodes: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Memory available in bytes.
    pub available: u64,
}

impl Machine {
    /// Asks the running kernel.
    ///
    /// # Errors
    /// When it does not say how many CPUs or how much memory there are.
    pub fn current() -> Result<Self> {
        let meminfo = Meminfo::current().context("cannot read /proc/meminfo")?;
        let (release, architecture) = uname();
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")
            .context("cannot read /sys/devices/system/cpu/possible (is sysfs mounted?)")?;
        let possible_cpus =
            last_cpu(&possible).context("cannot understand /sys/devices/system/cpu/possible")? + 1;
        // Without NUMA there is no such file, and one node.
        let nodes = std::fs::read_to_string("/sys/devices/system/node/online").ok();
        // SAFETY: sysconf has no preconditions.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        Ok(Self {
            release,
            architecture,
            possible_cpus,
            online_cpus: u32::try_from(online).unwrap_or(1).max(1),
            nodes: nodes.and_then(|list| last_cpu(&list)).map_or(1, |last| last + 1),
            memory: meminfo.mem_total,
            available: meminfo.mem_available.unwrap_or(meminfo.mem_free),
        })
    }

    /// Refuses kernels that are too old.
    ///
    /// # Errors
    /// Says which kernel this is, and the oldest that would do.
    pub fn check_release(&self) -> Result<()> {
        check_release(&self.release)
    }
}

/// Size of a page in bytes.
pub fn page_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4_096)
}

fn check_release(release: &str) -> Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        // An unusual name is no reason to refuse: loading the programs will tell.
        return Ok(());
    };
    if (major, minor) < OLDEST {
        bail!("kernel {release} is too old: leaktrace needs {}.{} or later", OLDEST.0, OLDEST.1);
    }
    Ok(())
}

fn last_cpu(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

fn uname() -> (String, String) {
    // SAFETY: all-zero is a valid utsname, and uname fills it in with terminated strings.
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut names);
        let text =
            |field: &[libc::c_char]| std::ffi::CStr::from_ptr(field.as_ptr()).to_string_lossy().into_owned();
        (text(&names.release), text(&names.machine))
    }
}

/// What tells this boot from others (`drivers/char/random.c`).
pub fn boot_id(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().to_owned())
}

/// Whether root may drop caches here (`fs/drop_caches.c`): in a container `/proc/sys` is often read-only. Opening the file
/// does nothing; to an ordinary user it is enough that it is there.
pub fn may_drop_caches(root: &Path) -> bool {
    match std::fs::OpenOptions::new().write(true).open(root.join("proc/sys/vm/drop_caches")) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied && !is_root(),
    }
}

/// Whether the kernel is locked down against reading its memory (`security/lockdown`).
pub fn lockdown(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("sys/kernel/security/lockdown")).ok()?;
    let level = text.split('[').nth(1)?.split(']').next()?;
    (level != "none").then(|| level.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        for good in ["5.15.0", "6.1.0-50-cloud-amd64", "7.2.1+", "strange"] {
            check_release(good).unwrap();
        }
        let error = check_release("5.10.0-30-amd64").unwrap_err().to_string();
        assert_eq!(error, "kernel 5.10.0-30-amd64 is too old: leaktrace needs 5.15 or later");
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(last_cpu("0-1\n"), Some(1));
        assert_eq!(last_cpu("0"), Some(0));
        assert_eq!(last_cpu("0-3,8-11\n"), Some(11));
        assert_eq!(last_cpu(""), None);
    }

    #[test]
    fn lockdown_levels() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(lockdown(root.path()), None);
        std::fs::create_dir_all(root.path().join("sys/kernel/security")).unwrap();
        let file = root.path().join("sys/kernel/security/lockdown");
        std::fs::write(&file, "[none] integrity confidentiality\n").unwrap();
        assert_eq!(lockdown(root.path()), None);
        std::fs::write(&file, "none integrity [confidentiality]\n").unwrap();
        assert_eq!(lockdown(root.path()).as_deref(), Some("confidentiality"));
    }
}
