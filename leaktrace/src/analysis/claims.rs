//! What hangs on the open files of one process alone, directly or through other objects.
//!
//! An object that files of two processes lead to is neither's, and what only such objects lead to is nobody's: a mount, a
//! control group, a namespace lead to everything in the end.

use rustc_hash::{FxHashMap, FxHashSet};

use super::objects::{Object, Objects};

/// How many other kinds of objects may lie between a file and what hangs on it. Others of the same kind may be any number: a
/// list.
const MOST_KINDS: u8 = 4;

/// A file of a process, and where looking begins.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The process, by a number.
    pub process: u32,
    /// Addresses of the file and of what belongs to it.
    pub begins: Vec<u64>,
}

/// Whose objects are.
#[derive(Debug, Default)]
pub struct Claims {
    /// By slab and place the file that led to an object first.
    of: FxHashMap<(u32, u16), u32>,
    shared: FxHashSet<(u32, u16)>,
    /// Whether there was too little room for all.
    pub cut: bool,
}

/// Finds what hangs on files. `is_common` says of a cache that its objects lead to everybody's, `words` reads an object, and
/// `most` objects are kept in mind.
pub fn claim(
    objects: &Objects,
    files: &[Opened],
    is_common: &dyn Fn(u16) -> bool,
    words: &mut dyn FnMut(Object) -> Vec<u64>,
    most: usize,
) -> Claims {
    let mut claims = Claims::default();
    // The first time finds what is shared, the second one what hangs on that only.
    for _ in 0..2 {
        claims.of.clear();
        claims.follow(objects, files, is_common, words, most);
    }
    claims
}

fn key(object: Object) -> (u32, u16) {
    (object.slab as u32, object.nth)
}

impl Claims {
    /// Goes on from all files at the same time, a step at a time: what is shared shows before anything behind it is reached.
    fn follow(
        &mut self,
        objects: &Objects,
        files: &[Opened],
        is_common: &dyn Fn(u16) -> bool,
        words: &mut dyn FnMut(Object) -> Vec<u64>,
        most: usize,
    ) {
        let allocated = |address: u64| objects.at(address).filter(|object| objects.is_allocated(*object));
        let mut front: Vec<(Object, u32, u8)> = Vec::new();
        for (number, file) in (0..).zip(files) {
            let begins = file.begins.iter().filter_map(|&address| allocated(address));
            front.extend(
                begins
                    .filter(|object| self.is_new(*object, number, files, most))
                    .map(|object| (object, number, 0)),
            );
        }
        while !front.is_empty() {
            let mut next = Vec::new();
            front.retain(|(object, ..)| !self.shared.contains(&key(*object)));
            for &(object, file, kinds) in &front {
                let cache = objects.slab(object.slab).cache;
                for held in words(object).into_iter().filter_map(allocated) {
                    let of = objects.slab(held.slab).cache;
                    let kinds = kinds + u8::from(of != cache);
                    if kinds <= MOST_KINDS && !is_common(of) && self.is_new(held, file, files, most) {
                        next.push((held, file, kinds));
                    }
                }
            }
            front = next;
        }
    }

    /// Whether an object was met for the first time; notes whose it is.
    fn is_new(&mut self, object: Object, file: u32, files: &[Opened], most: usize) -> bool {
        let key = key(object);
        if self.shared.contains(&key) {
            return false;
        }
        match self.of.get(&key) {
            Some(&other) => {
                if files[other as usize].process != files[file as usize].process {
                    self.shared.insert(key);
                }
                false
            }
            None if self.of.len() >= most => {
                self.cut = true;
                false
            }
            None => {
                self.of.insert(key, file);
                true
            }
        }
    }

    /// The file that an object hangs on alone, by its number.
    pub fn of(&self, object: Object) -> Option<usize> {
        let key = key(object);
        self.of.get(&key).filter(|_| !self.shared.contains(&key)).map(|&file| file as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::objects::Slab;

    const BASE: u64 = 0xffff_8880_0000_0000;

    /// An object, by its cache and its place there.
    type Of = (u64, u64);

    /// Caches 0 to 6 with 64 objects of 64 bytes each, and pointers between them.
    fn heap(pointers: &[(Of, Of)]) -> (Objects, FxHashMap<u64, Vec<u64>>) {
        let mut objects = Objects::default();
        for cache in 0..7_u64 {
            assert!(objects.add(Slab::new(BASE + (cache << 12), (64, 64), 64, cache as u16), |_| true));
        }
        objects.finish();
        let mut words: FxHashMap<u64, Vec<u64>> = FxHashMap::default();
        for &(from, to) in pointers {
            words.entry(at(from)).or_default().push(at(to) + 8);
        }
        (objects, words)
    }

    fn at((cache, nth): Of) -> u64 {
        BASE + (cache << 12) + nth * 64
    }

    fn claims(pointers: &[(Of, Of)], files: &[(u32, Of)], most: usize) -> impl Fn(Of) -> Option<usize> {
        let (objects, words) = heap(pointers);
        let files: Vec<Opened> =
            files.iter().map(|&(process, file)| Opened { process, begins: vec![at(file)] }).collect();
        let mut read = |object: Object| {
            words.get(&objects.slab(object.slab).address(object.nth)).cloned().unwrap_or_default()
        };
        // What is in cache 6 leads to everybody's.
        let claims = claim(&objects, &files, &|cache| cache == 6, &mut read, most);
        move |object| claims.of(objects.at(at(object)).unwrap())
    }

    #[test]
    fn a_list_is_the_files_however_long() {
        let mut pointers = vec![((0, 0), (1, 0)), ((1, 0), (2, 0))];
        pointers.extend((0..63).map(|nth| ((2, nth), (2, nth + 1))));
        let of = claims(&pointers, &[(7, (0, 0))], 1_000);
        assert_eq!((of((0, 0)), of((1, 0)), of((2, 63))), (Some(0), Some(0), Some(0)));
        assert_eq!(of((3, 0)), None);
    }

    #[test]
    fn what_two_processes_lead_to_is_neithers() {
        // Both lead to a mount, which leads on to what is the second one's, and to a third one's.
        let pointers = [
            ((0, 0), (1, 0)),
            ((0, 1), (1, 0)),
            ((1, 0), (2, 0)),
            ((0, 1), (2, 1)),
            ((1, 0), (2, 1)),
            ((0, 0), (3, 0)),
        ];
        let of = claims(&pointers, &[(7, (0, 0)), (8, (0, 1))], 1_000);
        assert_eq!((of((1, 0)), of((2, 0))), (None, None));
        assert_eq!((of((2, 1)), of((3, 0))), (Some(1), Some(0)));
        // Two files of one process share nothing with others.
        let of = claims(&pointers, &[(7, (0, 0)), (7, (0, 1))], 1_000);
        assert_eq!((of((1, 0)), of((2, 0))), (Some(0), Some(0)));
    }

    #[test]
    fn common_kinds_and_far_ones_are_nobodys() {
        let far: Vec<_> = (0..5).map(|cache| ((cache, 0), (cache + 1, 0))).collect();
        let of = claims(&far, &[(7, (0, 0))], 1_000);
        assert_eq!((of((4, 0)), of((5, 0))), (Some(0), None));
        let of = claims(&[((0, 0), (6, 0)), ((6, 0), (1, 0))], &[(7, (0, 0))], 1_000);
        assert_eq!((of((6, 0)), of((1, 0))), (None, None));
        let of = claims(&far, &[(7, (0, 0))], 2);
        assert_eq!((of((1, 0)), of((2, 0))), (Some(0), None));
    }
}
