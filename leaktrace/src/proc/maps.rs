//! /proc/PID/smaps, maps and `smaps_rollup`: what a process's memory consists of.
//!
//! The procfs crate gives up on a whole file for one path that is no UTF-8, and such a process is just as
//! suspect.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::{fields::Fields, for_lines};

/// Lines that are read at most.
const LIMIT: usize = 4_000_000;
/// Characters of a mapping's name that are kept.
const NAME: usize = 200;

/// Mappings of one name, added up; in kB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Mappings.
    pub mappings: u64,
    /// Address space.
    pub size_kb: u64,
    /// Resident.
    pub rss_kb: u64,
    /// Resident, shared pages by parts.
    pub pss_kb: u64,
    /// Anonymous part of what is resident.
    pub anon_kb: u64,
    /// Swapped out.
    pub swap_kb: u64,
}

/// Segments by name: a file's path, `[heap]`, `[stack]`, `anonymous` ...
pub type Segments = BTreeMap<String, Segment>;

/// Reads `/proc/PID/smaps` below `root`.
///
/// # Errors
/// When it cannot be read: it is for the owner and root.
pub fn segments(root: &Path, pid: u32) -> io::Result<Segments> {
    let mut segments = Segments::new();
    let mut current = String::new();
    for_lines(&path(root, pid, "smaps"), LIMIT, |line| {
        if let Some(mapping) = mapping(line) {
            current = mapping.name.chars().take(NAME).collect();
            let segment = segments.entry(current.clone()).or_default();
            segment.mappings += 1;
            segment.size_kb += mapping.bytes / 1_024;
            return;
        }
        let Some(segment) = segments.get_mut(&current) else { return };
        let Some((name, number)) = line.split_once(':') else { return };
        let number =
            || number.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        match name {
            "Rss" => segment.rss_kb += number(),
            "Pss" => segment.pss_kb += number(),
            "Anonymous" => segment.anon_kb += number(),
            "Swap" => segment.swap_kb += number(),
            _ => {}
        }
    })?;
    Ok(segments)
}

/// What the mappings tell of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Mappings; the kernel allows `vm.max_map_count` of them.
    pub mappings: u64,
    /// Names of mapped files, without directories.
    pub files: BTreeSet<String>,
    /// Whether there is memory where Go's runtime puts its heap.
    pub has_go_arena: bool,
}

/// Go's heap begins here on 64-bit machines (Go's `runtime/malloc.go`).
const GO_ARENA: u64 = 0xc0_0000_0000;
const GO_ARENA_END: u64 = 0xe0_0000_0000;

/// Reads `/proc/PID/maps` below `root`.
///
/// # Errors
/// When it cannot be read: it is for the owner and root.
pub fn program(root: &Path, pid: u32) -> io::Result<Program> {
    let mut program = Program::default();
    for_lines(&path(root, pid, "maps"), LIMIT, |line| {
        let Some(mapping) = mapping(line) else { return };
        program.mappings += 1;
        program.has_go_arena |=
            (GO_ARENA..GO_ARENA_END).contains(&mapping.start) && !mapping.name.starts_with('/');
        if mapping.name.starts_with('/')
            && let Some(file) = mapping.name.rsplit('/').next()
            && !program.files.contains(file)
        {
            program.files.insert(file.chars().take(NAME).collect());
        }
    })?;
    Ok(program)
}

/// Proportional set size in kB by `/proc/PID/smaps_rollup`.
///
/// # Errors
/// When it cannot be read.
pub fn pss_kb(root: &Path, pid: u32) -> io::Result<u64> {
    let fields = Fields::parse(&super::read_bounded(&path(root, pid, "smaps_rollup"), 1 << 16)?);
    fields.get("Pss").ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn path(root: &Path, pid: u32, file: &str) -> PathBuf {
    root.join("proc").join(pid.to_string()).join(file)
}

/// A mapping's first line.
struct Mapping<'a> {
    start: u64,
    bytes: u64,
    name: &'a str,
}

/// `55d0-55e0 rw-p 00000000 00:00 0    [heap]`; the name goes to the end of the line.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut word = || {
        let text = rest.trim_start();
        let end = text.find(' ').unwrap_or(text.len());
        rest = &text[end..];
        &text[..end]
    };
    let (start, end) = word().split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let permissions = word();
    if permissions.len() < 4 || !permissions.bytes().all(|byte| b"rwxsp-".contains(&byte)) {
        return None;
    }
    let (_offset, _device, _inode) = (word(), word(), word());
    let name = rest.trim_start();
    let name = match name {
        "" if permissions.ends_with('s') => "shared anonymous",
        "" => "anonymous",
        // Stacks of threads and what a program has named: it may choose a name for each.
        name if name.starts_with("[anon:") => "anonymous, named",
        name => name,
    };
    Some(Mapping { start, bytes: end.checked_sub(start)?, name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mappings_have_names() {
        let name = |line: &str| mapping(line).map(|mapping| (mapping.name.to_owned(), mapping.bytes));
        assert_eq!(
            name("55d0000-55d2000 rw-p 00000000 00:00 0                          [heap]"),
            Some(("[heap]".into(), 8_192))
        );
        assert_eq!(name("c000000000-c000400000 rw-p 00000000 00:00 0 "), Some(("anonymous".into(), 4 << 20)));
        assert_eq!(
            name("1000-2000 r-xp 00000000 fe:00 12  /a path/with blanks (deleted)").unwrap().0,
            "/a path/with blanks (deleted)"
        );
        assert_eq!(name("1000-2000 rw-s 0 00:01 3 ").unwrap().0, "shared anonymous");
        assert_eq!(name("Rss:  12 kB"), None);
        assert_eq!(name("VmFlags: rd wr"), None);
    }

    #[test]
    fn this_process_is_read() {
        let (root, me) = (Path::new("/"), std::process::id());
        let segments = segments(root, me).unwrap();
        let rss: u64 = segments.values().map(|segment| segment.rss_kb).sum();
        assert!(segments.contains_key("[stack]") && rss > 100, "{segments:?}");
        let program = program(root, me).unwrap();
        assert!(program.files.iter().any(|file| file.starts_with("libc.so")), "{program:?}");
        assert!(program.mappings > 5 && !program.has_go_arena);
        assert!(pss_kb(root, me).unwrap() > 100);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "([0-9a-f]{1,17}-[0-9a-f]{1,17} [rwxps-]{0,5} )?\\PC{0,80}") {
            let _ = mapping(&line);
        }
    }
}
