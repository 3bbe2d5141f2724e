//! What the sources have to be beside right: documented, under known licences, from known places, without what nobody
//! uses, and built by the Rust that they ask for.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    run::{cargo, check, find, output, workspace},
    setup::{cargo_tool, say},
};

/// Runs all of it.
///
/// # Errors
/// When something is not as it has to be, or a tool cannot be had.
pub(crate) fn check_all(offline: bool) -> Result<()> {
    documentation(offline)?;
    dependencies(offline)?;
    unused(offline)?;
    rust_version(offline)
}

/// Links in doc comments lead somewhere. They are for those who change it: private items are documented, too.
fn documentation(offline: bool) -> Result<()> {
    let args = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    check(cargo(offline).args(args).env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
}

/// Licences, sources, duplicates and bans of all dependencies, by deny.toml; advisories where their database is there.
fn dependencies(offline: bool) -> Result<()> {
    let tool = cargo_tool("cargo-deny", "0.20.2", offline)?;
    let deny = |offline: bool, checks: &[&str]| {
        let mut command = Command::new(&tool);
        command.current_dir(workspace()).args(["--log-level", "error"]);
        if offline {
            command.arg("--offline");
        }
        check(command.args(["check", "--hide-inclusion-graph"]).args(checks))
    };
    // It asks cargo for the dependencies, those for other systems as well.
    deny(offline, &["bans", "licenses", "sources"])?;
    if advisories().is_some_and(|place| place.is_dir()) {
        return deny(true, &["advisories"]);
    }
    say("advisories are left out: cargo-deny has no database here (`cargo deny fetch` gets one)");
    Ok(())
}

/// Where cargo-deny keeps what is known of vulnerable crates.
fn advisories() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    Some(home.join("advisory-dbs"))
}

/// Dependencies that no source mentions.
fn unused(offline: bool) -> Result<()> {
    let tool = cargo_tool("cargo-machete", "0.9.2", offline)?;
    check(Command::new(tool).current_dir(workspace()).args(["--skip-target-dir", "."]))
}

/// The Rust that the workspace asks for compiles it: this one, or else one that rustup has.
fn rust_version(offline: bool) -> Result<()> {
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    let version = output(Command::new("rustc").arg("--version")).context("rustc does not run")?;
    let is_wanted = |text: &str| text.starts_with(&format!("rustc {wanted}."));
    if is_wanted(&version) {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["run", wanted, "rustc", "--version"]).env("RUSTUP_AUTO_INSTALL", "0");
    if find("rustup").is_none() || !output(&mut rustup).is_some_and(|version| is_wanted(&version)) {
        say(&format!("not checked with Rust {wanted}, which the workspace asks for: rustup has it not"));
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["run", wanted, "cargo", "check", "--quiet", "--workspace", "--all-targets"]);
    if offline {
        command.arg("--offline");
    }
    // What cargo set for this program is of another Rust.
    check(command.current_dir(workspace()).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN"))
}
