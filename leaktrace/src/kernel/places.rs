//! From addresses to places in the code: symbols, and source lines where there is DWARF.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    ops::Range,
    path::Path,
    sync::Arc,
};

use super::{
    dwarf::DebugInfo,
    modules::Users,
    symbols::{Kallsyms, Location, Symbols},
};
use crate::report::model::Frame;

/// Loads of modules whose symbols are kept.
const LEARNED: usize = 64;

/// Symbols of modules while they were loaded, and where their code was.
pub struct Learned {
    symbols: Symbols,
    code: Vec<Range<u64>>,
}

impl Learned {
    /// The function of a return address, if it lies in one of these modules.
    pub fn locate_return(&self, address: u64) -> Option<Location<'_>> {
        let call = address.wrapping_sub(1);
        let inside = self.code.iter().any(|range| range.contains(&call));
        inside.then(|| self.symbols.locate_return(address)).flatten()
    }
}

/// Everything that can say where an address lies.
pub struct Places {
    before: Arc<Symbols>,
    /// Modules that came meanwhile, the latest first, with where their code was.
    learned: Vec<Arc<Learned>>,
    /// Which modules use which.
    users: Arc<Users>,
    /// Read again when modules came or went.
    after: Option<Symbols>,
    debug: DebugInfo,
    /// Opened once: with less rights than at the start they would hide addresses.
    kallsyms: Option<Kallsyms>,
    modules: Option<File>,
    /// What was loaded when symbols were read last.
    modules_seen: String,
    /// What was loaded when new modules were asked for last.
    noticed: String,
}

impl Places {
    /// What is known at the start of a run.
    pub fn new(symbols: Arc<Symbols>, debug: DebugInfo, root: &Path) -> Self {
        let modules = File::open(root.join("proc/modules")).ok();
        let text = modules.as_ref().map(read).unwrap_or_default();
        let modules_seen = loaded(&text);
        let mut users = Users::default();
        users.add(&text);
        let kallsyms = Kallsyms::open(root).ok();
        let (noticed, users) = (modules_seen.clone(), Arc::new(users));
        Self {
            before: symbols,
            learned: Vec::new(),
            users,
            after: None,
            debug,
            kallsyms,
            modules,
            modules_seen,
            noticed,
        }
    }

    /// Notices modules that have come since the last call, and learns their symbols: they may be gone at the end. Those that
    /// are watched are learnt as soon as they are loaded. True when more is known than before.
    pub fn notice(&mut self) -> bool {
        let text = self.modules.as_ref().map(read).unwrap_or_default();
        let mut users = (*self.users).clone();
        users.add(&text);
        let mut more = users != *self.users;
        if more {
            self.users = Arc::new(users);
        }
        let now = loaded(&text);
        if now == self.noticed {
            return more;
        }
        let new: Vec<String> = now
            .lines()
            .filter(|line| !self.noticed.lines().any(|known| known == *line))
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect();
        self.noticed = now;
        if new.is_empty() {
            return more;
        }
        if let Some(Ok(symbols)) = self.kallsyms.as_ref().map(|kallsyms| kallsyms.of_modules(&new)) {
            let code = new.iter().flat_map(|module| symbols.pages_of(module)).collect();
            self.keep(symbols, code);
            more = true;
        }
        more
    }

    /// Modules that came meanwhile, the latest first.
    pub fn learned(&self) -> &[Arc<Learned>] {
        &self.learned
    }

    /// Which modules use which.
    pub fn users(&self) -> &Arc<Users> {
        &self.users
    }

    /// Learns the symbols of modules that were just loaded, and may be gone at the end.
    pub fn learn(&mut self, modules: &[String], code: Vec<Range<u64>>) {
        if let Some(Ok(symbols)) = self.kallsyms.as_ref().map(|kallsyms| kallsyms.of_modules(modules)) {
            self.keep(symbols, code);
        }
    }

    fn keep(&mut self, symbols: Symbols, code: Vec<Range<u64>>) {
        self.learned.insert(0, Arc::new(Learned { symbols, code }));
        self.learned.truncate(LEARNED);
    }

    /// Reads the symbols again if other modules are loaded than at the last reading.
    pub fn refresh(&mut self) {
        let now = loaded(&self.modules.as_ref().map(read).unwrap_or_default());
        if now != self.modules_seen {
            self.after = self.kallsyms.as_ref().and_then(|kallsyms| kallsyms.symbols().ok());
            self.modules_seen = now;
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
        self.learned
            .iter()
            .find_map(|learned| learned.locate_return(address))
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

/// /proc/modules as it is now.
fn read(mut modules: &File) -> String {
    let mut text = String::new();
    // What cannot be read counts as a change, after which symbols are read again.
    let _ = modules.rewind().and_then(|()| modules.read_to_string(&mut text));
    text
}

/// Names and addresses of the loaded modules, without their use counts, which change all the time.
fn loaded(text: &str) -> String {
    text.lines()
        .filter_map(|line| Some(format!("{} {}\n", line.split(' ').next()?, line.split(' ').nth(5)?)))
        .collect()
}
