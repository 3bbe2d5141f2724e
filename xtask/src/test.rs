//! `cargo xtask test`: what has to hold before anything lands.

use anyhow::Result;

use crate::{
    run::{build, cargo, check, find, is_root},
    setup::need,
};

/// Formatting, lints, and all tests; those that trace run as root.
///
/// # Errors
/// When a step fails.
pub(crate) fn test(offline: bool) -> Result<()> {
    step("formatting");
    // cargo fmt takes no --offline.
    check(cargo(false).args(["fmt", "--all", "--check"]))?;
    step("lints");
    check(cargo(offline).args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("building");
    let leaktrace = build(offline)?;
    // One test reads what strace shows of a run.
    need("strace", offline)?;
    step("tests");
    let mut command = cargo(offline);
    command.args(["test", "--workspace"]).env("LEAKTRACE_BIN", leaktrace);
    if !is_root() && find("sudo").is_some() {
        // Test binaries trace the kernel: run them, not the compiler, as root.
        let runner = format!("CARGO_TARGET_{}_RUNNER", host().to_uppercase().replace('-', "_"));
        command.env(runner, "sudo -E");
    }
    check(&mut command)
}

fn step(what: &str) {
    eprintln!("test: {what}");
}

/// The triple that this program was built for.
fn host() -> &'static str {
    env!("XTASK_HOST")
}
