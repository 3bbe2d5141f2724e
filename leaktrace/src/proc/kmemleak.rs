//! /sys/kernel/debug/kmemleak, and copies of it from any kernel since 4.x.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read as _},
};

/// Objects that are kept of a file, different backtraces, frames of each, and characters of a line.
const OBJECTS: usize = 2_000_000;
const BACKTRACES: usize = 20_000;
const FRAMES: usize = 16;
const LINE: u64 = 4_096;

/// Per-CPU areas are no larger, and no kernel, 32-bit ones included, has memory below.
const LARGEST_OFFSET: u64 = 0x4000_0000;

/// A function on a backtrace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Its name; an address where the file has none.
    pub symbol: String,
    /// Bytes from its begin.
    pub offset: u64,
    /// The module that it is in.
    pub module: Option<String>,
}

/// An unreferenced object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unreferenced {
    /// Its address; of per-CPU objects that of the first CPU's, as the kernel prints it.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
    /// Whether it is a per-CPU object.
    pub percpu: bool,
    /// Its age, where the kernel says it (up to 6.9 or so).
    pub age_s: Option<f64>,
    /// Index of its backtrace; `None` for none.
    pub backtrace: Option<u32>,
}

/// What a file has.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Unreferenced objects.
    pub objects: Vec<Unreferenced>,
    /// Their backtraces, the innermost frame first.
    pub backtraces: Vec<Vec<Frame>>,
    /// Lines that were not understood.
    pub unknown_lines: u64,
    /// Whether the file ends in the middle of an object.
    pub cut_short: bool,
    /// Objects beyond those that are kept.
    pub dropped: u64,
    /// Backtraces beyond those that are kept.
    pub backtraces_dropped: u64,
}

impl Listing {
    /// The backtrace of an object.
    pub fn backtrace(&self, object: &Unreferenced) -> &[Frame] {
        object.backtrace.and_then(|index| self.backtraces.get(index as usize)).map_or(&[], Vec::as_slice)
    }

    /// Reads a file, in memory that does not grow with nonsense in it.
    ///
    /// # Errors
    /// As reading has.
    pub fn read(mut file: impl BufRead) -> io::Result<Self> {
        let mut reading = Reading::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut file).take(LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let complete = line.ends_with(b"\n");
            reading.line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            reading.complete = complete;
        }
        Ok(reading.end())
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    listing: Listing,
    known: HashMap<Vec<Frame>, u32>,
    current: Option<Unreferenced>,
    frames: Vec<Frame>,
    /// Which part of an object the lines are of.
    part: Part,
    complete: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Outside,
    Head,
    Dump,
    Backtrace,
}

impl Reading {
    fn line(&mut self, line: &str) {
        // dmesg has a time before it, and the kernel's own words.
        if let Some(at) = line.find("unreferenced object ") {
            match object(&line[at..]) {
                Some(object) => {
                    self.finish();
                    self.current = Some(object);
                    self.part = Part::Head;
                }
                None => self.listing.unknown_lines += 1,
            }
            return;
        }
        let text = line.trim_start();
        if text.is_empty() {
            return;
        }
        let Some(current) = &mut self.current else {
            self.listing.unknown_lines += 1;
            return;
        };
        if text.starts_with("comm \"") && self.part == Part::Head {
            current.age_s = age(text);
        } else if text.starts_with("hex dump") {
            self.part = Part::Dump;
        } else if text.starts_with("backtrace") {
            self.part = Part::Backtrace;
        } else if self.part == Part::Backtrace {
            match frame(text) {
                Some(frame) if self.frames.len() < FRAMES => self.frames.push(frame),
                Some(_) => {}
                None => self.listing.unknown_lines += 1,
            }
        } else if self.part != Part::Dump {
            // A name may have line breaks in it.
            if text.contains("jiffies ") {
                current.age_s = age(text);
            } else {
                self.listing.unknown_lines += 1;
            }
        }
    }

