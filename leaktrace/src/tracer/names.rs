//! What the tables hold beside objects: names of caches and tasks, stacks, and the overflow map.

use anyhow::{Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapError},
};
use leaktrace_common::{
    Control, FAMILY_KMALLOC, FAMILY_KMALLOC_LARGE, FAMILY_KMEM_CACHE, FAMILY_PAGE, FAMILY_PERCPU,
    FAMILY_VMALLOC, Payload, SITE_CACHE_KNOWN, SITE_PENDING, Site, StackRecord, decode_address,
};
use rustc_hash::FxHashMap;

use super::mapped::MappedArray;

/// Name of the caches of large kmallocs, which have none.
pub const LARGE: &str = "kmalloc-large";

/// gfp bits as they have always been (`include/linux/gfp_types.h`), for names only.
const GFP_DMA: u32 = 1;
const GFP_RECLAIMABLE: u32 = 1 << 4;
const GFP_ACCOUNT: u32 = 1 << 22;

/// Name of the cache that a site allocates from: the kernel's own, or what kmalloc's is called
/// for that size (`mm/slab_common.c`) when it could not be read or `trusted` is false.
pub fn cache_name(site: &Site, trusted: bool) -> String {
    match site.family {
        FAMILY_KMALLOC_LARGE => return LARGE.to_owned(),
        FAMILY_PAGE => return format!("pages-{}k", site.object_size / 1_024),
        FAMILY_VMALLOC | FAMILY_PERCPU => return family_name(site.family).to_owned(),
        _ => {}
    }
    if site.flags & SITE_CACHE_KNOWN != 0 && (trusted || site.family != FAMILY_KMALLOC) {
        let length = site.cache_name.iter().position(|&byte| byte == 0).unwrap_or(site.cache_name.len());
        return String::from_utf8_lossy(&site.cache_name[..length]).into_owned();
    }
    if site.family != FAMILY_KMALLOC {
        return "(unknown)".to_owned();
    }
    let size = match site.object_size {
        bytes if bytes >= 1_024 && bytes % 1_024 == 0 => format!("{}k", bytes / 1_024),
        bytes => bytes.to_string(),
    };
    match site.gfp {
        gfp if gfp & GFP_DMA != 0 => format!("dma-kmalloc-{size}"),
        gfp if gfp & GFP_RECLAIMABLE != 0 => format!("kmalloc-rcl-{size}"),
        gfp if gfp & GFP_ACCOUNT != 0 => format!("kmalloc-cg-{size}"),
        _ => format!("kmalloc-{size}"),
    }
}

/// The word for a family in the report.
pub fn family_name(family: u32) -> &'static str {
    match family {
        FAMILY_KMALLOC => "kmalloc",
        FAMILY_KMALLOC_LARGE => "kmalloc-large",
        FAMILY_KMEM_CACHE => "kmem_cache",
        FAMILY_PAGE => "page",
        FAMILY_VMALLOC => "vmalloc",
        FAMILY_PERCPU => "percpu",
        _ => "unknown",
    }
}

/// Names of the processes that allocated, by process id.
///
/// # Errors
/// When the map cannot be read.
pub fn read_tasks(ebpf: &Ebpf) -> Result<FxHashMap<u32, String>> {
    let map = ebpf.map("TASKS").ok_or_else(|| anyhow!("the BPF object has no map TASKS"))?;
    let map: HashMap<_, u32, [u8; 16]> = HashMap::try_from(map)?;
    let mut tasks = FxHashMap::default();
    for entry in &map {
        let (tgid, name) = entry?;
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        tasks.insert(tgid, String::from_utf8_lossy(&name[..length]).into_owned());
    }
    Ok(tasks)
}

