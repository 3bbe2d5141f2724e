//! One scenario: the load, leaktrace beside it, and what its report says of the culprit.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver;
use serde::Serialize;
use serde_json::Value;

use super::{
    Options,
    peer::Peer,
    scenarios::{Load, Scenario, Truth},
};

/// Seconds within which a leak must be called one, and a subtle one be suspected.
const LEAK_S: f64 = 30.0;
const SUBTLE_S: &str = "60";
/// A leak is given longer, to see how late it would be found.
const LEAK_LIMIT_S: &str = "50";
/// Exit status of leaktrace when it has found a leak.
const FOUND: i32 = 3;

/// What came of a scenario.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// `leak`, `subtle` or `innocent`.
    pub truth: &'static str,
    /// Whether leaktrace was right.
    pub right: bool,
    /// The culprit's verdict, or of an innocent scenario the strongest verdict on anything.
    pub verdict: String,
    /// Rank of the culprit.
    pub rank: Option<u64>,
    /// Seconds from the load's begin until it was called a leak.
    pub seconds: Option<f64>,
    /// What else was called a leak, or of an innocent scenario what was.
    pub wrong: Vec<String>,
    /// Rank of the culprit in the peer's list; -1 when it is not in it.
    pub peer_rank: Option<i64>,
    /// The first sentences on the culprit, or on what ranks first.
    pub why: Vec<String>,
    /// The module that is blamed for the culprit, or for what ranks first.
    pub blamed: String,
}

impl Outcome {
    /// That of a scenario which could not be run.
    pub fn failed(name: &str, truth: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            truth,
            right: false,
            verdict: "failed".to_owned(),
            rank: None,
            seconds: None,
            wrong: Vec::new(),
            peer_rank: None,
            why: Vec::new(),
            blamed: String::new(),
        }
    }
}

