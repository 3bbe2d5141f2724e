//! One look at all of memory that is the kernel's: every word that points into what is looked for.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    areas::Areas,
    free_pages::{self, FreePages},
    memmap::MemoryMap,
    memory::Memory,
    percpu::Chunks,
    place::{AREAS, Now, Old, Place, What, Whose},
    slabs::{Slab, Slabs},
    targets::{Pointed, Stands, Targets},
};
use crate::{
    analysis::reach::{Edge, Links, Root},
    proc::{
        kcore::Kcore,
        kpageflags::{
            BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, HWPOISON, NOPAGE, OFFLINE, PGTABLE, PageFlags, is_users,
        },
    },
};

/// Pages that are looked at together. No slab and no free block reaches over their end.
pub(super) const CHUNK: u64 = 4_096;
/// Words that are read at a time: they fit a core's own cache.
pub(super) const WORDS: usize = 1 << 15;
/// Words that are compared at a time.
const BLOCK: usize = 8;
/// Pages that have no memory to look at, or only physical addresses.
pub(super) const NOTHING: u64 = NOPAGE | HWPOISON | OFFLINE | PGTABLE;
/// Largest order of a free block.
const MOST_ORDER: u64 = 12;
/// Pointers among candidates that are kept in mind at most; more count as from outside.
const MOST_EDGES: usize = 1_000_000;
/// What has lists of slabs.
pub(super) const NODES: &str = "kmem_cache_node";

/// What one look found.
#[derive(Default)]
pub(super) struct Pass {
    pub(super) links: Links,
    /// Of each object the place of its pointer from outside.
    pub(super) places: Vec<Option<Place>>,
    /// Of each object an old pointer that does not count.
    pub(super) old: Vec<Option<Old>>,
    /// Bytes that were looked at.
    pub(super) bytes: u64,
    /// Bytes that were read, `struct page`s included.
    pub(super) kcore_bytes: u64,
    /// Time that reading them took.
    pub(super) reading: Duration,
    /// Whether everything was looked at.
    pub(super) complete: bool,
    /// Free lists that could not be followed.
    pub(super) broken_lists: u64,
}

/// Says after some bytes whether to go on.
pub(super) type Step<'a> = &'a mut dyn FnMut(u64) -> Result<bool>;

/// A look that is going on.
pub(super) struct Scan<'a> {
    pub(super) memory: &'a Memory,
    pub(super) flags: &'a PageFlags,
    pub(super) targets: &'a Targets,
    /// Objects below this number are candidates, the others are asked who holds them.
    pub(super) candidates: u32,
    pub(super) slabs: Slabs<'a>,
    pub(super) areas: &'a Areas,
    pub(super) map: MemoryMap,
    /// Pages in which the kernel notes stack traces.
    pub(super) stacks: FxHashSet<u64>,
    /// Pages that reading itself goes by.
    pub(super) buffers: Vec<u64>,
    pub(super) free: FreePages,
    pub(super) percpu: Chunks,
    pub(super) slab: Option<Slab>,
    pub(super) chunk: Chunk,
    pub(super) pass: Pass,
}

/// What is known of the pages that are looked at.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) first: u64,
    pub(super) flags: Vec<u64>,
    /// Their `struct page`s.
    pub(super) pages: Vec<u64>,
    /// Of each page of a slab the first page; empty until it is asked for.
    pub(super) heads: Vec<Option<u32>>,
    /// Pages that were looked up once more.
    pub(super) unknown: FxHashMap<u64, Now>,
}

/// Looks at all memory once.
///
/// # Errors
/// When the kernel refuses to be read, or `step` fails.
pub(super) fn pass(
    memory: &Memory,
    flags: &PageFlags,
    bulk: &Kcore,
    areas: &Areas,
    (targets, candidates, objects): (&Targets, u32, usize),
    step: Step<'_>,
) -> Result<Pass> {
    let mut scan = Scan::begin(memory, flags, bulk, areas, (targets, candidates, objects));
    let mut buffer = vec![0; WORDS];
    // The last page that was read: the kernel copies each into a page of its own on the way.
    let mut before = vec![0; (memory.page_bytes / 8) as usize];
    for &(from, to) in &memory.frames {
        let mut first = from;
        while first < to {
            let end = ((first / CHUNK + 1) * CHUNK).min(to);
            scan.enter(flags, first, end)?;
            for (start, end) in runs(&scan.chunk, memory) {
                let mut at = memory.address(start);
                let end = memory.address(end);
                while at < end {
                    let words = &mut buffer[..(((end - at) / 8) as usize).min(WORDS)];
                    let begun = Instant::now();
                    bulk.words(at, words).context("cannot read memory through /proc/kcore")?;
                    scan.pass.reading += begun.elapsed();
                    scan.look(at, words, &before);
                    let last = words.len() - before.len();
                    before.copy_from_slice(&words[last..]);
                    at += words.len() as u64 * 8;
                    scan.pass.bytes += words.len() as u64 * 8;
                    scan.pass.kcore_bytes += words.len() as u64 * 8;
                }
            }
            if !step(scan.pass.bytes)? {
                return Ok(scan.end(false));
            }
            first = end;
        }
    }
    Ok(scan.end(true))
}

