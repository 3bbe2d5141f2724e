//! QEMU: one that boots our kernels, and one run of it.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::monitor::Monitor;
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
/// What all kernels are told: no oops may go unnoticed, as that of a kernel thread would.
const BOOT: &str = "oops=panic panic=-1 quiet init_on_alloc=1";
/// Boots of one guest that may end by [`StaleCode`].
const BOOTS: usize = 3;

/// The emulator crashed the guest. Linux replaces instructions of its own under a breakpoint (static keys, kprobes;
/// `smp_text_poke_batch_finish` of `arch/x86/kernel/alternative.c`). With a thread for each CPU, QEMU may translate that
/// breakpoint once more in the moment it is overwritten, and then executes it when the kernel no longer expects it:
/// that is an oops of 6.12, and an endless loop of 6.1. A guest that only switches `kernel.sched_schedstats` on and off
/// meets it in half a minute.
#[derive(Debug)]
pub(crate) struct StaleCode;

impl fmt::Display for StaleCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the emulator executed a breakpoint that the kernel had already replaced")
    }
}

impl std::error::Error for StaleCode {}

/// Runs a guest, and once more where the emulator crashed it.
///
/// # Errors
/// What the run says; [`StaleCode`] only after a few boots.
pub(crate) fn again<T>(mut run: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..BOOTS {
        match run() {
            Err(error) if error.is::<StaleCode>() => eprintln!("vm: {error:#}\nvm: booting it once more"),
            ended => return ended,
        }
    }
    run()
}

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
    /// How long it may say nothing: a machine that hangs is not waited for to the end.
    pub(crate) silence: Duration,
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
    /// When it does not end by itself in time. Its console is kept in a file then, which is named. [`StaleCode`] when
    /// the emulator is at fault.
    pub(crate) fn run(&self, machine: &Machine<'_>, mut results: impl FnMut(&str)) -> Result<i32> {
        let directory = target().join("vm/console");
        fs::create_dir_all(&directory)?;
        let console = directory.join(format!("{}.log", machine.name));
        let (mut child, monitor) = self.spawn(machine, &console)?;
        let ended = follow(&mut child, machine, &mut results);
        let hangs_in_stale_code = matches!(ended, Ended::TooLate(_))
            && monitor.executes_stale_code(&console.with_extension("interrupts")).unwrap_or_else(|error| {
                eprintln!("vm: what the guest does is not known: {error:#}");
                false
            });
        // It may have ended, or hang.
        let _ = child.kill();
        child.wait().context("cannot wait for QEMU")?;
        let failed = |reason: &str| -> anyhow::Error {
            let said = read(&console);
            let end = match tail(&said) {
                end if end.trim().is_empty() => "is empty".to_owned(),
                end => format!("ends with:\n{end}"),
            };
            let message =
                format!("the guest {} {reason}; its console, in {}, {end}", machine.name, console.display());
            if hangs_in_stale_code || executed_stale_code(&said) {
                anyhow::Error::new(StaleCode).context(message)
            } else {
                anyhow::Error::msg(message)
            }
        };
        match ended {
            Ended::With(code) => Ok(code),
            Ended::TooLate(limit) => {
                Err(failed(&format!("did not end, or said nothing, within {} s", limit.as_secs())))
            }
            Ended::Silent => Err(failed("ended without a result")),
        }
    }

    fn spawn(&self, machine: &Machine<'_>, console: &Path) -> Result<(Child, Monitor)> {
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
        let (console, boot) = match self.arch {
            Arch::X86_64 => {
                command
                    .args(["-cpu", "max", "-vga", "none", "-serial", "chardev:results"])
                    .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"]);
                ("ttyS0", "")
            }
            Arch::Aarch64 => {
                // Pointer authentication costs an emulator more than all the rest, and page tables of the kernel's own (`kpti`)
                // have each system call empty what it knows of addresses.
                command.args([
                    "-machine",
                    "virt",
                    "-cpu",
                    "cortex-a72",
                    "-device",
                    "pci-serial,chardev=results",
                ]);
                ("ttyAMA0", "kpti=off")
            }
        };
        command
            .arg("-kernel")
            .arg(machine.image)
            .arg("-initrd")
            .arg(machine.initramfs)
            .args(["-append", &format!("console={console} {boot} {BOOT} {}", machine.boot)]);
        // Whoever ends us early ends the guest, too.
        // SAFETY: prctl is a plain system call, which is what the time between fork and exec allows.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let monitor = Monitor::give(&mut command)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        Ok((child, monitor))
    }
}

/// How a guest ended.
enum Ended {
    With(i32),
    /// It did not within this time.
    TooLate(Duration),
    Silent,
}

/// Passes lines on until the last one, which says the status.
fn follow(child: &mut Child, machine: &Machine<'_>, results: &mut impl FnMut(&str)) -> Ended {
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
    let deadline = Instant::now() + machine.limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(machine.silence)) {
            Ok(line) => match line.strip_prefix(ENDED).map(|code| code.trim().parse()) {
                Some(Ok(code)) => return Ended::With(code),
                _ => results(&line),
            },
            Err(RecvTimeoutError::Timeout) if left < machine.silence => return Ended::TooLate(machine.limit),
            Err(RecvTimeoutError::Timeout) => return Ended::TooLate(machine.silence),
            Err(RecvTimeoutError::Disconnected) => return Ended::Silent,
        }
    }
}

/// What a guest's kernel said.
fn read(console: &Path) -> String {
    String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned()
}

/// The end of a console, without what a terminal would obey.
fn tail(said: &str) -> String {
    let start = said.floor_char_boundary(said.len().saturating_sub(SHOWN));
    said[start..].chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}

/// Whether the kernel died of a breakpoint that is not there: the byte before the one it stopped at is no `int3`. One
/// that is there would be somebody's fault, like a jump into freed BPF code.
fn executed_stale_code(said: &str) -> bool {
    let Some((_, oops)) = said.split_once("int3: 0000 [#1]") else { return false };
    let Some(code) = oops.lines().find_map(|line| line.split_once("Code: ")) else { return false };
    let before = code.1.split_ascii_whitespace().take_while(|byte| !byte.starts_with('<')).last();
    before.is_some_and(|byte| byte != "cc")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_breakpoint_that_is_not_there_is_the_emulators_fault() {
        let oops = |code: &str| {
            format!(
                "[   69.320727] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n\
                 [   69.321405] RIP: 0010:bpf_trace_run2+0x76/0x110\n\
                 [   69.321496] Code: {code}\n\
                 [   69.322592] Code: 40 00 48 c7 c2 a8 ff ff ff f7 d8 cc <64> 89\n"
            )
        };
        assert!(executed_stale_code(&oops("48 89 04 24 e8 0b 91 f1 ff 66 <90> 48 8b 43 30")));
        assert!(!executed_stale_code(&oops("cc cc cc cc cc cc cc cc cc <cc> cc cc cc cc")));
        assert!(!executed_stale_code("[   69.3] Oops: 0000 [#1] PREEMPT SMP\nCode: 48 89 <04> 24"));
    }

    #[test]
    fn only_the_emulators_fault_is_tried_again() {
        let mut boots = 0;
        let result: Result<()> = again(|| {
            boots += 1;
            Err(anyhow::Error::new(StaleCode).context("the guest ended without a result"))
        });
        assert_eq!((result.is_err(), boots), (true, BOOTS));
        boots = 0;
        let result: Result<()> = again(|| {
            boots += 1;
            bail!("the guest did not end")
        });
        assert_eq!((result.is_err(), boots), (true, 1));
    }
}
