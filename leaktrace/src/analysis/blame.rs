//! Which frame of a stack is to blame, by the names of functions.
//!
//! The allocator's own functions and those that allocate for others are not: their callers are.

/// Functions of the allocators, by the begin of their names. Versions differ in leading
/// underscores and in suffixes like `_noprof`, which are cut off before.
const ALLOCATORS: [&str; 33] = [
    "alloc_contig",
    "alloc_frozen_pages",
    "alloc_page",
    "alloc_percpu",
    "alloc_vmap_area",
    "folio_alloc",
    "free_pages_exact",
    "get_free_page",
    "get_free_pages",
    "get_vm_area",
    "get_zeroed_page",
    "ioremap",
    "kmalloc",
    "kmem_cache_alloc",
    "kmem_cache_zalloc",
    "krealloc",
    "kvmalloc",
    "kvrealloc",
    "kcalloc",
    "kvcalloc",
    "kvzalloc",
    "kzalloc",
    "make_alloc_exact",
    "mempool_alloc",
    "page_frag_alloc",
    "page_frag_cache",
    "skb_page_frag_refill",
    "traceiter_",
    "vm_map_ram",
    "vmalloc",
    "vmap",
    "vzalloc",
    "rmqueue",
];

/// What tracing itself puts on a stack.
const TRACING: [&str; 5] = ["bpf_", "arch_rethook", "kretprobe", "kprobe", "ftrace_"];

/// Inline functions of the kernel's headers that the compiler may leave as functions in a module:
/// there only whole names count, because the rest is the module's.
const INLINE: [&str; 38] = [
    "alloc_page",
    "alloc_pages",
    "alloc_pages_node",
    "alloc_skb",
    "alloc_skb_fclone",
    "dev_alloc_page",
    "dev_alloc_pages",
    "dev_alloc_skb",
    "devm_kcalloc",
    "devm_kmalloc_array",
    "devm_kzalloc",
    "folio_alloc",
    "get_zeroed_page",
    "kcalloc",
    "kcalloc_node",
    "kmalloc",
    "kmalloc_array",
    "kmalloc_array_node",
    "kmalloc_large",
    "kmalloc_node",
    "kmalloc_obj",
    "kmem_cache_zalloc",
    "kvcalloc",
    "kvcalloc_node",
    "kvmalloc",
    "kvmalloc_array",
    "kvmalloc_array_node",
    "kvmalloc_node",
    "kvzalloc",
    "kvzalloc_node",
    "kzalloc",
    "kzalloc_node",
    "krealloc_array",
    "memdup_array_user",
    "netdev_alloc_skb",
    "netdev_alloc_skb_ip_align",
    "sk_alloc_sg",
    "vmalloc_array",
];

/// Functions that allocate for others.
const HELPERS: [&str; 28] = [
    "alloc_skb",
    "build_skb",
    "napi_alloc_skb",
    "netdev_alloc_skb",
    "kmalloc_reserve",
    "pskb_expand_head",
    "skb_clone",
    "skb_copy",
    "kasprintf",
    "kvasprintf",
    "kmemdup",
    "kstrdup",
    "kstrndup",
    "devm_k",
    "devres_alloc",
    "memdup_user",
    "vmemdup_user",
    "alloc_inode",
    "new_inode",
    "inode_init_always",
    "alloc_skb_with_frags",
    "sock_alloc_send",
    "sock_wmalloc",
    "d_alloc",
    "lsm_blob_alloc",
    "lsm_inode_alloc",
    "security_inode_alloc",
    "security_file_alloc",
];

/// Each filesystem has a function that allocates its inodes, called so.
const ALLOCATES_INODES: &str = "_alloc_inode";

