//! Where the `struct page`s themselves lie in physical memory: what they contain is the allocators' own, mostly.

use super::memory::Memory;

/// Bits of a page table's entry on x86-64 (`arch/x86/include/asm/pgtable_types.h`): present, a large page, and the address.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits of an address that one level tells apart, and that a page has.
const LEVEL_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;
/// Direct maps below this are of kernels with five levels of page tables.
const FOUR_LEVELS: u64 = 0xffff_8000_0000_0000;

/// A run of `struct page`s.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where it is in the direct map.
    from: u64,
    to: u64,
    /// Its own first address.
    own: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct MemoryMap(Vec<Run>);

impl MemoryMap {
    /// Walks the kernel's page tables; nothing where that is not known how.
    pub(super) fn read(memory: &Memory) -> Self {
        let Some(top) = memory.data.address_of("init_top_pgt").filter(|_| cfg!(target_arch = "x86_64"))
        else {
            return Self::default();
        };
        let levels = if memory.direct_map < FOUR_LEVELS { 5 } else { 4 };
        let mut runs: Vec<Run> = Vec::new();
        for &(from, to) in &memory.frames {
            let (mut at, end) = (memory.page(from), memory.page(to));
            while at < end {
                let (place, bytes) = translate(memory, top, levels, at);
                let next = (at & !(bytes - 1)) + bytes;
                let length = next.min(end) - at;
                if let Some(place) = place {
                    match runs.last_mut() {
                        Some(last) if last.to == place && last.own + (last.to - last.from) == at => {
                            last.to += length;
                        }
                        _ => runs.push(Run { from: place, to: place + length, own: at }),
                    }
                }
                at = next;
            }
        }
        runs.sort_unstable_by_key(|run| run.from);
        Self(runs)
    }

    /// The address that a place in the direct map has as a part of a `struct page`.
    pub(super) fn at(&self, place: u64) -> Option<u64> {
        let after = self.0.partition_point(|run| run.from <= place);
        let run = self.0[after.checked_sub(1)?];
        (place < run.to).then(|| run.own + (place - run.from))
    }
}

/// Where in the direct map an address lies, and how many bytes are mapped together there.
fn translate(memory: &Memory, top: u64, levels: u32, address: u64) -> (Option<u64>, u64) {
    let mut table = top;
    for level in (0..levels).rev() {
        let shift = PAGE_BITS + level * LEVEL_BITS;
        let index = address >> shift & ((1 << LEVEL_BITS) - 1);
        let entry = memory.core.word(table + index * 8).unwrap_or(0);
        if entry & PRESENT == 0 {
            return (None, 1 << shift);
        }
        let physical = entry & ADDRESS;
        if level == 0 || entry & LARGE != 0 {
            let inside = address & ((1 << shift) - 1);
            let place = memory.direct_map + (physical & !((1 << shift) - 1)) + inside;
            return (Some(place).filter(|&place| memory.is_memory(place)), 1 << shift);
        }
        table = memory.direct_map + physical;
    }
    (None, 1 << PAGE_BITS)
}
