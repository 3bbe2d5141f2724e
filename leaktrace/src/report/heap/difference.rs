//! What grew between two looks at the heap.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::model::{Cache, GROWN_SCHEMA, Group, Grown, Growth, Heap};
use crate::{
    report::{columns::Columns, escape, page::paragraph},
    units,
};

/// Functions and variables by which lost objects are known again.
const SIGNS: usize = 3;
/// Rows that are shown of each kind.
const SHOWN: usize = 10;

/// By what something is known again: cache, caller, module and content.
type Key = (String, Option<String>, Option<String>, Vec<String>);

/// Compares two looks.
pub fn of(before: &Heap, after: &Heap) -> Grown {
    let seconds = seconds(&before.taken, &after.taken);
    let mut notes = Vec::new();
    if before.boot != after.boot {
        notes.push("the two looks are of two boots: no object of one is in the other".to_owned());
    }
    for (name, heap) in [("first", before), ("second", after)] {
        if let Some(why) = &heap.scanned.cut_short {
            notes.push(format!("the {name} look came to no end: {why}"));
        }
    }
    if !notes.is_empty() {
        let taken = [before.taken.clone(), after.taken.clone()];
        return Grown { schema: GROWN_SCHEMA.to_owned(), taken, seconds, notes, ..Grown::default() };
    }
    if before.asked != after.asked {
        notes.push(
            "the two looks were asked for different caches or modules: what is lost cannot be compared"
                .to_owned(),
        );
    }
    let lost =
        |heap: &Heap| sums(heap.groups.iter().map(|group| (lost_key(group), group.objects, group.bytes)));
    let all = |heap: &Heap| sums(heap.caches.iter().map(|cache| (key(cache), cache.objects, cache.bytes)));
    Grown {
        schema: GROWN_SCHEMA.to_owned(),
        taken: [before.taken.clone(), after.taken.clone()],
        seconds,
        lost: growth(&lost(before), &lost(after), seconds),
        caches: growth(&all(before), &all(after), seconds),
        notes,
    }
}

fn seconds(before: &str, after: &str) -> f64 {
    let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    at(before).zip(at(after)).map_or(0.0, |(before, after)| (after - before).as_seconds_f64())
}

fn lost_key(group: &Group) -> Key {
    let signs = group.content.iter().filter(|sign| sign.what == "symbol").take(SIGNS);
    let signs = signs.map(|sign| format!("+{:#x} {}", sign.offset, sign.name)).collect();
    (group.cache.clone(), group.caller.clone(), group.module.clone(), signs)
}

fn key(cache: &Cache) -> Key {
    (cache.cache.clone(), cache.caller.clone(), cache.module.clone(), Vec::new())
}

fn sums(all: impl Iterator<Item = (Key, u64, u64)>) -> BTreeMap<Key, (u64, u64)> {
    let mut sums: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
    for (key, objects, bytes) in all {
        let sum = sums.entry(key).or_default();
        *sum = (sum.0.saturating_add(objects), sum.1.saturating_add(bytes));
    }
    sums
}

/// What differs, what grew most first.
fn growth(
    before: &BTreeMap<Key, (u64, u64)>,
    after: &BTreeMap<Key, (u64, u64)>,
    seconds: f64,
) -> Vec<Growth> {
    let keys: std::collections::BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
    let mut all: Vec<Growth> = keys
        .into_iter()
        .map(|key| {
            let at = |sums: &BTreeMap<Key, (u64, u64)>| sums.get(key).copied().unwrap_or_default();
            let (a, b) = (at(before), at(after));
            let (cache, caller, module, content) = key.clone();
            let grown = b.1 as f64 - a.1 as f64;
            let bytes_per_h = if seconds > 0.0 { grown * 3_600.0 / seconds } else { 0.0 };
            Growth { cache, caller, module, content, objects: [a.0, b.0], bytes: [a.1, b.1], bytes_per_h }
        })
        .filter(|growth| growth.objects[0] != growth.objects[1] || growth.bytes[0] != growth.bytes[1])
        .collect();
    all.sort_by_key(|growth| growth.bytes[0].cast_signed().saturating_sub(growth.bytes[1].cast_signed()));
    all
}

/// As text, at a width in columns.
pub fn render(grown: &Grown, width: usize) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, grown, width);
    out
}

