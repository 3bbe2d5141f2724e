//! `leaktrace serve`: a trace without an end, whose findings are had by HTTP.

mod http;
mod places;
mod service;
mod shown;
mod tls;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use caps::Capability;
use tokio::net::TcpListener;

use self::{http::Trust, places::Places, shown::Shown, tls::Tls};
use super::{
    judging,
    output::say,
    probe,
    session::{self, How, Session, Woken},
};
use crate::{cli::ServeArgs, report::escape};

/// Findings in each report; leaks are told however many there are.
const FINDINGS: u32 = 500;
/// Connections at a time.
const CONNECTIONS: usize = 128;
/// Between two notes on those that were turned away.
const NOTES: Duration = Duration::from_mins(1);
/// Characters of a token at least.
const SHORTEST_TOKEN: usize = 16;

/// Traces and answers until a signal comes.
///
/// # Errors
/// When tracing cannot work here, or nobody can listen there.
pub(super) fn run(args: &ServeArgs) -> Result<()> {
    let token = args.token_file.as_deref().map(token).transpose()?;
    let tls = tls(args)?;
    let trust = match token {
        Some(token) => Trust::Token(token.into()),
        None if tls.as_ref().is_some_and(|tls| tls.asks_clients()) => Trust::Certificate,
        None if args.listen.ip().is_loopback() => Trust::Local,
        None => bail!(
            "{} can be reached by others: give a token that they have to know, with --token-file FILE, or ask for their certificates, with --tls-client-ca FILE",
            args.listen
        ),
    };
    let kernel = probe::probe(Path::new("/"))?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let listener = runtime
        .block_on(TcpListener::bind(args.listen))
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().with_context(|| format!("cannot listen on {}", args.listen))?;
    let how = How::watching(&args.watch, FINDINGS, args.quiet);
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    let kept = runtime.block_on(session.give_up_privileges())?;
    if !args.quiet {
        tell(address, &trust, tls.is_some(), kept);
    }
    // Who may not read /proc/kallsyms may still connect from here, and learn no address.
    let addresses = !matches!(trust, Trust::Local);
    let shown = Arc::new(Shown::new(args.watch.interval(), Places::new(CONNECTIONS), addresses));
    service::ready(address);
    let served = runtime.block_on(async {
        let serving = tokio::spawn(http::serve(listener, Arc::clone(&shown), trust, tls.clone()));
        let watchdog = tokio::spawn(service::keep_alive(Arc::clone(&shown)));
        let watched = watch(&mut session, &shown, tls.as_deref(), args).await;
        serving.abort();
        watchdog.abort();
        watched
    });
    service::stopping();
    session.tracer.detach()?;
    served
}

fn tls(args: &ServeArgs) -> Result<Option<Arc<Tls>>> {
    let Some((certificates, key)) = args.tls_cert.clone().zip(args.tls_key.clone()) else { return Ok(None) };
    let files = tls::Files { certificates, key, clients: args.tls_client_ca.clone() };
    Ok(Some(Arc::new(Tls::new(files)?)))
}

fn tell(address: SocketAddr, trust: &Trust, tls: bool, kept: Option<Capability>) {
    let how = match trust {
        Trust::Local => "",
        Trust::Token(_) => ", with the token as Authorization: Bearer",
        Trust::Certificate => ", with a certificate",
    };
    let scheme = if tls { "https" } else { "http" };
    say(&format!(
        "Serving {scheme}://{address}/ (page), /metrics, /report.json, /debug/pprof/heap, /healthz{how}."
    ));
    match kept {
        None => say("Root privileges dropped; serving goes on."),
        Some(kept) => {
            say(&format!("Root privileges dropped, except {kept}: without it this kernel shows no tables."));
        }
    }
    if matches!(trust, Trust::Token(_)) && !tls && !address.ip().is_loopback() {
        say("note: without --tls-cert the token and what is answered can be read on the way");
    }
}

/// The token of a file: its first line.
fn token(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the token {}", path.display()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.len() < SHORTEST_TOKEN || !token.chars().all(|c| c.is_ascii_graphic()) {
        bail!(
            "{} has no token: expected {SHORTEST_TOKEN} or more visible characters on its first line",
            path.display()
        );
    }
    Ok(token.to_owned())
}

/// Ticks, and makes a report now and then.
async fn watch(session: &mut Session, shown: &Shown, tls: Option<&Tls>, args: &ServeArgs) -> Result<()> {
    let mut report = Instant::now();
    let mut note = report;
    loop {
        let (woken, _) = session.tick(session::never()).await?;
        if woken == Woken::Stopped {
            return Ok(());
        }
        shown.ticked();
        if report <= Instant::now() {
            let judged = Instant::now();
            let looked = session.look()?;
            service::status(&looked.headline.text);
            shown.show(looked);
            if let Some(Err(error)) = tls.map(Tls::refresh) {
                say(&format!("note: {}", escape(&format!("{error:#}"))));
            }
            if !args.quiet
                && note <= judged
                && let Some(text) = shown.places.note()
            {
                say(&text);
                note = judged + NOTES;
            }
            report = (judged + args.refresh.max(Duration::from_millis(100))).max(judging::after(judged));
        }
        // Who asks has a turn, however long the last look took.
        tokio::task::yield_now().await;
    }
}
