//! Where the report goes: to standard output, or to a file that is complete or not there.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

use crate::report::{
    forms::{self, Form},
    model::Report,
    page::WIDTH,
    text::Style,
};

/// Whether standard output was closed when this process started: then the runtime has put /dev/null in its place, and a report
/// would be lost in silence.
fn closed_at_start() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

const CLOSED_STDOUT: &str = "cannot write the answer: standard output is closed";
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before the runtime replaces closed descriptors (`sanitize_standard_fds` of Rust's library).
extern "C" fn look_at_standard_output() {
    // SAFETY: fcntl with F_GETFD takes any number, and touches no memory.
    let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } < 0;
    CLOSED.store(closed, Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions that are called once before main, by the C library; this one needs nothing
// that is set up later.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = look_at_standard_output;

/// Says a line on standard error. A terminal that is gone or a pipe that nobody reads is no reason to end, least of all
/// in the middle of a report to a file.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Columns of the terminal that standard output is, or of a page.
pub(super) fn width() -> usize {
    terminal_size::terminal_size_of(io::stdout())
        .map_or(WIDTH, |(width, _)| usize::from(width.0).clamp(NARROWEST, WIDEST))
}

/// Narrower terminals wrap lines, and wider ones leave room.
const NARROWEST: usize = 40;
const WIDEST: usize = 160;

/// The place for a report, found writable before anything is traced.
pub(super) enum Output {
    Stdout,
    /// A device, a pipe or a socket: nothing that could be replaced by a file.
    Special {
        path: PathBuf,
        file: File,
    },
    File {
        path: PathBuf,
        directory: PathBuf,
    },
}

impl Output {
    /// Finds out that the report can be written.
    ///
    /// # Errors
    /// When the path is a directory or its directory cannot be written to.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return if closed_at_start() { bail!(CLOSED_STDOUT) } else { Ok(Self::Stdout) };
        };
        if is_planted(path) {
            bail!(
                "cannot write {}: it is a link that another user has put into a directory for everyone",
                path.display()
            );
        }
        // A link stays one, and what it leads to is replaced.
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if path.is_dir() {
            bail!("cannot write {}: it is a directory", path.display());
        }
        let unwritable = || format!("cannot write {}", path.display());
        if let Ok(metadata) = path.metadata()
            && !metadata.is_file()
        {
            let file = File::options().write(true).open(path).with_context(unwritable)?;
            return Ok(Self::Special { path: path.to_owned(), file });
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // By a name that the user knows.
        directory.metadata().with_context(unwritable)?;
        // Only to see that one can be made: left until the end, it would stay after a kill.
        temporary_in(directory).and_then(NamedTempFile::close).with_context(unwritable)?;
        Ok(Self::File { path: path.to_owned(), directory: directory.to_owned() })
    }

    /// Whether the report will be read on a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdout) && io::IsTerminal::is_terminal(&io::stdout())
    }

    /// How text is to look there.
    pub(super) fn style(&self, verbose: bool, top: usize) -> Style {
        let terminal = self.is_terminal();
        Style {
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            verbose,
            top,
            width: if terminal { width() } else { WIDTH },
        }
    }

    /// Finds out that a form can be written there.
    ///
    /// # Errors
    /// When a terminal would show what is no text.
    pub(super) fn check(&self, form: Form) -> Result<()> {
        if form.is_binary() && self.is_terminal() {
            bail!("a profile is no text for a terminal: write it to a file with --output FILE");
        }
        Ok(())
    }

    /// Writes a report in a form.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn tell(self, report: &Report, form: Form, verbose: bool, top: u32) -> Result<()> {
        let rendered = forms::render(report, form, &self.style(verbose, top as usize))?;
        self.write(&rendered)
    }

    /// Writes what was rendered. A reader that has gone, as `head` does, has seen enough: what was found stands all the same, and
    /// so does the exit status.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(self, text: &[u8]) -> Result<()> {
        self.write_all(text).or_else(|error| if is_broken_pipe(&error) { Ok(()) } else { Err(error) })
    }

    fn write_all(self, text: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                if closed_at_start() {
                    bail!(CLOSED_STDOUT);
                }
                stdout.write_all(text).context("cannot write the report")?;
                stdout.flush().context("cannot write the report")
            }
            Self::Special { path, mut file } => {
                file.write_all(text).with_context(|| format!("cannot write {}", path.display()))
            }
            Self::File { path, directory } => {
                use std::os::unix::fs::PermissionsExt as _;
                let write = || -> io::Result<()> {
                    let mut temporary = temporary_in(&directory)?;
                    temporary.as_file_mut().write_all(text)?;
                    // The report has kernel addresses: for the owner and the group, not for everyone.
                    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o640))?;
                    temporary.as_file().sync_all()?;
                    temporary.persist(&path)?;
                    Ok(())
                };
                write().with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

/// Whether the kernel would not follow a link where it is asked to protect (`fs/namei.c`, `may_follow_link`): one in a sticky
/// directory that everyone may write to, of neither this user nor the directory's owner.
fn is_planted(path: &Path) -> bool {
    const STICKY_FOR_ALL: u32 = libc::S_ISVTX | libc::S_IWOTH;
    let Ok(link) = path.symlink_metadata().map(|link| (link.is_symlink(), link.uid())) else { return false };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(directory) = parent.metadata() else { return false };
    // SAFETY: geteuid has no preconditions.
    let user = unsafe { libc::geteuid() };
    link.0
        && directory.mode() & STICKY_FOR_ALL == STICKY_FOR_ALL
        && link.1 != user
        && link.1 != directory.uid()
}

/// Whether it is that nobody reads what was written.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn temporary_in(directory: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Opened here, because the library's own error has the name of a file that nobody has heard of.
    tempfile::Builder::new()
        .prefix(".leaktrace-")
        .make_in(directory, |path| File::options().write(true).create_new(true).mode(0o600).open(path))
}
