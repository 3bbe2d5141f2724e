//! `leaktrace man`: the manual pages, from the command line's own grammar. Packages take them from here.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use crate::cli::{Cli, ManArgs};

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

/// Writes the pages into a directory.
///
/// # Errors
/// When the directory cannot be made, or a page not be written.
pub(super) fn run(args: &ManArgs) -> Result<()> {
    let directory = &args.directory;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut whole = Cli::command();
    whole.build();
    write(directory, &whole, &whole)?;
    for command in commands(&whole) {
        write(directory, &whole, command)?;
    }
    Ok(())
}

/// The commands that have a page, beside tracing.
fn commands(whole: &Command) -> impl Iterator<Item = &Command> {
    whole.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

/// Writes the page of a command.
fn write(directory: &Path, whole: &Command, command: &Command) -> Result<()> {
    let path = directory.join(format!("{}.1", name(command)));
    let unwritable = || format!("cannot write {}", path.display());
    fs::write(&path, page(whole, command).with_context(unwritable)?).with_context(unwritable)
}

/// What the page of a command is called.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// The page of a command.
fn page(whole: &Command, command: &Command) -> std::io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .source(format!("leaktrace {}", env!("CARGO_PKG_VERSION")))
        .manual("leaktrace");
    let traces = std::ptr::eq(command, whole);
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    let mut rest = Roff::new();
    if traces {
        man.render_subcommands_section(&mut out)?;
        section(&mut rest, "EXAMPLES", &EXAMPLES);
    }
    section(&mut rest, "EXIT STATUS", &STATUS);
    rest.control("SH", ["SIGNALS"]).text([roman(SIGNALS)]);
    rest.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for other in std::iter::once(whole).chain(commands(whole)).filter(|other| !std::ptr::eq(*other, command))
    {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(name(other)), roman("(1)")]);
    }
    rest.text(line);
    rest.to_writer(&mut out)?;
    Ok(out)
}

/// A section of terms and what they mean.
fn section(page: &mut Roff, title: &str, terms: &[(&str, &str)]) {
    page.control("SH", [title]);
    for (term, meaning) in terms {
        page.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
    }
}
