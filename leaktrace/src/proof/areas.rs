//! Areas of vmalloc, which pages they have, and whose stacks they are.

use std::os::fd::RawFd;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{layout::AreaLayout, memory::Memory};

/// How often tasks are walked until we are among them.
const TRIES: usize = 5;
/// Pages of areas that are kept in mind at most: 16 GiB.
const MOST_PAGES: usize = 1 << 22;
/// Pages of one area that are read at a time.
const CHUNK: u64 = 4_096;
/// What a function may still write below the stack pointer (the red zone of the ABI, which the kernel does without).
const BELOW_SP: u64 = 128;
/// The area's memory was allocated with it (`include/linux/vmalloc.h`).
const VM_ALLOC: u64 = 2;
/// Where a thread's stack begins: those of sleeping threads are not larger.
const MOST_STACK: u64 = 1 << 16;

/// An area.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Return address in the function that made it; 0 where nothing says so.
    pub(super) caller: u64,
    /// Bytes of memory that vmalloc allocated for it; none of what is only mapped there.
    pub(super) allocated: u64,
}

/// A thread.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) comm: String,
    /// Its `task_struct`.
    address: u64,
}

/// Whose a place on a stack is.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnStack<'a> {
    /// The thread's that uses it.
    Of(&'a Task),
    /// Nobody's: below the stack pointer of a sleeping thread, or of one that has ended.
    Unused,
    /// It is no stack that is known.
    NoStack,
}

/// All of them.
#[derive(Default)]
pub(super) struct Areas {
    all: Vec<Area>,
    pages: FxHashMap<u64, (u32, u32)>,
    tasks: FxHashMap<u64, Task>,
    /// What describes them: `vmap_area`s, and by `vm_struct` the area's start.
    notes: FxHashSet<u64>,
    descriptions: FxHashMap<u64, u64>,
    /// The `vm_struct` of each area, by its start.
    described_by: FxHashMap<u64, u64>,
    /// Our own thread.
    own: Option<u64>,
    /// Stacks that are kept for the next threads.
    kept: FxHashSet<u64>,
    /// Stacks of interrupts that are areas (`irq_stack_ptr` of `arch/arm64/kernel/irq.c`).
    interrupts: FxHashSet<u64>,
    /// Whether there were too many pages for all to be kept in mind.
    pub(super) cut: bool,
}

impl Areas {
    /// Reads what there is now; nothing where this kernel does not say where it is.
    pub(super) fn read(memory: &Memory) -> Self {
        let mut areas = Self::default();
        // Processes come and go: a walk may miss even ourselves, and then what we read would be found a second time where
        // the kernel copies it.
        for _ in 0..TRIES {
            areas.read_tasks(memory);
            if areas.own.is_some() {
                break;
            }
        }
        let Some(layout) = memory.layout.area else { return areas };
        for head in heads(memory, &layout) {
            for link in memory.busy_list(head) {
                areas.read_area(memory, &layout, link.wrapping_sub(layout.list));
            }
        }
        areas.read_kept(memory);
        if let Some(pointer) = memory.data.address_of("irq_stack_ptr") {
            let stacks = memory.cpus.iter().map(|cpu| memory.core.word(pointer.wrapping_add(*cpu)));
            areas.interrupts.extend(stacks.flatten());
        }
        areas
    }

    /// Whether an area is a CPU's stack for interrupts: what they had there is left until the next one.
    pub(super) fn is_of_interrupts(&self, area: &Area) -> bool {
        self.interrupts.contains(&area.start)
    }

    fn read_area(&mut self, memory: &Memory, layout: &AreaLayout, address: u64) {
        let core = &memory.core;
        let (Ok(start), Ok(end), Ok(vm)) = (
            core.word(address + layout.start),
            core.word(address + layout.end),
            core.word(address + layout.vm),
        ) else {
            return;
        };
        if !memory.is_memory(vm) || end <= start {
            return;
        }
        self.notes.insert(address);
        self.descriptions.insert(vm, start);
        self.described_by.insert(start, vm);
        let caller = core.word(vm + layout.caller).unwrap_or(0);
        let index = self.all.len() as u32;
        let pages = core.word(vm + layout.pages).unwrap_or(0);
        // A `long` since 7.0, an `int` before.
        let count = u64::from(core.number(vm + layout.nr_pages).unwrap_or(0));
        let is_allocated = core.word(vm + layout.flags).is_ok_and(|flags| flags & VM_ALLOC != 0);
        let allocated = (count * memory.page_bytes).min(end - start) * u64::from(is_allocated);
        self.all.push(Area { start, end, caller, allocated });
        if pages == 0 || count > (end - start) / memory.page_bytes {
            return;
        }
        let mut structs = vec![0; CHUNK.min(count) as usize];
        for first in (0..count).step_by(CHUNK as usize) {
            let some = &mut structs[..CHUNK.min(count - first) as usize];
            if core.words(pages + first * 8, some).is_err() {
                return;
            }
            for (page, at) in some.iter().zip(first as u32..) {
                if self.pages.len() >= MOST_PAGES {
                    self.cut = true;
                    return;
                }
                let frame = page.wrapping_sub(memory.first_page) / memory.layout.page.size;
                self.pages.insert(frame, (index, at));
            }
        }
    }

