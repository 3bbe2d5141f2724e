//! BPF arrays mapped into this process: read and written without system calls.

use std::{marker::PhantomData, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::{Ebpf, maps::Map};
use memmap2::{MmapOptions, MmapRaw};

/// A `BPF_F_MMAPABLE` array of `T`, which the programs change all the time: access by volatile
/// reads and by the atomic operations that the programs use.
pub struct MappedArray<T> {
    memory: MmapRaw,
    len: usize,
    _values: PhantomData<*mut T>,
}

// SAFETY: the memory is shared with programs on every CPU anyway, and all access is volatile or atomic.
unsafe impl<T> Send for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Reads one value; fields that programs are changing may be from different moments.
    pub fn read(&self, index: usize) -> T {
        // SAFETY: `at` checks the index, and every bit pattern is a value of these plain structs.
        unsafe { self.at(index).read_volatile() }
    }
}

impl<T> MappedArray<T> {
    /// Maps the array called `name`, of `len` values.
    ///
    /// # Errors
    /// When there is no such map or the kernel refuses to map it.
    pub fn map(ebpf: &Ebpf, name: &str, len: u32) -> Result<Self> {
        let Some(Map::Array(map)) = ebpf.map(name) else {
            anyhow::bail!("the BPF object has no array {name}");
        };
        let len = len as usize;
        let memory = MmapOptions::new()
            .len(len * size_of::<T>())
            .map_raw(std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd())
            .with_context(|| format!("cannot map the table {name}"))?;
        Ok(Self { memory, len, _values: PhantomData })
    }

    /// Pointer to one value.
    ///
    /// # Panics
    /// When the index is out of range.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "index out of range");
        // SAFETY: just checked, and the mapping has `len` values.
        unsafe { self.memory.as_mut_ptr().cast::<T>().add(index) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }
}
