//! All allocated objects of slab, which of them are reached, and from where: some bits and a word for each, however many there are.

use std::ops::Range;

/// Addresses that have one entry of the coarse index together, at least, as a power of two: what lies between two entries is
/// searched.
const LEAST_SHIFT: u32 = 18;

/// A slab, and its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slab {
    /// Address of the first object.
    pub start: u64,
    /// Bytes from one object to the next.
    pub size: u32,
    /// Bytes of each that are its owner's.
    pub own: u32,
    /// How many objects it has.
    pub objects: u16,
    /// Number of its cache.
    pub cache: u16,
    /// Number of its first object.
    first: u32,
}

impl Slab {
    /// A slab at an address.
    pub fn new(start: u64, (size, own): (u32, u32), objects: u16, cache: u16) -> Self {
        Self { start, size, own, objects, cache, first: 0 }
    }

    /// Where the last object's own bytes end: behind that there may be another slab.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.size) * u64::from(self.objects.max(1) - 1) + u64::from(self.own)
    }

    /// Address of one of its objects.
    pub fn address(&self, nth: u16) -> u64 {
        self.start + u64::from(self.size) * u64::from(nth)
    }
}

/// Bytes that are needed for so many slabs and objects.
pub fn bytes_for(slabs: u64, objects: u64) -> u64 {
    // The coarse index has two entries for each slab.
    slabs * (size_of::<Slab>() as u64 + 9) + objects * 3 / 8 + objects * 4
}

/// One bit for each of many.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn grow(&mut self, count: usize) {
        self.0.resize(count.div_ceil(64), 0);
    }

    fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 != 0
    }

    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn clear(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    /// Those that are set in a range.
    fn ones(&self, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        (range.start / 64..range.end.div_ceil(64)).flat_map(move |word| {
            let (from, to) =
                (range.start.max(word * 64) - word * 64, range.end.min(word * 64 + 64) - word * 64);
            let mask = u64::MAX << from & u64::MAX >> (64 - to);
            let mut rest = self.0[word] & mask;
            std::iter::from_fn(move || {
                let at = (rest != 0).then(|| word * 64 + rest.trailing_zeros() as usize);
                rest &= rest.wrapping_sub(1);
                at
            })
        })
    }

    /// The first that is set from one on, and else from the beginning.
    fn next(&self, from: usize) -> Option<usize> {
        let words = self.0.len();
        if words == 0 {
            return None;
        }
        let first = from / 64 % words;
        let rest = self.0[first] & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some(first * 64 + rest.trailing_zeros() as usize);
        }
        (1..=words)
            .map(|step| (first + step) % words)
            .find(|&word| self.0[word] != 0)
            .map(|word| word * 64 + self.0[word].trailing_zeros() as usize)
    }
}

/// An object, by its slab and its place in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Number of the slab.
    pub slab: usize,
    /// Which of its objects.
    pub nth: u16,
    /// Bytes into the object.
    pub offset: u64,
}

/// From where an object is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Another object.
    Object(Object),
    /// A place that is no object's, by its number.
    Outside(u32),
}

/// What marks the number of a place from that of an object.
const OUTSIDE: u32 = 1 << 31;

/// All slabs that are looked at, by address.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    slabs: Vec<Slab>,
    /// The first slab that ends behind the start of each part of the addresses.
    coarse: Vec<u32>,
    shift: u32,
    begin: u64,
    allocated: Bits,
    reached: Bits,
    /// Reached, and their content not looked at yet.
    waiting: Bits,
    /// Slabs that have such.
    waiting_slabs: Bits,
    /// Of each that is reached, from where.
    from_where: Vec<u32>,
    count: usize,
}

impl Objects {
    /// Adds a slab behind all others; `is_allocated` says which of its objects are. Returns false where it overlaps the last
    /// one: then nothing is added.
    pub fn add(&mut self, mut slab: Slab, is_allocated: impl Fn(u16) -> bool) -> bool {
        if slab.size == 0
            || slab.objects == 0
            || self.slabs.last().is_some_and(|last| last.end() > slab.start)
            || self.count > OUTSIDE as usize - usize::from(u16::MAX) - 1
        {
            return false;
        }
        slab.first = self.count as u32;
        self.count += usize::from(slab.objects);
        self.allocated.grow(self.count);
        for nth in (0..slab.objects).filter(|&nth| is_allocated(nth)) {
            self.allocated.set(slab.first as usize + usize::from(nth));
        }
        self.slabs.push(slab);
        true
    }

    /// Prepares for looking objects up: to be called after the last slab was added.
    pub fn finish(&mut self) {
        self.reached.grow(self.count);
        self.waiting.grow(self.count);
        self.waiting_slabs.grow(self.slabs.len());
        self.from_where = vec![0; self.count];
        // Nodes of memory may be far apart.
        let entries = |shift: u32| self.range().1 >> shift;
        self.shift = (LEAST_SHIFT..63)
            .find(|&shift| entries(shift) <= 2 * self.slabs.len() as u64 + 1_024)
            .unwrap_or(LEAST_SHIFT);
        self.begin = self.slabs.first().map_or(0, |slab| slab.start >> self.shift);
        let to = self.slabs.last().map_or(0, |slab| (slab.end() >> self.shift) + 1);
        let mut slab = 0;
        self.coarse = (self.begin..=to.max(self.begin))
            .map(|part| {
                while slab < self.slabs.len() && self.slabs[slab].end() <= part << self.shift {
                    slab += 1;
                }
                slab as u32
            })
            .collect();
    }

