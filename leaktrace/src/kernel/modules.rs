//! Loaded modules and where their code is.

use std::{fs, path::Path};

use rustc_hash::{FxHashMap, FxHashSet};

use super::symbols::Symbols;
use crate::analysis::blame::Uses;

/// No function of a module is longer, so its text ends by then behind its last symbol.
const LONGEST_FUNCTION: u64 = 1 << 20;
const PAGE: u64 = 4_096;
/// How the sections of a module's text are called (`scripts/module.lds.S`, `include/linux/init.h`).
const TEXT: [&str; 4] = [".text", ".exit.text", ".noinstr.text", ".ref.text"];

/// The text of a loaded module: first address, and the one behind the last; `None` when it is not
/// loaded or its addresses are hidden.
///
/// /proc/modules has where the text begins. It ends before the module's next section of another
/// kind (that of its initialisation is given back, and becomes others'), before the next module, or
/// at the end of the page of its last function.
pub fn text(root: &Path, name: &str, symbols: &Symbols) -> Option<(u64, u64)> {
    let modules = fs::read_to_string(root.join("proc/modules")).ok()?;
    let bases: Vec<(&str, u64)> = modules
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let module = fields.next()?;
            let base = u64::from_str_radix(fields.nth(4)?.trim_start_matches("0x"), 16).ok()?;
            Some((module, base))
        })
        .collect();
    let base =
        bases.iter().find(|(module, _)| *module == name).map(|&(_, base)| base).filter(|&base| base != 0)?;
    let sections = fs::read_dir(root.join("sys/module").join(name).join("sections")).ok();
    let others = sections.into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        if TEXT.iter().any(|text| name.to_string_lossy().starts_with(text)) {
            return None;
        }
        let text = fs::read_to_string(entry.path()).ok()?;
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    });
    let behind = |address: &u64| *address > base;
    let next = bases.iter().map(|&(_, base)| base).filter(behind).min().unwrap_or(u64::MAX);
    let section = others.filter(behind).min();
    let last = symbols.last_of(name, base, section.unwrap_or(next).min(next)).unwrap_or(base);
    let page_end = (last / PAGE + 1) * PAGE;
    let end = section.filter(|section| section - last <= LONGEST_FUNCTION).unwrap_or(page_end).min(next);
    Some((base, end))
}

/// Which modules use which, as /proc/modules has had it (`kernel/module/procfs.c`): also those that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(FxHashMap<String, FxHashSet<String>>);

impl Users {
    /// Adds what the text of /proc/modules says: name, size, references, and users, each followed by a comma.
    pub fn add(&mut self, modules: &str) {
        for line in modules.lines() {
            let mut fields = line.split(' ');
            let (Some(name), Some(users)) = (fields.next(), fields.nth(2)) else { continue };
            let users = users.split(',').filter(|user| !matches!(*user, "" | "-" | "[permanent]"));
            for user in users {
                self.0.entry(name.to_owned()).or_default().insert(user.to_owned());
            }
        }
    }
}

impl Uses for Users {
    fn uses(&self, user: &str, library: &str) -> bool {
        self.0.get(library).is_some_and(|users| users.contains(user))
    }

    fn is_library(&self, module: &str) -> bool {
        self.0.contains_key(module)
    }
}

/// What a module's sections say of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sections {
    /// It is not loaded.
    Gone,
    /// Where each section of data begins, each with as many bytes as the whole module has: what lies behind its end is
    /// not there or another's.
    At(Vec<(u64, u64)>),
    /// They are not to be seen.
    Hidden {
        /// Bytes of the whole module.
        size: u64,
    },
}

/// Where the data of a module is. Sections with `.data` and `.bss` in their names are data.
pub fn data(root: &Path, name: &str) -> Sections {
    let modules = fs::read_to_string(root.join("proc/modules")).unwrap_or_default();
    let size = modules
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse::<u64>().ok());
    let Some(size) = size else { return Sections::Gone };
    let Ok(sections) = fs::read_dir(root.join("sys/module").join(name).join("sections")) else {
        return Sections::Hidden { size };
    };
    let mut starts = Vec::new();
    for entry in sections.flatten() {
        let section = entry.file_name();
        let section = section.to_string_lossy();
        if !section.starts_with(".data") && !section.starts_with(".bss") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        match u64::from_str_radix(text.trim().trim_start_matches("0x"), 16) {
            Ok(start) if start != 0 => starts.push((start, start + size)),
            // Others than root are shown zeroes, or nothing (`kernel/module/sysfs.c`).
            _ => return Sections::Hidden { size },
        }
    }
    Sections::At(starts)
}

/// A module's name as the kernel has it: people write the file's, with dashes and `.ko`.
pub fn plain_name(name: &str) -> String {
    let name = name.strip_suffix(".ko").unwrap_or(name);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_modules() {
        let mut users = Users::default();
        users.add(
            "can 45056 2 can_isotp,can_raw, Live 0x0\ncan_isotp 32768 1 - Live 0x0 (E)\nxfs 9 1 - Live 0x0\n",
        );
        users.add("fat 9 1 vfat,[permanent], Live 0x0\nshort 3\n");
        assert!(users.uses("can_isotp", "can") && users.uses("can_raw", "can") && users.uses("vfat", "fat"));
        assert!(!users.uses("can", "can_isotp") && !users.uses("[permanent]", "fat"));
        assert_eq!(
            ["can", "fat", "xfs", "short"].map(|name| users.is_library(name)),
            [true, true, false, false]
        );
    }

    #[test]
    fn text_ends_before_what_comes_next() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/modules",
            "drv 16384 0 - Live 0xffffffffc0100000 (OE)\nother 16384 0 - Live 0xffffffffc0200000\nhidden 1 0 - Live 0x0000000000000000\n",
        );
        write(
            "proc/kallsyms",
            "ffffffff81000000 T _stext\nffffffffc0100010 t a\t[drv]\nffffffffc0100510 t b\t[drv]\nffffffffc0300000 t init\t[drv]\n",
        );
        let symbols = Symbols::read(root.path()).unwrap();
        assert_eq!(text(root.path(), "drv", &symbols), Some((0xffff_ffff_c010_0000, 0xffff_ffff_c010_1000)));
        write("sys/module/drv/sections/.text", "0xffffffffc0100000\n");
        write("sys/module/drv/sections/.rodata", "0xffffffffc0100800\n");
        write("sys/module/drv/sections/.text.unlikely", "0xffffffffc0100600\n");
        write("sys/module/drv/sections/.init.text", "0xffffffffc0110000\n");
        assert_eq!(text(root.path(), "drv", &symbols), Some((0xffff_ffff_c010_0000, 0xffff_ffff_c010_0800)));
        write("sys/module/drv/sections/.bss", "0xffffffffc0102000\n");
        assert_eq!(
            data(root.path(), "drv"),
            Sections::At(vec![(0xffff_ffff_c010_2000, 0xffff_ffff_c010_6000)])
        );
        write("sys/module/drv/sections/.data", "0x0000000000000000\n");
        assert_eq!(data(root.path(), "drv"), Sections::Hidden { size: 16_384 });
        assert_eq!(data(root.path(), "other"), Sections::Hidden { size: 16_384 });
        assert_eq!(data(root.path(), "absent"), Sections::Gone);
        assert_eq!(text(root.path(), "absent", &symbols), None);
        assert_eq!(text(root.path(), "hidden", &symbols), None);
        assert_eq!(plain_name("snd-hda-intel.ko"), "snd_hda_intel");
    }
}
