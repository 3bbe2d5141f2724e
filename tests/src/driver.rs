//! The leaking driver of the guests: loading it, telling it what to do, removing it.

use std::{ffi::CString, fs, fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};

/// Its name, as the kernel has it.
pub const NAME: &str = "leakdrv";
/// The module.
pub const FILE: &str = "/guest/leakdrv.ko";
const RUN: &str = "/sys/kernel/debug/leakdrv/run";

/// Loads it; with objects to leak meanwhile.
///
/// # Errors
/// When there is no such file, or the kernel refuses it.
pub fn load(leak_at_init: u64) -> Result<()> {
    let file = File::open(FILE).with_context(|| format!("cannot open {FILE}"))?;
    let parameters = CString::new(format!("leak_at_init={leak_at_init}"))?;
    // SAFETY: an open descriptor and a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result != 0 {
        bail!("cannot load the driver: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Removes it.
///
/// # Errors
/// When it is not loaded, or in use.
pub fn unload() -> Result<()> {
    let name = CString::new(NAME)?;
    // SAFETY: a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), 0) };
    if result != 0 {
        bail!("cannot remove the driver: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// What a path is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Allocate and forget.
    Leak,
    /// Allocate and free.
    Balanced,
}

/// Runs a path.
///
/// # Errors
/// When this kernel does not have it, or the driver cannot do it.
pub fn run(path: &str, mode: Mode, objects: u64) -> Result<()> {
    match run_if_there(path, mode, objects) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the driver has no path {path}"),
        Err(error) => Err(error),
    }
}

/// Runs a path; false when this kernel does not have it.
///
/// # Errors
/// When the driver cannot do it.
pub fn run_if_there(path: &str, mode: Mode, objects: u64) -> Result<bool> {
    let mode = if mode == Mode::Leak { "leak" } else { "balanced" };
    match fs::write(RUN, format!("{path} {mode} {objects}")) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && std::path::Path::new(RUN).exists() => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("the driver cannot do {path} {mode} {objects}")),
    }
}

/// Loads it unless it is there.
///
/// # Errors
/// When the kernel refuses it.
pub fn need() -> Result<()> {
    if std::path::Path::new("/sys/module").join(NAME).exists() { Ok(()) } else { load(0) }
}
