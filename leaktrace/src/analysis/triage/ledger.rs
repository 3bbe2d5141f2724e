//! The ledger: what all memory is used for, each page once, and what nobody accounts for.

use crate::proc::fields::Fields;

/// A use of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// In the page allocator.
    Free,
    /// Free, on lists of the CPUs.
    FreeOnCpus,
    /// Pages of files, which can be dropped or written back.
    PageCache,
    /// Pages of block devices.
    Buffers,
    /// Memory of processes.
    Anonymous,
    /// tmpfs, shared memory, memfd.
    Shmem,
    /// Copies of what is swapped out, mapped by nobody.
    SwapCache,
    /// Slab caches that are shrunk when memory is short.
    SlabReclaimable,
    /// Slab caches that are not, and large kmalloc.
    SlabUnreclaimable,
    /// Other kernel memory that is given back when memory is short.
    OtherReclaimable,
    /// vmalloc without stacks.
    Vmalloc,
    /// Stacks of threads.
    KernelStacks,
    /// Per-CPU allocations.
    Percpu,
    /// Page tables of processes.
    PageTables,
    /// Page tables of IOMMUs and virtual machines.
    SecondaryPageTables,
    /// Huge pages set aside.
    HugePages,
    /// What zram and zswap hold.
    CompressedSwap,
    /// Buffers of sockets.
    Sockets,
    /// Taken by the host of a virtual machine.
    Balloon,
    /// Memory of graphics drivers, where they count it.
    Gpu,
    /// FUSE's and bounce buffers.
    Writeback,
    /// The array of `struct page`, where it came from the page allocator.
    MemoryMap,
    /// Nobody accounts for it: pages that drivers took from the page allocator.
    Unaccounted,
}

impl Class {
    /// The name in the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::FreeOnCpus => "free, on lists of CPUs",
            Self::PageCache => "page cache",
            Self::Buffers => "buffers",
            Self::Anonymous => "processes (anonymous)",
            Self::Shmem => "tmpfs and shared memory",
            Self::SwapCache => "swap cache",
            Self::SlabReclaimable => "slab, reclaimable",
            Self::SlabUnreclaimable => "slab, unreclaimable",
            Self::OtherReclaimable => "kernel, reclaimable",
            Self::Vmalloc => "vmalloc",
            Self::KernelStacks => "kernel stacks",
            Self::Percpu => "percpu",
            Self::PageTables => "page tables",
            Self::SecondaryPageTables => "page tables of devices",
            Self::HugePages => "huge pages",
            Self::CompressedSwap => "zram and zswap",
            Self::Sockets => "socket buffers",
            Self::Balloon => "balloon",
            Self::Gpu => "graphics",
            Self::Writeback => "FUSE and bounce buffers",
            Self::MemoryMap => "memory map",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// The name in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::FreeOnCpus => "free_on_cpu_lists",
            Self::PageCache => "page_cache",
            Self::Buffers => "buffers",
            Self::Anonymous => "anonymous",
            Self::Shmem => "shmem",
            Self::SwapCache => "swap_cache",
            Self::SlabReclaimable => "slab_reclaimable",
            Self::SlabUnreclaimable => "slab_unreclaimable",
            Self::OtherReclaimable => "kernel_reclaimable",
            Self::Vmalloc => "vmalloc",
            Self::KernelStacks => "kernel_stacks",
            Self::Percpu => "percpu",
            Self::PageTables => "page_tables",
            Self::SecondaryPageTables => "secondary_page_tables",
            Self::HugePages => "huge_pages",
            Self::CompressedSwap => "compressed_swap",
            Self::Sockets => "sockets",
            Self::Balloon => "balloon",
            Self::Gpu => "gpu",
            Self::Writeback => "writeback",
            Self::MemoryMap => "memory_map",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// The lines of /proc that it came from: of meminfo, unless another file is named.
    pub fn source(self) -> &'static str {
        match self {
            Self::Free => "MemFree",
            Self::FreeOnCpus => "zoneinfo pagesets",
            Self::PageCache => "Cached - Shmem",
            Self::Buffers => "Buffers",
            Self::Anonymous => "AnonPages",
            Self::Shmem => "Shmem",
            Self::SwapCache => "SwapCached, if unmapped",
            Self::SlabReclaimable => "SReclaimable",
            Self::SlabUnreclaimable => "SUnreclaim",
            Self::OtherReclaimable => "KReclaimable - SReclaimable",
            Self::Vmalloc => "VmallocUsed - KernelStack",
            Self::KernelStacks => "KernelStack",
            Self::Percpu => "Percpu",
            Self::PageTables => "PageTables",
            Self::SecondaryPageTables => "SecPageTables",
            Self::HugePages => "Hugetlb",
            Self::CompressedSwap => "vmstat nr_zspages",
            Self::Sockets => "net/sockstat mem, at most",
            Self::Balloon => "Balloon",
            Self::Gpu => "GPUActive + GPUReclaim",
            Self::Writeback => "WritebackTmp + Bounce",
            Self::MemoryMap => "vmstat nr_memmap_pages",
            Self::Unaccounted => "MemTotal - all others",
        }
    }

    /// Whether the kernel takes it back when memory is short, without asking anybody.
    pub fn is_reclaimable(self) -> bool {
        matches!(
            self,
            Self::Free
                | Self::FreeOnCpus
                | Self::PageCache
                | Self::Buffers
                | Self::SwapCache
                | Self::SlabReclaimable
                | Self::OtherReclaimable
        )
    }
}

