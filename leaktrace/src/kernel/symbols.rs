//! Symbols of the kernel and its modules, from /proc/kallsyms.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _},
    ops::Range,
    path::Path,
};

use anyhow::{Context as _, Result};

/// Names longer than this are cut: `KSYM_NAME_LEN` of `include/linux/kallsyms.h` is 512.
const MAX_NAME: usize = 512;

struct Symbol {
    address: u64,
    /// Where the name begins in `names`; it ends where the length says.
    name: u32,
    length: u16,
    /// Index into `modules`; 0 is the kernel itself.
    module: u16,
}

/// Bytes behind which an address has nothing to do with a symbol.
const FAR: u64 = 1 << 20;
const PAGE: u64 = 4_096;

/// What kallsyms calls symbols of code, and of data (`nm(1)`).
const CODE: &str = "tTwW";
const DATA: &str = "dDbBrRaAvV";

/// All symbols of code, or of data, sorted by address.
pub struct Symbols {
    table: Vec<Symbol>,
    names: String,
    modules: Vec<String>,
    /// Whether these are symbols of code.
    code: bool,
    /// Data symbols that leaktrace needs, where the kernel lists data at all (`KALLSYMS_ALL`).
    data: Vec<(&'static str, u64)>,
    note: Option<String>,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location<'a> {
    /// Name of the function.
    pub symbol: &'a str,
    /// Bytes from its start.
    pub offset: u64,
    /// Name of the module, `None` for the kernel itself.
    pub module: Option<&'a str>,
}

impl Location<'_> {
    /// `symbol+0xoffset [module]`.
    pub fn label(&self) -> String {
        let module = self.module.map(|module| format!(" [{module}]")).unwrap_or_default();
        format!("{}+{:#x}{module}", self.symbol, self.offset)
    }
}

/// What kallsyms calls the modules of code that the kernel generates.
const GENERATED: [&str; 2] = ["bpf", "__builtin__ftrace"];

/// Variables that have no bytes (`struct lock_class_key` without lockdep), and so the address of the next one.
const EMPTY: &str = "__key.";

/// The symbols worth keeping whatever they are of: where x86-64 has its memory (`arch/x86/kernel/head64.c`), the image's bounds
/// (`include/asm-generic/sections.h`), and the first page table of x86-64 and of arm64.
const WANTED_DATA: [&str; 6] =
    ["vmemmap_base", "page_offset_base", "_text", "_end", "init_top_pgt", "swapper_pg_dir"];

/// `/proc/kallsyms`, open. Whether it shows addresses is settled when it is opened (`kernel/kallsyms.c`,
/// `kallsyms_open`): what was opened with the right to see them shows them for good.
pub struct Kallsyms(File);

impl Kallsyms {
    /// Opens it below `root`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("proc/kallsyms");
        File::open(&path).map(Self).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The symbols of code, as they are now.
    ///
    /// # Errors
    /// When the file cannot be read; hidden addresses are no error but a [`Symbols::note`].
    pub fn symbols(&self) -> Result<Symbols> {
        Symbols::read_kinds(&self.0, CODE)
    }

    /// The symbols of data, which the kernel lists if it is built with `KALLSYMS_ALL`. Those of per-CPU
    /// variables have the addresses that are added to where a CPU's copy is.
    ///
    /// # Errors
    /// As [`Kallsyms::symbols`].
    pub fn data(&self) -> Result<Symbols> {
        Symbols::read_kinds(&self.0, DATA)
    }

    /// The symbols of the code of some modules.
    ///
    /// # Errors
    /// As [`Kallsyms::symbols`].
    pub fn of_modules(&self, modules: &[String]) -> Result<Symbols> {
        let mut symbols = self.symbols()?;
        let wanted: Vec<bool> = symbols.modules.iter().map(|name| modules.contains(name)).collect();
        symbols.table.retain(|symbol| wanted[usize::from(symbol.module)]);
        symbols.table.shrink_to_fit();
        // The names of all others are megabytes, and this is kept for each load of a module.
        let mut names = String::new();
        for symbol in &mut symbols.table {
            let start = symbol.name as usize;
            symbol.name = names.len() as u32;
            names.push_str(&symbols.names[start..start + usize::from(symbol.length)]);
        }
        symbols.names = names;
        Ok(symbols)
    }
}

