//! Slab caches, and which of their objects are free: what those contain holds nothing any more.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    layout::{NodesLayout, SheafLayout},
    memory::Memory,
};

/// Bytes of a cache's name that are kept.
const MOST_NAME: usize = 64;
/// What is known of free objects on lists of CPUs is asked again after this time.
const FRESH: Duration = Duration::from_millis(500);
/// What is free in the slabs that CPUs allocate from changes with each allocation, and is asked for each slab; where there are
/// more CPUs than these, once in so long for all slabs of a cache.
const FEW_CPUS: usize = 16;
const FRESH_LISTS: Duration = Duration::from_millis(20);
/// Objects that a sheaf may have (`mm/slub.c` gives 4 to 252).
const MOST_IN_SHEAF: u64 = 1_024;
/// Pages that a slab may have: 2 to the 10th.
const MOST_PAGES: u64 = 1_024;

/// A slab cache.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub(super) name: String,
    /// Bytes from one object to the next.
    pub(super) size: u64,
    /// Bytes of it that are its owner's. What lies behind is the allocator's: the pointer to the next free object of caches with a
    /// constructor, which is left when it is allocated.
    pub(super) own: u64,
    offset: u64,
    random: Option<u64>,
    /// Bytes before each object that are not its own.
    pub(super) pad: u64,
    cpu: u64,
    sheaves: u64,
}

/// A slab, and its free objects.
#[derive(Clone, Debug)]
pub(super) struct Slab {
    /// Address of the cache.
    pub(super) cache: u64,
    /// Its first address.
    pub(super) base: u64,
    /// Objects that it has room for.
    pub(super) objects: u64,
    free: FxHashSet<u64>,
    /// Whether a list of its free objects could not be followed to its end.
    pub(super) broken: bool,
}

/// Knows the caches.
pub(super) struct Slabs<'a> {
    memory: &'a Memory,
    caches: FxHashMap<u64, Option<Cache>>,
    /// Sheaves themselves: what is behind their last object is old.
    sheaves: FxHashSet<u64>,
    in_sheaves: FxHashMap<u64, (Instant, FxHashSet<u64>)>,
    /// Of caches the slabs that CPUs allocate from, by their `struct page`, each with its first free object.
    of_cpus: FxHashMap<u64, (Instant, Vec<(u64, u64)>)>,
    /// Free lists that could not be followed to their end.
    pub(super) broken_lists: u64,
}

impl<'a> Slabs<'a> {
    pub(super) fn new(memory: &'a Memory) -> Self {
        let mut slabs = Self {
            memory,
            caches: FxHashMap::default(),
            sheaves: FxHashSet::default(),
            in_sheaves: FxHashMap::default(),
            of_cpus: FxHashMap::default(),
            broken_lists: 0,
        };
        slabs.note_sheaves();
        slabs
    }

    /// A cache by the address of its `kmem_cache`; `None` where there is none.
    pub(super) fn cache(&mut self, address: u64) -> Option<&Cache> {
        let memory = self.memory;
        self.caches.entry(address).or_insert_with(|| read_cache(memory, address)).as_ref()
    }

    /// The slab whose first `struct page` is given as words, and its first address.
    pub(super) fn slab(&mut self, page: &[u64], base: u64) -> Option<Slab> {
        let layout = self.memory.layout.slab;
        let word = |offset: u64| page.get(offset as usize / 8).copied();
        let cache_address = word(layout.cache)?;
        let objects = word(layout.objects & !7)? >> (layout.objects % 8 * 8) & 0x7fff;
        let first = word(layout.freelist)?;
        let cache = self.cache(cache_address)?.clone();
        if objects == 0 || objects * cache.size > MOST_PAGES * self.memory.page_bytes {
            return None;
        }
        let mut slab =
            Slab { cache: cache_address, base, objects, free: FxHashSet::default(), broken: false };
        let mut lists = vec![first];
        lists.extend(self.lists_of_cpus(cache_address, &cache, base));
        lists.retain(|&list| list != 0);
        // Of a full slab there is nothing to follow.
        if !lists.is_empty() {
            let mut contents = vec![0; (objects * cache.size / 8) as usize];
            self.memory.core.words(base, &mut contents).ok()?;
            for list in lists {
                if !follow(&cache, &mut slab, &contents, list) {
                    self.broken_lists += 1;
                    slab.broken = true;
                }
            }
        }
        let free = self.free_in_sheaves(cache_address, &cache);
        let starts = (0..objects).map(|nth| base + cache.pad + nth * cache.size);
        slab.free.extend(starts.filter(|start| free.contains(start)));
        Some(slab)
    }

