//! `leaktrace triage`: who has the memory, before anything is traced.

mod assemble;
mod depth;
mod look;
mod process;
mod watch;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

use self::{depth::Openers, look::Looker, process::Subject, watch::Screen};
use super::{
    assemble::coverage::own_cpu_s,
    output::{self, Output},
    probe, session,
    stop::Stop,
};
use crate::{
    analysis::{
        steps,
        triage::{Diagnosis, Look, Observation},
    },
    cli::{Format, TriageArgs},
    kernel::machine::Machine,
    proc::{
        modules,
        profile::{self, Places},
    },
    report::{
        forms::json,
        page::WIDTH,
        text::Style,
        triage::{model, model::Triage, process as process_report, text},
    },
};

/// Looks in a window.
const LOOKS: u32 = 10;
/// Time between two looks.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// Looks that are kept: of a long window every second one is dropped, again and again.
const KEPT: usize = 24;

/// Looks, and tells.
///
/// # Errors
/// When nothing can be read of /proc, there is no such process, or the answer cannot be written.
pub(super) fn run(args: &TriageArgs) -> Result<ExitCode> {
    let output = Output::open(args.output.as_deref())?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let stop = Stop::new().context("cannot catch signals")?;
    let root = Path::new("/");
    let style = Style {
        colour: output.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        verbose: args.verbose,
        top: args.top as usize,
        width: if matches!(output, Output::Stdout) { output::width() } else { WIDTH },
    };
    if args.watch {
        runtime.block_on(watch(root, args, &stop, &style))?;
        return Ok(ExitCode::SUCCESS);
    }
    let in_json = args.format == Format::Json;
    let answer = if let Some(pid) = args.pid {
        let answer = runtime.block_on(one(root, pid, args.duration, &stop))?;
        if in_json { json(&answer)? } else { process_report::render(&answer, &style) }
    } else {
        let mut session = Session::new(root)?;
        runtime.block_on(session.run(args.duration, &stop))?;
        let answer = session.answer();
        if in_json { json(&answer)? } else { text::render(&answer, &style) }
    };
    output.write(answer.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Time between two looks of a window.
fn interval(duration: Duration) -> Duration {
    (duration / LOOKS).clamp(SHORTEST, LONGEST)
}

/// Looks at one process for a while.
async fn one(root: &Path, pid: u32, duration: Duration, stop: &Stop) -> Result<process_report::InDepth> {
    let started = Instant::now();
    let mut subject = Subject::new(root, pid)?;
    let mut next = started;
    while next < started + duration {
        next = (next + interval(duration)).min(started + duration);
        let stopped = stop.wait_until(next).await;
        if !subject.look(started.elapsed().as_secs_f64()) || stopped {
            break;
        }
    }
    let mut answer = subject.answer();
    leave_usable(&mut answer.diagnosis, root, Machine::current().ok().as_ref());
    Ok(answer)
}

/// Leaves the next steps that this machine can do.
fn leave_usable(found: &mut [Diagnosis], root: &Path, machine: Option<&Machine>) {
    let offers = probe::offers(root, machine);
    for diagnosis in found {
        diagnosis.next = steps::usable(&diagnosis.next, &offers);
    }
}

/// Shows an answer again and again, until it is stopped.
async fn watch(root: &Path, args: &TriageArgs, stop: &Stop, style: &Style) -> Result<()> {
    let mut screen = Screen::open()?;
    let window = args.duration.max(Duration::from_secs(2));
    let every = interval(window).max(Duration::from_secs(1));
    let mut session = Session::new(root)?;
    loop {
        let answer = session.answer();
        let width = output::width();
        screen.show(&text::render(&answer, &Style { width, ..*style }))?;
        if stop.wait_until(Instant::now() + every).await {
            return Ok(());
        }
        session.look()?;
        session.forget_before(window);
    }
}

/// The looks so far.
struct Session<'a> {
    root: &'a Path,
    looker: Looker,
    openers: Openers,
    seen: Observation,
    machine: Option<Machine>,
    started: String,
    /// What the kernel's own accounts had at first.
    places: Option<Places>,
    /// Since how many looks one is kept of so many.
    every: usize,
    looks: usize,
}

impl<'a> Session<'a> {
    /// Takes the first look.
    fn new(root: &'a Path) -> Result<Self> {
        let machine = Machine::current().ok();
        let cpus = machine.as_ref().map_or(1, |machine| machine.online_cpus);
        let mut session = Self {
            root,
            looker: Looker::new(root),
            openers: Openers::default(),
            seen: Observation { page_kb: look::page_kb(), cpus, ..Observation::default() },
            machine,
            started: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            places: profile::read(root, look::page_kb() * 1_024),
            every: 1,
            looks: 0,
        };
        session.look()?;
        session.read_groups();
        Ok(session)
    }

    /// Gives the last look its control groups.
    fn read_groups(&mut self) {
        let groups = self.looker.groups();
        if let Some(look) = self.seen.looks.last_mut() {
            look.groups = groups;
        }
    }

    /// Takes looks until a time has passed or a signal comes.
    async fn run(&mut self, duration: Duration, stop: &Stop) -> Result<()> {
        let started = Instant::now();
        let mut next = started;
        while next < started + duration {
            next = (next + interval(duration)).min(started + duration);
            let stopped = stop.wait_until(next).await;
            self.look()?;
            if stopped {
                break;
            }
            // A slow look must not be followed by another at once.
            next = next.max(Instant::now());
        }
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        let look = self.looker.look()?;
        if let Some(before) = self.seen.looks.last() {
            self.openers.note(self.root, before, &look);
        }
        self.looks += 1;
        // The last look stays until the next: of those before it, one in so many.
        if self.seen.looks.len() > 1 && !(self.looks - 2).is_multiple_of(self.every) {
            self.seen.looks.pop();
        }
        self.seen.looks.push(look);
        if self.seen.looks.len() > KEPT {
            self.thin();
        }
        Ok(())
    }

    /// Drops every second look; the first and the last stay.
    fn thin(&mut self) {
        let last = self.seen.looks.len() - 1;
        let mut index = 0;
        self.seen.looks.retain(|_| {
            index += 1;
            (index - 1) % 2 == 0 || index - 1 == last
        });
        self.every *= 2;
    }

    /// Drops looks that are older than a window.
    fn forget_before(&mut self, window: Duration) {
        let now = self.seen.last().at_s;
        let old = |look: &&Look| now - look.at_s > window.as_secs_f64();
        let drop = self.seen.looks.iter().take_while(old).count();
        self.seen.looks.drain(..drop.min(self.seen.looks.len() - 1));
    }

    /// Looks in depth where it is worth it, and puts the answer together.
    fn answer(&mut self) -> Triage {
        self.read_groups();
        self.seen.names.clone_from(&self.looker.names);
        self.seen.details = depth::details(self.root, &self.seen, &self.openers);
        let modules = modules::read(self.root).unwrap_or_default();
        depth::caches(self.root, &mut self.seen, &modules);
        self.seen.places = self.places.clone().zip(profile::read(self.root, look::page_kb() * 1_024));
        let mut answer = assemble::triage(self.root, &self.seen, &self.looker, &modules);
        leave_usable(&mut answer.diagnosis, self.root, self.machine.as_ref());
        if let Some(machine) = &self.machine {
            answer.kernel.clone_from(&machine.release);
            answer.architecture.clone_from(&machine.architecture);
            answer.cpus = machine.online_cpus;
        }
        answer.window = model::Window {
            started: self.started.clone(),
            duration_s: self.seen.duration_s(),
            looks: self.seen.looks.len(),
        };
        answer.cost = model::Cost {
            cpu_s: own_cpu_s(),
            slowest_look_ms: self.looker.slowest_ms,
            peak_rss_kb: assemble::peak_rss_kb(self.root),
        };
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_looks_some_are_kept_of_all_the_time() {
        let mut session = Session::new(Path::new("/")).unwrap();
        for _ in 0..KEPT * 5 {
            session.look().unwrap();
        }
        let times: Vec<f64> = session.seen.looks.iter().map(|look| look.at_s).collect();
        assert!((KEPT / 2..=KEPT).contains(&times.len()), "{times:?}");
        assert!(times.is_sorted() && times[0] < times[1]);
        let (span, longest) = (session.seen.duration_s(), times.windows(2).map(|pair| pair[1] - pair[0]));
        // None is far from the next.
        assert!(longest.fold(0.0, f64::max) < span / 3.0, "{times:?}");
        // What is too old goes, but for the last look.
        session.forget_before(Duration::ZERO);
        assert_eq!(session.seen.looks.len(), 1);
        let answer = session.answer();
        assert_eq!(answer.schema, model::SCHEMA);
        assert!(!answer.ledger.is_empty() && !answer.diagnosis.is_empty() && answer.process_count > 2);
    }
}
