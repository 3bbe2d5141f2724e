//! The command line's grammar.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    kernel::modules,
    proof::Limit,
    report::forms::Form,
    tracer::hooks::{Family, Mechanism},
    units::{parse_bytes, parse_duration, parse_percent, parse_size, parse_window},
};

/// Finds kernel memory leaks: traces allocations with eBPF, and ranks the call sites, slab caches
/// and modules whose objects stay.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    /// Another command than tracing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of a trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Commands beside tracing, which is what happens without one.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this kernel offers: each hook and its mechanism, each blind spot, and a self-test.
    ///
    /// Exits with 1 where tracing cannot work.
    Check(CheckArgs),
    /// Compare two reports (JSON): what appeared, grew, shrank and vanished, with rates.
    Diff(DiffArgs),
    /// Put a report (JSON) beside what kmemleak listed: found by both, only here, only there, and why.
    Compare(CompareArgs),
    /// Look in all of the kernel's memory for pointers to the objects that a report (JSON) of this boot lists.
    ///
    /// Reads /proc/kcore. What nothing points to is leaked beyond doubt; of the rest it says who holds it.
    Prove(ProveArgs),
    /// Tell a report (JSON) again, in another form: a page, a flame graph, a heap profile, a table, a mail.
    Report(ReportArgs),
    /// Say who has the memory and what grows: processes, page cache, tmpfs, or which part of the kernel.
    ///
    /// Traces nothing, and needs no root, though root sees more; says what could not be read.
    Triage(TriageArgs),
}

/// Options of `leaktrace triage`.
#[derive(Debug, Args)]
pub struct TriageArgs {
    /// How long to watch what grows; 0 looks once. With --watch, the time over which growth is measured.
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Show one process in depth: its segments, open files by kind, and limits.
    #[arg(short, long, value_name = "PID", conflicts_with = "watch")]
    pub pid: Option<u32>,
    /// Show it again and again, until Ctrl-C.
    #[arg(short, long, conflicts_with_all = ["format", "output"])]
    pub watch: bool,
    /// Rows of each list to show.
    #[arg(short, long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub top: u32,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Write the answer to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Say more: small classes, all rows, sockets and modules.
    #[arg(short, long)]
    pub verbose: bool,
}

/// Options of `leaktrace report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The report, or - for standard input.
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,
    /// Write it to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How many findings and caches to show [default: 10, or 1000 of what is no text].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub top: Option<u32>,
    /// Say more: every finding in full, the caches that agree, each program's cost.
    #[arg(short, long)]
    pub verbose: bool,
}

/// Options of `leaktrace diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier report, or - for standard input.
    #[arg(value_name = "A")]
    pub before: PathBuf,
    /// The later report, or - for standard input.
    #[arg(value_name = "B")]
    pub after: PathBuf,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Options of `leaktrace compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// What /sys/kernel/debug/kmemleak said, of any kernel since 4.x, or a dmesg with it.
    #[arg(long, value_name = "FILE")]
    pub kmemleak: PathBuf,
    /// The report, or - for standard input.
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// Form of the answer: as text the comparison, as JSON the report with it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Options of `leaktrace prove`.
#[derive(Debug, Args)]
pub struct ProveArgs {
    /// The report, or - for standard input.
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// How much to read, and how long: a size, a time, or both [default: 64GiB,60s].
    #[arg(long, value_name = "SIZE,TIME", value_delimiter = ',', value_parser = parse_limit)]
    pub prove_limit: Vec<LimitPart>,
    /// Share of each CPU that looking may take; a quarter of one core is always taken.
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_percent)]
    pub overhead: f64,
    /// Form of the answer: the report, with what was found.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,
    /// Write the answer to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// No progress on standard error, only the answer and errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// A part of `--prove-limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitPart {
    /// Bytes that one look may read.
    Bytes(u64),
    /// Time that all looks may take.
    Time(Duration),
}

/// A size like 64GiB or a time like 60s: sizes have a capital letter or a B in their unit.
fn parse_limit(text: &str) -> Result<LimitPart, String> {
    if text.ends_with(|c: char| c.is_ascii_uppercase() || c == 'b') {
        return parse_bytes(text).map(LimitPart::Bytes);
    }
    parse_window(text)
        .map(LimitPart::Time)
        .map_err(|_| "expected a size like 64GiB or a time like 60s".to_owned())
}

