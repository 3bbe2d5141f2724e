//! `cargo xtask kernel`: a kernel with kmemleak, /proc/kcore, memory allocation profiling and page
//! owner, from Debian's sources and `tests/guest/kernel.config`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    debian::Suite,
    run::{check, find, target, workspace},
    setup::{apt_install, say},
};

/// Debian's source of a kernel.
pub(crate) struct Source {
    /// Version, as on the command line.
    pub(crate) version: &'static str,
    /// The package.
    pub(crate) package: &'static str,
    /// The suite that has it.
    suite: &'static str,
}

/// The kernels that are built here.
pub(crate) const SOURCES: [Source; 2] = [
    Source { version: "6.12", package: "linux-source-6.12", suite: "bookworm-backports" },
    Source { version: "7.2", package: "linux-source-7.2", suite: "sid" },
];

/// What building a kernel takes, as programs and Debian's packages of them.
const TOOLS: [(&str, &str); 7] = [
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("pahole", "pahole"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("xz", "xz-utils"),
];
/// Headers that it takes.
const HEADERS: [(&str, &str); 2] =
    [("/usr/include/libelf.h", "libelf-dev"), ("/usr/include/openssl/ssl.h", "libssl-dev")];

/// Finds a source by its version.
///
/// # Errors
/// Names those that there are.
pub(crate) fn source(version: &str) -> Result<&'static Source> {
    SOURCES.iter().find(|source| source.version == version).with_context(|| {
        let versions: Vec<_> = SOURCES.iter().map(|source| source.version).collect();
        format!("kernel {version} is not built here: {} are", versions.join(" and "))
    })
}

/// Builds a kernel: `bzImage`, `config`, `System.map`, and `build` to make modules against.
///
/// # Errors
/// When the source cannot be had or does not build.
pub(crate) fn build(source: &Source, directory: &Path, offline: bool) -> Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .chain(HEADERS.iter().filter(|(header, _)| !Path::new(header).exists()))
        .map(|&(_, package)| package)
        .collect();
    if !missing.is_empty() {
        if offline {
            bail!("building a kernel takes {}, and --offline forbids installing them", missing.join(", "));
        }
        apt_install(&missing)?;
    }
    let root = target().join("vm/source").join(source.version);
    let _ = fs::remove_dir_all(&root);
    Suite::open(source.suite, Arch::host()?, offline)?.unpack(&[source.package], &root)?;
    let archive = root.join("usr/src").join(format!("{}.tar.xz", source.package));
    check(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&root))?;
    let tree = root.join(source.package);
    say(&format!("building {} (8 minutes on 2 CPUs)", source.package));
    let make = |targets: &[&str]| -> Result<()> {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        check(
            Command::new("make")
                .arg("-s")
                .arg(format!("-j{jobs}"))
                .args(targets)
                .current_dir(&tree)
                .stdout(Stdio::null()),
        )
    };
    make(&["tinyconfig"])?;
    check(
        Command::new("scripts/kconfig/merge_config.sh")
            .args(["-m", ".config"])
            .arg(workspace().join("tests/guest/kernel.config"))
            .current_dir(&tree)
            .stdout(Stdio::null()),
    )?;
    make(&["olddefconfig"])?;
    make(&["bzImage", "modules"])?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (from, to) in
        [("arch/x86/boot/bzImage", "bzImage"), (".config", "config"), ("System.map", "System.map")]
    {
        fs::copy(tree.join(from), directory.join(to)).with_context(|| format!("the build made no {from}"))?;
    }
    // Modules need the headers, the scripts and what they were compiled to: a tenth of the tree.
    let build = directory.join("build");
    fs::create_dir_all(&build)?;
    let kept = [
        ".config",
        "Kbuild",
        "Kconfig",
        "Makefile",
        "Module.symvers",
        "arch/x86",
        "include",
        "scripts",
        "tools/objtool",
        "tools/include",
        "tools/build",
        "tools/bpf/resolve_btfids",
    ];
    let kept: Vec<_> = kept.into_iter().filter(|name| tree.join(name).exists()).collect();
    check(Command::new("cp").arg("-a").arg("--parents").args(kept).arg(&build).current_dir(&tree))?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}
