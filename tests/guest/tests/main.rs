//! What is tested in a guest: leaktrace on its kernel, against a driver whose truth is known.

mod accounts;
mod churn;
mod heap;
mod kmemleak;
mod load;
mod module;
mod package;
mod paths;
mod peer;
mod prove;
mod refusal;
mod terminal;
mod trace;
mod triage;
mod verdict;

use std::{fs, panic::catch_unwind, path::Path, process::ExitCode, time::Instant};

use anyhow::{Result, bail};

/// A test.
#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    /// What has to be in the guest for it, beside the driver.
    needs: Option<&'static str>,
    /// True when all is right.
    run: fn() -> Result<bool>,
}

impl Test {
    const fn new(name: &'static str, run: fn() -> Result<bool>) -> Self {
        Self { name, needs: None, run }
    }

    const fn with(needs: &'static str, name: &'static str, run: fn() -> Result<bool>) -> Self {
        Self { name, needs: Some(needs), run }
    }
}

/// In this order: the first four count what is leaked, by whomever, and remove the driver in the end, for the next one
/// to see it loaded; the last one locks the kernel's memory, for good.
const TESTS: [Test; 21] = [
    Test::new("kmemleak's word", kmemleak::test),
    Test::new("triage of a driver that leaks", triage::test),
    Test::new("the kernel's own accounts", accounts::test),
    Test::new("what nothing points to, and what holds the rest", prove::test),
    Test::with(package::DEB, "a whole system has lost nothing", heap::well),
    Test::new("nothing is lost under load", heap::busy),
    Test::new("what was lost before anybody looked", heap::test),
    Test::new("who has what is held open", heap::holders),
    Test::new("every path, by fentry", || paths::test(paths::Hooked::Fentry)),
    Test::new("every path, by kprobes", || paths::test(paths::Hooked::Kprobe)),
    Test::new("every path, without either", || paths::test(paths::Hooked::Not)),
    Test::with(peer::LOADER, "ten thousand objects freed without a tracepoint", peer::test),
    Test::new("interrupts in the middle", module::storm),
    Test::new("a leak ends the trace", verdict::ends_the_trace),
    Test::new(
        "a leak, with the rights of the service, a clock that is set, a tool that is stopped and a machine that sleeps",
        verdict::disturbed,
    ),
    Test::new("the four largest leaks of a module, and its removal", module::test),
    Test::new("a CPU and a module that come and go", churn::come_and_go),
    Test::new("memory that runs out", churn::out_of_memory),
    Test::with(package::DEB, "the package in a whole system", package::test),
    Test::with(churn::MANY, "a hundred thousand call sites", churn::many_sites),
    Test::with(refusal::SECURITY, "a kernel that is locked down", refusal::test),
];

/// Prints the names of all tests, a line each.
const LIST: &str = "--list";

/// Tests whose names have one of these parts; or else all for which there is here what they need.
///
/// # Errors
/// When there is no such test.
fn chosen(parts: &[String]) -> Result<Vec<Test>> {
    let is = |test: &Test, part: &String| test.name.contains(part.as_str());
    if let Some(part) = parts.iter().find(|part| !TESTS.iter().any(|test| is(test, part))) {
        bail!("no test is called {part}: {LIST} names them");
    }
    let wanted = |test: &Test| match parts {
        [] => test.needs.is_none_or(|place| Path::new(place).exists()),
        parts => parts.iter().any(|part| is(test, part)),
    };
    Ok(TESTS.into_iter().filter(wanted).collect())
}

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if parts == [LIST] {
        for test in TESTS {
            println!("{}", test.name);
        }
        return ExitCode::SUCCESS;
    }
    match chosen(&parts) {
        Ok(tests) => run(&tests),
        Err(error) => {
            eprintln!("guest-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(tests: &[Test]) -> ExitCode {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    // As the host's harness says it: the tests of a guest that ends early are counted as failed.
    println!("running {} tests", tests.len());
    for test in tests {
        println!("guest {}: {}", kernel.trim(), test.name);
        let begun = Instant::now();
        // A panic has printed its message, and is no reason to leave out the tests after it.
        let right = catch_unwind(test.run).unwrap_or(Ok(false)).unwrap_or_else(|error| {
            println!("  {error:#}");
            false
        });
        if right {
            passed += 1;
        } else {
            println!("  FAILED");
            failed += 1;
        }
        println!("  took {:.1} s", begun.elapsed().as_secs_f64());
    }
    println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
