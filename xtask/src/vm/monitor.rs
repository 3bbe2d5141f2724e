//! QEMU's monitor (QMP): what a guest that does not end is doing.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long interrupts are logged: a processor that does nothing else has tens of thousands in this time.
const LOGGED: Duration = Duration::from_millis(50);
/// Breakpoints at one place in this time that are no accident.
const MANY: usize = 100;

/// Our end of it.
pub(super) struct Monitor {
    ours: UnixStream,
    /// QEMU's, kept open until it has started.
    theirs: OwnedFd,
}

impl Monitor {
    /// A monitor for the QEMU that a command will be.
    ///
    /// # Errors
    /// When there are no sockets left.
    pub(super) fn give(command: &mut Command) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let number = theirs.as_raw_fd();
        command.args(["-chardev", &format!("socket,id=monitor,fd={number}"), "-mon"]);
        command.arg("chardev=monitor,mode=control");
        // SAFETY: fcntl is a plain system call, which is what the time between fork and exec allows.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Ok(Self { ours, theirs: theirs.into() })
    }

    /// Whether a processor of the guest does nothing but execute a breakpoint that is not in its memory: Linux 6.1
    /// answers one that it has removed by going back to where it was, and the emulator's is there for good.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(super) fn executes_stale_code(self, log: &Path) -> Result<bool> {
        drop(self.theirs);
        let mut session = Session { lines: BufReader::new(self.ours) };
        session.ask(&json!({ "execute": "qmp_capabilities" }))?;
        session.human(&format!("logfile {}", log.display()))?;
        session.human("log int")?;
        sleep(LOGGED);
        session.human("log none")?;
        let logged = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        // It is megabytes.
        let _ = fs::remove_file(log);
        let logged = String::from_utf8_lossy(&logged);
        let Some(place) = breakpoint(&logged) else { return Ok(false) };
        let memory = session.human(&format!("x /1xb 0x{place}"))?;
        let byte = memory.trim().rsplit_once(": 0x").context("QEMU shows no memory")?.1;
        Ok(u8::from_str_radix(byte, 16).context("QEMU shows no byte")? != 0xcc)
    }
}

/// A conversation.
struct Session {
    lines: BufReader<UnixStream>,
}

impl Session {
    /// Gives a command for people; returns what it prints.
    fn human(&mut self, command: &str) -> Result<String> {
        let arguments = json!({ "command-line": command });
        let answer = self.ask(&json!({ "execute": "human-monitor-command", "arguments": arguments }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn ask(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.lines.get_mut(), "{command}").context("QEMU does not listen")?;
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).context("QEMU does not answer")? == 0 {
                bail!("QEMU has ended");
            }
            // Between greetings and events.
            let mut answer: Value = serde_json::from_str(&line).context("QEMU's answer is no JSON")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}

/// Where, in hexadecimal, a processor has met a breakpoint again and again, in QEMU's log of interrupts.
fn breakpoint(log: &str) -> Option<&str> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    for line in log.lines().filter(|line| line.contains(": v=03 ")) {
        if let Some(place) = line.split_once(" pc=").and_then(|(_, rest)| rest.split(' ').next()) {
            *places.entry(place).or_default() += 1;
        }
    }
    places
        .into_iter()
        .filter(|&(_, times)| times >= MANY)
        .max_by_key(|&(_, times)| times)
        .map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_that_is_met_again_and_again_is_found() {
        let met = "     0: v=03 e=0000 i=1 cpl=0 IP=0010:ffffffff9a8e08ec pc=ffffffff9a8e08ec \
                   SP=0018:ff58256c003e39d8 env->regs[R_EAX]=0000000000000000\n\
                   RAX=0000000000000000 RBX=ff1d24b8822ca100\n";
        let timer =
            "     7: v=ec e=0000 i=0 cpl=0 IP=0010:ffffffff9a8e08ec pc=ffffffff9a8e08ec SP=0018:ff58\n";
        assert_eq!(breakpoint(&met.repeat(MANY)), Some("ffffffff9a8e08ec"));
        assert_eq!(breakpoint(&met.repeat(MANY - 1)), None);
        assert_eq!(breakpoint(&timer.repeat(MANY)), None);
    }
}
