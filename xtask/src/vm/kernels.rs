//! The kernels that leaktrace is tested on, and how each is had.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    debian::Suite,
    kernel,
    run::{check, target},
};

/// Names a directory with kernels that were built before, as [`kernel::build`] makes them.
const PREBUILT: &str = "LEAKTRACE_KERNELS";

/// A kernel of the lab.
pub(crate) struct Kernel {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it runs on.
    pub(crate) arch: Arch,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

/// Where a kernel comes from.
pub(crate) enum Origin {
    /// Debian's kernel for clouds, from this suite.
    Debian(&'static str),
    /// Built here, with kmemleak, from Debian's source of this version.
    Own(&'static kernel::Source),
}

/// All of them, the oldest first.
pub(crate) const KERNELS: [Kernel; 5] = [
    Kernel { name: "6.1", arch: Arch::X86_64, origin: Origin::Debian("bookworm") },
    Kernel { name: "6.12", arch: Arch::X86_64, origin: Origin::Debian("bookworm-backports") },
    Kernel { name: "6.12-kmemleak", arch: Arch::X86_64, origin: Origin::Own(&kernel::SOURCES[0]) },
    Kernel { name: "7.2-kmemleak", arch: Arch::X86_64, origin: Origin::Own(&kernel::SOURCES[1]) },
    Kernel { name: "6.12-arm64", arch: Arch::Aarch64, origin: Origin::Debian("bookworm-backports") },
];

/// A kernel that is there.
pub(crate) struct Ready {
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// What modules are built against.
    pub(crate) build: PathBuf,
}

/// Finds a kernel by name.
///
/// # Errors
/// Names those that there are.
pub(crate) fn find(name: &str) -> Result<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name).with_context(|| {
        let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        format!("there is no kernel {name}: there are {}", names.join(", "))
    })
}

/// Where a kernel of this name is kept.
pub(crate) fn directory(name: &str) -> PathBuf {
    target().join("vm/kernels").join(name)
}

impl Kernel {
    fn directory(&self) -> PathBuf {
        directory(self.name)
    }

    /// What it is, for `vm --list`.
    pub(crate) fn describe(&self) -> String {
        let state = if self.ready().is_ok() { "ready" } else { "not fetched yet" };
        match self.origin {
            Origin::Debian(suite) => {
                format!("Debian's cloud kernel from {suite} for {}, {state}", self.arch.debian())
            }
            Origin::Own(source) if self.prebuilt().is_some() => {
                format!("own build of {} with kmemleak, from {PREBUILT}", source.package)
            }
            Origin::Own(source) => format!("own build of {} with kmemleak, {state}", source.package),
        }
    }

    /// Downloads or builds it, unless it is there.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn prepare(&self, offline: bool) -> Result<Ready> {
        if let Ok(ready) = self.ready() {
            return Ok(ready);
        }
        let directory = self.directory();
        // What an interrupted attempt left.
        let _ = fs::remove_dir_all(&directory);
        match self.origin {
            Origin::Debian(suite) => fetch(suite, self.arch, offline, &directory)?,
            Origin::Own(source) => match self.prebuilt() {
                Some((image, archive)) => {
                    fs::create_dir_all(&directory)?;
                    check(Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&directory))?;
                    // In the archive everything lies below the kernel's name.
                    fs::rename(directory.join(self.name).join("build"), directory.join("build"))?;
                    fs::copy(&image, directory.join("bzImage"))
                        .with_context(|| format!("cannot copy {}", image.display()))?;
                }
                None => kernel::build(source, &directory, offline)?,
            },
        }
        self.ready()
    }

    fn ready(&self) -> Result<Ready> {
        let ready = Ready { image: self.directory().join("bzImage"), build: self.directory().join("build") };
        if !ready.image.exists() || !ready.build.join("Makefile").exists() {
            bail!("the kernel {} is not complete in {}", self.name, self.directory().display());
        }
        Ok(ready)
    }

    /// Image and build archive of the directory of prebuilt kernels.
    fn prebuilt(&self) -> Option<(PathBuf, PathBuf)> {
        let directory = PathBuf::from(env::var_os(PREBUILT)?);
        let files = (
            directory.join(format!("{}.bzImage", self.name)),
            directory.join(format!("{}-build.tar.xz", self.name)),
        );
        (files.0.exists() && files.1.exists()).then_some(files)
    }
}

/// Debian's newest cloud kernel of a suite, and the headers that modules are built against.
fn fetch(suite: &'static str, arch: Arch, offline: bool, directory: &Path) -> Result<()> {
    let suites = Suite::open(suite, arch, offline)?;
    let first = |package: &str, prefix: &str| -> Result<String> {
        suites
            .dependencies(package)?
            .into_iter()
            .find(|name| name.starts_with(prefix))
            .with_context(|| format!("{package} depends on no {prefix}"))
    };
    let image = first(&format!("linux-image-cloud-{}", arch.debian()), "linux-image-")?;
    let release = image.trim_start_matches("linux-image-").to_owned();
    let headers = format!("linux-headers-{release}");
    let common = first(&headers, "linux-headers-")?;
    let kbuild = first(&headers, "linux-kbuild-")?;
    let root = directory.join("root");
    suites.unpack(&[&image, &headers, &common], &root)?;
    // The tools that build modules run here.
    Suite::open(suite, Arch::host()?, offline)?.unpack(&[&kbuild], &root)?;
    let sources = root.join("usr/src");
    let build = sources.join(&headers);
    // It includes the common one by its place when installed.
    let makefile = format!("include {}\n", sources.join(&common).join("Makefile").display());
    fs::write(build.join("Makefile"), makefile)?;
    fs::rename(root.join("boot").join(format!("vmlinuz-{release}")), directory.join("bzImage"))?;
    // Its modules are not needed: what the tests use is built in.
    fs::remove_dir_all(root.join("lib"))?;
    std::os::unix::fs::symlink(&build, directory.join("build"))?;
    Ok(())
}
