//! Swap areas, and memory that compressed ones take.

use std::{fs, path::Path};

/// Bytes of each file.
const LIMIT: u64 = 1 << 16;

/// A swap area (`mm/swapfile.c`, `swap_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its device or file.
    pub path: String,
    /// Its size in kB.
    pub size_kb: u64,
    /// kB in use.
    pub used_kb: u64,
}

/// A zram device in use (`drivers/block/zram/zram_drv.c`, `mm_stat_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zram {
    /// Its name, like `zram0`.
    pub name: String,
    /// kB that are stored, before compression.
    pub stored_kb: u64,
    /// kB of memory that this takes.
    pub memory_kb: u64,
}

/// Swap areas; none where the file cannot be read.
pub fn areas(root: &Path) -> Vec<Area> {
    let bytes = super::read_bounded(&root.join("proc/swaps"), LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().skip(1).filter_map(parse_area).collect()
}

fn parse_area(line: &str) -> Option<Area> {
    // The path may have blanks in it, escaped; a deleted file's has a word behind it.
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [path, .., size, used, _priority] = words.as_slice() else { return None };
    Some(Area { path: (*path).to_owned(), size_kb: size.parse().ok()?, used_kb: used.parse().ok()? })
}

/// zram devices that store something.
pub fn zram(root: &Path) -> Vec<Zram> {
    let entries = fs::read_dir(root.join("sys/block")).into_iter().flatten().flatten();
    let mut devices: Vec<Zram> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("zram"))?;
            let bytes = super::read_bounded(&entry.path().join("mm_stat"), LIMIT).ok()?;
            parse_zram(&name, &String::from_utf8_lossy(&bytes))
        })
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

fn parse_zram(name: &str, text: &str) -> Option<Zram> {
    let mut bytes = text.split_ascii_whitespace().map_while(|word| word.parse::<u64>().ok());
    let (stored, memory) = (bytes.next()?, bytes.nth(1)?);
    (memory > 0).then(|| Zram { name: name.to_owned(), stored_kb: stored / 1_024, memory_kb: memory / 1_024 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn areas_and_devices_are_read() {
        assert_eq!(
            parse_area("/dev/zram0                              partition\t1048572\t\t4096\t\t-2"),
            Some(Area { path: "/dev/zram0".into(), size_kb: 1_048_572, used_kb: 4_096 })
        );
        assert_eq!(parse_area("/x file"), None);
        assert_eq!(
            parse_zram("zram0", "  4096000     1000  2048000        0  2048000  3 0 0 0\n"),
            Some(Zram { name: "zram0".into(), stored_kb: 4_000, memory_kb: 2_000 })
        );
        assert_eq!(parse_zram("zram0", "0 0 0 0 0 0 0 0 0"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}|[0-9 ]{0,60}") {
            let _ = (parse_area(&text), parse_zram("zram0", &text));
        }
    }
}
