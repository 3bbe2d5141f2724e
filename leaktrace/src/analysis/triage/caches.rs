//! What slab caches are for, and whose they are.

/// Names of caches, `*` standing for any end, and what objects of them are.
const KNOWN: [(&str, &str); 104] = [
    ("dentry", "names of files that were looked up"),
    ("inode_cache", "inodes of files without a file system of their own: pipes, proc, anonymous"),
    ("ext4_inode_cache", "ext4 inodes"),
    ("ext4_*", "ext4"),
    ("jbd2_*", "ext4's journal"),
    ("mbcache", "extended attributes of ext4"),
    ("xfs_inode", "XFS inodes"),
    ("xfs_buf*", "XFS's cache of metadata"),
    ("xfs_*", "XFS"),
    ("xf_*", "XFS"),
    ("btrfs_inode", "btrfs inodes"),
    ("btrfs_*", "btrfs"),
    ("f2fs_*", "F2FS"),
    ("nfs_inode_cache", "NFS inodes"),
    ("nfs*", "NFS"),
    ("rpc_*", "NFS's remote calls"),
    ("cifs_*", "SMB client"),
    ("ceph_*", "Ceph client"),
    ("fuse_inode", "FUSE inodes"),
    ("fuse_*", "FUSE"),
    ("ovl_*", "overlayfs, of containers"),
    ("isofs_*", "ISO 9660"),
    ("fat_*", "FAT"),
    ("squashfs_*", "squashfs"),
    ("zspage", "compressed swap"),
    ("zswap_entry", "compressed swap"),
    ("proc_inode_cache", "inodes of /proc, of processes that were looked at"),
    ("proc_dir_entry", "entries of /proc"),
    ("pde_opener", "open files of /proc"),
    ("shmem_inode_cache", "inodes of tmpfs and shared memory"),
    ("hugetlbfs_inode_cache", "inodes of huge pages"),
    ("sock_inode_cache", "inodes of sockets"),
    ("kernfs_*", "entries of sysfs and cgroups"),
    ("filp", "open files"),
    ("files_cache", "tables of open files, one a process"),
    ("names_cache", "paths during a system call"),
    ("buffer_head", "blocks of files in the page cache"),
    ("radix_tree_node", "index of the page cache"),
    ("bdev_cache", "inodes of block devices"),
    ("bio-*", "block requests in flight"),
    ("bio_*", "block requests in flight"),
    ("biovec-*", "block requests in flight"),
    ("blkdev_*", "block requests"),
    ("request_queue*", "block devices"),
    ("dm_*", "device mapper"),
    ("raid*", "software RAID"),
    ("scsi_*", "SCSI commands"),
    ("task_struct", "threads"),
    ("thread_stack", "stacks of threads"),
    ("mm_struct", "address spaces, one a process"),
    ("vm_area_struct", "mappings of processes"),
    ("vma_lock", "mappings of processes"),
    ("maple_node", "index of the mappings of processes"),
    ("anon_vma*", "sharing of memory after a fork"),
    ("signal_cache", "processes"),
    ("sighand_cache", "processes"),
    ("pid*", "process ids"),
    ("cred_jar", "credentials of threads"),
    ("cred", "credentials of threads"),
    ("fs_cache", "processes"),
    ("nsproxy", "namespaces, of containers"),
    ("*_namespace", "namespaces, of containers"),
    ("net_namespace", "network namespaces, of containers"),
    ("key_jar", "keys"),
    ("uid_cache", "users"),
    ("task_delay_info", "statistics of threads"),
    ("taskstats", "statistics of threads"),
    ("task_group", "scheduling groups"),
    ("perf_event", "performance counters"),
    ("trace_event_file", "tracepoints"),
    ("ftrace_event_field", "tracepoints"),
    ("skbuff*", "packets"),
    ("TCP*", "TCP sockets"),
    ("request_sock_TCP*", "TCP connections being opened"),
    ("tw_sock_TCP*", "TCP connections that were closed a minute ago"),
    ("UDP*", "UDP sockets"),
    ("RAW*", "raw sockets"),
    ("PING*", "ping sockets"),
    ("UNIX*", "sockets on this machine"),
    ("MPTCP*", "multipath TCP"),
    ("nf_conntrack*", "connections that the firewall tracks"),
    ("ip_dst_cache", "routes"),
    ("ip6_dst_cache", "routes"),
    ("rt6_*", "routes"),
    ("fib*", "routing tables"),
    ("inet_peer_cache", "hosts spoken to"),
    ("ip_fib_*", "routing tables"),
    ("neigh*", "neighbours on the network"),
    ("eventpoll_*", "files watched by epoll"),
    ("ep_head", "files watched by epoll"),
    ("inotify_inode_mark", "files watched by inotify"),
    ("fsnotify_*", "watched files"),
    ("fanotify_*", "watched files"),
    ("dnotify_*", "watched directories"),
    ("iommu_*", "IOMMU"),
    ("kvm*", "virtual machines"),
    ("x86_emulator", "virtual machines"),
    ("drm_*", "graphics"),
    ("i915_*", "Intel graphics"),
    ("amdgpu_*", "AMD graphics"),
    ("kmemleak_*", "kmemleak's own notes"),
    ("debug_objects_cache", "debugging of objects"),
    ("numa_policy", "NUMA policies"),
    ("vmap_area", "areas of vmalloc"),
];

/// What a cache's objects are, as far as its name tells.
pub fn purpose(name: &str) -> Option<&'static str> {
    if let Some(kmalloc) = kmalloc(name) {
        return Some(kmalloc);
    }
    let fits = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == pattern,
    };
    KNOWN.iter().find(|(pattern, _)| fits(pattern)).map(|&(_, purpose)| purpose)
}

