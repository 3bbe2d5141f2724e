//! /proc/zoneinfo: free pages that CPUs keep on lists of their own, which `MemFree` does not count.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Bytes that are read at most: a CPU has some 150 in each zone.
const LIMIT: u64 = 64 << 20;

/// Pages on the lists of all CPUs and zones (`mm/vmstat.c`, `zoneinfo_show_print`).
///
/// # Errors
/// When the file cannot be read.
pub fn free_on_cpu_lists(root: &Path) -> Result<u64> {
    let path = root.join("proc/zoneinfo");
    let bytes =
        super::read_bounded(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> u64 {
    String::from_utf8_lossy(bytes)
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:")?.trim().parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_lists_are_added_up() {
        let text = b"Node 0, zone   Normal\n  pages free     3\n  pagesets\n    cpu: 0\n              count:    340\n              high:     6000\n    cpu: 1\n              count: 2\n";
        assert_eq!(parse(text), 342);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
