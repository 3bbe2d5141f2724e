//! What a service manager is told (`sd_notify(3)`); without one nobody is.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use sd_notify::NotifyState;

use super::shown::Shown;
use crate::report::escape;

/// Bytes of a status.
const STATUS: usize = 500;

/// That it traces and answers.
pub(super) fn ready(address: SocketAddr) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("Tracing; serving {address}"))]);
}

/// How things stand.
pub(super) fn status(text: &str) {
    let text: String = escape(text).chars().take(STATUS).collect();
    tell(&[NotifyState::Status(&text)]);
}

/// That it ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says again and again that it is alive, as long as tracing goes on: who sees this stop starts it anew.
pub(super) async fn keep_alive(shown: Arc<Shown>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        if shown.is_alive() {
            tell(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep((limit / 3).max(Duration::from_millis(10))).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // It is a courtesy: a manager that went away does not end a trace.
    let _ = sd_notify::notify(states);
}
