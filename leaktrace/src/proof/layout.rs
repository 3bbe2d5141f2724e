//! Where this kernel keeps what says whose a piece of memory is: offsets from BTF, in bytes.

use anyhow::{Context as _, Result};

use crate::kernel::btf::Btf;

/// `struct page` (`include/linux/mm_types.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLayout {
    pub(super) size: u64,
    /// Of free blocks their order.
    pub(super) private: u64,
    /// Of a page of per-CPU memory the chunk, if not in `private`.
    pub(super) index: u64,
    pub(super) refcount: u64,
    /// Links of the CPUs' lists of free pages.
    pub(super) list: u64,
}

/// `struct slab` (`mm/slab.h`), a part of `struct page` until 5.16.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlabLayout {
    pub(super) cache: u64,
    pub(super) freelist: u64,
    /// Number of objects in the lower 15 bits of 16.
    pub(super) objects: u64,
}

/// `struct kmem_cache` (`mm/slab.h`, `include/linux/slub_def.h` until 6.6) and what hangs from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheLayout {
    pub(super) name: u64,
    /// Bytes from one object to the next.
    pub(super) size: u64,
    /// Bytes of an object that are its owner's.
    pub(super) object_size: u64,
    /// Where in a free object the pointer to the next one is.
    pub(super) offset: u64,
    /// What such pointers are hidden with, where they are (`SLAB_FREELIST_HARDENED`).
    pub(super) random: Option<u64>,
    pub(super) red_left_pad: Option<u64>,
    /// Links of the list of all caches.
    pub(super) list: u64,
    /// `kmem_cache_cpu`: gone in 7.0.
    pub(super) cpu: Option<CpuSlabLayout>,
    /// Since 6.18.
    pub(super) sheaves: Option<SheafLayout>,
}

/// `struct kmem_cache_cpu`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuSlabLayout {
    /// In `kmem_cache`.
    pub(super) pointer: u64,
    pub(super) freelist: u64,
    pub(super) slab: u64,
}

/// Sheaves: arrays of free objects that each CPU has, and barns that keep some for a node (`mm/slub.c`).
#[derive(Clone, Copy, Debug)]
pub(super) struct SheafLayout {
    /// In `kmem_cache`.
    pub(super) pointer: u64,
    /// In `slub_percpu_sheaves`.
    pub(super) of_cpu: [u64; 3],
    pub(super) used: u64,
    pub(super) objects: u64,
    pub(super) list: u64,
    /// In `kmem_cache`: the nodes' parts.
    pub(super) nodes: NodesLayout,
    /// In `node_barn`: lists of full and of empty ones.
    pub(super) lists: [u64; 2],
    /// In `kmem_cache`: how many objects one has.
    pub(super) capacity: u64,
}

/// How a cache's barns are reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodesLayout {
    /// `kmem_cache.node[]`, and in `kmem_cache_node` the barn.
    Node { nodes: u64, barn: u64 },
    /// `kmem_cache.per_node[]`, with the barn at an offset, each of so many bytes.
    PerNode { nodes: u64, each: u64, barn: u64 },
}

/// Areas of vmalloc (`include/linux/vmalloc.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct AreaLayout {
    /// In `vmap_area`.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) list: u64,
    pub(super) vm: u64,
    /// Of `vm_struct`, and in it.
    pub(super) vm_bytes: u64,
    pub(super) address: u64,
    /// `VM_ALLOC` and the like.
    pub(super) flags: u64,
    pub(super) pages: u64,
    pub(super) nr_pages: u64,
    pub(super) caller: u64,
    /// Since 6.9: the size of `vmap_node`, and where its list of areas begins.
    pub(super) nodes: Option<(u64, u64)>,
}

/// `struct task_struct` (`include/linux/sched.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskLayout {
    pub(super) stack: u64,
    pub(super) pid: u64,
    pub(super) comm: u64,
    pub(super) on_cpu: u64,
    /// The stack pointer while it does not run.
    pub(super) sp: u64,
    /// Links of the processes' first threads.
    pub(super) tasks: u64,
    pub(super) signal: u64,
    /// In `signal_struct`: where the list of a process's threads begins.
    pub(super) threads: u64,
    /// The threads' links.
    pub(super) thread_node: u64,
    pub(super) files: u64,
    /// In `files_struct`, `fdtable` and `file`.
    pub(super) fdt: u64,
    pub(super) fd: u64,
    /// How many descriptors the table has room for.
    pub(super) most_files: u64,
    pub(super) private_data: u64,
    pub(super) inode: u64,
}

/// Zones and their CPUs' lists of free pages (`include/linux/mmzone.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct ZoneLayout {
    /// In `pglist_data`.
    pub(super) zones: u64,
    pub(super) count: u64,
    pub(super) size: u64,
    pub(super) pageset: u64,
    /// In `per_cpu_pages`.
    pub(super) lists: u64,
    pub(super) lists_count: u64,
    /// Lists of each order.
    pub(super) kinds: u64,
}

