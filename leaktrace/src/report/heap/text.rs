//! A look at the heap as text.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use super::{
    difference,
    model::{Group, Heap, Holder, Holding, Scanned, Sign},
};
use crate::{
    report::{columns::Columns, escape, page::paragraph, text::Style},
    units,
};

/// Holders of a cache that are told.
const HOLDERS: usize = 3;
/// A holder of less than this share of the sample is left out unless more is asked for.
const SMALL: f64 = 0.05;

/// Everything as text.
pub fn render(heap: &Heap, style: &Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = all(&mut out, heap, style);
    out
}

/// What it comes to, in a sentence or two.
pub fn headline(heap: &Heap) -> String {
    let scanned = &heap.scanned;
    if let Some(why) = &scanned.cut_short {
        return format!("UNKNOWN  {why}");
    }
    let looked = format!(
        "{} in {}, {}, {} of vmalloc, and {} of pages and per-CPU memory were looked at in {}.",
        units::plural(scanned.objects as usize, "object"),
        units::plural(scanned.caches, "cache"),
        units::bytes(scanned.slab_bytes as f64),
        units::plural(scanned.areas as usize, "area"),
        units::plural(scanned.blocks as usize, "block"),
        units::seconds(scanned.seconds)
    );
    if heap.lost.objects == 0 {
        return format!("{} {looked}", nothing_lost(scanned));
    }
    let whose = whose(heap);
    format!(
        "LOST  Nothing leads to {}, {}{whose}. {looked}",
        units::plural(heap.lost.objects as usize, "object"),
        units::bytes(heap.lost.bytes as f64),
    )
}

/// Whose most of it is, or some.
fn whose(heap: &Heap) -> String {
    let mut of: BTreeMap<&str, u64> = BTreeMap::new();
    for group in &heap.groups {
        if let Some(module) = &group.module {
            *of.entry(module).or_default() += group.objects;
        }
    }
    let Some((module, objects)) = of.into_iter().max_by_key(|(_, objects)| *objects) else {
        return String::new();
    };
    let part = match objects {
        all if all == heap.lost.objects => "",
        most if most * 2 > heap.lost.objects => "most of them ",
        _ => "some of them ",
    };
    format!(", {part}{module}'s by their content")
}

/// Whether it is known that nothing, or nothing that was asked for, is lost, if nothing is.
pub(super) fn is_known(heap: &Heap) -> bool {
    let scanned = &heap.scanned;
    let open = scanned.left_out + scanned.unclear + scanned.unfit_bytes;
    scanned.cut_short.is_none() && open == 0
}

/// What it comes to where nothing that was asked for is lost.
fn nothing_lost(scanned: &Scanned) -> String {
    let open = scanned.left_out + scanned.unclear;
    if scanned.unfit_bytes > 0 {
        let unfit = units::bytes(scanned.unfit_bytes as f64);
        return format!(
            "UNKNOWN  Nothing is known to be lost, but {unfit} of slab were not looked at: --max-memory gives more."
        );
    }
    if open > 0 {
        let open = units::plural(open as usize, "object");
        return format!("UNKNOWN  Nothing is known to be lost, but of {open} it is not clear.");
    }
    if scanned.lost_in_all > 0 {
        let others = units::plural(scanned.lost_in_all as usize, "object");
        return format!("OK  Nothing that was asked for is lost, but {others} of others.");
    }
    "OK  Something leads to every object, area and block: none of them is lost.".to_owned()
}