/// The limit that some parts make.
pub fn prove_limit(parts: &[LimitPart]) -> Limit {
    let mut limit = Limit::default();
    for part in parts {
        match *part {
            LimitPart::Bytes(bytes) => limit.bytes = bytes,
            LimitPart::Time(time) => limit.time = time,
        }
    }
    limit
}

/// Options of `leaktrace check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Options of a trace.
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// How long to trace, like 60, 90s or 5m; Ctrl-C ends early with the report.
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = parse_window)]
    pub duration: Duration,

    /// Time between two looks at the tables.
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = parse_window)]
    pub interval: Duration,

    /// How many findings and caches to show [default: 10, or 1000 of what is no text].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub top: Option<u32>,

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

    /// Age from which a live object counts as a survivor [default: 5s, or a quarter of the duration].
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

    /// At the end drop dentries and inodes (after a sync), and tell what went away.
    #[arg(long)]
    pub shake: bool,

    /// At the end ask kmemleak, where this kernel has it: two scans, 6 s apart. Clears nothing.
    #[arg(long)]
    pub kmemleak: bool,

    /// At the end look in all of the kernel's memory for pointers to what survives: proves leaks, or says who holds it.
    ///
    /// Reads /proc/kcore several times, while tracing goes on.
    #[arg(long)]
    pub prove: bool,

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

    /// A report (JSON) whose findings are known: they come last, and neither end nor fail a run.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// A vmlinux or module (.ko, .debug) with DWARF for <file:line> and inlined frames; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub vmlinux: Vec<PathBuf>,

    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    /// Write the report to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Say more: every finding in full, the caches that agree, each program's cost and its messages.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Act as if the kernel refused a mechanism, for tests.
    #[arg(long, value_name = "MECHANISM", value_enum, value_delimiter = ',', hide = true)]
    pub refuse: Vec<Mechanism>,

    /// No progress and no notes on standard error, only the report and errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// A pattern for names of slab caches.
fn parse_glob(text: &str) -> Result<String, String> {
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

impl Cli {
    /// Parses the command line, and checks what the options say together.
    ///
    /// # Errors
    /// For what the grammar does not allow, for `--help` and for `--version`.
    pub fn parse_arguments() -> Result<Self, clap::Error> {
        let cli = Self::try_parse()?;
        let modules = cli.trace.modules().len();
        if modules > leaktrace_common::MAX_MODULES {
            return Err(Self::command().error(
                ErrorKind::TooManyValues,
                format!("--module can be given {} times, not {modules}", leaktrace_common::MAX_MODULES),
            ));
        }
        if !cli.trace.cache.is_empty() && !cli.trace.families().contains(&Family::Slab) {
            return Err(Self::command()
                .error(ErrorKind::ArgumentConflict, "--cache is for slab, which --family leaves out"));
        }
        match cli.trace.max_size {
            Some(max) if max < cli.trace.min_size => Err(Self::command().error(
                ErrorKind::ValueValidation,
                format!("--max-size {max} is smaller than --min-size {}", cli.trace.min_size),
            )),
            _ => Ok(cli),
        }
    }
}

/// What a run fails on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// On leaks.
    Leak,
    /// On leaks and suspects.
    Suspect,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For reading, as wide as the terminal.
    Text,
    /// For programs.
    Json,
}

impl TraceArgs {
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

    /// How many findings and caches to show.
    pub fn top(&self) -> u32 {
        self.top.unwrap_or_else(|| self.format.top())
    }

    /// Age from which a live object counts as a survivor.
    pub fn survivor_age(&self) -> Duration {
        self.min_age.unwrap_or_else(|| Duration::from_secs(5).min(self.duration / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn limits_are_sizes_or_times() {
        assert_eq!(parse_limit("64GiB"), Ok(LimitPart::Bytes(64 << 30)));
        assert_eq!(parse_limit("2T"), Ok(LimitPart::Bytes(2 << 40)));
        assert_eq!(parse_limit("5m"), Ok(LimitPart::Time(Duration::from_mins(5))));
        for bad in ["", "x", "64X", "-1s"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
        let limit = prove_limit(&[LimitPart::Bytes(1)]);
        assert_eq!((limit.bytes, limit.time), (1, Limit::default().time));
    }
}
