//! Second programs on the frees of slab, for what is freed in an interrupt of the first ones.
//!
//! The kernel leaves out a program that is already running on that CPU. An interrupt in the middle of a free often
//! ends with the callbacks of RCU, which may free thousands of objects, mostly to their caches: these the second
//! program books. It is one more program for every free, so that on `kfree` is only attached where many were missed,
//! or where that could not be done later.

use anyhow::Result;
use aya::{Btf, Ebpf};
use leaktrace_common::{CpuState, FREEING_PAIRS};

use super::{
    cost::{self, ProgramCost},
    hooks::{Kind, Program},
    load,
    mapped::MappedArray,
};

/// Frees that may be missed before a second program is attached: fewer hardly change a verdict.
const MOST_MISSED: u64 = 100;

/// Which second programs are to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those that are always needed.
    Usual,
    /// Those where many frees were missed.
    Missing,
    /// All of them.
    All,
}

/// The tracepoints that have one, which the first program is named after, its name, and whether it is always needed.
const SECOND: [(&str, &str, bool); FREEING_PAIRS] =
    [("kfree", "kfree_nested", false), ("kmem_cache_free", "kmem_cache_free_nested", true)];

/// Frees that second programs have booked so far, in the order of [`SECOND`].
pub(super) fn booked(cpus: &MappedArray<CpuState>) -> [u64; FREEING_PAIRS] {
    std::array::from_fn(|pair| (0..cpus.len()).map(|cpu| cpus.read(cpu).booked_instead[pair]).sum())
}

struct Pair {
    first: Program,
    second: Program,
    usual: bool,
    attached: bool,
}

/// The second programs.
pub(super) struct Nested {
    pairs: Vec<Pair>,
}

impl Nested {
    /// Loads those of the first programs that are there. One that the kernel refuses is done without: what is missed is
    /// told then.
    pub(super) fn load(ebpf: &mut Ebpf, btf: &Btf) -> Self {
        let pairs = SECOND.map(|(target, name, usual)| {
            let program = |name| Program { name, target, kind: Kind::RawTracepoint };
            Pair { first: program(target), second: program(name), usual, attached: false }
        });
        let loaded = |pair: &Pair| load::load(ebpf, btf, &pair.second).is_ok();
        Self { pairs: pairs.into_iter().filter(loaded).collect() }
    }

    /// Attaches what is wanted and not attached yet.
    ///
    /// # Errors
    /// When the kernel does not say what was missed.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, wanted: Wanted) -> Result<()> {
        for pair in self.pairs.iter_mut().filter(|pair| !pair.attached) {
            let is_wanted = match wanted {
                Wanted::Usual => pair.usual,
                Wanted::Missing => cost::read(ebpf, &pair.first)?.1 > MOST_MISSED,
                Wanted::All => true,
            };
            pair.attached = is_wanted && load::attach(ebpf, &pair.second).is_ok();
        }
        Ok(())
    }

    /// Adds what the second programs cost, and takes what they have booked from what the first ones missed.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn account(
        &self,
        ebpf: &Ebpf,
        booked: [u64; FREEING_PAIRS],
        costs: &mut Vec<(&'static str, ProgramCost, u64)>,
    ) -> Result<()> {
        for ((first, ..), booked) in SECOND.into_iter().zip(booked) {
            if let Some((.., missed)) = costs.iter_mut().find(|(name, ..)| *name == first) {
                *missed = missed.saturating_sub(booked);
            }
        }
        for pair in self.pairs.iter().filter(|pair| pair.attached) {
            // What it was left out for, the first one has booked, or has missed, too.
            costs.push((pair.second.name, cost::read(ebpf, &pair.second)?.0, 0));
        }
        Ok(())
    }

    /// Takes them off their hooks and out of the kernel.
    pub(super) fn unload(&mut self, ebpf: &mut Ebpf) {
        for pair in self.pairs.drain(..) {
            // Whether it was attached or not; all of them are loaded.
            let _ = load::unload(ebpf, &pair.second);
        }
    }
}
