//! Where this kernel keeps what the eBPF programs read: argument positions and struct offsets.

use std::path::Path;

use anyhow::{Result, anyhow};
use leaktrace_common::Config;

use super::{btf::Btf, machine::page_bytes, memory, symbols::Symbols};

/// What was found of the slab tracepoints and structs.
pub struct Layout {
    /// The part of the programs' configuration that depends on the kernel.
    pub config: Config,
    /// Tracepoints that this kernel has, of those that leaktrace may use.
    pub tracepoints: Vec<&'static str>,
    /// Functions that this kernel has, likewise, by the names that they have had.
    pub functions: Vec<&'static str>,
    /// Why the cache of a kmalloc object cannot be looked up, if it cannot.
    pub no_page_lookup: Option<String>,
    /// Where the kernel's memory is by its own addresses, where that is settled when it is built or started.
    pub memory: Option<memory::Map>,
}

/// Prefix of the function behind each tracepoint, whose prototype has the parameters' names
/// (`include/linux/tracepoint.h`).
const TRACEPOINT_FUNCTION: &str = "__traceiter_";

/// Tracepoints beside those of slab, which every kernel has.
const TRACEPOINTS: [&str; 9] = [
    "task_rename",
    "mm_page_alloc",
    "mm_page_free",
    "alloc_vmap_area",
    "free_vmap_area_noflush",
    "percpu_alloc_percpu",
    "percpu_free_percpu",
    "module_load",
    "module_free",
];

/// Functions that fire no tracepoint. Those of memory allocation profiling have had a suffix since 6.10.
const FUNCTIONS: [&str; 6] = [
    "kvfree_call_rcu",
    "kmem_cache_free_bulk",
    "kmem_cache_alloc_bulk_noprof",
    "kmem_cache_alloc_bulk",
    "alloc_vmap_area",
    "free_vmap_area_noflush",
];

/// x86-64 without address randomisation (`arch/x86/include/asm/page_64_types.h`, `pgtable_64_types.h`).
/// The first `struct page`, and the begin of the direct map, with four levels of page tables.
pub const FOUR_LEVELS: (u64, u64) = (0xffff_ea00_0000_0000, 0xffff_8880_0000_0000);
/// The same with five.
pub const FIVE_LEVELS: (u64, u64) = (0xffd4_0000_0000_0000, 0xff11_0000_0000_0000);

/// Largest kmalloc that comes from a slab cache: two pages (`include/linux/slab.h`, SLUB).
const MAX_CACHE_PAGES: u32 = 2;

