//! The command line's grammar.

mod proof;
mod trace;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args, Command as Grammar, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    error::ErrorKind,
};

pub use self::{
    proof::{HeapArgs, LimitPart, ProveArgs, limit_of},
    trace::{FailOn, TraceArgs, WatchArgs},
};
use crate::{
    report::forms::Form,
    tracer::hooks::Family,
    units::{self, parse_bytes, parse_duration, parse_window},
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
    /// Say what is lost in the kernel's memory as it is now, and who holds the rest: nothing has to be traced before.
    ///
    /// Reads /proc/kcore. What nothing leads to is leaked, whenever that was.
    Heap(HeapArgs),
    /// Look in all of the kernel's memory for pointers to the objects that a report (JSON) of this boot lists.
    ///
    /// Reads /proc/kcore. What nothing points to is leaked beyond doubt; of the rest it says who holds it.
    Prove(ProveArgs),
    /// Trace for hours or weeks, into a file: where every site stands at each tick, and a report now and then.
    ///
    /// What was written is readable whatever happens. Tell it with `leaktrace report`, on any machine.
    Record(RecordArgs),
    /// Tell a report (JSON) or a recording again, in any form: a page, a flame graph, a heap profile, a table, a mail.
    Report(ReportArgs),
    /// Trace without an end, and answer by HTTP: a page, metrics, the report, a heap profile.
    Serve(ServeArgs),
    /// Watch findings, caches and modules as they are now, on a terminal; ? tells the keys.
    Top(TopArgs),
    /// Say who has the memory and what grows: processes, page cache, tmpfs, or which part of the kernel.
    ///
    /// Traces nothing, and needs no root, though root sees more; says what could not be read.
    Triage(TriageArgs),
    /// Print what makes a shell complete commands, options and their values.
    ///
    /// The package has that installed already.
    Completions(CompletionsArgs),
    /// Write the manual pages, for a package.
    #[command(hide = true)]
    Man(ManArgs),
}

/// Options of `leaktrace completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell, and what to write where for it.
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: Shell,
}

/// A shell that completes; `--help` shows what each needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `source <(leaktrace completions bash)` in ~/.bashrc
    Bash,
    /// `source <(leaktrace completions zsh)` in ~/.zshrc, after compinit
    Zsh,
    /// `leaktrace completions fish | source` in ~/.config/fish/config.fish
    Fish,
}

/// Options of `leaktrace man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to; made where it is missing.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
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

/// Options of `leaktrace top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// What is traced.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// Options of `leaktrace serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen. Others than this machine's own processes need a token or a certificate.
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1:9843")]
    pub listen: SocketAddr,
    /// A file whose first line is what clients have to send as "Authorization: Bearer TOKEN".
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Speak TLS, with the certificates of this PEM file; it is read again when it is renewed.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Answer only clients with a certificate that one of this PEM file has signed.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Time between two reports.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_window)]
    pub refresh: Duration,
    /// What is traced.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Nothing on standard error but errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Options of `leaktrace record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The recording; one that is there is replaced.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// How long to record [default: until Ctrl-C].
    #[arg(short, long, value_name = "TIME", value_parser = parse_window)]
    pub duration: Option<Duration>,
    /// Bytes to keep: at half of them the file becomes FILE.1, in the place of an older one, and a new one is begun.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_max_file)]
    pub max_file: u64,
    /// What is traced.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Nothing on standard error but errors.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Less has no room for a report.
const SMALLEST_FILE: u64 = 1 << 20;

fn parse_max_file(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes < SMALLEST_FILE => Err("expected 1MiB or more".into()),
        bytes => Ok(bytes),
    }
}

/// Options of `leaktrace report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The report or the recording, or - for a report on standard input.
    #[arg(value_name = "FILE")]
    pub report: PathBuf,
    /// Of a recording: how things stood so long after its start [default: at its end].
    #[arg(long, value_name = "TIME", value_parser = parse_window)]
    pub at: Option<Duration>,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,
    /// Write it to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How many findings and caches to show [default: 10 in text and Markdown, else 1000].
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

/// Options of `leaktrace check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

impl Cli {
    /// Parses the command line, and checks what the options say together.
    ///
    /// # Errors
    /// For what the grammar does not allow, for `--help` and for `--version`.
    pub fn parse_arguments() -> Result<Self, clap::Error> {
        let matches = numbers_may_be_negative(Self::command()).try_get_matches()?;
        let cli = Self::from_arg_matches(&matches)?;
        let watch = cli.watch();
        let modules = watch.modules().len();
        if modules > leaktrace_common::MAX_MODULES {
            return Err(Self::command().error(
                ErrorKind::TooManyValues,
                format!("--module can be given {} times, not {modules}", leaktrace_common::MAX_MODULES),
            ));
        }
        if !watch.cache.is_empty() && !watch.families().contains(&Family::Slab) {
            return Err(Self::command()
                .error(ErrorKind::ArgumentConflict, "--cache is for slab, which --family leaves out"));
        }
        if let (Some(age), Some(duration)) = (watch.min_age, cli.duration())
            && age >= duration
        {
            let [age, duration] = [age, duration].map(|time| units::seconds(time.as_secs_f64()));
            return Err(Self::command().error(
                ErrorKind::ValueValidation,
                format!("nothing can become as old as --min-age {age} within --duration {duration}"),
            ));
        }
        match watch.max_size {
            Some(max) if max < watch.min_size => Err(Self::command().error(
                ErrorKind::ValueValidation,
                format!("--max-size {max} is smaller than --min-size {}", watch.min_size),
            )),
            _ => Ok(cli),
        }
    }

    /// How long, if that is set.
    fn duration(&self) -> Option<Duration> {
        match &self.command {
            None => Some(self.trace.duration),
            Some(Command::Record(args)) => args.duration,
            Some(_) => None,
        }
    }

    /// What is traced, by whichever command.
    fn watch(&self) -> &WatchArgs {
        match &self.command {
            Some(Command::Top(args)) => &args.watch,
            Some(Command::Record(args)) => &args.watch,
            Some(Command::Serve(args)) => &args.watch,
            _ => &self.trace.watch,
        }
    }
}

/// A negative number is a wrong value, and not an option that nobody knows.
fn numbers_may_be_negative(grammar: Grammar) -> Grammar {
    const NUMBERS: [&str; 7] = ["TIME", "N", "PERCENT", "BYTES", "SIZE", "SIZE,TIME", "PID"];
    let is_number = |arg: &clap::Arg| {
        !arg.is_positional()
            && arg
                .get_value_names()
                .is_some_and(|names| names.iter().any(|name| NUMBERS.contains(&name.as_str())))
    };
    grammar
        .mut_args(|arg| if is_number(&arg) { arg.allow_hyphen_values(true) } else { arg })
        .mut_subcommands(numbers_may_be_negative)
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For reading, as wide as the terminal.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar_is_sound() {
        Cli::command().debug_assert();
    }
}
