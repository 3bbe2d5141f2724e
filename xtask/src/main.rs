//! `cargo xtask`: set-up, building, running, testing, measuring and packaging leaktrace.

mod arch;
mod debian;
mod dist;
mod kernel;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Sets up, builds, runs, tests, measures and packages leaktrace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    /// Never download or install anything.
    #[arg(long, global = true)]
    offline: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find what building eBPF takes, or install it.
    Setup,
    /// Build leaktrace, optimised and static, and say where it is.
    Build,
    /// Set up, build and run leaktrace, by sudo unless root.
    Run {
        /// Arguments of leaktrace, after `--`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Check formatting and lints, and run the tests: the eBPF programs on this machine's kernel, and
    /// everything in virtual machines with five others. CONTRIBUTING.md says what each tier holds.
    Test {
        /// Only what a change breaks most often: one virtual machine, and no test that mostly waits.
        #[arg(long, conflicts_with = "all")]
        quick: bool,
        /// The slow tests as well, and every test in every virtual machine.
        #[arg(long)]
        all: bool,
        /// Leave the virtual machines out.
        #[arg(long)]
        no_guests: bool,
    },
    /// Measure what tracing costs, beside an empty program and a peer.
    Bench {
        /// Arguments of the benchmark, after `--` (try `-- --help`).
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Boot a real kernel in QEMU and run a command in it, as in `vm --kernel 6.1 -- leaktrace --duration 5`.
    Vm(Box<vm::VmArgs>),
    /// Run scenarios whose truth is known, in guests and here: verdicts, ranks, seconds, beside a peer's ranks.
    Eval(vm::EvalArgs),
    /// Build a kernel with kmemleak to test on, from Debian's sources: 6.12 or 7.2.
    Kernel {
        /// Its version.
        version: String,
    },
    /// Make a static, stripped binary with the eBPF programs in it, and Debian's package of it, in target/dist.
    Dist {
        /// What they are for [default: machines like this one]; may be given several times.
        #[arg(long, value_enum, value_name = "ARCH")]
        arch: Vec<arch::Arch>,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    setup::setup(cli.offline)?;
    match cli.command {
        Command::Setup => {}
        Command::Build => println!("{}", run::build_release(cli.offline)?.display()),
        Command::Run { args } => return run::leaktrace(cli.offline, &args),
        Command::Test { quick, all, no_guests } => {
            let tier = match (quick, all) {
                (true, _) => test::Tier::Quick,
                (_, true) => test::Tier::All,
                _ => test::Tier::Default,
            };
            test::test(cli.offline, tier, !no_guests)?;
        }
        Command::Bench { args } => return run::bench(cli.offline, &args),
        Command::Vm(args) => return vm::vm(cli.offline, &args),
        Command::Eval(args) => {
            if !vm::eval(cli.offline, &args)? {
                bail!("not every scenario was judged right");
            }
        }
        Command::Kernel { version } => vm::build_kernel(cli.offline, &version)?,
        Command::Dist { arch } if arch.is_empty() => dist::dist(cli.offline, arch::Arch::host()?)?,
        Command::Dist { arch } => arch.into_iter().try_for_each(|arch| dist::dist(cli.offline, arch))?,
    }
    Ok(ExitCode::SUCCESS)
}