    /// Keeps the object that was read.
    fn finish(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        let Some(mut object) = self.current.take() else { return };
        if self.listing.objects.len() >= OBJECTS {
            self.listing.dropped += 1;
            return;
        }
        if !frames.is_empty() {
            object.backtrace = self.known.get(&frames).copied();
            if object.backtrace.is_none() {
                if self.known.len() < BACKTRACES {
                    let index = self.known.len() as u32;
                    self.listing.backtraces.push(frames.clone());
                    self.known.insert(frames, index);
                    object.backtrace = Some(index);
                } else {
                    self.listing.backtraces_dropped += 1;
                }
            }
        }
        self.listing.objects.push(object);
    }

    fn end(mut self) -> Listing {
        // An object without its backtrace is one that the file was cut off in.
        let started = self.current.is_some();
        self.listing.cut_short =
            started && (self.part != Part::Backtrace || self.frames.is_empty() || !self.complete);
        self.finish();
        self.listing
    }
}

/// `unreferenced object 0xffff888103d7a700 (size 256):`, `unreferenced object (percpu) 0x607f... (size 8):`.
fn object(text: &str) -> Option<Unreferenced> {
    let mut words = text.strip_prefix("unreferenced object ")?.split_ascii_whitespace();
    let mut address = words.next()?;
    let mut percpu = address == "(percpu)";
    if percpu {
        address = words.next()?;
    }
    let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
    // Before 6.15 or so without that word, but by what they have for an address: an offset.
    percpu |= address < LARGEST_OFFSET;
    if words.next()? != "(size" {
        return None;
    }
    let bytes = words.next()?.trim_end_matches(':').trim_end_matches(')').parse().ok()?;
    Some(Unreferenced { address, bytes, percpu, age_s: None, backtrace: None })
}

/// `... jiffies 4294894652 (age 12.300s)`.
fn age(text: &str) -> Option<f64> {
    text.rsplit_once("(age ")?.1.trim_end_matches(')').trim_end_matches('s').parse().ok()
}

