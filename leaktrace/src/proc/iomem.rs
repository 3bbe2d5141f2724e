//! /proc/iomem: where the kernel's own data lies in physical memory.

use std::{fs, path::Path};

/// Physical ranges of the kernel image's data and bss, first and last address (`kernel/resource.c`,
/// `arch/x86/kernel/setup.c`); none where the file hides addresses or is not there.
pub fn kernel_data(root: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(root.join("proc/iomem")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (range, name) = line.trim().split_once(" : ")?;
    if !matches!(name, "Kernel data" | "Kernel bss") {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    (first != 0 && last > first).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_data_and_bss() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        let text = "00001000-0009fbff : System RAM\n  01000000-02209987 : Kernel code\n  03000000-0327c0ff : Kernel data\n  03b34000-03c57fff : Kernel bss\n";
        fs::write(root.path().join("proc/iomem"), text).unwrap();
        assert_eq!(kernel_data(root.path()), [(0x300_0000, 0x327_c0ff), (0x3b3_4000, 0x3c5_7fff)]);
        assert_eq!(parse("  00000000-00000000 : Kernel data"), None);
        assert!(kernel_data(Path::new("/nonexistent")).is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "[ 0-9a-f:-]{0,40}(Kernel data|Kernel bss)?") {
            let _ = parse(&line);
        }
    }
}
