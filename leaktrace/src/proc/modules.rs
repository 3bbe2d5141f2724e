//! /proc/modules: what is loaded, and how large it is.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Bytes that are read at most.
const LIMIT: u64 = 4 << 20;

/// A loaded module (`kernel/module/procfs.c`, `m_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Bytes of its code and data.
    pub bytes: u64,
    /// Letters of `/proc/modules`, like `OE` for one from outside of the kernel's tree, unsigned.
    pub taints: String,
}

/// Loaded modules; none on a kernel without.
///
/// # Errors
/// When the file is there but cannot be read.
pub fn read(root: &Path) -> Result<Vec<Module>> {
    let path = root.join("proc/modules");
    match super::read_bounded(&path, LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().filter_map(parse).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn parse(line: &str) -> Option<Module> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let taints = words.last().and_then(|word| word.strip_prefix('(')?.strip_suffix(')')).unwrap_or_default();
    Some(Module {
        name: (*words.first()?).to_owned(),
        bytes: words.get(1)?.parse().ok()?,
        taints: taints.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn modules_are_read() {
        let module = parse("leakdrv 28672 0 - Live 0x0000000000000000 (OE)").unwrap();
        assert_eq!((module.name.as_str(), module.bytes, module.taints.as_str()), ("leakdrv", 28_672, "OE"));
        assert_eq!(parse("ext4 1000 1 - Live 0x0").unwrap().taints, "");
        assert_eq!(parse("odd"), None);
        assert!(read(Path::new("/nonexistent")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,80}") {
            let _ = parse(&line);
        }
    }
}
