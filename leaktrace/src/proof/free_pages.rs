//! Free pages that CPUs keep: /proc/kpageflags says nothing of them.

use rustc_hash::FxHashSet;

use super::memory::Memory;

/// Free pages that are looked for at most: 16 GiB.
const MOST: usize = 1 << 22;
/// The largest block that a list of CPUs has for huge pages (`pageblock_order`), and up to which order there are others
/// (`PAGE_ALLOC_COSTLY_ORDER`).
const HUGE_ORDER: u64 = 9;
const COSTLY_ORDER: u64 = 3;

/// Page frames on the CPUs' lists (`struct per_cpu_pages`); none where this kernel does not say where they are.
pub(super) fn of_cpus(memory: &Memory) -> FxHashSet<u64> {
    let mut free = FxHashSet::default();
    let Some(layout) = memory.layout.zone else { return free };
    let core = &memory.core;
    for node in nodes(memory) {
        for zone in (0..layout.count).map(|index| node + layout.zones + index * layout.size) {
            let Ok(pageset) = core.word(zone + layout.pageset) else { continue };
            if pageset == 0 {
                continue;
            }
            for (offset, list) in
                memory.cpus.iter().flat_map(|cpu| (0..layout.lists_count).map(move |list| (cpu, list)))
            {
                let order = list / layout.kinds;
                let order = if order > COSTLY_ORDER { HUGE_ORDER } else { order };
                let head = pageset.wrapping_add(*offset) + layout.lists + list * 16;
                for link in memory.list(head) {
                    let page = link.wrapping_sub(memory.layout.page.list);
                    // The list changes while it is read: what is in use is no part of it any more.
                    if free.len() >= MOST || core.number(page + memory.layout.page.refcount).unwrap_or(1) != 0
                    {
                        break;
                    }
                    let frame = page.wrapping_sub(memory.first_page) / memory.layout.page.size;
                    free.extend(frame..frame + (1 << order));
                }
            }
        }
    }
    free
}

/// The nodes' `pglist_data`: an array of pointers, or the only one.
fn nodes(memory: &Memory) -> Vec<u64> {
    if let Some(only) = memory.data.address_of("contig_page_data") {
        return vec![only];
    }
    let Some(array) = memory.data.address_of("node_data") else { return Vec::new() };
    (0..memory.nodes)
        .filter_map(|node| memory.core.word(array + node * 8).ok())
        .filter(|&node| memory.is_memory(node))
        .collect()
}
