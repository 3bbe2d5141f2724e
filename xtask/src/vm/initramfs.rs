//! What a guest boots into: an archive with our init, the command, and the files that it needs.

use std::{
    fs::{self, File},
    io::{BufWriter, Cursor, Read, Seek},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use cpio::{NewcBuilder, newc::ModeFileType, write_cpio};

/// Collects what goes into the archive.
#[derive(Default)]
pub(crate) struct Initramfs {
    inputs: Vec<(NewcBuilder, Box<dyn Contents>)>,
    next: u32,
}

trait Contents: Read + Seek {}
impl<T: Read + Seek> Contents for T {}

impl Initramfs {
    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32) -> NewcBuilder {
        self.next += 1;
        NewcBuilder::new(name).ino(self.next).mode(mode).set_mode_file_type(kind)
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, name: &str) {
        let entry = self.entry(name, ModeFileType::Directory, 0o755);
        self.inputs.push((entry, Box::new(Cursor::new(Vec::new()))));
    }

    /// A file with this text.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        let entry = self.entry(name, ModeFileType::Regular, 0o644);
        self.inputs.push((entry, Box::new(Cursor::new(text.as_bytes().to_vec()))));
    }

    /// A program for the shell.
    pub(crate) fn script(&mut self, name: &str, text: &str) {
        let entry = self.entry(name, ModeFileType::Regular, 0o755);
        self.inputs.push((entry, Box::new(Cursor::new(text.as_bytes().to_vec()))));
    }

    /// A copy of a file, as executable as that is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let entry = self.entry(name, ModeFileType::Regular, mode);
        self.inputs.push((entry, Box::new(file)));
        Ok(())
    }

    /// A copy of everything below a directory; links are copied as what they lead to.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(crate) fn tree(&mut self, name: &str, path: &Path) -> Result<()> {
        self.directory(name);
        let mut entries: Vec<_> = fs::read_dir(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .collect::<std::io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inner = format!("{name}/{}", entry.file_name().to_string_lossy());
            // What a link leads to may be missing: packages are unpacked one by one.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_dir() {
                self.tree(&inner, &entry.path())?;
            } else {
                self.file(&inner, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        write_cpio(self.inputs.into_iter(), BufWriter::new(file))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}
