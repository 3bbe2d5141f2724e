//! Whose a place in memory is, and whether what lies there counts.

use std::time::Duration;

use super::{
    areas::{Area, OnStack},
    free_pages::{self, FRESH},
    scan::Scan,
    state,
    targets::Stands,
};
use crate::{
    analysis::blame,
    proc::kpageflags::{BUDDY, COMPOUND_TAIL, RESERVED, SLAB, is_users},
};

/// Pages of the largest slabs (`slab_max_order`).
const SLAB_PAGES: u64 = 8;
/// What describes areas that are free.
pub(super) const AREAS: &str = "vmap_area";
/// A CPU's stack for entries (`arch/x86/kernel/cpu/common.c`).
const ENTRY_STACK: &str = "entry_stack_storage";
/// The stack of each CPU's interrupts on x86 (`arch/x86/kernel/cpu/common.c`): what they had there is left until the next one.
pub(super) const INTERRUPT_STACK: &str = "irq_stack_backing_store";
/// CPUs' free pages are looked up again after this time for a page of which nothing else is known.
const AT_ONCE: Duration = Duration::from_millis(20);

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
    pub(super) fn rank(&self) -> u8 {
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

/// What a page of which nothing was known is when it is looked up again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Now {
    /// Free, or a user's.
    Free,
    /// A part of the slab that begins with this page frame.
    Slab(u64),
    /// The kernel's.
    Page,
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

/// Whose a place is.
pub(super) enum Whose {
    Candidate(u32, u64),
    Old(Old),
    Root(What),
    /// A copy that reading itself made.
    Copy,
}

impl Scan<'_> {
    /// Whose a place is that a pointer was found at.
    pub(super) fn whose(&mut self, address: u64, word: u64) -> Whose {
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
            return self.in_slab(address, index).unwrap_or_else(|| self.now(frame, address));
        }
        // Parts of the image that nobody needs are given to the page allocator at the start, and are anybody's pages then.
        let reserved = self.chunk.flags[index] & RESERVED != 0;
        if let Some(variable) = self.memory.in_image(address).filter(|_| reserved) {
            return if self.memory.is_note(variable) {
                Whose::Old(Old::Bookkeeping)
            } else {
                Whose::Root(What::Variable(variable))
            };
        }
        if let Some((cpu, at)) = self.memory.in_percpu(address) {
            // Where each entry into the kernel begins, before it goes on on the thread's stack.
            let entry = self.memory.variable_at(at).is_some_and(|at| at.symbol == ENTRY_STACK);
            if entry {
                return Whose::Old(Old::Stack);
            }
            return if self.percpu.is_free(self.memory, address) {
                Whose::Old(Old::FreeObject)
            } else {
                Whose::Root(What::PerCpu { cpu, address: at })
            };
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
        self.now(frame, address)
    }

    /// Whose a page's content is of which nothing else is known: it may have become free, a user's or a slab since the pages
    /// were looked up, and what was read of it be what it was before.
    fn now(&mut self, frame: u64, address: u64) -> Whose {
        if !self.chunk.unknown.contains_key(&frame) {
            let flags = state::one(self.flags, frame).unwrap_or(0);
            let was_given_back =
                flags & BUDDY != 0 || is_users(flags) || self.free.has(self.memory, frame, AT_ONCE);
            let now = if was_given_back {
                Now::Free
            } else if flags & SLAB != 0 {
                state::head(self.flags, frame, flags).map_or(Now::Page, |(head, _)| Now::Slab(head))
            } else {
                Now::Page
            };
            self.chunk.unknown.insert(frame, now);
        }
        match self.chunk.unknown[&frame] {
            Now::Free => Whose::Old(Old::FreePage),
            Now::Slab(head) => self.in_new_slab(head, address).unwrap_or(Whose::Root(What::Page)),
            Now::Page if free_pages::is_left_by_rcu(self.memory, address) => Whose::Old(Old::FreePage),
            Now::Page if self.percpu.is_free_in_page(self.memory, frame, address) => {
                Whose::Old(Old::FreeObject)
            }
            Now::Page => Whose::Root(What::Page),
        }
    }

    fn in_new_slab(&mut self, head: u64, address: u64) -> Option<Whose> {
        let base = self.memory.address(head);
        if self.slab.as_ref().is_none_or(|slab| slab.base != base) {
            let mut page = vec![0; (self.memory.layout.page.size / 8) as usize];
            self.memory.core.words(self.memory.page(head), &mut page).ok()?;
            self.slab = self.slabs.slab(&page, base);
        }
        self.in_this_slab(address)
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
            // Where slabs are given back by RCU they hang on its lists, between objects of others that are to be freed.
            let is_given_back = self.memory.core.word(own + 8).is_ok_and(|next| self.memory.is_code(next));
            return if is_given_back {
                Whose::Root(What::StructPage(frame))
            } else {
                Whose::Old(Old::Bookkeeping)
            };
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

    pub(super) fn in_area(&self, area: Area, address: u64) -> Whose {
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
        self.in_this_slab(address)
    }

    fn in_this_slab(&mut self, address: u64) -> Option<Whose> {
        let slab = self.slab.as_ref()?;
        let cache = self.slabs.cache(slab.cache)?.clone();
        let (start, free) = slab.object_at(&cache, address)?;
        let is_allocators = address >= start + cache.own;
        Some(if is_allocators || blame::is_bookkeeping(&cache.name) {
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
    pub(super) fn find_heads(&mut self) {
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
        self.free.has(self.memory, frame, FRESH)
    }
}
