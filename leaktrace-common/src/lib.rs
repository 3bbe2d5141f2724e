//! The memory layouts that leaktrace's eBPF programs and its user-space side share.
//!
//! Every structure lies in a BPF array map that user space maps into its own address space
//! and reads without a system call, so each one is `#[repr(C)]`, has no padding that is left
//! unwritten, and is never changed by one side alone.
#![no_std]

mod address;
mod config;
mod lifetime;

pub use address::*;
pub use config::*;
pub use lifetime::*;

/// Number of slots in a [`Bucket`]: as many 8-byte keys as fit one 64-byte cache line.
pub const BUCKET_SLOTS: usize = 8;

/// Key of a slot that holds nothing.
pub const KEY_EMPTY: u64 = 0;

/// Key of a slot that a writer has claimed and whose payload is not complete.
pub const KEY_BUSY: u64 = 1;

/// What is known of one outstanding object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Payload {
    /// Time of the allocation, in nanoseconds of `CLOCK_MONOTONIC`: exact if the bit [`EXACT_TIME`]
    /// is set, else that of the last timer tick.
    pub time_ns: u64,
    /// Index of its [`Site`].
    pub site: u32,
    /// Index of its [`StackRecord`], 0 when no stack was captured.
    pub stack: u32,
    /// Process (thread group) that was current at the allocation.
    pub tgid: u32,
    /// Requested bytes for kmalloc; 0 for `kmem_cache`, whose objects are all of one size. Bytes of
    /// the block for pages (with [`FRAGMENT`]), of the area for vmalloc (2 GiB at most), on all CPUs
    /// for per-CPU memory.
    pub size: u32,
}

/// In [`Payload::size`] of pages: a part of a block that was freed in part. Of the parts of one
/// block that live, the others are marked, so that they count as one object.
pub const FRAGMENT: u32 = 1 << 31;

/// [`Payload::site`] of an object that was handed to `kfree_rcu`: its free is booked, its address
/// is not available yet, and it may or may not be seen to be freed once more.
pub const SITE_PENDING: u32 = u32::MAX - 1;

/// A bucket of the live table: its keys in one cache line, then the payloads.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Encoded addresses, [`KEY_EMPTY`] or [`KEY_BUSY`].
    pub keys: [u64; BUCKET_SLOTS],
    /// The payload of the slot whose key has the same index.
    pub payloads: [Payload; BUCKET_SLOTS],
}

/// Bytes of a cache name that are kept, the terminating NUL included.
pub const CACHE_NAME_LEN: usize = 64;

/// [`Site::flags`]: events of this site are not recorded (a filter excludes it).
pub const SITE_IGNORED: u32 = 1;
/// [`Site::flags`]: stacks of this site come first when the stack budget is short.
pub const SITE_SUSPECT: u32 = 2;
/// [`Site::flags`]: `cache_name` was read from the object's own `struct kmem_cache`.
pub const SITE_CACHE_KNOWN: u32 = 4;
/// [`Site::flags`]: the descriptive fields are complete.
pub const SITE_READY: u32 = 8;
/// [`Site::flags`]: the object's page was found not to be a slab page.
pub const SITE_NOT_SLAB: u32 = 16;

/// [`Site::family`]: allocated by `kmalloc` from a slab cache.
pub const FAMILY_KMALLOC: u32 = 1;
/// [`Site::family`]: allocated by `kmalloc` straight from the page allocator.
pub const FAMILY_KMALLOC_LARGE: u32 = 2;
/// [`Site::family`]: allocated by `kmem_cache_alloc`.
pub const FAMILY_KMEM_CACHE: u32 = 3;
/// [`Site::family`]: not an allocation site; counts frees of objects that were not seen allocated.
pub const FAMILY_UNKNOWN_FREE: u32 = 4;
/// [`Site::family`]: pages straight from the page allocator. The address is that of the `struct page`.
pub const FAMILY_PAGE: u32 = 5;
/// [`Site::family`]: an area of the vmalloc address space.
pub const FAMILY_VMALLOC: u32 = 6;
/// [`Site::family`]: per-CPU memory. The address is that of the first CPU's copy.
pub const FAMILY_PERCPU: u32 = 7;

/// The site that takes the events of all sites once the site table is full.
pub const SITE_OTHER: u32 = 0;

/// `call_site` of the pseudo-sites of [`FAMILY_UNKNOWN_FREE`], one for each cache.
pub const UNKNOWN_FREE_CALL_SITE: u64 = 2;

