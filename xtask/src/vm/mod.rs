//! `cargo xtask vm`: real kernels in QEMU, with leaktrace and the leaking driver in them.

mod driver;
mod eval;
mod initramfs;
mod kernels;
mod monitor;
mod peer;
mod qemu;
mod system;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    initramfs::Initramfs,
    kernels::{KERNELS, Kernel},
    qemu::{Machine, Qemu},
};
use crate::{
    arch::Arch,
    dist::deb,
    kernel,
    run::{cargo_static, check, target},
    tally::Tally,
};

pub(crate) use self::eval::{EvalArgs, eval};

/// The program that tests leaktrace in a guest.
const TESTS: &str = "guest-tests";
/// The program that evaluates its verdicts.
const EVAL: &str = "eval";

/// A guest that is started for some tests only.
struct Special {
    /// Its kernel.
    kernel: &'static str,
    /// What that is told.
    boot: &'static str,
    /// Part of the tests' names.
    test: &'static str,
    /// What it has besides; in a whole system, our package as well.
    with: &'static [Extra],
}

const SPECIAL: [Special; 5] = [
    Special::booted("slub_debug=U", "the kernel's own accounts"),
    Special::booted("no5lvl", "what nothing points to"),
    Special::booted("lockdown=confidentiality", "a kernel that is locked down"),
    Special::with(&[Extra::System], "the package in a whole system"),
    Special::with(&[Extra::ManySites], "a hundred thousand call sites"),
];

impl Special {
    const fn booted(boot: &'static str, test: &'static str) -> Self {
        Self { kernel: "6.12", boot, test, with: &[] }
    }

    const fn with(with: &'static [Extra], test: &'static str) -> Self {
        Self { kernel: "6.12", boot: "", test, with }
    }
}

