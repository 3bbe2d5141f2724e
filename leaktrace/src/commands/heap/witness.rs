//! Who is allocated while memory is looked at: nobody has lost that yet, and its address may have been another object's.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use rustc_hash::FxHashSet;

use crate::{
    commands::{attribute::Attribution, probe},
    tracer::{
        Settings, Tracer,
        hooks::{Family, Mechanism},
        sizes::Sizes,
    },
    units,
};

/// The tracer's programs, which note everything that is allocated from slab, by vmalloc, and of per-CPU memory.
pub(super) struct Witness(Tracer);

/// What the programs saw.
pub(super) struct Seen {
    /// Those of the objects asked for that were allocated or given to `kfree_rcu` meanwhile.
    pub(super) objects: FxHashSet<u64>,
    /// What they did not see.
    pub(super) note: Option<String>,
    /// Whether they saw everything.
    pub(super) is_whole: bool,
}

impl Witness {
    /// Attaches the programs; no stacks are captured.
    ///
    /// # Errors
    /// What this kernel lacks for it.
    pub(super) fn begin(refused: &[Mechanism]) -> Result<Self> {
        let kernel = probe::probe(Path::new("/"))?;
        let settings = Settings {
            max_size: u32::MAX,
            families: vec![Family::Slab, Family::Vmalloc, Family::Percpu],
            refused: refused.to_vec(),
            ..Settings::default()
        };
        let sizes = Sizes::choose(&kernel.machine, None)?;
        let attribution = Attribution::new(Arc::new(kernel.symbols), Vec::new());
        let mut tracer = Tracer::new(&kernel.layout, sizes, settings, Arc::new(attribution), &[])?;
        tracer.attach()?;
        Ok(Self(tracer))
    }

    /// Bytes of kernel memory that its tables take.
    pub(super) fn table_bytes(&self) -> u64 {
        self.0.table_bytes()
    }

    /// Makes room when the tables fill up.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn relieve(&mut self) -> Result<()> {
        self.0.relieve()
    }

    /// Detaches the programs, and says what they saw of some objects.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn end(mut self, of: impl Iterator<Item = u64>) -> Result<Seen> {
        let of: FxHashSet<u64> = of.collect();
        self.0.detach()?;
        let mut objects = FxHashSet::default();
        self.0.each_address(|address| {
            if of.contains(&address) {
                objects.insert(address);
            }
        })?;
        let snapshot = self.0.snapshot()?;
        let missed = snapshot.lost.recursion_misses + snapshot.lost.live_overflow;
        let by_content = "the others are told by their content";
        let note = if snapshot.sampling > 1 {
            let one_in = snapshot.sampling;
            Some(format!("one in {one_in} objects that were allocated meanwhile was noted; {by_content}"))
        } else if missed > 0 {
            let missed = units::plural(missed as usize, "event");
            Some(format!(
                "what was allocated meanwhile was noted, but for {missed} that were missed; {by_content}"
            ))
        } else {
            None
        };
        Ok(Seen { objects, is_whole: note.is_none(), note })
    }
}
