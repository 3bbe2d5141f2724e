//! Whether what is looked for is still allocated at all: a free that was missed makes no orphan.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{
    Candidate, Kind,
    free_pages::{FRESH, FreePages},
    memory::Memory,
    percpu::Chunks,
    slabs::{Cache, Slab, Slabs},
};
use crate::proc::kpageflags::{
    BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, MMAP, NOPAGE, PGTABLE, PageFlags, SLAB, is_users,
};

/// Slabs, and objects in each on average, without which nothing is said of what is left.
const FEWEST_SLABS: usize = 3;
const FEWEST_IN_SLAB: usize = 4;
/// Bits of a table's entry that say what it is good for, and its address (x86, arm64 and their IOMMUs).
const MARKS: u64 = 0b111;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits of the address that no memory has (64 TiB), but the kernel's own addresses and text have.
const TOO_MUCH: u64 = 0x000f_c000_0000_0000;
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
    /// It is a page that may be a table of addresses for a device.
    Table,
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    pub(super) state: State,
    /// What may be left in it of the time when it was free.
    pub(super) link: Option<Link>,
    /// Whether a list of free objects of its slab changed while it was read, or its bytes are other ones: it may be free, then.
    pub(super) unsure: bool,
}

/// The word at which the allocator has a plain pointer to the next free object while an object is free: what is
/// allocated next finds it there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Where in the object.
    pub(super) at: u64,
    /// The slab.
    pub(super) slab: u64,
    /// What the word is.
    pub(super) is: Left,
}

/// What a word is that may be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Zero, as in the last free object of a list.
    Nothing,
    /// The address of an object of the same slab.
    Neighbour,
    /// Anything else: somebody has written there.
    Other,
}

/// Whether the words of many objects of one kind are what the allocator has left there, and no links of theirs: none
/// leads out of its slab, and hardly one is zero. Chains of objects would lead from slab to slab if they are long, and end in
/// many zeros if they are short.
pub(super) fn are_left(links: &[Link]) -> bool {
    let mut slabs: Vec<u64> = links.iter().map(|link| link.slab).collect();
    slabs.sort_unstable();
    slabs.dedup();
    let count = |is: Left| links.iter().filter(|link| link.is == is).count();
    slabs.len() >= FEWEST_SLABS
        && links.len() >= slabs.len() * FEWEST_IN_SLAB
        && count(Left::Other) == 0
        && count(Left::Nothing) <= slabs.len() + 1
}

/// Looks up the state of each candidate.
///
/// # Errors
/// When the kernel refuses to be read.
pub(super) fn states(memory: &Memory, flags: &PageFlags, candidates: &[Candidate]) -> Result<Vec<Of>> {
    let mut states = vec![Of { state: State::Allocated, link: None, unsure: false }; candidates.len()];
    let mut slabs = Slabs::new(memory);
    let mut free = FreePages::read(memory);
    // Asked a hundred times of few slab objects, it need not walk all chunks each time.
    let has_pieces = candidates.iter().any(|candidate| candidate.kind == Kind::PerCpu);
    let mut percpu = if has_pieces { Chunks::read(memory) } else { Chunks::default() };
    let mut by_slab: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let frame = match candidate.kind {
            Kind::Slab | Kind::Large => memory.frame(candidate.address),
            Kind::Page => candidate.frame,
            Kind::PerCpu => {
                if percpu.is_known() {
                    match percpu.given_out(memory, candidate.address) {
                        Some(bytes) => states[index].unsure = bytes != candidate.bytes,
                        None => states[index].state = State::Free,
                    }
                }
                continue;
            }
            Kind::Area => continue,
        };
        let of_page = one(flags, frame)?;
        let other = of_page & (BUDDY | NOPAGE | PGTABLE) != 0
            || candidate.kind != Kind::Slab && of_page & SLAB != 0
            || candidate.kind == Kind::Large && !is_compound(memory, flags, candidate)?;
        states[index].state = if other || is_users(of_page) || free.has(memory, frame, FRESH) {
            State::Free
        } else if candidate.kind == Kind::Slab {
            let (head, of_head) = head(flags, frame, of_page)?;
            if of_head & SLAB == 0 {
                State::Free
            } else {
                by_slab.entry(head).or_default().push(index);
                State::Allocated
            }
        } else if of_page & MMAP != 0 {
            State::Mapped
        } else if candidate.may_be_table && looks_like_table(memory, frame)? {
            State::Table
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
            if !is_allocated(&slab, &cache, &candidates[index], memory.page_bytes) {
                states[index].state = State::Free;
            }
            states[index].unsure = slab.broken;
            states[index].link = cache.plain_link().and_then(|at| {
                let word = memory.core.word(candidates[index].address + at).ok()?;
                let neighbour = slab.object_at(&cache, word).is_some_and(|(start, _)| start == word);
                let is = match word {
                    0 => Left::Nothing,
                    _ if neighbour => Left::Neighbour,
                    _ => Left::Other,
                };
                Some(Link { at, slab: slab.base, is })
            });
        }
    }
    Ok(states)
}

