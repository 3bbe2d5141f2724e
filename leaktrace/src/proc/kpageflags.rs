//! /proc/kpageflags: what the kernel uses each page for.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result};

/// Bits of `include/uapi/linux/kernel-page-flags.h`, of pages that are no driver's: on an LRU list,
/// slab, mapped, anonymous, page tables, and free ones.
const NOT_A_DRIVERS: u64 = 1 << LRU | 1 << SLAB | 1 << MMAP | 1 << ANON | 1 << PGTABLE | 1 << BUDDY;
const LRU: u32 = 5;
const SLAB: u32 = 7;
const BUDDY: u32 = 10;
const MMAP: u32 = 11;
const ANON: u32 = 12;
const PGTABLE: u32 = 26;

/// Pages read at a time.
const CHUNK: u64 = 4_096;

/// Of some page frame numbers, sorted here, those whose pages are not a driver's.
///
/// # Errors
/// When `/proc/kpageflags` below `root` cannot be read: it is for root, and depends on `CONFIG_PROC_PAGE_MONITOR`.
pub fn not_a_drivers(root: &Path, frames: &mut [u64]) -> Result<Vec<u64>> {
    frames.sort_unstable();
    let path = root.join("proc/kpageflags");
    let unreadable = || format!("cannot read {}", path.display());
    let file = File::open(&path).with_context(unreadable)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; CHUNK as usize * 8];
    let mut rest = &*frames;
    while let Some(&first) = rest.first() {
        let near = rest.partition_point(|&frame| frame - first < CHUNK);
        let (chunk, others) = rest.split_at(near);
        let pages = chunk[near - 1] - first + 1;
        let wanted = &mut buffer[..pages as usize * 8];
        let mut read = 0;
        while read < wanted.len() {
            match file.read_at(&mut wanted[read..], first * 8 + read as u64).with_context(unreadable)? {
                // Behind the last page: what was said of it is not known.
                0 => break,
                bytes => read += bytes,
            }
        }
        wanted[read..].fill(0);
        found.extend(chunk.iter().filter(|&&frame| {
            let at = (frame - first) as usize * 8;
            let flags = u64::from_ne_bytes(wanted[at..at + 8].try_into().expect("8 bytes"));
            flags & NOT_A_DRIVERS != 0
        }));
        rest = others;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let mut flags = vec![0_u64; 20_000];
        flags[3] = 1 << SLAB;
        flags[4] = 1 << 15;
        flags[9_000] = 1 << ANON | 1 << 3;
        flags[19_999] = 1 << BUDDY;
        let bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_ne_bytes()).collect();
        std::fs::write(root.path().join("proc/kpageflags"), bytes).unwrap();
        let mut frames = [19_999, 3, 4, 5, 9_000, 9_001, 1 << 40];
        assert_eq!(not_a_drivers(root.path(), &mut frames).unwrap(), [3, 9_000, 19_999]);
        assert!(not_a_drivers(&root.path().join("absent"), &mut [1]).is_err());
    }
}
