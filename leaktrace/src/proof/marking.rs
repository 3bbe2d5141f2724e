//! Marking: what memory outside of slab leads to, and what that leads to, until there is no more.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustc_hash::FxHashMap;

use super::{
    areas::Area,
    blocks::Blocks,
    looks::Step,
    place::{AREAS, INTERRUPT_STACK, Place, What, Whose},
    scan::{CHUNK, NODES, Scan, WORDS, parts, runs},
    survey::{MOST_PLACES, Survey},
    vmalloc::Marks,
};
use crate::{
    analysis::objects::{From, Object, Slab},
    proc::kcore::Kcore,
};

/// Slabs whose content is looked at between two rests.
const BETWEEN_RESTS: usize = 256;

/// A survey that is going on.
pub(super) struct Surveyor<'a, 's> {
    pub(super) scan: Scan<'a>,
    areas: Marks,
    pub(super) blocks: Blocks,
    bulk: &'a Kcore,
    pub(super) numbers: FxHashMap<u64, Option<u16>>,
    pub(super) survey: &'s mut Survey,
    begun: Instant,
    limit: Duration,
    resting: Duration,
    /// Bytes that are to be read in all, roughly.
    expected: u64,
    step: Step<'a>,
    /// What was found on stacks.
    late: Vec<(Object, Place)>,
}

impl<'a, 's> Surveyor<'a, 's> {
    /// Begins; it ends after `limit`, or when `step` says so. `expected` is how many bytes are read, roughly.
    pub(super) fn new(
        scan: Scan<'a>,
        (areas, blocks): (Marks, Blocks),
        bulk: &'a Kcore,
        survey: &'s mut Survey,
        (limit, expected, step): (Duration, u64, Step<'a>),
    ) -> Self {
        Self {
            scan,
            areas,
            blocks,
            bulk,
            numbers: FxHashMap::default(),
            survey,
            begun: Instant::now(),
            limit,
            resting: Duration::ZERO,
            expected,
            step,
            late: Vec::new(),
        }
    }

    /// How long it took so far without rests, and how long reading did.
    pub(super) fn times(&self) -> (Duration, Duration) {
        (self.begun.elapsed().saturating_sub(self.resting), self.scan.pass.reading)
    }

    /// Areas of vmalloc that nothing led to.
    pub(super) fn unreached_areas(&self) -> impl Iterator<Item = Area> + '_ {
        self.areas.unreached()
    }

    /// Blocks of pages and pieces of per-CPU memory, and which of them anything led to.
    pub(super) fn into_blocks(self) -> Blocks {
        self.blocks
    }

    /// Rests; false when it has to end.
    fn go_on(&mut self) -> Result<bool> {
        if self.begun.elapsed() > self.limit {
            self.survey.cut_short = Some("the time was up");
            return Ok(false);
        }
        let before = Instant::now();
        let go_on = (self.step)(self.survey.bytes.min(self.expected), self.expected)?;
        self.resting += before.elapsed();
        if !go_on {
            self.survey.cut_short = Some("a signal ended it");
        }
        Ok(go_on)
    }

    fn read(&mut self, at: u64, words: &mut [u64]) -> Result<()> {
        let begun = Instant::now();
        self.bulk.words(at, words).context("cannot read memory through /proc/kcore")?;
        self.scan.pass.reading += begun.elapsed();
        self.survey.bytes += words.len() as u64 * 8;
        Ok(())
    }

    /// Calls `with` for each stretch of page frames, once it is known what they are.
    pub(super) fn each_chunk(&mut self, mut with: impl FnMut(&mut Self) -> Result<()>) -> Result<bool> {
        let (memory, flags) = (self.scan.memory, self.scan.flags);
        for &(from, to) in &memory.frames {
            let mut first = from;
            while first < to {
                let end = ((first / CHUNK + 1) * CHUNK).min(to);
                self.scan.enter(flags, first, end)?;
                with(self)?;
                if !self.go_on()? {
                    return Ok(false);
                }
                first = end;
            }
        }
        Ok(true)
    }

