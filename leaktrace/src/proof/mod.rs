//! Proof: does anything in the kernel's memory still point to an object?
//!
//! All memory that is the kernel's is read through /proc/kcore, several times, and each word compared with the addresses
//! of the candidates. What the kernel has free (pages, slab objects, stacks below their pointer) holds nothing; what a
//! candidate contains counts once it is reached itself. What nothing reaches in two looks is lost.
//!
//! What this cannot see: pointers that only a register, a device or user space has, and references by physical
//! address or of any coded kind.

mod areas;
mod blocks;
mod files;
mod free_pages;
mod holders;
mod layout;
mod listing;
mod looks;
mod marking;
mod memmap;
mod memory;
mod model;
mod percpu;
mod place;
mod scan;
mod slabs;
mod state;
mod survey;
mod targets;
mod vmalloc;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use rustc_hash::{FxHashMap, FxHashSet};

use self::{
    areas::Areas,
    holders::Asked,
    looks::{Looks, Pace},
    memory::Memory,
    place::Old,
    scan::Pass,
    state::{Link, Of, State},
    targets::{Stands, Target, Targets},
};
pub use self::{
    blocks::Block,
    files::{File, Opener},
    looks::{LOOKS as MOST_LOOKS, Step},
    memory::is_offered,
    model::{Candidate, Cost, Found, Holder, Kind, Limit, Outcome, Proof},
    survey::{MOST_OPEN, Survey, Surveyed, Unreached, Vmalloced},
};
use crate::{
    analysis::{
        linkage::Span,
        reach::{self, Fate, Held},
    },
    proc::kpageflags::PageFlags,
    units,
};

/// Looks for pointers.
pub struct Prover {
    memory: Memory,
    flags: PageFlags,
    root: PathBuf,
}

impl Prover {
    /// Finds out whether memory can be read here, and where what is.
    ///
    /// # Errors
    /// Says why it cannot be.
    pub fn open(root: &Path) -> Result<Self> {
        let memory = Memory::open(root)?;
        memory::check(&memory)?;
        Ok(Self { memory, flags: PageFlags::open(root)?, root: root.to_owned() })
    }

    /// Bytes that one look reads.
    ///
    /// # Errors
    /// When the kernel refuses to be read.
    pub fn bytes(&self) -> Result<u64> {
        scan::bytes(&self.memory, &self.flags)
    }

    /// Proves what can be proven of the candidates.
    ///
    /// # Errors
    /// When the kernel refuses to be read, or `step` fails.
    pub fn prove(&self, mut candidates: Vec<Candidate>, limit: Limit, step: Step<'_>) -> Result<Proof> {
        let bytes = self.bytes()?;
        if bytes > limit.bytes {
            bail!(
                "there are {} to read, more than the limit of {}: --prove-limit raises that of --prove",
                units::bytes(bytes as f64),
                units::bytes(limit.bytes as f64)
            );
        }
        self.locate(&mut candidates);
        let Looks { passes, asked, busy, cut_short, notes } =
            self.look(&candidates, Pace::new(bytes, limit.time, step))?;
        let states = state::states(&self.memory, &self.flags, &candidates)?;
        let reading: Duration = passes.iter().map(|pass| pass.reading).sum();
        let read: u64 = passes.iter().map(|pass| pass.kcore_bytes).sum();
        let cost = Cost {
            looks: passes.len(),
            bytes,
            seconds: busy.as_secs_f64(),
            bytes_per_s: read as f64 / busy.as_secs_f64().max(1e-9),
            kcore_bytes_per_s: read as f64 / reading.as_secs_f64().max(1e-9),
        };
        let proof = self.conclude(&candidates, &states, passes, &asked, cost);
        Ok(Proof { cut_short, notes, ..proof })
    }

    /// Finds the page frames of pages.
    fn locate(&self, candidates: &mut [Candidate]) {
        let memory = &self.memory;
        for candidate in candidates.iter_mut().filter(|candidate| candidate.kind == Kind::Page) {
            candidate.frame = candidate.address.wrapping_sub(memory.first_page) / memory.layout.page.size;
        }
    }

