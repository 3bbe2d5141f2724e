//! One look at all of memory that is the kernel's: every word that points into what is looked for.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustc_hash::FxHashSet;

use super::{
    areas::{Area, Areas, OnStack},
    free_pages,
    memmap::MemoryMap,
    memory::Memory,
    slabs::{Slab, Slabs},
    targets::{Pointed, Stands, Targets},
};
use crate::{
    analysis::{
        blame,
        reach::{Edge, Links, Root},
    },
    proc::{
        kcore::Kcore,
        kpageflags::{
            BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, HUGE, HWPOISON, LRU, NOPAGE, OFFLINE, PGTABLE, PageFlags,
            SLAB,
        },
    },
};

/// Pages that are looked at together. No slab and no free block reaches over their end.
const CHUNK: u64 = 4_096;
/// Words that are read at a time: they fit a core's own cache.
const WORDS: usize = 1 << 15;
/// Words that are compared at a time.
const BLOCK: usize = 8;
/// Pages of users and of the page cache: they hold no pointers of the kernel's. That a page is anonymous is told by a word
/// that slabs and others use for something else, so it is not asked for.
const USERS: u64 = LRU | HUGE;
/// Pages that have no memory to look at, or only physical addresses.
const NOTHING: u64 = NOPAGE | HWPOISON | OFFLINE | PGTABLE;
/// Largest order of a free block.
const MOST_ORDER: u64 = 12;
/// Pointers among candidates that are kept in mind at most; more count as from outside.
const MOST_EDGES: usize = 2_000_000;
/// Pages of the largest slabs (`slab_max_order`).
const SLAB_PAGES: u64 = 8;
/// What has lists of slabs.
const NODES: &str = "kmem_cache_node";
/// What describes areas that are free.
const AREAS: &str = "vmap_area";
/// A CPU's stack for entries (`arch/x86/kernel/cpu/common.c`).
const ENTRY_STACK: &str = "entry_stack_storage";
/// The CPUs' free pages are looked up again after this time.
const FRESH: Duration = Duration::from_millis(500);

/// Where a pointer was found, and what that is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// In the direct map.
    pub(super) address: u64,
    pub(super) what: What,
    /// Whether the pointer is one to the page, with the offset beside it.
    pub(super) by_page: bool,
}

/// What a place is.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A variable of the kernel or of a module, at this address.
    Variable(u64),
    /// Per-CPU memory.
    PerCpu { cpu: usize, address: u64 },
    /// A slab object.
    Object { cache: String, start: u64, bytes: u64 },
    /// An area of vmalloc, and the place's address in it.
    Area { area: Area, address: u64 },
    /// A thread's stack.
    Stack { pid: u32, comm: String },
    /// The `struct page` of a page frame.
    StructPage(u64),
    /// Another page of the kernel.
    Page,
}

impl What {
    /// The lower, the more it says.
    fn rank(&self) -> u8 {
        match self {
            Self::Variable(_) => 0,
            Self::PerCpu { .. } => 1,
            Self::Object { .. } => 2,
            Self::Area { .. } => 3,
            Self::Stack { .. } => 4,
            Self::Page => 5,
            Self::StructPage(_) => 6,
        }
    }
}

/// Memory that nobody uses any more, with an old pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Old {
    Sheaf,
    Stack,
    FreeObject,
    FreePage,
    /// What the kernel notes of what it gives out.
    Bookkeeping,
}

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

/// Whose a place is.
enum Whose {
    Candidate(u32, u64),
    Old(Old),
    Root(What),
    /// A copy that reading itself made.
    Copy,
}

struct Scan<'a> {
    memory: &'a Memory,
    flags: &'a PageFlags,
    targets: &'a Targets,
    /// Objects below this number are candidates, the others are asked who holds them.
    candidates: u32,
    slabs: Slabs<'a>,
    areas: &'a Areas,
    map: MemoryMap,
    /// Pages in which the kernel notes stack traces.
    stacks: FxHashSet<u64>,
    /// Pages that reading itself goes by.
    buffers: Vec<u64>,
    free: (Instant, FxHashSet<u64>),
    slab: Option<Slab>,
    chunk: Chunk,
    pass: Pass,
}