    /// Bytes that a slab with such a first page takes.
    pub(super) fn bytes(&mut self, page: &[u64]) -> Option<u64> {
        let layout = self.memory.layout.slab;
        let cache = *page.get(layout.cache as usize / 8)?;
        let objects = page.get(layout.objects as usize / 8)? >> (layout.objects % 8 * 8) & 0x7fff;
        let bytes = self.cache(cache)?.size * objects;
        Some(bytes).filter(|&bytes| bytes > 0 && bytes <= MOST_PAGES * self.memory.page_bytes)
    }

    /// The allocator's own arrays of free objects that are known.
    pub(super) fn sheaves(&self) -> &FxHashSet<u64> {
        &self.sheaves
    }

    /// Whether an object is one of the allocator's own arrays of free objects.
    pub(super) fn is_sheaf(&self, object: u64) -> bool {
        self.sheaves.contains(&object)
    }

    /// First free objects of CPUs whose current slab this is.
    fn lists_of_cpus(&mut self, address: u64, cache: &Cache, base: u64) -> Vec<u64> {
        let memory = self.memory;
        let now = Instant::now();
        let are_few = memory.cpus.len() <= FEW_CPUS;
        let old = |(read, _): &(Instant, _)| are_few || now - *read > FRESH_LISTS;
        if self.of_cpus.get(&address).is_none_or(old) {
            self.of_cpus.insert(address, (now, slabs_of_cpus(memory, cache)));
        }
        let mine = memory.page(memory.frame(base));
        self.of_cpus[&address].1.iter().filter(|(slab, _)| *slab == mine).map(|&(_, first)| first).collect()
    }

    /// Objects of a cache that are in sheaves.
    fn free_in_sheaves(&mut self, address: u64, cache: &Cache) -> &FxHashSet<u64> {
        let now = Instant::now();
        let old = |(read, _): &(Instant, _)| now - *read > FRESH;
        if self.in_sheaves.get(&address).is_none_or(old) {
            let mut free = FxHashSet::default();
            if let Some(layout) = self.memory.layout.cache.sheaves {
                for sheaf in sheaves_of(self.memory, &layout, address, cache.sheaves) {
                    self.sheaves.insert(sheaf);
                    let used = self.memory.core.number(sheaf + layout.used).unwrap_or(0);
                    let mut objects = vec![0; u64::from(used).min(MOST_IN_SHEAF) as usize];
                    if self.memory.core.words(sheaf + layout.objects, &mut objects).is_ok() {
                        free.extend(objects);
                    }
                }
            }
            self.in_sheaves.insert(address, (now, free));
        }
        &self.in_sheaves[&address].1
    }

    /// Finds the sheaves of all caches.
    fn note_sheaves(&mut self) {
        let (Some(layout), Some(head)) =
            (self.memory.layout.cache.sheaves, self.memory.data.address_of("slab_caches"))
        else {
            return;
        };
        for link in self.memory.list(head) {
            let address = link.wrapping_sub(self.memory.layout.cache.list);
            let Some(pointer) = self.cache(address).map(|cache| cache.sheaves) else { continue };
            self.sheaves.extend(sheaves_of(self.memory, &layout, address, pointer));
        }
    }
}

impl Cache {
    /// Where free objects have the address of the next one, if it is not hidden.
    pub(super) fn plain_link(&self) -> Option<u64> {
        self.random.is_none().then_some(self.offset)
    }
}

fn read_cache(memory: &Memory, address: u64) -> Option<Cache> {
    let (core, layout) = (&memory.core, &memory.layout.cache);
    let name = core.text(core.word(address.checked_add(layout.name)?).ok()?, MOST_NAME).ok()?;
    let size = u64::from(core.number(address + layout.size).ok()?);
    let pad = layout.red_left_pad.and_then(|at| core.number(address + at).ok()).unwrap_or(0);
    let own = u64::from(core.number(address + layout.object_size).ok()?);
    if size < 8 || size % 8 != 0 || own == 0 || own > size || u64::from(pad) >= size || name.is_empty() {
        return None;
    }
    Some(Cache {
        name,
        size,
        own,
        offset: core.number(address + layout.offset).ok()?.into(),
        random: layout.random.and_then(|at| core.word(address + at).ok()),
        pad: pad.into(),
        cpu: layout.cpu.and_then(|cpu| core.word(address + cpu.pointer).ok()).unwrap_or(0),
        sheaves: layout.sheaves.and_then(|sheaves| core.word(address + sheaves.pointer).ok()).unwrap_or(0),
    })
}

/// The slabs that CPUs allocate from, each with the first object that is free for that CPU.
fn slabs_of_cpus(memory: &Memory, cache: &Cache) -> Vec<(u64, u64)> {
    let Some(layout) = memory.layout.cache.cpu else { return Vec::new() };
    let of_cpu = |offset: &u64| {
        let at = cache.cpu.wrapping_add(*offset);
        let slab = memory.core.word(at.wrapping_add(layout.slab)).ok()?;
        Some((slab, memory.core.word(at.wrapping_add(layout.freelist)).ok()?))
    };
    memory.cpus.iter().filter_map(of_cpu).collect()
}

