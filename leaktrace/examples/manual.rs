//! Writes the manual pages and the shells' completions into a directory, from the command line's own grammar:
//! `cargo run --package leaktrace --example manual -- DIRECTORY`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use leaktrace::cli::Cli;

/// What each exit status means.
const STATUS: [(&str, &str); 4] = [
    ("0", "What was asked for was done; with --fail-on nothing was found that is worse."),
    ("1", "It could not be done: one line on standard error says why, and what to do."),
    ("2", "The command line is wrong."),
    ("3", "A leak was found, with --until-leak, or what --fail-on asks for."),
];

const SIGNALS: &str = "SIGINT, SIGTERM and SIGHUP end a trace early, with its report.";

const EXAMPLES: [(&str, &str); 5] = [
    ("leaktrace triage", "Who has the memory, and what grows? Needs no root."),
    ("sudo leaktrace --duration 60", "Which call site, slab cache and module leaks?"),
    (
        "sudo leaktrace --module foo --duration 5m",
        "Everything that passes through one module, and what it leaves when it is removed.",
    ),
    ("sudo leaktrace --duration 60 --prove", "Are they lost beyond doubt, and who holds the rest?"),
    ("sudo leaktrace --duration 60 --format html --output leak.html", "A page for somebody else."),
];

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).context("which directory?")?;
    let directory = Path::new(&directory);
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut command = Cli::command();
    command.build();
    page(directory, &command, &command)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        page(directory, &command, sub)?;
    }
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "leaktrace", directory)?;
    }
    Ok(())
}

/// Writes the page of a command.
fn page(directory: &Path, whole: &Command, command: &Command) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let man = Man::new(command.clone())
        .source(format!("leaktrace {}", env!("CARGO_PKG_VERSION")))
        .manual("leaktrace");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if std::ptr::eq(command, whole) {
        man.render_subcommands_section(&mut out)?;
    }
    let mut rest = Roff::new();
    if std::ptr::eq(command, whole) {
        rest.control("SH", ["EXAMPLES"]);
        for (line, what) in EXAMPLES {
            rest.control("TP", []).text([bold(line)]).text([roman(what)]);
        }
    }
    rest.control("SH", ["EXIT STATUS"]);
    for (status, what) in STATUS {
        rest.control("TP", []).text([bold(status)]).text([roman(what)]);
    }
    rest.control("SH", ["SIGNALS"]).text([roman(SIGNALS)]);
    rest.control("SH", ["SEE ALSO"]);
    let others = whole.get_subcommands().filter(|sub| sub.get_name() != "help");
    let pages = std::iter::once("leaktrace".to_owned())
        .chain(others.map(|sub| sub.get_display_name().unwrap_or(sub.get_name()).to_owned()))
        .filter(|page| *page != name);
    let mut line = Vec::new();
    for page in pages {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(page), roman("(1)")]);
    }
    rest.text(line);
    rest.to_writer(&mut out)?;
    let path = directory.join(format!("{name}.1"));
    File::create(&path)
        .and_then(|mut file| file.write_all(&out))
        .with_context(|| format!("cannot write {}", path.display()))
}
