//! What is tested in a guest: leaktrace on its kernel, against a driver whose truth is known.

mod accounts;
mod churn;
mod kmemleak;
mod module;
mod package;
mod paths;
mod peer;
mod prove;
mod refusal;
mod trace;
mod triage;
mod verdict;

use std::{fs, panic::catch_unwind, process::ExitCode};

use anyhow::Result;

/// A test: its name, and what it does; true when it is right.
type Test = (&'static str, fn() -> Result<bool>);

/// In this order: the first three count what is leaked, by whomever, and remove the driver in the end, for the next one
/// to see it loaded.
const TESTS: [Test; 13] = [
    ("kmemleak's word", kmemleak::test),
    ("triage of a driver that leaks", triage::test),
    ("the kernel's own accounts", accounts::test),
    ("what nothing points to, and what holds the rest", prove::test),
    ("every path, by fentry", || paths::test(paths::Hooked::Fentry)),
    ("every path, by kprobes", || paths::test(paths::Hooked::Kprobe)),
    ("every path, without either", || paths::test(paths::Hooked::Not)),
    ("ten thousand objects freed without a tracepoint", peer::test),
    ("interrupts in the middle", module::storm),
    (
        "a leak, with the rights of the service, a clock that is set, a tool that is stopped and a machine that sleeps",
        verdict::test,
    ),
    ("the four largest leaks of a module, and its removal", module::test),
    ("a CPU and a module that come and go", churn::come_and_go),
    ("memory that runs out", churn::out_of_memory),
];

/// Those that only guests started for them can do, and only when asked.
const SPECIAL: [Test; 3] = [
    ("a kernel that is locked down", refusal::test),
    ("the package in a whole system", package::test),
    ("a hundred thousand call sites", churn::many_sites),
];

fn main() -> ExitCode {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let only = std::env::args().nth(1);
    let (mut passed, mut failed) = (0, 0);
    let chosen: Vec<Test> = match &only {
        None => TESTS.to_vec(),
        Some(part) => {
            TESTS.into_iter().chain(SPECIAL).filter(|(name, _)| name.contains(part.as_str())).collect()
        }
    };
    // As the host's harness says it: the tests of a guest that ends early are counted as failed.
    println!("running {} tests", chosen.len());
    for (name, test) in chosen {
        println!("guest {}: {name}", kernel.trim());
        // A panic has printed its message, and is no reason to leave out the tests after it.
        let right = catch_unwind(test).unwrap_or(Ok(false)).unwrap_or_else(|error| {
            println!("  {error:#}");
            false
        });
        if right {
            passed += 1;
        } else {
            println!("  FAILED");
            failed += 1;
        }
    }
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
