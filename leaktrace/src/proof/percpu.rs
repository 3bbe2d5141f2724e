//! Per-CPU memory that is free: what was in it is left there until it is given out again, and holds nothing.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{layout::ChunkLayout, memory::Memory};

/// Bytes that a bit of a chunk's map stands for (`PCPU_MIN_ALLOC_SIZE`, `include/linux/percpu.h`).
const GRAIN: u64 = 4;
/// Lists of chunks, and chunks, that are followed at most.
const MOST_LISTS: u32 = 64;
const MOST_CHUNKS: usize = 10_000;
/// Words that are read at most in one look to find where in their chunks pages are: what is not found counts as holding.
const MOST_READ: u64 = 1 << 20;

/// A piece of memory that each CPU has a copy of (`struct pcpu_chunk`, `mm/percpu-internal.h`).
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Where its description is.
    at: u64,
    /// Where the first unit's copy begins.
    base: u64,
    /// Bytes of one copy.
    bytes: u64,
}

/// The chunks that per-CPU memory is allocated from; none where this kernel does not say where they are.
#[derive(Default)]
pub(super) struct Chunks {
    layout: Option<ChunkLayout>,
    all: Vec<Chunk>,
    /// Where each CPU's copy begins, from the first unit's on.
    units: Vec<u64>,
    /// Of page frames that chunks have, where in a copy they are.
    pages: FxHashMap<u64, Option<u64>>,
    /// Words that may still be read for that.
    left: u64,
    /// By chunk, what was given out when that was asked first.
    maps: FxHashMap<u64, Option<Maps>>,
}

/// A bit for each grain that is given out, and one where each piece begins.
type Maps = (Vec<u64>, Vec<u64>);

impl Chunks {
    /// Reads what chunks there are.
    pub(super) fn read(memory: &Memory) -> Self {
        Self::find(memory).unwrap_or_default()
    }

    fn find(memory: &Memory) -> Option<Self> {
        let layout = memory.layout.chunk?;
        let word = |at: u64| memory.core.word(at).ok();
        let number = |at: u64| memory.core.number(at).ok();
        let mut units = vec![0; memory.cpus.len()];
        memory.core.words(memory.variable("pcpu_unit_offsets")?, &mut units).ok()?;
        let lists = memory.variable("pcpu_chunk_lists")?;
        let count = number(memory.data.address_of("pcpu_nr_slots")?)?;
        let most = number(memory.data.address_of("pcpu_unit_size")?)?;
        // Chunks move from list to list meanwhile: one may be met twice, and a walk may come by another list's head.
        let heads = lists..lists + u64::from(count.min(MOST_LISTS)) * 16;
        let mut met = FxHashSet::default();
        let mut all: Vec<Chunk> = Vec::new();
        for link in heads.clone().step_by(16).flat_map(|head| memory.list(head)) {
            let at = link.wrapping_sub(layout.list);
            if heads.contains(&link) || !memory.is_memory(at) || !met.insert(at) || all.len() >= MOST_CHUNKS {
                continue;
            }
            let (Some(base), Some(pages)) = (word(at + layout.base), number(at + layout.pages)) else {
                continue;
            };
            let bytes = u64::from(pages) * memory.page_bytes;
            if base.is_multiple_of(memory.page_bytes) && base >> 56 == 0xff && bytes <= u64::from(most) {
                all.push(Chunk { at, base, bytes });
            }
        }
        let (pages, maps) = (FxHashMap::default(), FxHashMap::default());
        Some(Self { layout: Some(layout), all, units, pages, left: MOST_READ, maps })
    }

    /// Whether a place in the direct map is free, which only the first chunk has.
    pub(super) fn is_free(&self, memory: &Memory, address: u64) -> bool {
        let first = self.all.iter().filter(|chunk| memory.is_memory(chunk.base));
        let copies = first.flat_map(|chunk| self.units.iter().map(move |unit| (chunk, unit)));
        copies
            .map(|(chunk, unit)| (chunk, address.wrapping_sub(chunk.base.wrapping_add(*unit))))
            .find(|(chunk, offset)| *offset < chunk.bytes)
            .is_some_and(|(chunk, offset)| self.is_free_in(memory, chunk, offset))
    }

    /// Whether it is known what is given out.
    pub(super) fn is_known(&self) -> bool {
        self.layout.is_some()
    }

    /// Bytes of the piece that begins at an address that its allocator goes by, if one was given out there when the chunk was
    /// asked first.
    pub(super) fn given_out(&mut self, memory: &Memory, address: u64) -> Option<u64> {
        let chunk = *self.all.iter().find(|chunk| address.wrapping_sub(chunk.base) < chunk.bytes)?;
        if !self.maps.contains_key(&chunk.at) {
            let maps = self.read_maps(memory, &chunk);
            self.maps.insert(chunk.at, maps);
        }
        let (given, bounds) = self.maps[&chunk.at].as_ref()?;
        let grains = piece(given, bounds, (address - chunk.base) / GRAIN, chunk.bytes / GRAIN)?;
        Some(grains * GRAIN)
    }

