//! From addresses to places in the code: symbols, and source lines where there is DWARF.

use std::{ops::Range, path::Path, sync::Arc};

use super::{
    dwarf::DebugInfo,
    symbols::{Location, Symbols},
};
use crate::report::model::Frame;

/// Loads of watched modules whose symbols are kept.
const LEARNED: usize = 64;

/// Everything that can say where an address lies.
pub struct Places {
    before: Arc<Symbols>,
    /// Watched modules while they were loaded, the latest first, with where their code was.
    learned: Vec<(Symbols, Vec<Range<u64>>)>,
    /// Read again at the end when modules came or went.
    after: Option<Symbols>,
    debug: DebugInfo,
    root_modules: String,
}

impl Places {
    /// What is known at the start of a run.
    pub fn new(symbols: Arc<Symbols>, debug: DebugInfo, root: &Path) -> Self {
        Self { before: symbols, learned: Vec::new(), after: None, debug, root_modules: modules(root) }
    }

    /// Learns the symbols of modules that were just loaded, and may be gone at the end.
    pub fn learn(&mut self, root: &Path, modules: &[String], code: Vec<Range<u64>>) {
        if let Ok(symbols) = Symbols::read_modules(root, modules) {
            self.learned.insert(0, (symbols, code));
            self.learned.truncate(LEARNED);
        }
    }

    /// Reads the symbols again if other modules are loaded than at the start.
    pub fn refresh(&mut self, root: &Path) {
        if modules(root) != self.root_modules {
            self.after = Symbols::read(root).ok();
        }
    }

    /// Why there are no symbols.
    pub fn note(&self) -> Option<&str> {
        self.before.note()
    }

    /// Where an address lay in a module that is not loaded any more: something else may be there now.
    fn gone(&self, address: u64) -> Option<Location<'_>> {
        let after = self.after.as_ref()?;
        self.before
            .locate_return(address)
            .filter(|location| location.module.is_some_and(|module| !after.has_module(module)))
    }

    /// The function of a return address.
    pub fn locate(&self, address: u64) -> Option<Location<'_>> {
        // A module that was unloaded is only in the first reading, one that was loaded in the second.
        let call = address.wrapping_sub(1);
        self.learned
            .iter()
            .filter(|(_, code)| code.iter().any(|range| range.contains(&call)))
            .find_map(|(symbols, _)| symbols.locate_return(address))
            .or_else(|| self.gone(address))
            .or_else(|| self.after.as_ref().and_then(|symbols| symbols.locate_return(address)))
            .or_else(|| self.before.locate_return(address))
    }

    /// The frames of a return address: one, and before it the functions inlined into it.
    pub fn frames(&self, address: u64) -> Vec<Frame> {
        let location = self.locate(address);
        let whole = Frame {
            address,
            symbol: location.map(|location| location.symbol.to_owned()),
            offset: location.map_or(0, |location| location.offset),
            module: location.and_then(|location| location.module).map(ToOwned::to_owned),
            ..Frame::default()
        };
        let lines = self.debug.lines(address.wrapping_sub(1));
        let Some((outer, inlined)) = lines.split_last() else { return vec![whole] };
        let mut frames: Vec<Frame> = inlined
            .iter()
            .map(|line| Frame {
                symbol: line.function.clone(),
                file: line.file.clone(),
                line: line.line,
                inlined: true,
                offset: 0,
                ..whole.clone()
            })
            .collect();
        frames.push(Frame { file: outer.file.clone(), line: outer.line, ..whole });
        frames
    }
}

/// Names and addresses of the loaded modules, without their use counts, which change all the time.
fn modules(root: &Path) -> String {
    std::fs::read_to_string(root.join("proc/modules"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(format!("{} {}\n", line.split(' ').next()?, line.split(' ').nth(5)?)))
        .collect()
}