    /// Reads everything that is no slab's that was noted, and marks what it points to.
    pub(super) fn mark_from_outside(&mut self) -> Result<bool> {
        let memory = self.scan.memory;
        let page_words = (memory.page_bytes / 8) as usize;
        let mut buffer = vec![0; WORDS];
        self.each_chunk(|this| {
            for (start, end) in runs(&this.scan.chunk, memory) {
                let mut at = memory.address(start);
                let end = memory.address(end);
                while at < end {
                    // A slab that was noted is read when something leads to its objects.
                    let (next, past) = this.next_slab(at);
                    if next <= at {
                        at = past;
                        continue;
                    }
                    let next = next.min(end);
                    let length = (((next - at) / 8) as usize).clamp(page_words, WORDS);
                    let words = &mut buffer[..length];
                    this.read(at, words)?;
                    for (page, words) in words.chunks(page_words).enumerate() {
                        this.page(at + page as u64 * memory.page_bytes, words);
                    }
                    at += length as u64 * 8;
                }
            }
            Ok(())
        })
    }

    /// Where the pages of the slab that was noted here or next begin and end.
    fn next_slab(&self, address: u64) -> (u64, u64) {
        let page = self.scan.memory.page_bytes;
        let past = |slab: &Slab| slab.end().next_multiple_of(page);
        let slabs = self.survey.objects.slabs();
        let slab = slabs.get(slabs.partition_point(|slab| past(slab) <= address));
        slab.map_or((u64::MAX, u64::MAX), |slab| (slab.start / page * page, past(slab)))
    }

    /// Marks what a page points to.
    fn page(&mut self, at: u64, words: &[u64]) {
        let frame = self.scan.memory.frame(at);
        if self.scan.buffers.contains(&frame) || self.areas.has_frame(frame) {
            return;
        }
        for index in 0..words.len() {
            let address = at + index as u64 * 8;
            let word = words[index];
            let object = self.pointed_to(words, index);
            let area = self.area_of(word);
            let memory = self.scan.memory;
            let block = self.blocks.open(memory, word).filter(|block| !self.blocks.is_own(*block, address));
            if object.is_none() && area.is_none() && block.is_none() {
                continue;
            }
            let by_page = object.is_some() && self.survey.objects.at(word).is_none();
            let what = match self.scan.whose(address, word) {
                Whose::Root(What::StructPage(_)) if by_page => continue,
                Whose::Root(What::Object { ref cache, .. }) if by_page && cache == NODES => continue,
                Whose::Root(what) => what,
                Whose::Candidate(..) | Whose::Old(_) | Whose::Copy => continue,
            };
            if let Some(area) = area.filter(|_| !self.describes(&what, word)) {
                self.areas.reach(area);
            }
            if let Some(block) = block.filter(|block| !self.is_of_own_page(*block, &what)) {
                self.blocks.reach(block);
            }
            if let Some(object) = object {
                self.reach_from(object, Place { address, what, by_page });
            }
        }
    }

    /// Whether a place is in the `struct page`s that a block has itself.
    fn is_of_own_page(&self, block: usize, what: &What) -> bool {
        matches!(what, What::StructPage(frame) if self.blocks.is_own(block, self.scan.memory.address(*frame)))
    }

    /// Notes the block that a word leads to.
    #[inline]
    fn reach_block(&mut self, word: u64) {
        if let Some(block) = self.blocks.open(self.scan.memory, word) {
            self.blocks.reach(block);
        }
    }

    /// The area that a word leads to and nothing else did yet, by its address or its description's.
    #[inline]
    fn area_of(&self, word: u64) -> Option<usize> {
        let (first, length) = self.survey.objects.range();
        if word.wrapping_sub(first) < length {
            return self.areas.open_by_description(word);
        }
        self.areas.open(word)
    }

    /// Whether a place is only where the kernel describes the area that it points to.
    fn describes(&self, what: &What, word: u64) -> bool {
        matches!(what, What::Object { start, cache, .. }
            if cache == AREAS || self.scan.areas.is_description(*start, word))
    }

    /// Notes an object that a place outside of slab leads to. What is on stacks names nobody if something else leads there, too.
    fn reach_from(&mut self, object: Object, place: Place) {
        let is_left = match &place.what {
            What::PerCpu { address, .. } => {
                self.scan.memory.variable_at(*address).is_some_and(|at| at.symbol == INTERRUPT_STACK)
            }
            What::Area { area, .. } => self.scan.areas.is_of_interrupts(area),
            // What a thread has not overwritten yet is in its frames, too.
            What::Stack { .. } => true,
            _ => false,
        };
        if is_left {
            self.late.push((object, place));
            return;
        }
        self.reach_now(object, place);
    }

    fn reach_now(&mut self, object: Object, place: Place) {
        let survey = &mut *self.survey;
        if survey.places.len() < MOST_PLACES {
            survey.places.push(place);
        }
        // The last one stands for all that found no place.
        survey.objects.reach(object, From::Outside(survey.places.len() as u32 - 1));
    }

