//! Where arm64 has its memory, by the kernel's own addresses.
//!
//! It depends on how the kernel was built, on the CPU and on the place of physical memory, and no symbol says it. What does
//! is the note for those who read dumps, which /proc/kcore has as well (`arch/arm64/kernel/vmcore_info.c`).

use std::path::Path;

use anyhow::{Context as _, Result};

use super::symbols::Symbols;
use crate::{analysis::linkage::Span, proc::kcore::Kcore};

/// Where the kernel's memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// What is added to a physical address to have that in the direct map.
    pub direct_map: u64,
    /// Where the `struct page` of the physical address 0 is or would be.
    pub first_page: u64,
    /// Where memory may be, and no device: the direct map, the `struct page`s, the image and modules.
    pub readable: Vec<Span>,
}

impl Map {
    /// Reads it, for pages of so many bytes and a `struct page` of so many.
    ///
    /// # Errors
    /// When /proc/kcore cannot be read, or does not say.
    pub fn of_arm64(root: &Path, symbols: &Symbols, page: u64, page_struct: u64) -> Result<Self> {
        let what = "where this kernel maps physical memory is not known";
        let info = Kcore::open(root)
            .and_then(|core| core.vmcoreinfo())
            .with_context(|| format!("{what}: /proc/kcore cannot be read"))?;
        let image = symbols.data_address("_text").zip(symbols.data_address("_end"));
        arm64(&info, image, page, page_struct)
            .with_context(|| format!("{what}: /proc/kcore does not say, as it does since Linux 6.1"))
    }
}

/// `arch/arm64/include/asm/memory.h`, `pgtable.h`.
fn arm64(info: &str, image: Option<(u64, u64)>, page: u64, page_struct: u64) -> Option<Map> {
    let number = |name| number(info, name);
    let bits = u32::try_from(number("VA_BITS")?).ok().filter(|bits| (36..=52).contains(bits))?;
    // PAGE_OFFSET, VMEMMAP_START and memstart_addr, which may be negative.
    let linear = u64::MAX << bits;
    let pages = number("VMEMMAP_START")?;
    let start = number("PHYS_OFFSET")?;
    let modules = (number("MODULES_VADDR")?, number("MODULES_END")?);
    let frames = start.cast_signed() / page.cast_signed();
    let mut readable =
        vec![Span { start: linear, end: modules.0 }, Span { start: modules.0, end: modules.1 }];
    readable.push(Span { start: pages, end: number("VMEMMAP_END").unwrap_or(pages) });
    readable.extend(image.map(|(start, end)| Span { start, end }));
    readable.iter().all(|span| span.start >= linear && span.start <= span.end).then(|| Map {
        direct_map: linear.wrapping_sub(start),
        first_page: pages.wrapping_sub(frames.wrapping_mul(page_struct.cast_signed()).cast_unsigned()),
        readable,
    })
}

/// How many bits of an address arm64's page tables tell apart: the rest is what the register says (`TCR_EL1`).
pub fn address_bits(info: &str) -> Option<u32> {
    let rest = u32::try_from(number(info, "TCR_EL1_T1SZ")?).ok()?;
    64_u32.checked_sub(rest).filter(|bits| (36..=52).contains(bits))
}

/// A number of the note.
fn number(info: &str, name: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| {
        line.strip_prefix("NUMBER(")?.strip_prefix(name)?.strip_prefix(")=").map(str::trim)
    })?;
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Debian's 6.12, made for 52 bits, in a guest with 48 of them whose memory begins at 1 GiB: what is added to
    /// physical addresses is below zero, and random.
    const INFO: &str = include_str!("../../fixtures/arm64-6.12/vmcoreinfo");

    #[test]
    fn memory_of_a_real_kernel() {
        let image = (0xffff_d850_a220_0000, 0xffff_d850_a443_0000);
        let map = arm64(INFO, Some(image), 4_096, 64).unwrap();
        let address = map.direct_map.wrapping_add(0x4000_0000);
        assert_eq!(address, 0xffff_2592_4000_0000);
        assert!(map.readable[0].contains(address), "{map:#x?}");
        let page = map.first_page.wrapping_add((0x4000_0000 / 4_096) * 64);
        assert!(map.readable[2].contains(page), "{map:#x?} {page:#x}");
        assert!(map.readable[3].contains(image.0));
        assert_eq!(address_bits(INFO), Some(48));
        assert_eq!(address_bits("NUMBER(TCR_EL1_T1SZ)=0x70\n"), None);
    }

    #[test]
    fn what_is_not_said_is_not_guessed() {
        for missing in ["VA_BITS", "VMEMMAP_START", "PHYS_OFFSET", "MODULES_VADDR"] {
            let info: String = INFO
                .lines()
                .filter(|line| !line.contains(missing))
                .fold(String::new(), |text, line| text + line + "\n");
            assert_eq!(arm64(&info, None, 4_096, 64), None, "{missing}");
        }
        assert_eq!(arm64("NUMBER(VA_BITS)=64\n", None, 4_096, 64), None);
        assert_eq!(arm64("", None, 4_096, 64), None);
    }
}