/// One allocation site: a call site and the slab cache that it allocates from.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Site {
    /// 64-bit hash of `call_site` and `discriminator`; 0 while the slot is free.
    pub key: u64,
    /// Return address in the code that allocates; 0 where the event does not say and the stack has to.
    pub call_site: u64,
    /// What tells apart the caches that one call site allocates from.
    pub discriminator: u64,
    /// Encoded address of the `struct kmem_cache`, 0 when not known.
    pub cache: u64,
    /// Bytes that one object takes from the allocator.
    pub object_size: u32,
    /// `SITE_*` bits; user space changes them too.
    pub flags: u32,
    /// gfp flags of the first allocation seen.
    pub gfp: u32,
    /// One of the `FAMILY_*` values.
    pub family: u32,
    /// NUL-terminated name of the cache; empty when not known.
    pub cache_name: [u8; CACHE_NAME_LEN],
    /// Index of a [`StackRecord`] that shows where it allocates, when `call_site` is 0; 0 for none.
    pub stack: u64,
}

/// Innermost frames of a stack that tell one site from another where the event does not.
pub const SITE_FRAMES: usize = 14;

/// Slots probed for a site before it is counted in [`SITE_OTHER`].
pub const SITE_PROBES: u32 = 16;

/// Programs that book frees, each with a counter of its own in [`Counters::freed`].
///
/// `kfree` has the first one, `kmem_cache_free` the second. All others share the third and add to it
/// atomically; the families beside slab have one program each that frees, which takes the first one.
pub const FREEING_PROGRAMS: usize = 3;
/// Index of the counter that is added to atomically.
pub const FREED_SHARED: usize = 2;
/// Of these programs, those with a second one on the same tracepoint, for what comes in the middle of the first.
pub const FREEING_PAIRS: usize = 2;

/// Counters of one site on one shard of the CPUs. Four cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Counters {
    /// Allocations.
    pub allocated: u64,
    /// Those of them that are not tracked: their address is not in the sample, or every place was full.
    pub untracked: u64,
    /// Objects whose free was not seen, found when their address was allocated again.
    pub implicit_frees: u64,
    /// Frees that were seen, by the program that saw them: one may interrupt the other, and no
    /// program adds to a counter of another, so adding need not be atomic.
    pub freed: [u64; FREEING_PROGRAMS],
    /// Those of objects with an exact time by lifetime: class `k` counts those of `[2^(k-1), 2^k)`
    /// times 4.096 microseconds, class 0 shorter ones, the last one all longer ones.
    pub lifetimes: [u64; LIFETIME_CLASSES],
}

/// Deepest stack that is kept.
pub const MAX_STACK_DEPTH: usize = 62;

/// One distinct stack.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct StackRecord {
    /// 64-bit hash of the frames; 0 while the slot is free.
    pub hash: u64,
    /// Number of frames; written last, so 0 means not complete.
    pub depth: u64,
    /// Return addresses, innermost first.
    pub frames: [u64; MAX_STACK_DEPTH],
}

/// Slots probed for a stack before it is counted as lost.
pub const STACK_PROBES: u32 = 8;

/// What user space tells the programs while they run, and the few counters that have no site.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Control {
    /// One address in `2^sample_shift` is tracked.
    pub sample_shift: u64,
    /// When the stack budget is short, only addresses whose hash has these bits clear get a stack.
    pub stack_mask: u64,
    /// Objects now in the overflow map.
    pub overflow_live: u64,
    /// Allocations that found the overflow map full, too, of all sites.
    pub overflow_lost: u64,
    /// Sites that did not fit the site table (events, not sites).
    pub sites_full: u64,
    /// Stacks that did not fit the stack table.
    pub stacks_full: u64,
    /// Stack captures that the kernel refused.
    pub stacks_failed: u64,
    /// Objects whose cache could not be found from their page.
    pub cache_unknown: u64,
    /// Pages checked, and found right, against a cache that the event itself named.
    pub page_lookups_right: u64,
    /// Pages checked and found wrong: the page lookup does not fit this kernel.
    pub page_lookups_wrong: u64,
    /// Orders of blocks of pages that may be freed in parts, as a mask.
    pub splittable: u64,
    /// Lowest and highest address of the watched modules' code so far.
    pub watch_low: u64,
    /// See `watch_low`; 0 before a watched module is loaded.
    pub watch_high: u64,
    /// Watched modules that are loaded.
    pub watched: u64,
    /// Module events so far; the newest ones are in the table of [`ModuleEvent`].
    pub module_events: u64,
    /// The first `struct page`, as the programs found it.
    pub vmemmap: u64,
    /// The begin of the direct map of physical memory, likewise.
    pub page_offset: u64,
    /// Frees whose caller found no place in the table of callers.
    pub callers_full: u64,
    /// The same as `stack_mask` for pages, of which nothing but a stack says where they come from. Of larger blocks fewer bits
    /// count.
    pub page_mask: u64,
}

