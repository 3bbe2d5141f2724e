//! Reads of kernel memory by a program of our own: /proc/kcore is not everywhere.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, anyhow};
use aya::{Ebpf, programs::RawTracePoint};
use leaktrace_common::{MAX_PEEKS, PEEK_WORDS, Peek, encode_address};

use super::mapped::MappedArray;

/// `BPF_PROG_TEST_RUN` (`include/uapi/linux/bpf.h`).
const TEST_RUN: i32 = 10;
/// Bytes that one read has.
pub const PEEK_BYTES: u64 = PEEK_WORDS as u64 * 8;
/// Bytes of a page: no read crosses into another one, which may not be there.
const PAGE: u64 = 4_096;

/// The part of `union bpf_attr` for running a program.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// The program, and what it reads into.
pub struct Peeker {
    program: OwnedFd,
    peeks: MappedArray<Peek>,
}

impl Peeker {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let program =
            ebpf.program_mut("peek").ok_or_else(|| anyhow!("the BPF object has no program peek"))?;
        let program: &mut RawTracePoint = program.try_into()?;
        program.load().context("the kernel's verifier refused the program that reads memory")?;
        let program = program.fd()?.as_fd().try_clone_to_owned().context("cannot keep the program")?;
        let peeks = MappedArray::map(ebpf, "PEEKS", MAX_PEEKS)?;
        let peeker = Self { program, peeks };
        // Also lets the program note where memory is.
        peeker.run(0)?;
        Ok(peeker)
    }

    /// Reads [`PEEK_WORDS`] words each, and calls `with` for each address with its index, the address
    /// that was read from, and the words. Addresses that would lead across a page's end are moved back.
    /// What cannot be read gives `None`.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn read(&self, addresses: &[u64], mut with: impl FnMut(usize, u64, Option<&[u64]>)) -> Result<()> {
        for (batch, addresses) in addresses.chunks(MAX_PEEKS as usize).enumerate() {
            for (index, &address) in addresses.iter().enumerate() {
                // SAFETY: `at` checks the index; the program reads the word when it is run.
                unsafe {
                    (&raw mut (*self.peeks.at(index)).address)
                        .write_volatile(encode_address(within_page(address)));
                };
            }
            self.run(addresses.len())?;
            for (index, &address) in addresses.iter().enumerate() {
                let peek = self.peeks.read(index);
                // SAFETY: as above. Addresses that stayed here would hide leaks from kmemleak.
                unsafe { (&raw mut (*self.peeks.at(index)).words).write_volatile([0; PEEK_WORDS]) };
                let words = (peek.read == 1).then_some(&peek.words[..]);
                with(batch * MAX_PEEKS as usize + index, within_page(address), words);
            }
        }
        Ok(())
    }

    fn run(&self, count: usize) -> Result<()> {
        let context = [count as u64];
        let mut attributes = TestRun {
            program: self.program.as_raw_fd() as u32,
            context_in_size: size_of_val(&context) as u32,
            context_in: context.as_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: the structure begins like bpf_attr, whose rest the kernel takes as zero, and what it
        // points to outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).context("the kernel refused to read memory for us");
        }
        Ok(())
    }
}

/// The addresses of the reads that cover what lies from `start` up to `end`. One that [`Peeker::read`] moves back at a
/// page's end is followed by one that begins with the next page.
pub fn reads(start: u64, end: u64) -> impl Iterator<Item = u64> {
    let next = |at: &u64| Some((at + PEEK_BYTES).min((at & !(PAGE - 1)) + PAGE));
    std::iter::successors(Some(start & !7), next).take_while(move |&at| at < end)
}

/// The address from which a whole read stays within the page of `address`.
fn within_page(address: u64) -> u64 {
    let address = address & !7;
    let end = (address & !(PAGE - 1)) + PAGE;
    address.min(end - PEEK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_within_a_page() {
        assert_eq!(within_page(0x1000), 0x1000);
        assert_eq!(within_page(0x1fff), 0x2000 - PEEK_BYTES);
        assert_eq!(within_page(0x1123), 0x1120);
    }

    #[test]
    fn reads_cover_everything() {
        for (start, end) in [(0x1003, 0x1004), (0x1f80, 0x2080), (0x1008, 0x5ff8), (0x2000, 0x2000)] {
            let mut covered = start & !7;
            for at in reads(start, end) {
                assert!(within_page(at) <= covered && at >= covered, "{at:x} after {covered:x}");
                covered = within_page(at) + PEEK_BYTES;
            }
            assert!(covered >= end);
        }
    }
}
