//! A leak that a real driver once had: the driver with the fix taken back, what makes it leak, and leaktrace beside it.
//! `cargo xtask eval --real` builds the modules and boots a guest for each case.

mod block;
mod devices;
mod modules;
mod mounts;
mod net;
mod netlink;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Options,
    measure::{self, Outcome},
    peer::Peer,
};

/// Seconds that each case is watched.
const WATCHED_S: &str = "45";

/// A case, as `xtask/src/vm/real` writes it.
#[derive(Deserialize)]
struct Case {
    name: String,
    /// What makes it leak.
    trigger: String,
    /// Modules in the order in which they are loaded.
    load: Vec<Module>,
    /// The modules that may be blamed, and the function that the fix touched; no module: nothing leaks.
    right: Vec<String>,
    function: String,
}

/// A module to load.
#[derive(Clone, Deserialize)]
struct Module {
    file: PathBuf,
    parameters: String,
}

/// What makes a driver leak, once.
type Step = Box<dyn FnMut() -> Result<()> + Send>;

/// Prepares what a case's name for it stands for.
type Trigger = fn(&Case) -> Result<Step>;

/// All triggers: name, pause between steps in milliseconds, and function.
const TRIGGERS: &[(&str, u64, Trigger)] = &[
    ("nvmet-key", 400, block::nvmet_key),
    ("zram-algorithms", 1_000, block::zram_algorithms),
    ("null_blk-reload", 1_500, block::null_blk_reload),
    ("ebtables-malformed", 400, net::ebtables_malformed),
    ("isotp-broadcast", 400, net::isotp_broadcast),
    ("qrtr-message", 400, devices::qrtr_message),
    ("ctinfo-action", 400, net::ctinfo_action),
    ("firmware-batch", 500, devices::firmware_batch),
    ("netdevsim-cookie", 700, devices::netdevsim_cookie),
    ("hidraw-unread", 500, devices::hidraw_unread),
    ("rds-message", 400, net::rds_message),
    ("sctp-key", 400, net::sctp_key),
    ("nci-device", 600, devices::nci_device),
    ("bpf-action", 400, net::bpf_action),
    ("autofs-catatonic", 500, mounts::autofs_catatonic),
];

/// Steps that go on until they are told to stop.
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Running {
    fn start(mut step: Step, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !seen.load(Relaxed) {
                step()?;
                std::thread::sleep(every);
            }
            Ok(())
        });
        Self { stop, thread }
    }

    /// Ends them.
    ///
    /// # Errors
    /// When a step failed: nothing leaked from then on.
    fn end(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("the trigger panicked"))?.context("the trigger failed")
    }
}

/// Runs a case.
///
/// # Errors
/// When a module, its trigger or leaktrace does not run.
pub fn measure(file: &Path, options: &Options) -> Result<Outcome> {
    let case: Case = serde_json::from_slice(&fs::read(file)?).context("the case is not readable")?;
    measure::allow_files();
    for module in &case.load {
        modules::load(module)?;
    }
    let &(_, every, trigger) = TRIGGERS
        .iter()
        .find(|trigger| trigger.0 == case.trigger)
        .with_context(|| format!("there is no trigger {}", case.trigger))?;
    let mut step = trigger(&case)?;
    // What it allocates once and keeps is no part of the leak.
    step().context("the trigger fails")?;
    let leaktrace = measure::start(options, &["--duration", WATCHED_S])?;
    let begun = Instant::now();
    let running = Running::start(step, Duration::from_millis(every));
    let (report, _) = measure::finish(leaktrace)?;
    let seconds = begun.elapsed().as_secs_f64();
    // Not beside leaktrace: the peer's map has the addresses of all that is allocated, which a proof takes for pointers.
    let peer = if case.right.is_empty() { None } else { Peer::start()? };
    let peer_rank = peer.map(|peer| peer.rank(&case.function)).transpose()?;
    running.end()?;
    Ok(judge(&case, &report, seconds, peer_rank))
}

fn judge(case: &Case, report: &Value, seconds: f64, peer_rank: Option<i64>) -> Outcome {
    let findings: Vec<&Value> = report["findings"].as_array().into_iter().flatten().collect();
    let is_right = |finding: &&&Value| case.right.iter().any(|module| finding["module"] == **module);
    let mine = findings.iter().find(is_right);
    let shown = mine.or(findings.first());
    let verdict = shown.and_then(|finding| finding["verdict"].as_str()).unwrap_or("none").to_owned();
    let rank = mine.and_then(|finding| finding["rank"].as_u64());
    let wrong: Vec<String> = findings
        .iter()
        .filter(|finding| finding["verdict"] == "leak" && !is_right(finding))
        .map(|finding| describe(finding))
        .collect();
    let (truth, right) = if case.right.is_empty() {
        ("innocent", wrong.is_empty())
    } else {
        ("leak", rank == Some(1) && matches!(&*verdict, "leak" | "suspect"))
    };
    let mut why = vec![report["headline"]["text"].as_str().unwrap_or("no headline").to_owned()];
    why.extend(mine.is_none().then(|| "the right module is in no finding".to_owned()));
    let first = findings.first().filter(|_| rank.is_some_and(|rank| rank > 1));
    for finding in shown.into_iter().chain(first) {
        why.push(describe(finding));
        for name in ["evidence", "open"] {
            let sentences = finding[name].as_array().into_iter().flatten().filter_map(Value::as_str);
            why.extend(sentences.map(|sentence| format!("  {name}: {sentence}")));
        }
        for name in ["linkage", "proof"] {
            why.push(format!("  {name}: {}", finding[name]));
        }
        let frames = finding["stacks"][0]["frames"].as_array().into_iter().flatten();
        let frames: Vec<_> = frames.filter_map(|frame| frame["symbol"].as_str()).take(12).collect();
        why.push(format!("  stack: {}", frames.join(" < ")));
    }
    Outcome {
        name: case.name.clone(),
        truth,
        right,
        verdict,
        rank,
        seconds: Some(seconds),
        wrong,
        peer_rank,
        why,
        blamed: measure::blamed(findings.first()),
    }
}

/// A finding in one line.
fn describe(finding: &Value) -> String {
    format!(
        "{} #{}: {} objects, {} bytes of {} in {} [{}]",
        finding["verdict"].as_str().unwrap_or("?"),
        finding["rank"],
        finding["live"]["objects"],
        finding["live"]["bytes"],
        finding["cache"].as_str().unwrap_or("?"),
        finding["responsible"]["symbol"].as_str().unwrap_or("?"),
        finding["module"].as_str().unwrap_or("?"),
    )
}
