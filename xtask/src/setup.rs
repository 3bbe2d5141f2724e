//! What building eBPF takes: a cargo and rustc with the sources of `core`, and a bpf-linker made
//! for an LLVM at least as new as that rustc's. Found where it is, or else installed; the choice
//! is noted in the user's cache directory, where leaktrace's build script reads it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Context as _, Result, bail};

use crate::run::{as_root, check, find, is_root, output};

/// Version of bpf-linker that is built when none is found.
const BPF_LINKER: &str = "0.13.0";

/// Where bpf-linker's project publishes its binaries.
const BPF_LINKER_RELEASES: &str = "https://github.com/aya-rs/bpf-linker/releases";

/// A working combination.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
}

/// Makes sure that eBPF can be built; does nothing when that was noted before and still holds.
///
/// # Errors
/// One line on what is missing and cannot be installed.
pub(crate) fn setup(offline: bool) -> Result<()> {
    let cache = cache()?;
    let note = cache.join("toolchain");
    if read(&note).is_some_and(|toolchain| toolchain.works()) {
        return Ok(());
    }
    let toolchain = match rustup_nightly().zip(find("bpf-linker")) {
        Some(((cargo, rustc), linker)) => Toolchain { cargo, rustc, linker },
        None => install(&cache, offline)?,
    };
    if !toolchain.works() {
        bail!("the eBPF toolchain that was found does not work: {toolchain:?}");
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let text = format!(
        "cargo={}\nrustc={}\nlinker={}\n",
        toolchain.cargo.display(),
        toolchain.rustc.display(),
        toolchain.linker.display()
    );
    fs::write(&note, text).with_context(|| format!("cannot write {}", note.display()))?;
    say(&format!("eBPF toolchain: {} and {}", toolchain.rustc.display(), toolchain.linker.display()));
    Ok(())
}

/// A program that cargo builds from its registry: the one in PATH, or else of this version in the user's cache, built
/// there when it is not.
///
/// # Errors
/// When there is none and none can be built.
pub(crate) fn cargo_tool(name: &str, version: &str, offline: bool) -> Result<PathBuf> {
    if let Some(found) = find(name) {
        return Ok(found);
    }
    let root = cache()?.join(format!("{name}-{version}"));
    let tool = root.join("bin").join(name);
    if output(Command::new(&tool).arg("--version")).is_some() {
        return Ok(tool);
    }
    if offline {
        bail!("no {name} was found in PATH, and --offline forbids building one");
    }
    say(&format!("building {name} {version} (a minute or two)"));
    check(
        Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["install", name, "--quiet", "--locked", "--version", version, "--root"])
            .arg(&root)
            // It runs for seconds: what makes it faster takes longer.
            .envs([
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
                ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
            ]),
    )?;
    Ok(tool)
}

/// Tells a step that takes time.
pub(crate) fn say(step: &str) {
    eprintln!("setup: {step}");
}

/// The user's cache directory for leaktrace.
pub(crate) fn cache() -> Result<PathBuf> {
    env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("leaktrace"))
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place to note the eBPF toolchain")
}

fn read(note: &Path) -> Option<Toolchain> {
    let text = fs::read_to_string(note).ok()?;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(PathBuf::from)
    };
    Some(Toolchain { cargo: value("cargo")?, rustc: value("rustc")?, linker: value("linker")? })
}

impl Toolchain {
    /// Whether all three run and the sources of `core` are there.
    fn works(&self) -> bool {
        output(Command::new(&self.cargo).arg("--version")).is_some()
            && has_core_sources(&self.rustc)
            && output(Command::new(&self.linker).arg("--version")).is_some()
    }
}

fn has_core_sources(rustc: &Path) -> bool {
    output(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|sysroot| {
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    })
}

/// cargo and rustc of rustup's nightly, if it has the sources of `core`.
fn rustup_nightly() -> Option<(PathBuf, PathBuf)> {
    let which = |tool: &str| {
        output(
            Command::new("rustup")
                .args(["which", "--toolchain", "nightly", tool])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )
        .map(PathBuf::from)
    };
    let (cargo, rustc) = (which("cargo")?, which("rustc")?);
    has_core_sources(&rustc).then_some((cargo, rustc))
}

/// Installs what is missing.
fn install(cache: &Path, offline: bool) -> Result<Toolchain> {
    let (cargo, rustc) = match rustup_nightly().or_else(debian_rust) {
        Some(found) => found,
        None => install_rust(offline)?,
    };
    let linker = match find("bpf-linker") {
        Some(linker) => linker,
        None => build_linker(cache, &rustc, offline)?,
    };
    Ok(Toolchain { cargo, rustc, linker })
}

/// Debian's newest Rust, packaged for building web browsers, if it is there with its sources.
fn debian_rust() -> Option<(PathBuf, PathBuf)> {
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    (cargo.exists() && has_core_sources(&rustc) && is_new_enough(&rustc)).then_some((cargo, rustc))
}

/// The workspace's `rust-version` is that of the eBPF crates too.
fn is_new_enough(rustc: &Path) -> bool {
    let Some(version) = output(Command::new(rustc).arg("--version")) else { return false };
    let mut numbers = version.split([' ', '.']).filter_map(|part| part.parse::<u32>().ok());
    let needed = env!("CARGO_PKG_RUST_VERSION").split('.').filter_map(|part| part.parse::<u32>().ok()).nth(1);
    (numbers.next(), numbers.next()) >= (Some(1), needed)
}

