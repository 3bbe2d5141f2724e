//! The leaking driver, built for one kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;
use crate::{
    run::{find, target, workspace},
    setup::{apt_install, need},
};

/// Where distributions have libelf.
const LIBELF: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/libelf.so.1", "/lib/x86_64-linux-gnu/libelf.so.1", "/usr/lib64/libelf.so.1"];

/// Builds tests/guest/driver against a kernel's headers; returns the modules, stripped: the driver, and with `many` the
/// one with a hundred thousand call sites, which takes a minute.
///
/// # Errors
/// With what the compiler said.
pub(crate) fn build(kernel: &Kernel, headers: &Path, many: bool, offline: bool) -> Result<Vec<PathBuf>> {
    for tool in ["gcc", "make"] {
        need(tool, offline)?;
    }
    kernel.arch.prepare(offline)?;
    let (arch, tools, kernel) = (kernel.arch.kernel(), kernel.arch.tools(), kernel.name);
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
    let mut command = Command::new("make");
    command
        .arg("-s")
        .arg("-C")
        .arg(headers)
        .arg(format!("M={}", place.display()))
        .arg(format!("ARCH={arch}"))
        .arg(format!("CROSS_COMPILE={tools}"))
        // A module's own BTF would need pahole and the kernel's vmlinux, and nobody reads it.
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"])
        .stdin(Stdio::null());
    if many {
        command.arg("MANYSITES=m");
    }
    if find(&format!("{tools}gcc-12")).is_none() {
        // Debian's headers name the compiler of their kernel; the system's own does as well.
        command.arg(format!("CC={tools}gcc"));
    }
    let output = command.output().context("cannot run make")?;
    if !output.status.success() {
        bail!(
            "the driver does not build for {kernel}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let stripped = place.join("stripped");
    fs::create_dir_all(&stripped)?;
    let mut modules = Vec::new();
    for name in ["leakdrv.ko", "manysites.ko"].into_iter().take(1 + usize::from(many)) {
        let module = stripped.join(name);
        let status = Command::new(format!("{tools}objcopy"))
            .arg("--strip-debug")
            .args([&place.join(name), &module])
            .status()
            .context("cannot run objcopy")?;
        if !status.success() {
            bail!("objcopy cannot strip {name}");
        }
        modules.push(module);
    }
    Ok(modules)
}
