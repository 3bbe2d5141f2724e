//! The peer to compare with: memleak of libbpf-tools, with the libraries that it needs.

use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::{arch::Arch, debian::Suite, run::target};

/// Debian's suite with the newest one.
const SUITE: &str = "trixie";
/// It and what it is linked with.
const PACKAGES: [&str; 5] = ["libbpf-tools", "libc6", "libelf1t64", "zlib1g", "libzstd1"];
/// What of these a guest needs.
const KEPT: [&str; 2] = ["usr/sbin/memleak-libbpf", "usr/lib/x86_64-linux-gnu"];

/// A directory with `memleak-libbpf`, `ld.so` and `lib/`.
///
/// # Errors
/// When the packages cannot be had.
pub(crate) fn memleak(offline: bool) -> Result<PathBuf> {
    let place = target().join("vm/peer");
    if place.join("lib").exists() {
        return Ok(place);
    }
    let root = target().join("vm/peer-root");
    let _ = fs::remove_dir_all(&root);
    Suite::open(SUITE, Arch::X86_64, offline)?.unpack(&PACKAGES, &root)?;
    let _ = fs::remove_dir_all(&place);
    let unfinished = target().join("vm/peer-unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(unfinished.join("lib"))?;
    fs::copy(root.join(KEPT[0]), unfinished.join("memleak-libbpf"))?;
    for file in fs::read_dir(root.join(KEPT[1]))?.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        // The dynamic linker and the five libraries, not the character sets.
        let wanted = ["libc.so", "libelf", "libz.so", "libzstd", "ld-linux"];
        if wanted.iter().any(|prefix| name.starts_with(prefix)) && file.path().is_file() {
            fs::copy(file.path(), unfinished.join("lib").join(&*name))?;
        }
    }
    fs::rename(&unfinished, &place)?;
    fs::remove_dir_all(&root)?;
    Ok(place)
}
