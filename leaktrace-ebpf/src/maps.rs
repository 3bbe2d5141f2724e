//! The maps. Their sizes are set at load; user space maps the arrays into its memory.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use leaktrace_common::{
    Bucket, CACHE_NAME_LEN, Control, Counters, CpuState, KEY_EMPTY, MAX_FREE_CALLERS, MAX_MODULES, MAX_PEEKS,
    MODULE_EVENTS, MODULE_NAME_LEN, MODULE_RANGES, ModuleEvent, ModuleRange, Payload, Peek, Site,
    StackRecord,
};

use crate::config::config;

/// Programs that capture stacks; each has a scratch buffer of its own on every CPU, because an
/// interrupt can run one of them in the middle of another.
pub(crate) const CAPTURING_PROGRAMS: u32 = 8;

/// Words of a scratch buffer: the deepest stack, and what the verifier wants as slack.
pub(crate) const SCRATCH_WORDS: usize = 64;

#[map]
pub(crate) static LIVE: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static OVERFLOW: HashMap<u64, Payload> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static SITES: Array<Site> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static STACKS: Array<StackRecord> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS]> = PerCpuArray::with_max_entries(CAPTURING_PROGRAMS, 0);
#[map]
pub(crate) static TASKS: LruHashMap<u32, [u8; 16]> = LruHashMap::with_max_entries(8192, 0);
#[map]
pub(crate) static CACHES: HashMap<[u8; CACHE_NAME_LEN], u8> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static MODULES: Array<[ModuleRange; MAX_MODULES * MODULE_RANGES]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static MODULE_LOG: Array<ModuleEvent> = Array::with_max_entries(MODULE_EVENTS, BPF_F_MMAPABLE);
/// Names of the watched modules, and their indices.
#[map]
pub(crate) static WATCHED: HashMap<[u8; MODULE_NAME_LEN], u32> =
    HashMap::with_max_entries(MAX_MODULES as u32, 0);
/// What a function that is being probed was called with, until it returns; by its stack pointer.
#[map]
pub(crate) static CALLS: LruHashMap<u64, [u64; 3]> = LruHashMap::with_max_entries(1024, 0);

/// Who frees the objects of which site: frees of those with an exact time, by site and caller.
#[map]
pub(crate) static FREE_CALLERS: HashMap<[u64; 2], u64> = HashMap::with_max_entries(MAX_FREE_CALLERS, 0);
#[map]
pub(crate) static PEEKS: Array<Peek> = Array::with_max_entries(MAX_PEEKS, BPF_F_MMAPABLE);

/// The control block.
#[inline(always)]
pub(crate) fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}

/// The bucket of an address with this hash.
#[inline(always)]
pub(crate) fn bucket(hash: u64) -> Option<*mut Bucket> {
    LIVE.get_ptr_mut((hash >> leaktrace_common::BUCKET_SHIFT) as u32 & config!(bucket_mask))
}

/// The counters of a site on a CPU.
#[inline(always)]
pub(crate) fn counters(site: u32, cpu: u32) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut((cpu & config!(shard_mask)) << config!(site_bits) | site)
}

/// This CPU's stack buffer of one program.
#[inline(always)]
pub(crate) fn scratch(program: u32) -> Option<*mut [u64; SCRATCH_WORDS]> {
    SCRATCH.get_ptr_mut(program)
}

const _: () = assert!(KEY_EMPTY == 0, "maps begin zeroed, which must mean empty");