/// Loads that go on until this is dropped.
struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(loads: &[Load]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = loads
            .iter()
            .map(|&load| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || match load {
                    Load::Run(run) => run(&stop),
                    Load::Driver(path, mode, objects, every_ms) => {
                        let mut next = Instant::now();
                        while !stop.load(Relaxed) {
                            if let Err(error) = driver::run(path, mode, objects) {
                                println!("{error:#}");
                                return;
                            }
                            next += Duration::from_millis(every_ms);
                            std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Runs a scenario.
///
/// # Errors
/// When it or leaktrace cannot be run.
pub fn measure(scenario: &Scenario, options: &Options) -> Result<Outcome> {
    allow_files();
    if scenario.driver {
        driver::load(0)?;
    }
    let outcome = with_driver(scenario, options);
    if scenario.driver {
        driver::unload()?;
    }
    outcome
}

fn with_driver(scenario: &Scenario, options: &Options) -> Result<Outcome> {
    let peer = match scenario.truth {
        Truth::Innocent => None,
        _ => Peer::start()?,
    };
    let mut running = (scenario.before_s > 0).then(|| Running::start(&scenario.loads));
    std::thread::sleep(Duration::from_secs(scenario.before_s));
    let duration = match scenario.truth {
        Truth::Leak(_) => LEAK_LIMIT_S.to_owned(),
        Truth::Subtle(_) => SUBTLE_S.to_owned(),
        Truth::Innocent => options.innocent.to_string(),
    };
    let leaktrace = start(options, &["--until-leak", "--top", "40", "--duration", &duration])?;
    let begun = Instant::now();
    let running = running.take().unwrap_or_else(|| Running::start(&scenario.loads));
    let (report, found) = finish(leaktrace)?;
    let seconds = begun.elapsed().as_secs_f64();
    let peer_rank = peer.map(|peer| peer.rank(culprit(scenario.truth).unwrap_or_default())).transpose()?;
    drop(running);
    Ok(judge(scenario, &report, found.then_some(seconds), peer_rank))
}

fn culprit(truth: Truth) -> Option<&'static str> {
    match truth {
        Truth::Leak(culprit) | Truth::Subtle(culprit) => Some(culprit),
        Truth::Innocent => None,
    }
}

/// Starts leaktrace, and returns when it traces.
///
/// # Errors
/// When it does not get so far.
pub fn start(options: &Options, args: &[&str]) -> Result<Child> {
    let mut child = Command::new(&options.leaktrace)
        .args(["--format", "json"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", options.leaktrace.display()))?;
    let mut stderr = BufReader::new(child.stderr.take().context("it is piped")?);
    let mut said = String::new();
    while !said.lines().last().is_some_and(|line| line.starts_with("Tracing ")) {
        ensure!(stderr.read_line(&mut said)? > 0, "leaktrace ended before tracing: {said}");
    }
    // Whoever reads no more makes it wait.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    Ok(child)
}

/// Waits for its report, and whether it found a leak.
///
/// # Errors
/// When it fails.
pub fn finish(mut child: Child) -> Result<(Value, bool)> {
    let mut text = String::new();
    child.stdout.take().context("it is piped")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    ensure!(status.success() || status.code() == Some(FOUND), "leaktrace ended with {status}");
    Ok((serde_json::from_str(&text).context("the report is no JSON")?, status.code() == Some(FOUND)))
}

fn judge(scenario: &Scenario, report: &Value, seconds: Option<f64>, peer_rank: Option<i64>) -> Outcome {
    let findings: Vec<&Value> = report["findings"].as_array().into_iter().flatten().collect();
    let is_culprit = |finding: &&&Value| {
        culprit(scenario.truth).is_some_and(|culprit| {
            finding["module"] == driver::NAME
                && [&finding["responsible"], &finding["in_module"]].into_iter().any(|frame| {
                    frame["symbol"].as_str().is_some_and(|symbol| symbol.split('.').next() == Some(culprit))
                })
        })
    };
    let mine = findings.iter().find(is_culprit);
    let shown = mine.or(findings.first());
    let label = |finding: &Value| {
        format!(
            "{} in {}",
            finding["responsible"]["symbol"].as_str().unwrap_or("?"),
            finding["cache"].as_str().unwrap_or("?")
        )
    };
    let wrong: Vec<String> = findings
        .iter()
        .filter(|finding| finding["verdict"] == "leak" && !is_culprit(finding))
        .map(|finding| label(finding))
        .collect();
    let verdict = shown.and_then(|finding| finding["verdict"].as_str()).unwrap_or("nothing").to_owned();
    let rank = mine.and_then(|finding| finding["rank"].as_u64());
    let right = wrong.is_empty()
        && match scenario.truth {
            Truth::Leak(_) => {
                rank == Some(1) && verdict == "leak" && seconds.is_some_and(|seconds| seconds <= LEAK_S)
            }
            Truth::Subtle(_) => mine.is_some() && matches!(&*verdict, "leak" | "suspect"),
            Truth::Innocent => verdict != "leak",
        };
    let sentences = |name: &str| {
        shown
            .and_then(|finding| finding[name].as_array())
            .into_iter()
            .flatten()
            .filter_map(|sentence| sentence.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let mut why = sentences("evidence");
    why.extend(sentences("open"));
    if let Some(finding) = shown {
        why.insert(0, label(finding));
        let caches = report["caches"].as_array().into_iter().flatten();
        why.extend(caches.filter(|cache| cache["name"] == finding["cache"]).map(Value::to_string));
        why.push(report["coverage"]["lost"].to_string());
    }
    Outcome {
        name: scenario.name.to_owned(),
        truth: scenario.truth.word(),
        right,
        verdict,
        rank,
        seconds,
        wrong,
        peer_rank,
        why,
        blamed: blamed(shown),
    }
}

/// The module that a finding blames.
pub fn blamed(finding: Option<&&Value>) -> String {
    finding.and_then(|finding| finding["module"].as_str()).unwrap_or("-").to_owned()
}

/// Loads keep many files open.
pub fn allow_files() {
    let limit = libc::rlimit { rlim_cur: 60_000, rlim_max: 60_000 };
    // SAFETY: a valid pointer. Where it is refused, the loads hold fewer.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}
