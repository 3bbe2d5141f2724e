//! Memory by control group, of version 1 and 2.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{fields::Fields, mounts::Mount};

/// Groups that are read at most, and how deep.
const LIMIT: usize = 5_000;
const DEPTH: usize = 12;
/// Bytes of each file.
const FILE: u64 = 1 << 16;
/// From this on a limit is none (version 1 says so by a number near 2^63).
const NO_LIMIT: u64 = 1 << 60;

/// Memory of a group with all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Path from the root of the hierarchy: `/` for the root itself.
    pub path: String,
    /// kB charged.
    pub used_kb: u64,
    /// kB that it may have.
    pub limit_kb: Option<u64>,
    /// Anonymous memory in kB.
    pub anon_kb: u64,
    /// Page cache in kB, shared memory included.
    pub file_kb: u64,
    /// tmpfs and shared memory in kB.
    pub shmem_kb: u64,
    /// Kernel memory in kB.
    pub kernel_kb: u64,
    /// Times that something in it was killed for want of memory.
    pub oom_kills: u64,
}

/// The groups, and which version they are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// 1 or 2; 0 without groups.
    pub version: u8,
    /// The groups, each after its parent.
    pub groups: Vec<Group>,
    /// Whether there are more than were read.
    pub cut: bool,
}

/// Reads the hierarchy that has memory.
pub fn read(root: &Path, mounts: &[Mount]) -> Groups {
    let at = |mount: &Mount| root.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
    let first = mounts
        .iter()
        .find(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|option| option == "memory"));
    let second = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let (version, top) = match (first, second) {
        (Some(mount), _) => (1, at(mount)),
        (None, Some(mount)) => (2, at(mount)),
        (None, None) => return Groups::default(),
    };
    let mut found = Groups { version, ..Groups::default() };
    let mut waiting = vec![(top.clone(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        if found.groups.len() >= LIMIT {
            found.cut = true;
            break;
        }
        if let Some(group) = group(&directory, &top, version) {
            found.groups.push(group);
        }
        if depth < DEPTH {
            waiting.extend(below(&directory).into_iter().map(|directory| (directory, depth + 1)));
        } else {
            found.cut = true;
        }
    }
    found
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn group(directory: &Path, top: &Path, version: u8) -> Option<Group> {
    let number = |file: &str| -> Option<u64> {
        let bytes = super::read_bounded(&directory.join(file), FILE).ok()?;
        String::from_utf8_lossy(&bytes).trim().parse().ok()
    };
    let fields = |file: &str| {
        super::read_bounded(&directory.join(file), FILE)
            .map(|bytes| Fields::parse(&bytes))
            .unwrap_or_default()
    };
    let statistics = fields("memory.stat");
    let kb = |name: &str| statistics.get(name).unwrap_or(0) / 1_024;
    let path = directory.strip_prefix(top).ok()?.to_string_lossy();
    let path = format!("/{path}");
    let limited = |bytes: Option<u64>| bytes.filter(|&bytes| bytes < NO_LIMIT).map(|bytes| bytes / 1_024);
    if version == 2 {
        return Some(Group {
            path,
            // The root has no such file.
            used_kb: number("memory.current")? / 1_024,
            limit_kb: limited(number("memory.max")),
            anon_kb: kb("anon"),
            file_kb: kb("file"),
            shmem_kb: kb("shmem"),
            // Since 5.18; what it consists of before.
            kernel_kb: statistics.get("kernel").map_or_else(
                || kb("slab") + kb("kernel_stack") + kb("pagetables") + kb("percpu"),
                |b| b / 1_024,
            ),
            oom_kills: fields("memory.events").get("oom_kill").unwrap_or(0),
        });
    }
    Some(Group {
        path,
        used_kb: number("memory.usage_in_bytes")? / 1_024,
        limit_kb: limited(number("memory.limit_in_bytes")),
        anon_kb: kb("total_rss"),
        file_kb: kb("total_cache"),
        shmem_kb: kb("total_shmem"),
        kernel_kb: number("memory.kmem.usage_in_bytes").unwrap_or(0) / 1_024,
        oom_kills: fields("memory.oom_control").get("oom_kill").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, path: &str, options: &str) -> Mount {
        Mount { device: "0:1".into(), path: path.into(), kind: kind.into(), options: options.into() }
    }

    #[test]
    fn both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cg/memory.stat", "anon 1\n");
        write("cg/web.slice/memory.current", "4096000\n");
        write("cg/web.slice/memory.max", "max\n");
        write(
            "cg/web.slice/memory.stat",
            "anon 1024000\nfile 2048\nkernel 4096\nshmem 1024\nodd line here\n",
        );
        write("cg/web.slice/a/memory.current", "2048\n");
        write("cg/web.slice/a/memory.max", "1048576\n");
        write("cg/web.slice/a/memory.events", "low 0\noom_kill 3\n");
        let mut found = read(root.path(), &[mount("cgroup2", "/cg", "rw")]);
        found.groups.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!((found.version, found.groups.len()), (2, 2));
        let web = &found.groups[0];
        assert_eq!((web.path.as_str(), web.used_kb, web.limit_kb), ("/web.slice", 4_000, None));
        assert_eq!((web.anon_kb, web.file_kb, web.kernel_kb, web.shmem_kb), (1_000, 2, 4, 1));
        assert_eq!((found.groups[1].limit_kb, found.groups[1].oom_kills), (Some(1_024), 3));

        write("v1/memory.usage_in_bytes", "8192\n");
        write("v1/memory.limit_in_bytes", "9223372036854771712\n");
        write("v1/memory.stat", "rss 1\ntotal_rss 2048\ntotal_cache 1024\n");
        write("v1/memory.kmem.usage_in_bytes", "1024\n");
        let found = read(root.path(), &[mount("cgroup2", "/cg", "rw"), mount("cgroup", "/v1", "rw,memory")]);
        let group = &found.groups[0];
        assert_eq!((found.version, group.used_kb, group.limit_kb, group.anon_kb), (1, 8, None, 2));
        assert_eq!((group.path.as_str(), group.kernel_kb), ("/", 1));
        assert_eq!(read(root.path(), &[]), Groups::default());
    }

    #[test]
    fn names_that_are_no_text_are_survived() {
        use std::os::unix::ffi::OsStrExt as _;
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("cg").join(std::ffi::OsStr::from_bytes(b"x\xff\n\x1b[31m"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.current"), "1024\n").unwrap();
        let found = read(root.path(), &[mount("cgroup2", "/cg", "rw")]);
        assert_eq!(found.groups[0].path, "/x\u{fffd}\n\u{1b}[31m");
    }
}
