//! The open files of processes, as the kernel has them.

use rustc_hash::FxHashSet;

use super::{Prover, layout::TaskLayout};

/// Descriptors of a process that are looked at.
const MOST_DESCRIPTORS: u32 = 1 << 20;
/// Descriptors that are read at a time.
const CHUNK: u32 = 4_096;

/// A process with its open files.
#[derive(Clone, Debug)]
pub struct Opener {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its files.
    pub files: Vec<File>,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The descriptor.
    pub descriptor: u32,
    /// Address of the `struct file`.
    pub address: u64,
    /// What its driver or file system keeps for it: `private_data`.
    pub private: u64,
    /// Address of the `struct inode`.
    pub inode: u64,
}

impl Prover {
    /// The processes and their open files, those with the most first; some `most` files in all, and whether there are more.
    pub fn openers(&self, most: usize) -> (Vec<Opener>, bool) {
        let memory = &self.memory;
        let (Some(layout), Some(first)) = (memory.layout.task, memory.data.address_of("init_task")) else {
            return (Vec::new(), false);
        };
        let mut seen = FxHashSet::default();
        let (mut openers, mut count) = (Vec::new(), 0);
        // The first one is the idle task.
        for link in memory.busy_list(first + layout.tasks) {
            let task = link.wrapping_sub(layout.tasks);
            if count >= most {
                break;
            }
            let Ok(files) = memory.core.word(task + layout.files) else { continue };
            if !memory.is_memory(files) || !seen.insert(files) {
                continue;
            }
            let files = self.files(&layout, files);
            if let (false, Ok(pid)) = (files.is_empty(), memory.core.number(task + layout.pid)) {
                count += files.len();
                let comm = memory.core.text(task + layout.comm, 16).unwrap_or_default();
                openers.push(Opener { pid, comm, files });
            }
        }
        openers.sort_by_key(|opener| (std::cmp::Reverse(opener.files.len()), opener.pid));
        (openers, count >= most)
    }

    /// The files of a `files_struct` (`include/linux/fdtable.h`).
    fn files(&self, layout: &TaskLayout, files: u64) -> Vec<File> {
        let core = &self.memory.core;
        let mut found = Vec::new();
        let table = core.word(files + layout.fdt).unwrap_or(0);
        let (Ok(array), Ok(count)) =
            (core.word(table.wrapping_add(layout.fd)), core.number(table.wrapping_add(layout.most_files)))
        else {
            return found;
        };
        let count = count.min(MOST_DESCRIPTORS);
        let mut words = vec![0; CHUNK.min(count) as usize];
        for first in (0..count).step_by(CHUNK as usize) {
            let some = &mut words[..CHUNK.min(count - first) as usize];
            if core.words(array.wrapping_add(u64::from(first) * 8), some).is_err() {
                break;
            }
            for (&address, descriptor) in some.iter().zip(first..) {
                if !self.memory.is_memory(address) {
                    continue;
                }
                let word = |at: u64| core.word(address + at).unwrap_or(0);
                let (private, inode) = (word(layout.private_data), word(layout.inode));
                found.push(File { descriptor, address, private, inode });
            }
        }
        found
    }
}
