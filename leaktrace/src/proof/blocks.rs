//! Blocks of pages and pieces of per-CPU memory: they are in no slab and no area, but whoever uses one has its address.
//!
//! Of pages only compound ones are told: those of `alloc_pages_exact` look like single ones, and only the first one's address is
//! kept (`make_alloc_exact` of `mm/page_alloc.c`).

use super::{Kind, memory::Memory, percpu::Chunks};

/// Blocks, and pieces, that are noted at most.
const MOST: usize = 250_000;

/// A block of pages, or a piece of per-CPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address; of per-CPU memory the one that its allocator goes by.
    pub address: u64,
    /// Its bytes; of per-CPU memory those that one CPU has.
    pub bytes: u64,
    /// [`Kind::Large`] or [`Kind::PerCpu`].
    pub kind: Kind,
    /// Whether anything leads to it.
    pub is_reached: bool,
}

/// All of them.
pub(super) struct Blocks {
    /// Pieces by their pointers, and then blocks by their address.
    all: Vec<Block>,
    /// What pointers to pieces are, and the range that these are in.
    pointers: Vec<u64>,
    first: u64,
    length: u64,
    /// A bit for each page frame that a block has.
    frames: Vec<u64>,
    /// How many were not noted for want of room.
    pub(super) left_out: u64,
    /// Pieces whose pointers are numbers like any other.
    pub(super) untold: u64,
}

impl Blocks {
    /// Begins with the pieces of per-CPU memory.
    pub(super) fn new(memory: &Memory, chunks: &Chunks) -> Self {
        let (mut pieces, mut untold) = (Vec::new(), 0);
        chunks.each_piece(memory, |address, bytes| {
            let pointer = memory.percpu_pointer(address);
            if memory.tells_percpu(pointer) {
                let block = Block { address, bytes, kind: Kind::PerCpu, is_reached: false };
                pieces.push((pointer, block));
            } else {
                untold += 1;
            }
        });
        pieces.sort_unstable_by_key(|(pointer, _)| *pointer);
        pieces.dedup_by_key(|(pointer, _)| *pointer);
        let left_out = pieces.len().saturating_sub(MOST) as u64;
        pieces.truncate(MOST);
        let (pointers, all): (Vec<u64>, Vec<Block>) = pieces.into_iter().unzip();
        let first = pointers.first().copied().unwrap_or(0);
        let length = pointers.last().zip(all.last()).map_or(0, |(last, block)| last + block.bytes - first);
        let frames = vec![0; memory.frames.last().map_or(0, |frames| frames.1 / 64 + 1) as usize];
        Self { all, pointers, first, length, frames, left_out, untold }
    }

    /// Notes a block of pages; they come by their addresses.
    pub(super) fn add_pages(&mut self, memory: &Memory, frame: u64, pages: u64) {
        if self.all.len() - self.pointers.len() >= MOST {
            self.left_out += 1;
            return;
        }
        for frame in frame..frame + pages {
            if let Some(word) = self.frames.get_mut((frame / 64) as usize) {
                *word |= 1 << (frame % 64);
            }
        }
        let (address, bytes) = (memory.address(frame), pages * memory.page_bytes);
        self.all.push(Block { address, bytes, kind: Kind::Large, is_reached: false });
    }

    /// What a word leads to and nothing else did yet: by the address of a piece, of a page or of its `struct page`, or by a
    /// physical address as devices have it.
    #[inline]
    pub(super) fn open(&self, memory: &Memory, word: u64) -> Option<usize> {
        if word.wrapping_sub(self.first) < self.length {
            let index = self.pointers.partition_point(|pointer| *pointer <= word).checked_sub(1)?;
            let of = &self.all[index];
            return (word - self.pointers[index] < of.bytes && !of.is_reached).then_some(index);
        }
        let size = memory.layout.page.size;
        let pages = self.frames.len() as u64 * 64;
        let into = word.wrapping_sub(memory.first_page);
        let frame = if word >= memory.direct_map && memory.frame(word) < pages {
            memory.frame(word)
        } else if into < pages * size {
            into / size
        } else if word.is_multiple_of(memory.page_bytes) && word / memory.page_bytes < pages {
            word / memory.page_bytes
        } else {
            return None;
        };
        if self.frames[(frame / 64) as usize] >> (frame % 64) & 1 == 0 {
            return None;
        }
        let address = memory.address(frame);
        let blocks = &self.all[self.pointers.len()..];
        let index = blocks.partition_point(|block| block.address <= address).checked_sub(1)?;
        (!blocks[index].is_reached).then_some(self.pointers.len() + index)
    }

    /// Whether an address, or the page that a `struct page` is of, is the block's own.
    pub(super) fn is_own(&self, index: usize, address: u64) -> bool {
        let of = &self.all[index];
        of.kind == Kind::Large && address.wrapping_sub(of.address) < of.bytes
    }

    /// Notes that something leads to one.
    pub(super) fn reach(&mut self, index: usize) {
        self.all[index].is_reached = true;
    }

    /// All of them.
    pub(super) fn into_all(self) -> Vec<Block> {
        self.all
    }
}
