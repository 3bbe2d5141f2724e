//! Packages of other suites of Debian, unpacked beside the system and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    run::{check, find, output, target},
    setup::{apt_install, say},
};

/// Debian's mirror, unless this machine's apt is set up with another.
const MIRROR: &str = "http://deb.debian.org/debian/";
/// Who signs Debian's lists; of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian, with an apt of its own that knows only that.
pub(crate) struct Suite {
    name: &'static str,
    directory: PathBuf,
}

impl Suite {
    /// Sets up apt for a suite and reads its lists.
    ///
    /// # Errors
    /// When there is no apt, or the lists cannot be had.
    pub(crate) fn open(name: &'static str, arch: Arch, offline: bool) -> Result<Self> {
        let directory = target().join("vm/apt").join(format!("{name}-{}", arch.debian()));
        let suite = Self { name, directory };
        if suite.directory.join("updated").exists() {
            return Ok(suite);
        }
        if offline {
            bail!("packages of Debian {name} are missing, and --offline forbids downloading them");
        }
        if find("apt-get").is_none() {
            bail!("this system has no apt, by which Debian's kernels and QEMU are downloaded");
        }
        if !Path::new(KEYRING).exists() {
            apt_install(&["debian-archive-keyring"])?;
        }
        say(&format!("reading the package lists of Debian {name}"));
        let place = |name: &str| suite.directory.join(name);
        for name in ["lists/partial", "cache/archives/partial", "parts", "debs"] {
            fs::create_dir_all(place(name))
                .with_context(|| format!("cannot make {}", place(name).display()))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {name} main\n", mirror());
        fs::write(place("sources.list"), source)?;
        fs::write(place("status"), "")?;
        let directory = suite.directory.display();
        let settings = format!(
            "Dir::State \"{directory}\";\nDir::State::lists \"{directory}/lists\";\nDir::State::status \"{directory}/status\";\n\
             Dir::Cache \"{directory}/cache\";\nDir::Etc::sourcelist \"{directory}/sources.list\";\n\
             Dir::Etc::sourceparts \"{directory}/parts\";\nAPT::Architecture \"{}\";\n\
             APT::Architectures {{ \"{}\"; }};\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n",
            arch.debian(),
            arch.debian()
        );
        fs::write(place("apt.conf"), settings)?;
        check(suite.apt("apt-get").args(["-qq", "update"]))?;
        fs::write(place("updated"), "")?;
        Ok(suite)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf")).current_dir(self.directory.join("debs"));
        command
    }

    /// What a package depends on, first alternatives only.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.apt("apt-cache").args(["depends", package]))
            .with_context(|| format!("Debian {} has no package {package}", self.name))?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(ToOwned::to_owned)
            .collect())
    }

    /// Downloads packages and unpacks them into a directory.
    ///
    /// # Errors
    /// When one is not to be had.
    pub(crate) fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        for package in packages {
            say(&format!("downloading {package} of Debian {}", self.name));
            // A file for each, because the name in the archive has the version in it.
            let debs = self.directory.join("debs").join(package);
            fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
            check(self.apt("apt-get").args(["-qq", "download", package]).current_dir(&debs))?;
            for deb in fs::read_dir(&debs)?.flatten() {
                check(Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(root))?;
            }
            fs::remove_dir_all(&debs)?;
        }
        Ok(())
    }
}

/// Where this machine gets Debian from.
pub(crate) fn mirror() -> String {
    output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))
        .and_then(|text| {
            text.lines().find(|line| line.trim_end_matches('/').ends_with("/debian")).map(ToOwned::to_owned)
        })
        .unwrap_or_else(|| MIRROR.to_owned())
}
