//! The guests of `cargo xtask test`: some at a time, so that their waits overlap.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Extra, Guest, Prepared, Programs, TESTS, kernels,
    plan::{self, Planned},
    qemu,
};
use crate::{
    arch::Arch,
    dist::deb,
    run::{output, target},
    test::{Tier, tally::Tally, times::Times},
};

/// Guests at a time. Each has two CPUs, and waits for half of its time.
const AT_A_TIME: usize = 2;
/// How long a guest may run, and how long it may say nothing, on the slowest of machines.
const LIMIT: Duration = Duration::from_hours(1);
const SILENCE: Duration = Duration::from_mins(8);

/// Everything that the guests of a tier take.
pub(crate) struct Lab {
    offline: bool,
    guests: Vec<(Planned, Prepared)>,
    here: Programs,
    arm: Option<Programs>,
    /// Our package, where a guest installs it.
    package: Vec<PathBuf>,
}

impl Lab {
    /// Downloads and builds it.
    ///
    /// # Errors
    /// When something cannot be had, or a guest's test is in no guest.
    pub(crate) fn prepare(offline: bool, tier: Tier, here: Programs) -> Result<Self> {
        let names =
            output(Command::new(&here.tests).arg("--list")).context("the guests' tests do not run")?;
        if let Some(name) = plan::forgotten(&names) {
            bail!("no guest runs the test {name:?}");
        }
        let planned = plan::guests(tier);
        let mut guests = Vec::new();
        for guest in planned {
            let kernel = kernels::find(guest.kernel)?;
            guests.push((*guest, Prepared::new(kernel, guest.with, offline)?));
        }
        let needs_arm = guests.iter().any(|(_, prepared)| prepared.kernel.arch == Arch::Aarch64);
        let arm = needs_arm.then(|| Programs::build(Arch::Aarch64, offline)).transpose()?;
        let package = if planned.iter().any(|guest| guest.with.contains(&Extra::System)) {
            let package = deb(offline, Arch::X86_64, &here.leaktrace, &here.leaktrace)?;
            vec![named(&package, "leaktrace.deb")?]
        } else {
            Vec::new()
        };
        Ok(Self { offline, guests, here, arm, package })
    }

    /// Boots every guest, runs its tests in it, and counts them, a guest that fails as well.
    pub(crate) fn run(&self, tally: &mut Tally, times: &mut Times) {
        let (next, shared) = (AtomicUsize::new(0), Mutex::new((tally, times)));
        thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(self.guests.len()) {
                scope.spawn(|| {
                    while let Some((planned, prepared)) = self.guests.get(next.fetch_add(1, Relaxed)) {
                        let guest = Running::new(self, *planned).run(prepared);
                        let mut shared = shared.lock().expect("no guest's thread panics");
                        shared.0.merge(guest.tally);
                        guest.times.into_iter().for_each(|(test, took)| shared.1.test(test, took));
                    }
                });
            }
        });
    }
}

/// A guest that runs, and what it has said.
struct Running<'a> {
    lab: &'a Lab,
    planned: Planned,
    /// Its kernel, and what tells it from others with that.
    name: String,
    tally: Tally,
    times: Vec<(String, Duration)>,
    /// What the test that runs has printed: it is shown at its end, so that guests do not talk at once.
    block: Vec<String>,
    /// The test that runs.
    test: String,
}

impl<'a> Running<'a> {
    fn new(lab: &'a Lab, planned: Planned) -> Self {
        let name = [planned.kernel, planned.what].join("-");
        Self {
            lab,
            planned,
            name: name.trim_end_matches('-').to_owned(),
            tally: Tally::default(),
            times: Vec::new(),
            block: Vec::new(),
            test: String::new(),
        }
    }

    fn run(mut self, prepared: &Prepared) -> Self {
        let lab = self.lab;
        let system = self.planned.with.contains(&Extra::System);
        let arm = lab.arm.as_ref().filter(|_| prepared.kernel.arch == Arch::Aarch64);
        let name = self.name.clone();
        let guest = Guest {
            offline: lab.offline,
            programs: arm.unwrap_or(&lab.here),
            accelerator: "tcg",
            memory: if system { 2_048 } else { 1_024 },
            limit: LIMIT,
            silence: SILENCE,
            driver_parameters: "",
            boot: self.planned.boot,
            files: if system { &lab.package } else { &[] },
            with: self.planned.with,
            name: &name,
        };
        eprintln!("test: guest {name}");
        let command: Vec<&str> = [TESTS].into_iter().chain(self.planned.tests.iter().copied()).collect();
        let ended = qemu::again(|| {
            (self.tally, self.times) = (Tally::default(), Vec::new());
            guest.run(prepared, &command, |line| self.take(line))
        });
        self.show();
        let reason = match ended {
            Ok(0) => String::new(),
            Ok(code) => format!("the guest {name} failed (status {code})"),
            Err(error) => format!("{error:#}"),
        };
        self.tally.end(&reason);
        if !reason.is_empty() {
            eprintln!("test: {reason}");
            if self.tally.failed == 0 {
                self.tally.broken(1, &reason);
            }
        }
        self
    }

    /// A line of its results.
    fn take(&mut self, line: &str) {
        self.tally.add(line);
        if let Some(test) = line.strip_prefix("guest ") {
            self.show();
            test.split_once(": ").map_or(test, |(_, test)| test).clone_into(&mut self.test);
        }
        self.block.push(line.to_owned());
        let took = line.strip_prefix("  took ").and_then(|rest| rest.strip_suffix(" s")?.parse().ok());
        if let Some(seconds) = took.map(Duration::from_secs_f64) {
            self.times.push((format!("guest {}: {}", self.name, self.test), seconds));
            self.show();
        }
    }

    fn show(&mut self) {
        if !self.block.is_empty() {
            let lines = std::mem::take(&mut self.block).join("\n");
            qemu::print(&lines.replacen("guest ", &format!("guest {} ", self.name), 1));
        }
    }
}

/// A copy of a file under the name that it has in a guest.
fn named(file: &Path, name: &str) -> Result<PathBuf> {
    let place = target().join("vm/files");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let copy = place.join(name);
    fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(copy)
}
