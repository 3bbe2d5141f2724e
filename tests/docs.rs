//! The guide and the README: their commands work, and what they name is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use clap::CommandFactory as _;
use leaktrace::cli::Cli;
use leaktrace_tests::{leaktrace, require_root, turn};

mod certificates;

use certificates::certificates;

/// How long a command may take, beside all others.
const PATIENCE: Duration = Duration::from_mins(2);

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The pages, by path and text.
fn pages() -> Vec<(PathBuf, String)> {
    let guide = fs::read_dir(workspace().join("docs")).unwrap().flatten().map(|entry| entry.path());
    let own = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| workspace().join(name));
    let mut paths: Vec<PathBuf> = guide.chain(own).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Indented lines that begin with leaktrace: words after that, without a comment.
fn commands(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter_map(|line| line.strip_prefix("sudo leaktrace").or_else(|| line.strip_prefix("leaktrace ")))
        .filter(|rest| rest.is_empty() || rest.starts_with([' ', '-']) || !rest.starts_with("trace"))
        .map(|rest| rest.split(" #").next().unwrap().split_whitespace().collect())
        // Screens of a test's own output have numbers there; words in capitals stand for something.
        .filter(|words: &Vec<&str>| {
            words.first().is_none_or(|word| word.starts_with("--") || is_command(word))
                && !words.iter().any(|word| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase()))
        })
        .collect()
}

fn is_command(word: &str) -> bool {
    Cli::command().find_subcommand(word).is_some()
}

/// Commands of all pages run, those of a page one after the other: one may read what another has written.
#[test]
fn what_is_written_works() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let samples = Samples {
        report: directory.path().join("sample.json"),
        recording: directory.path().join("sample.rec"),
    };
    let make = |args: &[&str], place: &Path| {
        let status = Command::new(leaktrace()).args(args).arg(place).arg("--quiet").status().unwrap();
        assert!(status.success(), "{args:?}");
    };
    make(&["--duration", "2", "--format", "json", "--output"], &samples.report);
    make(&["record", "--duration", "2", "--output"], &samples.recording);
    let (pages, samples) = (&pages(), &samples);
    let run: usize = thread::scope(|scope| {
        let pages: Vec<_> =
            pages.iter().map(|(path, text)| scope.spawn(move || samples.run_page(path, text))).collect();
        pages.into_iter().map(|page| page.join().expect("what a page says works")).sum()
    });
    assert!(run > 30, "only {run} commands were found");
}

/// What commands read that is not made on their page.
struct Samples {
    report: PathBuf,
    recording: PathBuf,
}

impl Samples {
    /// Runs the commands of a page in a directory of its own; returns how many.
    fn run_page(&self, path: &Path, text: &str) -> usize {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("token"), "0123456789abcdef0123456789abcdef\n").unwrap();
        certificates(place.path());
        let commands: Vec<_> = commands(text).iter().filter_map(|words| shortened(words)).collect();
        for words in &commands {
            for (at, word) in words.iter().enumerate() {
                let made = at > 0 && words[at - 1] == "--output";
                let file = place.path().join(word);
                let source = match Path::new(word).extension().and_then(|extension| extension.to_str()) {
                    Some("json") => &self.report,
                    Some("rec") => &self.recording,
                    _ => continue,
                };
                if !made && !file.exists() {
                    fs::copy(source, file).unwrap();
                }
            }
            check(path, place.path(), words);
        }
        commands.len()
    }
}

/// The words of a command, for a shorter time; `None` for what needs a terminal.
fn shortened(words: &[&str]) -> Option<Vec<String>> {
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let kind = words.first().map(String::as_str).filter(|word| is_command(word)).map(ToOwned::to_owned);
    match kind.as_deref() {
        Some("top") => return None,
        None | Some("record" | "triage") if !words.iter().any(|word| word == "--duration") => {
            words.extend(["--duration".to_owned(), String::new()]);
        }
        _ => {}
    }
    for at in 1..words.len() {
        if words[at - 1] == "--duration" {
            "2".clone_into(&mut words[at]);
        } else if words[at - 1] == "--watch" {
            "1s".clone_into(&mut words[at]);
        }
    }
    Some(words)
}

/// Agents take turns: some listen where others do.
static SERVING: Mutex<()> = Mutex::new(());

/// Runs a command, and ends what has no end once it serves.
fn check(page: &Path, place: &Path, words: &[String]) {
    let what = format!("{}: leaktrace {}", page.display(), words.join(" "));
    let serves = words.first().is_some_and(|word| word == "serve");
    let _turn = serves.then(|| SERVING.lock().expect("no other agent has failed"));
    let output = tempfile::NamedTempFile::new().unwrap();
    let said = || fs::read_to_string(output.path()).unwrap();
    let out = output.reopen().unwrap();
    let mut child = Command::new(leaktrace())
        .args(words)
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if serves && !told && said().contains("Serving ") {
            // SAFETY: kill takes integers only; the process is our child and not waited for.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            told = true;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what}: it does not end: {}", said());
        }
        sleep(Duration::from_millis(50));
    };
    let may_find = words.iter().any(|word| word == "--fail-on" || word == "--until-leak");
    // Two seconds, and modules that are not here: a gate does not pass then.
    let unknown = status.code() == Some(1) && said().contains("cannot tell whether anything leaks: ");
    // Memory cannot be looked at where the kernel does not show it.
    let hidden = !Path::new("/proc/kcore").exists()
        && status.code() == Some(1)
        && said().contains("this kernel has no /proc/kcore");
    let right = status.success() || hidden || may_find && (status.code() == Some(3) || unknown);
    assert!(right, "{what}: {status}: {}", said());
}

/// Links within the repository lead somewhere.
#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            assert!(path.parent().unwrap().join(link).exists(), "{}: {link}", path.display());
            links += 1;
        }
    }
    assert!(links > 10);
}

/// Options in backticks are options of leaktrace or of its xtask.
#[test]
fn options_are_there() {
    let mut known: Vec<String> = Vec::new();
    let whole = Cli::command();
    for command in std::iter::once(&whole).chain(whole.get_subcommands()) {
        known.extend(
            command
                .get_arguments()
                .filter_map(|argument| argument.get_long())
                .map(|long| format!("--{long}")),
        );
    }
    known.extend(["--help", "--version", "--no-guests", "--arch", "--quick", "--all"].map(ToOwned::to_owned));
    let mut seen = 0;
    for (path, text) in pages() {
        for quoted in text.split('`').skip(1).step_by(2).filter(|quoted| quoted.starts_with("--")) {
            let option = quoted.split([' ', '=']).next().unwrap();
            // Of container runtimes.
            if option == "--pid" {
                continue;
            }
            assert!(known.iter().any(|known| known == option), "{}: {option}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 20);
}

/// Each message that is explained is one that leaktrace says.
#[test]
fn messages_are_said() {
    let mut source = String::new();
    let mut left = vec![workspace().join("leaktrace/src")];
    while let Some(directory) = left.pop() {
        for path in fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                source += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let page = fs::read_to_string(workspace().join("docs/troubleshooting.md")).unwrap();
    let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(headings.len() > 15);
    for heading in headings {
        assert!(source.contains(heading), "nothing says {heading:?}");
    }
}
