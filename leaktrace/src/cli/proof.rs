//! Options of what looks at the kernel's memory.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    proof::Limit,
    report::{forms::Form, heap::forms::HeapForm},
    tracer::hooks::Mechanism,
    units::{parse_bytes, parse_percent, parse_window},
};

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

/// Options of `leaktrace heap`.
#[derive(Debug, Args)]
pub struct HeapArgs {
    /// Tell only of slab caches whose name fits, and say who holds what is in them; can be given several times.
    #[arg(short, long, value_name = "GLOB")]
    pub cache: Vec<String>,
    /// Tell only of what has a function or variable of this module in it, or was lost with such.
    #[arg(short, long, value_name = "NAME")]
    pub module: Option<String>,
    /// Kinds of lost objects to show.
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub top: u32,
    /// How much to read in one look, and how long to look: a size, a time, or both [default: 256GiB,10m].
    #[arg(long, value_name = "SIZE,TIME", value_delimiter = ',', value_parser = parse_limit)]
    pub limit: Vec<LimitPart>,
    /// Memory that may be taken to note objects [default: a hundredth of all, 256 MiB at most].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_memory: Option<u64>,
    /// The report of a trace since the machine was started, which knows who allocated.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Look once more after this time, and tell what grew.
    #[arg(long, value_name = "TIME", value_parser = parse_window)]
    pub watch: Option<Duration>,
    /// Share of each CPU that looking may take; a quarter of one core is always taken.
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_percent)]
    pub overhead: f64,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = HeapForm::Text)]
    pub format: HeapForm,
    /// Write the answer to a file, complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Say more: what is always there, all holders, and what it cost.
    #[arg(short, long)]
    pub verbose: bool,
    /// No progress on standard error, only the answer and errors.
    #[arg(short, long)]
    pub quiet: bool,
    /// Act as if the kernel refused a mechanism, for tests.
    #[arg(long, value_name = "MECHANISM", value_enum, value_delimiter = ',', hide = true)]
    pub refuse: Vec<Mechanism>,
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
pub(super) fn parse_limit(text: &str) -> Result<LimitPart, String> {
    if text.ends_with(|c: char| c.is_ascii_uppercase() || c == 'b') {
        return parse_bytes(text).map(LimitPart::Bytes);
    }
    parse_window(text)
        .map(LimitPart::Time)
        .map_err(|_| "expected a size like 64GiB or a time like 60s".to_owned())
}

/// The limit that some parts make, and `limit` without them.
pub fn limit_of(parts: &[LimitPart], mut limit: Limit) -> Limit {
    for part in parts {
        match *part {
            LimitPart::Bytes(bytes) => limit.bytes = bytes,
            LimitPart::Time(time) => limit.time = time,
        }
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sizes_or_times() {
        assert_eq!(parse_limit("64GiB"), Ok(LimitPart::Bytes(64 << 30)));
        assert_eq!(parse_limit("2T"), Ok(LimitPart::Bytes(2 << 40)));
        assert_eq!(parse_limit("5m"), Ok(LimitPart::Time(Duration::from_mins(5))));
        for bad in ["", "x", "64X", "-1s"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
        let limit = limit_of(&[LimitPart::Bytes(1)], Limit::default());
        assert_eq!((limit.bytes, limit.time), (1, Limit::default().time));
    }
}
