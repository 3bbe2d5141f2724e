//! What the words of an object are.

use crate::{
    analysis::content::{Content, Shared, Sign, text},
    kernel::symbols::Symbols,
    proof::{Prover, Survey, Unreached},
    report::heap::model,
};

/// Bytes of an object that are looked at.
pub(super) const MOST: u64 = 4_096;
/// Addresses of the kernel are not below, with five levels of page tables as well.
const KERNEL: u64 = 0xff00_0000_0000_0000;
/// Signs of an object that are kept.
const MOST_SIGNS: usize = 24;
/// Letters of a text that are kept.
const MOST_LETTERS: usize = 40;

/// What an object has in its words.
pub(super) fn of(
    words: &[u64],
    object: Unreached,
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
) -> Content {
    let mut content = Content { cache: object.cache, signs: Vec::new() };
    let mut in_text = 0;
    for (index, &word) in words.iter().enumerate() {
        let offset = index as u32 * 8;
        if index < in_text {
            continue;
        }
        if let Some(letters) = text(&words[index..]) {
            in_text = index + letters.len().div_ceil(8);
            let letters = letters.chars().take(MOST_LETTERS).collect();
            content.signs.push((offset, Sign::Text(letters)));
        } else if word >= KERNEL && content.signs.len() < MOST_SIGNS {
            content.signs.extend(
                pointer(word, object.address, words.len() as u64 * 8, (prover, survey, symbols))
                    .map(|sign| (offset, sign)),
            );
        }
    }
    content
}

/// What a word points to, where that says something.
fn pointer(
    word: u64,
    address: u64,
    bytes: u64,
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
) -> Option<Sign> {
    if (address..address + bytes).contains(&word) {
        return Some(Sign::Itself(word - address));
    }
    if let Some(object) = survey.objects.at(word) {
        let cache = survey.objects.slab(object.slab).cache;
        return Some(Sign::Object(survey.caches[usize::from(cache)].name.clone()));
    }
    // A pointer to a function leads to its begin; what leads into one was on a stack.
    if let Some(location) = symbols.locate(word).filter(|location| location.offset == 0) {
        return Some(Sign::Symbol(location.symbol.to_owned(), location.module.map(str::to_owned)));
    }
    let (name, into, module) = prover.variable(word)?;
    let name = if into == 0 { name } else { format!("{name}+{into:#x}") };
    Some(Sign::Symbol(name, module))
}

/// A sign for the report.
pub(super) fn told(shared: &Shared) -> model::Sign {
    let (what, name, module) = match &shared.sign {
        Sign::Symbol(name, module) => ("symbol", name.clone(), module.clone()),
        Sign::Text(text) => ("text", text.clone(), None),
        Sign::Object(cache) => ("object", cache.clone(), None),
        Sign::Itself(at) => ("itself", format!("{at:#x}"), None),
    };
    model::Sign { offset: shared.offset, what: what.to_owned(), name, module, share: shared.share }
}
