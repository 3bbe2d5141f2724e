//! What is traced, how long, and what is done at the end.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{LimitPart, proof::parse_limit};
use crate::{
    kernel::modules,
    report::forms::Form,
    tracer::hooks::{Family, Mechanism},
    units::{parse_duration, parse_percent, parse_size, parse_window},
};

/// Age from which a live object counts as a survivor, where nobody says.
const SURVIVOR_AGE: Duration = Duration::from_secs(5);
/// Time between two looks, where nobody says, and looks of a short trace.
const INTERVAL: Duration = Duration::from_secs(1);
const LOOKS: u32 = 20;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// What is traced, and at what cost.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Time between two looks at the tables [default: 1s; of a trace below 20s a twentieth of it].
    #[arg(short, long, value_name = "TIME", value_parser = parse_window)]
    pub interval: Option<Duration>,

    /// Record only slab caches with such a name (* and ? match); may be given several times.
    #[arg(short, long, value_name = "GLOB", value_parser = parse_glob)]
    pub cache: Vec<String>,

    /// Record only allocations whose stack passes through this module, loaded now or later.
    ///
    /// Captures every stack, which costs 2 us for each allocation of everybody while the module is loaded.
    /// Tells what the module leaves behind when it is removed. May be given several times.
    #[arg(short, long, value_name = "NAME", value_parser = parse_module)]
    pub module: Vec<String>,

    /// What to track, separated by commas [default: slab,vmalloc,percpu,page; with --cache: slab].
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub family: Vec<Family>,

    /// Record only objects that are at least this large.
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_size)]
    pub min_size: u32,

    /// Record only objects that are at most this large.
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub max_size: Option<u32>,

    /// Age from which a live object counts as a survivor [default: 5s, or a quarter of --duration].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub min_age: Option<Duration>,

    /// Frames to keep of a stack; 0 captures none.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=56))]
    pub stack_depth: u32,

    /// Share of each CPU that capturing stacks may take; 0 captures none, 100 captures all.
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_percent)]
    pub overhead: f64,

    /// Outstanding objects to track; more are sampled by address [default: from the size of memory].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=2_000_000_000))]
    pub max_objects: Option<u32>,

    /// Treat this function as one that allocates for others, so that its callers are told apart; may be
    /// given several times.
    #[arg(long, value_name = "FUNCTION", value_parser = parse_function)]
    pub helper: Vec<String>,

    /// A report (JSON) whose findings are known: they come last, and neither end nor fail a run.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// A vmlinux or module (.ko, .debug) with DWARF for <file:line> and inlined frames; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub vmlinux: Vec<PathBuf>,

    /// Act as if the kernel refused a mechanism, for tests.
    #[arg(long, value_name = "MECHANISM", value_enum, value_delimiter = ',', hide = true)]
    pub refuse: Vec<Mechanism>,
}

/// Options of a trace.
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// How long to trace, like 60, 90s or 5m; Ctrl-C ends early with the report.
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = parse_window)]
    pub duration: Duration,

    /// What is traced.
    #[command(flatten)]
    pub watch: WatchArgs,

    /// How many findings and caches to show [default: 10 in text and Markdown, else 1000].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub top: Option<u32>,

    /// At the end drop dentries and inodes (after a sync), and tell what went away.
    #[arg(long)]
    pub shake: bool,

    /// At the end ask kmemleak, where this kernel has it: two scans, 6 s apart. Clears nothing.
    #[arg(long)]
    pub kmemleak: bool,

    /// At the end look in all of the kernel's memory for pointers to what survives: proves leaks, or says who holds it.
    ///
    /// Reads /proc/kcore several times, while tracing goes on. Without it, suspects are looked for in the same way where
    /// that takes 10 s and 32 GiB at most.
    #[arg(long)]
    pub prove: bool,

    /// Do not look for suspects in memory at the end.
    #[arg(long, conflicts_with = "prove")]
    pub no_prove: bool,

    /// How much --prove may read, and how long: a size, a time, or both [default: 64GiB,60s].
    #[arg(long, value_name = "SIZE,TIME", value_delimiter = ',', value_parser = parse_limit, requires = "prove")]
    pub prove_limit: Vec<LimitPart>,

    /// End as soon as a leak is certain, with exit status 3; --duration is the longest time.
    ///
    /// Judges all the time, which takes an eighth of a core at most.
    #[arg(long)]
    pub until_leak: bool,

    /// Exit with status 3 when there is such a finding, or a worse one.
    #[arg(long, value_name = "VERDICT", value_enum)]
    pub fail_on: Option<FailOn>,

    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    /// Write the report to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Say more: every finding in full, the caches that agree, each program's cost and its messages.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,

    /// No progress and no notes on standard error, only the report and errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// A pattern for names of slab caches.
fn parse_glob(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected a slab cache's name like kmalloc-256, or a pattern like kmalloc-*".into());
    }
    globset::Glob::new(text).map(|_| text.to_owned()).map_err(|error| error.kind().to_string())
}

/// Name of a function.
fn parse_function(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.is_empty() || !text.chars().all(plain) {
        return Err("expected a function's name like my_alloc".into());
    }
    Ok(text.to_owned())
}

/// Name of a module, as the kernel has it.
fn parse_module(text: &str) -> Result<String, String> {
    let name = modules::plain_name(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.len() >= leaktrace_common::MODULE_NAME_LEN - 8 || !name.chars().all(plain) {
        return Err("expected a module's name like snd_hda_intel".into());
    }
    Ok(name)
}

/// What a run fails on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// On leaks.
    Leak,
    /// On leaks and suspects.
    Suspect,
}

impl WatchArgs {
    /// What is tracked.
    pub fn families(&self) -> Vec<Family> {
        let all = if self.cache.is_empty() { &Family::ALL[..] } else { &[Family::Slab] };
        let chosen = if self.family.is_empty() { all } else { &self.family };
        Family::ALL.into_iter().filter(|family| chosen.contains(family)).collect()
    }

    /// The watched modules, each once.
    pub fn modules(&self) -> Vec<String> {
        let mut modules = self.module.clone();
        modules.sort();
        modules.dedup();
        modules
    }

    /// Age from which a live object counts as a survivor.
    pub fn survivor_age(&self) -> Duration {
        self.min_age.unwrap_or(SURVIVOR_AGE)
    }

    /// Time between two looks.
    pub fn interval(&self) -> Duration {
        self.interval.unwrap_or(INTERVAL)
    }
}

impl TraceArgs {
    /// How many findings and caches to show.
    pub fn top(&self) -> u32 {
        self.top.unwrap_or_else(|| self.format.top())
    }

    /// Age from which a live object counts as a survivor.
    pub fn survivor_age(&self) -> Duration {
        self.watch.min_age.unwrap_or_else(|| SURVIVOR_AGE.min(self.duration / 4))
    }

    /// Time between two looks: a short trace needs as many as any to tell growth from chance.
    pub fn interval(&self) -> Duration {
        let part = (self.duration / LOOKS).max(SHORTEST_INTERVAL);
        self.watch.interval.unwrap_or_else(|| INTERVAL.min(part))
    }
}
