//! `leaktrace serve`: a trace without an end, whose findings are had by HTTP.

mod http;
mod shown;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;

use self::shown::Shown;
use super::{
    judging, probe,
    session::{self, How, Session, Woken},
};
use crate::cli::ServeArgs;

/// Findings in each report; leaks are told however many there are.
const FINDINGS: u32 = 500;
/// Characters of a token at least.
const SHORTEST_TOKEN: usize = 16;

/// Traces and answers until a signal comes.
///
/// # Errors
/// When tracing cannot work here, or nobody can listen there.
pub(super) fn run(args: &ServeArgs) -> Result<()> {
    let token = args.token_file.as_deref().map(token).transpose()?;
    if token.is_none() && !args.listen.ip().is_loopback() {
        bail!(
            "{} can be reached by others: give a token that they have to know, with --token-file FILE",
            args.listen
        );
    }
    let kernel = probe::probe(Path::new("/"))?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let listener = runtime
        .block_on(TcpListener::bind(args.listen))
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().with_context(|| format!("cannot listen on {}", args.listen))?;
    let how = How { min_age: args.watch.survivor_age(), top: FINDINGS, verbose: false, quiet: args.quiet };
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    if !args.quiet {
        tell(address, token.is_some());
    }
    let shown = Arc::new(Shown::new(args.watch.interval));
    let served = runtime.block_on(async {
        let serving = tokio::spawn(http::serve(listener, Arc::clone(&shown), token));
        let watched = watch(&mut session, &shown, args).await;
        serving.abort();
        watched
    });
    session.tracer.detach()?;
    served
}

fn tell(address: SocketAddr, token: bool) {
    let how = if token { ", with the token as Authorization: Bearer" } else { "" };
    eprintln!("Serving http://{address}/ (page), /metrics, /report.json, /debug/pprof/heap, /healthz{how}.");
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
async fn watch(session: &mut Session, shown: &Shown, args: &ServeArgs) -> Result<()> {
    let mut report = Instant::now();
    loop {
        let (woken, _) = session.tick(session::never()).await?;
        if woken == Woken::Stopped {
            return Ok(());
        }
        shown.ticked();
        if report <= Instant::now() {
            let judged = Instant::now();
            shown.show(session.look()?);
            report = (judged + args.refresh.max(Duration::from_millis(100))).max(judging::after(judged));
        }
        // Who asks has a turn, however long the last look took.
        tokio::task::yield_now().await;
    }
}