    /// Walks the processes and their threads.
    fn read_tasks(&mut self, memory: &Memory) {
        let (Some(layout), Some(first)) = (memory.layout.task, memory.data.address_of("init_task")) else {
            return;
        };
        let core = &memory.core;
        // SAFETY: gettid has no preconditions.
        let own = unsafe { libc::gettid() } as u32;
        let mut leaders = vec![first];
        leaders.extend(memory.busy_list(first + layout.tasks).iter().map(|link| link - layout.tasks));
        for leader in leaders {
            let Ok(signal) = core.word(leader + layout.signal) else { continue };
            let threads =
                if memory.is_memory(signal) { memory.list(signal + layout.threads) } else { Vec::new() };
            let threads = threads.iter().map(|link| link - layout.thread_node);
            for task in threads.chain([leader]) {
                let (Ok(stack), Ok(pid)) = (core.word(task + layout.stack), core.number(task + layout.pid))
                else {
                    continue;
                };
                if pid == own {
                    self.own = Some(task);
                }
                let comm = core.text(task + layout.comm, 16).unwrap_or_default();
                self.tasks.insert(stack, Task { pid, comm, address: task });
            }
        }
    }

    /// Each CPU keeps some stacks of ended threads (`cached_stacks` of `kernel/fork.c`).
    fn read_kept(&mut self, memory: &Memory) {
        let (Some(cached), Some(layout)) = (memory.data.address_of("cached_stacks"), memory.layout.area)
        else {
            return;
        };
        for offset in &memory.cpus {
            let mut kept = [0; 2];
            if memory.core.words(cached.wrapping_add(*offset), &mut kept).is_ok() {
                let known = kept.iter().filter(|&&vm| memory.is_memory(vm));
                self.kept.extend(known.filter_map(|vm| memory.core.word(vm + layout.address).ok()));
            }
        }
    }

    /// All that there are.
    pub(super) fn all(&self) -> &[Area] {
        &self.all
    }

    /// The page frames of some areas.
    pub(super) fn frames(&self, of: impl Fn(&Area) -> bool) -> FxHashSet<u64> {
        let those = self.pages.iter().filter(|(_, (area, _))| of(&self.all[*area as usize]));
        those.map(|(frame, _)| *frame).collect()
    }

    /// The area that has a page frame, and the page's place in it.
    pub(super) fn of_frame(&self, frame: u64) -> Option<(Area, u64)> {
        let &(area, at) = self.pages.get(&frame)?;
        Some((self.all[area as usize], u64::from(at)))
    }

    /// Where the kernel copies what is read from one of our files, a page at a time (`open_kcore`).
    pub(super) fn buffer_of(&self, memory: &Memory, descriptor: RawFd) -> Option<u64> {
        let (core, layout) = (&memory.core, memory.layout.task?);
        let files = core.word(self.own? + layout.files).ok()?;
        let table = core.word(core.word(files + layout.fdt).ok()? + layout.fd).ok()?;
        let file = core.word(table + u64::try_from(descriptor).ok()? * 8).ok()?;
        core.word(file + layout.private_data).ok().filter(|&buffer| memory.is_memory(buffer))
    }

    /// Whether this thread was found among the tasks; in a PID namespace of its own it goes by another number.
    pub(super) fn knows_us(&self) -> bool {
        self.own.is_some()
    }

    /// Whether what an object says of an area is only its description.
    pub(super) fn is_description(&self, object: u64, word: u64) -> bool {
        self.notes.contains(&object) || self.descriptions.get(&object) == Some(&word)
    }

    /// Whether a word of a `vmap_area` is what is left of an area that it described before: the kernel keeps such objects in pools
    /// (`mm/vmalloc.c`), with the pointer to a `vm_struct` that is freed.
    pub(super) fn is_left(&self, memory: &Memory, object: u64, at: u64) -> bool {
        let Some(layout) = memory.layout.area.filter(|layout| at == layout.vm) else { return false };
        // One that was not met in a list may be in use all the same: then both have the same address.
        let word = |at: u64| memory.core.word(at).ok();
        let same = || {
            let vm = word(object + layout.vm)?;
            Some(word(object + layout.start)? == word(vm.checked_add(layout.address)?)?)
        };
        !self.notes.contains(&object) && same() != Some(true)
    }

    /// The `vm_struct` of an area: who has that has the area.
    pub(super) fn description(&self, start: u64) -> Option<u64> {
        self.described_by.get(&start).copied()
    }

    /// Whose a place on a stack is; `address` is the one that the stack has for its thread.
    pub(super) fn on_stack(&self, memory: &Memory, stack: u64, address: u64) -> OnStack<'_> {
        if self.kept.contains(&stack) {
            return OnStack::Unused;
        }
        let (Some(task), Some(layout)) = (self.tasks.get(&stack), memory.layout.task) else {
            return OnStack::NoStack;
        };
        // What we have there is of looking.
        if self.own == Some(task.address) {
            return OnStack::Unused;
        }
        let core = &memory.core;
        let running = core.number(task.address + layout.on_cpu).unwrap_or(1) != 0;
        let sp = core.word(task.address + layout.sp).unwrap_or(0);
        let sleeping = !running && (stack..stack + MOST_STACK).contains(&sp);
        if sleeping && address < sp.saturating_sub(BELOW_SP) { OnStack::Unused } else { OnStack::Of(task) }
    }
}

/// Where the lists of areas begin: one until 6.8, one a node since (`mm/vmalloc.c`).
fn heads(memory: &Memory, layout: &AreaLayout) -> Vec<u64> {
    if let Some(list) = memory.data.address_of("vmap_area_list") {
        return vec![list];
    }
    let (Some((size, busy)), Some(nodes)) = (layout.nodes, memory.variable("vmap_nodes")) else {
        return Vec::new();
    };
    let count = memory.data.address_of("nr_vmap_nodes").and_then(|at| memory.core.number(at).ok());
    (0..u64::from(count.unwrap_or(1)).min(1_024)).map(|node| nodes + node * size + busy).collect()
}