/// `struct pcpu_chunk` (`mm/percpu-internal.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkLayout {
    pub(super) list: u64,
    pub(super) base: u64,
    /// A bit for each four bytes that are given out.
    pub(super) map: u64,
    /// A bit where each piece begins.
    pub(super) bounds: u64,
    /// How many pages a copy has.
    pub(super) pages: u64,
}

/// All of them. What only names things, or only finds more that is free, may be missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) page: PageLayout,
    pub(super) slab: SlabLayout,
    pub(super) cache: CacheLayout,
    pub(super) area: Option<AreaLayout>,
    pub(super) task: Option<TaskLayout>,
    pub(super) zone: Option<ZoneLayout>,
    /// In `kfree_rcu_cpu` (`mm/slab_common.c`, `kernel/rcu/tree.c` until 6.13): pages that are kept for arrays of what is to
    /// be freed.
    pub(super) rcu_pages: Option<u64>,
    /// Such an array in use.
    pub(super) rcu_array: Option<RcuArrayLayout>,
    /// The same before 6.4.
    pub(super) rcu_chain: Option<RcuChainLayout>,
    pub(super) chunk: Option<ChunkLayout>,
    /// In `dentry`: what has the name, nothing if nothing has.
    pub(super) dentry_inode: Option<u64>,
}

/// `struct kvfree_rcu_bulk_data`, a page, where it is in a list that leads back.
#[derive(Clone, Copy, Debug)]
pub(super) struct RcuArrayLayout {
    pub(super) list: u64,
    /// How many of the pointers are of now: what lies behind them is left of earlier uses.
    pub(super) count: u64,
    pub(super) pointers: u64,
}

/// `struct kvfree_rcu_bulk_data` and where its chains begin, where they are such (`kernel/rcu/tree.c`).
#[derive(Clone, Copy, Debug)]
pub(super) struct RcuChainLayout {
    pub(super) next: u64,
    pub(super) count: u64,
    pub(super) pointers: u64,
    /// In `kfree_rcu_cpu`: where it has the begins of some, and where its first work has.
    pub(super) heads: u64,
    pub(super) work_heads: u64,
    /// How many begins there are at each of these places.
    pub(super) kinds: u64,
    /// How many works there are, and bytes from one to the next.
    pub(super) works: u64,
    pub(super) work_bytes: u64,
}

impl Layout {
    /// Resolves what this kernel has.
    ///
    /// # Errors
    /// Names the struct without which nothing can be told.
    pub(super) fn resolve(btf: &Btf) -> Result<Self> {
        let at = |structure: &str, member: &str| btf.member_offset(structure, member).map(u64::from);
        let need = |structure: &str, member: &str| {
            at(structure, member).with_context(|| format!("this kernel's BTF has no {structure}.{member}"))
        };
        let slab = if btf.struct_size("slab").is_some() { "slab" } else { "page" };
        Ok(Self {
            page: PageLayout {
                size: btf.struct_size("page").context("this kernel's BTF has no struct page")?.into(),
                private: need("page", "private")?,
                index: at("page", "index").map_or_else(|| need("page", "__folio_index"), Ok)?,
                refcount: need("page", "_refcount")?,
                list: at("page", "pcp_list").map_or_else(|| need("page", "lru"), Ok)?,
            },
            slab: SlabLayout {
                cache: need(slab, "slab_cache")?,
                freelist: need(slab, "freelist")?,
                objects: need(slab, "objects")?,
            },
            cache: CacheLayout {
                name: need("kmem_cache", "name")?,
                size: need("kmem_cache", "size")?,
                object_size: need("kmem_cache", "object_size")?,
                offset: need("kmem_cache", "offset")?,
                random: at("kmem_cache", "random"),
                red_left_pad: at("kmem_cache", "red_left_pad"),
                list: need("kmem_cache", "list")?,
                cpu: cpu_slab(&at),
                sheaves: sheaves(btf, &at),
            },
            area: areas(btf, &at),
            task: task(&at),
            zone: zone(btf, &at),
            rcu_pages: at("kfree_rcu_cpu", "bkvcache"),
            rcu_array: rcu_array(&at),
            rcu_chain: rcu_chain(btf, &at),
            chunk: chunk(&at),
            dentry_inode: at("dentry", "d_inode"),
        })
    }
}

fn chunk(at: At<'_>) -> Option<ChunkLayout> {
    let of = |member: &str| at("pcpu_chunk", member);
    Some(ChunkLayout {
        list: of("list")?,
        base: of("base_addr")?,
        map: of("alloc_map")?,
        bounds: of("bound_map")?,
        pages: of("nr_pages")?,
    })
}

fn rcu_array(at: At<'_>) -> Option<RcuArrayLayout> {
    let of = |member: &str| at("kvfree_rcu_bulk_data", member);
    Some(RcuArrayLayout { list: of("list")?, count: of("nr_records")?, pointers: of("records")? })
}