fn all(out: &mut String, heap: &Heap, style: &Style) -> fmt::Result {
    paragraph(out, 0, style.width, &escape(&headline(heap)))?;
    let groups: Vec<&Group> = heap.groups.iter().take(style.top).collect();
    if !groups.is_empty() {
        writeln!(out)?;
        let cell =
            |text: &dyn Fn(&Group) -> String| groups.iter().map(|group| text(group)).collect::<Vec<_>>();
        let table = Columns::default()
            .right(0, "objects", cell(&|group| units::count(group.objects)))
            .right(0, "bytes", cell(&|group| units::bytes(group.bytes as f64)))
            .left(0, "cache", cell(&|group| escape(&name(group)).into_owned()))
            .left(1, "module", cell(&|group| escape(group.module.as_deref().unwrap_or("")).into_owned()));
        writeln!(out, "{}", table.lines(style.width))?;
        for (index, group) in groups.iter().enumerate() {
            writeln!(out)?;
            let title = format!("{}. {} of {}", index + 1, units::count(group.objects), name(group));
            paragraph(out, 0, style.width, &escape(&title))?;
            for line in what(group) {
                paragraph(out, 2, style.width, &escape(&line))?;
            }
        }
        if heap.groups.len() > groups.len() {
            writeln!(out, "\n{} more kinds: --top shows more.", heap.groups.len() - groups.len())?;
        }
    }
    holders(out, heap, style)?;
    if let Some(grown) = &heap.grown {
        write!(out, "\n{}", difference::render(grown, style.width))?;
    }
    if style.verbose {
        for known in &heap.known {
            let line = format!("{} of {}: {}", units::count(known.objects), known.cache, known.why);
            paragraph(out, 0, style.width, &escape(&line))?;
        }
        let scanned = &heap.scanned;
        let line = format!(
            "{} were read, {} of our own memory needed; {} objects were looked at once more, {} of them are unclear",
            units::bytes(scanned.bytes as f64),
            units::bytes(scanned.memory_bytes as f64),
            units::count(scanned.candidates),
            units::count(scanned.unclear)
        );
        paragraph(out, 0, style.width, &line)?;
        if scanned.untold > 0 {
            let line = format!(
                "{} of per-CPU memory were not looked at: pointers to them cannot be told from other numbers",
                units::plural(scanned.untold as usize, "piece")
            );
            paragraph(out, 0, style.width, &line)?;
        }
    }
    for note in &heap.notes {
        paragraph(out, 0, style.width, &format!("note: {}", escape(note)))?;
    }
    Ok(())
}

/// Where objects of a group are from.
pub(super) fn name(group: &Group) -> String {
    let by = group.caller.as_deref().map(|caller| format!(" by {caller}")).unwrap_or_default();
    format!("{}{by}", group.cache)
}

/// What the objects of a group are.
pub(super) fn what(group: &Group) -> Vec<String> {
    let mut lines: Vec<String> = group.content.iter().map(sign).collect();
    if lines.is_empty() {
        lines.push("no function, variable or text that they have in common".to_owned());
    }
    for maker in &group.allocated_by {
        let objects = units::plural(maker.objects as usize, "object");
        lines.push(match maker.by.as_str() {
            "report" => format!("{objects} of them allocated by {}, as the report has it", maker.place),
            _ => format!("{objects} of this cache allocated by {}, as the kernel has noted", maker.place),
        });
    }
    for structure in &group.proof.structures {
        lines.push(format!(
            "parts of {} lost as a whole, {} objects in all, with the root in {}",
            units::plural(structure.structures as usize, "structure"),
            units::count(structure.objects),
            structure.root
        ));
    }
    lines
}

fn sign(sign: &Sign) -> String {
    let module = sign.module.as_deref().map(|module| format!(" [{module}]")).unwrap_or_default();
    let name = match sign.what.as_str() {
        "text" => format!("\"{}\"", sign.name),
        "object" => format!("an object of {}", sign.name),
        "itself" => format!("its own +{}: an empty list, mostly", sign.name),
        _ => format!("{}{module}", sign.name),
    };
    let share = if sign.share >= 0.995 { String::new() } else { format!(", in {:.0} %", sign.share * 100.0) };
    format!("+{:#x} {name}{share}", sign.offset)
}

fn holders(out: &mut String, heap: &Heap, style: &Style) -> fmt::Result {
    if heap.holders.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nWho holds the most")?;
    for holding in &heap.holders {
        paragraph(out, 2, style.width, &escape(&held(holding, style.verbose)))?;
    }
    Ok(())
}

/// A cache, and who holds its objects.
pub(super) fn held(holding: &Holding, verbose: bool) -> String {
    format!(
        "{} in {} of {}: {}",
        units::bytes(holding.bytes as f64),
        units::plural(holding.objects as usize, "object"),
        holding.cache,
        held_by(holding, verbose)
    )
}

