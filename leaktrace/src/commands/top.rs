//! `leaktrace top`: findings as they are now, on a terminal.

use std::{
    io::{self, IsTerminal as _},
    mem::ManuallyDrop,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{
    judging, probe,
    session::{self, How, Session, Woken},
};
use crate::{
    cli::TopArgs,
    screen::{Busy, Screen, Wish},
    tracer::Tick,
};

/// Findings that are kept to be looked at.
const FINDINGS: u32 = 1_000;
/// How often the thread that reads keys looks whether it shall end, and how long its end is waited for.
const KEYS: Duration = Duration::from_millis(100);
const KEYS_END: Duration = Duration::from_secs(1);

/// Traces, and shows how things stand until a key or a signal ends it.
///
/// # Errors
/// When there is no terminal, or tracing cannot work here.
pub(super) fn run(args: &TopArgs) -> Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal: use `leaktrace --duration TIME` for a report");
    }
    let kernel = probe::probe(Path::new("/"))?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let how = How::watching(&args.watch, FINDINGS, false);
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    let shown = runtime.block_on(async {
        let mut terminal = Restored::enter()?;
        let mut keys = Keys::read();
        watch(&mut session, &mut terminal, &mut keys).await
    });
    session.tracer.detach()?;
    shown
}

/// Ticks and keys, whichever comes first.
async fn watch(session: &mut Session, terminal: &mut Restored, keys: &mut Keys) -> Result<()> {
    let mut screen = Screen::default();
    let begun = Instant::now();
    let mut last = (begun, Tick::default());
    let mut judge = begun;
    loop {
        terminal.draw(&mut screen)?;
        // A tick is not cut in the middle: keys are looked at while it waits.
        let ticked = {
            let mut tick = std::pin::pin!(session.tick(session::never()));
            loop {
                tokio::select! {
                    biased;
                    ticked = &mut tick => break ticked?,
                    event = keys.events.recv() => {
                        // Without a terminal there is nobody to show anything to.
                        let Some(event) = event else { return Ok(()) };
                        if let Event::Key(key) = event.context("cannot read the terminal")?
                            && key.kind != KeyEventKind::Release
                            && screen.press(key) == Wish::Quit
                        {
                            return Ok(());
                        }
                        terminal.draw(&mut screen)?;
                    }
                }
            }
        };
        let (woken, tick) = ticked;
        if woken == Woken::Stopped {
            return Ok(());
        }
        let events = (tick.allocated + tick.freed).saturating_sub(last.1.allocated + last.1.freed);
        screen.tick(Busy {
            events_per_s: events as f64 / last.0.elapsed().as_secs_f64().max(1e-3),
            live: tick.live,
            elapsed_s: begun.elapsed().as_secs_f64(),
        });
        last = (Instant::now(), tick);
        if !screen.is_paused() && judge <= Instant::now() {
            let begun = Instant::now();
            screen.show(session.look()?);
            judge = judging::after(begun);
        }
    }
}

/// A terminal that is given back, however this ends. ratatui's own end of it would write on standard error that it has failed, and panic
/// where that is the terminal that is gone.
struct Restored(ManuallyDrop<DefaultTerminal>);

impl Restored {
    fn enter() -> Result<Self> {
        ratatui::try_init().map(ManuallyDrop::new).map(Self).context("cannot use the terminal")
    }

    fn draw(&mut self, screen: &mut Screen) -> Result<()> {
        self.0.draw(|frame| screen.draw(frame)).map(|_| ()).context("cannot write to the terminal")
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Keys and new sizes, read by a thread of their own.
struct Keys {
    events: UnboundedReceiver<io::Result<Event>>,
    ended: Arc<AtomicBool>,
    /// Is closed when the thread ends.
    thread: Receiver<()>,
}

impl Keys {
    fn read() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (running, thread) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        std::thread::spawn(move || {
            // Dropped with the thread's end.
            let _running = running;
            while !seen.load(Ordering::Relaxed) && is_there(KEYS) {
                // One reading may have brought several keys.
                loop {
                    let event = match event::poll(Duration::ZERO) {
                        Ok(false) => break,
                        Ok(true) => event::read(),
                        Err(error) => Err(error),
                    };
                    let failed = event.is_err();
                    if sender.send(event).is_err() || failed {
                        return;
                    }
                }
            }
        });
        Self { events, ended, thread }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // It ends within its interval, so that keys are the shell's again; but crossterm does not come back from a terminal that
        // went away while it read. Such a thread ends with the process.
        let _ = self.thread.recv_timeout(KEYS_END);
    }
}

/// Waits for keys, and says whether the terminal is still there: crossterm would read one that is gone for ever.
fn is_there(wait: Duration) -> bool {
    let mut terminal = libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
    // SAFETY: a valid pointer to one entry.
    let ready = unsafe { libc::poll(&raw mut terminal, 1, wait.as_millis() as i32) };
    // An error is a signal's interruption: what is asked for is valid.
    ready <= 0 || terminal.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) == 0
}
