//! What leaktrace writes from its own command line's grammar: completions, which a real bash tries, and manual pages.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
};

use clap::CommandFactory as _;
use leaktrace::cli::Cli;
use leaktrace_tests::{leaktrace, refused, run};

/// Completes the last of its arguments as bash does when somebody presses Tab.
const TAB: &str = r#"
source <("$LEAKTRACE" completions bash) || exit
complete=$(complete -p leaktrace) || exit
function=${complete#* -F }
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
"${function%% *}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// What bash offers for the last word.
fn offered(words: &[&str]) -> Vec<String> {
    let output = Command::new("bash")
        .args(["--norc", "-c", TAB, "tab", "leaktrace"])
        .args(words)
        .env("LEAKTRACE", leaktrace())
        .stdin(Stdio::null())
        .output()
        .expect("bash can be run");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect()
}

/// Standard output of a run that succeeds.
fn said(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the commands that are told of.
fn commands() -> BTreeSet<String> {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|sub| !sub.is_hide_set());
    shown.map(|sub| sub.get_name().to_owned()).collect()
}

#[test]
fn bash_completes() {
    assert_eq!(offered(&["--mod"]), ["--module"]);
    assert_eq!(offered(&["tri"]), ["triage"]);
    assert_eq!(offered(&["triage", "--wat"]), ["--watch"]);
    assert_eq!(offered(&["--fail-on", ""]), ["leak", "suspect"]);
    assert_eq!(offered(&["completions", "f"]), ["fish"]);
    // All that is told of, and nothing else.
    let words: BTreeSet<String> = offered(&[""]).into_iter().filter(|word| !word.starts_with('-')).collect();
    let mut expected = commands();
    expected.insert("help".to_owned());
    assert_eq!(words, expected);
}

#[test]
fn what_is_hidden_is_not_offered() {
    assert!(Cli::command().find_subcommand("man").is_some_and(clap::Command::is_hide_set));
    assert_eq!(offered(&["man"]), [""; 0]);
    assert_eq!(offered(&["help", "man"]), [""; 0]);
    for command in [&[][..], &["top"]] {
        assert_eq!(offered(&[command, &["--ref"]].concat()), [""; 0], "{command:?}");
    }
}

#[test]
fn other_shells_have_scripts() {
    let scripts = [
        ("fish", "complete -c leaktrace", "-l module", "-l refuse", "-a \"man\""),
        ("zsh", "#compdef leaktrace", "--module=", "--refuse", "'man:"),
    ];
    for (shell, begins, option, hidden, command) in scripts {
        let script = said(&["completions", shell]);
        assert!(script.contains(begins) && script.contains(option), "{shell}: {script}");
        assert!(!script.contains(hidden) && !script.contains(command), "{shell}: {script}");
    }
}

/// The help says for each shell how it is told of them.
#[test]
fn help_says_how() {
    let help = said(&["completions", "--help"]);
    for way in [
        "source <(leaktrace completions bash)",
        "source <(leaktrace completions zsh)",
        "completions fish | source",
    ] {
        assert_eq!(help.lines().filter(|line| line.contains(way)).count(), 1, "{way}: {help}");
    }
}

#[test]
fn unknown_shells_are_refused() {
    refused(&run(["completions", "tcsh"]), 2, &["tcsh", "bash, zsh, fish", "--help"]);
    refused(&run(["completions"]), 2, &["SHELL", "--help"]);
}

#[test]
fn each_command_has_a_page() {
    let place = tempfile::tempdir().unwrap();
    // Which is not there.
    let directory = place.path().join("usr/man1");
    assert_eq!(said(&["man", directory.to_str().unwrap()]), "");
    let mut expected: BTreeSet<String> =
        commands().iter().map(|name| format!("leaktrace-{name}.1")).collect();
    expected.insert("leaktrace.1".to_owned());
    let files =
        fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), expected);
    for file in &expected {
        let page = fs::read_to_string(directory.join(file)).unwrap();
        for title in ["SYNOPSIS", "\"EXIT STATUS\"", "SIGNALS", "\"SEE ALSO\""] {
            assert!(page.contains(&format!("\n.SH {title}\n")), "{file} has no {title}: {page}");
        }
        let (_, also) = page.rsplit_once(".SH \"SEE ALSO\"\n").unwrap();
        let also = also.trim_end().replace("\\fB", "").replace("\\fR", "").replace("\\-", "-");
        let also: BTreeSet<String> = also.split(", ").map(|other| other.replace("(1)", ".1")).collect();
        let others: BTreeSet<String> = expected.iter().filter(|other| *other != file).cloned().collect();
        assert_eq!(also, others, "{file}");
    }
    let whole = fs::read_to_string(directory.join("leaktrace.1")).unwrap();
    assert!(whole.contains("\n.SH EXAMPLES\n") && whole.contains("leaktrace\\-triage(1)\n"), "{whole}");
    assert!(!whole.contains("leaktrace\\-man"), "{whole}");
}

#[test]
fn places_for_pages_that_cannot_be_made_are_told() {
    refused(&run(["man", "/proc/nonexistent/x"]), 1, &["cannot make /proc/nonexistent/x", "No such file"]);
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("leaktrace.1")).unwrap();
    let words = ["cannot write", "leaktrace.1", "Is a directory"];
    refused(&run(["man", place.path().to_str().unwrap()]), 1, &words);
    refused(&run(["man"]), 2, &["DIR", "--help"]);
}
