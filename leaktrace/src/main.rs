//! The command line: parse, run, and tell any failure in one line.

// These end the process where nobody reads what they write.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::process::ExitCode;

use leaktrace::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = match Cli::parse_arguments() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            commands::say(&format!("leaktrace: {}", one_line(&usage(&error))));
            return ExitCode::from(2);
        }
        Err(help) => {
            // Help and version. A reader that closed the pipe has seen enough.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            commands::say(&format!("leaktrace: {}", one_line(&format!("{error:#}"))));
            ExitCode::FAILURE
        }
    }
}

/// The message of a usage error without clap's usage block, and where to read on.
fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    format!("{} (try --help)", message.trim_start_matches("error: ").trim_end())
}

/// A message may carry text from the kernel or from a file: no line breaks, no control characters.
fn one_line(message: &str) -> String {
    leaktrace::report::escape(&message.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}
