//! /proc/PID/fd: what kinds of files a process has open.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// Files of a process that are looked at, at most.
const LIMIT: usize = 100_000;
/// Paths of a kind that are kept as examples, and characters of each.
const EXAMPLES: usize = 3;
const PATH: usize = 200;
/// Socket inodes that are kept.
const SOCKETS: usize = 100_000;

/// Open files of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// How many.
    pub count: u64,
    /// Bytes that files without a name take, until they are closed.
    pub bytes: u64,
    /// Some of their names.
    pub examples: Vec<String>,
}

/// The open files of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// By kind: `socket`, `pipe`, `eventfd`, `deleted file`, `memfd`, `device`, `file` ...
    pub kinds: BTreeMap<String, Kind>,
    /// Inodes of sockets, as /proc/PID/net has them.
    pub sockets: Vec<u64>,
    /// Whether there are more than were looked at.
    pub cut: bool,
}

/// Looks at the open files of a process.
///
/// # Errors
/// When its directory cannot be read: it is for the owner and root.
pub fn read(root: &Path, pid: u32) -> io::Result<OpenFiles> {
    let directory = root.join("proc").join(pid.to_string()).join("fd");
    let mut files = OpenFiles::default();
    // A file that is linked twice takes its bytes once.
    let mut deleted = std::collections::HashSet::new();
    for (index, entry) in fs::read_dir(directory)?.flatten().enumerate() {
        if index >= LIMIT {
            files.cut = true;
            break;
        }
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let (kind, inode) = kind(&target);
        let of_kind = files.kinds.entry(kind.to_owned()).or_default();
        of_kind.count += 1;
        if kind == "socket" {
            if files.sockets.len() < SOCKETS {
                files.sockets.extend(inode);
            }
        } else if target.starts_with('/') && of_kind.examples.len() < EXAMPLES {
            of_kind.examples.push(target.chars().take(PATH).collect());
        }
        if matches!(kind, "deleted file" | "memfd")
            && let Ok(metadata) = fs::metadata(entry.path())
            && metadata.is_file()
            && deleted.insert((metadata.dev(), metadata.ino()))
        {
            of_kind.bytes += metadata.blocks() * 512;
        }
    }
    Ok(files)
}

/// What a descriptor of a process is: its kind, as in [`OpenFiles::kinds`], or the path of a device.
///
/// # Errors
/// When it is not there any more.
pub fn what(root: &Path, pid: u32, descriptor: u32) -> io::Result<String> {
    let path = root.join("proc").join(pid.to_string()).join("fd").join(descriptor.to_string());
    let target = fs::read_link(path)?;
    let target = target.to_string_lossy();
    let kind = kind(&target).0;
    Ok(if kind == "device" { target.chars().take(PATH).collect() } else { kind.to_owned() })
}

/// The kind of what a descriptor leads to, and a socket's inode.
fn kind(target: &str) -> (&str, Option<u64>) {
    if let Some(path) = target.strip_prefix('/') {
        let kind = if target.starts_with("/memfd:") {
            "memfd"
        } else if target.starts_with("/dmabuf:") {
            "dmabuf"
        } else if target.ends_with(" (deleted)") {
            "deleted file"
        } else if path.starts_with("dev/") && !path.starts_with("dev/shm/") {
            "device"
        } else {
            "file"
        };
        return (kind, None);
    }
    if let Some(inode) = target.strip_prefix("socket:[") {
        return ("socket", inode.trim_end_matches(']').parse().ok());
    }
    if let Some(name) = target.strip_prefix("anon_inode:") {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        return (if name.is_empty() { "anonymous" } else { name }, None);
    }
    (target.split(':').next().filter(|kind| !kind.is_empty()).unwrap_or("other"), None)
}

/// States of TCP sockets (`include/net/tcp_states.h`), from 1 on.
const TCP_STATES: [&str; 12] = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];

/// Bytes of a table of sockets that are read.
const TABLE: u64 = 32 << 20;

