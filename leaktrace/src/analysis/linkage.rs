//! Is an object part of a structure in memory? What is on a list, in a tree or in a hash table
//! points to its neighbour, and the neighbour points back; what was lost does not.
//!
//! This is no proof: an array may hold an object that knows nothing of it, and a structure may be
//! lost as a whole. So it only ever takes a verdict back.

/// Memory from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
}

impl Span {
    /// `size` bytes from `start`.
    pub fn new(start: u64, size: u64) -> Self {
        Self { start, end: start.saturating_add(size) }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Bits that pointers carry beside the address: colours, marks and kinds (`rbtree.h`, `list_nulls.h`).
const TAGS: u64 = 7;

/// Addresses that a word may stand for: as it is, without tags.
pub fn address_in(word: u64) -> u64 {
    word & !TAGS
}

/// The pointers in an object that lead out of it into `readable` memory, each once.
pub fn pointers_out(words: &[u64], object: &[Span], readable: &[Span]) -> Vec<u64> {
    let mut out: Vec<u64> = words
        .iter()
        .map(|&word| address_in(word))
        .filter(|&address| readable.iter().any(|span| span.contains(address)))
        .filter(|&address| !object.iter().any(|span| span.contains(address)))
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// Whether one of the words points into the object.
pub fn points_into(words: &[u64], object: &[Span]) -> bool {
    words.iter().any(|&word| object.iter().any(|span| span.contains(address_in(word))))
}

/// What was found of a sample of one site's survivors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// Survivors whose memory was read.
    pub looked_at: u64,
    /// Those of them that a neighbour points back to.
    pub linked: u64,
    /// Those that another traced object points to which is linked itself.
    pub held: u64,
    /// Survivors whose memory could not be read.
    pub unreadable: u64,
}

impl Linkage {
    /// Objects without which nothing is concluded.
    const FEWEST: u64 = 6;
    /// Of a leak so many may look linked, by what their memory was used for before.
    const BY_CHANCE: f64 = 0.2;

    /// Whether nearly all of them are in no structure that could be seen; `None` when too few were read.
    pub fn is_loose(&self) -> Option<bool> {
        (self.looked_at >= Self::FEWEST)
            .then(|| (self.linked + self.held) as f64 <= self.looked_at as f64 * Self::BY_CHANCE)
    }

    /// Whether most of them are.
    pub fn is_bound(&self) -> bool {
        self.looked_at > 0 && (self.linked + self.held) * 2 > self.looked_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM: [Span; 1] = [Span { start: 0xffff_8880_0000_0000, end: 0xffff_8890_0000_0000 }];

    #[test]
    fn only_pointers_to_elsewhere_count() {
        let object = [Span::new(0xffff_8880_0000_1000, 64)];
        // An empty list head, a number, a user's address, a red-black parent with its colour, twice.
        let words = [
            0xffff_8880_0000_1008,
            0xffff_8880_0000_1008,
            42,
            0x7fff_0000_1000,
            0xffff_8880_0000_2001,
            0xffff_8880_0000_2000,
        ];
        assert_eq!(pointers_out(&words, &object, &RAM), [0xffff_8880_0000_2000]);
        assert!(points_into(&words, &object));
        assert!(!points_into(&words[2..], &object));
    }

    #[test]
    fn a_few_by_chance_are_no_structure() {
        let found = Linkage { looked_at: 32, linked: 5, ..Linkage::default() };
        assert_eq!(found.is_loose(), Some(true));
        assert_eq!(Linkage { held: 2, ..found }.is_loose(), Some(false));
        assert!(!found.is_bound() && Linkage { linked: 30, ..found }.is_bound());
        assert_eq!(Linkage { looked_at: 5, ..Linkage::default() }.is_loose(), None);
    }

    proptest! {
        /// Elements of a list are found linked wherever they lie, and whatever else they hold.
        #[test]
        fn neighbours_find_each_other(at in 0_u64..1_000, offset in 0_u64..8, noise in prop::collection::vec(any::<u32>(), 8)) {
            let address = |index: u64| RAM[0].start + (at + index) * 64;
            let words = |previous: u64, next: u64| {
                let mut words: Vec<u64> = noise.iter().map(|&word| u64::from(word)).collect();
                words[offset as usize] = address(next) + offset * 8;
                words[(offset as usize + 1) % 8] = address(previous) + offset * 8;
                words
            };
            let middle = [Span::new(address(1), 64)];
            let out = pointers_out(&words(0, 2), &middle, &RAM);
            prop_assert_eq!(out.len(), 2);
            prop_assert!(points_into(&words(1, 3), &middle));
            prop_assert!(!points_into(&words(2, 4), &middle));
        }
    }
}