/// Who holds a cache's objects, of a sample.
pub(super) fn held_by(holding: &Holding, verbose: bool) -> String {
    let all = holding.sampled.max(1) as f64;
    let told: Vec<String> = holding
        .holders
        .iter()
        .filter(|holder| verbose || holder.objects as f64 >= all * SMALL)
        .take(if verbose { usize::MAX } else { HOLDERS })
        .map(|holder| format!("{:.0} % {}", holder.objects as f64 * 100.0 / all, by(holder)))
        .collect();
    match (told.is_empty(), holding.holders.is_empty()) {
        (false, _) => told.join("; "),
        (true, false) => "held by many, each a little".to_owned(),
        (true, true) => "what holds them was not found".to_owned(),
    }
}

/// What objects hang on, as the rest of a sentence.
fn by(holder: &Holder) -> String {
    match holder.by.as_str() {
        "negative" => "are names of nothing, which the kernel keeps until it needs the memory".to_owned(),
        "file" => format!(
            "hang on what {} ({}) has open: {}",
            holder.comm.as_deref().unwrap_or("a process"),
            holder.pid.unwrap_or_default(),
            holder.chain.join(", ")
        ),
        _ => {
            let each_other = if holder.on_each_other { "one another, and then on " } else { "" };
            format!("hang on {each_other}{}", holder.chain.join(", that on "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heap::model::Amount;

    fn heap(scanned: Scanned) -> Heap {
        Heap { scanned: Scanned { objects: 100, caches: 3, seconds: 2.0, ..scanned }, ..Heap::default() }
    }

    #[test]
    fn nothing_is_ok_that_is_not_known() {
        let said = |scanned: Scanned| headline(&heap(scanned));
        assert!(said(Scanned::default()).starts_with("OK  Something leads to every object"));
        for open in [
            Scanned { unfit_bytes: 1, ..Scanned::default() },
            Scanned { left_out: 1, ..Scanned::default() },
            Scanned { unclear: 1, ..Scanned::default() },
            Scanned { cut_short: Some("the time was up".into()), ..Scanned::default() },
        ] {
            assert!(said(open.clone()).starts_with("UNKNOWN  "), "{open:?}");
        }
        let others = said(Scanned { lost_in_all: 7, ..Scanned::default() });
        assert!(others.contains("7 objects of others"), "{others}");
    }

    #[test]
    fn what_is_lost_and_who_holds_the_rest_is_told() {
        let sign = |what: &str, name: &str, module: Option<&str>| Sign {
            offset: 16,
            what: what.into(),
            name: name.into(),
            module: module.map(Into::into),
            share: 1.0,
        };
        let group = Group {
            cache: "kmalloc-2k".into(),
            module: Some("foo".into()),
            objects: 100,
            bytes: 204_800,
            content: vec![sign("symbol", "foo_ops", Some("foo")), sign("text", "a\u{1b}[31m", None)],
            ..Group::default()
        };
        let chain = Holder {
            objects: 60,
            by: "chain".into(),
            on_each_other: true,
            chain: vec!["sessions [foo]".into()],
            ..Holder::default()
        };
        let file = Holder {
            objects: 30,
            by: "file".into(),
            chain: vec!["inotify".into()],
            pid: Some(1_234),
            comm: Some("watcher".into()),
            ..Holder::default()
        };
        let nobody = Holder { objects: 10, by: "negative".into(), ..Holder::default() };
        let holders = vec![chain, file, nobody];
        let holding = Holding { cache: "kmalloc-64".into(), sampled: 100, holders, ..Holding::default() };
        let heap = Heap {
            lost: Amount { objects: 100, bytes: 204_800 },
            groups: vec![group],
            holders: vec![holding],
            ..heap(Scanned { lost_in_all: 100, ..Scanned::default() })
        };
        for width in [40, 60, 100] {
            let style = Style { colour: false, verbose: false, top: 10, width };
            let text = render(&heap, &style);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for expected in [
                "LOST Nothing leads to 100 objects, 200 KiB, foo's by their content.",
                "+0x10 foo_ops [foo]",
                "60 % hang on one another, and then on sessions [foo]; 30 % hang on what watcher (1234) has open: inotify; \
                 10 % are names of nothing, which the kernel keeps until it needs the memory",
            ] {
                assert!(words.contains(expected), "{expected}: {text}");
            }
            assert!(!text.contains('\u{1b}'));
        }
    }
}