    fn targets(&self, candidates: &[Candidate], asked: &[Asked], areas: &Areas) -> Targets {
        let memory = &self.memory;
        let (page_bytes, page_size) = (memory.page_bytes, memory.layout.page.size);
        let mut targets = Vec::with_capacity(candidates.len() * 2);
        let mut pages: FxHashMap<u64, u64> = FxHashMap::default();
        let mut add = |start: u64, bytes: u64, object: u32, stands: Stands| {
            targets.push(Target { span: Span::new(start, bytes), object, stands });
        };
        let structs = |frame: u64, bytes: u64, object: u32, add: &mut dyn FnMut(u64, u64, u32, Stands)| {
            add(memory.page(frame), bytes.div_ceil(page_bytes) * page_size, object, Stands::Handle);
        };
        for (candidate, object) in candidates.iter().zip(0_u32..) {
            let Candidate { address, bytes, .. } = *candidate;
            match candidate.kind {
                Kind::Slab => {
                    add(address, bytes, object, Stands::Itself);
                    let (first, last) = (memory.frame(address), memory.frame(address + bytes - 1));
                    pages.extend((first..=last).map(|frame| (frame, memory.address(frame))));
                }
                Kind::Large => {
                    // It has a whole block.
                    let bytes = bytes.div_ceil(page_bytes).next_power_of_two() * page_bytes;
                    add(address, bytes, object, Stands::Itself);
                    structs(memory.frame(address), bytes, object, &mut add);
                }
                Kind::Page => {
                    add(memory.address(candidate.frame), bytes, object, Stands::Itself);
                    structs(candidate.frame, bytes, object, &mut add);
                }
                Kind::Area => {
                    add(address, bytes, object, Stands::Area);
                    if let (Some(vm), Some(layout)) = (areas.description(address), memory.layout.area) {
                        add(vm, layout.vm_bytes, object, Stands::Description);
                    }
                }
                Kind::PerCpu => {
                    let pointer = memory.percpu_pointer(address);
                    if memory.tells_percpu(pointer) {
                        add(pointer, bytes, object, Stands::Handle);
                    }
                }
            }
        }
        for (frame, address) in pages {
            add(memory.page(frame), page_size, u32::MAX, Stands::PageOf(address));
        }
        for (ask, object) in asked.iter().zip(candidates.len() as u32..) {
            add(ask.span.start, ask.span.end - ask.span.start, object, Stands::Itself);
        }
        Targets::new(targets)
    }

    fn conclude(
        &self,
        candidates: &[Candidate],
        states: &[Of],
        mut passes: Vec<Pass>,
        asked: &[Asked],
        cost: Cost,
    ) -> Proof {
        let count = candidates.len();
        let left = left_links(candidates, states);
        let held: Vec<Vec<Option<Held>>> = passes
            .iter_mut()
            .map(|pass| {
                pass.links.roots.truncate(count);
                pass.links.edges.retain(|edge| {
                    let link = states[edge.from as usize].link;
                    let is_left = link.is_some_and(|link| link.at == edge.at) && edge.into == 0;
                    let of = candidates[edge.from as usize].group;
                    (edge.to as usize) < count && !(is_left && left.contains(&of))
                });
                reach::held(&pass.links)
            })
            .collect();
        let mut found = Vec::with_capacity(count);
        for (index, candidate) in candidates.iter().enumerate() {
            let reached: Vec<bool> = held.iter().map(|held| held[index].is_some()).collect();
            let outcome = match (states[index].state, reach::fate(&reached)) {
                (State::Free, _) => Outcome::Free,
                (State::Mapped, _) => Outcome::Held,
                (State::Table, Fate::Orphan) => Outcome::Undecided,
                // Its address is a number like any other.
                _ if candidate.kind == Kind::PerCpu
                    && !self.memory.tells_percpu(self.memory.percpu_pointer(candidate.address)) =>
                {
                    Outcome::Undecided
                }
                (State::Allocated, Fate::Orphan) => Outcome::Orphan,
                (_, Fate::Held) => Outcome::Held,
                (_, Fate::Undecided) => Outcome::Undecided,
            };
            let old = passes.last().and_then(|pass| pass.old[index]).and_then(old_in_words);
            found.push(Found { outcome, held: held.last().and_then(|held| held[index]), old });
        }
        let mut holders = FxHashMap::default();
        let last = passes.pop();
        for held in found.iter().filter_map(|found| found.held) {
            let place = last.as_ref().and_then(|pass| pass.places.get(held.root.place as usize)?.as_ref());
            if let Some(place) = place {
                holders.entry(held.root.place).or_insert_with(|| self.chain(place, asked));
            }
        }
        let edges = last.map(|pass| pass.links.edges).unwrap_or_default();
        Proof { found, edges, holders, cost, cut_short: None, notes: Vec::new() }
    }
}

/// Groups in whose objects the allocator's own links are left.
fn left_links(candidates: &[Candidate], states: &[Of]) -> FxHashSet<u32> {
    let mut of_group: FxHashMap<u32, Vec<Link>> = FxHashMap::default();
    for (candidate, of) in candidates.iter().zip(states) {
        if let Some(link) = of.link.filter(|_| of.state == State::Allocated) {
            of_group.entry(candidate.group).or_default().push(link);
        }
    }
    of_group.into_iter().filter(|(_, links)| state::are_left(links)).map(|(group, _)| group).collect()
}

/// Old pointers that kmemleak takes for references (`kmemleak_scan` of `mm/kmemleak.c`): it leaves out what is free.
fn old_in_words(old: Old) -> Option<&'static str> {
    match old {
        Old::Sheaf => Some("a sheaf of free objects"),
        Old::Stack => Some("an unused part of a stack"),
        Old::FreeObject | Old::FreePage | Old::Bookkeeping => None,
    }
}
