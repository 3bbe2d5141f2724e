//! The last report, and what was made of it: each form once, however many ask for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;

use super::places::Places;
use crate::report::{
    forms::{self, Form},
    metrics,
    model::Report,
    text::Style,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Page,
    Report,
    Flame,
    Profile,
    Metrics,
    OlderMetrics,
}

/// Ticks that may be late before tracing counts as stuck, and time beside them.
const LATE: u32 = 5;
const GRACE: Duration = Duration::from_secs(15);

/// How things stand.
pub(super) struct Shown {
    interval: Duration,
    /// Whether kernel addresses are shown.
    addresses: bool,
    /// Who is connected.
    pub(super) places: Arc<Places>,
    state: Mutex<State>,
}

struct State {
    ticked: Instant,
    report: Option<Arc<Report>>,
    made: HashMap<What, Bytes>,
}

impl Shown {
    pub(super) fn new(interval: Duration, places: Arc<Places>, addresses: bool) -> Self {
        let state = State { ticked: Instant::now(), report: None, made: HashMap::new() };
        Self { interval, addresses, places, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that tracing goes on.
    pub(super) fn ticked(&self) {
        self.state().ticked = Instant::now();
    }

    /// Shows a report from now on.
    pub(super) fn show(&self, mut report: Report) {
        if !self.addresses {
            report.forget_addresses();
        }
        let mut state = self.state();
        state.report = Some(Arc::new(report));
        state.made.clear();
    }

    /// Whether tracing goes on.
    pub(super) fn is_alive(&self) -> bool {
        self.state().ticked.elapsed() < self.interval * LATE + GRACE
    }

    /// What is asked for, of the last report; `None` before the first one.
    ///
    /// # Errors
    /// When a library fails to make it.
    pub(super) fn get(&self, what: What) -> Result<Option<Bytes>> {
        let mut state = self.state();
        if let Some(made) = state.made.get(&what) {
            return Ok(Some(made.clone()));
        }
        let Some(report) = state.report.clone() else { return Ok(None) };
        let style = Style::default();
        let turned_away = || self.places.turned_away();
        let made = match what {
            What::Page => forms::live_page(&report)?,
            What::Report => serde_json::to_vec(&*report).context("cannot write JSON")?,
            What::Flame => forms::render(&report, Form::Svg, &style)?,
            What::Profile => forms::render(&report, Form::Pprof, &style)?,
            What::Metrics => metrics::render(&report, turned_away()).into_bytes(),
            What::OlderMetrics => metrics::older(&metrics::render(&report, turned_away())).into_bytes(),
        };
        let made = Bytes::from(made);
        state.made.insert(what, made.clone());
        Ok(Some(made))
    }
}
