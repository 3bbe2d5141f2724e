//! <file:line> and inlined functions, from a vmlinux or a module with DWARF.

use std::{
    borrow::Cow,
    fs::File,
    path::{Path, PathBuf},
};

use addr2line::gimli::{self, EndianSlice, RunTimeEndian, SectionId};
use anyhow::{Context as _, Result, anyhow, bail};
use memmap2::Mmap;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationKind, RelocationTarget};

use super::symbols::Symbols;

type Reader = EndianSlice<'static, RunTimeEndian>;

/// One function on the way to an address: the one that was called, or one inlined into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Name of the function, where DWARF has it.
    pub function: Option<String>,
    /// Source file as the compiler was given it.
    pub file: Option<String>,
    /// Line number.
    pub line: Option<u32>,
}

/// The debug information of the kernel or of one module.
struct Debug {
    context: addr2line::Context<Reader>,
    /// What is added to an address in the file to get the one in the running kernel.
    slide: u64,
    /// Running addresses that the file can know.
    range: std::ops::Range<u64>,
}

/// All debug information that was given.
#[derive(Default)]
pub struct DebugInfo {
    files: Vec<Debug>,
}

impl DebugInfo {
    /// Opens the files.
    ///
    /// # Errors
    /// When one cannot be read, has no DWARF, or cannot be related to the running kernel.
    pub fn open(paths: &[PathBuf], symbols: &Symbols, root: &Path) -> Result<Self> {
        let files = paths
            .iter()
            .map(|path| {
                Debug::open(path, symbols, root).with_context(|| format!("cannot use {}", path.display()))
            })
            .collect::<Result<_>>()?;
        Ok(Self { files })
    }

    /// The lines of a running address, the innermost inlined function first; empty when not known.
    pub fn lines(&self, address: u64) -> Vec<Line> {
        let Some(debug) = self.files.iter().find(|debug| debug.range.contains(&address)) else {
            return Vec::new();
        };
        debug.lines(address.wrapping_sub(debug.slide)).unwrap_or_default()
    }
}

impl Debug {
    fn open(path: &Path, symbols: &Symbols, root: &Path) -> Result<Self> {
        let file = File::open(path)?;
        // Debug information is used to the end of the process and is too large to copy, so it is leaked.
        // SAFETY: the mapping is private; a file that is truncated meanwhile would raise SIGBUS,
        // and debug files are not written while they are in use.
        let map: &'static Mmap = Box::leak(Box::new(unsafe { Mmap::map(&file) }?));
        let object = object::File::parse(&**map)?;
        if object.section_by_name(".debug_info").is_none() && object.section_by_name(".zdebug_info").is_none()
        {
            bail!("it has no DWARF debug information");
        }
        let (slide, range) = if object.kind() == object::ObjectKind::Relocatable {
            module_range(path, &object, root)?
        } else {
            kernel_range(&object, symbols)?
        };
        let endian = if object.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let dwarf = gimli::Dwarf::load(|id| load_section(&object, id, endian))?;
        Ok(Self { context: addr2line::Context::from_dwarf(dwarf)?, slide, range })
    }

    fn lines(&self, address: u64) -> Result<Vec<Line>, gimli::Error> {
        let mut frames = self.context.find_frames(address).skip_all_loads()?;
        let mut lines = Vec::new();
        while let Some(frame) = frames.next()? {
            let function = frame.function.and_then(|name| name.demangle().ok().map(Cow::into_owned));
            let location = frame.location;
            lines.push(Line {
                function,
                file: location.as_ref().and_then(|location| location.file).map(ToOwned::to_owned),
                line: location.and_then(|location| location.line),
            });
        }
        Ok(lines)
    }
}

/// The kernel may run at another address than it was linked at (KASLR).
fn kernel_range(object: &object::File<'_>, symbols: &Symbols) -> Result<(u64, std::ops::Range<u64>)> {
    let linked = object
        .symbols()
        .find(|symbol| symbol.name() == Ok("_stext"))
        .map(|symbol| symbol.address())
        .context("it has no symbol _stext")?;
    let running = symbols.address_of("_stext").context("/proc/kallsyms does not show _stext")?;
    Ok((running.wrapping_sub(linked), running..running.saturating_add(1 << 30)))
}

/// A module's file is relocatable: its `.text` begins where sysfs says.
fn module_range(path: &Path, object: &object::File<'_>, root: &Path) -> Result<(u64, std::ops::Range<u64>)> {
    let name = path.file_name().and_then(|name| name.to_str()).context("it has no name")?;
    let module = name.split('.').next().unwrap_or_default().replace('-', "_");
    let sections = root.join("sys/module").join(&module).join("sections/.text");
    let text = std::fs::read_to_string(&sections)
        .with_context(|| format!("module {module} is not loaded ({})", sections.display()))?;
    let start = u64::from_str_radix(text.trim().trim_start_matches("0x"), 16)
        .with_context(|| format!("cannot understand {}", sections.display()))?;
    let section = object.section_by_name(".text").context("it has no .text")?;
    Ok((start.wrapping_sub(section.address()), start..start.saturating_add(section.size())))
}

