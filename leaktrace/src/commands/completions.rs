//! `leaktrace completions`: what makes a shell complete our command line, from its own grammar.

use anyhow::Result;
use clap::{Command, CommandFactory as _};
use clap_complete::{
    generate,
    shells::{Bash, Fish, Zsh},
};

use super::output::Output;
use crate::cli::{Cli, CompletionsArgs, Shell};

/// Prints a shell's script.
///
/// # Errors
/// When it cannot be written.
pub(super) fn run(args: &CompletionsArgs) -> Result<()> {
    Output::Stdout.write(&script(args.shell))
}

/// The script, in memory: the generators panic at a pipe that nobody reads.
fn script(shell: Shell) -> Vec<u8> {
    let mut command = shown(&Cli::command()).version(env!("CARGO_PKG_VERSION"));
    let mut out = Vec::new();
    match shell {
        Shell::Bash => generate(Bash, &mut command, "leaktrace", &mut out),
        Shell::Zsh => generate(Zsh, &mut command, "leaktrace", &mut out),
        Shell::Fish => generate(Fish, &mut command, "leaktrace", &mut out),
    }
    out
}

/// A command's grammar without what is hidden, which the generators would offer.
fn shown(command: &Command) -> Command {
    // A name has to live as long as the program, unless clap is built once more with a feature for that.
    let name: &'static str = command.get_name().to_owned().leak();
    Command::new(name)
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(shown))
}
