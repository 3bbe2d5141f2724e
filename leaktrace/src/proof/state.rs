//! Whether what is looked for is still allocated at all: a free that was missed makes no orphan.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Candidate, Kind, free_pages, memory::Memory, slabs::Slabs};
use crate::proc::kpageflags::{BUDDY, COMPOUND_TAIL, LRU, MMAP, NOPAGE, PGTABLE, PageFlags, SLAB};

/// Pages that a slab has at most.
const MOST_PAGES: u64 = 1_024;

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Allocated,
    /// It is free, or its page is in other use.
    Free,
    /// A process has it mapped.
    Mapped,
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    pub(super) state: State,
    /// Where in it the allocator keeps a plain pointer to the next free object while it is free: what is allocated next
    /// finds it there.
    pub(super) link: Option<u64>,
}

/// Looks up the state of each candidate.
///
/// # Errors
/// When the kernel refuses to be read.
pub(super) fn states(memory: &Memory, flags: &PageFlags, candidates: &[Candidate]) -> Result<Vec<Of>> {
    let mut states = vec![Of { state: State::Allocated, link: None }; candidates.len()];
    let mut slabs = Slabs::new(memory);
    let free = free_pages::of_cpus(memory);
    let mut by_slab: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let frame = match candidate.kind {
            Kind::Slab | Kind::Large => memory.frame(candidate.address),
            Kind::Page => candidate.frame,
            Kind::Area | Kind::PerCpu => continue,
        };
        let of_page = one(flags, frame)?;
        let others = if candidate.kind == Kind::Page { LRU | PGTABLE | SLAB } else { LRU | PGTABLE };
        states[index].state = if of_page & (BUDDY | NOPAGE | others) != 0 || free.contains(&frame) {
            State::Free
        } else if candidate.kind == Kind::Slab {
            if of_page & SLAB == 0 {
                State::Free
            } else {
                by_slab.entry(head(flags, frame, of_page)?).or_default().push(index);
                State::Allocated
            }
        } else if of_page & MMAP != 0 {
            State::Mapped
        } else {
            State::Allocated
        };
    }
    let mut page = vec![0; (memory.layout.page.size / 8) as usize];
    for (frame, members) in by_slab {
        memory.core.words(memory.page(frame), &mut page)?;
        let Some(slab) = slabs.slab(&page, memory.address(frame)) else { continue };
        let Some(cache) = slabs.cache(slab.cache).cloned() else { continue };
        for index in members {
            let is_free = slab.object_at(&cache, candidates[index].address).is_none_or(|(_, free)| free);
            if is_free {
                states[index].state = State::Free;
            }
            states[index].link = cache.plain_link();
        }
    }
    Ok(states)
}

fn one(flags: &PageFlags, frame: u64) -> Result<u64> {
    let mut one = [0];
    flags.read(frame, &mut one)?;
    Ok(one[0])
}

/// The first page of the slab that a page is in.
fn head(flags: &PageFlags, frame: u64, of_page: u64) -> Result<u64> {
    let mut at = frame;
    let mut of_page = of_page;
    while of_page & COMPOUND_TAIL != 0 && at > frame.saturating_sub(MOST_PAGES) {
        at -= 1;
        of_page = one(flags, at)?;
    }
    Ok(at)
}
