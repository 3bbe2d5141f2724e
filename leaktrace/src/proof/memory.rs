//! The kernel's memory, and where in it what is.

use std::{collections::BTreeMap, io, path::Path};

use anyhow::{Context as _, Result, bail};
use rustc_hash::FxHashSet;

use super::layout::Layout;
use crate::{
    analysis::linkage::Span,
    kernel::{
        btf::Btf,
        layout::{FIVE_LEVELS, FOUR_LEVELS},
        machine::{Machine, lockdown, page_bytes},
        memory::address_bits,
        privilege::is_root,
        symbols::{Location, Symbols},
    },
    proc::{iomem, kcore::Kcore},
};

/// The kernel's BTF.
const BTF: &str = "sys/kernel/btf/vmlinux";
/// Bytes that a module's per-CPU variable may have: what lies further behind is another's.
const MOST_OF_MODULE: u64 = 4_096;
/// Per-CPU addresses below this are numbers like any other.
const LEAST_PERCPU: u64 = 1 << 24;
/// Variables of kmemleak's with the first and the last address that it knows.
const BOUNDS: [&str; 4] = ["min_addr", "max_addr", "min_percpu_addr", "max_percpu_addr"];
/// Where a `list_head` has its neighbours.
const NEXT: u64 = 0;
const PREVIOUS: u64 = 8;
/// How often a list is followed that changes meanwhile.
const TRIES: usize = 3;
/// Elements of the kernel's lists that are followed at most.
const MOST_LINKS: usize = 2_000_000;

/// What was found of the running kernel.
pub(super) struct Memory {
    pub(super) core: Kcore,
    pub(super) layout: Layout,
    /// Symbols of data.
    pub(super) data: Symbols,
    /// First address of the direct map.
    pub(super) direct_map: u64,
    /// First `struct page`.
    pub(super) first_page: u64,
    pub(super) page_bytes: u64,
    /// Physical memory: page frame numbers from and up to.
    pub(super) frames: Vec<(u64, u64)>,
    /// What is added to a per-CPU address for each CPU.
    pub(super) cpus: Vec<u64>,
    /// Memory nodes.
    pub(super) nodes: u64,
    /// Bytes that each CPU has of static and early per-CPU memory, and where in the kernel's image that is.
    percpu: Option<Span>,
    /// What makes a pointer of the address that per-CPU memory's allocator goes by.
    percpu_shift: u64,
    /// Bits of an address, where the kernel says so.
    pub(super) address_bits: Option<u32>,
    /// The image's data, and what is added to physical addresses to have those of the image.
    image: Vec<Span>,
    image_offset: u64,
    /// Of the image what kmemleak notes of the first objects (`mm/kmemleak.c`).
    own_notes: Option<Span>,
}

