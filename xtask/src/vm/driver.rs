//! The leaking driver, built for one kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run::{find, target, workspace},
    setup::{apt_install, need},
};

/// Where distributions have libelf.
const LIBELF: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/libelf.so.1", "/lib/x86_64-linux-gnu/libelf.so.1", "/usr/lib64/libelf.so.1"];

/// Builds tests/guest/driver against a kernel's headers; returns the module, stripped.
///
/// # Errors
/// With what the compiler said.
pub(crate) fn build(kernel: &str, headers: &Path, offline: bool) -> Result<PathBuf> {
    for tool in ["gcc", "make"] {
        need(tool, offline)?;
    }
    // The kernel's build checks objects by a tool that is linked with libelf.
    if !LIBELF.iter().any(|place| Path::new(place).exists()) {
        if offline {
            bail!("building a module takes libelf, and --offline forbids installing it");
        }
        apt_install(&["libelf-dev"])?;
    }
    let source = workspace().join("tests/guest/driver");
    let place = target().join("vm/driver").join(kernel);
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    for file in fs::read_dir(&source)?.flatten() {
        let copy = place.join(file.file_name());
        let text = fs::read(file.path())?;
        // make goes by times: what is the same keeps its own.
        if fs::read(&copy).ok().as_ref() != Some(&text) {
            fs::write(&copy, text)?;
        }
    }
    let module = place.join("leakdrv.ko");
    let mut command = Command::new("make");
    command
        .arg("-s")
        .arg("-C")
        .arg(headers)
        .arg(format!("M={}", place.display()))
        // A module's own BTF would need pahole and the kernel's vmlinux, and nobody reads it.
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"])
        .stdin(Stdio::null());
    if find("gcc-12").is_none() {
        // Debian's headers name the compiler of their kernel; the system's own does as well.
        command.arg("CC=gcc");
    }
    let output = command.output().context("cannot run make")?;
    if !output.status.success() {
        bail!(
            "the driver does not build for {kernel}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let stripped = place.join("stripped.ko");
    let status = Command::new("objcopy")
        .arg("--strip-debug")
        .arg(&module)
        .arg(&stripped)
        .status()
        .context("cannot run objcopy")?;
    if !status.success() {
        bail!("objcopy cannot strip {}", module.display());
    }
    Ok(stripped)
}