/// The kernel's own users of pages: what they take is counted elsewhere, as slab, vmalloc, per-CPU
/// memory, page tables, or large kmallocs.
const PAGE_USERS: [&str; 21] = [
    "alloc_slab",
    "allocate_slab",
    "new_slab",
    "slab_alloc",
    "refill_objects",
    "refill_sheaf",
    "kmalloc_large",
    "kmalloc_order",
    "vmalloc_area_node",
    "vmalloc_node_range",
    "vm_area_alloc_pages",
    "pcpu_",
    "pte_alloc",
    "pmd_alloc",
    "pud_alloc",
    "p4d_alloc",
    "pgd_alloc",
    "alloc_low_pages",
    "get_pgd",
    "vmemmap_",
    "kasan_populate",
];

/// Whether a slab cache holds what the kernel's own leak detector notes of each object
/// (`mm/kmemleak.c`): it grows with every leak, and is none.
pub fn is_bookkeeping(cache: &str) -> bool {
    matches!(cache, "kmemleak_object" | "kmemleak_scan_area")
}

/// Whether a function notes in slab objects which areas vmalloc has given out (`mm/vmalloc.c`). They are freed some
/// time after their area, and grow with every leak of one, which tells more.
pub fn notes_areas(symbol: &str) -> bool {
    is_one_of(symbol, &["alloc_vmap_area", "get_vm_area_node"])
}

/// A function's name without what differs between versions and compilers.
pub fn plain(symbol: &str) -> &str {
    let symbol = symbol.trim_start_matches('_');
    let symbol = symbol.split('.').next().unwrap_or_default();
    symbol.strip_suffix("_noprof").unwrap_or(symbol)
}

fn is_one_of(symbol: &str, beginnings: &[&str]) -> bool {
    let symbol = plain(symbol);
    beginnings.iter().any(|beginning| symbol.starts_with(beginning))
}

/// A function on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its name.
    pub symbol: &'a str,
    /// The loadable module that it lies in.
    pub module: Option<&'a str>,
}

impl Function<'_> {
    /// Whether it is part of an allocator.
    pub fn is_allocator(&self) -> bool {
        if self.module.is_some() {
            INLINE.contains(&plain(self.symbol))
        } else {
            is_one_of(self.symbol, &ALLOCATORS)
        }
    }

    /// Whether it is part of an allocator, or allocates for others.
    pub fn is_helper(&self) -> bool {
        self.is_allocator()
            || (self.module.is_none()
                && (is_one_of(self.symbol, &HELPERS) || plain(self.symbol).ends_with(ALLOCATES_INODES)))
    }

    /// Its name without what compilers add to parts and copies of functions.
    pub fn whole(&self) -> &str {
        self.symbol.split('.').next().unwrap_or_default()
    }

    /// Whether it belongs to the tracing itself.
    fn is_tracing(&self) -> bool {
        self.module.is_none() && is_one_of(self.symbol, &TRACING)
    }
}

/// Which module uses functions of which, as /proc/modules says.
pub trait Uses {
    /// Whether the first uses the second.
    fn uses(&self, user: &str, library: &str) -> bool;

    /// Whether any module uses it.
    fn is_library(&self, module: &str) -> bool;
}

/// Where nobody knows what uses what.
pub struct NoneKnown;

impl Uses for NoneKnown {
    fn uses(&self, _: &str, _: &str) -> bool {
        false
    }

    fn is_library(&self, _: &str) -> bool {
        false
    }
}

/// Functions of a library between what it allocates and its caller, at most.
const DEEPEST: usize = 2;

