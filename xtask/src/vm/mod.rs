//! `cargo xtask vm`: real kernels in QEMU, with leaktrace and the leaking driver in them.

mod driver;
mod eval;
mod initramfs;
mod kernels;
mod lab;
mod monitor;
mod peer;
mod plan;
mod qemu;
mod real;
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
    kernel,
    run::{cargo_static, check, compile, target},
};

pub(crate) use self::{
    eval::{EvalArgs, eval, evaluate_core},
    lab::Lab,
};

/// The program that tests leaktrace in a guest.
const TESTS: &str = "guest-tests";
/// The program that evaluates its verdicts.
const EVAL: &str = "eval";

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
    let prepared = Prepared::new(kernels::find(&args.kernel)?, &args.with, offline)?;
    let programs = Programs::build(prepared.kernel.arch, offline)?;
    let limit = Duration::from_secs(args.limit);
    let guest = Guest {
        offline,
        programs: &programs,
        accelerator: if args.accel == Accelerator::Kvm { "kvm" } else { "tcg" },
        memory: args.memory,
        limit,
        silence: limit,
        driver_parameters: &args.driver,
        boot: &args.boot,
        files: &args.file,
        with: &args.with,
        name: &args.kernel,
    };
    let code = qemu::again(|| guest.run(&prepared, &command, qemu::print))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
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
pub(crate) struct Programs {
    init: PathBuf,
    /// The binary that `cargo xtask dist` packs, too.
    pub(crate) leaktrace: PathBuf,
    tests: PathBuf,
    eval: PathBuf,
}

impl Programs {
    /// Builds them for a kind of machine.
    ///
    /// # Errors
    /// When cargo fails.
    pub(crate) fn build(arch: Arch, offline: bool) -> Result<Self> {
        let (mut cargo, built) = cargo_static(offline, arch)?;
        let packages = ["leaktrace", "leaktrace-tests", "leaktrace-guest-init"];
        let programs = ["leaktrace", TESTS, EVAL, "guest-init"];
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        cargo.args(programs.iter().flat_map(|program| ["--bin", program]));
        compile(&mut cargo, &format!("what runs in guests, for {}", arch.name()))?;
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

/// What guests with one kernel boot, made once.
struct Prepared {
    kernel: &'static Kernel,
    qemu: Qemu,
    image: PathBuf,
    drivers: Vec<PathBuf>,
}

impl Prepared {
    /// Finds or makes it.
    ///
    /// # Errors
    /// When something cannot be had or built.
    fn new(kernel: &'static Kernel, with: &[Extra], offline: bool) -> Result<Self> {
        let qemu = Qemu::find(kernel.arch, offline)?;
        let ready = kernel.prepare(offline)?;
        let drivers = driver::build(kernel, &ready.build, with.contains(&Extra::ManySites), offline)?;
        if with.contains(&Extra::Peer) {
            peer::memleak(offline)?;
        }
        if with.contains(&Extra::System) {
            system::archive(offline)?;
        }
        Ok(Self { kernel, qemu, image: ready.image, drivers })
    }
}

/// A guest.
struct Guest<'a> {
    offline: bool,
    programs: &'a Programs,
    accelerator: &'a str,
    memory: u32,
    /// How long it may run, and how long it may say nothing.
    limit: Duration,
    silence: Duration,
    driver_parameters: &'a str,
    /// What the kernel is told at its start, besides.
    boot: &'a str,
    files: &'a [PathBuf],
    with: &'a [Extra],
    /// Tells guests apart that run at the same time.
    name: &'a str,
}

impl Guest<'_> {
    fn has(&self, extra: Extra) -> bool {
        self.with.contains(&extra)
    }

    /// Boots a kernel, runs a command, and returns its exit status.
    fn run(&self, prepared: &Prepared, command: &[&str], results: impl FnMut(&str)) -> Result<i32> {
        let initramfs = target().join("vm").join(format!("{}.cpio", self.name));
        self.pack(&prepared.drivers, command, &initramfs)?;
        prepared.qemu.run(
            &Machine {
                name: self.name,
                image: &prepared.image,
                initramfs: &initramfs,
                boot: &format!("{} {}", self.boot, if self.has(Extra::System) { system::BOOT } else { "" }),
                accelerator: self.accelerator,
                memory: self.memory,
                limit: self.limit,
                silence: self.silence,
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