/// Of some sockets of a process, how many there are of each protocol and state, like `TCP CLOSE_WAIT`.
/// What no table has is `other`: netlink, packet, and sockets that were never bound.
pub fn socket_kinds(root: &Path, pid: u32, inodes: &[u64]) -> BTreeMap<String, u64> {
    let wanted: std::collections::HashSet<u64> = inodes.iter().copied().collect();
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let mut named = 0;
    for (file, protocol) in
        [("tcp", "TCP"), ("tcp6", "TCP"), ("udp", "UDP"), ("udp6", "UDP"), ("unix", "UNIX")]
    {
        let path = root.join("proc").join(pid.to_string()).join("net").join(file);
        let Ok(bytes) = super::read_bounded(&path, TABLE) else { continue };
        for line in String::from_utf8_lossy(&bytes).lines().skip(1) {
            let Some((inode, state)) = socket(line, protocol) else { continue };
            if wanted.contains(&inode) {
                named += 1;
                let kind = state.map_or_else(|| protocol.to_owned(), |state| format!("{protocol} {state}"));
                *kinds.entry(kind).or_default() += 1;
            }
        }
    }
    let others = (inodes.len() as u64).saturating_sub(named);
    if others > 0 {
        kinds.insert("other".into(), others);
    }
    kinds
}

/// Inode and state of a line of a table of sockets (`net/ipv4/tcp_ipv4.c`, `net/unix/af_unix.c`).
fn socket<'a>(line: &str, protocol: &str) -> Option<(u64, Option<&'a str>)> {
    let mut words = line.split_ascii_whitespace();
    if protocol == "UNIX" {
        return Some((words.nth(6)?.parse().ok()?, None));
    }
    let state = usize::from_str_radix(words.nth(3)?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    let state = (protocol == "TCP").then(|| TCP_STATES.get(state.wrapping_sub(1)).copied()).flatten();
    Some((inode, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_are_told() {
        for (target, expected) in [
            ("socket:[4711]", ("socket", Some(4_711))),
            ("pipe:[12]", ("pipe", None)),
            ("anon_inode:[eventfd]", ("eventfd", None)),
            ("anon_inode:inotify", ("inotify", None)),
            ("anon_inode:", ("anonymous", None)),
            ("/memfd:buffer (deleted)", ("memfd", None)),
            ("/tmp/x (deleted)", ("deleted file", None)),
            ("/dev/shm/x", ("file", None)),
            ("/dev/null", ("device", None)),
            ("/etc/passwd", ("file", None)),
            ("net:[4026531840]", ("net", None)),
            ("", ("other", None)),
        ] {
            assert_eq!(kind(target), expected, "{target}");
        }
    }

    #[test]
    fn sockets_are_found_in_tables() {
        let line = "   0: 0100007F:1F90 0100007F:A2C4 08 00000000:00000001 00:00000000 00000000  1000        0 31337 1 0000";
        assert_eq!(socket(line, "TCP"), Some((31_337, Some("CLOSE_WAIT"))));
        let unix = "0000000000000000: 00000003 00000000 00000000 0001 03 8120 /run/x y";
        assert_eq!(socket(unix, "UNIX"), Some((8_120, None)));
    }

    #[test]
    fn own_files_are_seen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let deleted = tempfile::tempfile().unwrap();
        deleted.set_len(10).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let files = read(Path::new("/"), std::process::id()).unwrap();
        assert!(files.kinds["pipe"].count >= 2 && !files.sockets.is_empty(), "{files:?}");
        let kinds = socket_kinds(Path::new("/"), std::process::id(), &files.sockets);
        assert!(kinds["TCP LISTEN"] >= 1, "{kinds:?}");
        drop((listener, deleted, reader, writer));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,120}|[0-9 A-F:]{0,100}") {
            let _ = (kind(&text), socket(&text, "TCP"), socket(&text, "UNIX"));
        }
    }
}