/// What is known of the pages that are looked at.
#[derive(Default)]
struct Chunk {
    first: u64,
    flags: Vec<u64>,
    /// Their `struct page`s.
    pages: Vec<u64>,
    /// Of each page of a slab the first page; empty until it is asked for.
    heads: Vec<Option<u32>>,
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
    let mut scan = Scan {
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
        free: (Instant::now(), free_pages::of_cpus(memory)),
        slab: None,
        chunk: Chunk::default(),
        pass: Pass {
            links: Links { roots: vec![None; objects], edges: Vec::new() },
            places: vec![None; objects],
            old: vec![None; objects],
            ..Pass::default()
        },
    };
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

/// Runs of page frames that are looked at, from and up to.
fn runs(chunk: &Chunk, memory: &Memory) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let words = (memory.layout.page.size / 8) as usize;
    let mut users = false;
    let mut index = 0;
    while index < chunk.flags.len() {
        let flags = chunk.flags[index];
        let frame = chunk.first + index as u64;
        if flags & COMPOUND_TAIL == 0 {
            users = flags & USERS != 0 && flags & COMPOUND_HEAD != 0;
        }
        if flags & BUDDY != 0 {
            let private = chunk.pages.get(index * words + memory.layout.page.private as usize / 8);
            let order = private.copied().unwrap_or(0);
            let whole = order <= MOST_ORDER && frame.is_multiple_of(1 << order);
            index += if whole { 1 << order } else { 1 };
            continue;
        }
        index += 1;
        if flags & (USERS | NOTHING) != 0 || users && flags & COMPOUND_TAIL != 0 {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.1 == frame => last.1 = frame + 1,
            _ => runs.push((frame, frame + 1)),
        }
    }
    runs
}

