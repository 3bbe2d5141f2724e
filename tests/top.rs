//! `leaktrace top` on a real terminal, which tmux has.

use std::{
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, leaktrace, require_root, run, turn};

/// How long the screen may take to show something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal of tmux's, with a shell in it that runs leaktrace once.
struct Terminal(String);

impl Terminal {
    fn start(args: &str) -> Self {
        // A server each: that of the last test may still be ending.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let terminal = Self(format!("leaktrace-{}-{nth}", std::process::id()));
        let command = format!("{} top {args}; echo ended with $?; cat", leaktrace().display());
        let output = terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh", "-c", &command]);
        assert!(output.status.success(), "{output:?}");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> Output {
        Command::new("tmux").args(["-L", &self.0]).args(args).output().expect("there is tmux")
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// Waits until the screen is as it should be.
    fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let shown = self.shown();
            if is(&shown) {
                return shown;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} never came:\n{shown}");
            sleep(Duration::from_millis(100));
        }
    }

    fn press(&self, keys: &[&str]) {
        let output = self.tmux(&[&["send-keys"], keys].concat());
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn findings_are_found_opened_and_filtered() {
    require_root();
    let _turn = turn();
    let terminal = Terminal::start("--overhead 100 --min-age 1s");
    terminal.wait("the first report", |shown| shown.contains(" Findings "));
    let _held = Holder::spawn(2_000);
    // More than a screen of findings may come before those of the pipes.
    terminal.press(&["/"]);
    terminal.press(&["-l", "alloc_pipe_info"]);
    terminal.press(&["Enter"]);
    let shown = terminal.wait("the pipes", |shown| {
        shown.lines().any(|line| line.contains("alloc_pipe_info") && line.contains("kmalloc-cg-"))
    });
    assert!(shown.contains("events/s") && shown.contains("/alloc_pipe_info"), "{shown}");
    terminal.press(&["Enter"]);
    let full = terminal.wait("the finding", |shown| shown.contains("why "));
    assert!(full.contains("objects") && full.contains("stack"), "{full}");
    // The stack is further down.
    terminal.press(&["End"]);
    terminal.wait("its end", |shown| shown.contains("live objects, the oldest first"));
    terminal.press(&["Escape"]);
    terminal.wait("the list", |shown| shown.contains("Enter open"));
    // A new size is used at once.
    terminal.tmux(&["resize-window", "-x", "140", "-y", "30"]);
    terminal.wait("more columns", |shown| shown.contains("oldest"));
    terminal.press(&["Tab"]);
    terminal.wait("the caches", |shown| shown.contains("slabinfo"));
    terminal.press(&["p"]);
    terminal.wait("a pause", |shown| shown.contains("PAUSED"));
    terminal.press(&["?"]);
    terminal.wait("the keys", |shown| shown.contains(" Keys "));
    terminal.press(&["x"]);
    terminal.press(&["q"]);
    let after = terminal.wait("its end", |shown| shown.contains("ended with 0"));
    assert!(!after.contains("Findings"), "the terminal was not given back:\n{after}");
}

#[test]
fn a_signal_gives_the_terminal_back() {
    require_root();
    let _turn = turn();
    let terminal = Terminal::start("");
    terminal.wait("the screen", |shown| shown.contains(" Findings "));
    let pids = terminal.tmux(&["list-panes", "-F", "#{pane_pid}"]).stdout;
    let shell = String::from_utf8_lossy(&pids).trim().to_owned();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    let pid: i32 = children.split_whitespace().next().expect("it runs").parse().unwrap();
    // SAFETY: kill takes integers only, and the process is what this test has started.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let after = terminal.wait("its end", |shown| shown.contains("ended with 0"));
    assert!(!after.contains("Findings"), "{after}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let output = run(["top"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("needs a terminal"), "{said}");
    assert_eq!(said.lines().count(), 1);
}
