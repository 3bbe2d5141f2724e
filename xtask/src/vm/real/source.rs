//! The source of the guests' kernel, the modules that Debian built of it, and our own builds of some with an edit.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::cases::{Build, Edit, Place};
use crate::{
    arch::Arch,
    debian::Suite,
    run::{check, find, target},
};

/// Debian's suite, its package of the source, and its package of the stock kernel.
const SUITE: &str = "bookworm-backports";
const SOURCE: &str = "linux-source-6.12";
const IMAGE: &str = "linux-image-cloud-amd64";
/// Large parts of the source that no case needs.
const LEFT_OUT: [&str; 6] = ["arch", "Documentation", "drivers/gpu", "sound", "tools", "drivers/media"];

/// Source and stock modules, unpacked.
pub(crate) struct Sources {
    /// The kernel's tree.
    tree: PathBuf,
    /// The stock modules, by name.
    stock: PathBuf,
}

impl Sources {
    /// Finds or downloads those of the kernel that these headers are of.
    ///
    /// # Errors
    /// When they cannot be had, or Debian has another kernel by now.
    pub(crate) fn get(headers: &Path, offline: bool) -> Result<Self> {
        let root = target().join("vm/real");
        let sources = Self { tree: root.join("source"), stock: root.join("stock") };
        let release = fs::read_to_string(headers.join("include/config/kernel.release"))
            .with_context(|| format!("{} are no headers", headers.display()))?;
        let wanted = format!("linux-image-{}", release.trim());
        // Says of which kernel they are.
        let complete = root.join("complete");
        if fs::read_to_string(&complete).is_ok_and(|have| have == wanted) {
            return Ok(sources);
        }
        let _ = fs::remove_dir_all(&root);
        let suite = Suite::open(SUITE, Arch::X86_64, offline)?;
        let image = suite
            .dependencies(IMAGE)?
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{IMAGE} depends on no image"))?;
        if image != wanted {
            bail!("Debian has {image} by now, and the guests have {wanted}: remove target/vm/kernels/6.12");
        }
        suite.unpack(&[&image], &sources.stock)?;
        let packed = root.join("packed");
        suite.unpack(&[SOURCE], &packed)?;
        fs::create_dir_all(&sources.tree)?;
        let mut tar = Command::new("tar");
        tar.arg("-xJf")
            .arg(packed.join("usr/src").join(format!("{SOURCE}.tar.xz")))
            .arg("-C")
            .arg(&sources.tree);
        tar.args(["--strip-components=1"]);
        tar.args(LEFT_OUT.map(|name| format!("--exclude={SOURCE}/{name}")));
        check(&mut tar)?;
        fs::remove_dir_all(&packed)?;
        fs::write(complete, wanted)?;
        Ok(sources)
    }

    /// Builds a module of the tree against a kernel's headers and what `before` exports, with edits, and returns it, stripped.
    ///
    /// # Errors
    /// When an edit does not find its place, or with what the compiler said.
    pub(crate) fn build(
        &self,
        headers: &Path,
        case: &str,
        before: &[Build],
        build: &Build,
        edited: bool,
    ) -> Result<PathBuf> {
        let original = self.tree.join(build.directory);
        // Beside the original, so that what it includes by `../` is found.
        let copy = self.tree.join(format!("{}.{case}", build.directory));
        let _ = fs::remove_dir_all(&copy);
        check(Command::new("cp").arg("-r").arg(&original).arg(&copy))?;
        for edit in build.edits.iter().filter(|edit| edited || edit.always) {
            apply(&copy.join(edit.file), edit)?;
        }
        if !build.flags.is_empty() {
            let mut makefile = fs::File::options().append(true).open(copy.join("Makefile"))?;
            writeln!(makefile, "\nccflags-y += {}", build.flags)?;
        }
        let place = target().join("vm/real/built").join(case);
        fs::create_dir_all(&place)?;
        let before: Vec<_> = before
            .iter()
            .map(|build| place.join(format!("{}.symvers", build.module)).display().to_string())
            .collect();
        let name = format!("{}.ko", build.module);
        let mut command = Command::new("make");
        command
            .arg("-s")
            .arg("-C")
            .arg(headers)
            .arg(format!("M={}", copy.display()))
            .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
            .arg(format!("KBUILD_EXTRA_SYMBOLS={}", before.join(" ")))
            .args(build.settings)
            .arg(&name)
            .stdin(Stdio::null());
        if find("gcc-12").is_none() {
            command.arg("CC=gcc");
        }
        let output = command.output().context("cannot run make")?;
        if !output.status.success() {
            bail!(
                "{} does not build:\n{}{}",
                build.module,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let exported = place.join(format!("{}.symvers", build.module));
        fs::copy(copy.join("Module.symvers"), exported)?;
        let module = place.join(&name);
        check(Command::new("objcopy").arg("--strip-debug").arg(copy.join(&name)).arg(&module))?;
        fs::remove_dir_all(&copy)?;
        Ok(module)
    }

    /// A stock module, decompressed; none where the kernel has it built in.
    ///
    /// # Errors
    /// When it cannot be decompressed.
    pub(crate) fn stock(&self, name: &str) -> Result<Option<PathBuf>> {
        let place = target().join("vm/real/built/stock").join(format!("{name}.ko"));
        if place.exists() {
            return Ok(Some(place));
        }
        // Their names have `-` or `_`, which the kernel takes for the same.
        let file = format!("{name}.ko.xz");
        let Some(packed) = find_file(&self.stock.join("lib/modules"), &file) else { return Ok(None) };
        fs::create_dir_all(place.parent().context("it has a parent")?)?;
        let module = Command::new("xz").arg("-dc").arg(packed).output().context("cannot run xz")?;
        fs::write(&place, module.stdout)?;
        Ok(Some(place))
    }
}

/// What a module says that it depends on.
pub(crate) fn depends(module: &Path) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let bytes = fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
    let Some(begin) = bytes.windows(KEY.len()).position(|window| window == KEY) else {
        return Ok(Vec::new());
    };
    let list: Vec<u8> = bytes[begin + KEY.len()..].iter().copied().take_while(|&byte| byte != 0).collect();
    let list = String::from_utf8(list).context("a module's dependencies are no text")?;
    Ok(list.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect())
}

/// Finds a file below a directory by its name, whether that has `-` or `_`.
fn find_file(directory: &Path, name: &str) -> Option<PathBuf> {
    let same = |other: &str| other.replace('-', "_") == name.replace('-', "_");
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find_file(&path, name),
            _ => same(&entry.file_name().to_string_lossy()).then_some(path),
        }
    })
}

