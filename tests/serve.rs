//! `leaktrace serve`: what it answers, to whom, and what clients that mean harm can do to it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, browser::Browser, findings, leaktrace, number, require_root, run, turn};
use serde_json::Value;

const PIPES: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent on a port of its own choice.
struct Agent {
    child: Child,
    address: SocketAddr,
}

impl Agent {
    fn start(args: &[&str]) -> Self {
        require_root();
        let mut child = Command::new(leaktrace())
            .args(["serve", "--listen", "127.0.0.1:0", "--refresh", "500ms", "--min-age", "500ms"])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.ok().filter(|line| line.starts_with("Serving http://")))
            .expect("it says where it listens");
        let address = line["Serving http://".len()..].split('/').next().unwrap().parse().unwrap();
        // Nobody reads what else it says; it must not wait for that.
        thread::spawn(move || lines.for_each(drop));
        let agent = Self { child, address };
        agent.wait(|report| number(&report["window"]["ticks"]) >= 1.0);
        agent
    }

    /// What it answers to the lines of a request: status, headers and body.
    fn ask(&self, request: &str) -> (u16, String, Vec<u8>) {
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

    fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
    }

    fn text(&self, path: &str) -> String {
        let (status, _, body) = self.get(path);
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Waits for a report that is as it should be.
    fn wait(&self, is: impl Fn(&Value) -> bool) -> Value {
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

    fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn end(mut self) {
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

#[test]
fn it_answers_what_is_asked() {
    let _turn = turn();
    let agent = Agent::start(&["--overhead", "100"]);
    let _held = Holder::spawn(PIPES);
    let report = agent.wait(|report| {
        findings(report, "alloc_pipe_info")
            .iter()
            .any(|site| number(&site["live"]["objects"]) >= PIPES as f64)
    });
    assert_eq!(report["schema"], "leaktrace.report/1");
    assert_eq!(agent.text("/healthz"), "ok\n");
    let (_, head, body) = agent.get("/metrics");
    let metrics = String::from_utf8(body).unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(metrics.contains("leaktrace_live_bytes{verdict=") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (_, head, profile) = agent.get("/debug/pprof/heap");
    assert!(profile.starts_with(&[0x1f, 0x8b]) && head.contains("nosniff"), "{head}");
    assert!(agent.text("/flame.svg").contains("alloc_pipe_info"));
    assert_eq!(agent.get("/none").0, 404);
    // The page goes on by itself.
    let mut browser = Browser::start(1_200, 900).expect("there is no Chromium: cargo xtask test installs it");
    browser.open(&format!("http://{}/", agent.address));
    browser.wait("document.querySelectorAll('tr.finding').length > 0");
    let shown = browser.value("document.getElementById('machine').textContent");
    browser.wait(&format!("document.getElementById('machine').textContent !== {shown}"));
    browser.click("#flame-refresh");
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    drop(browser);
    agent.end();
}

#[test]
fn only_who_may_is_answered() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let with_host = |host: &str| {
        agent.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).0
    };
    assert_eq!(with_host("localhost:9843"), 200);
    // A page that has its name led here must not read this.
    assert_eq!(with_host("evil.example:9843"), 403);
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        agent.address
    );
    assert_eq!(agent.ask(&post).0, 405);
    agent.end();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "0123456789abcdef\n").unwrap();
    let name = file.to_string_lossy().into_owned();
    let mut command = Command::new(leaktrace());
    let mut child = command
        .args(["serve", "--listen", "127.0.0.1:0", "--token-file", &name])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with("Serving"))).unwrap();
    let address = line["Serving http://".len()..].split('/').next().unwrap().parse().unwrap();
    let agent = Agent { child, address };
    let with_token = |token: &str| {
        agent.ask(&format!("GET /healthz HTTP/1.1\r\nHost: any\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n")).0
    };
    assert_eq!((with_token("0123456789abcdef"), with_token("0123456789abcdeX")), (200, 401));
    assert_eq!(agent.get("/healthz").0, 401);
    agent.end();
}

#[test]
fn clients_that_mean_harm_do_none() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let before = agent.wait(|_| true);
    let (address, resident, files) = (agent.address, agent.resident_kb(), agent.files());
    // Some say nothing, some say it slowly, some say rubbish, and 64 ask for all there is.
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    let slow = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ".iter().cycle().take(200) {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            sleep(Duration::from_millis(50));
        }
    });
    for rubbish in [b"\x16\x03\x01\x02\x00\x01".to_vec(), vec![0; 4_096], vec![b'A'; 100_000]] {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(&rubbish);
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    let asking: Vec<_> = (0..64)
        .map(|number| {
            thread::spawn(move || {
                let path = ["/", "/metrics", "/report.json", "/debug/pprof/heap", "/flame.svg"][number % 5];
                let mut answered = 0;
                for _ in 0..20 {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let request =
                        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                    let mut bytes = Vec::new();
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let asked =
                        stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut bytes));
                    answered += u32::from(asked.is_ok() && bytes.starts_with(b"HTTP/1.1 200"));
                }
                answered
            })
        })
        .collect();
    let answered: u32 = asking.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(answered >= 64 * 20 * 9 / 10, "{answered} of {} were answered", 64 * 20);
    slow.join().unwrap();
    drop(silent);
    // Tracing went on.
    let ticks = number(&before["window"]["ticks"]) + 3.0;
    agent.wait(|report| number(&report["window"]["ticks"]) >= ticks);
    assert_eq!(agent.text("/healthz"), "ok\n");
    println!("{resident} kB before, {} kB after", agent.resident_kb());
    assert!(agent.resident_kb() < resident + 40_000, "{} kB, {resident} kB before", agent.resident_kb());
    // All connections are closed by now.
    let begun = Instant::now();
    while agent.files() > files + 2 {
        assert!(begun.elapsed() < PATIENCE, "{} files, {files} before", agent.files());
        sleep(Duration::from_millis(200));
    }
    agent.end();
}

#[test]
fn bad_requests_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("short");
    fs::write(&short, "secret\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    for (args, status, word) in [
        (&["serve", "--listen", "0.0.0.0:0"][..], 1, "--token-file"),
        (&["serve", "--listen", "somewhere"], 2, "--listen"),
        (&["serve", "--token-file", &short.to_string_lossy()], 1, "has no token"),
        (&["serve", "--token-file", "/none/such"], 1, "cannot read the token"),
        (&["serve", "--listen", &taken_address], 1, "cannot listen on"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{args:?}: {said}");
    }
}
