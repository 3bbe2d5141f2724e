//! /proc/kpageflags: what the kernel uses each page for.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result};

/// Bits of `include/uapi/linux/kernel-page-flags.h`.
pub const LRU: u64 = 1 << 5;
/// A part of a slab.
pub const SLAB: u64 = 1 << 7;
/// Free, on a list of its zone.
pub const BUDDY: u64 = 1 << 10;
/// Mapped by a process.
pub const MMAP: u64 = 1 << 11;
/// Anonymous memory.
pub const ANON: u64 = 1 << 12;
/// The first page of a compound one.
pub const COMPOUND_HEAD: u64 = 1 << 15;
/// One of the others.
pub const COMPOUND_TAIL: u64 = 1 << 16;
/// Of hugetlbfs.
pub const HUGE: u64 = 1 << 17;
/// Broken.
pub const HWPOISON: u64 = 1 << 19;
/// There is no page.
pub const NOPAGE: u64 = 1 << 20;
/// Offline, like what a balloon has.
pub const OFFLINE: u64 = 1 << 23;
/// A page table.
pub const PGTABLE: u64 = 1 << 26;
/// Nobody's to give away: the kernel's image, for one. Told to the privileged (`include/linux/kernel-page-flags.h`).
pub const RESERVED: u64 = 1 << 32;

/// Whether a page is of a process or of the page cache, and so has no pointers of the kernel's: on the list of those, or on
/// its way to it, whether it is mapped yet, still, or not any more. That it is anonymous is told by a word that slabs use for
/// something else.
pub fn is_users(flags: u64) -> bool {
    flags & (LRU | HUGE) != 0 || flags & (ANON | SLAB) == ANON
}

/// Pages that are no driver's.
const NOT_A_DRIVERS: u64 = LRU | SLAB | MMAP | ANON | PGTABLE | BUDDY;

/// Pages read at a time.
const CHUNK: u64 = 4_096;

/// The file, open.
pub struct PageFlags(File);

impl PageFlags {
    /// Opens `/proc/kpageflags` below `root`.
    ///
    /// # Errors
    /// When it cannot be read: it is for root, and depends on `CONFIG_PROC_PAGE_MONITOR`.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("proc/kpageflags");
        File::open(&path).map(Self).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Fills a buffer with the flags of page frames from one on; 0 behind the last page.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self, first: u64, flags: &mut [u64]) -> Result<()> {
        // SAFETY: any bytes are a u64, the buffer's bytes are as many as it has, and borrowed only here.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(flags.as_mut_ptr().cast::<u8>(), size_of_val(flags)) };
        let mut read = 0;
        while read < bytes.len() {
            match self
                .0
                .read_at(&mut bytes[read..], first * 8 + read as u64)
                .context("cannot read /proc/kpageflags")?
            {
                0 => break,
                more => read += more,
            }
        }
        bytes[read..].fill(0);
        Ok(())
    }
}

/// Of some page frame numbers, sorted here, those whose pages are not a driver's.
///
/// # Errors
/// As [`PageFlags::open`].
pub fn not_a_drivers(root: &Path, frames: &mut [u64]) -> Result<Vec<u64>> {
    frames.sort_unstable();
    let file = PageFlags::open(root)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; CHUNK as usize];
    let mut rest = &*frames;
    while let Some(&first) = rest.first() {
        let near = rest.partition_point(|&frame| frame - first < CHUNK);
        let (chunk, others) = rest.split_at(near);
        let flags = &mut buffer[..(chunk[near - 1] - first + 1) as usize];
        file.read(first, flags)?;
        found.extend(chunk.iter().filter(|&&frame| flags[(frame - first) as usize] & NOT_A_DRIVERS != 0));
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
        flags[3] = SLAB;
        flags[4] = 1 << 15;
        flags[9_000] = ANON | 1 << 3;
        flags[19_999] = BUDDY;
        let bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_ne_bytes()).collect();
        std::fs::write(root.path().join("proc/kpageflags"), bytes).unwrap();
        let mut frames = [19_999, 3, 4, 5, 9_000, 9_001, 1 << 40];
        assert_eq!(not_a_drivers(root.path(), &mut frames).unwrap(), [3, 9_000, 19_999]);
        assert!(not_a_drivers(&root.path().join("absent"), &mut [1]).is_err());
    }
}