/// `[<ffffffff8107c8d8>] func+0x12/0x34 [module]`, `func+0x12/0x34`, or only an address.
fn frame(text: &str) -> Option<Frame> {
    let text = text.trim();
    let (address, rest) = match text.strip_prefix("[<").and_then(|text| text.split_once(">]")) {
        Some((address, rest)) => (Some(address), rest.trim()),
        None => (None, text),
    };
    let mut words = rest.split_ascii_whitespace();
    let Some(function) = words.next() else {
        return Some(Frame { symbol: format!("0x{}", address?), ..Frame::default() });
    };
    let module =
        words.next().and_then(|word| word.strip_prefix('[')?.strip_suffix(']')).map(ToOwned::to_owned);
    let (symbol, offset) = match function.split_once("+0x") {
        Some((symbol, rest)) => (symbol, u64::from_str_radix(rest.split('/').next()?, 16).ok()?),
        None if function.starts_with("0x") => (function, 0),
        None => return None,
    };
    (!symbol.is_empty()).then(|| Frame { symbol: symbol.to_owned(), offset, module })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Listing {
        Listing::read(text.as_bytes()).unwrap()
    }

    /// As Linux 4.4 wrote it.
    const OLD: &str = "unreferenced object 0xffff88003d0d5000 (size 1024):
  comm \"in\"s\", pid 812, jiffies 4294894652 (age 134.300s)
  hex dump (first 32 bytes):
    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  kkkkkkkkkkkkkkkk
    6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b a5  backtrace:kkkkk.
  backtrace:
    [<ffffffff817ac8d8>] kmemleak_alloc+0x28/0x50
    [<ffffffffa0002010>] leak_init+0x10/0x1000 [leaky]
    [<ffffffffffffffff>] 0xffffffffffffffff
";
    /// As 7.x does.
    const NEW: &str = "unreferenced object (percpu) 0x607fc2a0 (size 8):
  comm \"swapper/0\", pid 1, jiffies 4294667296
  hex dump (first 8 bytes on cpu 1):
    00 00 00 00 00 00 00 00                          ........
  backtrace (crc 8b4d4a1c):
    pcpu_alloc_noprof+0x51b/0x8f0
    leak_init+0x3a/0xff0 [leaky]
";

    #[test]
    fn old_and_new_forms_are_read() {
        let old = read(OLD);
        assert_eq!(old.objects.len(), 1);
        let object = old.objects[0];
        assert_eq!((object.address, object.bytes, object.age_s), (0xffff_8800_3d0d_5000, 1_024, Some(134.3)));
        let frames = old.backtrace(&object);
        assert_eq!(frames.len(), 3);
        assert_eq!((frames[1].symbol.as_str(), frames[1].offset), ("leak_init", 0x10));
        assert_eq!(frames[1].module.as_deref(), Some("leaky"));
        assert!(!old.cut_short && old.unknown_lines == 0);
        let new = read(NEW);
        let object = new.objects[0];
        assert!(object.percpu && object.address == 0x607f_c2a0 && object.age_s.is_none());
        assert_eq!(new.backtrace(&object)[0].symbol, "pcpu_alloc_noprof");
    }

    #[test]
    fn equal_backtraces_are_kept_once() {
        let both = read(&format!("{OLD}{NEW}{OLD}"));
        assert_eq!((both.objects.len(), both.backtraces.len()), (3, 2));
        assert_eq!(both.objects[0].backtrace, both.objects[2].backtrace);
    }

    #[test]
    fn malformed_and_cut_files_are_survived() {
        for end in 0..OLD.len() {
            let listing = read(&OLD[..end]);
            assert!(listing.objects.len() <= 1);
            // A file that ends after a whole frame looks like a whole one.
            let after_a_frame = OLD[..end].ends_with('\n') && OLD[..end].contains("  [<");
            if listing.objects.len() == 1 {
                assert_eq!(listing.cut_short, !after_a_frame, "{end}");
            }
        }
        let odd =
            read("what\nunreferenced object here (size 3):\nunreferenced object 0xc0000010 (size -1):\n");
        assert_eq!((odd.objects.len(), odd.unknown_lines), (0, 3));
        // From dmesg, and with a line break in the name.
        let dmesg = read(
            "[   12.1] unreferenced object 0xc0000010 (size 3):\n  comm \"a\nb\", pid 1, jiffies 1 (age 2.000s)\n  backtrace:\n    f+0x1/0x2\n",
        );
        assert_eq!((dmesg.objects[0].age_s, dmesg.backtrace(&dmesg.objects[0]).len()), (Some(2.0), 1));
    }

    #[test]
    fn a_hundred_megabytes_take_bounded_memory() {
        /// Text that is made while it is read.
        struct Endless {
            number: u64,
            left: usize,
            line: Vec<u8>,
        }
        impl io::Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.line.is_empty() && self.left > 0 {
                    self.number += 1;
                    // Each has another backtrace.
                    let text = OLD.replace("leak_init+0x10", &format!("f{}+0x10", self.number));
                    self.left = self.left.saturating_sub(text.len());
                    self.line = text.into_bytes();
                }
                let length = buffer.len().min(self.line.len());
                buffer[..length].copy_from_slice(&self.line[..length]);
                self.line.drain(..length);
                Ok(length)
            }
        }
        let endless = Endless { number: 0, left: 100 << 20, line: Vec::new() };
        let listing = Listing::read(io::BufReader::new(endless)).unwrap();
        assert!(listing.objects.len() > 150_000, "{}", listing.objects.len());
        assert_eq!(listing.backtraces.len(), BACKTRACES);
        assert_eq!(listing.backtraces_dropped as usize, listing.objects.len() - BACKTRACES);
        // One line without an end.
        let flat = io::repeat(b'x').take(20 << 20);
        assert!(Listing::read(io::BufReader::new(flat)).unwrap().objects.is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(lines in prop::collection::vec("\\PC{0,60}|unreferenced object 0x[0-9a-f]{0,20} \\(size [0-9]{0,25}\\):|  backtrace:|    [a-z]{0,4}\\+0x[0-9a-f]{0,20}/0x1", 0..12)) {
            let listing = read(&lines.join("\n"));
            prop_assert!(listing.objects.iter().all(|object| listing.backtrace(object).len() <= FRAMES));
        }
    }
}