    /// Marks what an area points to that is reached.
    fn area(&mut self, area: Area, buffer: &mut Vec<u64>) -> Result<bool> {
        let end = area.start + area.allocated;
        for (nth, start) in (area.start..end).step_by(WORDS * 8).enumerate() {
            if nth > 0 && nth.is_multiple_of(BETWEEN_RESTS / 4) && !self.go_on()? {
                return Ok(false);
            }
            buffer.resize((WORDS as u64 * 8).min(end - start) as usize / 8, 0);
            // It may have been given back meanwhile: then nothing is in it any more.
            if self.read(start, buffer).is_err() {
                return Ok(true);
            }
            for index in 0..buffer.len() {
                let word = buffer[index];
                if let Some(other) = self.area_of(word) {
                    self.areas.reach(other);
                }
                self.reach_block(word);
                let Some(object) = self.pointed_to(buffer, index) else { continue };
                let address = start + index as u64 * 8;
                if let Whose::Root(what) = self.scan.in_area(area, address) {
                    let by_page = self.survey.objects.at(word).is_none();
                    self.reach_from(object, Place { address, what, by_page });
                }
            }
        }
        Ok(true)
    }

    /// The object that a word points to and nothing else did yet, by its address or by page and offset.
    #[inline]
    fn pointed_to(&self, words: &[u64], index: usize) -> Option<Object> {
        let memory = self.scan.memory;
        let word = words[index];
        let (first, length) = self.survey.objects.range();
        let objects = &self.survey.objects;
        if word.wrapping_sub(first) < length {
            return objects.at(word).filter(|object| objects.is_open(*object));
        }
        let into = word.wrapping_sub(memory.first_page);
        let frame = into / memory.layout.page.size;
        if !into.is_multiple_of(memory.layout.page.size) || frame >= memory.frames.last()?.1 {
            return None;
        }
        let next = *words.get(index + 1)?;
        parts(next, memory.page_bytes).find_map(|(offset, length)| {
            let object = objects.at(memory.address(frame) + offset)?;
            let size = u64::from(objects.slab(object.slab).size);
            let fits = object.offset + length <= size;
            (fits && objects.is_open(object)).then_some(object)
        })
    }

    /// Marks what objects and areas point to that are reached, until there are no more.
    pub(super) fn mark_on(&mut self) -> Result<bool> {
        let mut buffer: Vec<u64> = Vec::new();
        let (mut from, mut since) = (0, 0_usize);
        loop {
            if let Some(slab) = self.survey.objects.next_waiting(from) {
                self.slab(slab, &mut buffer)?;
                from = slab;
            } else if let Some(area) = self.areas.next_waiting() {
                if !self.area(area, &mut buffer)? {
                    return Ok(false);
                }
            } else if let Some((object, place)) = self.late.pop() {
                self.reach_now(object, place);
            } else {
                return Ok(true);
            }
            since += 1;
            if since.is_multiple_of(BETWEEN_RESTS) && !self.go_on()? {
                return Ok(false);
            }
        }
    }

    /// Marks what the objects of a slab point to that are reached.
    fn slab(&mut self, slab: usize, buffer: &mut Vec<u64>) -> Result<()> {
        let waiting = self.survey.objects.take_waiting(slab);
        let of = *self.survey.objects.slab(slab);
        // What describes an area is no use of it.
        let describes = self.survey.caches[usize::from(of.cache)].name == AREAS;
        let (Some(&first), Some(&last)) = (waiting.first(), waiting.last()) else { return Ok(()) };
        let start = of.address(first);
        buffer.resize(((of.address(last) - start + u64::from(of.size)) / 8) as usize, 0);
        self.read(start, buffer)?;
        for nth in waiting {
            let address = of.address(nth);
            // Where the kernel copies what we read holds what we read before.
            if self.scan.buffers.contains(&self.scan.memory.frame(address)) {
                continue;
            }
            let at = ((address - start) / 8) as usize;
            let words = &buffer[at..at + of.own as usize / 8];
            for index in 0..words.len() {
                if describes && self.scan.areas.is_left(self.scan.memory, address, index as u64 * 8) {
                    continue;
                }
                if let Some(object) = self.pointed_to(words, index) {
                    let holder = Object { slab, nth, offset: 0 };
                    self.survey.objects.reach(object, From::Object(holder));
                }
                let word = words[index];
                self.reach_block(word);
                let area = self.area_of(word).filter(|_| !describes);
                if let Some(area) = area.filter(|_| !self.scan.areas.is_description(address, word)) {
                    self.areas.reach(area);
                }
            }
        }
        Ok(())
    }
}