/// Reads a debug section, decompressed, and relocated as a linker would with all sections at 0.
fn load_section(object: &object::File<'static>, id: SectionId, endian: RunTimeEndian) -> Result<Reader> {
    let Some(section) = object.section_by_name(id.name()) else {
        return Ok(EndianSlice::new(&[], endian));
    };
    let mut data = section.uncompressed_data()?;
    if object.kind() == object::ObjectKind::Relocatable {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            if relocation.kind() != RelocationKind::Absolute {
                continue;
            }
            let symbol = object.symbol_by_index(symbol)?;
            // Code outside .text (.init.text, .exit.text) would alias it at 0: keep it out of reach.
            let aliases = symbol.section_index().is_some_and(|index| is_other_code(object, index));
            let base = if aliases { 1 << 40 } else { symbol.address() };
            let value = base.wrapping_add_signed(relocation.addend());
            let width = usize::from(relocation.size() / 8).min(8);
            let start = usize::try_from(offset)?;
            let bytes = data
                .to_mut()
                .get_mut(start..start + width)
                .ok_or_else(|| anyhow!("a relocation lies outside {}", id.name()))?;
            bytes.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
    let data: &'static [u8] = match data {
        Cow::Borrowed(data) => data,
        Cow::Owned(data) => Vec::leak(data),
    };
    Ok(EndianSlice::new(data, endian))
}

fn is_other_code(object: &object::File<'_>, index: object::SectionIndex) -> bool {
    object
        .section_by_index(index)
        .is_ok_and(|section| section.kind() == object::SectionKind::Text && section.name() != Ok(".text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const SOURCE: &str = "\
static inline __attribute__((always_inline)) int inner(int x)
{
	return *(volatile int *)0 + x;
}
__attribute__((noinline)) int _stext(int x)
{
	return inner(x) + 1;
}
int main(int argc, char **argv) { return _stext(argc); }
";

    fn compile(dir: &Path, output: &str, arguments: &[&str]) -> PathBuf {
        std::fs::write(dir.join("leak.c"), SOURCE).unwrap();
        let output = dir.join(output);
        let status = Command::new("cc")
            .args(arguments)
            .args(["-g", "-O2", "leak.c", "-o"])
            .arg(&output)
            .current_dir(dir)
            .status();
        assert!(status.unwrap().success());
        output
    }

    fn expect_inlined(info: &DebugInfo, start: u64) {
        let lines = (0..32).map(|offset| info.lines(start + offset)).find(|lines| lines.len() == 2).unwrap();
        assert_eq!((lines[0].function.as_deref(), lines[0].line), (Some("inner"), Some(3)));
        assert_eq!((lines[1].function.as_deref(), lines[1].line), (Some("_stext"), Some(7)));
        assert!(lines[0].file.as_ref().unwrap().ends_with("leak.c"));
    }

    #[test]
    fn a_kernel_that_runs_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let file = compile(root.path(), "vmlinux", &["-no-pie"]);
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/kallsyms"), "ffffffff9a000000 T _stext\n").unwrap();
        let symbols = Symbols::read(root.path()).unwrap();
        let info = DebugInfo::open(&[file], &symbols, root.path()).unwrap();
        expect_inlined(&info, 0xffff_ffff_9a00_0000);
        assert!(info.lines(0x1000).is_empty());
    }

    #[test]
    fn a_module_is_relocated() {
        let root = tempfile::tempdir().unwrap();
        let file = compile(root.path(), "my-drv.ko", &["-c"]);
        let sections = root.path().join("sys/module/my_drv/sections");
        std::fs::create_dir_all(&sections).unwrap();
        std::fs::write(sections.join(".text"), "0xffffffffc0100000\n").unwrap();
        let info = DebugInfo::open(&[file], &Symbols::empty(), root.path()).unwrap();
        expect_inlined(&info, 0xffff_ffff_c010_0000);
    }

    #[test]
    fn useless_files_are_refused_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let file = compile(root.path(), "stripped", &["-s"]);
        let refusal = |file: PathBuf| {
            format!("{:#}", DebugInfo::open(&[file], &Symbols::empty(), root.path()).err().unwrap())
        };
        assert!(refusal(file).contains("no DWARF"));
        assert!(refusal(root.path().join("leak.c")).contains("cannot use"));
        assert!(refusal(root.path().join("absent")).contains("No such file"));
    }
}
