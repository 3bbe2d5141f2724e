//! What is allocated by vmalloc, by who allocated it.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::symbols::Symbols,
    proof::{Kind, Survey, Surveyed, Unreached, Vmalloced},
};

/// How what is allocated by vmalloc is called where slab has the name of a cache.
pub(super) const VMALLOC: &str = "vmalloc";
/// Functions that are told apart.
const MOST_CALLERS: usize = 1_000;

/// Notes all areas by who allocated them, and has those looked at more closely that nothing led to. Returns how many are left
/// out.
pub(super) fn add(survey: &mut Survey, symbols: &Symbols) -> u64 {
    let first = survey.caches.len();
    let unreached: FxHashSet<Vmalloced> = survey.unreached_areas.iter().copied().collect();
    let mut numbers: FxHashMap<(String, Option<String>), u16> = FxHashMap::default();
    let mut left_out = 0;
    for area in &survey.areas {
        let location = symbols.locate_return(area.caller);
        let module = location.as_ref().and_then(|location| location.module.map(str::to_owned));
        let key = (location.map_or_else(String::new, |location| location.symbol.to_owned()), module);
        let number = numbers.get(&key).copied().or_else(|| {
            let number = u16::try_from(survey.caches.len()).ok()?;
            (survey.caches.len() - first < MOST_CALLERS).then_some(number)
        });
        let Some(number) = number else {
            left_out += u64::from(unreached.contains(area));
            continue;
        };
        if usize::from(number) == survey.caches.len() {
            let caller = (!key.0.is_empty()).then(|| key.clone());
            let (name, kind) = (VMALLOC.to_owned(), Kind::Area);
            survey.caches.push(Surveyed { name, kind, caller, size: 0, own: u64::MAX, objects: 0, bytes: 0 });
            numbers.insert(key, number);
        }
        let of = &mut survey.caches[usize::from(number)];
        of.objects += 1;
        of.bytes += area.bytes;
        if unreached.contains(area) {
            survey.unreached.push(Unreached { address: area.start, cache: number, bytes: area.bytes });
        }
    }
    left_out
}
