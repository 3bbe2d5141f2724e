//! Processes that allocated: their names, and whether they still run.

use std::{fs, path::Path};

use rustc_hash::FxHashMap;

/// Flag of a kernel thread in /proc/PID/stat (`include/linux/sched.h`, `PF_KTHREAD`).
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Inode of the PID namespace of the whole machine (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const WHOLE_MACHINE: &str = "pid:[4026531836]";

/// What is known of processes, looked up once each.
pub struct People {
    names: FxHashMap<u32, String>,
    running: FxHashMap<u32, bool>,
    error: Option<&'static str>,
}

impl People {
    /// Begins with the names that the programs noted.
    pub fn new(names: FxHashMap<u32, String>) -> Self {
        let namespace = fs::read_link("/proc/self/ns/pid");
        let error = match namespace {
            // proc(5): hidepid=2 shows others' processes as if they were not there.
            Ok(name) if name == Path::new(WHOLE_MACHINE) && !Path::new("/proc/1").exists() => {
                Some("/proc hides processes (hidepid)")
            }
            Ok(name) if name == Path::new(WHOLE_MACHINE) => None,
            Ok(_) => Some("leaktrace runs in a PID namespace of its own"),
            Err(_) => Some("/proc/self/ns/pid cannot be read"),
        };
        Self { names, running: FxHashMap::default(), error }
    }

    /// Why it is not known which processes run, if it is not.
    pub fn error(&self) -> Option<String> {
        self.error.map(str::to_owned)
    }

    /// Whether a process still runs, and so may hold what it allocated. Kernel threads and interrupts
    /// on the idle task are none; of what is not known the answer is yes.
    pub fn runs(&mut self, tgid: u32) -> bool {
        if tgid == 0 {
            return false;
        }
        if self.error.is_some() {
            return true;
        }
        *self.running.entry(tgid).or_insert_with(|| {
            let stat = procfs::process::Process::new(tgid as i32).and_then(|process| process.stat());
            match stat {
                Ok(stat) => stat.flags & KERNEL_THREAD == 0 && stat.state != 'Z',
                Err(procfs::ProcError::NotFound(_)) => false,
                Err(_) => Path::new("/proc").join(tgid.to_string()).exists(),
            }
        })
    }

    /// The name that the programs noted, or else what /proc says of a process that still lives.
    pub fn name(&self, tgid: u32) -> String {
        if tgid == 0 {
            return "(interrupt or idle)".to_owned();
        }
        self.names.get(&tgid).cloned().unwrap_or_else(|| {
            fs::read(format!("/proc/{tgid}/comm")).map_or_else(
                |_| "(exited)".to_owned(),
                |name| String::from_utf8_lossy(&name).trim_end().to_owned(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_dead() {
        let mut people = People::new(FxHashMap::default());
        assert!(people.runs(std::process::id()));
        assert!(!people.runs(0));
        if people.error().is_none() {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            child.wait().unwrap();
            assert!(!people.runs(child.id()));
        }
    }
}