/// What a ledger is made from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// /proc/meminfo.
    pub meminfo: &'a Fields,
    /// /proc/vmstat.
    pub vmstat: &'a Fields,
    /// Free pages on lists of CPUs.
    pub cpu_list_pages: u64,
    /// Pages of sockets' buffers.
    pub socket_pages: u64,
    /// Memory of zram, for kernels whose vmstat does not tell, in kB.
    pub zram_kb: u64,
    /// Whether stacks are a part of vmalloc (`CONFIG_VMAP_STACK`).
    pub stacks_in_vmalloc: bool,
    /// Size of a page in kB.
    pub page_kb: u64,
}

/// kB of all memory, and of each class. They add up; only the last, what is left, may be negative, where
/// counters were read at different moments or two of them count one page.
pub fn levels(sources: &Sources<'_>) -> (i64, Vec<(Class, i64)>) {
    let memory = |name: &str| sources.meminfo.get(name).map(|kb| kb.min(i64::MAX as u64 / 64) as i64);
    let kb = |name: &str| memory(name).unwrap_or(0);
    let pages = |name: &str| {
        sources
            .vmstat
            .get(name)
            .map(|pages| pages.saturating_mul(sources.page_kb).min(i64::MAX as u64 / 64) as i64)
    };
    let own = |pages: u64| pages.saturating_mul(sources.page_kb).min(i64::MAX as u64 / 64) as i64;
    let total = kb("MemTotal");
    let (stacks, vmalloc) = (kb("KernelStack"), kb("VmallocUsed"));
    // Anonymous pages in the swap cache are in both; what is on the lists of anonymous memory and neither
    // mapped nor shmem is in the cache only.
    let anonymous_lists = kb("Active(anon)") + kb("Inactive(anon)");
    let unmapped = (anonymous_lists - kb("AnonPages") - kb("Shmem")).clamp(0, kb("SwapCached"));
    let slab_reclaimable = kb("SReclaimable");
    let compressed =
        pages("nr_zspages").unwrap_or(sources.zram_kb.min(i64::MAX as u64 / 64) as i64 + kb("Zswap"));
    let huge = memory("Hugetlb").unwrap_or_else(|| kb("HugePages_Total") * kb("Hugepagesize"));
    let mut levels = vec![
        (Class::Free, kb("MemFree")),
        (Class::FreeOnCpus, own(sources.cpu_list_pages)),
        (Class::PageCache, (kb("Cached") - kb("Shmem")).max(0)),
        (Class::Buffers, kb("Buffers")),
        (Class::Anonymous, kb("AnonPages")),
        (Class::Shmem, kb("Shmem")),
        (Class::SwapCache, unmapped),
        (Class::SlabReclaimable, slab_reclaimable),
        (Class::SlabUnreclaimable, kb("SUnreclaim")),
        (Class::OtherReclaimable, (kb("KReclaimable") - slab_reclaimable).max(0)),
        (Class::Vmalloc, if sources.stacks_in_vmalloc { (vmalloc - stacks).max(0) } else { vmalloc }),
        (Class::KernelStacks, stacks),
        (Class::Percpu, kb("Percpu")),
        (Class::PageTables, kb("PageTables")),
        (Class::SecondaryPageTables, kb("SecPageTables")),
        (Class::HugePages, huge),
        (Class::CompressedSwap, compressed),
        (Class::Balloon, kb("Balloon")),
        (Class::Gpu, kb("GPUActive") + kb("GPUReclaim")),
        (Class::Writeback, kb("WritebackTmp") + kb("Bounce")),
        (Class::MemoryMap, pages("nr_memmap_pages").unwrap_or(0)),
    ];
    let left = total - levels.iter().map(|&(_, kb)| kb).sum::<i64>();
    // Small buffers are in slab caches, large ones nowhere: no more of them than is left.
    let sockets = own(sources.socket_pages).clamp(0, left.max(0));
    levels.push((Class::Sockets, sockets));
    levels.push((Class::Unaccounted, left - sockets));
    (total, levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(meminfo: &str, vmstat: &str, stacks_in_vmalloc: bool) -> (i64, Vec<(Class, i64)>) {
        let (meminfo, vmstat) = (Fields::parse(meminfo.as_bytes()), Fields::parse(vmstat.as_bytes()));
        let sources = Sources {
            meminfo: &meminfo,
            vmstat: &vmstat,
            cpu_list_pages: 10,
            socket_pages: 100,
            zram_kb: 0,
            stacks_in_vmalloc,
            page_kb: 4,
        };
        levels(&sources)
    }

    fn of(ledger: &(i64, Vec<(Class, i64)>), class: Class) -> i64 {
        ledger.1.iter().find(|(other, _)| *other == class).unwrap().1
    }

    const MEMINFO: &str = "MemTotal: 10000 kB\nMemFree: 2000 kB\nCached: 3000 kB\nShmem: 1000 kB\nAnonPages: 1500 kB\n\
        SwapCached: 500 kB\nActive(anon): 1400 kB\nInactive(anon): 1300 kB\nSReclaimable: 300 kB\nKReclaimable: 350 kB\n\
        SUnreclaim: 200 kB\nKernelStack: 100 kB\nVmallocUsed: 250 kB\nHugetlb: 0 kB\n";

    #[test]
    fn each_page_is_counted_once() {
        let whole = ledger(MEMINFO, "nr_zspages 5\n", true);
        assert_eq!(of(&whole, Class::PageCache), 2_000);
        assert_eq!(of(&whole, Class::SwapCache), 200);
        assert_eq!(of(&whole, Class::Vmalloc), 150);
        assert_eq!(of(&whole, Class::OtherReclaimable), 50);
        assert_eq!(of(&whole, Class::CompressedSwap), 20);
        assert_eq!(of(&whole, Class::Sockets), 400);
        assert_eq!(whole.1.iter().map(|&(_, kb)| kb).sum::<i64>(), 10_000);
        assert_eq!(of(&ledger(MEMINFO, "", false), Class::Vmalloc), 250);
    }

    #[test]
    fn titles_and_words_are_each_one_class() {
        let (_, levels) = ledger(MEMINFO, "", true);
        let words: std::collections::HashSet<_> = levels.iter().map(|(class, _)| class.word()).collect();
        let titles: std::collections::HashSet<_> = levels.iter().map(|(class, _)| class.title()).collect();
        assert_eq!((words.len(), titles.len()), (levels.len(), levels.len()));
        assert!(levels.iter().all(|(class, _)| !class.source().is_empty()));
    }

    proptest! {
        #[test]
        fn it_always_adds_up(values in prop::collection::vec(any::<u64>(), 14)) {
            let names = ["MemTotal", "MemFree", "Cached", "Shmem", "AnonPages", "SwapCached", "Active(anon)",
                "SReclaimable", "KReclaimable", "SUnreclaim", "KernelStack", "VmallocUsed", "Hugetlb", "Percpu"];
            let lines: Vec<_> = names.iter().zip(&values).map(|(name, kb)| format!("{name}: {kb} kB")).collect();
            let text = lines.join("\n");
            let (total, levels) = ledger(&text, "", true);
            prop_assert_eq!(levels.iter().map(|&(_, kb)| kb).sum::<i64>(), total);
            prop_assert!(levels.iter().all(|&(class, kb)| kb >= 0 || class == Class::Unaccounted));
        }
    }
}
