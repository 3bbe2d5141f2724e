//! /proc/vmallocinfo: who has areas of the kernel's virtual address space.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};

use super::for_lines;

/// Areas that are read at most.
const LIMIT: usize = 2_000_000;
/// Words that are no part of a caller's name (`mm/vmalloc.c`, `vmalloc_info_show`).
const FLAGS: [&str; 9] =
    ["ioremap", "vmalloc", "vmap", "user", "dma-coherent", "vpages", "sparse", "unpurged", "vm_area"];

/// The areas of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// How many.
    pub areas: u64,
    /// Pages that `vmalloc` allocated for them.
    pub pages: u64,
    /// Bytes of address space.
    pub bytes: u64,
}

/// Areas by caller: `function` or `function [module]`.
pub type Callers = BTreeMap<String, Areas>;

/// Reads `/proc/vmallocinfo` below `root`.
///
/// # Errors
/// When it cannot be read: it is for root only.
pub fn read(root: &Path) -> Result<Callers> {
    let path = root.join("proc/vmallocinfo");
    let mut callers = Callers::new();
    for_lines(&path, LIMIT, |line| {
        if let Some((caller, area)) = parse(line) {
            let sum = callers.entry(caller).or_default();
            sum.areas += 1;
            sum.pages += area.pages;
            sum.bytes += area.bytes;
        }
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(callers)
}

/// Of a line the caller, without its offset, and what it has.
fn parse(line: &str) -> Option<(String, Areas)> {
    let mut words = line.split_ascii_whitespace();
    let (first, last) = words.next()?.split_once('-')?;
    if !first.starts_with("0x") || !last.starts_with("0x") {
        return None;
    }
    let bytes = words.next()?.parse().ok()?;
    let (mut function, mut module) = (None, None);
    let (mut pages, mut allocated) = (0, false);
    for (place, word) in words.enumerate() {
        if let Some(number) = word.strip_prefix("pages=") {
            pages = number.parse().unwrap_or(0);
        } else if FLAGS.contains(&word) {
            allocated |= word == "vmalloc";
        } else if place == 0 && !word.contains('=') {
            function = word.split('+').next();
        } else if place == 1 && word.starts_with('[') && word.ends_with(']') {
            module = Some(word);
        }
    }
    let caller = match (function, module) {
        (Some(function), Some(module)) => format!("{function} {module}"),
        (Some(function), None) => function.to_owned(),
        (None, _) => "unknown".to_owned(),
    };
    Some((caller, Areas { areas: 1, pages: if allocated { pages } else { 0 }, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn callers_are_told_apart() {
        let line = "0x00000000f9e15dfa-0x00000000a5aa346b   20480 leak_area+0xca/0x100 [leakdrv] pages=4 vmalloc vpages N0=4\n";
        assert_eq!(
            parse(line),
            Some(("leak_area [leakdrv]".into(), Areas { areas: 1, pages: 4, bytes: 20_480 }))
        );
        let mapped = "0x1-0x2    8192 acpi_os_map_iomem+0x1bc/0x1e0 phys=0x00000000000a0000 ioremap";
        assert_eq!(
            parse(mapped).unwrap(),
            ("acpi_os_map_iomem".into(), Areas { areas: 1, pages: 0, bytes: 8_192 })
        );
        assert_eq!(parse("0x1-0x2    8192 unpurged vm_area").unwrap().0, "unknown");
        assert_eq!(parse("nothing"), None);
    }

    #[test]
    fn reads_the_running_kernel() {
        let callers = read(Path::new("/")).unwrap();
        assert!(callers.values().map(|areas| areas.pages).sum::<u64>() > 0, "{callers:?}");
        assert!(!callers.keys().any(|caller| caller.contains("+0x")), "{callers:?}");
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "(0x[0-9a-f]{1,8}-0x[0-9a-f]{1,8} [0-9]{1,25} )?\\PC{0,80}") {
            let _ = parse(&line);
        }
    }
}