/// Makes an edit.
fn apply(file: &Path, edit: &Edit) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("the source has no {}", file.display()))?;
    let new = edited(&text, edit)
        .with_context(|| format!("{}: an edit does not fit this version of the source", edit.file))?;
    fs::write(file, new).with_context(|| format!("cannot write {}", file.display()))
}

/// A text with an edit made.
///
/// # Errors
/// When the text has no such place, or several.
fn edited(text: &str, edit: &Edit) -> Result<String> {
    let (begin, end) = match edit.place {
        Place::Everywhere => {
            if !text.contains(edit.from) {
                bail!("there is no `{}`", edit.from);
            }
            return Ok(text.replace(edit.from, edit.to));
        }
        Place::Start => return Ok(format!("{}\n{text}", edit.to)),
        Place::In(function) => body(text, function)?,
    };
    let body = &text[begin..end];
    let mut places = body.match_indices(edit.from);
    let (Some((at, _)), None) = (places.next(), places.next()) else {
        bail!("`{}` is not there exactly once, but {} times", edit.from, body.matches(edit.from).count());
    };
    let at = begin + at;
    Ok(format!("{}{}{}", &text[..at], edit.to, &text[at + edit.from.len()..]))
}

/// Where a function's definition lies: from its name, which no `;` ends, to the `}` in the first column.
fn body(text: &str, function: &str) -> Result<(usize, usize)> {
    let call = format!("{function}(");
    let mut found = text.match_indices(&call).filter(|&(at, _)| {
        let line = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
        let rest = &text[at..];
        let before = line.chars().next_back();
        !line.starts_with([' ', '\t', '#', '/'])
            && before.is_none_or(|before| !before.is_alphanumeric() && before != '_')
            && rest.find("\n{").is_some_and(|brace| !rest[..brace].contains(';'))
    });
    let (Some((begin, _)), None) = (found.next(), found.next()) else {
        bail!("there is not exactly one function {function}");
    };
    let end = text[begin..].find("\n}").with_context(|| format!("the function {function} has no end"))?;
    Ok((begin, begin + end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "int one(int a);\nint one(int a)\n{\n\tkfree(a);\n\tput(a);\n}\nint two(void)\n{\n\tone(1);\n\tkfree(a);\n}\n";

    fn edit(function: &'static str, from: &'static str) -> Edit {
        Edit { file: "", place: Place::In(function), from, to: "", always: false }
    }

    #[test]
    fn an_edit_is_made_in_its_function_only() {
        let new = edited(TEXT, &edit("one", "\tkfree(a);\n")).unwrap();
        assert_eq!(new, TEXT.replacen("\tkfree(a);\n", "", 1));
    }

    #[test]
    fn a_place_that_is_missing_or_not_the_only_one_is_an_error() {
        assert!(edited(TEXT, &edit("one", "vfree(a)")).is_err());
        assert!(edited(TEXT, &edit("one", "a")).is_err());
        assert!(edited(TEXT, &edit("three", "kfree(a)")).is_err());
    }
}