/// Options of `cargo xtask vm`.
#[derive(Args)]
pub(crate) struct VmArgs {
    /// Which kernel to boot; see --list.
    #[arg(long, value_name = "NAME", default_value = "6.12")]
    kernel: String,
    /// Say which kernels there are.
    #[arg(long)]
    list: bool,
    /// How QEMU runs the guest.
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accel: Accelerator,
    /// Memory of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Seconds after which the guest is ended.
    #[arg(long, value_name = "S", default_value_t = 300)]
    limit: u64,
    /// Parameters that the driver is loaded with, like `leak_at_init=100`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    driver: String,
    /// What the kernel is told at its start, besides, like `no5lvl`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    boot: String,
    /// Put a file of the host into /guest; may be given several times.
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// What the guest has besides; may be given several times.
    #[arg(long, value_enum, value_name = "WHAT")]
    with: Vec<Extra>,
    /// The command to run in the guest: leaktrace, guest-tests, or a path there.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What a guest may have besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// The peer memleak-libbpf, in /peer.
    Peer,
    /// A whole Debian with systemd, in which the command is run.
    System,
    /// A module with a hundred thousand call sites, in /guest, which takes a minute to build.
    ManySites,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accelerator {
    /// Software emulation: works everywhere.
    Tcg,
    /// Hardware virtualisation, where it works.
    Kvm,
}

/// Boots one kernel and runs a command in it, or lists the kernels.
///
/// # Errors
/// When something cannot be had or built, or the guest hangs.
pub(crate) fn vm(offline: bool, args: &VmArgs) -> Result<ExitCode> {
    if args.list {
        for kernel in &KERNELS {
            println!("{:<14} {}", kernel.name, kernel.describe());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let command: Vec<&str> = args.command.iter().map(String::as_str).collect();
    if command.is_empty() {
        bail!("there is no command for the guest: try `cargo xtask vm -- leaktrace --duration 5`");
    }
    let kernel = kernels::find(&args.kernel)?;
    let programs = Programs::build(kernel.arch, offline)?;
    let guest = Guest {
        offline,
        programs: &programs,
        accelerator: if args.accel == Accelerator::Kvm { "kvm" } else { "tcg" },
        memory: args.memory,
        limit: Duration::from_secs(args.limit),
        driver_parameters: &args.driver,
        boot: &args.boot,
        files: &args.file,
        with: &args.with,
        part: 0,
    };
    let code = qemu::again(|| guest.run(kernel, &command, qemu::print))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Boots every kernel, runs the tests of the guest in it, and counts them.
///
/// # Errors
/// When something cannot be had or built.
pub(crate) fn test(offline: bool, tally: &mut Tally) -> Result<()> {
    let here = Programs::build(Arch::X86_64, offline)?;
    let arm = Programs::build(Arch::Aarch64, offline)?;
    let package = deb(offline, Arch::X86_64, &here.leaktrace)?;
    let package = [named(&package, "leaktrace.deb")?];
    let plain = KERNELS.iter().map(|kernel| (kernel, None));
    let special = SPECIAL.iter().map(|special| Ok((kernels::find(special.kernel)?, Some(special))));
    for (kernel, special) in plain.chain(special.collect::<Result<Vec<_>>>()?) {
        let boot = special.map_or("", |special| special.boot);
        let with: &[Extra] = match special {
            Some(special) => special.with,
            None if kernel.arch == Arch::X86_64 => &[Extra::Peer],
            None => &[],
        };
        let system = with.contains(&Extra::System);
        let guest = Guest {
            offline,
            programs: if kernel.arch == Arch::Aarch64 { &arm } else { &here },
            accelerator: "tcg",
            memory: if system { 2_048 } else { 1_024 },
            limit: Duration::from_mins(12),
            driver_parameters: "",
            boot,
            files: if system { &package } else { &[] },
            with,
            part: 0,
        };
        let test = special.map(|special| special.test);
        eprintln!("test: guest with {} {}", kernel.name, test.unwrap_or_default());
        let command: Vec<&str> = [TESTS].into_iter().chain(test).collect();
        let (before, failed) = (tally.clone(), tally.failed);
        let ended = qemu::again(|| {
            tally.clone_from(&before);
            guest.run(kernel, &command, |line| {
                qemu::print(line);
                tally.add(line);
            })
        });
        let reason = match ended {
            Ok(0) => String::new(),
            Ok(code) => format!("the guest with {} failed (status {code})", kernel.name),
            Err(error) => format!("{error:#}"),
        };
        tally.end(&reason);
        if !reason.is_empty() {
            eprintln!("test: {reason}");
            if tally.failed == failed {
                tally.broken(1, &reason);
            }
        }
    }
    Ok(())
}

/// A copy of a file under the name that it has in a guest.
fn named(file: &Path, name: &str) -> Result<PathBuf> {
    let place = target().join("vm/files");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let copy = place.join(name);
    fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(copy)
}

/// Builds a kernel to test on, and says where it is.
///
/// # Errors
/// When its source cannot be had or does not build.
pub(crate) fn build_kernel(offline: bool, version: &str) -> Result<()> {
    let source = kernel::source(version)?;
    let directory = kernels::directory(&format!("{version}-kmemleak"));
    kernel::build(source, &directory, offline)?;
    println!("{}", directory.join("bzImage").display());
    Ok(())
}

/// What runs in a guest, linked statically: it has no libraries.
struct Programs {
    init: PathBuf,
    leaktrace: PathBuf,
    tests: PathBuf,
    eval: PathBuf,
}

impl Programs {
    fn build(arch: Arch, offline: bool) -> Result<Self> {
        let (mut cargo, built) = cargo_static(offline, "release", arch)?;
        let packages = ["leaktrace", "leaktrace-tests", "leaktrace-guest-init"];
        check(cargo.args(packages.iter().flat_map(|package| ["--package", package])).arg("--bins"))?;
        let stripped = target().join("vm/programs").join(arch.name());
        fs::create_dir_all(&stripped)?;
        let strip = |name: &str| -> Result<PathBuf> {
            let place = stripped.join(name);
            let objcopy = format!("{}objcopy", arch.tools());
            check(Command::new(objcopy).arg("--strip-debug").arg(built.join(name)).arg(&place))?;
            Ok(place)
        };
        Ok(Self {
            init: strip("guest-init")?,
            leaktrace: strip("leaktrace")?,
            tests: strip(TESTS)?,
            eval: strip(EVAL)?,
        })
    }
}

/// What all guests of a call have in common.
struct Guest<'a> {
    offline: bool,
    programs: &'a Programs,
    accelerator: &'a str,
    memory: u32,
    limit: Duration,
    driver_parameters: &'a str,
    /// What the kernel is told at its start, besides.
    boot: &'a str,
    files: &'a [PathBuf],
    with: &'a [Extra],
    /// Tells guests apart that run at the same time.
    part: u32,
}

impl Guest<'_> {
    fn has(&self, extra: Extra) -> bool {
        self.with.contains(&extra)
    }

    /// Boots a kernel, runs a command, and returns its exit status.
    fn run(&self, kernel: &Kernel, command: &[&str], results: impl FnMut(&str)) -> Result<i32> {
        let qemu = Qemu::find(kernel.arch, self.offline)?;
        let ready = kernel.prepare(self.offline)?;
        let drivers = driver::build(kernel, &ready.build, self.has(Extra::ManySites), self.offline)?;
        let name = match self.part {
            0 => kernel.name.to_owned(),
            part => format!("{}-{part}", kernel.name),
        };
        let initramfs = target().join("vm").join(format!("{name}.cpio"));
        self.pack(&drivers, command, &initramfs)?;
        qemu.run(
            &Machine {
                name: &name,
                image: &ready.image,
                initramfs: &initramfs,
                boot: &format!("{} {}", self.boot, if self.has(Extra::System) { system::BOOT } else { "" }),
                accelerator: self.accelerator,
                memory: self.memory,
                limit: self.limit,
            },
            results,
        )
    }

    fn pack(&self, drivers: &[PathBuf], command: &[&str], place: &Path) -> Result<()> {
        let mut archive = Initramfs::default();
        let places: &[&str] =
            if self.has(Extra::System) { &["guest"] } else { &["dev", "proc", "sys", "tmp", "run", "guest"] };
        for directory in places {
            archive.directory(directory);
        }
        if self.has(Extra::System) {
            archive.file("guest/init", &self.programs.init)?;
            system::service(&mut archive);
        } else {
            archive.file("init", &self.programs.init)?;
        }
        archive.file("guest/leaktrace", &self.programs.leaktrace)?;
        archive.file(&format!("guest/{TESTS}"), &self.programs.tests)?;
        archive.file(&format!("guest/{EVAL}"), &self.programs.eval)?;
        // The tests load it themselves.
        let by_themselves = [Some(&TESTS), Some(&EVAL)].contains(&command.first());
        let driver_name = if by_themselves { "guest/leakdrv.ko" } else { "guest/driver.ko" };
        archive.file(driver_name, drivers.first().context("there is no driver")?)?;
        if let Some(many) = drivers.get(1) {
            archive.file("guest/manysites.ko", many)?;
        }
        archive.text("guest/driver.parameters", self.driver_parameters);
        archive.text("guest/command", &command.join("\n"));
        for file in self.files {
            let name = file.file_name().context("a file for the guest has no name")?;
            archive.file(&format!("guest/{}", name.to_string_lossy()), file)?;
        }
        if self.has(Extra::Peer) {
            archive.tree("peer", &peer::memleak(self.offline)?)?;
        }
        archive.write(place)?;
        if self.has(Extra::System) { system::prepend(&system::archive(self.offline)?, place) } else { Ok(()) }
    }
}
