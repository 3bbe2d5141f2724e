//! An agent under load for minutes: what it takes from the machine does not grow, and it goes on.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, number, turn};

mod agent;

use agent::Agent;

/// Until all that is made at first is made: symbols, tables, the first reports.
const WARM_UP: Duration = Duration::from_mins(1);
const WATCHED: Duration = Duration::from_mins(4);
const EACH: Duration = Duration::from_secs(10);
/// What it may have more in the end. Reports differ in size with what goes on.
const MORE_KB: u64 = 16 << 10;

/// Processes, pipes, files and requests, until told to stop.
fn load(agent: &Agent, stop: &AtomicBool) {
    let directory = tempfile::tempdir().unwrap();
    for round in 0_u64.. {
        if stop.load(Relaxed) {
            return;
        }
        drop(Holder::spawn(200));
        assert!(Command::new("/bin/true").status().unwrap().success());
        let file = directory.path().join((round % 500).to_string());
        std::fs::write(&file, vec![1; 5_000]).unwrap();
        for path in ["/metrics", "/report.json", "/flame.svg"] {
            agent.text(path);
        }
        sleep(Duration::from_millis(50));
    }
}

/// Tells the load to stop, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
#[ignore = "slow: five minutes of an agent under load"]
fn an_agent_takes_no_more_with_time() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let ended = Stop(&stop);
        scope.spawn(|| load(&agent, &stop));
        sleep(WARM_UP);
        let (resident, files) = (agent.resident_kb(), agent.files());
        let mut ticks = 0.0;
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            sleep(EACH);
            let report = agent.wait(|report| number(&report["window"]["ticks"]) > ticks);
            ticks = number(&report["window"]["ticks"]);
        }
        drop(ended);
        let after = agent.resident_kb();
        println!(
            "{resident} kB and {files} files at first, {after} kB and {} files after {ticks} ticks",
            agent.files()
        );
        assert!(after < resident + MORE_KB, "{after} kB, {resident} kB before");
        // A request may be under way.
        assert!(agent.files() <= files + 4, "{} files, {files} before", agent.files());
    });
    agent.end();
}
