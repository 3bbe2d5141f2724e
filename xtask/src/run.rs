//! Running commands, and leaktrace and its benchmark as root.

use std::{
    env,
    ffi::OsStr,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;

/// The workspace's directory.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// cargo, as it was called, in the workspace.
pub(crate) fn cargo(offline: bool) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).env("LEAKTRACE_BPF_TARGET_DIR", target().join("bpf"));
    if offline {
        command.arg("--offline");
    }
    command
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run or fails.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Standard output of a command that succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args().take(4))
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs as root: by sudo, unless we are.
///
/// # Errors
/// When we are not root and there is no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("{} has to run as root, and there is no sudo", program.as_ref().to_string_lossy());
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// A program in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Builds leaktrace as it is run here, which is to be quick: without what makes it a little faster or smaller. Returns the
/// binary.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build(offline: bool) -> Result<PathBuf> {
    compile(cargo(offline).args(["build", "--package", "leaktrace"]), "leaktrace")?;
    Ok(target().join("debug/leaktrace"))
}

/// Builds leaktrace as it is packed, for a machine like this one; returns the binary.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build_release(offline: bool) -> Result<PathBuf> {
    let (mut cargo, built) = cargo_static(offline, Arch::host()?)?;
    compile(cargo.args(["--package", "leaktrace"]), "leaktrace, optimised")?;
    Ok(built.join("leaktrace"))
}

/// Runs cargo, which shows its own progress on a terminal; elsewhere what is built and how long that took.
///
/// # Errors
/// When it fails.
pub(crate) fn compile(cargo: &mut Command, what: &str) -> Result<()> {
    if std::io::stderr().is_terminal() {
        return check(cargo);
    }
    eprintln!("build: {what}");
    let begun = Instant::now();
    check(cargo.arg("--quiet"))?;
    eprintln!("build: {what} took {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// cargo, set to build statically linked programs for a kind of machine, and the directory in which they will be. They
/// have a target directory of their own: other flags would rebuild everything twice.
///
/// # Errors
/// When something that takes is missing.
pub(crate) fn cargo_static(offline: bool, arch: Arch) -> Result<(Command, PathBuf)> {
    arch.prepare(offline)?;
    let (directory, triple) = (target().join("static"), arch.triple());
    let mut command = cargo(offline);
    command
        .args(["build", "--release", "--target", &triple, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    arch.link(&mut command);
    Ok((command, directory.join(triple).join("release")))
}

/// Runs leaktrace as root with its own exit status.
///
/// # Errors
/// When it cannot be built or run.
pub(crate) fn leaktrace(offline: bool, args: &[String]) -> Result<ExitCode> {
    let binary = build(offline)?;
    exit_status(as_root(&binary)?.args(args))
}

/// Builds one of the programs in tests, optimised; returns it.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build_of_tests(offline: bool, name: &str) -> Result<PathBuf> {
    let (mut cargo, built) = cargo_static(offline, Arch::host()?)?;
    compile(cargo.args(["--package", "leaktrace-tests", "--bin", name]), name)?;
    Ok(built.join(name))
}

/// Runs the benchmark as root.
///
/// # Errors
/// When it cannot be built or run.
pub(crate) fn bench(offline: bool, args: &[String]) -> Result<ExitCode> {
    let leaktrace = build_release(offline)?;
    let bench = build_of_tests(offline, "bench")?;
    exit_status(as_root(bench)?.arg("--leaktrace").arg(leaktrace).args(args))
}

/// Runs a command, and passes its exit status on.
fn exit_status(command: &mut Command) -> Result<ExitCode> {
    // Ctrl-C is for the child, which then reports; we only wait for it.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let name = describe(command);
    let status = reset_interrupt(command).status().with_context(|| format!("cannot run {name}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// An ignored signal is inherited: the child gets the default back.
fn reset_interrupt(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: signal is async-signal-safe, which is what the time between fork and exec allows.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    }
}