impl Symbols {
    /// Reads `/proc/kallsyms` below `root`.
    ///
    /// # Errors
    /// When the file cannot be read; hidden addresses are no error but a [`Symbols::note`].
    pub fn read(root: &Path) -> Result<Self> {
        Kallsyms::open(root)?.symbols()
    }

    /// Reads the symbols of data; see [`Kallsyms::data`].
    ///
    /// # Errors
    /// As [`Symbols::read`].
    pub fn read_data(root: &Path) -> Result<Self> {
        Kallsyms::open(root)?.data()
    }

    fn read_kinds(file: &File, kinds: &str) -> Result<Self> {
        let mut symbols = Self { code: kinds == CODE, ..Self::empty() };
        let mut lines = BufReader::with_capacity(1 << 16, file);
        lines.rewind().context("cannot read /proc/kallsyms")?;
        let mut line = Vec::new();
        let (mut seen, mut hidden) = (0_u64, 0_u64);
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line).context("cannot read /proc/kallsyms")? == 0 {
                break;
            }
            seen += 1;
            hidden += u64::from(line.starts_with(b"0000000000000000 ") || line.starts_with(b"(null)"));
            symbols.add_line(&String::from_utf8_lossy(&line), kinds);
        }
        symbols.sort();
        if seen == 0 {
            symbols.note = Some(
                "/proc/kallsyms is empty (CONFIG_KALLSYMS is off): call sites are shown as addresses".into(),
            );
        } else if hidden * 2 > seen {
            symbols = Self::empty();
            symbols.note = Some(
                "/proc/kallsyms hides addresses: call sites are shown as addresses; `sysctl kernel.kptr_restrict=1` shows them to root"
                    .into(),
            );
        }
        Ok(symbols)
    }

    /// No symbols at all.
    pub fn empty() -> Self {
        Self {
            table: Vec::new(),
            names: String::new(),
            modules: vec![String::new()],
            code: true,
            data: Vec::new(),
            note: None,
        }
    }

    /// Why there are no symbols, in one line.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn add_line(&mut self, line: &str, kinds: &str) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            return;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { return };
        if let Some(wanted) = WANTED_DATA.into_iter().find(|&wanted| wanted == name) {
            self.data.push((wanted, address));
        }
        if !kinds.contains(kind) || address == 0 || name.starts_with(EMPTY) {
            return;
        }
        let module = fields.next().map_or("", |module| module.trim_matches(['[', ']']));
        let module = self.module_index(module);
        let name = truncate(name, MAX_NAME);
        let Ok(start) = u32::try_from(self.names.len()) else { return };
        self.names.push_str(name);
        self.table.push(Symbol { address, name: start, length: name.len() as u16, module });
    }

    fn module_index(&mut self, module: &str) -> u16 {
        // Modules come in runs, so the last one is nearly always it.
        if let Some(index) = self.modules.iter().rposition(|known| known == module) {
            return index as u16;
        }
        if self.modules.len() >= usize::from(u16::MAX) {
            return 0;
        }
        self.modules.push(truncate(module, 64).to_owned());
        (self.modules.len() - 1) as u16
    }

    /// Sorts by address. Of several at one address the last one is taken, and that is a function or variable, no marker.
    fn sort(&mut self) {
        let names = std::mem::take(&mut self.names);
        let is_named = |symbol: &Symbol| {
            !is_marker(&names[symbol.name as usize..symbol.name as usize + usize::from(symbol.length)])
        };
        self.table.sort_by_key(|symbol| (symbol.address, is_named(symbol)));
        self.names = names;
    }

    /// The function or variable that an address lies in.
    ///
    /// Code of a module or of the kernel has whole pages to itself, so it ends with the page of its last symbol: what
    /// lies behind is another's, or was a module's that is gone. What BPF and ftrace generate is no longer than a page.
    pub fn locate(&self, address: u64) -> Option<Location<'_>> {
        let after = self.table.partition_point(|symbol| symbol.address <= address);
        let symbol = &self.table[after.checked_sub(1)?];
        let offset = address - symbol.address;
        let generated = GENERATED.contains(&self.modules[usize::from(symbol.module)].as_str());
        let is_last = self.table.get(after).is_none_or(|next| next.module != symbol.module);
        let limit = match (generated, self.code && is_last) {
            (true, _) => PAGE,
            (_, true) => end_behind(symbol.address) - symbol.address,
            (_, false) => FAR,
        };
        (offset < limit).then(|| Location {
            symbol: self.name(symbol),
            offset,
            module: Some(self.modules[usize::from(symbol.module)].as_str()).filter(|name| !name.is_empty()),
        })
    }

    /// The symbol of a module that an address lies in, of those that begin less than so many bytes before it: per-CPU
    /// addresses of modules may be those of the kernel's own data as well.
    pub fn locate_in_modules(&self, address: u64, within: u64) -> Option<Location<'_>> {
        let after = self.table.partition_point(|symbol| symbol.address <= address);
        self.table[..after]
            .iter()
            .rev()
            .take_while(|symbol| address - symbol.address < within)
            .find(|symbol| symbol.module != 0)
            .map(|symbol| Location {
                symbol: self.name(symbol),
                offset: address - symbol.address,
                module: Some(self.modules[usize::from(symbol.module)].as_str()),
            })
    }

    /// The function that a return address returns into: a call may be a function's last
    /// instruction, so the byte before decides, and the offset is still that of the address.
    pub fn locate_return(&self, address: u64) -> Option<Location<'_>> {
        let location = self.locate(address.wrapping_sub(1))?;
        Some(Location { offset: location.offset + 1, ..location })
    }

    fn name(&self, symbol: &Symbol) -> &str {
        &self.names[symbol.name as usize..symbol.name as usize + usize::from(symbol.length)]
    }

    /// Address of a symbol of the kernel itself.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.table
            .iter()
            .find(|symbol| symbol.module == 0 && self.name(symbol) == name)
            .map(|symbol| symbol.address)
    }

    /// Address of the symbol that comes after an address.
    pub fn next_after(&self, address: u64) -> Option<u64> {
        self.table
            .get(self.table.partition_point(|symbol| symbol.address <= address))
            .map(|symbol| symbol.address)
    }

    /// The last function of a module from one address on, before another.
    pub fn last_of(&self, module: &str, from: u64, before: u64) -> Option<u64> {
        let module = self.modules.iter().position(|name| name == module)? as u16;
        let start = self.table.partition_point(|symbol| symbol.address < from);
        let mut last = None;
        for symbol in &self.table[start..] {
            if symbol.module != module {
                // Another module's, or the kernel's own: this one's text has ended.
                break;
            }
            if symbol.address >= before || last.is_some_and(|last| symbol.address - last > 1 << 20) {
                break;
            }
            last = Some(symbol.address);
        }
        last
    }

    /// Where a module's code is: whole pages, from its first symbol to its last of each piece.
    pub fn pages_of(&self, module: &str) -> Vec<Range<u64>> {
        let Some(index) = self.modules.iter().position(|name| name == module) else { return Vec::new() };
        self.table
            .chunk_by(|a, b| a.module == b.module && b.address - a.address < FAR)
            .filter(|run| usize::from(run[0].module) == index)
            .map(|run| run[0].address / PAGE * PAGE..end_behind(run[run.len() - 1].address))
            .collect()
    }

    /// Addresses of a module's symbols, sorted.
    pub fn addresses_of<'a>(&'a self, module: &'a str) -> impl Iterator<Item = u64> + 'a {
        let index = self.modules.iter().position(|name| name == module).unwrap_or(usize::MAX);
        self.table
            .iter()
            .filter(move |symbol| usize::from(symbol.module) == index)
            .map(|symbol| symbol.address)
    }

    /// Address of one of the few data symbols that are kept.
    pub fn data_address(&self, name: &str) -> Option<u64> {
        self.data.iter().find(|(known, _)| *known == name).map(|&(_, address)| address)
    }

    /// Whether a module is loaded.
    pub fn has_module(&self, name: &str) -> bool {
        self.modules.iter().any(|module| module == name)
    }

    /// Number of code symbols.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// Where code ends whose last symbol is at an address: with its page, or the next where it begins near the end of one.
fn end_behind(last: u64) -> u64 {
    let goes_on = last % PAGE >= PAGE / 4 * 3;
    (last / PAGE + 1 + u64::from(goes_on)) * PAGE
}

/// Whether a symbol only says where something begins or ends (`include/asm-generic/vmlinux.lds.h`): the linker puts it at the
/// address of what is there.
fn is_marker(name: &str) -> bool {
    ["__start_", "__stop_", ".L"].iter().any(|prefix| name.starts_with(prefix))
        || ["_e", "_s"].iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| !rest.contains('_')))
}

fn truncate(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
#[path = "symbols_tests.rs"]
mod tests;