/// The sheaves of a cache: those of CPUs, and those in the nodes' barns.
fn sheaves_of(memory: &Memory, layout: &SheafLayout, cache: u64, pointer: u64) -> Vec<u64> {
    let core = &memory.core;
    let mut found = Vec::new();
    if core.number(cache + layout.capacity).unwrap_or(0) == 0 {
        return found;
    }
    for offset in &memory.cpus {
        let of_cpu = pointer.wrapping_add(*offset);
        found.extend(layout.of_cpu.iter().filter_map(|at| core.word(of_cpu.wrapping_add(*at)).ok()));
    }
    for node in 0..memory.nodes {
        let barn = match layout.nodes {
            NodesLayout::Node { nodes, barn } => core
                .word(cache + nodes + node * 8)
                .ok()
                .filter(|&node| node != 0)
                .and_then(|node| core.word(node + barn).ok()),
            NodesLayout::PerNode { nodes, each, barn } => core.word(cache + nodes + node * each + barn).ok(),
        };
        let Some(barn) = barn.filter(|&barn| barn != 0) else { continue };
        for list in layout.lists {
            found.extend(memory.list(barn + list).iter().map(|link| link.wrapping_sub(layout.list)));
        }
    }
    found.retain(|&sheaf| memory.is_memory(sheaf));
    found
}

/// Follows a list of free objects in a slab; false when it leads astray.
fn follow(cache: &Cache, slab: &mut Slab, contents: &[u64], first: u64) -> bool {
    let mut at = first;
    for _ in 0..=slab.objects {
        if at == 0 {
            return true;
        }
        let into = at.wrapping_sub(slab.base);
        if into >= slab.objects * cache.size || !(into.wrapping_sub(cache.pad)).is_multiple_of(cache.size) {
            return false;
        }
        slab.free.insert(at);
        // What is behind the last object cannot be followed.
        let Some(&hidden) = contents.get(((into + cache.offset) / 8) as usize) else { return false };
        at = next_free(cache.random, hidden, at + cache.offset);
    }
    false
}

/// The next free object, of the word in a free one at an address (`freelist_ptr_decode` of `mm/slub.c`).
fn next_free(random: Option<u64>, word: u64, at: u64) -> u64 {
    random.map_or(word, |random| word ^ random ^ at.swap_bytes())
}

impl Slab {
    /// Whether an object that begins there is free.
    pub(super) fn is_free(&self, start: u64) -> bool {
        self.free.contains(&start)
    }

    /// The object that an address lies in: its start, and whether it is free. `None` before the first and behind the last.
    pub(super) fn object_at(&self, cache: &Cache, address: u64) -> Option<(u64, bool)> {
        let into = address.checked_sub(self.base)?;
        let index = into / cache.size;
        (index < self.objects).then(|| {
            let start = self.base + index * cache.size + cache.pad;
            (start, self.free.contains(&start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(random: Option<u64>) -> Cache {
        Cache { name: "c".into(), size: 64, own: 64, offset: 32, random, pad: 0, cpu: 0, sheaves: 0 }
    }

    /// A slab of four objects, of which 2 and 0 are free, in that order.
    fn contents(random: Option<u64>, base: u64) -> Vec<u64> {
        let mut words = vec![0; 32];
        let hide = |next: u64, object: u64| match random {
            None => next,
            Some(random) => next ^ random ^ (base + object * 64 + 32).swap_bytes(),
        };
        words[2 * 8 + 4] = hide(base, 2);
        words[4] = hide(0, 0);
        words
    }

    #[test]
    fn free_lists_are_followed_hidden_or_not() {
        let base = 0xffff_8880_1234_5000;
        for random in [None, Some(0x0123_4567_89ab_cdef)] {
            let cache = cache(random);
            let mut slab = Slab { cache: 0, base, objects: 4, free: FxHashSet::default(), broken: false };
            assert!(follow(&cache, &mut slab, &contents(random, base), base + 128));
            assert_eq!(slab.object_at(&cache, base + 64), Some((base + 64, false)));
            assert_eq!(slab.object_at(&cache, base + 130), Some((base + 128, true)));
            assert_eq!(slab.object_at(&cache, base + 8), Some((base, true)));
            assert_eq!(slab.object_at(&cache, base + 256), None);
            assert_eq!(slab.object_at(&cache, base - 1), None);
        }
    }

    #[test]
    fn lists_that_lead_astray_end() {
        let base = 0xffff_8880_1234_5000;
        let mut slab = Slab { cache: 0, base, objects: 4, free: FxHashSet::default(), broken: false };
        let mut words = contents(None, base);
        assert!(!follow(&cache(None), &mut slab, &words, base + 13));
        assert!(!follow(&cache(None), &mut slab, &words, base + 256));
        words[4] = base + 128;
        assert!(!follow(&cache(None), &mut slab, &words, base));
    }
}
