//! The modules that are watched: where their code is, and when they come and go.

use leaktrace_common::{Control, MODULE_EVENTS, MODULE_RANGES, ModuleEvent, ModuleRange};

use super::mapped::MappedArray;

/// One stay of a watched module in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Name of the module.
    pub module: String,
    /// Its code: text, and the text of its initialisation, which goes when that has ended.
    pub ranges: [(u64, u64); MODULE_RANGES],
    /// When it was loaded, in nanoseconds of `CLOCK_MONOTONIC`; 0: before the trace.
    pub loaded_ns: u64,
    /// When it was removed, `None` while it is loaded.
    pub removed_ns: Option<u64>,
}

impl Stay {
    /// Whether an address lies in its code.
    pub fn contains(&self, address: u64) -> bool {
        self.ranges.iter().any(|&(start, end)| (start..end).contains(&address))
    }
}

/// What is known of the watched modules.
pub struct Watch {
    modules: Vec<String>,
    ranges: MappedArray<ModuleRange>,
    log: MappedArray<ModuleEvent>,
    seen: u64,
    /// Events that were overwritten before they were read.
    missed: u64,
    stays: Vec<Stay>,
    /// Whether a module was loaded that nobody has asked for yet.
    loaded: bool,
}

impl Watch {
    pub(super) fn new(
        modules: Vec<String>,
        ranges: MappedArray<ModuleRange>,
        log: MappedArray<ModuleEvent>,
    ) -> Self {
        Self { modules, ranges, log, seen: 0, missed: 0, stays: Vec::new(), loaded: false }
    }

    /// Whether any module is watched.
    pub fn is_on(&self) -> bool {
        !self.modules.is_empty()
    }

    /// Tells the programs of a module that is loaded already; before they are attached.
    pub(super) fn begin_with(&mut self, control: &MappedArray<Control>, module: &str, text: (u64, u64)) {
        let Some(index) = self.modules.iter().position(|name| name == module) else { return };
        let stay = Stay { module: module.to_owned(), ranges: [text, (0, 0)], loaded_ns: 0, removed_ns: None };
        self.stays.push(stay);
        let control = control.at(0);
        // SAFETY: both are mapped, and no program runs yet.
        unsafe {
            self.ranges.at(index * MODULE_RANGES).write_volatile(ModuleRange { start: text.0, end: text.1 });
            let low = (&raw const (*control).watch_low).read_volatile();
            let high = (&raw const (*control).watch_high).read_volatile();
            let low = if high == 0 { text.0 } else { low.min(text.0) };
            (&raw mut (*control).watch_low).write_volatile(low);
            (&raw mut (*control).watch_high).write_volatile(high.max(text.1));
            let watched = (&raw const (*control).watched).read_volatile();
            (&raw mut (*control).watched).write_volatile(watched + 1);
        }
    }

    /// Reads the events since the last call.
    pub(super) fn update(&mut self, control: &Control) {
        let newest = control.module_events;
        let oldest = newest.saturating_sub(u64::from(MODULE_EVENTS));
        if oldest > self.seen {
            self.missed += oldest - self.seen;
            self.seen = oldest;
        }
        while self.seen < newest {
            let event = self.log.read(self.seen as usize % MODULE_EVENTS as usize);
            // The number is written last. Read again, it says whether the rest was written over meanwhile.
            let complete = event.number == self.seen + 1
                && self.log.read(self.seen as usize % MODULE_EVENTS as usize).number == event.number;
            if event.number <= self.seen {
                // Being written: at the next look.
                break;
            }
            self.seen += 1;
            if !complete {
                self.missed += 1;
                continue;
            }
            let Some(module) = self.modules.get(event.module as usize) else { continue };
            if event.loaded == 0 {
                if let Some(stay) = self
                    .stays
                    .iter_mut()
                    .rev()
                    .find(|stay| stay.module == *module && stay.removed_ns.is_none())
                {
                    stay.removed_ns = Some(event.time_ns);
                }
            } else {
                self.loaded = true;
                self.stays.push(Stay {
                    module: module.clone(),
                    ranges: event.ranges.map(|range| (range.start, range.end)),
                    loaded_ns: event.time_ns,
                    removed_ns: None,
                });
            }
        }
    }

    /// Whether a module was loaded since this was last asked.
    pub(super) fn take_loaded(&mut self) -> bool {
        std::mem::take(&mut self.loaded)
    }

    /// All stays, in the order in which they began.
    pub fn stays(&self) -> &[Stay] {
        &self.stays
    }

    /// Events that were lost because more modules came and went than are kept.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}