impl Memory {
    /// Finds out what is where.
    ///
    /// # Errors
    /// Says why memory cannot be read here.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let core = Kcore::open(root).map_err(|error| refusal(root, &error))?;
        let layout = Layout::resolve(&Btf::read(&root.join(BTF))?)?;
        let data = Symbols::read_data(root)?;
        let page_bytes = page_bytes();
        let (direct_map, frames) =
            direct_map(&core, page_bytes).context("/proc/kcore shows no physical memory")?;
        let mut memory = Self {
            core,
            layout,
            data,
            direct_map,
            first_page: 0,
            page_bytes,
            frames,
            cpus: Vec::new(),
            nodes: 1,
            percpu: None,
            percpu_shift: 0,
            address_bits: None,
            image: Vec::new(),
            image_offset: 0,
            own_notes: None,
        };
        memory.first_page =
            memory.find_pages().context("where this kernel has its struct pages is not known")?;
        memory.find_cpus()?;
        memory.find_image(root);
        memory.address_bits = memory.core.vmcoreinfo().ok().and_then(|info| address_bits(&info));
        memory.own_notes = memory.find_notes();
        Ok(memory)
    }

    /// The word of a variable of the kernel.
    pub(super) fn variable(&self, name: &str) -> Option<u64> {
        self.core.word(self.data.address_of(name)?).ok()
    }

    fn find_pages(&self) -> Option<u64> {
        let fixed = [FIVE_LEVELS, FOUR_LEVELS]
            .iter()
            .find(|(_, begin)| *begin == self.direct_map)
            .map(|&(pages, _)| pages);
        let known = self.variable("vmemmap_base").or(fixed).filter(|&first| first != 0);
        // Elsewhere a segment says where the pages of the first range of memory are
        // (`get_sparsemem_vmemmap_info`).
        let first = self.frames.first()?.0 * self.layout.page.size / self.page_bytes * self.page_bytes;
        let last = self.frames.last()?.1 * self.layout.page.size;
        let segments = self.core.segments().iter().filter(|segment| segment.physical.is_none());
        let found = || {
            segments
                .filter(|segment| segment.bytes <= last + self.page_bytes)
                .map(|segment| segment.address.wrapping_sub(first))
                .find(|&first_page| self.are_pages(first_page))
        };
        known.filter(|&first_page| self.are_pages(first_page)).or_else(found)
    }

    /// Whether `struct page`s of memory lie there: those of slabs point to caches, which are in the direct map.
    fn are_pages(&self, first_page: u64) -> bool {
        let middle = self.frames[self.frames.len() / 2].0;
        self.core.word(first_page.wrapping_add(middle * self.layout.page.size)).is_ok()
    }

    fn find_cpus(&mut self) -> Result<()> {
        let machine = Machine::current()?;
        let count = machine.possible_cpus as usize;
        self.nodes = u64::from(machine.nodes).max(1);
        if let Some(offsets) = self.data.address_of("__per_cpu_offset") {
            let mut cpus = vec![0; count];
            self.core.words(offsets, &mut cpus).context("cannot read where the CPUs' memory is")?;
            self.cpus = cpus;
        }
        let unit = self.data.address_of("pcpu_unit_size").and_then(|at| self.core.number(at).ok());
        // Zero on x86-64 until 6.14, and then not listed.
        let start = self.data.address_of("__per_cpu_start").unwrap_or(0);
        self.percpu = unit.map(|unit| Span::new(start, u64::from(unit)));
        self.percpu_shift = start.wrapping_sub(self.variable("pcpu_base_addr").unwrap_or(0));
        Ok(())
    }

    fn find_image(&mut self, root: &Path) {
        let ranges = iomem::kernel_data(root);
        let (Some(data), Some(&(first, _))) = (self.data.address_of("_sdata"), ranges.first()) else {
            return;
        };
        self.image_offset = data.wrapping_sub(first);
        self.image = ranges.into_iter().map(|(first, last)| Span { start: first, end: last + 1 }).collect();
    }

    /// What this kernel does not say, so that less can be proven.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.data.address_of("init_task").is_none() {
            notes.push(
                "/proc/kallsyms has no variables (KALLSYMS_ALL): unused stacks and the CPUs' free pages count as holding, and holders have no names"
                    .to_owned(),
            );
        }
        if !cfg!(target_arch = "x86_64") && self.address_bits.is_none_or(|bits| bits > 48) {
            notes.push(
                "how this kernel's page tables are made is not known: large objects count as held by their own struct page"
                    .to_owned(),
            );
        }
        notes
    }

    /// Whether a variable is kmemleak's own.
    pub(super) fn is_note(&self, address: u64) -> bool {
        let bound = || self.variable_at(address).is_some_and(|place| BOUNDS.contains(&place.symbol));
        self.own_notes.is_some_and(|notes| notes.contains(address) || bound())
    }

    fn find_notes(&self) -> Option<Span> {
        self.data.address_of("kmemleak_enabled")?;
        let start = self.data.address_of("mem_pool")?;
        Some(Span { start, end: self.data.next_after(start)? })
    }

    /// The page frame that an address of the direct map lies in.
    pub(super) fn frame(&self, address: u64) -> u64 {
        address.wrapping_sub(self.direct_map) / self.page_bytes
    }

    /// The address of a page frame.
    pub(super) fn address(&self, frame: u64) -> u64 {
        self.direct_map.wrapping_add(frame * self.page_bytes)
    }

    /// The `struct page` of a page frame.
    pub(super) fn page(&self, frame: u64) -> u64 {
        self.first_page.wrapping_add(frame * self.layout.page.size)
    }

    /// Whether an address is one of physical memory, by the direct map.
    pub(super) fn is_memory(&self, address: u64) -> bool {
        let frame = self.frame(address);
        address >= self.direct_map && self.frames.iter().any(|&(from, to)| (from..to).contains(&frame))
    }

    /// Whether a word is a kernel's address that is neither memory's nor a `struct page`'s: where a function is.
    pub(super) fn is_code(&self, word: u64) -> bool {
        let pages = self.frames.last().map_or(0, |frames| frames.1) * self.layout.page.size;
        word >> 56 == 0xff && !self.is_memory(word) && word.wrapping_sub(self.first_page) >= pages
    }

    /// Of a place in the direct map that is the image's data: the image's own address.
    pub(super) fn in_image(&self, address: u64) -> Option<u64> {
        let physical = address.wrapping_sub(self.direct_map);
        let inside = self.image.iter().any(|span| span.contains(physical));
        inside.then(|| physical.wrapping_add(self.image_offset))
    }

    /// Of a place in the per-CPU memory that the kernel began with: the CPU, and the per-CPU address.
    pub(super) fn in_percpu(&self, address: u64) -> Option<(usize, u64)> {
        let unit = self.percpu?;
        self.cpus
            .iter()
            .map(|offset| address.wrapping_sub(*offset))
            .enumerate()
            .find(|&(_, percpu)| unit.contains(percpu))
    }

    /// The pointer that the kernel has to per-CPU memory at an address that its allocator goes by (`__addr_to_pcpu_ptr` of
    /// `mm/percpu.c`).
    pub(super) fn percpu_pointer(&self, address: u64) -> u64 {
        address.wrapping_add(self.percpu_shift)
    }

    /// Whether a per-CPU address can be told from other numbers: small ones cannot, and those that were made from addresses of
    /// the kernel's image, which are others' as well.
    pub(super) fn tells_percpu(&self, address: u64) -> bool {
        address >= LEAST_PERCPU && !self.percpu.is_some_and(|unit| unit.contains(address))
    }

    /// The variable that an address lies in, and where.
    pub(super) fn variable_at(&self, address: u64) -> Option<Location<'_>> {
        self.data.locate(address)
    }

    /// The static per-CPU variable, of the kernel or a module, at a per-CPU address, and where in it that is.
    pub(super) fn static_percpu(&self, address: u64) -> Option<Location<'_>> {
        let end = self.data.address_of("__per_cpu_end").unwrap_or(0);
        if address < end {
            self.data.locate(address)
        } else {
            self.data.locate_in_modules(address, MOST_OF_MODULE)
        }
    }

    /// Follows a `list_head` at an address: the addresses of the links, without the head. Where that leads away from it,
    /// because the list changes meanwhile, it is followed from its end, too, and again.
    pub(super) fn list(&self, head: u64) -> Vec<u64> {
        let mut found = FxHashSet::default();
        for _ in 0..TRIES {
            for direction in [NEXT, PREVIOUS] {
                let (links, closed) = self.walk(head, direction);
                if closed && found.is_empty() {
                    return links;
                }
                found.extend(links);
                if closed {
                    return found.into_iter().collect();
                }
            }
        }
        found.into_iter().collect()
    }

    /// The same for a list in which a link that is freed is soon used again further on, so that a walk jumps over those
    /// between: all that walks from both ends have met, and again while these differ.
    pub(super) fn busy_list(&self, head: u64) -> FxHashSet<u64> {
        let mut found = FxHashSet::default();
        for _ in 0..TRIES {
            let [onward, back] = [NEXT, PREVIOUS].map(|direction| self.walk(head, direction).0);
            let [onward, back]: [FxHashSet<u64>; 2] = [onward, back].map(|links| links.into_iter().collect());
            let same = onward == back;
            found.extend(onward);
            found.extend(back);
            if same {
                break;
            }
        }
        found
    }

    /// Follows a list in one direction; also whether it leads back to its head.
    fn walk(&self, head: u64, direction: u64) -> (Vec<u64>, bool) {
        let step = |at: u64| self.core.word(at + direction).unwrap_or(0);
        let (mut links, mut met) = (Vec::new(), FxHashSet::default());
        let mut at = step(head);
        // In another list it would go round for ever.
        while at != head && at != 0 && links.len() < MOST_LINKS && met.insert(at) {
            links.push(at);
            at = step(at);
        }
        (links, at == head)
    }
}

