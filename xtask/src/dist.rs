//! `cargo xtask dist`: one static, stripped binary that runs from an initramfs without libc, with manual pages and
//! completions, and Debian's package of all that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    run::{build, cargo_static, check, compile, find, output, workspace},
    setup::{cargo_tool, need},
};

/// Version of cargo-deb that is built when none is found.
const CARGO_DEB: &str = "3.8.0";

/// Builds everything for a kind of machine into target/dist.
///
/// # Errors
/// When cargo fails, or the binary needs a loader after all.
pub(crate) fn dist(offline: bool, arch: Arch) -> Result<()> {
    let (mut cargo, built) = cargo_static(offline, arch)?;
    compile(cargo.args(["--package", "leaktrace"]), "leaktrace")?;
    let place = directory().join(arch.name());
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let binary = place.join("leaktrace");
    let strip = format!("{}strip", arch.tools());
    check(Command::new(strip).arg("-o").arg(&binary).arg(built.join("leaktrace")))?;
    if find("readelf").is_some()
        && output(Command::new("readelf").arg("-l").arg(&binary)).is_some_and(|text| text.contains("INTERP"))
    {
        bail!("{} is not static", binary.display());
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&workspace().join(licence), &place.join(licence))?;
    }
    let size = fs::metadata(&binary)?.len() as f64 / f64::from(1 << 20);
    println!("{} ({size:.1} MiB, static)", binary.display());
    let writer = if arch == Arch::host()? { binary.clone() } else { build(offline)? };
    println!("{}", deb(offline, arch, &binary, &writer)?.display());
    Ok(())
}

/// Where everything goes. The package's description in leaktrace/Cargo.toml names it, so it is the same with any
/// `CARGO_TARGET_DIR`.
fn directory() -> PathBuf {
    workspace().join("target/dist")
}

/// Shells, and where their completions are in the package's description.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "leaktrace.bash"), ("fish", "leaktrace.fish"), ("zsh", "_leaktrace")];

/// Makes the package of a static binary, whose manual pages and completions are written by one that runs here; returns it.
///
/// # Errors
/// When cargo-deb cannot be had, or fails.
pub(crate) fn deb(offline: bool, arch: Arch, binary: &Path, writer: &Path) -> Result<PathBuf> {
    need("dpkg", offline)?;
    let tool = cargo_tool("cargo-deb", CARGO_DEB, offline)?;
    let stage = directory().join("package");
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir_all(&stage).with_context(|| format!("cannot make {}", stage.display()))?;
    check(Command::new(writer).arg("man").arg(&stage))?;
    for (shell, name) in COMPLETIONS {
        let script = fs::File::create(stage.join(name)).with_context(|| format!("cannot write {name}"))?;
        check(Command::new(writer).args(["completions", shell]).stdout(script))?;
    }
    copy(binary, &stage.join("leaktrace"))?;
    let place = directory().join(arch.name());
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let mut command = Command::new(tool);
    // What cargo set for this program would mislead the one that it runs.
    command
        .current_dir(workspace())
        .args(["deb", "--quiet", "--no-build", "--no-strip", "--package", "leaktrace", "--target"])
        .arg(arch.triple())
        .arg("--output")
        .arg(&place);
    // Which has a drop-in for the unit besides.
    if arch == Arch::Aarch64 {
        command.args(["--variant", arch.debian()]);
    }
    if offline {
        command.arg("--offline");
    }
    check(&mut command)?;
    let version = env!("CARGO_PKG_VERSION");
    let deb = place.join(format!("leaktrace_{version}-1_{}.deb", arch.debian()));
    if !deb.exists() {
        bail!("cargo-deb did not make {}", deb.display());
    }
    Ok(deb)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}