/// The lowest bit of an address's hash that masks for stacks have: beside those that choose the bucket, and those that choose
/// the sample.
pub const STACK_MASK_SHIFT: u32 = 44;

/// Pairs of a site and who frees its objects that are kept.
pub const MAX_FREE_CALLERS: u32 = 4_096;
/// Instead of a caller's address: freed by `kfree_rcu`.
pub const FREED_BY_RCU: u64 = 1;
/// Instead of a caller's address: freed among many at a time.
pub const FREED_IN_BULK: u64 = 2;

/// Words that a [`Peek`] reads.
pub const PEEK_WORDS: usize = 30;
/// Reads of kernel memory that one run of the program `peek` can do.
pub const MAX_PEEKS: u32 = 256;

/// A read of kernel memory.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Peek {
    /// Encoded address, as that of an object.
    pub address: u64,
    /// 1 when all the words could be read.
    pub read: u64,
    /// The words; user space clears them, so that nobody takes them for references.
    pub words: [u64; PEEK_WORDS],
}

/// Modules that can be watched at a time.
pub const MAX_MODULES: usize = 16;
/// Ranges of code of one module: its text, and the text of its initialisation.
pub const MODULE_RANGES: usize = 2;
/// Bytes of a module's name, the terminating NUL included (`MODULE_NAME_LEN` is 64 less a pointer).
pub const MODULE_NAME_LEN: usize = 64;
/// Module events that are kept.
pub const MODULE_EVENTS: u32 = 256;

/// Code of a watched module; both 0 while it is not loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ModuleRange {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
}

/// A watched module came or went.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct ModuleEvent {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Its number, from 1; written last. Another one than expected means not complete, or written over.
    pub number: u64,
    /// Index of the module among those watched.
    pub module: u32,
    /// 1 when it was loaded, 0 when it is being removed.
    pub loaded: u32,
    /// Its code.
    pub ranges: [ModuleRange; MODULE_RANGES],
}

/// State of one CPU.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct CpuState {
    /// Nanoseconds of stack capture that this CPU may still spend; negative when in debt.
    pub tokens_ns: i64,
    /// When `tokens_ns` was last filled up.
    pub refilled_ns: u64,
    /// Task whose name was last noted on this CPU.
    pub last_pid: u64,
    /// 1 while every allocation may have its stack, 0 while the budget is short.
    pub plenty: u32,
    /// Padding.
    pub unused: u32,
    /// One bit for each program that is capturing a stack on this CPU. Kernels before 6.1 let a
    /// program interrupt itself, and its buffer is one only. Those at function calls may be preempted.
    pub capturing: u64,
    /// Stacks captured.
    pub stacks: u64,
    /// Nanoseconds spent in capturing them.
    pub stacks_ns: u64,
    /// The kernel's count of timer ticks when `tick_ns` was read.
    pub tick: u64,
    /// Time of that tick, or a later one that was read since.
    pub tick_ns: u64,
    /// Encoded addresses of the objects whose frees are being booked: by the programs on `kfree` and on `kmem_cache_free`.
    pub freeing: [u64; FREEING_PAIRS],
    /// Frees that these programs were left out for, and that their second ones have booked.
    pub booked_instead: [u64; FREEING_PAIRS],
}

const _: () = {
    assert!(size_of::<Payload>() == 24);
    assert!(size_of::<Bucket>() == 256);
    assert!(size_of::<Site>() == 128);
    assert!(size_of::<Counters>() == 256);
    assert!(size_of::<StackRecord>() == 512);
    assert!(size_of::<CpuState>() == 128);
    assert!(size_of::<Control>() == 192);
    assert!(size_of::<Peek>() == 256);
    assert!(size_of::<ModuleEvent>() == 64);
};
