//! What is allocated outside of slab: by vmalloc, by who allocated it; compound pages, by their size; and per-CPU memory.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{machine::page_bytes, symbols::Symbols},
    proof::{Block, Kind, MOST_OPEN, Survey, Surveyed, Unreached, Vmalloced},
};

/// How what is allocated by vmalloc is called where slab has the name of a cache.
pub(super) const VMALLOC: &str = "vmalloc";
/// The same of per-CPU memory.
pub(super) const PERCPU: &str = "percpu";
/// Sizes of compound pages, in pages, as powers of two (`MAX_PAGE_ORDER`, `include/linux/mmzone.h`).
const ORDERS: Range<u32> = 1..14;
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

/// How compound pages of so many bytes are called: `pages-32k`, as slab's caches for kmalloc are.
fn of_pages(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("pages-{}k", bytes >> 10) } else { format!("pages-{}M", bytes >> 20) }
}

/// What memory outside of slab may be called.
pub(super) fn names() -> impl Iterator<Item = String> {
    let pages = ORDERS.map(|order| of_pages(page_bytes() << order));
    [VMALLOC, PERCPU].map(str::to_owned).into_iter().chain(pages)
}

/// Notes compound pages and per-CPU memory, and has those looked at more closely that nothing led to. Returns how many are left
/// out.
pub(super) fn add_blocks(survey: &mut Survey) -> u64 {
    let mut numbers: FxHashMap<String, u16> = FxHashMap::default();
    let mut left_out = 0;
    for Block { address, bytes, kind, is_reached } in std::mem::take(&mut survey.blocks) {
        let (name, size) =
            if kind == Kind::PerCpu { (PERCPU.to_owned(), 0) } else { (of_pages(bytes), bytes) };
        let number = numbers.get(&name).copied().or_else(|| u16::try_from(survey.caches.len()).ok());
        let Some(number) = number else {
            left_out += u64::from(!is_reached);
            continue;
        };
        if usize::from(number) == survey.caches.len() {
            let of = Surveyed {
                name: name.clone(),
                kind,
                caller: None,
                size,
                own: u64::MAX,
                objects: 0,
                bytes: 0,
            };
            survey.caches.push(of);
            numbers.insert(name, number);
        }
        let of = &mut survey.caches[usize::from(number)];
        of.objects += 1;
        of.bytes += bytes;
        if !is_reached && survey.unreached.len() >= MOST_OPEN {
            left_out += 1;
        } else if !is_reached {
            survey.unreached.push(Unreached { address, cache: number, bytes });
        }
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_by_size_and_those_that_nothing_led_to_are_looked_at() {
        let block = |address, bytes, kind, is_reached| Block { address, bytes, kind, is_reached };
        let mut survey = Survey::default();
        survey.blocks.extend([
            block(8, 24, Kind::PerCpu, false),
            block(64, 48, Kind::PerCpu, true),
            block(1 << 16, 1 << 15, Kind::Large, false),
            block(2 << 16, 1 << 15, Kind::Large, true),
            block(1 << 21, 1 << 21, Kind::Large, true),
        ]);
        assert_eq!(add_blocks(&mut survey), 0);
        let caches: Vec<_> =
            survey.caches.iter().map(|of| (of.name.as_str(), of.size, of.objects, of.bytes)).collect();
        assert_eq!(
            caches,
            [("percpu", 0, 2, 72), ("pages-32k", 1 << 15, 2, 1 << 16), ("pages-2M", 1 << 21, 1, 1 << 21)]
        );
        let open: Vec<_> = survey.unreached.iter().map(|one| (one.address, one.cache, one.bytes)).collect();
        assert_eq!(open, [(8, 0, 24), (1 << 16, 1, 1 << 15)]);
        assert!(names().any(|name| name == "percpu") && names().any(|name| name == "pages-2M"));
    }
}