/// The responsible frame of a stack whose first frame is the call site: the first one past allocator and
/// helper functions, those in `more` included. `None` when there is no such frame; a frame without
/// a symbol is somebody's.
///
/// A module that was called right from one that uses it is a library, and its caller is responsible: what isotp takes by
/// `can_rx_register` is isotp's to give back. Who calls without using was asked to, by a callback; and what a library takes
/// deep within itself, like hid for a report that a device sends, it takes for itself.
pub fn responsible(frames: &[Option<Function<'_>>], more: &[String], modules: &dyn Uses) -> Option<usize> {
    let passes_on =
        |function: &Function<'_>| function.is_helper() || more.iter().any(|name| name == function.whole());
    let mut at = frames.iter().position(|frame| !frame.as_ref().is_some_and(passes_on))?;
    let module_of = |index: usize| frames[index].and_then(|function| function.module);
    while let Some(library) = module_of(at) {
        let past = (at..frames.len()).find(|&index| module_of(index) != Some(library));
        match past.and_then(|past| Some((past, module_of(past)?))) {
            Some((past, user)) if past - at <= DEEPEST && modules.uses(user, library) => at = past,
            _ => break,
        }
    }
    Some(at)
}

/// In whose name code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// In a system call or a page fault of a process.
    Process,
    /// In a kernel thread or an interrupt.
    Kernel,
    /// The stack does not reach so far.
    Unknown,
}

/// Where a stack begins when a process enters the kernel (`arch/x86/entry`, `arch/arm64/kernel/entry-common.c`).
const ENTRIES: [&str; 10] = [
    "entry_SYSCALL",
    "do_syscall_64",
    "entry_SYSENTER",
    "do_fast_syscall",
    "do_int80",
    "el0",
    "invoke_syscall",
    "asm_exc_page_fault",
    "exc_page_fault",
    "ret_from_sys",
];
/// What kernel threads and interrupts have on theirs.
const WITHOUT_PROCESS: [&str; 16] = [
    "kthread",
    "worker_thread",
    "process_one_work",
    "run_ksoftirqd",
    "handle_softirqs",
    "do_softirq",
    "irq_exit",
    "common_interrupt",
    "asm_common_interrupt",
    "sysvec_",
    "asm_sysvec_",
    "handle_irq",
    "el1h_64_irq",
    "cpu_startup_entry",
    "start_secondary",
    "do_idle",
];

/// Tells in whose name a stack runs, the innermost frame first: what is innermost counts, because
/// an interrupt lies on the stack of whatever it interrupted.
pub fn context(frames: &[Option<Function<'_>>]) -> Context {
    for function in frames.iter().flatten().filter(|function| function.module.is_none()) {
        if is_one_of(function.symbol, &WITHOUT_PROCESS) {
            return Context::Kernel;
        }
        if is_one_of(function.symbol, &ENTRIES) {
            return Context::Process;
        }
    }
    Context::Unknown
}

/// Where an allocation comes from whose event does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The frame of this index is the call site.
    At(usize),
    /// The memory is the kernel's own and counted elsewhere.
    CountedElsewhere,
    /// No frame is past the allocator.
    Unknown,
}

/// Finds the call site on a whole stack, the innermost frame first; `None` is a frame without a
/// symbol. What comes before the allocator's first function is the tracing. Of `pages` the kernel's
/// own users are told apart.
pub fn call_site(frames: &[Option<Function<'_>>], pages: bool) -> Place {
    let allocator = |frame: &Option<Function<'_>>| frame.is_some_and(|f| f.is_allocator());
    let Some(first) = frames.iter().position(allocator) else {
        // The allocator has returned, or goes by a name that is not known: past the tracing then, of
        // which a program and its trampoline have no symbols.
        return frames
            .iter()
            .enumerate()
            .position(|(index, frame)| frame.map_or(index >= 2, |function| !function.is_tracing()))
            .map_or(Place::Unknown, Place::At);
    };
    let inner = |frame: &Option<Function<'_>>| {
        frame.is_some_and(|function| function.is_allocator() || function.is_tracing())
    };
    let Some(past) = frames[first..].iter().position(|frame| !inner(frame)) else { return Place::Unknown };
    let mut users = frames[first..=first + past].iter().flatten();
    if pages && users.any(|function| function.module.is_none() && is_one_of(function.symbol, &PAGE_USERS)) {
        return Place::CountedElsewhere;
    }
    Place::At(first + past)
}

#[cfg(test)]
#[path = "blame_tests.rs"]
mod tests;
