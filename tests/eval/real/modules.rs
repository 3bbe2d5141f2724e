//! Modules of the kernel: loading and removing them.

use std::{ffi::CString, fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};

use super::Module;

/// Loads a module.
///
/// # Errors
/// When the kernel refuses it.
pub fn load(module: &Module) -> Result<()> {
    let name = module.file.display();
    let file = File::open(&module.file).with_context(|| format!("cannot open {name}"))?;
    let parameters = CString::new(&*module.parameters)?;
    // SAFETY: an open descriptor and a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result != 0 {
        bail!("cannot load {name}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Removes a module.
///
/// # Errors
/// When it is in use.
pub fn unload(name: &str) -> Result<()> {
    let terminated = CString::new(name)?;
    // SAFETY: a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, terminated.as_ptr(), 0) };
    if result != 0 {
        bail!("cannot remove {name}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
