//! A running `leaktrace serve`, for tests.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use leaktrace_tests::{leaktrace, number, require_root};
use serde_json::Value;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An agent on a port of its own choice.
pub struct Agent {
    child: Child,
    /// Where it answers.
    pub address: SocketAddr,
}

impl Agent {
    /// Starts one, and waits for its first report.
    pub fn start(args: &[&str]) -> Self {
        let agent = Self::spawn(
            Command::new(leaktrace())
                .args(["serve", "--listen", "127.0.0.1:0", "--refresh", "500ms", "--min-age", "500ms"])
                .args(args),
        );
        agent.wait(|report| number(&report["window"]["ticks"]) >= 1.0);
        agent
    }

    /// Starts a command that ends in `leaktrace serve`, and waits until it listens.
    pub fn spawn(command: &mut Command) -> Self {
        require_root();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().map_or_else(|| panic!("it ended: {said}"), Result::unwrap);
            let place = line.strip_prefix("Serving ").and_then(|rest| rest.split_once("://"));
            if let Some((_, rest)) = place {
                break rest.split('/').next().unwrap().parse().unwrap();
            }
            said += &line;
        };
        // Nobody reads what else it says; it must not wait for that.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it answers to the lines of a request: status, headers and body.
    pub fn ask(&self, request: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("there are headers");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), bytes[end + 4..].to_vec())
    }

    /// What it answers to a request.
    pub fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
    }

    /// What it has to answer with success.
    pub fn text(&self, path: &str) -> String {
        let (status, _, body) = self.get(path);
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Waits for a report that is as it should be.
    pub fn wait(&self, is: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (status, _, body) = self.get("/report.json");
            let report: Value = serde_json::from_slice(&body).unwrap_or_default();
            if status == 200 && is(&report) {
                return report;
            }
            assert!(begun.elapsed() < PATIENCE, "{status}: {}", String::from_utf8_lossy(&body));
            sleep(Duration::from_millis(200));
        }
    }

    /// Its memory.
    pub fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Its open descriptors.
    pub fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Ends it, as one ends a service.
    pub fn end(mut self) {
        // SAFETY: kill takes integers only; the process is our child and not waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
