//! Which areas of vmalloc anything leads to: their memory is as old as their pages, and holds nothing unless something leads to them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    areas::{Area, Areas, OnStack},
    memory::Memory,
};

/// Areas of which it is not known before whether anything leads to them: no thread's stack, and no module.
pub(super) struct Marks {
    /// By address.
    all: Vec<Area>,
    reached: Vec<bool>,
    waiting: Vec<usize>,
    frames: FxHashSet<u64>,
    /// By the address of its `vm_struct`.
    described: FxHashMap<u64, usize>,
    first: u64,
    length: u64,
}

impl Marks {
    pub(super) fn new(memory: &Memory, areas: &Areas) -> Self {
        let is_plain = |area: &&Area| {
            let is_stack = !matches!(areas.on_stack(memory, area.start, area.start), OnStack::NoStack);
            let of_module = || memory.variable_at(area.start).is_some_and(|place| place.module.is_some());
            area.allocated > 0 && !is_stack && !of_module()
        };
        let mut all: Vec<Area> = areas.all().iter().filter(is_plain).copied().collect();
        all.sort_unstable_by_key(|area| area.start);
        all.dedup_by_key(|area| area.start);
        let starts: FxHashSet<u64> = all.iter().map(|area| area.start).collect();
        let described = (all.iter().enumerate())
            .filter_map(|(index, area)| Some((areas.description(area.start)?, index)))
            .collect();
        let first = all.first().map_or(0, |area| area.start);
        let length = all.last().map_or(0, |area| area.end) - first;
        Self {
            reached: vec![false; all.len()],
            waiting: Vec::new(),
            frames: areas.frames(|area| starts.contains(&area.start)),
            described,
            first,
            length,
            all,
        }
    }

    /// Whether a page frame is such an area's: what is in it counts when the area is reached.
    pub(super) fn has_frame(&self, frame: u64) -> bool {
        self.frames.contains(&frame)
    }

    /// The area that a word points into, if nothing else did yet.
    #[inline]
    pub(super) fn open(&self, word: u64) -> Option<usize> {
        if word.wrapping_sub(self.first) >= self.length {
            return None;
        }
        let index = self.all.partition_point(|area| area.end <= word);
        (self.all.get(index)?.start <= word && !self.reached[index]).then_some(index)
    }

    /// The area whose description a word points to, if nothing else did yet.
    pub(super) fn open_by_description(&self, word: u64) -> Option<usize> {
        self.described.get(&word).copied().filter(|&index| !self.reached[index])
    }

    /// Notes that something leads to an area.
    pub(super) fn reach(&mut self, index: usize) {
        if !self.reached[index] {
            self.reached[index] = true;
            self.waiting.push(index);
        }
    }

    /// An area that is reached, and whose content was not looked at yet.
    pub(super) fn next_waiting(&mut self) -> Option<Area> {
        self.waiting.pop().map(|index| self.all[index])
    }

    /// Those that nothing led to.
    pub(super) fn unreached(&self) -> impl Iterator<Item = Area> + '_ {
        self.all.iter().zip(&self.reached).filter(|(_, reached)| !**reached).map(|(area, _)| *area)
    }
}