fn install_rust(offline: bool) -> Result<(PathBuf, PathBuf)> {
    if offline {
        bail!(
            "no Rust with the sources of core was found, and --offline forbids installing one (rust-src of rustup's nightly)"
        );
    }
    if has_package("rustc-web")? {
        apt_install(&["rustc-web", "cargo-web", "rust-web-src"])?;
        if let Some(found) = debian_rust() {
            return Ok(found);
        }
        say("Debian's rustc-web is too old for the eBPF programs");
    }
    if find("rustup").is_some() {
        say("installing rustup's nightly with rust-src");
        check(Command::new("rustup").args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]))?;
        return rustup_nightly().context("rustup's nightly has no rust-src");
    }
    bail!(
        "no Rust with the sources of core was found: install rustup, then `rustup toolchain install nightly --component rust-src`"
    )
}

/// Puts bpf-linker into the cache directory: built against the LLVM of that rustc where the
/// distribution has it, else as its project publishes it.
fn build_linker(cache: &Path, rustc: &Path, offline: bool) -> Result<PathBuf> {
    let root = cache.join("bpf-linker");
    let linker = root.join("bin/bpf-linker");
    if output(Command::new(&linker).arg("--version")).is_some() {
        return Ok(linker);
    }
    if offline {
        bail!("no bpf-linker was found in PATH, and --offline forbids building one");
    }
    let llvm = llvm_version(rustc).context("rustc does not say which LLVM it has")?;
    let (llvm_dev, polly_dev) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("include/llvm-c/Core.h").exists() || !prefix.join("lib/libPolly.a").exists() {
        if !has_package(&llvm_dev)? {
            return download_linker(&root.join("bin"));
        }
        apt_install(&[&llvm_dev, &polly_dev, "zlib1g-dev", "libzstd-dev", "g++"])?;
    }
    say(&format!("building bpf-linker {BPF_LINKER} for LLVM {llvm} (about a minute)"));
    check(
        Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["install", "bpf-linker", "--quiet", "--locked", "--version", BPF_LINKER])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
            .arg(&root)
            .env("LLVM_PREFIX", &prefix),
    )?;
    Ok(linker)
}

/// The static binary that bpf-linker's project publishes, with the newest LLVM in it.
fn download_linker(directory: &Path) -> Result<PathBuf> {
    for tool in ["curl", "tar", "zstd"] {
        need(tool, false)?;
    }
    let archive = format!("bpf-linker-{}-unknown-linux-musl.tar.zst", env::consts::ARCH);
    say(&format!("downloading {archive} of bpf-linker's newest release"));
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let file = directory.join(&archive);
    let remedy = "cannot get bpf-linker: put one into PATH that has rustc's LLVM (see its README)";
    check(
        Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--output"])
            .arg(&file)
            .arg(format!("{BPF_LINKER_RELEASES}/latest/download/{archive}")),
    )
    .context(remedy)?;
    check(Command::new("tar").arg("--zstd").arg("-xf").arg(&file).arg("-C").arg(directory))
        .context(remedy)?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(directory.join("bpf-linker"))
}

fn llvm_version(rustc: &Path) -> Option<u32> {
    let text = output(Command::new(rustc).arg("-vV"))?;
    text.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
}

/// Whether the distribution has a package, by fresh lists.
fn has_package(name: &str) -> Result<bool> {
    if find("apt-get").is_none() {
        return Ok(false);
    }
    update_packages(name)?;
    Ok(output(Command::new("apt-cache").args(["show", "--no-all-versions", name]))
        .is_some_and(|text| !text.is_empty()))
}

/// Updates apt's lists, once: an image's lists are as old as the image.
fn update_packages(wanted: &str) -> Result<()> {
    static UPDATED: Once = Once::new();
    if UPDATED.is_completed() {
        return Ok(());
    }
    need_root(wanted)?;
    say("updating the list of packages");
    // A third-party list that cannot be had is no reason to stop: what is missing is told below.
    if let Err(error) = check(as_root("apt-get")?.args(["update", "-qq"])) {
        say(&format!("{error:#}"));
    }
    UPDATED.call_once(|| ());
    Ok(())
}

fn need_root(what: &str) -> Result<()> {
    if !is_root() && find("sudo").is_none() {
        bail!("{what} has to be installed by root, and there is no sudo: run `cargo xtask setup` as root");
    }
    Ok(())
}

/// Makes sure that a program is in PATH, by the package that has it.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn need_package(program: &str, package: &str) -> Result<()> {
    if find(program).is_some() { Ok(()) } else { apt_install(&[package]) }
}

/// Makes sure that a program is in PATH, by the package of its name.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn need(program: &str, offline: bool) -> Result<()> {
    if find(program).is_some() {
        return Ok(());
    }
    if offline {
        bail!("{program} is missing, and --offline forbids installing it");
    }
    apt_install(&[program])
}

/// Installs packages of the distribution.
///
/// # Errors
/// When there is no apt, or it fails.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("this system has no apt: install the equivalents of {} and run this again", packages.join(" "));
    }
    update_packages(&packages.join(" "))?;
    say(&format!("installing {}", packages.join(" ")));
    check(
        as_root("env")?
            .args([
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "-y",
                "-qq",
                "--no-install-recommends",
            ])
            .args(packages)
            .stdout(Stdio::null()),
    )
    .with_context(|| format!("cannot install {}", packages.join(" ")))
}
