//! The hooks as data: what each books, how it is attached, and what is misjudged without it.

use crate::kernel::layout::Layout;

/// How a program is attached.
pub const MECHANISM: &str = "raw_tracepoint";

/// A path by which the kernel allocates or frees, and the program that watches it.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program and of the tracepoint.
    pub name: &'static str,
    /// The path it sees.
    pub path: &'static str,
    /// Whether tracing makes no sense without it.
    pub required: bool,
    /// What is misjudged without it.
    pub without: &'static str,
}

/// Frees first: an object whose allocation is seen then has its free seen too.
const HOOKS: [Hook; 7] = [
    Hook {
        name: "kfree",
        path: "kfree",
        required: true,
        without: "objects freed by kfree would all look leaked",
    },
    Hook {
        name: "kmem_cache_free",
        path: "kmem_cache_free",
        required: true,
        without: "objects freed to their cache would all look leaked",
    },
    Hook {
        name: "task_rename",
        path: "exec",
        required: false,
        without: "tasks may go by the name from before their exec",
    },
    Hook { name: "kmalloc", path: "kmalloc", required: true, without: "objects from kmalloc are not seen" },
    Hook {
        name: "kmem_cache_alloc",
        path: "kmem_cache_alloc",
        required: true,
        without: "objects from slab caches are not seen",
    },
    Hook {
        name: "kmalloc_node",
        path: "kmalloc on a node",
        required: true,
        without: "objects from kmalloc_node are not seen",
    },
    Hook {
        name: "kmem_cache_alloc_node",
        path: "kmem_cache_alloc on a node",
        required: true,
        without: "objects from kmem_cache_alloc_node are not seen",
    },
];

/// The hooks that this kernel has, in the order in which they are attached.
pub fn for_kernel(layout: &Layout) -> Vec<Hook> {
    HOOKS
        .into_iter()
        .filter(|hook| match hook.name {
            "kmalloc_node" | "kmem_cache_alloc_node" => layout.node_events,
            "task_rename" => layout.task_rename,
            _ => true,
        })
        .collect()
}

/// A way of freeing or allocating that no hook of this version sees.
#[derive(Clone, Copy, Debug)]
pub struct Unseen {
    /// The path.
    pub path: &'static str,
    /// What follows for the numbers.
    pub effect: &'static str,
}

/// The paths that fire none of the tracepoints (`mm/slub.c`, `mm/slab_common.c`).
pub const UNSEEN: [Unseen; 2] = [
    Unseen {
        path: "kfree_rcu, kvfree_rcu, kfree_bulk, kmem_cache_free_bulk",
        effect: "objects freed this way stay live here until their memory is allocated again; \
                 /proc/slabinfo is asked before such a cache is suspected",
    },
    Unseen {
        path: "kmem_cache_alloc_bulk, pages, vmalloc, percpu",
        effect: "objects allocated this way are not seen, and a leak of them neither",
    },
];
