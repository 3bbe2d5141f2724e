//! `leaktrace top`: findings as they are now, on a terminal.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
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
/// How often the thread that reads keys looks whether it shall end.
const KEYS: Duration = Duration::from_millis(100);

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
                    event = keys.events.recv() => match event {
                        Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                            if screen.press(key) == Wish::Quit {
                                return Ok(());
                            }
                            terminal.draw(&mut screen)?;
                        }
                        Some(_) => terminal.draw(&mut screen)?,
                        None => bail!("the terminal cannot be read any more"),
                    },
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

/// A terminal that is given back, however this ends.
struct Restored(DefaultTerminal);

impl Restored {
    fn enter() -> Result<Self> {
        ratatui::try_init().map(Self).context("cannot use the terminal")
    }

    fn draw(&mut self, screen: &mut Screen) -> Result<()> {
        self.0.draw(|frame| screen.draw(frame)).map(|_| ()).context("cannot write to the terminal")
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys and new sizes, read by a thread of their own.
struct Keys {
    events: UnboundedReceiver<Event>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn read() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let event = match event::poll(KEYS) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                // Without a terminal the channel ends, and so does everything else.
                if !event.is_ok_and(|event| sender.send(event).is_ok()) {
                    break;
                }
            }
        });
        Self { events, ended, thread: Some(thread) }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within its interval; that it panicked is of no use to anyone now.
            let _ = thread.join();
        }
    }
}
