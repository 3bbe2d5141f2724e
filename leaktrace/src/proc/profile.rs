//! What kernels that account for every allocation say: /proc/allocinfo (6.10 and later), `page_owner`'s stacks (6.8 and
//! later), and SLUB's traces of allocations. Few kernels have any of them switched on.

use std::{collections::BTreeMap, io, path::Path};

use super::{alloc_traces, for_lines};

/// Lines that are read at most.
const LIMIT: usize = 2_000_000;

/// Bytes in use by the place in the kernel's source that allocated them, like `mm/slub.c:2301
/// allocate_slab`, with the module in brackets.
pub type Places = BTreeMap<String, u64>;

/// What the kernel's own accounts have, where it keeps them: by place in its source, else by function, of slab objects and
/// of pages, whichever it notes. `None` where it keeps none, or they may not be read.
pub fn read(root: &Path, page_bytes: u64) -> Option<Places> {
    if let Ok(places) = allocinfo(root)
        && !places.is_empty()
    {
        return Some(places);
    }
    let mut places = alloc_traces::read(root).unwrap_or_default();
    for (place, pages) in page_owners(root).unwrap_or_default() {
        let bytes: &mut u64 = places.entry(place).or_default();
        *bytes = bytes.saturating_add(pages.saturating_mul(page_bytes));
    }
    (!places.is_empty()).then_some(places)
}

/// Reads `/proc/allocinfo` below `root` (`lib/alloc_tag.c`).
///
/// # Errors
/// When it is not there or cannot be read: it is for root only.
pub fn allocinfo(root: &Path) -> io::Result<Places> {
    let mut places = Places::new();
    for_lines(&root.join("proc/allocinfo"), LIMIT, |line| {
        if let Some((place, bytes)) = allocation(line) {
            *places.entry(place).or_default() += bytes;
        }
    })?;
    Ok(places)
}

/// `        4096        1 kernel/foo.c:12 [module] func:bar`; some kernels say more behind it.
fn allocation(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_ascii_whitespace();
    let bytes: u64 = words.next()?.parse().ok()?;
    let _calls: u64 = words.next()?.parse().ok()?;
    let place = words.next()?;
    let mut out = place.to_owned();
    for word in words {
        if let Some(function) = word.strip_prefix("func:") {
            out = format!("{out} {function}");
        } else if word.starts_with('[') && word.ends_with(']') {
            out = format!("{out} {word}");
        }
    }
    (bytes > 0).then_some((out, bytes))
}

/// Functions that stand between `page_owner` and who asked for a page.
const ALLOCATORS: [&str; 16] = [
    "__set_page_owner",
    "set_page_owner",
    "save_stack",
    "post_alloc_hook",
    "prep_new_page",
    "get_page_from_freelist",
    "__alloc_pages",
    "__alloc_frozen_pages",
    "alloc_frozen_pages",
    "alloc_pages",
    "__alloc_pages_slowpath",
    "__folio_alloc",
    "folio_alloc",
    "vma_alloc_folio",
    "get_free_pages",
    "alloc_pages_bulk",
];

/// Pages in use by the function that asked for them, of `page_owner`'s stacks (`mm/page_owner.c`,
/// `stack_print`), which are in debugfs.
///
/// # Errors
/// When they are not there or cannot be read.
pub fn page_owners(root: &Path) -> io::Result<Places> {
    let mut places = Places::new();
    let mut owner: Option<String> = None;
    for_lines(&root.join("sys/kernel/debug/page_owner_stacks/show_stacks"), LIMIT, |line| match stack_line(
        line,
    ) {
        StackLine::Frame(function) => {
            if owner.is_none() && !ALLOCATORS.iter().any(|known| function.starts_with(known)) {
                owner = Some(function);
            }
        }
        StackLine::Pages(pages) => {
            if let Some(owner) = owner.take() {
                *places.entry(owner).or_default() += pages;
            }
        }
        StackLine::Other => {}
    })?;
    Ok(places)
}

/// A line of `page_owner`'s stacks.
#[derive(Debug, PartialEq, Eq)]
enum StackLine {
    Frame(String),
    Pages(u64),
    Other,
}

fn stack_line(line: &str) -> StackLine {
    let line = line.trim();
    if let Some((name, number)) = line.split_once(": ")
        && matches!(name, "nr_base_pages" | "stack_count")
    {
        return number.trim().parse().map_or(StackLine::Other, StackLine::Pages);
    }
    match line.split_once("+0x") {
        Some((function, rest)) if !function.is_empty() && !function.contains(' ') => {
            let module = rest.split_once(' ').map(|(_, module)| module.trim());
            match module.filter(|module| module.starts_with('[')) {
                Some(module) => StackLine::Frame(format!("{function} {module}")),
                None => StackLine::Frame(function.to_owned()),
            }
        }
        _ => StackLine::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn allocations_have_places() {
        assert_eq!(
            allocation("     1310720      320 drivers/leak.c:12 [leakdrv] func:page_leak\n"),
            Some(("drivers/leak.c:12 [leakdrv] page_leak".into(), 1_310_720))
        );
        assert_eq!(
            allocation("        4096        1 mm/slub.c:2301 func:alloc_slab accurate:no"),
            Some(("mm/slub.c:2301 alloc_slab".into(), 4_096))
        );
        assert_eq!(allocation("#     <size>  <calls> <tag info>"), None);
        assert_eq!(allocation("allocinfo - version: 1.0"), None);
    }

    #[test]
    fn stacks_have_owners() {
        assert_eq!(
            stack_line(" page_leak+0x1c/0x40 [leakdrv]\n"),
            StackLine::Frame("page_leak [leakdrv]".into())
        );
        assert_eq!(stack_line("nr_base_pages: 12\n"), StackLine::Pages(12));
        assert_eq!(stack_line(""), StackLine::Other);
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("sys/kernel/debug/page_owner_stacks");
        std::fs::create_dir_all(&directory).unwrap();
        let stack = " get_page_from_freelist+0x1/0x2\n __alloc_pages_noprof+0x1/0x2\n page_leak+0x1c/0x40 [leakdrv]\n run_write+0x1/0x2 [leakdrv]\nnr_base_pages: 12\n\n";
        std::fs::write(directory.join("show_stacks"), stack.repeat(2)).unwrap();
        assert_eq!(page_owners(root.path()).unwrap(), Places::from([("page_leak [leakdrv]".into(), 24)]));
        assert!(allocinfo(root.path()).is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,80}|[0-9]{1,24} [0-9]{1,24} \\PC{0,40}") {
            let _ = (allocation(&line), stack_line(&line));
        }
    }
}
