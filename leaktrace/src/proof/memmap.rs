//! Where the `struct page`s themselves lie in physical memory: what they contain is the allocators' own, mostly.

use super::memory::Memory;

/// What an entry of a page table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Nothing is mapped.
    None,
    /// The next table is at this physical address.
    Table(u64),
    /// This is mapped.
    Memory(u64),
}

/// How a kernel's page tables are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    /// Bits of an address in a page.
    page_bits: u32,
    /// Bits of an address that are told apart at all.
    address_bits: u32,
    entry: fn(u64, u32) -> Entry,
}

/// Bits of an entry of x86-64 (`arch/x86/include/asm/pgtable_types.h`): present, a large page, and the address.
fn x86_64(entry: u64, level: u32) -> Entry {
    let physical = entry & 0x000f_ffff_ffff_f000;
    match (entry & 1 != 0, level == 0 || entry & 1 << 7 != 0) {
        (false, _) => Entry::None,
        (true, true) => Entry::Memory(physical),
        (true, false) => Entry::Table(physical),
    }
}

/// Bits of an entry of arm64 (`arch/arm64/include/asm/pgtable-hwdef.h`): valid, a table or at the last level a page, and
/// the address.
fn arm64(entry: u64, level: u32) -> Entry {
    let physical = entry & 0x0000_ffff_ffff_f000;
    match (entry & 1 != 0, entry & 2 != 0) {
        (false, _) => Entry::None,
        (true, table) if (level == 0) == table => Entry::Memory(physical),
        (true, _) => Entry::Table(physical),
    }
}

/// Direct maps below this are of x86-64 kernels with five levels of page tables.
const FOUR_LEVELS: u64 = 0xffff_8000_0000_0000;

impl Tables {
    /// Those of this kernel, with the variable that the first one is.
    fn of(memory: &Memory) -> Option<(Self, &'static str)> {
        if cfg!(target_arch = "x86_64") {
            let address_bits = if memory.direct_map < FOUR_LEVELS { 57 } else { 48 };
            return Some((Self { page_bits: 12, address_bits, entry: x86_64 }, "init_top_pgt"));
        }
        // With more than 48 bits the upper ones of an address are elsewhere in an entry.
        let address_bits = memory.address_bits.filter(|&bits| bits <= 48)?;
        let page_bits = memory.page_bytes.trailing_zeros();
        cfg!(target_arch = "aarch64")
            .then_some((Self { page_bits, address_bits, entry: arm64 }, "swapper_pg_dir"))
    }

    /// Bits of an address that one level tells apart: a table takes a page.
    fn level_bits(self) -> u32 {
        self.page_bits - 3
    }

    fn levels(self) -> u32 {
        (self.address_bits - self.page_bits).div_ceil(self.level_bits())
    }

    /// At which physical address an address lies, and how many bytes are mapped together there. `read` reads the word at
    /// a physical address, or of the first table.
    fn translate(self, address: u64, read: impl Fn(Option<u64>, u64) -> u64) -> (Option<u64>, u64) {
        let inside = address & ((1 << self.address_bits) - 1);
        let mut table = None;
        for level in (0..self.levels()).rev() {
            let shift = self.page_bits + level * self.level_bits();
            let index = inside >> shift & ((1 << self.level_bits()) - 1);
            let bytes = 1 << shift;
            match (self.entry)(read(table, index * 8), level) {
                Entry::None => return (None, bytes),
                Entry::Memory(physical) => {
                    return (Some((physical & !(bytes - 1)) + (address & (bytes - 1))), bytes);
                }
                Entry::Table(physical) => table = Some(physical),
            }
        }
        (None, 1 << self.page_bits)
    }
}

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
        let Some((tables, first)) = Tables::of(memory) else { return Self::default() };
        let Some(first) = memory.data.data_address(first) else { return Self::default() };
        let read = |table: Option<u64>, offset: u64| {
            let table = table.map_or(first, |physical| memory.direct_map.wrapping_add(physical));
            memory.core.word(table.wrapping_add(offset)).unwrap_or(0)
        };
        let mut runs: Vec<Run> = Vec::new();
        for &(from, to) in &memory.frames {
            let (mut at, end) = (memory.page(from), memory.page(to));
            while at < end {
                let (place, bytes) = tables.translate(at, read);
                let place = place.map(|physical| memory.direct_map.wrapping_add(physical));
                let place = place.filter(|&place| memory.is_memory(place));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Tables in a made-up memory.
    fn translate(tables: Tables, words: &BTreeMap<u64, u64>, address: u64) -> (Option<u64>, u64) {
        tables.translate(address, |table, offset| {
            words.get(&(table.unwrap_or(0) + offset)).copied().unwrap_or(0)
        })
    }

    #[test]
    fn four_levels_of_x86_64() {
        let tables = Tables { page_bits: 12, address_bits: 48, entry: x86_64 };
        let address: u64 = 0xffff_ea00_0040_3008;
        let index = |level: u32| (address >> (12 + 9 * level) & 511) * 8;
        let words = BTreeMap::from([
            (index(3), 0x1000 | 1),
            (0x1000 + index(2), 0x2000 | 1),
            (0x2000 + index(1), 0x3000 | 1),
            (0x3000 + index(0), 0x8000_0000_0123_4000 | 1),
            // The next large page.
            (0x2000 + index(1) + 8, 0x4000_0000 | 1 << 7 | 1),
        ]);
        assert_eq!(translate(tables, &words, address), (Some(0x0123_4008), 1 << 12));
        assert_eq!(translate(tables, &words, address + (2 << 20)), (Some(0x4000_3008), 2 << 20));
        assert_eq!(translate(tables, &words, address + (4 << 20)), (None, 2 << 20));
        assert_eq!(translate(tables, &words, address ^ 1 << 40), (None, 1 << 39));
    }

    #[test]
    fn three_levels_of_arm64_with_large_pages() {
        let tables = Tables { page_bits: 16, address_bits: 48, entry: arm64 };
        assert_eq!(tables.levels(), 3);
        let address: u64 = 0xffff_fdff_0003_0010;
        let index = |level: u32| ((address & 0xffff_ffff_ffff) >> (16 + 13 * level) & 8191) * 8;
        let words = BTreeMap::from([
            (index(2), 0x1_0000 | 3),
            (0x1_0000 + index(1), 0x2_0000 | 3),
            (0x2_0000 + index(0), 0x0060_0000_0123_0000 | 0xf03),
            (0x2_0000 + index(0) + 8, 0x0124_0000 | 1),
            (0x1_0000 + index(1) + 8, 0x0060_0000_4000_0000 | 0xf01),
        ]);
        assert_eq!(translate(tables, &words, address), (Some(0x0123_0010), 1 << 16));
        assert_eq!(translate(tables, &words, address + (1 << 29)), (Some(0x4003_0010), 1 << 29));
    }
}
