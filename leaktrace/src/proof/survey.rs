//! All objects of slab at once: which of them does anything lead to, from what is no slab's?
//!
//! Everything that is allocated is noted, two bits for each object. Memory that is no slab's is read once, and marks what it
//! points to; then each object that is reached is read once, and marks on. Nothing is kept of who points to whom. What is
//! left is little, and is for [`Prover::prove`] to look at more closely: objects come and go while all this is done.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use rustc_hash::FxHashSet;

use super::{
    Candidate, Holder, Kind, Prover,
    areas::{Area, Areas},
    blocks::{Block, Blocks},
    looks::Step,
    marking::Surveyor,
    place::Place,
    scan::Scan,
    slabs::Slabs,
    state::{State, states},
    targets::Targets,
    vmalloc::Marks,
};
use crate::{analysis::objects::Objects, proc::kcore::Kcore};

/// Objects that nothing reached which are named at most.
pub const MOST_OPEN: usize = 150_000;
/// Places outside of slab that are kept in mind, with what they are: objects that others hold have none.
pub(super) const MOST_PLACES: usize = 50_000;

/// A cache, or what one function has from vmalloc, and what is allocated of it.
#[derive(Clone, Debug)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// What kind of memory it is.
    pub kind: Kind,
    /// Of vmalloc the function, with its module.
    pub caller: Option<(String, Option<String>)>,
    /// Bytes from one object to the next; 0 where they differ.
    pub size: u64,
    /// Bytes of each that are its owner's.
    pub own: u64,
    /// Allocated objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An object that nothing leads to.
#[derive(Clone, Copy, Debug)]
pub struct Unreached {
    /// Its address.
    pub address: u64,
    /// Number of its cache.
    pub cache: u16,
    /// Its bytes.
    pub bytes: u64,
}

/// An area of vmalloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vmalloced {
    /// Its address.
    pub start: u64,
    /// Bytes of memory that it has.
    pub bytes: u64,
    /// Return address in the function that allocated it.
    pub caller: u64,
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
    /// What was allocated by vmalloc when it began.
    pub areas: Vec<Vmalloced>,
    /// Areas of vmalloc that nothing leads to.
    pub unreached_areas: Vec<Vmalloced>,
    /// Blocks of pages and pieces of per-CPU memory.
    pub blocks: Vec<Block>,
    /// How many more there are that were not noted.
    pub blocks_left_out: u64,
    /// Pieces of per-CPU memory whose addresses are numbers like any other: what leads to them is not known.
    pub untold: u64,
    /// Where the others hang on what is no slab's.
    pub(super) places: Vec<Place>,
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
        let scan = Scan::begin(&self.memory, &self.flags, &bulk, &areas, (&targets, 0, 0));
        let blocks = Blocks::new(&self.memory, &scan.percpu);
        let mut surveyor = Surveyor::new(
            scan,
            (Marks::new(&self.memory, &areas), blocks),
            &bulk,
            &mut survey,
            (limit, expected, step),
        );
        let done = surveyor.list(wanted)? && surveyor.mark_from_outside()? && surveyor.mark_on()?;
        let unreached_areas = surveyor.unreached_areas().map(|area| Vmalloced::from(&area)).collect();
        let (took, reading) = surveyor.times();
        let blocks = surveyor.into_blocks();
        survey.blocks_left_out = blocks.left_out;
        survey.untold = blocks.untold;
        survey.took = took;
        survey.reading = reading;
        survey.areas = vmalloced(&areas);
        if done {
            survey.unreached_areas = unreached_areas;
            survey.blocks = blocks.into_all();
            survey.conclude();
        }
        Ok(survey)
    }

    /// What is allocated by vmalloc now.
    pub fn vmalloced(&self) -> Vec<Vmalloced> {
        vmalloced(&Areas::read(&self.memory))
    }

    /// What lies at an address, in words.
    ///
    /// # Errors
    /// When the kernel refuses to be read.
    pub fn contents(&self, address: u64, bytes: u64) -> Result<Vec<u64>> {
        let mut words = vec![0; bytes.div_ceil(8) as usize];
        self.memory.core.words(address, &mut words).context("cannot read memory through /proc/kcore")?;
        Ok(words)
    }

    /// Which of some candidates are allocated, whenever that is asked: so often, with a pause before each. Lists of free objects
    /// change while they are read, and an object may be freed and allocated again.
    ///
    /// # Errors
    /// When the kernel refuses to be read.
    pub fn surely_allocated(
        &self,
        candidates: &[Candidate],
        (times, pause): (u32, Duration),
    ) -> Result<Vec<bool>> {
        let mut allocated = vec![true; candidates.len()];
        for _ in 0..times {
            sleep(pause);
            for (allocated, of) in allocated.iter_mut().zip(states(&self.memory, &self.flags, candidates)?) {
                *allocated &= of.state == State::Allocated && !of.unsure;
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

    /// Whether a `dentry` says that nothing has the name; `None` where this kernel does not tell.
    pub fn is_negative(&self, dentry: u64) -> Option<bool> {
        let inode = self.memory.core.word(dentry + self.memory.layout.dentry_inode?).ok()?;
        Some(inode == 0)
    }

    /// The variable that an address is in: its name, bytes from its start, and its module.
    pub fn variable(&self, address: u64) -> Option<(String, u64, Option<String>)> {
        let location = self.memory.variable_at(address)?;
        Some((location.symbol.to_owned(), location.offset, location.module.map(str::to_owned)))
    }
}

fn vmalloced(areas: &Areas) -> Vec<Vmalloced> {
    areas.all().iter().filter(|area| area.allocated > 0).map(Vmalloced::from).collect()
}

impl From<&Area> for Vmalloced {
    fn from(area: &Area) -> Self {
        Self { start: area.start, bytes: area.allocated, caller: area.caller }
    }
}

impl Survey {
    fn conclude(&mut self) {
        let counts = self.objects.by_cache(self.caches.len());
        for (cache, objects) in self.caches.iter_mut().zip(counts) {
            cache.objects = objects;
            cache.bytes = objects * cache.size;
        }
        for object in self.objects.open() {
            if self.unreached.len() >= MOST_OPEN {
                self.left_out += 1;
                continue;
            }
            let slab = self.objects.slab(object.slab);
            let bytes = self.caches[usize::from(slab.cache)].own.min(slab.size.into());
            self.unreached.push(Unreached { address: slab.address(object.nth), cache: slab.cache, bytes });
        }
    }
}
