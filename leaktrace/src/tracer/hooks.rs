//! The hooks as data: what each books, by which mechanisms it can be had, the best one first, and
//! what is misjudged without it.

use crate::kernel::layout::Layout;

/// A kind of memory that is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// Objects of kmalloc and of slab caches.
    Slab,
    /// Pages straight from the page allocator, without those of users, the page cache and slab.
    Page,
    /// Areas of the vmalloc address space.
    Vmalloc,
    /// Per-CPU memory.
    Percpu,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Slab, Self::Vmalloc, Self::Percpu, Self::Page];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Slab => "slab",
            Self::Page => "page",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    /// To a tracepoint, by its arguments.
    #[value(name = "raw_tracepoint")]
    RawTracepoint,
    /// To a function's begin or end by an ftrace trampoline.
    Fentry,
    /// To a function by a breakpoint or a jump, and by its return address.
    Kprobe,
}

impl Mechanism {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::RawTracepoint => "raw_tracepoint",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// A program, and what it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name in the BPF object.
    pub name: &'static str,
    /// The tracepoint or function.
    pub target: &'static str,
    /// What kind of program it is.
    pub kind: Kind,
}

/// Kinds of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On a raw tracepoint.
    RawTracepoint,
    /// At the begin of a function.
    Fentry,
    /// At its end.
    Fexit,
    /// At the begin, or for a kretprobe at the end.
    Kprobe,
}

impl Program {
    /// How it is attached.
    pub fn mechanism(&self) -> Mechanism {
        match self.kind {
            Kind::RawTracepoint => Mechanism::RawTracepoint,
            Kind::Fentry | Kind::Fexit => Mechanism::Fentry,
            Kind::Kprobe => Mechanism::Kprobe,
        }
    }
}

/// One way of having a hook: the programs that it takes, in the order in which they are attached.
pub type Way = Vec<Program>;

/// A path by which the kernel allocates or frees, and the programs that watch it.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its name.
    pub name: &'static str,
    /// The path it sees.
    pub path: &'static str,
    /// What it is for; `None` when for everything.
    pub family: Option<Family>,
    /// Whether tracing makes no sense without it.
    pub required: bool,
    /// Whether objects may be freed unseen without it.
    pub frees: bool,
    /// What is misjudged without it.
    pub without: &'static str,
    /// How it can be had on this kernel, the best way first.
    pub ways: Vec<Way>,
}

/// Name, path, what is misjudged without it.
type Words = (&'static str, &'static str, &'static str);

/// What this kernel offers of the hooks.
struct Offer<'a> {
    layout: &'a Layout,
    families: &'a [Family],
    refused: &'a [Mechanism],
    hooks: Vec<Hook>,
}

