//! All objects of slab at once: which of them does anything lead to, from what is no slab's?
//!
//! Everything that is allocated is noted, two bits for each object. Memory that is no slab's is read once, and marks what it
//! points to; then each object that is reached is read once, and marks on. Nothing is kept of who points to whom. What is
//! left is little, and is for [`Prover::prove`] to look at more closely: objects come and go while all this is done.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Candidate, Holder, Prover,
    areas::Areas,
    looks::Step,
    place::{Place, What, Whose},
    scan::{CHUNK, NODES, Scan, WORDS, runs},
    slabs::Slabs,
    state::{State, states},
    targets::Targets,
};
use crate::{
    analysis::{
        blame,
        objects::{From, Object, Objects, Slab},
    },
    proc::kcore::Kcore,
};

/// Caches that are told apart: a kernel has some hundreds.
const MOST_CACHES: usize = u16::MAX as usize;
/// Objects that nothing reached which are named at most.
const MOST_OPEN: usize = 150_000;
/// Places outside of slab that are kept in mind, with what they are: objects that others hold have none.
const MOST_PLACES: usize = 50_000;
/// How often it is asked once more whether what seems lost is allocated, and the time before each.
const ASKED_AGAIN: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// Slabs whose content is looked at between two rests.
const BETWEEN_RESTS: usize = 256;

/// A cache, and what is allocated of it.
#[derive(Clone, Debug, Default)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// Bytes from one object to the next.
    pub size: u64,
    /// Bytes of each that are its owner's.
    pub own: u64,
    /// Allocated objects.
    pub objects: u64,
}

/// An object that nothing leads to.
#[derive(Clone, Copy, Debug)]
pub struct Unreached {
    /// Its address.
    pub address: u64,
    /// Number of its cache.
    pub cache: u16,
}

/// What was found.
#[derive(Default)]
pub struct Survey {
    /// The caches that were looked at.
    pub caches: Vec<Surveyed>,
    /// All their objects.
    pub objects: Objects,
    /// Those that nothing leads to.
    pub unreached: Vec<Unreached>,
    /// Where the others hang on what is no slab's.
    places: Vec<Place>,
    /// How many more there are of these.
    pub left_out: u64,
    /// Slabs that could not be noted: what is in them counts as holding.
    pub not_noted: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How long it took, without rests.
    pub took: Duration,
    /// How long reading took.
    pub reading: Duration,
    /// Why it ended early, if it did: then nothing is known to be unreached.
    pub cut_short: Option<&'static str>,
}

/// A survey that is going on.
struct Surveyor<'a, 's> {
    scan: Scan<'a>,
    bulk: &'a Kcore,
    numbers: FxHashMap<u64, Option<u16>>,
    survey: &'s mut Survey,
    begun: Instant,
    limit: Duration,
    resting: Duration,
    /// Bytes that are to be read in all, roughly.
    expected: u64,
    step: Step<'a>,
}

impl Prover {
    /// Looks at all objects of the caches that are `wanted`; what the others have counts as holding.
    ///
    /// # Errors
    /// When the kernel refuses to be read, or `step` fails.
    pub fn survey(&self, wanted: &dyn Fn(&str) -> bool, limit: Duration, step: Step<'_>) -> Result<Survey> {
        let bulk = Kcore::open(&self.root)?;
        let areas = Areas::read(&self.memory);
        let targets = Targets::new(Vec::new());
        let mut survey = Survey::default();
        let expected = self.bytes()? * 2;
        let mut surveyor = Surveyor {
            scan: Scan::begin(&self.memory, &self.flags, &bulk, &areas, (&targets, 0, 0)),
            bulk: &bulk,
            numbers: FxHashMap::default(),
            survey: &mut survey,
            begun: Instant::now(),
            limit,
            resting: Duration::ZERO,
            expected,
            step,
        };
        let done = surveyor.list(wanted)? && surveyor.mark_from_outside()? && surveyor.mark_on()?;
        let (took, reading) =
            (surveyor.begun.elapsed().saturating_sub(surveyor.resting), surveyor.scan.pass.reading);
        survey.took = took;
        survey.reading = reading;
        if done {
            survey.conclude();
        }
        Ok(survey)
    }

