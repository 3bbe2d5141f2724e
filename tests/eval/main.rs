//! The evaluation: scenarios whose truth is known, what leaktrace says of each and how soon, and what
//! the peer says of the same run. `cargo xtask eval` runs it here and in guests.

mod loads;
mod measure;
mod peer;
mod real;
mod scenarios;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use self::{measure::Outcome, scenarios::Scenario};

/// Begins each line that is for `cargo xtask eval` to read.
const MARK: &str = "eval: ";

/// Runs scenarios, and prints a line of JSON for each.
#[derive(Parser)]
struct Options {
    /// The binary to evaluate.
    #[arg(long, value_name = "FILE", default_value = "/guest/leaktrace")]
    leaktrace: PathBuf,
    /// Only scenarios whose name contains this, or whose truth is this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Only a dozen scenarios, one or two of each kind.
    #[arg(long)]
    core: bool,
    /// Seconds that an innocent scenario is watched.
    #[arg(long, value_name = "S", default_value_t = 45)]
    innocent: u64,
    /// Only these parts of the scenarios, as 1/2 and 2/2.
    #[arg(long, value_name = "N/M", default_value = "1/1")]
    part: String,
    /// Instead of all that, the leak that a real driver once had, as this file describes it.
    #[arg(long, value_name = "FILE")]
    real: Option<PathBuf>,
    /// List the scenarios.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(loads::NOTHING) => return ExitCode::SUCCESS,
        Some(loads::WAIT) => {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("eval failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if let Some(file) = &options.real {
        let outcome = real::measure(file, options)?;
        println!("{MARK}{}", serde_json::to_string(&outcome)?);
        return Ok(outcome.right);
    }
    let (part, parts) = options.part.split_once('/').context("--part is like 1/2")?;
    let (part, parts): (usize, usize) = (part.parse()?, parts.parse()?);
    let all = scenarios::all();
    for name in scenarios::CORE {
        ensure!(all.iter().any(|scenario| scenario.name == name), "there is no scenario {name}");
    }
    let here = all.into_iter().filter(Scenario::can_run_here);
    let chosen = here
        .filter(|scenario| scenario.name.contains(&options.only) || scenario.truth.word() == options.only)
        .filter(|scenario| !options.core || scenarios::CORE.contains(&scenario.name));
    let mut good = true;
    for (index, scenario) in chosen.enumerate() {
        if index % parts != part - 1 {
            continue;
        }
        if options.list {
            println!("{}", scenario.name);
            continue;
        }
        let outcome = match measure::measure(&scenario, options) {
            Ok(outcome) => outcome,
            Err(error) => {
                println!("{}: {error:#}", scenario.name);
                Outcome::failed(scenario.name, scenario.truth.word())
            }
        };
        good &= outcome.right;
        println!("{MARK}{}", serde_json::to_string(&outcome)?);
    }
    Ok(good)
}
