//! /proc/kcore: the kernel's memory by its own addresses, as an ELF core file that is made while it is read
//! (`fs/proc/kcore.c`).

use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::FileExt as _,
    },
    path::Path,
};

use object::{
    Endianness,
    elf::{FileHeader64, PT_LOAD, PT_NOTE},
    read::elf::{FileHeader as _, NoteIterator, ProgramHeader as _},
};

/// Bytes that the headers may take: 56 for each range of memory.
const MOST_HEADERS: u64 = 4 << 20;
/// Bytes of notes that are read.
const MOST_NOTES: u64 = 1 << 20;
/// The note with what the kernel says of itself to those who read its dumps (`kernel/vmcore_info.c`).
const VMCOREINFO: &[u8] = b"VMCOREINFO";

/// A range of addresses that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First virtual address.
    pub address: u64,
    /// How many bytes.
    pub bytes: u64,
    /// First physical address, where it is a range of physical memory or the kernel's image.
    pub physical: Option<u64>,
    /// Where it begins in the file.
    offset: u64,
}

/// The file, open.
pub struct Kcore {
    file: File,
    segments: Vec<Segment>,
    endian: Endianness,
    /// Where the notes are in the file, and how many bytes.
    notes: Option<(u64, u64)>,
}

impl Kcore {
    /// Opens `/proc/kcore` below `root`, and reads what it has.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses it (`CAP_SYS_RAWIO`, lockdown), or it is no core file.
    pub fn open(root: &Path) -> Result<Self> {
        let file = File::open(root.join("proc/kcore"))?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        let broken = |_| Error::new(ErrorKind::InvalidData, "it is no ELF core file");
        let parsed = FileHeader64::<Endianness>::parse(&header[..]).map_err(broken)?;
        let endian = parsed.endian().map_err(broken)?;
        let table = parsed.e_phoff(endian);
        let bytes = u64::from(parsed.e_phnum(endian)) * u64::from(parsed.e_phentsize(endian));
        if table.saturating_add(bytes) > MOST_HEADERS {
            return Err(Error::new(ErrorKind::InvalidData, "it has too many segments"));
        }
        let mut headers = vec![0; (table + bytes) as usize];
        file.read_exact_at(&mut headers, 0)?;
        let parsed = FileHeader64::<Endianness>::parse(&headers[..]).map_err(broken)?;
        let mut segments: Vec<Segment> = parsed
            .program_headers(endian, &headers[..])
            .map_err(broken)?
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr(endian),
                bytes: segment.p_memsz(endian),
                // All ones where it says nothing; 0 was said of everything until 4.19.
                physical: Some(segment.p_paddr(endian)).filter(|&physical| physical != u64::MAX),
                offset: segment.p_offset(endian),
            })
            .collect();
        segments.sort_unstable_by_key(|segment| segment.address);
        let notes = parsed
            .program_headers(endian, &headers[..])
            .map_err(broken)?
            .iter()
            .find(|segment| segment.p_type(endian) == PT_NOTE)
            .map(|segment| (segment.p_offset(endian), segment.p_filesz(endian).min(MOST_NOTES)));
        Ok(Self { file, segments, endian, notes })
    }

    /// What the kernel says of itself to those who read its dumps: lines like `NUMBER(VA_BITS)=48`. Empty where it
    /// says nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn vmcoreinfo(&self) -> Result<String> {
        let Some((offset, bytes)) = self.notes else { return Ok(String::new()) };
        let mut notes = vec![0; bytes as usize];
        self.file.read_exact_at(&mut notes, offset)?;
        let Ok(mut found) = NoteIterator::<FileHeader64<Endianness>>::new(self.endian, 4, &notes) else {
            return Ok(String::new());
        };
        while let Ok(Some(note)) = found.next() {
            if note.name() == VMCOREINFO {
                return Ok(String::from_utf8_lossy(note.desc()).into_owned());
            }
        }
        Ok(String::new())
    }

    /// The number of the open file.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// What can be read, by address.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Fills a buffer with what lies from an address on. What is mapped nowhere reads as zeros.
    ///
    /// # Errors
    /// When the address is in no segment, or the kernel refuses.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<()> {
        let after = self.segments.partition_point(|segment| segment.address <= address);
        let inside = |segment: &&Segment| address - segment.address < segment.bytes;
        // One may lie within another: on arm64 the kernel's image is in the range of vmalloc.
        let segment = self.segments[..after].iter().rev().find(inside).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("kernel address {address:#x} is in no segment of /proc/kcore"),
            )
        })?;
        self.file.read_exact_at(buffer, segment.offset.wrapping_add(address - segment.address))
    }

    /// Fills a buffer with words.
    ///
    /// # Errors
    /// As [`Kcore::read`].
    pub fn words(&self, address: u64, buffer: &mut [u64]) -> Result<()> {
        // SAFETY: any bytes are a u64, the buffer's bytes are as many as it has, and borrowed only here.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), size_of_val(buffer)) };
        self.read(address, bytes)
    }

    /// The word at an address.
    ///
    /// # Errors
    /// As [`Kcore::read`].
    pub fn word(&self, address: u64) -> Result<u64> {
        let mut word = [0];
        self.words(address, &mut word)?;
        Ok(word[0])
    }

    /// The 32-bit number at an address.
    ///
    /// # Errors
    /// As [`Kcore::read`].
    pub fn number(&self, address: u64) -> Result<u32> {
        let mut number = [0; 4];
        self.read(address, &mut number)?;
        Ok(u32::from_ne_bytes(number))
    }

    /// The text at an address, of so many bytes at most.
    ///
    /// # Errors
    /// As [`Kcore::read`].
    pub fn text(&self, address: u64, limit: usize) -> Result<String> {
        let mut bytes = vec![0; limit];
        self.read(address, &mut bytes)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(limit);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A core file with one segment of physical memory and one without, in which the third one lies.
    fn core() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(4_u16.to_le_bytes());
        file.extend(62_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for word in [0_u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 3, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for (offset, address, physical, bytes) in [
            (0x200_u64, 0xffff_8880_0000_1000_u64, 0x1000_u64, 16_u64),
            (0x210, 0xffff_c900_0000_0000, u64::MAX, 24),
            (0x218, 0xffff_c900_0000_0008, 0x2000, 8),
        ] {
            file.extend(1_u32.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for word in [offset, address, physical, bytes, bytes, 4_096] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(0x200, 0);
        for word in [1_u64, 2, 0x6c65_6168, 3, 4] {
            file.extend(word.to_le_bytes());
        }
        file
    }

    fn open(bytes: &[u8]) -> Result<Kcore> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join("proc"))?;
        std::fs::write(root.path().join("proc/kcore"), bytes)?;
        Kcore::open(root.path())
    }

    #[test]
    fn reads_by_address() {
        let core = open(&core()).unwrap();
        assert_eq!(core.segments().len(), 3);
        assert_eq!(core.segments()[0].physical, Some(0x1000));
        assert_eq!(core.segments()[1].physical, None);
        assert_eq!(core.word(0xffff_8880_0000_1008).unwrap(), 2);
        assert_eq!(core.text(0xffff_c900_0000_0000, 8).unwrap(), "hael");
        assert_eq!(core.number(0xffff_8880_0000_1000).unwrap(), 1);
        // In the segment within the other one, and behind it.
        assert_eq!(core.word(0xffff_c900_0000_0008).unwrap(), 3);
        assert_eq!(core.word(0xffff_c900_0000_0010).unwrap(), 4);
        for absent in [0, 0xffff_8880_0000_1010, 0xffff_8880_0000_0fff, u64::MAX] {
            assert_eq!(core.word(absent).unwrap_err().kind(), ErrorKind::NotFound, "{absent:x}");
        }
    }

    #[test]
    fn what_is_no_core_file_is_refused() {
        assert!(open(b"").is_err() && open(&[0; 4_096]).is_err());
        let mut many = core();
        many[56] = 0xff;
        many[57] = 0xff;
        assert!(open(&many).is_err());
    }

    proptest! {
        #[test]
        fn damaged_headers_are_survived(at in 0_usize..232, byte: u8, address: u64) {
            let mut file = core();
            file[at] = byte;
            if let Ok(core) = open(&file) {
                let _ = core.word(address);
            }
        }
    }
}