impl Scan<'_> {
    /// Reads what pages are.
    fn enter(&mut self, flags: &PageFlags, first: u64, end: u64) -> Result<()> {
        let count = (end - first) as usize;
        self.chunk.first = first;
        self.chunk.flags.resize(count, 0);
        self.chunk.pages.resize(count * (self.memory.layout.page.size / 8) as usize, 0);
        self.chunk.heads.clear();
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
        let (low, high) = (next & 0xffff_ffff, next >> 32);
        [(low, high), (high, low)]
            .into_iter()
            .filter(|&(offset, length)| offset < self.memory.page_bytes && length > 0)
            .find_map(|(offset, length)| {
                let pointed = self.targets.pointed_to(page + offset)?;
                (pointed.stands == Stands::Itself && pointed.offset + length <= pointed.bytes)
                    .then_some(pointed)
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

    /// Whose a place is that a pointer was found at.
    fn whose(&mut self, address: u64, word: u64) -> Whose {
        // Its own memory, or that of its description.
        if let Some(pointed) = self.targets.pointed_to(address)
            && pointed.object < self.candidates
        {
            // The allocator's own array of free objects may be a candidate, too.
            let sheaf = pointed.stands == Stands::Itself && self.slabs.is_sheaf(address - pointed.offset);
            return if sheaf {
                Whose::Old(Old::Sheaf)
            } else {
                Whose::Candidate(pointed.object, pointed.offset)
            };
        }
        let frame = self.memory.frame(address);
        let index = (frame - self.chunk.first) as usize;
        if self.chunk.heads.is_empty() {
            self.find_heads();
        }
        if self.chunk.heads[index].is_some() || self.chunk.flags[index] & SLAB != 0 {
            return self.in_slab(address, index).unwrap_or(Whose::Root(What::Page));
        }
        if let Some(variable) = self.memory.in_image(address) {
            return if self.memory.is_note(variable) {
                Whose::Old(Old::Bookkeeping)
            } else {
                Whose::Root(What::Variable(variable))
            };
        }
        if let Some((cpu, address)) = self.memory.in_percpu(address) {
            // Where each entry into the kernel begins, before it goes on on the thread's stack.
            let entry = self.memory.variable_at(address).is_some_and(|at| at.symbol == ENTRY_STACK);
            if entry {
                return Whose::Old(Old::Stack);
            }
            return Whose::Root(What::PerCpu { cpu, address });
        }
        if let Some(own) = self.map.at(address) {
            return self.in_struct_page(own, word);
        }
        if let Some((area, page)) = self.areas.of_frame(frame) {
            let inside = area.start + page * self.memory.page_bytes + address % self.memory.page_bytes;
            return self.in_area(area, inside);
        }
        if self.is_free(frame) {
            return Whose::Old(Old::FreePage);
        }
        if self.stacks.contains(&frame) {
            return Whose::Old(Old::Bookkeeping);
        }
        Whose::Root(What::Page)
    }

    /// Whose a word of a `struct page` is.
    fn in_struct_page(&mut self, own: u64, word: u64) -> Whose {
        if let Some(pointed) = self.targets.pointed_to(own)
            && pointed.stands == Stands::Handle
            && pointed.object < self.candidates
        {
            return Whose::Candidate(pointed.object, pointed.offset);
        }
        let layout = &self.memory.layout;
        let into = own.wrapping_sub(self.memory.first_page);
        let (frame, at) = (into / layout.page.size, into % layout.page.size);
        let mut page = [0; 1];
        // A slab's has lists of slabs and of free objects; what belongs to its objects comes behind these.
        let notes = at >= layout.page.list && at < layout.page.refcount;
        let flags = if self.flags.read(frame, &mut page).is_ok() { page[0] } else { 0 };
        if notes && flags & SLAB != 0 {
            return Whose::Old(Old::Bookkeeping);
        }
        let old = flags & BUDDY != 0
            || self.is_free(frame)
            || at == layout.slab.freelist && self.is_near(frame, word);
        if old { Whose::Old(Old::FreePage) } else { Whose::Root(What::StructPage(frame)) }
    }

    /// Whether a word is an address in a slab that may have begun with this page: its list of free objects is left there.
    fn is_near(&self, frame: u64, word: u64) -> bool {
        let start = self.memory.address(frame);
        (start..start + SLAB_PAGES * self.memory.page_bytes).contains(&word)
    }

    fn in_area(&self, area: Area, address: u64) -> Whose {
        match self.areas.on_stack(self.memory, area.start, address) {
            OnStack::Unused => return Whose::Old(Old::Stack),
            // What a thread has, it has, whoever looks for its stack.
            OnStack::Of(task) => {
                return Whose::Root(What::Stack { pid: task.pid, comm: task.comm.clone() });
            }
            OnStack::NoStack => {}
        }
        if let Some((object, at)) = self.targets.object_at(address)
            && object < self.candidates
        {
            return Whose::Candidate(object, at);
        }
        let of_module = self.memory.variable_at(address).is_some_and(|place| place.module.is_some());
        Whose::Root(if of_module { What::Variable(address) } else { What::Area { area, address } })
    }

    fn in_slab(&mut self, address: u64, index: usize) -> Option<Whose> {
        let head = self.chunk.heads[index]?;
        let base = self.memory.address(self.chunk.first + u64::from(head));
        if self.slab.as_ref().is_none_or(|slab| slab.base != base) {
            let words = (self.memory.layout.page.size / 8) as usize;
            let page = &self.chunk.pages[head as usize * words..(head as usize + 1) * words];
            self.slab = self.slabs.slab(page, base);
        }
        let slab = self.slab.as_ref()?;
        let cache = self.slabs.cache(slab.cache)?.clone();
        let (start, free) = slab.object_at(&cache, address)?;
        Some(if blame::is_bookkeeping(&cache.name) {
            Whose::Old(Old::Bookkeeping)
        } else if free {
            Whose::Old(Old::FreeObject)
        } else if self.slabs.is_sheaf(start) {
            Whose::Old(Old::Sheaf)
        } else {
            Whose::Root(What::Object { cache: cache.name, start, bytes: cache.size })
        })
    }

    /// Finds the first page of each slab.
    fn find_heads(&mut self) {
        let words = (self.memory.layout.page.size / 8) as usize;
        self.chunk.heads = vec![None; self.chunk.flags.len()];
        let mut index = 0;
        while index < self.chunk.flags.len() {
            let flags = self.chunk.flags[index];
            let mut pages = 1;
            if flags & SLAB != 0 && flags & COMPOUND_TAIL == 0 {
                let page = &self.chunk.pages[index * words..(index + 1) * words];
                if let Some(bytes) = self.slabs.bytes(page) {
                    pages = bytes.div_ceil(self.memory.page_bytes).next_power_of_two() as usize;
                    let end = (index + pages).min(self.chunk.heads.len());
                    self.chunk.heads[index..end].fill(Some(index as u32));
                }
            }
            index += pages;
        }
    }

    /// Whether a page is on a CPU's list of free ones.
    fn is_free(&mut self, frame: u64) -> bool {
        let now = Instant::now();
        if now - self.free.0 > FRESH {
            self.free = (now, free_pages::of_cpus(self.memory));
        }
        self.free.1.contains(&frame)
    }

    fn end(mut self, complete: bool) -> Pass {
        self.pass.complete = complete;
        self.pass.broken_lists = self.slabs.broken_lists;
        self.pass
    }
}
