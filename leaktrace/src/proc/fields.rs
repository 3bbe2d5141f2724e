//! Files of named numbers, one a line: /proc/meminfo, /proc/vmstat, `smaps_rollup`, `memory.stat` of a cgroup.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Bytes of such a file that are read at most: the largest has some 10 KiB.
const LIMIT: u64 = 1 << 20;

/// Named numbers in the order of their lines, in the unit that the file has for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    lines: Vec<(String, u64)>,
    /// Lines that are no name and number, as they were.
    pub unknown: Vec<String>,
}

impl Fields {
    /// Reads a file below `root`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(root: &Path, file: &str) -> Result<Self> {
        let path = root.join(file);
        let bytes =
            super::read_bounded(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&bytes))
    }

    /// Takes lines like `MemFree:  12 kB` and `nr_free_pages 12`.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut fields = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            match field(line) {
                Some((name, number)) => fields.lines.push((name.to_owned(), number)),
                None if line.trim().is_empty() => {}
                None => fields.unknown.push(line.to_owned()),
            }
        }
        fields
    }

    /// The number of a name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.lines.iter().find(|(other, _)| other == name).map(|&(_, number)| number)
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lines.iter().map(|(name, number)| (name.as_str(), *number))
    }
}

/// A line's name, without its colon, and the number behind it.
fn field(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (name, number) = (words.next()?, words.next()?);
    let name = name.strip_suffix(':').unwrap_or(name);
    let unit = words.next();
    let complete = matches!(unit, None | Some("kB")) && words.next().is_none();
    (complete && !name.is_empty()).then_some(())?;
    Some((name, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_the_rest_is_kept() {
        let fields = Fields::parse(
            b"MemTotal:  24684092 kB\nHugePages_Total:   3\nnr_free_pages 12\nweird line of text\nX: -1\n",
        );
        assert_eq!(fields.get("MemTotal"), Some(24_684_092));
        assert_eq!(fields.get("HugePages_Total"), Some(3));
        assert_eq!(fields.get("nr_free_pages"), Some(12));
        assert_eq!(fields.get("MemFree"), None);
        assert_eq!(fields.unknown, ["weird line of text", "X: -1"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let fields = Fields::parse(&bytes);
            let lines = String::from_utf8_lossy(&bytes).lines().filter(|line| !line.trim().is_empty()).count();
            prop_assert_eq!(fields.iter().count() + fields.unknown.len(), lines);
        }
    }
}