    /// A chunk's maps: what is given out, and where pieces begin; `None` if it is not the chunk any more that it was.
    fn read_maps(&self, memory: &Memory, chunk: &Chunk) -> Option<Maps> {
        let layout = self.layout?;
        // One more bound than there are bits says where the last piece ends.
        let map = |at: u64| {
            let mut words = vec![0; (chunk.bytes / GRAIN / 64 + 1) as usize];
            let at = memory.core.word(chunk.at + at).ok()?;
            memory.core.words(at, &mut words).is_ok().then_some(words)
        };
        let maps = (map(layout.map)?, map(layout.bounds)?);
        let base = memory.core.word(chunk.at + layout.base).ok()?;
        (base == chunk.base).then_some(maps)
    }

    /// Calls `with` for each piece that is given out: the address that its allocator goes by, and its bytes.
    pub(super) fn each_piece(&self, memory: &Memory, mut with: impl FnMut(u64, u64)) {
        for chunk in &self.all {
            let Some((given, bounds)) = self.read_maps(memory, chunk) else { continue };
            pieces(&given, &bounds, chunk.bytes / GRAIN, |from, to| {
                with(chunk.base + from * GRAIN, (to - from) * GRAIN);
            });
        }
    }

    /// Whether a place is free in a page of which only the page frame is known. Chunks that came after the first one are
    /// mapped to pages, each of which says which chunk has it (`pcpu_set_page_chunk`), but not where in it.
    pub(super) fn is_free_in_page(&mut self, memory: &Memory, frame: u64, address: u64) -> bool {
        let Some(chunk) = self.of_page(memory, frame) else { return false };
        let at = address % memory.page_bytes;
        if !self.pages.contains_key(&frame) {
            let page = self.page_of(memory, &chunk, address);
            self.pages.insert(frame, page);
        }
        self.pages[&frame].is_some_and(|page| self.is_free_in(memory, &chunk, page + at))
    }

    /// The chunk that a page says it is of.
    fn of_page(&self, memory: &Memory, frame: u64) -> Option<Chunk> {
        let page = memory.page(frame);
        let chunk_at = |at: u64| {
            let word = memory.core.word(page + at).ok()?;
            self.all.iter().find(|chunk| chunk.at == word).copied()
        };
        let page = &memory.layout.page;
        chunk_at(page.index).or_else(|| chunk_at(page.private))
    }

    /// Where in a copy the page is that has a word, if only one is like it there.
    fn page_of(&mut self, memory: &Memory, chunk: &Chunk, address: u64) -> Option<u64> {
        let word = memory.core.word(address).ok()?;
        let pages = chunk.bytes / memory.page_bytes;
        self.left = self.left.checked_sub(pages * self.units.len() as u64)?;
        let at = address % memory.page_bytes;
        let has = |page: &u64| {
            let copy = |unit: &u64| chunk.base.wrapping_add(*unit) + page + at;
            self.units.iter().any(|unit| memory.core.word(copy(unit)).is_ok_and(|there| there == word))
        };
        let mut found = (0..pages).map(|page| page * memory.page_bytes).filter(has);
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether a chunk's map says that a word is free, as far as the chunk is still the one that it was.
    fn is_free_in(&self, memory: &Memory, chunk: &Chunk, offset: u64) -> bool {
        let Some(layout) = self.layout else { return false };
        let word = |at: u64| memory.core.word(at).ok();
        let bit = offset / 8 * (8 / GRAIN);
        let map = || word(word(chunk.at + layout.map)? + bit / 64 * 8);
        let (before, map, after) = (word(chunk.at + layout.base), map(), word(chunk.at + layout.base));
        before == Some(chunk.base)
            && after == before
            && map.is_some_and(|map| (map >> (bit % 64)).trailing_zeros() >= 2)
    }
}

/// Whether a bit is set.
fn is_set(map: &[u64], bit: u64) -> bool {
    map.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 != 0)
}

/// How many bits the piece has that is given out and begins with this one.
fn piece(given: &[u64], bounds: &[u64], from: u64, bits: u64) -> Option<u64> {
    let end = || (from + 1..bits).find(|bit| is_set(bounds, *bit)).unwrap_or(bits);
    (is_set(bounds, from) && is_set(given, from)).then(|| end() - from)
}

/// Calls `with` for the first bit of each piece that is given out and the first one behind it.
fn pieces(given: &[u64], bounds: &[u64], bits: u64, mut with: impl FnMut(u64, u64)) {
    let mut bit = 0;
    while bit < bits {
        let length = piece(given, bounds, bit, bits);
        if let Some(length) = length {
            with(bit, bit + length);
        }
        bit += length.unwrap_or(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_the_next_one_begins_or_the_chunk_ends() {
        // Of 128 bits 0 to 7 and 8 to 11 are given out, 12 to 99 are free, 100 to 127 are given out.
        let given = [0xfff, 0xffff_fff0_0000_0000, 0];
        let bounds = [1 | 1 << 8 | 1 << 12, 1 << 36, 1];
        let mut found = Vec::new();
        pieces(&given, &bounds, 128, |from, to| found.push((from, to)));
        assert_eq!(found, [(0, 8), (8, 12), (100, 128)]);
        for (from, to) in found {
            assert_eq!(piece(&given, &bounds, from, 128), Some(to - from));
        }
        // What is free, and what is a part of one.
        for from in [12, 4, 9, 101] {
            assert_eq!(piece(&given, &bounds, from, 128), None, "{from}");
        }
        // Freed, between two odd ones that live.
        let of = |from| piece(&[0b101], &[0b1111], from, 64);
        assert_eq!((of(0), of(1), of(2)), (Some(1), None, Some(1)));
        pieces(&[0, 0], &[1, 1], 64, |_, _| panic!("nothing is given out"));
    }
}