/// Who frees the objects of each site: callers and frees.
///
/// # Errors
/// When the map cannot be read.
pub fn read_free_callers(ebpf: &Ebpf) -> Result<FxHashMap<u32, FxHashMap<u64, u64>>> {
    let map = ebpf.map("FREE_CALLERS").ok_or_else(|| anyhow!("the BPF object has no map FREE_CALLERS"))?;
    let map: HashMap<_, [u64; 2], u64> = HashMap::try_from(map)?;
    let mut callers: FxHashMap<u32, FxHashMap<u64, u64>> = FxHashMap::default();
    for entry in &map {
        let ([site, caller], frees) = entry?;
        callers.entry(site as u32).or_default().insert(caller, frees);
    }
    Ok(callers)
}

/// All frames of a stack, those of the tracing first; empty when there is no such stack.
pub fn read_whole_stack(stacks: &MappedArray<StackRecord>, id: u32) -> Vec<u64> {
    if id == 0 || id as usize >= stacks.len() {
        return Vec::new();
    }
    let record = stacks.read(id as usize);
    let depth = (record.depth as usize).min(record.frames.len());
    record.frames[..depth].to_vec()
}

/// Frames of a stack from `call_site` outwards: what lies before is the allocator and the tracing.
pub fn read_stack(stacks: &MappedArray<StackRecord>, id: u32, call_site: u64) -> Vec<u64> {
    let mut frames = read_whole_stack(stacks, id);
    let start = frames.iter().position(|&frame| frame == call_site).unwrap_or(0);
    frames.drain(..start);
    frames
}

/// The objects in the overflow map. Those that come and go meanwhile may be missed or be there.
///
/// # Errors
/// When the map cannot be read.
pub fn read_overflow(ebpf: &Ebpf) -> Result<Vec<(u64, Payload)>> {
    let map = ebpf.map("OVERFLOW").ok_or_else(|| anyhow!("the BPF object has no map OVERFLOW"))?;
    let map: HashMap<_, u64, PodPayload> = HashMap::try_from(map)?;
    let mut objects = FxHashMap::default();
    // Deleting the key that the walk stands on makes it begin again: a map by key, and a bound.
    for entry in map.iter().take(1 << 20) {
        match entry {
            Ok((key, payload)) => {
                objects.insert(key, payload.0);
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(objects.into_iter().collect())
}

/// Takes the objects that are no longer in the sample out of the overflow map; counts the rest in `kept`.
///
/// # Errors
/// When the map cannot be read.
pub fn purge_overflow(
    ebpf: &mut Ebpf,
    control: &MappedArray<Control>,
    shift: u32,
    kept: &mut [u64],
) -> Result<()> {
    retain_overflow(ebpf, control, |key, payload| {
        let hash = leaktrace_common::address_hash(decode_address(key));
        let stays = leaktrace_common::is_sampled(hash, shift);
        if stays && let Some(kept) = kept.get_mut(payload.site as usize) {
            *kept += 1;
        }
        stays
    })
}

/// Removes the notes on objects that were handed to `kfree_rcu` before some time.
///
/// # Errors
/// When the map cannot be read.
pub fn forget_pending(ebpf: &mut Ebpf, control: &MappedArray<Control>, before_ns: u64) -> Result<()> {
    retain_overflow(ebpf, control, |_, payload| payload.site != SITE_PENDING || payload.time_ns >= before_ns)
}

/// Removes what does not stay from the overflow map, and counts that.
fn retain_overflow(
    ebpf: &mut Ebpf,
    control: &MappedArray<Control>,
    mut stays: impl FnMut(u64, &Payload) -> bool,
) -> Result<()> {
    let objects = read_overflow(ebpf)?;
    let map = ebpf.map_mut("OVERFLOW").ok_or_else(|| anyhow!("the BPF object has no map OVERFLOW"))?;
    let mut map: HashMap<_, u64, PodPayload> = HashMap::try_from(map)?;
    for (key, payload) in objects {
        if !stays(key, &payload) && map.remove(&key).is_ok() {
            // SAFETY: the control block is mapped, and programs add to this word atomically too.
            unsafe { leaktrace_ebpf::atomic::add(&raw mut (*control.at(0)).overflow_live, u64::MAX) };
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodPayload(Payload);

// SAFETY: plain integers without padding.
unsafe impl aya::Pod for PodPayload {}
