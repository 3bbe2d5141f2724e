//! The frames of a file: those that are whole, and the gaps between them, however it was cut off or damaged.

use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;

use super::{LARGEST_BLOCK, LARGEST_FRAME, MAGIC, format::Block};

/// The first bytes of what zstd has packed: by them the next frame is found again.
const PACKED: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Bytes before them: length and sum.
const HEAD: u64 = 8;
/// Bytes that are read, summed up or unpacked in vain before the rest of a file is given up, and what each place counts for at
/// least where there is no frame after all: a file that was made for that could be searched for hours.
const MOST_IN_VAIN: u64 = 1 << 30;
const EACH_IN_VAIN: u64 = 4 << 10;
/// How far it is searched whether a file that does not begin like a recording is one.
const SEARCHED: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;

/// What comes next in a file.
pub(super) enum Part {
    Block(Box<Block>),
    Gap(Hole),
}

/// Bytes of no whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    /// The first of them.
    pub(super) at: u64,
    /// How many.
    pub(super) bytes: u64,
}

/// A frame that was found whole, and where it ends.
struct Whole {
    block: Box<Block>,
    end: u64,
}

/// The frames of a file, one after the other.
pub(super) struct Frames {
    file: File,
    length: u64,
    at: u64,
    in_vain: u64,
    /// Found already, beyond a gap.
    next: Option<Whole>,
    /// To be told before anything else.
    first: Option<Hole>,
    /// Bytes of what was whole.
    pub(super) read: u64,
    /// Whether the file begins like a recording.
    pub(super) begins: bool,
}

/// Whether these are a recording's first bytes, of any version, or were but for one of them.
fn begins_like_one(bytes: [u8; MAGIC.len()]) -> bool {
    let names = MAGIC.len() - 1;
    let same = bytes[..names].iter().zip(&MAGIC).filter(|(byte, of_magic)| byte == of_magic).count();
    same + 1 >= names
}

/// Whether a file is a recording of any version, also where its beginning is damaged.
///
/// # Errors
/// When it cannot be read.
pub fn is_recording(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut start = [0; MAGIC.len()];
    let mut read = 0;
    // What is no file has no positions, and may be no more than a few bytes at a time.
    while read < start.len() {
        match file.read(&mut start[read..])? {
            0 => return Ok(false),
            more => read += more,
        }
    }
    if begins_like_one(start) {
        return Ok(true);
    }
    // JSON is a report.
    let metadata = file.metadata()?;
    if start[0] == b'{' || start[0].is_ascii_whitespace() || !metadata.is_file() {
        return Ok(false);
    }
    Ok(Frames::new(file, metadata.len().min(SEARCHED), 0).search(0).is_some())
}

impl Frames {
    fn new(file: File, length: u64, at: u64) -> Self {
        Self { file, length, at, in_vain: 0, next: None, first: None, read: at, begins: false }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be read, or is of another version.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read the recording {name}"))?;
        let length = file.metadata().with_context(|| format!("cannot read the recording {name}"))?.len();
        let mut start = [0; MAGIC.len()];
        file.read_exact_at(&mut start, 0).with_context(|| format!("{name} is no recording"))?;
        if !begins_like_one(start) {
            return Ok(Self::new(file, length, 0));
        }
        let after = MAGIC.len() as u64;
        let mut frames = Self { begins: true, ..Self::new(file, length, after) };
        if start != MAGIC {
            // The header has the version as well: then the byte here is damaged, and not of a later leaktrace.
            let header = frames.frame(after).and_then(|whole| whole.block.header);
            let ours = header.is_some_and(|header| header.version <= MAGIC[7].into());
            if start[7] != MAGIC[7] && !ours {
                bail!("{name} is a recording of version {}, and this leaktrace reads {}", start[7], MAGIC[7]);
            }
            frames.first = Some(Hole { at: 0, bytes: after });
            frames.read = 0;
        }
        Ok(frames)
    }

    /// The frame that begins there, if there is a whole one.
    fn frame(&mut self, at: u64) -> Option<Whole> {
        let mut head = [0; HEAD as usize + PACKED.len()];
        self.file.read_exact_at(&mut head, at).ok()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, sum) = (word(0), word(4));
        let end = at + HEAD + u64::from(length);
        if length > LARGEST_FRAME || end > self.length || !head.ends_with(&PACKED) {
            return None;
        }
        let mut packed = vec![0; length as usize];
        self.file.read_exact_at(&mut packed, at + HEAD).ok()?;
        if crc32fast::hash(&packed) != sum {
            self.in_vain += u64::from(length);
            return None;
        }
        let mut bytes = Vec::new();
        let unpacked = zstd::stream::read::Decoder::new(packed.as_slice())
            .and_then(|decoder| decoder.take(LARGEST_BLOCK + 1).read_to_end(&mut bytes));
        let block = match unpacked {
            Ok(_) if bytes.len() as u64 <= LARGEST_BLOCK => {
                Block::decode(bytes.as_slice()).ok().map(Box::new)
            }
            _ => None,
        };
        if block.is_none() {
            self.in_vain += u64::from(length) + bytes.len() as u64;
        }
        block.map(|block| Whole { block, end })
    }

    /// The first whole frame from there on, and where it begins.
    fn search(&mut self, from: u64) -> Option<(u64, Whole)> {
        let mut chunk = vec![0; CHUNK];
        let mut at = from + HEAD;
        while self.in_vain <= MOST_IN_VAIN {
            let room = usize::try_from(self.length.saturating_sub(at)).unwrap_or(CHUNK).min(CHUNK);
            let read = self.file.read_at(&mut chunk[..room], at).ok()?;
            if read < PACKED.len() {
                return None;
            }
            let mut places = chunk[..read].windows(PACKED.len()).enumerate();
            while let Some((place, _)) = places.find(|(_, bytes)| *bytes == PACKED) {
                let start = at + place as u64 - HEAD;
                if let Some(whole) = self.frame(start) {
                    return Some((start, whole));
                }
                self.in_vain += EACH_IN_VAIN;
                if self.in_vain > MOST_IN_VAIN {
                    return None;
                }
            }
            at += (read - (PACKED.len() - 1)) as u64;
        }
        None
    }
}

impl Iterator for Frames {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if let Some(hole) = self.first.take() {
            return Some(Part::Gap(hole));
        }
        let at = self.at;
        if at >= self.length {
            return None;
        }
        if let Some(whole) = self.next.take().or_else(|| self.frame(at)) {
            self.read += whole.end - at;
            self.at = whole.end;
            return Some(Part::Block(whole.block));
        }
        let end = self.search(at + 1).map_or(self.length, |(start, whole)| {
            self.next = Some(whole);
            start
        });
        self.at = end;
        Some(Part::Gap(Hole { at, bytes: end - at }))
    }
}
