//! A whole Debian with systemd, for a guest in which packages are tested.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result};

use super::initramfs::Initramfs;
use crate::{
    debian::mirror,
    run::{as_root, check, target},
    setup::{need, say},
};

/// Its release.
const SUITE: &str = "bookworm";
/// What it has beside what every Debian has.
const PACKAGES: &str = "systemd-sysv,dbus,man-db";

/// Starts systemd as the first process.
const INIT: &str = "#!/bin/sh\nexec /lib/systemd/systemd \"$@\"\n";
/// Runs our init as a service, which runs the command and ends the machine.
const SERVICE: &str = "[Unit]\nDescription=Test\nAfter=dbus.service systemd-journald.service\nRequires=dbus.service\n\
    [Service]\nExecStart=/guest/init\n";

/// What its kernel is told: to run that, and nobody logs in.
pub(crate) const BOOT: &str = "systemd.wants=guest-test.service systemd.mask=serial-getty@ttyS0.service";

/// An archive of such a system, as the kernel unpacks it; made once.
///
/// # Errors
/// When debootstrap cannot be had, or fails.
pub(crate) fn archive(offline: bool) -> Result<PathBuf> {
    let place = target().join("vm/system.cpio");
    if place.exists() {
        return Ok(place);
    }
    for tool in ["debootstrap", "cpio"] {
        need(tool, offline)?;
    }
    say(&format!("installing a Debian {SUITE} with systemd into a directory"));
    let root = target().join("vm/system");
    check(as_root("rm")?.arg("-rf").arg(&root))?;
    let include = format!("--include={PACKAGES}");
    check(
        as_root("debootstrap")?
            .args(["--variant=minbase", &include, SUITE])
            .arg(&root)
            .arg(mirror())
            .stdout(Stdio::null()),
    )?;
    let unfinished = place.with_extension("unfinished");
    // Some of it only root may read.
    let pack = "cd \"$1\" && rm -rf var/cache/apt var/lib/apt/lists && find . -xdev | cpio --create --format=newc --quiet";
    let out = File::create(&unfinished).with_context(|| format!("cannot write {}", unfinished.display()))?;
    check(as_root("sh")?.args(["-c", pack, "sh"]).arg(&root).stdout(out))?;
    check(as_root("rm")?.arg("-rf").arg(&root))?;
    fs::rename(&unfinished, &place)?;
    Ok(place)
}

/// Has the system run our init as a service.
pub(crate) fn service(archive: &mut Initramfs) {
    archive.script("init", INIT);
    archive.text("etc/systemd/system/guest-test.service", SERVICE);
}

/// Puts the system's archive before another one: the kernel unpacks one after the other.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn prepend(system: &Path, place: &Path) -> Result<()> {
    let own = fs::read(place).with_context(|| format!("cannot read {}", place.display()))?;
    fs::copy(system, place).with_context(|| format!("cannot copy {}", system.display()))?;
    let mut file = File::options().append(true).open(place)?;
    io::copy(&mut own.as_slice(), &mut file).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(())
}
