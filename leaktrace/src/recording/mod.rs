//! Recordings: a file that grows while a trace goes on, and that any other machine can read.
//!
//! A file is [`MAGIC`] and then frames: the length of the packed block and its CRC-32, both little-endian `u32`s, and the
//! block, packed by zstd. Blocks are Protocol Buffers ([`mod@format`]). Whatever was written is readable: where a frame was cut off or
//! damaged, the next whole one is looked for by zstd's first bytes and its sum, and the gap is told. A file that reaches half of
//! what is allowed becomes `FILE.1`, and another one is begun.

mod format;
mod frames;
mod gaps;
mod reader;
mod ticks;
mod writer;

use std::path::{Path, PathBuf};

pub use self::{
    format::Site,
    frames::is_recording,
    reader::read,
    writer::{Recorder, Start},
};

/// The first bytes of a recording; the last one is its version.
const MAGIC: [u8; 8] = *b"LKTRACE\x01";
/// Bytes of a packed block, and of one that is unpacked, at most.
const LARGEST_FRAME: u32 = 64 << 20;
const LARGEST_BLOCK: u64 = 256 << 20;

/// The file that was full before another one was begun.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests;
