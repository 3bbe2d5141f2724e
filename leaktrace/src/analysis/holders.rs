//! What is known of kernel objects that live long although nobody leaks them.

/// Why objects of a cache stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holder {
    /// What holds them, in words that follow "are held".
    pub why: &'static str,
    /// Seconds after which they go, where a timer decides.
    pub seconds: Option<f64>,
}

const BY_PROCESS: &str = "by the processes that use them, until these end";

/// Beginnings of cache names, and who holds such objects. Sources: `include/net/tcp.h`
/// (`TCP_TIMEWAIT_LEN`), `net/netfilter/nf_conntrack_proto_tcp.c`, `net/ipv4/inetpeer.c`,
/// `fs/file_table.c`, `kernel/fork.c`, `fs/kernfs/mount.c`, `fs/namespace.c`.
const HOLDERS: [(&str, &str, Option<f64>); 39] = [
    ("tw_sock_", "by TIME_WAIT for 60 s after a connection ends", Some(60.0)),
    ("request_sock_", "until a connection is set up or given up, 63 s", Some(63.0)),
    (
        "nf_conntrack",
        "by connection tracking, up to 5 days (nf_conntrack_tcp_timeout_established)",
        Some(432_000.0),
    ),
    ("inet_peer_cache", "for up to 10 min after a peer was last heard of", Some(600.0)),
    ("tcp_bind", "while a port is used, TIME_WAIT included", Some(60.0)),
    ("fib6_", "while a route is there", None),
    ("ip_fib_", "while a route is there", None),
    ("filp", BY_PROCESS, None),
    ("task_struct", BY_PROCESS, None),
    ("task_group", BY_PROCESS, None),
    ("mm_struct", BY_PROCESS, None),
    ("vm_area_struct", BY_PROCESS, None),
    ("vma_lock", BY_PROCESS, None),
    ("anon_vma", BY_PROCESS, None),
    ("signal_cache", BY_PROCESS, None),
    ("sighand_cache", BY_PROCESS, None),
    ("files_cache", BY_PROCESS, None),
    ("fs_cache", BY_PROCESS, None),
    ("cred_jar", BY_PROCESS, None),
    ("lsm_file_cache", BY_PROCESS, None),
    ("lsm_inode_cache", "by inodes, which are dropped when memory is short", None),
    ("pid", BY_PROCESS, None),
    ("sock_inode_cache", BY_PROCESS, None),
    ("TCP", BY_PROCESS, None),
    ("UDP", BY_PROCESS, None),
    ("UNIX", BY_PROCESS, None),
    ("RAW", BY_PROCESS, None),
    ("PING", BY_PROCESS, None),
    ("eventpoll_", BY_PROCESS, None),
    ("ep_head", BY_PROCESS, None),
    ("fsnotify_", BY_PROCESS, None),
    ("inotify_", BY_PROCESS, None),
    ("io_kiocb", BY_PROCESS, None),
    ("posix_timers_cache", BY_PROCESS, None),
    ("kernfs_", "while a device, module or cgroup is there", None),
    ("mnt_cache", "while a filesystem is mounted", None),
    ("shmem_inode_cache", "while a file in tmpfs is there", None),
    ("proc_dir_entry", "while a device or module is there", None),
    ("key_jar", "while a key is in a keyring", None),
];

/// Who may well hold objects of a cache; `None` when nothing is known of it.
pub fn holder(cache: &str) -> Option<Holder> {
    let found = HOLDERS.iter().find(|(beginning, ..)| cache.starts_with(beginning));
    found.map(|&(_, why, seconds)| Holder { why, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_by_their_beginnings() {
        assert_eq!(holder("tw_sock_TCPv6").unwrap().seconds, Some(60.0));
        assert_eq!(holder("nf_conntrack_1").unwrap().seconds, Some(432_000.0));
        assert!(holder("filp").unwrap().why.contains("processes"));
        assert_eq!(holder("kmalloc-256"), None);
    }
}