impl Offer<'_> {
    /// A hook on a tracepoint, which must exist; without it there is no such path on this kernel.
    fn tracepoint(&mut self, family: Option<Family>, required: bool, frees: bool, words: Words) {
        let (name, ..) = words;
        if self.layout.tracepoints.contains(&name) {
            let way = vec![Program { name, target: name, kind: Kind::RawTracepoint }];
            self.add(family, required, frees, words, vec![way]);
        }
    }

    /// The first of the functions' names that this kernel has.
    fn function(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.layout.functions.contains(name)).copied()
    }

    fn add(
        &mut self,
        family: Option<Family>,
        required: bool,
        frees: bool,
        (name, path, without): Words,
        ways: Vec<Way>,
    ) {
        if family.is_none_or(|family| self.families.contains(&family)) {
            let allowed = |way: &Way| !way.iter().any(|program| self.refused.contains(&program.mechanism()));
            let ways = ways.into_iter().filter(allowed).collect();
            self.hooks.push(Hook { name, path, family, required, frees, without, ways });
        }
    }

    fn slab_frees(&mut self) {
        let slab = Some(Family::Slab);
        self.tracepoint(slab, true, true, ("kfree", "kfree", "objects freed by kfree would all look leaked"));
        self.tracepoint(
            slab,
            true,
            true,
            ("kmem_cache_free", "kmem_cache_free", "objects freed to their cache would all look leaked"),
        );
        if let Some(target) = self.function(&["kmem_cache_free_bulk"]) {
            self.add(
                slab,
                false,
                true,
                (
                    "kmem_cache_free_bulk",
                    "kfree_bulk, kmem_cache_free_bulk",
                    "objects freed this way stay live here until their memory is allocated again; \
                     /proc/slabinfo is asked before such a cache is suspected",
                ),
                vec![
                    vec![Program { name: "fentry_kmem_cache_free_bulk", target, kind: Kind::Fentry }],
                    vec![Program { name: "kprobe_kmem_cache_free_bulk", target, kind: Kind::Kprobe }],
                ],
            );
        }
    }

    /// `kfree_rcu` takes what kmalloc gave, and `kvfree_rcu` what vmalloc gave.
    fn rcu_frees(&mut self) {
        let family = if self.families.contains(&Family::Slab) { Family::Slab } else { Family::Vmalloc };
        if let Some(target) = self.function(&["kvfree_call_rcu"]) {
            self.add(
                Some(family),
                false,
                true,
                (
                    "kvfree_call_rcu",
                    "kfree_rcu, kvfree_rcu",
                    "objects freed this way stay live here until their memory is allocated again; \
                     /proc/slabinfo is asked before such a cache is suspected",
                ),
                vec![
                    vec![Program { name: "fentry_kvfree_call_rcu", target, kind: Kind::Fentry }],
                    vec![Program { name: "kprobe_kvfree_call_rcu", target, kind: Kind::Kprobe }],
                ],
            );
        }
    }

    fn vmalloc(&mut self, frees: bool) {
        let (event, words, ways): (_, Words, [Option<Way>; 2]) = if frees {
            let function = self.function(&["free_vmap_area_noflush"]);
            (
                "free_vmap_area_noflush",
                ("free_vmap_area_noflush", "vfree, vunmap", "areas that are freed would all look leaked"),
                [
                    function.map(|target| {
                        vec![Program { name: "fentry_free_vmap_area_noflush", target, kind: Kind::Fentry }]
                    }),
                    function.map(|target| {
                        vec![Program { name: "kprobe_free_vmap_area_noflush", target, kind: Kind::Kprobe }]
                    }),
                ],
            )
        } else {
            let function = self.function(&["alloc_vmap_area"]);
            (
                "alloc_vmap_area",
                ("alloc_vmap_area", "vmalloc, vmap, ioremap", "vmalloc areas are not seen"),
                [
                    function.map(|target| {
                        vec![Program { name: "fexit_alloc_vmap_area", target, kind: Kind::Fexit }]
                    }),
                    function.map(|target| {
                        vec![Program { name: "kretprobe_alloc_vmap_area", target, kind: Kind::Kprobe }]
                    }),
                ],
            )
        };
        let mut ways: Vec<Way> = ways.into_iter().flatten().collect();
        if self.layout.tracepoints.contains(&event) {
            // It tells of a free when the area is on the list of those that may be had again (`mm/vmalloc.c`), so a CPU
            // that takes it at once is seen first: the function's entry is better, where it can be had.
            let after = usize::from(frees && ways.first().is_some_and(|way| way[0].kind == Kind::Fentry));
            ways.insert(after, vec![Program { name: event, target: event, kind: Kind::RawTracepoint }]);
            ways.truncate(after + 1);
        }
        self.add(Some(Family::Vmalloc), false, frees, words, ways);
    }

    fn other_frees(&mut self) {
        self.vmalloc(true);
        self.tracepoint(
            Some(Family::Percpu),
            false,
            true,
            ("percpu_free_percpu", "free_percpu", "per-CPU memory that is freed would all look leaked"),
        );
        self.tracepoint(
            Some(Family::Page),
            false,
            true,
            (
                "mm_page_free",
                "freeing pages, alone and in batches",
                "pages that are freed would all look leaked",
            ),
        );
    }

    fn slab_allocations(&mut self) {
        let slab = Some(Family::Slab);
        self.tracepoint(slab, true, false, ("kmalloc", "kmalloc", "objects from kmalloc are not seen"));
        self.tracepoint(
            slab,
            true,
            false,
            ("kmem_cache_alloc", "kmem_cache_alloc", "objects from slab caches are not seen"),
        );
        self.tracepoint(
            slab,
            true,
            false,
            ("kmalloc_node", "kmalloc on a node", "objects from kmalloc_node are not seen"),
        );
        self.tracepoint(
            slab,
            true,
            false,
            (
                "kmem_cache_alloc_node",
                "kmem_cache_alloc on a node",
                "objects from kmem_cache_alloc_node are not seen",
            ),
        );
        if let Some(target) = self.function(&["kmem_cache_alloc_bulk_noprof", "kmem_cache_alloc_bulk"]) {
            let kprobe = |name| Program { name, target, kind: Kind::Kprobe };
            self.add(
                slab,
                false,
                false,
                (
                    "kmem_cache_alloc_bulk",
                    "kmem_cache_alloc_bulk",
                    "objects allocated this way are not seen, and a leak of them neither",
                ),
                vec![
                    vec![Program { name: "fexit_kmem_cache_alloc_bulk", target, kind: Kind::Fexit }],
                    vec![kprobe("kretprobe_kmem_cache_alloc_bulk"), kprobe("kprobe_kmem_cache_alloc_bulk")],
                ],
            );
        }
    }

    fn other_allocations(&mut self) {
        self.vmalloc(false);
        self.tracepoint(
            Some(Family::Percpu),
            false,
            false,
            ("percpu_alloc_percpu", "alloc_percpu", "per-CPU memory is not seen"),
        );
        self.tracepoint(
            Some(Family::Page),
            false,
            false,
            ("mm_page_alloc", "alloc_pages, __get_free_pages", "pages are not seen"),
        );
    }
}

/// The hooks that this kernel may have for some families, in the order in which they are attached:
/// frees first, so that an object whose allocation is seen has its free seen too.
pub fn for_kernel(layout: &Layout, families: &[Family], modules: bool, refused: &[Mechanism]) -> Vec<Hook> {
    let mut offer = Offer { layout, families, refused, hooks: Vec::new() };
    offer.slab_frees();
    offer.rcu_frees();
    offer.other_frees();
    offer.tracepoint(
        None,
        false,
        false,
        ("task_rename", "exec", "tasks may go by the name from before their exec"),
    );
    if modules {
        offer.tracepoint(
            None,
            false,
            false,
            ("module_free", "removing a module", "what a removed module leaves behind is not told"),
        );
        offer.tracepoint(
            None,
            false,
            false,
            ("module_load", "loading a module", "a watched module that is loaded later is not seen"),
        );
    }
    offer.slab_allocations();
    offer.other_allocations();
    offer.hooks
}

/// A way of freeing or allocating that no hook of this version sees.
#[derive(Clone, Copy, Debug)]
pub struct Unseen {
    /// The path.
    pub path: &'static str,
    /// What it is of.
    pub family: Family,
    /// What follows for the numbers.
    pub effect: &'static str,
}

/// The paths that nothing here watches.
pub const UNSEEN: [Unseen; 1] = [Unseen {
    path: "alloc_pages_bulk",
    family: Family::Page,
    effect: "pages allocated in bulk, as the page pools of network drivers do, are not seen, and a leak of them neither",
}];
