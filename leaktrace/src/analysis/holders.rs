//! What is known of kernel objects that live long although nobody leaks them.

/// Why objects of a cache stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holder {
    /// What holds them, in words that follow "are held".
    pub why: &'static str,
    /// Seconds after which they go, where a timer decides.
    pub seconds: Option<f64>,
    /// What shows whether it is so, where no timer decides.
    pub ask: &'static str,
}

impl Holder {
    /// Whether it is the kernel's bookkeeping of other objects, which grows with them and leads nowhere.
    pub fn describes_others(&self) -> bool {
        self.why == SLABS
    }
}

const IN_USE: &str = "see whether as many are in use: `ls /proc/PID/fd`, `ss -s`, `lsof`";
const SHAKE: &str = "leaktrace --shake   (drops what is cached, and tells what stays)";
const TRACKED: &str =
    "see whether as many connections are tracked: `sysctl net.netfilter.nf_conntrack_count`";
const SWAPS: &str = "see whether as much is swapped out: `cat /proc/swaps`, `zramctl`";

const BY_PROCESS: &str = "by the processes that use them, until these end";

const CONNTRACK: &str = "by connection tracking, up to 5 days (nf_conntrack_tcp_timeout_established)";
const SLABS: &str = "by the slabs of other caches that they describe, as long as these are there";
const INODES: &str = "by inodes, which are dropped when memory is short";
const PAGE_CACHE: &str = "by pages of the page cache, which are dropped when memory is short";
const SWAPPED: &str = "by what is swapped out to compressed memory, or stored there";

/// Functions whose objects hang on a `struct page`, on a number in an old table or on an inode only, where a look at a few
/// objects may not see it. Sources: `mm/slub.c` and `mm/memcontrol.c` (`obj_exts`, `obj_cgroups`), `fs/iomap/buffered-io.c`,
/// `fs/btrfs/subpage.c`, `security/security.c`, `fs/posix_acl.c`, `fs/xfs/libxfs/`, `mm/zsmalloc.c`, `mm/zbud.c`, `mm/z3fold.c`, `mm/zswap.c`.
const BY_FUNCTION: [(&str, &str); 30] = [
    ("alloc_slab_obj_exts", SLABS),
    ("prepare_slab_obj_exts_hook", SLABS),
    ("alloc_tagging_slab_alloc_hook", SLABS),
    ("memcg_alloc_slab_cgroups", SLABS),
    ("memcg_alloc_page_obj_cgroups", SLABS),
    ("memcg_slab_post_alloc_hook", SLABS),
    ("account_slab", SLABS),
    ("allocate_slab", SLABS),
    ("new_slab", SLABS),
    ("ifs_alloc", PAGE_CACHE),
    ("iomap_page_create", PAGE_CACHE),
    ("btrfs_alloc_subpage", PAGE_CACHE),
    ("btrfs_attach_subpage", PAGE_CACHE),
    ("btrfs_alloc_folio_state", PAGE_CACHE),
    ("btrfs_attach_folio_state", PAGE_CACHE),
    ("security_inode_alloc", INODES),
    ("lsm_inode_alloc", INODES),
    ("posix_acl_alloc", INODES),
    ("posix_acl_clone", INODES),
    ("xfs_init_local_fork", INODES),
    ("xfs_idata_realloc", INODES),
    ("xfs_iext_alloc_node", INODES),
    ("xfs_iext_alloc_root", INODES),
    ("xfs_iext_realloc_root", INODES),
    ("zs_malloc", SWAPPED),
    ("alloc_zspage", SWAPPED),
    ("zbud_alloc", SWAPPED),
    ("z3fold_alloc", SWAPPED),
    ("init_z3fold_page", SWAPPED),
    ("zswap_store", SWAPPED),
];

/// Modules, where they are none of the kernel itself, that such functions are in: one of that name in another is its own.
const MODULES: [&str; 8] = ["iomap", "btrfs", "xfs", "zsmalloc", "zbud", "z3fold", "zswap", "zram"];

/// Beginnings of cache names, and who holds such objects. Sources: `include/net/tcp.h`
/// (`TCP_TIMEWAIT_LEN`), `net/netfilter/nf_conntrack_proto_tcp.c`, `net/ipv4/inetpeer.c`,
/// `fs/file_table.c`, `kernel/fork.c`, `fs/kernfs/mount.c`, `fs/namespace.c`.
const HOLDERS: [(&str, &str, Option<f64>); 42] = [
    ("tw_sock_", "by TIME_WAIT for 60 s after a connection ends", Some(60.0)),
    ("request_sock_", "until a connection is set up or given up, 63 s", Some(63.0)),
    ("nf_conntrack", CONNTRACK, Some(432_000.0)),
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
    ("lsm_inode_cache", INODES, None),
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
    ("zs_handle", SWAPPED, None),
    ("zspage", SWAPPED, None),
    ("zswap_entry", SWAPPED, None),
];

fn ask(why: &str) -> &'static str {
    match why {
        SWAPPED => SWAPS,
        CONNTRACK => TRACKED,
        SLABS | INODES | PAGE_CACHE => SHAKE,
        _ => IN_USE,
    }
}

/// Who may well hold objects of a cache; `None` when nothing is known of it.
pub fn holder(cache: &str) -> Option<Holder> {
    let found = HOLDERS.iter().find(|(beginning, ..)| cache.starts_with(beginning));
    found.map(|&(_, why, seconds)| Holder { why, seconds, ask: ask(why) })
}

/// Who may well hold what a function allocates; its name without leading underscores and what compilers add, and its module
/// where it is in one.
pub fn holder_by_function(name: &str, module: Option<&str>) -> Option<Holder> {
    if module.is_some_and(|module| !MODULES.contains(&module)) {
        return None;
    }
    let found = BY_FUNCTION.iter().find(|(function, _)| *function == name);
    found.map(|&(_, why)| Holder { why, seconds: None, ask: ask(why) })
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
        assert_eq!(holder("zs_handle-zram0").unwrap().ask, SWAPS);
        assert_eq!(holder_by_function("alloc_slab_obj_exts", None).unwrap().ask, SHAKE);
        assert_eq!(holder_by_function("zs_malloc", Some("zsmalloc")).unwrap().ask, SWAPS);
        assert_eq!(holder_by_function("foo_alloc_slab_obj_exts", None), None);
        assert_eq!(holder_by_function("new_slab", Some("gpu")), None);
    }
}