/// Why /proc/kcore cannot be read, and what to do.
fn refusal(root: &Path, error: &io::Error) -> anyhow::Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "this kernel has no /proc/kcore (CONFIG_PROC_KCORE)".to_owned(),
        io::ErrorKind::PermissionDenied => match lockdown(root) {
            Some(level) => format!("the kernel is locked down ({level}) and lets nobody read /proc/kcore"),
            None => {
                "reading /proc/kcore takes CAP_SYS_RAWIO: run this as root, outside of containers".to_owned()
            }
        },
        _ => format!("cannot read /proc/kcore: {error}"),
    };
    anyhow::Error::msg(why)
}

/// Whether memory can be read here, as far as an ordinary user can tell: whether root would be let in is not known to others,
/// unless the kernel is locked down.
pub fn is_offered(root: &Path) -> bool {
    match Kcore::open(root) {
        Ok(_) => true,
        Err(error) => {
            error.kind() == io::ErrorKind::PermissionDenied && lockdown(root).is_none() && !is_root()
        }
    }
}

/// The begin of the direct map, and the page frames that it shows: what most of the segments with a physical
/// address agree on.
fn direct_map(core: &Kcore, page_bytes: u64) -> Option<(u64, Vec<(u64, u64)>)> {
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    let with_physical = || core.segments().iter().filter_map(|segment| Some((segment, segment.physical?)));
    for (segment, physical) in with_physical() {
        *bytes.entry(segment.address.wrapping_sub(physical)).or_default() += segment.bytes;
    }
    let (&direct_map, _) = bytes.iter().max_by_key(|&(_, bytes)| *bytes)?;
    let mut frames: Vec<(u64, u64)> = with_physical()
        .filter(|(segment, physical)| segment.address.wrapping_sub(*physical) == direct_map)
        .map(|(segment, physical)| (physical.div_ceil(page_bytes), (physical + segment.bytes) / page_bytes))
        .filter(|(from, to)| from < to)
        .collect();
    frames.sort_unstable();
    Some((direct_map, frames))
}

/// That memory can be read at all is told before anything else is done.
///
/// # Errors
/// As [`Memory::open`].
pub(super) fn check(memory: &Memory) -> Result<()> {
    let Some(&(from, _)) = memory.frames.first() else { bail!("/proc/kcore shows no physical memory") };
    memory.core.word(memory.address(from)).context("cannot read memory through /proc/kcore")?;
    Ok(())
}
