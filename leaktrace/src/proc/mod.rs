//! Readers of what the kernel says of itself. Each takes a root path, so that fixtures captured
//! elsewhere and the running system read alike.

pub mod cgroups;
pub mod fds;
pub mod fields;
pub mod iomem;
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
    io::{self, Read as _},
    path::Path,
};

/// Reads a file, but no more than `limit` bytes: what the kernel or a fixture has is not ours to trust.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