/// Bytes that a look at all memory would read.
///
/// # Errors
/// When the kernel refuses to be read.
pub(super) fn bytes(memory: &Memory, flags: &PageFlags) -> Result<u64> {
    let mut chunk = Chunk::default();
    let mut pages = 0;
    for &(from, to) in &memory.frames {
        let mut first = from;
        while first < to {
            let end = ((first / CHUNK + 1) * CHUNK).min(to);
            chunk.flags.resize((end - first) as usize, 0);
            flags.read(first, &mut chunk.flags)?;
            chunk.first = first;
            pages += runs(&chunk, memory).iter().map(|(from, to)| to - from).sum::<u64>();
            first = end;
        }
    }
    Ok(pages * memory.page_bytes)
}

/// Offset in a page and length, as a word behind a page's address may have them, in both orders.
pub(super) fn parts(word: u64, page_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let (low, high) = (word & 0xffff_ffff, word >> 32);
    [(low, high), (high, low)].into_iter().filter(move |&(offset, length)| offset < page_bytes && length > 0)
}

/// Runs of page frames that are looked at, from and up to.
pub(super) fn runs(chunk: &Chunk, memory: &Memory) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let words = (memory.layout.page.size / 8) as usize;
    let mut users = false;
    let mut index = 0;
    while index < chunk.flags.len() {
        let flags = chunk.flags[index];
        let frame = chunk.first + index as u64;
        if flags & COMPOUND_TAIL == 0 {
            users = is_users(flags) && flags & COMPOUND_HEAD != 0;
        }
        if flags & BUDDY != 0 {
            let private = chunk.pages.get(index * words + memory.layout.page.private as usize / 8);
            let order = private.copied().unwrap_or(0);
            let whole = order <= MOST_ORDER && frame.is_multiple_of(1 << order);
            index += if whole { 1 << order } else { 1 };
            continue;
        }
        index += 1;
        if is_users(flags) || flags & NOTHING != 0 || users && flags & COMPOUND_TAIL != 0 {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.1 == frame => last.1 = frame + 1,
            _ => runs.push((frame, frame + 1)),
        }
    }
    runs
}

impl<'a> Scan<'a> {
    /// Begins a look at everything.
    pub(super) fn begin(
        memory: &'a Memory,
        flags: &'a PageFlags,
        bulk: &Kcore,
        areas: &'a Areas,
        (targets, candidates, objects): (&'a Targets, u32, usize),
    ) -> Self {
        Self {
            memory,
            flags,
            targets,
            candidates,
            slabs: Slabs::new(memory),
            areas,
            map: MemoryMap::read(memory),
            stacks: free_pages::of_stack_depot(memory),
            buffers: [bulk, &memory.core]
                .iter()
                .filter_map(|file| areas.buffer_of(memory, file.descriptor()))
                .map(|buffer| memory.frame(buffer))
                .collect(),
            free: FreePages::read(memory),
            percpu: Chunks::read(memory),
            slab: None,
            chunk: Chunk::default(),
            pass: Pass {
                links: Links { roots: vec![None; objects], edges: Vec::new() },
                places: vec![None; objects],
                old: vec![None; objects],
                ..Pass::default()
            },
        }
    }
}

impl Scan<'_> {
    /// Reads what pages are.
    pub(super) fn enter(&mut self, flags: &PageFlags, first: u64, end: u64) -> Result<()> {
        let count = (end - first) as usize;
        self.chunk.first = first;
        self.chunk.flags.resize(count, 0);
        self.chunk.pages.resize(count * (self.memory.layout.page.size / 8) as usize, 0);
        self.chunk.heads.clear();
        self.chunk.unknown.clear();
        self.slab = None;
        // First the pages, then the flags: what is still free then was free before.
        let pages = self.memory.page(first);
        let begun = Instant::now();
        self.memory.core.words(pages, &mut self.chunk.pages).context("cannot read struct pages")?;
        self.pass.reading += begun.elapsed();
        self.pass.kcore_bytes += self.chunk.pages.len() as u64 * 8;
        flags.read(first, &mut self.chunk.flags)
    }

