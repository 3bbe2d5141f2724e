//! Where the data of the kernel and its modules is: what may hold an object that nothing traced holds.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::{
    machine::page_bytes,
    modules::{self, Sections},
    symbols::Kallsyms,
};
use crate::proc::{
    iomem,
    kpageflags::{PageFlags, RESERVED},
};

/// Begin and end of the image's data and bss (`include/asm-generic/sections.h`).
const IMAGE: [(&str, &str); 2] = [("_sdata", "_edata"), ("__bss_start", "__bss_stop")];
const PAGE: u64 = 4_096;

/// A range of addresses: the first, and the one behind the last.
type Range = (u64, u64);

/// Where data is; what only the privileged are shown was opened or read at the start.
pub struct DataPlaces {
    /// Of the image, by physical addresses.
    physical: Vec<Range>,
    /// The same by virtual ones, where /proc/iomem hides them.
    mapped: Vec<Range>,
    kallsyms: Option<Kallsyms>,
}

impl DataPlaces {
    /// Finds out what is where below `root`.
    pub fn read(root: &Path) -> Self {
        let flags = PageFlags::open(root).ok();
        let physical: Vec<Range> = iomem::kernel_data(root)
            .into_iter()
            .flat_map(|(first, last)| kept(flags.as_ref(), (first, last + 1)))
            .collect();
        let kallsyms = Kallsyms::open(root).ok();
        let mapped = match &kallsyms {
            Some(kallsyms) if physical.is_empty() => image(kallsyms),
            _ => Vec::new(),
        };
        Self { physical, mapped, kallsyms }
    }

    /// Data of the kernel's image, where all of physical memory is mapped from `direct_map` on.
    ///
    /// # Errors
    /// When neither /proc/iomem nor /proc/kallsyms says where it is.
    pub fn image(&self, direct_map: u64) -> Result<Vec<Range>> {
        if self.physical.is_empty() && self.mapped.is_empty() {
            bail!("/proc/iomem and /proc/kallsyms hide where the kernel's data is");
        }
        let physical = self
            .physical
            .iter()
            .map(|(start, end)| (direct_map.wrapping_add(*start), direct_map.wrapping_add(*end)));
        Ok(physical.chain(self.mapped.iter().copied()).collect())
    }

    /// Data of a loaded module, in ranges that may reach beyond it; none of a module that is gone.
    ///
    /// # Errors
    /// When it is loaded, and the kernel hides where its data is.
    pub fn of_module(&self, root: &Path, name: &str) -> Result<Vec<Range>> {
        let hidden = || format!("the kernel hides where the data of module {name} is");
        match modules::data(root, name) {
            Sections::Gone => Ok(Vec::new()),
            Sections::At(ranges) => Ok(ranges),
            Sections::Hidden { size } => {
                let kallsyms = self.kallsyms.as_ref().with_context(hidden)?;
                let symbols = kallsyms.data()?;
                let ranges = spread(symbols.addresses_of(name), size);
                if ranges.is_empty() {
                    bail!(hidden());
                }
                Ok(ranges)
            }
        }
    }
}

/// Of a range of the image's data what the kernel has kept: parts that it needs no more are given to the page allocator at
/// the start (`mem_encrypt_free_decrypted_mem` of `arch/x86/mm/mem_encrypt_amd.c`), and are anybody's pages then, like those
/// of our own list of survivors. All of it where that is not known.
fn kept(flags: Option<&PageFlags>, (start, end): Range) -> Vec<Range> {
    let page = page_bytes();
    let first = start / page;
    let mut found = vec![0; (end.div_ceil(page) - first) as usize];
    if flags.is_none_or(|flags| flags.read(first, &mut found).is_err()) {
        return vec![(start, end)];
    }
    let reserved = |flags: &u64| flags & RESERVED != 0;
    // A kernel that does not say so of its variables says nothing of the rest.
    if found.iter().filter(|flags| reserved(flags)).count() * 2 < found.len() {
        return vec![(start, end)];
    }
    let mut at = start;
    let mut ranges = Vec::new();
    for run in found.chunk_by(|a, b| reserved(a) == reserved(b)) {
        let behind = (at / page * page + run.len() as u64 * page).min(end);
        if reserved(&run[0]) {
            ranges.push((at, behind));
        }
        at = behind;
    }
    ranges
}

