//! The peer, memleak of libbpf-tools in kernel mode, beside the same load.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

const LOADER: &str = "/peer/lib/ld-linux-x86-64.so.2";
/// Time in which it comes up.
const STARTUP: Duration = Duration::from_secs(8);
/// Seconds after which it prints what is outstanding.
const INTERVAL: &str = "45";

/// The running peer.
pub struct Peer(Child);

impl Peer {
    /// Starts it, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be run.
    pub fn start() -> Result<Option<Self>> {
        if !Path::new(LOADER).exists() {
            return Ok(None);
        }
        let child = Command::new(LOADER)
            .args(["--library-path", "/peer/lib", "/peer/memleak-libbpf", "-T", "1000", INTERVAL, "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("memleak cannot be run")?;
        std::thread::sleep(STARTUP);
        Ok(Some(Self(child)))
    }

    /// Waits for its list, and finds a function's rank in it by bytes; -1 when it is not there.
    ///
    /// # Errors
    /// When it prints nothing.
    pub fn rank(mut self, function: &str) -> Result<i64> {
        let mut text = String::new();
        self.0.stdout.take().context("it is piped")?.read_to_string(&mut text)?;
        self.0.wait()?;
        // "51200 bytes in 200 allocations from stack", and then a line for each frame.
        let mut stacks: Vec<(u64, bool)> = Vec::new();
        for line in text.lines() {
            if let Some((bytes, _)) = line.split_once(" bytes in ") {
                stacks.push((bytes.trim().parse().unwrap_or(0), false));
            } else if let Some(stack) = stacks.last_mut() {
                stack.1 |= line.contains(function);
            }
        }
        stacks.sort_by_key(|&(bytes, _)| std::cmp::Reverse(bytes));
        let rank = stacks.iter().position(|&(_, is_it)| is_it);
        Ok(rank.map_or(-1, |rank| rank as i64 + 1))
    }
}