    /// What lies at an address, in words.
    ///
    /// # Errors
    /// When the kernel refuses to be read.
    pub fn contents(&self, address: u64, bytes: u64) -> Result<Vec<u64>> {
        let mut words = vec![0; (bytes / 8) as usize];
        self.memory.core.words(address, &mut words).context("cannot read memory through /proc/kcore")?;
        Ok(words)
    }

    /// Which of some candidates are allocated, however often that is asked: lists of free objects change while they are read.
    ///
    /// # Errors
    /// When the kernel refuses to be read.
    pub fn surely_allocated(&self, candidates: &[Candidate]) -> Result<Vec<bool>> {
        let mut allocated = vec![true; candidates.len()];
        for _ in 0..ASKED_AGAIN {
            sleep(PAUSE);
            for (allocated, of) in allocated.iter_mut().zip(states(&self.memory, &self.flags, candidates)?) {
                *allocated &= of.state == State::Allocated;
            }
        }
        Ok(allocated)
    }

    /// The allocator's own arrays of free objects, as they are now: it may have taken some for that meanwhile.
    pub fn sheaves(&self) -> FxHashSet<u64> {
        Slabs::new(&self.memory).sheaves().clone()
    }

    /// Who holds at a place outside of slab that a survey found.
    pub fn outside(&self, survey: &Survey, place: u32) -> Option<Holder> {
        // What stands for others is none of them.
        let place = survey.places.get(place as usize).filter(|_| (place as usize) < MOST_PLACES - 1)?;
        Some(self.holder(place))
    }

    /// The variable that an address is in: its name, bytes from its start, and its module.
    pub fn variable(&self, address: u64) -> Option<(String, u64, Option<String>)> {
        let location = self.memory.variable_at(address)?;
        Some((location.symbol.to_owned(), location.offset, location.module.map(str::to_owned)))
    }
}

impl Survey {
    fn conclude(&mut self) {
        let counts = self.objects.by_cache(self.caches.len());
        for (cache, objects) in self.caches.iter_mut().zip(counts) {
            cache.objects = objects;
        }
        for object in self.objects.open() {
            if self.unreached.len() >= MOST_OPEN {
                self.left_out += 1;
                continue;
            }
            let slab = self.objects.slab(object.slab);
            self.unreached.push(Unreached { address: slab.address(object.nth), cache: slab.cache });
        }
    }
}

