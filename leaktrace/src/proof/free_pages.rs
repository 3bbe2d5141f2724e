//! Free pages that CPUs keep, and those that RCU keeps: /proc/kpageflags says nothing of them.

use rustc_hash::FxHashSet;

use super::memory::Memory;

/// Free pages that are looked for at most: 16 GiB.
const MOST: usize = 1 << 22;
/// Pages of one of the stack depot's pools, and how many there are at most.
const DEPOT_PAGES: u64 = 4;
const MOST_POOLS: u64 = 8_192;
/// The largest block that a list of CPUs has for huge pages (`pageblock_order`), and up to which order there are others
/// (`PAGE_ALLOC_COSTLY_ORDER`).
const HUGE_ORDER: u64 = 9;
const COSTLY_ORDER: u64 = 3;

/// Page frames on the CPUs' lists (`struct per_cpu_pages`); none where this kernel does not say where they are.
pub(super) fn of_cpus(memory: &Memory) -> FxHashSet<u64> {
    let mut free = of_rcu(memory);
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

/// Pages that `kfree_rcu` keeps for its arrays: until one is used again, what was freed is still in it.
fn of_rcu(memory: &Memory) -> FxHashSet<u64> {
    let (Some(list), Some(percpu)) = (memory.layout.rcu_pages, memory.data.address_of("krc")) else {
        return FxHashSet::default();
    };
    let mut kept = FxHashSet::default();
    for offset in &memory.cpus {
        let mut at = memory.core.word(percpu.wrapping_add(*offset).wrapping_add(list)).unwrap_or(0);
        while memory.is_memory(at) && kept.insert(memory.frame(at)) {
            at = memory.core.word(at).unwrap_or(0);
        }
    }
    kept
}

/// Pages in which kernels with debugging note stack traces (`lib/stackdepot.c`): return addresses, and what was there
/// before.
pub(super) fn of_stack_depot(memory: &Memory) -> FxHashSet<u64> {
    let mut frames = FxHashSet::default();
    let mut add = |pool: u64| {
        if memory.is_memory(pool) {
            let first = memory.frame(pool);
            frames.extend(first..first + DEPOT_PAGES);
        }
    };
    let Some(array) = memory.variable("stack_pools") else { return frames };
    add(memory.variable("new_pool").unwrap_or(0));
    let count = memory.data.address_of("pools_num").and_then(|at| memory.core.number(at).ok()).unwrap_or(0);
    // An array itself until 6.8.
    let array = if memory.is_memory(array) { array } else { return frames };
    for index in 0..u64::from(count).min(MOST_POOLS) {
        add(memory.core.word(array + index * 8).unwrap_or(0));
    }
    frames
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