fn rcu_chain(btf: &Btf, at: At<'_>) -> Option<RcuChainLayout> {
    let of = |member: &str| at("kvfree_rcu_bulk_data", member);
    Some(RcuChainLayout {
        next: of("next")?,
        count: of("nr_records")?,
        pointers: of("records")?,
        heads: at("kfree_rcu_cpu", "bkvhead")?,
        work_heads: at("kfree_rcu_cpu", "krw_arr")? + at("kfree_rcu_cpu_work", "bkvhead_free")?,
        kinds: btf.member_length("kfree_rcu_cpu", "bkvhead")?.into(),
        works: btf.member_length("kfree_rcu_cpu", "krw_arr")?.into(),
        work_bytes: btf.struct_size("kfree_rcu_cpu_work")?.into(),
    })
}

type At<'a> = &'a dyn Fn(&str, &str) -> Option<u64>;

fn cpu_slab(at: At<'_>) -> Option<CpuSlabLayout> {
    Some(CpuSlabLayout {
        pointer: at("kmem_cache", "cpu_slab")?,
        freelist: at("kmem_cache_cpu", "freelist")?,
        slab: at("kmem_cache_cpu", "slab").or_else(|| at("kmem_cache_cpu", "page"))?,
    })
}

fn sheaves(btf: &Btf, at: At<'_>) -> Option<SheafLayout> {
    let nodes = if let (Some(nodes), Some(barn)) = (at("kmem_cache", "node"), at("kmem_cache_node", "barn")) {
        NodesLayout::Node { nodes, barn }
    } else {
        NodesLayout::PerNode {
            nodes: at("kmem_cache", "per_node")?,
            each: btf.struct_size("kmem_cache_per_node_ptrs")?.into(),
            barn: at("kmem_cache_per_node_ptrs", "barn")?,
        }
    };
    Some(SheafLayout {
        pointer: at("kmem_cache", "cpu_sheaves")?,
        of_cpu: [
            at("slub_percpu_sheaves", "main")?,
            at("slub_percpu_sheaves", "spare")?,
            at("slub_percpu_sheaves", "rcu_free")?,
        ],
        used: at("slab_sheaf", "size")?,
        objects: at("slab_sheaf", "objects")?,
        list: at("slab_sheaf", "barn_list")?,
        nodes,
        lists: [at("node_barn", "sheaves_full")?, at("node_barn", "sheaves_empty")?],
        capacity: at("kmem_cache", "sheaf_capacity")?,
    })
}

fn areas(btf: &Btf, at: At<'_>) -> Option<AreaLayout> {
    let nodes = btf
        .struct_size("vmap_node")
        .and_then(|size| Some((u64::from(size), at("vmap_node", "busy")? + at("rb_list", "head")?)));
    Some(AreaLayout {
        start: at("vmap_area", "va_start")?,
        end: at("vmap_area", "va_end")?,
        list: at("vmap_area", "list")?,
        vm: at("vmap_area", "vm")?,
        vm_bytes: btf.struct_size("vm_struct")?.into(),
        address: at("vm_struct", "addr")?,
        flags: at("vm_struct", "flags")?,
        pages: at("vm_struct", "pages")?,
        nr_pages: at("vm_struct", "nr_pages")?,
        caller: at("vm_struct", "caller")?,
        nodes,
    })
}

fn task(at: At<'_>) -> Option<TaskLayout> {
    let thread = at("task_struct", "thread")?;
    // x86 has it in the thread, arm64 in a struct there.
    let sp = at("thread_struct", "sp")
        .or_else(|| Some(at("thread_struct", "cpu_context")? + at("cpu_context", "sp")?))?;
    Some(TaskLayout {
        stack: at("task_struct", "stack")?,
        pid: at("task_struct", "pid")?,
        comm: at("task_struct", "comm")?,
        on_cpu: at("task_struct", "on_cpu")?,
        sp: thread + sp,
        tasks: at("task_struct", "tasks")?,
        signal: at("task_struct", "signal")?,
        threads: at("signal_struct", "thread_head")?,
        thread_node: at("task_struct", "thread_node")?,
        files: at("task_struct", "files")?,
        fdt: at("files_struct", "fdt")?,
        fd: at("fdtable", "fd")?,
        most_files: at("fdtable", "max_fds")?,
        private_data: at("file", "private_data")?,
        inode: at("file", "f_inode")?,
    })
}

fn zone(btf: &Btf, at: At<'_>) -> Option<ZoneLayout> {
    Some(ZoneLayout {
        zones: at("pglist_data", "node_zones")?,
        count: btf.member_length("pglist_data", "node_zones")?.into(),
        size: btf.struct_size("zone")?.into(),
        pageset: at("zone", "per_cpu_pageset")?,
        lists: at("per_cpu_pages", "lists")?,
        lists_count: btf.member_length("per_cpu_pages", "lists")?.into(),
        kinds: btf.enumerator("MIGRATE_PCPTYPES")?.max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn resolves_the_running_kernel() {
        let btf = Btf::read(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        let layout = Layout::resolve(&btf).unwrap();
        assert!(layout.page.size >= 56 && layout.slab.objects > layout.slab.freelist);
        assert!(layout.task.is_some() && layout.zone.is_some() && layout.area.is_some(), "{layout:?}");
        assert!(layout.chunk.is_some(), "{layout:?}");
        assert!(layout.cache.cpu.is_some() || layout.cache.sheaves.is_some());
    }
}
