//! The machines that leaktrace is built for, and what building for another one than this takes.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    run::{check, find, output},
    setup::{apt_install, say},
};

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// PCs and servers.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// This machine's.
    ///
    /// # Errors
    /// When it is none of these.
    pub(crate) fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            other => bail!("leaktrace is not built for {other}"),
        }
    }

    /// As Rust and the kernel call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// As the kernel's Makefile calls it.
    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Self::X86_64 => "x86",
            Self::Aarch64 => "arm64",
        }
    }

    /// Rust's target.
    pub(crate) fn triple(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    fn is_host(self) -> bool {
        Self::host().is_ok_and(|host| host == self)
    }

    /// What the names of its compiler and binutils begin with; nothing on such a machine itself.
    pub(crate) fn tools(self) -> String {
        if self.is_host() { String::new() } else { format!("{}-linux-gnu-", self.name()) }
    }

    /// Makes sure that programs can be built for it.
    ///
    /// # Errors
    /// When something is missing and cannot be installed.
    pub(crate) fn prepare(self, offline: bool) -> Result<()> {
        if self.is_host() {
            return Ok(());
        }
        let triple = self.triple();
        if !has_std(&triple) {
            if offline {
                bail!("Rust's library for {triple} is missing, and --offline forbids installing it");
            }
            if find("rustup").is_none() {
                bail!("Rust's library for {triple} is missing, and there is no rustup to install it");
            }
            say(&format!("installing Rust's library for {triple}"));
            check(Command::new("rustup").args(["target", "add", &triple]))?;
        }
        let libc = PathBuf::from(format!("/usr/{}-linux-gnu/lib/libc.a", self.name()));
        if find(&format!("{}gcc", self.tools())).is_none() || !libc.exists() {
            if offline {
                bail!("a compiler for {triple} is missing, and --offline forbids installing it");
            }
            let package = format!("gcc-{}-linux-gnu", self.name().replace('_', "-"));
            apt_install(&[&package, &format!("libc6-dev-{}-cross", self.debian())])?;
        }
        Ok(())
    }

    /// Has cargo link with its compiler.
    pub(crate) fn link(self, cargo: &mut Command) {
        if !self.is_host() {
            let variable = format!("CARGO_TARGET_{}_LINKER", self.triple().to_uppercase().replace('-', "_"));
            cargo.env(variable, format!("{}gcc", self.tools()));
        }
    }
}

/// Whether the rustc that cargo calls has a library for a target.
fn has_std(triple: &str) -> bool {
    output(Command::new("rustc").args(["--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib").join(triple).join("lib").exists())
}