/// The caches of kmalloc by their prefix.
fn kmalloc(name: &str) -> Option<&'static str> {
    if name.starts_with("kmalloc-cg-") {
        Some("kmalloc on behalf of processes: pipes, sockets, files")
    } else if name.starts_with("kmalloc-rcl-") {
        Some("kmalloc that can be reclaimed")
    } else if name.starts_with("kmalloc-") {
        Some("kmalloc of anybody: drivers, protocols, file systems")
    } else if name.starts_with("dma-kmalloc-") {
        Some("kmalloc for old devices")
    } else {
        None
    }
}

/// Whether anybody's objects may be in a cache of this name.
pub fn is_shared(name: &str) -> bool {
    kmalloc(name).is_some()
}

/// What is known of a cache beside its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// Whether the kernel shrinks it when memory is short.
    pub reclaimable: bool,
    /// Other caches whose objects are in this one: the kernel merges caches alike.
    pub aliases: Vec<String>,
    /// The module that it belongs to, or one of those merged with it does.
    pub owner: Option<Owner>,
}

impl Nature {
    /// What the objects are, unless they may be any of several things.
    pub fn purpose(&self, name: &str) -> Option<&'static str> {
        if self.aliases.is_empty() || is_shared(name) { purpose(name) } else { None }
    }
}

/// Whose a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The module.
    pub module: String,
    /// How that is known.
    pub known: Known,
    /// Which of the merged caches is the module's; `None` for the one that the kernel names.
    pub alias: Option<String>,
}

/// The owner of a cache or, if there is but one, of those merged with it.
pub fn owner_of_merged<'a>(
    cache: &str,
    aliases: &[String],
    constructor: Option<&str>,
    modules: &(impl Iterator<Item = &'a str> + Clone),
) -> Option<Owner> {
    let owned = |name: &str, alias: Option<&String>, constructor: Option<&str>| {
        let (module, known) = owner(name, constructor, modules.clone())?;
        Some(Owner { module, known, alias: alias.cloned() })
    };
    if let Some(owner) = owned(cache, None, constructor) {
        return Some(owner);
    }
    let mut others = aliases.iter().filter_map(|alias| owned(alias, Some(alias), None));
    let first = others.next()?;
    others.all(|other| other.module == first.module).then_some(first)
}

/// How it is known whose a cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The constructor of its objects is the module's.
    ByConstructor,
    /// Its name begins with the module's.
    ByName,
}

/// The module that owns a cache, of those loaded.
fn owner(
    cache: &str,
    constructor: Option<&str>,
    modules: impl Iterator<Item = impl AsRef<str>>,
) -> Option<(String, Known)> {
    let by_constructor = constructor
        .and_then(|text| text.rsplit_once(" [")?.1.strip_suffix(']'))
        .map(|module| (module.to_owned(), Known::ByConstructor));
    if by_constructor.is_some() {
        return by_constructor;
    }
    if is_shared(cache) {
        return None;
    }
    let plain = cache.replace(['-', ' '], "_");
    let begins = |module: &str| {
        plain.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let longest = modules.filter(|module| begins(module.as_ref())).max_by_key(|module| module.as_ref().len());
    longest.map(|module| (module.as_ref().to_owned(), Known::ByName))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_found() {
        assert_eq!(purpose("dentry"), Some("names of files that were looked up"));
        assert_eq!(purpose("ext4_extent_status"), Some("ext4"));
        assert_eq!(purpose("kmalloc-rcl-96"), Some("kmalloc that can be reclaimed"));
        assert_eq!(purpose("user_namespace"), Some("namespaces, of containers"));
        assert_eq!(purpose("leakdrv_cache"), None);
        for (at, (pattern, _)) in KNOWN.iter().enumerate() {
            let name = pattern.replace('*', "");
            let first = KNOWN.iter().position(|(other, _)| purpose(&name) == purpose(other)).unwrap();
            assert!(first <= at, "{pattern} is never reached");
        }
    }

    #[test]
    fn owners_are_found() {
        let modules = ["nf", "nf_conntrack", "leakdrv", "kvm"];
        let own = |cache, constructor| owner(cache, constructor, modules.into_iter());
        assert_eq!(own("nf_conntrack_expect", None), Some(("nf_conntrack".into(), Known::ByName)));
        assert_eq!(own("leakdrv", None), Some(("leakdrv".into(), Known::ByName)));
        assert_eq!(own("kvmalloc", None), None);
        assert_eq!(own("kmalloc-64", None), None);
        assert_eq!(
            own("foo_inode", Some("init_once+0x0/0x10 [foo]")),
            Some(("foo".into(), Known::ByConstructor))
        );
        assert_eq!(own("foo_inode", Some("init_once+0x0/0x10")), None);
    }

    #[test]
    fn owners_of_merged_caches_are_found() {
        let own = |aliases: &[&str]| {
            let aliases: Vec<_> = aliases.iter().map(|&alias| alias.to_owned()).collect();
            owner_of_merged("numa_policy", &aliases, None, &["leakdrv", "kvm"].into_iter())
        };
        let leakdrv =
            Owner { module: "leakdrv".into(), known: Known::ByName, alias: Some("leakdrv_cache".into()) };
        assert_eq!(own(&["dio", "leakdrv_cache"]), Some(leakdrv));
        assert_eq!(own(&["kvm_vcpu", "leakdrv_cache"]), None);
        assert_eq!(own(&[]), None);
        let nature = Nature { aliases: vec!["x".into()], ..Nature::default() };
        assert_eq!(
            (nature.purpose("numa_policy"), Nature::default().purpose("numa_policy")),
            (None, Some("NUMA policies"))
        );
    }
}