    /// The first address, and how many there are up to the end: what is not in there points to none.
    pub fn range(&self) -> (u64, u64) {
        let first = self.slabs.first().map_or(0, |slab| slab.start);
        (first, self.slabs.last().map_or(first, Slab::end) - first)
    }

    /// The slab that an address lies in.
    pub fn slab_at(&self, address: u64) -> Option<usize> {
        let part = (address >> self.shift).checked_sub(self.begin)? as usize;
        let first = *self.coarse.get(part)? as usize;
        let last = self.coarse.get(part + 1).map_or(self.slabs.len(), |&next| next as usize + 1);
        let some = &self.slabs[first..last.min(self.slabs.len())];
        let at = some.partition_point(|slab| slab.end() <= address);
        some.get(at).filter(|slab| slab.start <= address).map(|_| first + at)
    }

    /// The object that an address lies in, allocated or not.
    pub fn at(&self, address: u64) -> Option<Object> {
        let slab = self.slab_at(address)?;
        let of = &self.slabs[slab];
        let (nth, offset) =
            ((address - of.start) / u64::from(of.size), (address - of.start) % u64::from(of.size));
        Some(Object { slab, nth: nth as u16, offset })
    }

    /// A slab.
    pub fn slab(&self, number: usize) -> &Slab {
        &self.slabs[number]
    }

    /// All slabs.
    pub fn slabs(&self) -> &[Slab] {
        &self.slabs
    }

    fn number(&self, object: Object) -> usize {
        self.slabs[object.slab].first as usize + usize::from(object.nth)
    }

    /// Whether an object is allocated.
    pub fn is_allocated(&self, object: Object) -> bool {
        self.allocated.get(self.number(object))
    }

    /// Whether an object is allocated, and nothing that leads to it was met yet.
    pub fn is_open(&self, object: Object) -> bool {
        let number = self.number(object);
        self.allocated.get(number) && !self.reached.get(number)
    }

    /// Notes that an object is reached; only from where it is first counts.
    pub fn reach(&mut self, object: Object, from: From) {
        if self.is_open(object) {
            let number = self.number(object);
            self.from_where[number] = match from {
                From::Object(other) => self.number(other) as u32,
                From::Outside(place) => OUTSIDE | place,
            };
            self.reached.set(number);
            self.waiting.set(number);
            self.waiting_slabs.set(object.slab);
        }
    }

    /// From where an object is reached that is.
    pub fn from_where(&self, object: Object) -> Option<From> {
        let number = self.number(object);
        if !self.reached.get(number) {
            return None;
        }
        let from = self.from_where[number];
        if from & OUTSIDE != 0 {
            return Some(From::Outside(from & !OUTSIDE));
        }
        let slab = self.slabs.partition_point(|slab| slab.first <= from) - 1;
        Some(From::Object(Object { slab, nth: (from - self.slabs[slab].first) as u16, offset: 0 }))
    }

    /// The next slab with reached objects whose content has not been looked at, from one on, and then from the first.
    pub fn next_waiting(&self, from: usize) -> Option<usize> {
        self.waiting_slabs.next(from)
    }

    /// The waiting objects of a slab, which no longer wait.
    pub fn take_waiting(&mut self, slab: usize) -> Vec<u16> {
        let of = self.slabs[slab];
        let first = of.first as usize;
        let waiting = self.waiting.ones(first..first + usize::from(of.objects));
        let waiting: Vec<u16> = waiting.map(|at| (at - first) as u16).collect();
        for &nth in &waiting {
            self.waiting.clear(first + usize::from(nth));
        }
        self.waiting_slabs.clear(slab);
        waiting
    }

    /// Allocated objects that nothing reached.
    pub fn open(&self) -> impl Iterator<Item = Object> + '_ {
        (0..self.slabs.len()).flat_map(move |slab| {
            (0..self.slabs[slab].objects)
                .map(move |nth| Object { slab, nth, offset: 0 })
                .filter(|object| self.is_open(*object))
        })
    }

    /// Addresses of a cache's allocated objects that something leads to.
    pub fn reached(&self, cache: u16) -> impl Iterator<Item = u64> + '_ {
        self.slabs.iter().filter(move |slab| slab.cache == cache).flat_map(move |slab| {
            let first = slab.first as usize;
            let of = self.reached.ones(first..first + usize::from(slab.objects));
            of.map(move |at| slab.address((at - first) as u16))
        })
    }

    /// Allocated objects of each of so many caches.
    pub fn by_cache(&self, caches: usize) -> Vec<u64> {
        let mut counts = vec![0; caches];
        for slab in &self.slabs {
            let first = slab.first as usize;
            let live =
                (first..first + usize::from(slab.objects)).filter(|&at| self.allocated.get(at)).count();
            counts[usize::from(slab.cache)] += live as u64;
        }
        counts
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