impl Surveyor<'_, '_> {
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
    fn each_chunk(&mut self, mut with: impl FnMut(&mut Self) -> Result<()>) -> Result<bool> {
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

    /// Notes all slabs, and which of their objects are allocated.
    fn list(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<bool> {
        let done = self.each_chunk(|this| {
            this.scan.find_heads();
            let memory = this.scan.memory;
            let words = (memory.layout.page.size / 8) as usize;
            for index in 0..this.scan.chunk.heads.len() {
                if this.scan.chunk.heads[index] != Some(index as u32) {
                    continue;
                }
                let page = this.scan.chunk.pages[index * words..(index + 1) * words].to_vec();
                let base = memory.address(this.scan.chunk.first + index as u64);
                let Some(slab) = this.scan.slabs.slab(&page, base) else { continue };
                let Some(cache) = this.scan.slabs.cache(slab.cache).cloned() else { continue };
                let survey = &mut *this.survey;
                let number = *this.numbers.entry(slab.cache).or_insert_with(|| {
                    let is = survey.caches.len() < MOST_CACHES
                        && !blame::is_bookkeeping(&cache.name)
                        && wanted(&cache.name);
                    is.then(|| {
                        let (name, size, own) = (cache.name.clone(), cache.size, cache.own);
                        survey.caches.push(Surveyed { name, size, own, objects: 0 });
                        (survey.caches.len() - 1) as u16
                    })
                });
                // A single object in a page may be KFENCE's, which lies anywhere in it: it is read as what is no slab's.
                let is_single = slab.objects == 1 && cache.size <= memory.page_bytes;
                let Some(number) = number.filter(|_| !is_single) else { continue };
                let (size, own) = (cache.size as u32, cache.own.min(cache.size) as u32);
                let start = base + cache.pad;
                // Red zones before the first object shift the last one to the end of its slot.
                let known = Slab::new(start, (size, own), slab.objects as u16, number);
                // The allocator's own arrays hold nothing, and it links them to each other only.
                let is_allocated = |nth: u16| {
                    let address = start + u64::from(nth) * cache.size;
                    !slab.is_free(address) && !this.scan.slabs.is_sheaf(address)
                };
                survey.bytes += slab.objects * cache.size;
                survey.not_noted += u64::from(!survey.objects.add(known, is_allocated));
            }
            Ok(())
        })?;
        self.survey.objects.finish();
        Ok(done)
    }

    /// Reads everything that is no slab's that was noted, and marks what it points to.
    fn mark_from_outside(&mut self) -> Result<bool> {
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
        let past = |slab: &Slab| slab.address(slab.objects).next_multiple_of(page);
        let slabs = self.survey.objects.slabs();
        let slab = slabs.get(slabs.partition_point(|slab| past(slab) <= address));
        slab.map_or((u64::MAX, u64::MAX), |slab| (slab.start / page * page, past(slab)))
    }

    /// Marks what a page points to.
    fn page(&mut self, at: u64, words: &[u64]) {
        if self.scan.buffers.contains(&self.scan.memory.frame(at)) {
            return;
        }
        for index in 0..words.len() {
            let Some(object) = self.pointed_to(words, index) else { continue };
            let address = at + index as u64 * 8;
            let by_page = self.survey.objects.at(words[index]).is_none();
            let what = match self.scan.whose(address, words[index]) {
                Whose::Root(What::StructPage(_)) if by_page => continue,
                Whose::Root(What::Object { ref cache, .. }) if by_page && cache == NODES => continue,
                Whose::Root(what) => what,
                Whose::Candidate(..) | Whose::Old(_) | Whose::Copy => continue,
            };
            let survey = &mut *self.survey;
            if survey.places.len() < MOST_PLACES {
                survey.places.push(Place { address, what, by_page });
            }
            // The last one stands for all that found no place.
            survey.objects.reach(object, From::Outside(survey.places.len() as u32 - 1));
        }
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
        let (low, high) = (next & 0xffff_ffff, next >> 32);
        [(low, high), (high, low)].into_iter().find_map(|(offset, length)| {
            let object = objects.at(memory.address(frame) + offset)?;
            let size = u64::from(objects.slab(object.slab).size);
            let fits = offset < memory.page_bytes && length > 0 && object.offset + length <= size;
            (fits && objects.is_open(object)).then_some(object)
        })
    }

    /// Marks what objects point to that are reached, until there are no more.
    fn mark_on(&mut self) -> Result<bool> {
        let mut buffer: Vec<u64> = Vec::new();
        let (mut from, mut since) = (0, 0_usize);
        while let Some(slab) = self.survey.objects.next_waiting(from) {
            let waiting = self.survey.objects.take_waiting(slab);
            let of = *self.survey.objects.slab(slab);
            let (Some(&first), Some(&last)) = (waiting.first(), waiting.last()) else { continue };
            let start = of.address(first);
            buffer.resize(((of.address(last) - start + u64::from(of.size)) / 8) as usize, 0);
            self.read(start, &mut buffer)?;
            for nth in waiting {
                let at = ((of.address(nth) - start) / 8) as usize;
                let words = &buffer[at..at + of.own as usize / 8];
                for index in 0..words.len() {
                    if let Some(object) = self.pointed_to(words, index) {
                        let holder = Object { slab, nth, offset: 0 };
                        self.survey.objects.reach(object, From::Object(holder));
                    }
                }
            }
            from = slab;
            since += 1;
            if since.is_multiple_of(BETWEEN_RESTS) && !self.go_on()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
