//! Free pages that CPUs keep, and those that RCU keeps: /proc/kpageflags says nothing of them.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::memory::Memory;

/// Free pages that are looked for at most: 16 GiB.
const MOST: usize = 1 << 22;
/// Pages of one of the stack depot's pools, and how many there are at most.
const DEPOT_PAGES: u64 = 4;
const MOST_POOLS: u64 = 8_192;
/// Arrays of one chain of `kfree_rcu` that are followed.
const MOST_IN_CHAIN: usize = 1_000;
/// The largest block that a list of CPUs has for huge pages (`pageblock_order`), and up to which order there are others
/// (`PAGE_ALLOC_COSTLY_ORDER`).
const HUGE_ORDER: u64 = 9;
const COSTLY_ORDER: u64 = 3;

/// Lists that are not older than this are good enough for most pages.
pub(super) const FRESH: Duration = Duration::from_millis(500);
/// Times as long as it took to read the lists, they are not read again: where many CPUs keep many pages, or reading is slow, that
/// would be all that is done.
const REST: u32 = 10;

/// The free pages that CPUs and RCU keep, as they were read last.
pub(super) struct FreePages {
    read: Instant,
    took: Duration,
    /// Page frames on the CPUs' lists, and the first one of the block that each is in.
    listed: FxHashMap<u64, u64>,
    by_rcu: FxHashSet<u64>,
}

impl FreePages {
    /// Reads the lists; none where this kernel does not say where they are.
    pub(super) fn read(memory: &Memory) -> Self {
        let read = Instant::now();
        let (listed, by_rcu) = (of_cpus(memory), of_rcu(memory));
        Self { read, took: read.elapsed(), listed, by_rcu }
    }

    /// Whether a page is free, by lists that were read at most `fresh` ago, or a while ago if reading them takes long. What has
    /// been taken from them since is in use, and a single page that has come to them is known by its neighbours; only of blocks
    /// that have come to them the later pages may be missing.
    pub(super) fn has(&mut self, memory: &Memory, frame: u64, fresh: Duration) -> bool {
        if is_due(self.read.elapsed(), fresh, self.took) {
            *self = Self::read(memory);
        }
        if self.by_rcu.contains(&frame) {
            return of_rcu(memory).contains(&frame);
        }
        // A block that was on a list may have been split and given out since, but for its first page.
        let first = self.listed.get(&frame).copied().unwrap_or(frame);
        references(memory, memory.page(frame)) == 0 && is_listed(memory, memory.page(first))
    }
}

fn is_due(age: Duration, fresh: Duration, took: Duration) -> bool {
    age > fresh.max(took * REST)
}

/// Whether a page is on a list of free ones: it has no references, as parts of a block in use have none, but what is taken
/// from a list has no neighbours any more (`list_del`), and what never was on one has none either.
fn is_listed(memory: &Memory, page: u64) -> bool {
    references(memory, page) == 0 && is_linked(memory, page + memory.layout.page.list)
}

/// Whether both neighbours of a link in a `list_head` lead back to it.
fn is_linked(memory: &Memory, link: u64) -> bool {
    let word = |at: u64| memory.core.word(at).ok();
    word(link).and_then(|next| word(next.wrapping_add(8))) == Some(link)
        && word(link + 8).and_then(word) == Some(link)
}

/// References to a page by its `struct page`: none to one on a list of free ones. Where that cannot be read, one.
fn references(memory: &Memory, page: u64) -> u32 {
    memory.core.number(page + memory.layout.page.refcount).unwrap_or(1)
}

/// Page frames on the CPUs' lists (`struct per_cpu_pages`), with the first one of their blocks.
fn of_cpus(memory: &Memory) -> FxHashMap<u64, u64> {
    let mut free = FxHashMap::default();
    let Some(layout) = memory.layout.zone else { return free };
    for node in nodes(memory) {
        for zone in (0..layout.count).map(|index| node + layout.zones + index * layout.size) {
            let Ok(pageset) = memory.core.word(zone + layout.pageset) else { continue };
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
                    if free.len() >= MOST || references(memory, page) != 0 {
                        break;
                    }
                    let first = page.wrapping_sub(memory.first_page) / memory.layout.page.size;
                    free.extend((first..first + (1 << order)).map(|frame| (frame, first)));
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

/// Whether a place is one behind the last pointer of an array in which `kfree_rcu` gathers what is to be freed: the page had
/// more of them when it was used before.
pub(super) fn is_left_by_rcu(memory: &Memory, address: u64) -> bool {
    let Some(layout) = memory.layout.rcu_array else { return is_left_in_chain(memory, address) };
    let page = address / memory.page_bytes * memory.page_bytes;
    let word = |at: u64| memory.core.word(at).ok();
    // It is such an array if its links lead back, to others of these or to where each CPU has them, and the number fits.
    let link = page + layout.list;
    let is_end = |at: u64| at % memory.page_bytes == layout.list || memory.in_percpu(at).is_some();
    let is_linked = word(link) != Some(link)
        && is_linked(memory, link)
        && [link, link + 8].into_iter().all(|at| word(at).is_some_and(is_end));
    let most = (memory.page_bytes - layout.pointers) / 8;
    let count = word(page + layout.count).filter(|count| is_linked && (1..=most).contains(count));
    let Some(count) = count.filter(|count| address >= page + layout.pointers + count * 8) else {
        return false;
    };
    let mut pointers = vec![0; count as usize];
    memory.core.words(page + layout.pointers, &mut pointers).is_ok()
        && pointers.iter().all(|&pointer| pointer >> 56 == 0xff)
}

/// The same where arrays have only a pointer to the next one: then it is one if a CPU's chain has it.
fn is_left_in_chain(memory: &Memory, address: u64) -> bool {
    let (Some(layout), Some(percpu)) = (memory.layout.rcu_chain, memory.data.address_of("krc")) else {
        return false;
    };
    let page = address / memory.page_bytes * memory.page_bytes;
    let word = |at: u64| memory.core.word(at).unwrap_or(0);
    let count = word(page + layout.count);
    let most = (memory.page_bytes - layout.pointers) / 8;
    // Most pages are none: that is cheap to see.
    if !(1..=most).contains(&count) || address < page + layout.pointers + count * 8 {
        return false;
    }
    let of_works = (0..layout.works).map(|work| layout.work_heads + work * layout.work_bytes);
    let heads: Vec<u64> = std::iter::once(layout.heads)
        .chain(of_works)
        .flat_map(|at| (0..layout.kinds).map(move |kind| at + kind * 8))
        .collect();
    memory.cpus.iter().flat_map(|cpu| heads.iter().map(move |head| (cpu, head))).any(|(cpu, head)| {
        let mut at = word(percpu.wrapping_add(*cpu).wrapping_add(*head));
        for _ in 0..MOST_IN_CHAIN {
            if at == page {
                return true;
            }
            if !memory.is_memory(at) {
                return false;
            }
            at = word(at + layout.next);
        }
        false
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_take_long_are_read_seldom() {
        let ms = Duration::from_millis;
        assert!(!is_due(ms(500), ms(500), ms(1)) && is_due(ms(501), ms(500), ms(1)));
        assert!(!is_due(ms(4_000), ms(500), ms(400)) && is_due(ms(4_001), ms(500), ms(400)));
    }
}