/// Whether a candidate is an allocated object of a slab, and not only a part of another cache's that has its pages now. KFENCE puts a
/// single object anywhere into its page (`mm/kfence/core.c`).
fn is_allocated(slab: &Slab, cache: &Cache, candidate: &Candidate, page: u64) -> bool {
    let Some((start, free)) = slab.object_at(cache, candidate.address) else { return false };
    !free
        && (slab.objects == 1 && cache.size <= page
            || start == candidate.address && candidate.bytes <= cache.size)
}

/// Whether a candidate is a compound page still, and not only a part of another one: what is large has one of its own
/// (`___kmalloc_large_node`, `mm/slub.c`).
fn is_compound(memory: &Memory, flags: &PageFlags, candidate: &Candidate) -> Result<bool> {
    let pages = candidate.bytes.div_ceil(memory.page_bytes).next_power_of_two();
    let mut of_pages = vec![0; pages as usize + 1];
    flags.read(memory.frame(candidate.address), &mut of_pages)?;
    let is_tail = |flags: &u64| flags & COMPOUND_TAIL != 0;
    Ok(of_pages[0] & COMPOUND_HEAD != 0
        && of_pages[1..pages as usize].iter().all(is_tail)
        && !is_tail(&of_pages[pages as usize]))
}

/// Whether a page has nothing but what entries of page tables look like: page addresses with some marks in the bits below.
/// Tables of an IOMMU are pointed to by such entries only (`drivers/iommu`).
fn looks_like_table(memory: &Memory, frame: u64) -> Result<bool> {
    let mut words = vec![0; (memory.page_bytes / 8) as usize];
    memory.core.words(memory.address(frame), &mut words)?;
    Ok(are_entries(&words))
}

/// The same of words; an empty page may be a table, too.
fn are_entries(words: &[u64]) -> bool {
    words.iter().all(|&word| word == 0 || word & MARKS != 0 && word & ADDRESS != 0 && word & TOO_MUCH == 0)
}

/// The flags of one page.
pub(super) fn one(flags: &PageFlags, frame: u64) -> Result<u64> {
    let mut one = [0];
    flags.read(frame, &mut one)?;
    Ok(one[0])
}

/// The first page of the slab that a page is in, and its flags.
pub(super) fn head(flags: &PageFlags, frame: u64, of_page: u64) -> Result<(u64, u64)> {
    let mut at = frame;
    let mut of_page = of_page;
    while of_page & COMPOUND_TAIL != 0 && at > frame.saturating_sub(MOST_PAGES) {
        at -= 1;
        of_page = one(flags, at)?;
    }
    Ok((at, of_page))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects in slabs of eight; what each has by its number.
    fn links(objects: u64, is: impl Fn(u64) -> Left) -> Vec<Link> {
        (0..objects).map(|object| Link { at: 128, slab: object / 8 * 4_096, is: is(object) }).collect()
    }

    #[test]
    fn tables_are_told_from_other_pages() {
        assert!(are_entries(&[0; 512]));
        assert!(are_entries(&[0, 0x8000_0001_2345_6003, 0x0000_0002_0000_0001, 0]));
        // A kernel address, text, a number.
        for other in [0xffff_8881_2345_6001, 0x6c65_6168_2074_6f6e, 42] {
            assert!(!are_entries(&[0x8000_0001_2345_6003, other]), "{other:x}");
        }
    }

    #[test]
    fn what_the_allocator_left_is_told_from_chains() {
        let left = |object: u64| if object % 8 == 7 { Left::Nothing } else { Left::Neighbour };
        assert!(are_left(&links(64, left)));
        // Too few to say.
        assert!(!are_left(&links(16, left)));
        // Pairs: every other one ends.
        assert!(!are_left(&links(64, |object| if object % 2 == 1 {
            Left::Nothing
        } else {
            Left::Neighbour
        })));
        // One long list: it leads from slab to slab.
        assert!(!are_left(&links(64, |object| if object % 8 == 7 { Left::Other } else { Left::Neighbour })));
        // Written over.
        assert!(!are_left(&links(64, |_| Left::Other)));
    }
}
