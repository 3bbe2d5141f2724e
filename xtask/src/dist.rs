//! `cargo xtask dist`: one static, stripped binary that runs from an initramfs without libc.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo_static, check, find, output, target, workspace};

/// Builds it into target/dist.
///
/// # Errors
/// When cargo fails, or the binary needs a loader after all.
pub(crate) fn dist(offline: bool) -> Result<()> {
    let (mut cargo, built) = cargo_static(offline, "dist");
    check(cargo.args(["--package", "leaktrace"]))?;
    let built = built.join("leaktrace");
    let place = target().join("dist");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let binary = place.join("leaktrace");
    fs::copy(&built, &binary).with_context(|| format!("cannot copy {}", built.display()))?;
    if find("readelf").is_some()
        && output(std::process::Command::new("readelf").arg("-l").arg(&binary))
            .is_some_and(|text| text.contains("INTERP"))
    {
        bail!("{} is not static", binary.display());
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(workspace().join(licence), place.join(licence))
            .with_context(|| format!("cannot copy {licence}"))?;
    }
    let size = fs::metadata(&binary)?.len() as f64 / f64::from(1 << 20);
    println!("{} ({size:.1} MiB, static)", binary.display());
    Ok(())
}
