//! A terminal that goes away while leaktrace proves something: it ends, with its report.

use std::{
    fs::File,
    io::Read as _,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::trace::LEAKTRACE;

/// A busy emulated machine takes its time.
const PATIENCE: Duration = Duration::from_mins(2);

/// Runs leaktrace on a terminal of its own, takes that away as soon as something is shown on it, and returns how it ended.
pub fn hang_up(args: &[&str]) -> Result<ExitStatus> {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: valid pointers, or null where nothing is wanted.
    let result = unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) };
    ensure!(result == 0, "there is no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: both are new, and nobody else's.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let terminal = slave.as_raw_fd();
    let mut command = Command::new(LEAKTRACE);
    command.args(args).env("TERM", "xterm").stdin(slave.try_clone()?).stdout(slave.try_clone()?);
    // SAFETY: system calls that may be made between fork and exec, with integers only.
    unsafe {
        libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        command.pre_exec(move || {
            libc::setsid();
            match libc::ioctl(terminal, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.stderr(slave).spawn()?;
    drop(command);
    ensure!(master.read(&mut [0; 256])? > 0, "nothing was shown");
    drop(master);
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("it went on without its terminal");
        }
        sleep(Duration::from_millis(50));
    }
}
