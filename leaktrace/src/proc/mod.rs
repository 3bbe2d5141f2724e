//! Readers of what the kernel says of itself. Each takes a root path, so that fixtures captured
//! elsewhere and the running system read alike.

pub mod alloc_traces;
pub mod cgroups;
pub mod fds;
pub mod fields;
pub mod iomem;
pub mod kcore;
pub mod kin;
pub mod kmemleak;
pub mod kpageflags;
pub mod maps;
pub mod modules;
pub mod mounts;
pub mod profile;
pub mod slab;
pub mod sockets;
pub mod status;
pub mod swap;
pub mod vmallocinfo;
pub mod zoneinfo;

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};

/// Reads a file, but no more than `limit` bytes: what the kernel or a fixture has is not ours to trust.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Takes a file's lines, without their ends, but no more than `limit` of them. What is no UTF-8 is replaced.
fn for_lines(path: &Path, limit: usize, mut take: impl FnMut(&str)) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut line = Vec::new();
    for _ in 0..limit {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        take(String::from_utf8_lossy(&line).trim_end_matches('\n'));
    }
    Ok(())
}
