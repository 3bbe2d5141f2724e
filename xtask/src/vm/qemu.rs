//! QEMU: one that boots our kernels, and one run of it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    debian::Suite,
    run::{find, output, target},
    setup::need_package,
};

/// QEMU before this crashes guests with Linux 6.12 for x86-64 under TCG.
const OLDEST: u32 = 8;
/// The suite that has a new one for Debian 12.
const SUITE: &str = "bookworm-backports";
/// Begins the last line of a guest's results; as in `tests/guest/init`.
const ENDED: &str = "\u{1e}ended ";
/// Bytes of the console that are shown when a guest fails.
const SHOWN: usize = 4_000;

/// An installed or unpacked QEMU.
pub(crate) struct Qemu {
    arch: Arch,
    program: PathBuf,
    /// Where its firmware is, when that is not where it looks by itself.
    firmware: Vec<PathBuf>,
    /// Where its modules are, likewise.
    modules: Option<PathBuf>,
}

/// One machine.
pub(crate) struct Machine<'a> {
    /// What it is called in messages and files.
    pub(crate) name: &'a str,
    /// The kernel's image.
    pub(crate) image: &'a Path,
    /// Its initramfs.
    pub(crate) initramfs: &'a Path,
    /// What the kernel is told, besides what all are.
    pub(crate) boot: &'a str,
    /// `tcg` or `kvm`.
    pub(crate) accelerator: &'a str,
    /// Memory in MiB.
    pub(crate) memory: u32,
    /// How long it may run.
    pub(crate) limit: Duration,
}

impl Qemu {
    /// The system's, if it is new enough, else Debian's of backports, unpacked.
    ///
    /// # Errors
    /// When none is there and none can be had.
    pub(crate) fn find(arch: Arch, offline: bool) -> Result<Self> {
        let plain = |program| Self { arch, program, firmware: Vec::new(), modules: None };
        if arch == Arch::Aarch64 {
            let system = "qemu-system-aarch64";
            if find(system).is_none() && offline {
                bail!("there is no {system}, and --offline forbids installing one");
            }
            need_package(system, "qemu-system-arm")?;
            return find(system).map(plain).with_context(|| format!("{system} is not in PATH"));
        }
        let system = "qemu-system-x86_64";
        if let Some(program) = find(system)
            && version(&program).is_some_and(|major| major >= OLDEST)
        {
            return Ok(plain(program));
        }
        let root = target().join("vm/qemu");
        let unpacked = Self {
            arch,
            program: root.join("usr/bin").join(system),
            firmware: vec![root.join("usr/share/qemu"), root.join("usr/share/seabios")],
            modules: Some(root.join("usr/lib/x86_64-linux-gnu/qemu")),
        };
        if version(&unpacked.program).is_some() {
            return Ok(unpacked);
        }
        if offline {
            bail!("there is no QEMU {OLDEST} or later, and --offline forbids downloading one");
        }
        // The distribution's own: for the libraries that the unpacked one needs, too.
        need_package(system, "qemu-system-x86")?;
        let program = find(system).with_context(|| format!("{system} was installed but is not in PATH"))?;
        if version(&program).is_some_and(|major| major >= OLDEST) {
            return Ok(plain(program));
        }
        let packages = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
        Suite::open(SUITE, arch, offline)?.unpack(&packages, &root)?;
        if version(&unpacked.program).is_none() {
            bail!("the QEMU of {SUITE} does not run here");
        }
        Ok(unpacked)
    }

    /// Runs a machine to its end and passes its results on; returns the exit status of its command.
    ///
    /// # Errors
    /// When it does not end by itself in time. Its console is kept in a file then, which is named.
    pub(crate) fn run(&self, machine: &Machine<'_>, mut results: impl FnMut(&str)) -> Result<i32> {
        let directory = target().join("vm/console");
        fs::create_dir_all(&directory)?;
        let console = directory.join(format!("{}.log", machine.name));
        let mut child = self.spawn(machine, &console)?;
        let ended = follow(&mut child, machine.limit, &mut results);
        // It may have ended, or hang.
        let _ = child.kill();
        child.wait().context("cannot wait for QEMU")?;
        let failed = |reason: &str| -> anyhow::Error {
            anyhow::anyhow!(
                "the guest {} {reason}; its console, in {}, ends with:\n{}",
                machine.name,
                console.display(),
                tail(&console)
            )
        };
        match ended {
            Ended::With(code) => Ok(code),
            Ended::TooLate => Err(failed(&format!("did not end within {} s", machine.limit.as_secs()))),
            Ended::Silent => Err(failed("ended without a result")),
        }
    }

    fn spawn(&self, machine: &Machine<'_>, console: &Path) -> Result<Child> {
        let mut command = Command::new(&self.program);
        if let Some(modules) = &self.modules {
            // Those of an installed QEMU are of another build.
            command.env("QEMU_MODULE_DIR", modules);
        }
        for place in &self.firmware {
            command.arg("-L").arg(place);
        }
        let accelerator = match machine.accelerator {
            "tcg" => "tcg,thread=multi",
            other => other,
        };
        command
            .args(["-accel", accelerator, "-smp", "2", "-m", &machine.memory.to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-chardev", "stdio,id=results,signal=off"]);
        let console = match self.arch {
            Arch::X86_64 => {
                command
                    .args(["-cpu", "max", "-vga", "none", "-serial", "chardev:results"])
                    .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"]);
                "ttyS0"
            }
            Arch::Aarch64 => {
                // Pointer authentication costs an emulator more than all the rest.
                command.args([
                    "-machine",
                    "virt",
                    "-cpu",
                    "cortex-a72",
                    "-device",
                    "pci-serial,chardev=results",
                ]);
                "ttyAMA0"
            }
        };
        command
            .arg("-kernel")
            .arg(machine.image)
            .arg("-initrd")
            .arg(machine.initramfs)
            .args(["-append", &format!("console={console} panic=-1 quiet init_on_alloc=1 {}", machine.boot)]);
        // Whoever ends us early ends the guest, too.
        // SAFETY: prctl is a plain system call, which is what the time between fork and exec allows.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))
    }
}

/// How a guest ended.
enum Ended {
    With(i32),
    TooLate,
    Silent,
}

/// Passes lines on until the last one, which says the status.
fn follow(child: &mut Child, limit: Duration, results: &mut impl FnMut(&str)) -> Ended {
    let Some(output) = child.stdout.take() else { return Ended::Silent };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    let deadline = Instant::now() + limit;
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.strip_prefix(ENDED).map(|code| code.trim().parse()) {
                Some(Ok(code)) => return Ended::With(code),
                _ => results(&line),
            },
            Err(RecvTimeoutError::Timeout) => return Ended::TooLate,
            Err(RecvTimeoutError::Disconnected) => return Ended::Silent,
        }
    }
}

/// The end of a console, without what a terminal would obey.
fn tail(console: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(console) {
        let _ = file.read_to_end(&mut bytes);
    }
    let start = bytes.len().saturating_sub(SHOWN);
    String::from_utf8_lossy(&bytes[start..]).chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}

/// Prints a line of results as it comes.
pub(crate) fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that closed the pipe has seen enough.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Major version, when the program runs.
fn version(program: &Path) -> Option<u32> {
    let text = output(Command::new(program).arg("--version").stderr(Stdio::null()))?;
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}
