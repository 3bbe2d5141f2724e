//! What objects are, by what is in them: those with the same functions and variables at the same places are of one kind.

use std::collections::{BTreeMap, BTreeSet};

/// Signs of a group that are told at most.
const TOLD: usize = 8;
/// From which share of a group's objects on a sign is the group's.
const SHARED: f64 = 0.5;
/// A function or variable that fewer objects of a cache have at a place, of all and in percent, tells no kind: it is old content.
const FEWEST: usize = 2;
const PERCENT: usize = 2;
/// Letters that a text has at least.
const LETTERS: usize = 6;

/// What a word of an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// A function or variable: its name with the offset, and its module.
    Symbol(String, Option<String>),
    /// Text that begins here.
    Text(String),
    /// An object of a cache.
    Object(String),
    /// The object itself, at this place: the head of an empty list, for one.
    Itself(u64),
}

/// A lost object.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Its cache, by a number.
    pub cache: u16,
    /// What its words are, by their places in bytes; what says nothing is left out.
    pub signs: Vec<(u32, Sign)>,
}

/// What the objects of a group have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Place in the object, in bytes.
    pub offset: u32,
    /// What is there.
    pub sign: Sign,
    /// In what share of the objects.
    pub share: f64,
}

/// Objects of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Number of the cache.
    pub cache: u16,
    /// The objects, by their numbers.
    pub members: Vec<usize>,
    /// What they have in common: functions and variables first.
    pub shared: Vec<Shared>,
    /// The module that most of these functions and variables are of.
    pub module: Option<String>,
}

/// The text that some words have from their start on, up to a zero: only what is plain, and no other language's.
pub fn text(words: &[u64]) -> Option<String> {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    let letters: String = bytes.take_while(|byte| (0x20..0x7f).contains(byte)).map(char::from).collect();
    (letters.len() >= LETTERS).then_some(letters)
}

/// Puts objects together by cache and content, the most first.
pub fn group(contents: &[Content]) -> Vec<Group> {
    let mut of_cache: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (index, content) in contents.iter().enumerate() {
        of_cache.entry(content.cache).or_default().push(index);
    }
    let mut groups = Vec::new();
    for (cache, members) in of_cache {
        let least = FEWEST.max(members.len() * PERCENT / 100);
        let mut counts: BTreeMap<(u32, &Sign), usize> = BTreeMap::new();
        for (offset, sign) in members.iter().flat_map(|&member| &contents[member].signs) {
            if matches!(sign, Sign::Symbol(..)) {
                *counts.entry((*offset, sign)).or_default() += 1;
            }
        }
        let mut kinds: BTreeMap<BTreeSet<(u32, &Sign)>, Vec<usize>> = BTreeMap::new();
        for &member in &members {
            let signs = contents[member].signs.iter().map(|(offset, sign)| (*offset, sign));
            let kind = signs.filter(|sign| counts.get(sign).is_some_and(|&count| count >= least));
            kinds.entry(kind.collect()).or_default().push(member);
        }
        groups.extend(kinds.into_values().map(|members| describe(contents, cache, members)));
    }
    groups.sort_by_key(|group| (std::cmp::Reverse(group.members.len()), group.cache));
    groups
}

fn describe(contents: &[Content], cache: u16, members: Vec<usize>) -> Group {
    let mut counts: BTreeMap<(u32, &Sign), usize> = BTreeMap::new();
    for (offset, sign) in members.iter().flat_map(|&member| &contents[member].signs) {
        *counts.entry((*offset, sign)).or_default() += 1;
    }
    let mut shared: Vec<Shared> = counts
        .into_iter()
        .map(|((offset, sign), count)| Shared {
            offset,
            sign: sign.clone(),
            share: count as f64 / members.len() as f64,
        })
        .filter(|shared| shared.share >= SHARED)
        .collect();
    let mut of_module: BTreeMap<&str, usize> = BTreeMap::new();
    for shared in &shared {
        if let Sign::Symbol(_, Some(module)) = &shared.sign {
            *of_module.entry(module).or_default() += 1;
        }
    }
    let module = of_module.into_iter().max_by_key(|&(_, count)| count).map(|(module, _)| module.to_owned());
    shared.sort_by_key(|shared| (rank(&shared.sign), shared.offset));
    shared.truncate(TOLD);
    Group { cache, members, shared, module }
}

/// What says more comes first: a module's functions do.
fn rank(sign: &Sign) -> u8 {
    match sign {
        Sign::Symbol(_, Some(_)) => 0,
        Sign::Symbol(_, None) => 1,
        Sign::Text(_) => 2,
        Sign::Object(_) => 3,
        Sign::Itself(_) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(of: &str) -> Sign {
        Sign::Symbol(format!("{of}_ops"), Some(of.to_owned()))
    }

    #[test]
    fn objects_of_two_modules_in_one_cache_are_two_kinds() {
        let one = |of: &str, more: Option<(u32, Sign)>| Content {
            cache: 3,
            signs: [Some((24, ops(of))), Some((8, Sign::Itself(8))), more].into_iter().flatten().collect(),
        };
        let mut contents: Vec<Content> = (0..100).map(|_| one("foo", None)).collect();
        contents.extend((0..40).map(|_| one("bar", Some((0, Sign::Text("bar-0000".into()))))));
        // Old content of one.
        contents.push(one("foo", Some((64, ops("old")))));
        let groups = group(&contents);
        assert_eq!(groups.iter().map(|group| group.members.len()).collect::<Vec<_>>(), [101, 40]);
        assert_eq!(
            groups.iter().map(|group| group.module.as_deref()).collect::<Vec<_>>(),
            [Some("foo"), Some("bar")]
        );
        let shared: Vec<_> = groups[1].shared.iter().map(|shared| (shared.offset, shared.share)).collect();
        assert_eq!(shared, [(24, 1.0), (0, 1.0), (8, 1.0)]);
    }

    #[test]
    fn text_is_plain() {
        let words = |text: &[u8; 16]| {
            [
                u64::from_ne_bytes(text[..8].try_into().unwrap()),
                u64::from_ne_bytes(text[8..].try_into().unwrap()),
            ]
        };
        assert_eq!(text(&words(b"session 12\0\0\0\0\0\0")).as_deref(), Some("session 12"));
        assert_eq!(text(&words(b"short\0xxxxxxxxxx")), None);
        assert_eq!(text(&words(b"\x1b[31mred\0\0\0\0\0\0\0\0")), None);
    }
}