impl Layout {
    /// Resolves everything from BTF, kallsyms, and what /proc below `root` says.
    ///
    /// # Errors
    /// When a tracepoint or a member without which nothing can be traced is missing.
    pub fn resolve(btf: &Btf, symbols: &Symbols, root: &Path) -> Result<Self> {
        let page_bytes = page_bytes() as u32;
        let mut config = Config { page_shift: page_bytes.trailing_zeros(), ..Config::default() };
        config.max_cache_size = page_bytes * MAX_CACHE_PAGES;
        config.kmalloc_bytes_req = argument(btf, "kmalloc", "bytes_req")?;
        config.kmalloc_bytes_alloc = argument(btf, "kmalloc", "bytes_alloc")?;
        config.kmalloc_gfp = argument(btf, "kmalloc", "gfp_flags")?;
        config.cache_alloc_gfp = argument(btf, "kmem_cache_alloc", "gfp_flags")?;
        // Without `s` the programs find the cache from the object's page.
        config.cache_alloc_cache = argument(btf, "kmem_cache_alloc", "s").unwrap_or(0);
        config.cache_free_cache = argument(btf, "kmem_cache_free", "s").unwrap_or(0);
        for event in ["kfree", "kmem_cache_free"] {
            argument(btf, event, "ptr")?;
        }
        config.cache_name = member(btf, "kmem_cache", "name")?;
        config.cache_size = member(btf, "kmem_cache", "size")?;
        config.gfp_class = gfp_class(btf);
        config.gfp_movable = gfp_bit(btf, "___GFP_MOVABLE_BIT", 3);
        config.gfp_compound = gfp_bit(btf, "___GFP_COMP_BIT", 18);
        resolve_percpu(&mut config, btf);
        resolve_functions(&mut config, btf);
        resolve_modules(&mut config, btf);
        config.weakly_ordered = u32::from(!cfg!(target_arch = "x86_64"));
        let (memory, no_page_lookup) = match resolve_pages(&mut config, btf, symbols, root) {
            Ok(memory) => (memory, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        if config.cache_alloc_cache == 0 && no_page_lookup.is_some() {
            return Err(anyhow!(
                "this kernel's kmem_cache_alloc event does not name the cache, and pages cannot be looked up: {}",
                no_page_lookup.unwrap_or_default()
            ));
        }
        let node_events = has_tracepoint(btf, "kmalloc_node");
        // Both changed in 6.1: since then a raw tracepoint's program never interrupts itself
        // (`kernel/trace/bpf_trace.c`, `__bpf_trace_run`).
        config.counters_shared = u32::from(node_events);
        let mut tracepoints: Vec<_> =
            TRACEPOINTS.into_iter().filter(|event| has_tracepoint(btf, event)).collect();
        if node_events {
            tracepoints.extend(["kmalloc_node", "kmem_cache_alloc_node"]);
        }
        if config.percpu_base == 0 {
            tracepoints.retain(|event| !event.starts_with("percpu_"));
        }
        if config.module_text == 0 {
            tracepoints.retain(|event| !event.starts_with("module_"));
        }
        tracepoints.extend(["kmalloc", "kmem_cache_alloc", "kfree", "kmem_cache_free"]);
        let functions = FUNCTIONS.into_iter().filter(|function| btf.has_function(function)).collect();
        Ok(Self { config, tracepoints, functions, no_page_lookup, memory })
    }
}

fn has_tracepoint(btf: &Btf, event: &str) -> bool {
    btf.parameters(&format!("{TRACEPOINT_FUNCTION}{event}")).is_some()
}

/// Index of a tracepoint's argument; the first two must be where the programs read them.
fn argument(btf: &Btf, event: &str, name: &str) -> Result<u32> {
    let parameters = btf
        .parameters(&format!("{TRACEPOINT_FUNCTION}{event}"))
        .ok_or_else(|| anyhow!("this kernel's BTF has no tracepoint {event}"))?;
    // The first parameter is the tracepoint's own, `__data`.
    let arguments = parameters.get(1..).unwrap_or_default();
    if arguments.first().map(String::as_str) != Some("call_site")
        || arguments.get(1).map(String::as_str) != Some("ptr")
    {
        return Err(anyhow!("tracepoint {event} has unknown arguments ({})", arguments.join(", ")));
    }
    let index = arguments.iter().position(|argument| argument == name);
    index
        .filter(|&index| index <= 5)
        .map(|index| index as u32)
        .ok_or_else(|| anyhow!("tracepoint {event} has no argument {name} ({})", arguments.join(", ")))
}

fn member(btf: &Btf, structure: &str, name: &str) -> Result<u32> {
    btf.member_offset(structure, name).ok_or_else(|| anyhow!("this kernel's BTF has no {structure}.{name}"))
}

/// Indices of the arguments of `percpu_alloc_percpu`: `call_site` and `bytes_alloc` came in 6.0.
fn resolve_percpu(config: &mut Config, btf: &Btf) {
    let Some(parameters) = btf.parameters(&format!("{TRACEPOINT_FUNCTION}percpu_alloc_percpu")) else {
        return;
    };
    let index =
        |name: &str| parameters.iter().skip(1).position(|parameter| parameter == name).map(|i| i as u32);
    if let (Some(call_site), Some(size), Some(base), Some(offset)) =
        (index("call_site"), index("size"), index("base_addr"), index("off"))
    {
        config.percpu_call_site = call_site + 1;
        config.percpu_size = size;
        config.percpu_base = base;
        config.percpu_offset = offset;
        config.percpu_bytes = index("bytes_alloc").unwrap_or(0);
    }
}

/// What changed in the functions that are watched.
fn resolve_functions(config: &mut Config, btf: &Btf) {
    // `kvfree_call_rcu(head, func)` until 6.3, `(head, ptr)` since.
    config.rcu_offset =
        u32::from(btf.parameters("kvfree_call_rcu").is_some_and(|p| p.get(1).is_some_and(|n| n == "func")));
    let returned =
        btf.returns("kmem_cache_alloc_bulk_noprof").or_else(|| btf.returns("kmem_cache_alloc_bulk"));
    config.bulk_returns_bool = u32::from(returned.is_some_and(|name| name.to_lowercase().contains("bool")));
    config.area_start = btf.member_offset("vmap_area", "va_start").unwrap_or(0);
    config.area_end = btf.member_offset("vmap_area", "va_end").unwrap_or(0);
}

/// Where a module's code is: in `module.mem` since 6.4, before in two layouts (`include/linux/module.h`).
fn resolve_modules(config: &mut Config, btf: &Btf) {
    let Some(name) = btf.member_offset("module", "name") else { return };
    config.module_name = name;
    let places = if let (Some(memory), Some(each), Some(base), Some(size)) = (
        btf.member_offset("module", "mem"),
        btf.struct_size("module_memory"),
        btf.member_offset("module_memory", "base"),
        btf.member_offset("module_memory", "size"),
    ) {
        let of = |kind: &str, otherwise: u64| {
            memory + each * btf.enumerator(kind).unwrap_or(otherwise).min(16) as u32
        };
        let (text, init) = (of("MOD_TEXT", 0), of("MOD_INIT_TEXT", 4));
        Some([text + base, text + size, init + base, init + size])
    } else if let (Some(core), Some(init), Some(base), Some(size)) = (
        btf.member_offset("module", "core_layout"),
        btf.member_offset("module", "init_layout"),
        btf.member_offset("module_layout", "base"),
        btf.member_offset("module_layout", "text_size"),
    ) {
        Some([core + base, core + size, init + base, init + size])
    } else {
        None
    };
    if let Some([text, text_size, init, init_size]) = places {
        (config.module_text, config.module_text_size) = (text, text_size);
        (config.module_init, config.module_init_size) = (init, init_size);
    }
}

/// A gfp bit; before 6.9 they were no enumerators, and had these values.
fn gfp_bit(btf: &Btf, name: &str, before: u64) -> u32 {
    1 << (btf.enumerator(name).unwrap_or(before) & 31)
}

/// The gfp bits that choose among kmalloc's caches of one size: `kmalloc_type()` of
/// `include/linux/slab.h`.
fn gfp_class(btf: &Btf) -> u32 {
    [("___GFP_DMA_BIT", 0), ("___GFP_RECLAIMABLE_BIT", 4), ("___GFP_ACCOUNT_BIT", 22)]
        .into_iter()
        .fold(0, |mask, (name, before)| mask | gfp_bit(btf, name, before))
}

/// Whether the kernel runs with five levels of page tables: the flag is cleared when it does not.
fn five_level_paging() -> bool {
    use procfs::Current as _;
    procfs::CpuInfo::current()
        .ok()
        .and_then(|info| info.flags(0).map(|flags| flags.contains(&"la57")))
        .unwrap_or(false)
}

/// What the way from an address to its `struct page` needs; returns where memory is, where that is settled by then.
fn resolve_pages(
    config: &mut Config,
    btf: &Btf,
    symbols: &Symbols,
    root: &Path,
) -> Result<Option<memory::Map>> {
    let page_struct =
        btf.struct_size("page").ok_or_else(|| anyhow!("this kernel's BTF has no struct page"))?;
    // A member of struct page itself up to 5.16; renamed to compound_info in 7.0.
    config.slab_cache = member(btf, "slab", "slab_cache").or_else(|_| member(btf, "page", "slab_cache"))?;
    config.page_compound_head =
        member(btf, "page", "compound_head").or_else(|_| member(btf, "page", "compound_info"))?;
    let mut map = None;
    if cfg!(target_arch = "aarch64") {
        let found = memory::Map::of_arm64(root, symbols, page_bytes(), u64::from(page_struct))?;
        (config.vmemmap, config.page_offset) = (found.first_page, found.direct_map);
        map = Some(found);
    } else if cfg!(target_arch = "x86_64") {
        (config.vmemmap, config.page_offset) = if five_level_paging() { FIVE_LEVELS } else { FOUR_LEVELS };
        config.vmemmap_symbol = symbols.data_address("vmemmap_base").unwrap_or(0);
        config.page_offset_symbol = symbols.data_address("page_offset_base").unwrap_or(0);
    } else {
        return Err(anyhow!("the way from an object to its page is known for x86_64 and aarch64 only"));
    }
    config.page_size_of = page_struct;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_the_running_kernel() {
        let btf = Btf::read(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        let layout = Layout::resolve(&btf, &Symbols::read(Path::new("/")).unwrap(), Path::new("/")).unwrap();
        assert!(layout.config.kmalloc_bytes_alloc > layout.config.kmalloc_bytes_req);
        assert_eq!(layout.config.gfp_class.count_ones(), 3);
        assert!(layout.config.cache_name > 0);
        assert!(layout.config.percpu_call_site == 1 && layout.config.gfp_movable == 8);
        assert!(layout.tracepoints.contains(&"mm_page_alloc"), "{:?}", layout.tracepoints);
        assert_eq!(layout.no_page_lookup, None);
    }

    #[test]
    fn foreign_btf_is_refused_with_the_missing_name() {
        let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24_u32, 0, 0, 0, 0] {
            data.extend(word.to_ne_bytes());
        }
        let btf = Btf::parse(&data.into()).unwrap();
        let error = Layout::resolve(&btf, &Symbols::empty(), Path::new("/")).err().unwrap();
        assert_eq!(error.to_string(), "this kernel's BTF has no tracepoint kmalloc");
    }
}