fn image(kallsyms: &Kallsyms) -> Vec<Range> {
    let Ok(symbols) = kallsyms.data() else { return Vec::new() };
    let range = |(begin, end)| Some((symbols.address_of(begin)?, symbols.address_of(end)?));
    IMAGE.into_iter().filter_map(range).filter(|(start, end)| start < end).collect()
}

/// Where a module with so many bytes may have the data in which these symbols are: how long the last one is, is not told,
/// and since 6.4 its kinds of data lie apart (`kernel/module/main.c`).
fn spread(symbols: impl Iterator<Item = u64>, size: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for address in symbols {
        match ranges.last_mut() {
            Some((_, end)) if address < *end => *end = (*end).max(address + PAGE),
            _ => ranges.push((address / PAGE * PAGE, address / PAGE * PAGE + size.max(PAGE))),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const KALLSYMS: &str = "ffffffff82000000 D _sdata\nffffffff82100000 D _edata\nffffffff82200000 B __bss_start\n\
        ffffffff82300000 B __bss_stop\nffffffffc0100010 d list\t[drv]\nffffffffc0100100 b table\t[drv]\nffffffffc0200020 d late\t[drv]\n";

    #[test]
    fn hidden_places_are_had_from_symbols() {
        let root = root(&[
            ("proc/iomem", "00000000-00000000 : Kernel data\n"),
            ("proc/kallsyms", KALLSYMS),
            ("proc/modules", "drv 16384 0 - Live 0x0000000000000000\n"),
            ("sys/module/drv/sections/.data", "0x0000000000000000\n"),
        ]);
        let places = DataPlaces::read(root.path());
        assert_eq!(
            places.image(1).unwrap(),
            [(0xffff_ffff_8200_0000, 0xffff_ffff_8210_0000), (0xffff_ffff_8220_0000, 0xffff_ffff_8230_0000)]
        );
        assert_eq!(
            places.of_module(root.path(), "drv").unwrap(),
            [(0xffff_ffff_c010_0000, 0xffff_ffff_c010_4000), (0xffff_ffff_c020_0000, 0xffff_ffff_c020_4000)]
        );
        assert!(places.of_module(root.path(), "gone").unwrap().is_empty());
    }

    #[test]
    fn what_is_seen_comes_first() {
        let root = root(&[
            ("proc/iomem", "  00003000-00003fff : Kernel data\n"),
            ("proc/kallsyms", KALLSYMS),
            ("proc/modules", "drv 16384 0 - Live 0xffffffffc0100000\n"),
            ("sys/module/drv/sections/.data", "0xffffffffc0101000\n"),
        ]);
        let places = DataPlaces::read(root.path());
        assert_eq!(places.image(0x1_0000).unwrap(), [(0x1_3000, 0x1_4000)]);
        assert_eq!(
            places.of_module(root.path(), "drv").unwrap(),
            [(0xffff_ffff_c010_1000, 0xffff_ffff_c010_5000)]
        );
    }

    #[test]
    fn what_is_hidden_everywhere_is_an_error() {
        let root = root(&[
            ("proc/kallsyms", "0000000000000000 D _sdata\n0000000000000000 d list\t[drv]\n"),
            ("proc/modules", "drv 16384 0 - Live 0x0000000000000000\n"),
        ]);
        let places = DataPlaces::read(root.path());
        assert!(places.image(0).is_err());
        assert!(places.of_module(root.path(), "drv").is_err());
    }

    #[test]
    fn what_the_image_gave_away_is_no_data() {
        let root = root(&[("proc/iomem", "  00003010-0000781f : Kernel data\n")]);
        let places = |flags: [u64; 8]| {
            let bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_ne_bytes()).collect();
            fs::write(root.path().join("proc/kpageflags"), bytes).unwrap();
            DataPlaces::read(root.path()).image(0).unwrap()
        };
        let all = [(0x3010, 0x7820)];
        assert_eq!(places([RESERVED; 8]), all);
        assert_eq!(
            places([0, 0, 0, RESERVED, RESERVED, 1 << 12, RESERVED, RESERVED | 1]),
            [(0x3010, 0x5000), (0x6000, 0x7820)]
        );
        // Nothing is said of most pages.
        assert_eq!(places([0, 0, 0, RESERVED, 0, 0, 0, RESERVED]), all);
        fs::remove_file(root.path().join("proc/kpageflags")).unwrap();
        assert_eq!(DataPlaces::read(root.path()).image(0).unwrap(), all);
    }
}