fn write(out: &mut String, grown: &Grown, width: usize) -> fmt::Result {
    let time = units::seconds(grown.seconds);
    let lost = |at: usize| {
        grown
            .lost
            .iter()
            .fold(0_u64, |sum, growth| sum.saturating_add(growth.objects[at]))
            .min(i64::MAX as u64) as i64
    };
    let lost = lost(1).saturating_sub(lost(0));
    let objects = units::plural(usize::try_from(lost.unsigned_abs()).unwrap_or(usize::MAX), "object");
    let line = match lost {
        _ if grown.lost.is_empty() && grown.caches.is_empty() && !grown.notes.is_empty() => {
            "UNKNOWN  The two looks cannot be compared.".to_owned()
        }
        0 => format!("In {time} no more objects were lost."),
        1.. => format!("In {time} {objects} more were lost."),
        _ => format!("Lost are {objects} fewer than {time} before."),
    };
    paragraph(out, 0, width, &line)?;
    for (title, rows) in [("lost", &grown.lost), ("allocated", &grown.caches)] {
        let rows: Vec<&Growth> =
            rows.iter().filter(|growth| growth.bytes[1] > growth.bytes[0]).take(SHOWN).collect();
        if rows.is_empty() {
            continue;
        }
        let cells =
            |cell: &dyn Fn(&Growth) -> String| rows.iter().map(|growth| cell(growth)).collect::<Vec<_>>();
        let change =
            |growth: &Growth| growth.objects[1].cast_signed().saturating_sub(growth.objects[0].cast_signed());
        let columns = Columns::default()
            .left(0, title, cells(&|growth| escape(&name(growth)).into_owned()))
            .left(1, "module", cells(&|growth| escape(growth.module.as_deref().unwrap_or("")).into_owned()))
            .right(0, "objects", cells(&|growth| units::change(change(growth))))
            .right(0, "to", cells(&|growth| units::count(growth.objects[1])))
            .right(0, "in an hour", cells(&|growth| units::bytes(growth.bytes_per_h)));
        writeln!(out, "\n{}", columns.lines(width))?;
    }
    for note in &grown.notes {
        paragraph(out, 0, width, &format!("note: {}", escape(note)))?;
    }
    Ok(())
}

fn name(growth: &Growth) -> String {
    match (&growth.caller, growth.content.first()) {
        (Some(caller), _) => format!("{} by {caller}", growth.cache),
        (None, Some(sign)) => format!("{} with {sign}", growth.cache),
        (None, None) => growth.cache.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heap::model::Sign;

    fn heap(taken: &str, lost: u64, pipes: u64) -> Heap {
        let sign = Sign { offset: 16, what: "symbol".into(), name: "foo_ops".into(), ..Sign::default() };
        let group = Group {
            cache: "kmalloc-64".into(),
            module: Some("foo".into()),
            objects: lost,
            bytes: lost * 64,
            content: vec![sign],
            ..Group::default()
        };
        let cache = |name: &str, objects: u64| Cache {
            cache: name.into(),
            objects,
            bytes: objects * 64,
            ..Cache::default()
        };
        Heap {
            taken: taken.into(),
            boot: "one".into(),
            groups: if lost > 0 { vec![group] } else { Vec::new() },
            caches: vec![cache("pipes", pipes), cache("kmalloc-64", 1_000 + lost), cache("same", 7)],
            ..Heap::default()
        }
    }

    #[test]
    fn what_grew_comes_first_and_what_did_not_is_left_out() {
        let grown = of(&heap("2026-11-28T08:00:00Z", 0, 100), &heap("2026-11-28T08:30:00Z", 1_000, 90));
        assert!((grown.seconds - 1_800.0).abs() < 1e-9);
        let lost: Vec<_> = grown.lost.iter().map(|growth| (growth.objects, growth.bytes_per_h)).collect();
        assert_eq!(lost, [([0, 1_000], 128_000.0)]);
        assert_eq!(grown.lost[0].content, ["+0x10 foo_ops"]);
        let caches: Vec<_> =
            grown.caches.iter().map(|growth| (growth.cache.as_str(), growth.objects)).collect();
        assert_eq!(caches, [("kmalloc-64", [1_000, 2_000]), ("pipes", [100, 90])]);
        for width in [60, 100] {
            let text = render(&grown, width);
            assert!(text.starts_with("In 30 min 1,000 objects more were lost."), "{text}");
            assert!(text.contains("kmalloc-64 with +0x10 foo_ops") && !text.contains("pipes"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
        }
    }

    #[test]
    fn two_boots_are_told() {
        let other = Heap { boot: "two".into(), ..heap("2026-11-28T08:30:00Z", 1, 1) };
        let grown = of(&heap("no time", 1, 1), &other);
        assert!(grown.notes[0].contains("two boots"), "{:?}", grown.notes);
        assert!((grown.seconds, grown.lost.len()) == (0.0, 0), "{grown:?}");
        assert!(render(&grown, 80).starts_with("UNKNOWN  The two looks cannot be compared."));
    }
}