    fn look(&mut self, at: u64, words: &[u64], before: &[u64]) {
        for (index, block) in words.chunks(BLOCK).enumerate() {
            if !self.targets.any_may_be(block) {
                continue;
            }
            for (offset, word) in block.iter().enumerate() {
                if self.targets.may_be(*word) {
                    self.word(at, words, index * BLOCK + offset, before);
                }
            }
        }
    }

    /// Looks at one word of those that were read from an address on.
    fn word(&mut self, from: u64, words: &[u64], index: usize, before: &[u64]) {
        let word = words[index];
        let Some(pointed) = self.targets.pointed_to(word) else { return };
        let address = from + index as u64 * 8;
        let next = words.get(index + 1).copied();
        let (pointed, by_page) = match pointed.stands {
            Stands::PageOf(page) => {
                let found = next.and_then(|next| self.by_page(page, next));
                let Some(pointed) = found else { return };
                (pointed, true)
            }
            _ => (pointed, false),
        };
        let page_words = (self.memory.page_bytes / 8) as usize;
        let page = index / page_words * page_words;
        let same = |a: &[u64]| words.get(page..page + page_words) == Some(a);
        let copied = if page == 0 { same(before) } else { same(&words[page - page_words..page]) };
        let copied = copied || self.buffers.contains(&self.memory.frame(address));
        let whose = if copied { Whose::Copy } else { self.whose(address, word) };
        let object = pointed.object as usize;
        match whose {
            Whose::Copy => {}
            // No page and offset: these are the allocators' own lists, and other numbers.
            Whose::Root(What::StructPage(_)) if by_page => {}
            Whose::Root(What::Object { ref cache, .. }) if by_page && cache == NODES => {}
            // What describes an area is no use of it.
            Whose::Root(What::Object { start, ref cache, .. })
                if matches!(pointed.stands, Stands::Area | Stands::Description)
                    && (cache == AREAS || self.areas.is_description(start, word)) =>
            {
                self.pass.old[object].get_or_insert(Old::Bookkeeping);
            }
            Whose::Root(What::Object { start, ref cache, .. })
                if cache == AREAS && self.areas.is_left(self.memory, start, address - start) =>
            {
                self.pass.old[object].get_or_insert(Old::Bookkeeping);
            }
            Whose::Candidate(from, at) => {
                if self.pass.links.edges.len() < MOST_EDGES {
                    let (to, into) = (pointed.object, pointed.offset);
                    self.pass.links.edges.push(Edge { from, at, to, into });
                } else {
                    self.root(pointed, Place { address, what: What::Page, by_page });
                }
            }
            Whose::Old(old) => {
                // What misleads others comes first.
                let known = &mut self.pass.old[object];
                *known = Some(known.map_or(old, |known| known.min(old)));
            }
            Whose::Root(what) => self.root(pointed, Place { address, what, by_page }),
        }
    }

    /// What is pointed to by a page and the word behind that: `scatterlist` has the offset first, `bio_vec` the length.
    /// No length leads out of the object.
    fn by_page(&self, page: u64, next: u64) -> Option<Pointed> {
        parts(next, self.memory.page_bytes).find_map(|(offset, length)| {
            let pointed = self.targets.pointed_to(page + offset)?;
            (pointed.stands == Stands::Itself && pointed.offset + length <= pointed.bytes).then_some(pointed)
        })
    }

    fn root(&mut self, pointed: Pointed, place: Place) {
        let object = pointed.object as usize;
        let rank = place.what.rank();
        // What is asked for its holder may point to itself.
        if let What::Object { start, .. } = place.what
            && self.targets.object_at(start).is_some_and(|(same, _)| same == pointed.object)
        {
            return;
        }
        let known = &mut self.pass.links.roots[object];
        if known.is_none_or(|known| known.rank > rank) {
            *known = Some(Root { place: pointed.object, rank, into: pointed.offset });
            self.pass.places[object] = Some(place);
        }
    }

    fn end(mut self, complete: bool) -> Pass {
        self.pass.complete = complete;
        self.pass.broken_lists = self.slabs.broken_lists;
        self.pass
    }
}
