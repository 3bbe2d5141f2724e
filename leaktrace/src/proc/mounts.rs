//! /proc/self/mountinfo: file systems that live in memory, and where cgroups are.

use std::{
    collections::HashSet,
    ffi::{CString, OsStr, OsString},
    mem::MaybeUninit,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Bytes that are read at most.
const LIMIT: u64 = 16 << 20;

/// A mounted file system (`fs/proc_namespace.c`, `show_mountinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device numbers, as text: what is mounted twice has them twice.
    pub device: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its type.
    pub kind: String,
    /// Options of the file system.
    pub options: String,
}

/// Memory that a file system of this mount namespace takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMemory {
    /// Where it is mounted.
    pub path: PathBuf,
    /// `tmpfs`, `devtmpfs` ...
    pub kind: String,
    /// kB in use.
    pub used_kb: u64,
    /// kB that it may have; 0 where nothing limits it.
    pub limit_kb: u64,
}

/// Mounts of this mount namespace.
///
/// # Errors
/// When the file cannot be read.
pub fn read(root: &Path) -> Result<Vec<Mount>> {
    let path = root.join("proc/self/mountinfo");
    let bytes =
        super::read_bounded(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /where rw,noatime shared:1 - tmpfs source rw,size=10k`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let device = words.nth(2)?;
    let path = words.nth(1)?;
    let mut words = words.skip_while(|word| *word != b"-");
    let kind = words.nth(1)?;
    let options = words.nth(1).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Mount {
        device: text(device),
        path: unescape(path).into(),
        kind: text(kind),
        options: text(options),
    })
}

/// The kernel writes blanks, tabs, newlines and backslashes as octal numbers.
fn unescape(path: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        let octal =
            behind.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = octal {
            out.push(digits.iter().fold(0_u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = &behind[3..];
        } else {
            out.push(byte);
            rest = behind;
        }
    }
    OsString::from_vec(out)
}

/// File systems in memory, each once, and how full they are.
pub fn in_memory(root: &Path, mounts: &[Mount]) -> Vec<InMemory> {
    let mut seen = HashSet::new();
    mounts
        .iter()
        .filter(|mount| matches!(mount.kind.as_str(), "tmpfs" | "devtmpfs") && seen.insert(&mount.device))
        .filter_map(|mount| {
            let below = mount.path.strip_prefix("/").unwrap_or(&mount.path);
            let (total_kb, used_kb) = usage_kb(root.join(below).as_os_str())?;
            Some(InMemory { path: mount.path.clone(), kind: mount.kind.clone(), used_kb, limit_kb: total_kb })
        })
        .collect()
}

/// Blocks of a file system and those in use, in kB.
fn usage_kb(path: &OsStr) -> Option<(u64, u64)> {
    let path = CString::new(path.as_bytes()).ok()?;
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a terminated string, and room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: zeroed is valid, and the call has filled it.
    let stat = unsafe { stat.assume_init() };
    let kb = |blocks: u64| blocks.saturating_mul(stat.f_frsize) / 1_024;
    Some((kb(stat.f_blocks), kb(stat.f_blocks.saturating_sub(stat.f_bfree))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mounts_are_read() {
        let mount =
            parse(b"36 35 0:29 / /a\\040b\\134\xff rw,noatime shared:1 master:2 - tmpfs src rw,size=10k")
                .unwrap();
        assert_eq!(mount.path.as_os_str().as_bytes(), b"/a b\\\xff");
        assert_eq!(
            (mount.device.as_str(), mount.kind.as_str(), mount.options.as_str()),
            ("0:29", "tmpfs", "rw,size=10k")
        );
        assert_eq!(parse(b"36 35 0:29 / /x rw"), None);
    }

    #[test]
    fn files_in_memory_are_counted() {
        let root = Path::new("/");
        let mounts = read(root).unwrap();
        assert!(mounts.iter().any(|mount| mount.path == Path::new("/proc") && mount.kind == "proc"));
        for mount in in_memory(root, &mounts) {
            assert!(mount.limit_kb == 0 || mount.used_kb <= mount.limit_kb, "{mount:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), path in "[\\\\0-9a-z]{0,30}") {
            let _ = (parse(&bytes), unescape(path.as_bytes()));
        }
    }
}
