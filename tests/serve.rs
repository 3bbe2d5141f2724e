//! `leaktrace serve`: what it answers, to whom, and what clients that mean harm can do to it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, browser::Browser, findings, leaktrace, number, refused, run, turn};

mod agent;
mod certificates;

use agent::{Agent, PATIENCE};
use certificates::certificates;

const PIPES: u64 = 1_000;

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
    let (_, head, body) = agent.ask(&format!(
        "GET /metrics HTTP/1.1\r\nHost: {}\r\nAccept: application/openmetrics-text;version=1.0.0\r\nConnection: close\r\n\r\n",
        agent.address
    ));
    let metrics = String::from_utf8(body).unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(metrics.contains("leaktrace_live_bytes{verdict=") && metrics.ends_with("# EOF\n"), "{metrics}");
    let (_, head, body) = agent.get("/metrics");
    assert!(head.contains("text/plain; version=0.0.4") && !body.ends_with(b"# EOF\n"), "{head}");
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
    let agent = Agent::spawn(command.args(["serve", "--listen", "127.0.0.1:0", "--token-file", &name]));
    let with_token = |token: &str| {
        agent.ask(&format!("GET /metrics HTTP/1.1\r\nHost: any\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n")).0
    };
    // The first report may not be there yet.
    assert_eq!(with_token("0123456789abcdeX"), 401);
    assert!([200, 503].contains(&with_token("0123456789abcdef")));
    assert_eq!(agent.get("/report.json").0, 401);
    // Whether it works is no secret.
    assert_eq!(agent.get("/healthz").0, 200);
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

/// Who may not read /proc/kallsyms may connect from this machine.
#[test]
fn without_a_token_no_address_is_told() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let report = agent.text("/report.json");
    assert!(report.contains("\"symbol\":\""), "{report}");
    for kernel in ["\"0xffff", "ffff8"] {
        assert!(!report.contains(kernel), "{:?}", report.split('{').find(|part| part.contains(kernel)));
    }
    agent.end();
}

#[test]
fn idle_connections_shut_nobody_out() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(agent.address).unwrap()).collect();
    // Nobody waits until those are given up for themselves, which takes longer than all of these.
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(agent.text("/healthz"), "ok\n");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    // 72 made room for others like them, and one for each of who asked at least once.
    let begun = Instant::now();
    loop {
        let metrics = agent.text("/metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("leaktrace_turned_away_connections_total{why=\"idle\"} "));
        let dropped: u32 = line.expect("they are counted").parse().unwrap();
        assert!(metrics.contains("# HELP leaktrace_turned_away_connections_total "), "{metrics}");
        if dropped > 72 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{dropped} were dropped");
        sleep(Duration::from_millis(200));
    }
    drop(idle);
    agent.end();
}

#[test]
fn bad_requests_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("short");
    fs::write(&short, "secret\n").unwrap();
    certificates(directory.path());
    let tls = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    for (args, status, word) in [
        (&["serve", "--listen", "0.0.0.0:0"][..], 1, "--token-file"),
        (&["serve", "--listen", "somewhere"], 2, "--listen"),
        (&["serve", "--token-file", &short.to_string_lossy()], 1, "has no token"),
        (&["serve", "--token-file", "/none/such"], 1, "cannot read the token"),
        (&["serve", "--listen", &taken_address], 1, "cannot listen on"),
        (&["serve", "--tls-cert", "x"], 2, "--tls-key"),
        (&["serve", "--tls-client-ca", "x"], 2, "--tls-cert"),
        (
            &["serve", "--tls-cert", "/none/such", "--tls-key", "x"],
            1,
            "cannot read certificates from /none/such",
        ),
        (&["serve", "--tls-cert", &tls("short"), "--tls-key", &tls("agent.key")], 1, "there is none"),
        (
            &["serve", "--tls-cert", &tls("agent.crt"), "--tls-key", &tls("agent.crt")],
            1,
            "cannot read a key from",
        ),
        (
            &["serve", "--tls-cert", &tls("agent.crt"), "--tls-key", &tls("client.pem")],
            1,
            "do not belong together",
        ),
    ] {
        refused(&run(args), status, &[word]);
    }
}

/// Asks as curl does; what it says and whether it was answered.
fn curl(args: &[&str]) -> (bool, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .args(args)
        .output()
        .expect("there is no curl: cargo xtask test installs it");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

#[test]
fn it_speaks_tls() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let place = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let agent = Agent::spawn(
        Command::new(leaktrace()).args(["serve", "--listen", "127.0.0.1:0", "--refresh", "500ms"]).args([
            "--tls-cert",
            &place("agent.crt"),
            "--tls-key",
            &place("agent.key"),
            "--tls-client-ca",
            &place("clients.crt"),
        ]),
    );
    let url = format!("https://localhost:{}/healthz", agent.address.port());
    let (ca, client) = (place("ca.crt"), place("client.pem"));
    let known = ["--cacert", &ca, "--cert", &client, &url];
    assert_eq!(curl(&known), (true, "ok\n".to_owned()));
    // Neither without a certificate, nor with one that somebody else has signed, nor without TLS.
    assert!(!curl(&["--cacert", &ca, &url]).0);
    let strangers = tempfile::tempdir().unwrap();
    certificates(strangers.path());
    let stranger = strangers.path().join("client.pem");
    assert!(!curl(&["--cacert", &ca, "--cert", &stranger.to_string_lossy(), &url]).0);
    assert!(!curl(&[&url.replace("https", "http")]).0);
    // What is renewed is used; what is broken is not.
    fs::write(directory.path().join("agent.crt"), "nonsense").unwrap();
    sleep(Duration::from_secs(3));
    assert!(curl(&known).0);
    renew(strangers.path(), directory.path());
    let begun = Instant::now();
    let new_ca = strangers.path().join("ca.crt").to_string_lossy().into_owned();
    while !curl(&["--cacert", &new_ca, "--cert", &client, &url]).0 {
        assert!(begun.elapsed() < PATIENCE, "the renewed certificate is not used");
        sleep(Duration::from_millis(300));
    }
    agent.end();
}

fn renew(from: &Path, to: &Path) {
    for name in ["agent.key", "agent.crt"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[test]
fn it_gives_up_all_it_may() {
    let _turn = turn();
    let agent = Agent::start(&["--overhead", "100"]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    let caps: Vec<&str> = status.lines().filter(|line| line.starts_with("Cap")).collect();
    assert!(caps.len() >= 4 && caps.iter().all(|line| line.ends_with("\t0000000000000000")), "{caps:?}");
    assert!(status.contains("NoNewPrivs:\t1"));
    // It sees as much as before: names, the cache's own count, and what may hold objects.
    let _held = Holder::spawn(PIPES);
    let report = agent.wait(|report| {
        findings(report, "alloc_pipe_info")
            .iter()
            .any(|site| number(&site["live"]["objects"]) >= PIPES as f64)
    });
    let spots: Vec<&str> = report["coverage"]["blind_spots"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|spot| spot["path"].as_str())
        .collect();
    for hidden in ["/proc/slabinfo", "/proc/kallsyms", "objects in memory", "processes"] {
        assert!(!spots.contains(&hidden), "{spots:?}");
    }
    assert!(report["overhead"]["cpu_percent"].as_f64().is_some(), "{}", report["overhead"]);
    agent.end();
}

#[test]
fn its_service_manager_is_told() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(leaktrace());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--refresh", "500ms"])
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "900000");
    let agent = Agent::spawn(&mut command);
    let told = |wanted: &dyn Fn(&str) -> bool| {
        let begun = Instant::now();
        let mut buffer = [0; 4_096];
        loop {
            let bytes = manager.recv(&mut buffer).expect("it tells");
            let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            if wanted(&text) {
                return text;
            }
            assert!(begun.elapsed() < PATIENCE);
        }
    };
    told(&|text| text.starts_with("READY=1") && text.contains("STATUS=Tracing"));
    for _ in 0..3 {
        told(&|text| text.contains("WATCHDOG=1"));
    }
    told(&|text| text.contains("STATUS=") && text.contains("leak"));
    // SAFETY: kill takes integers only; the process is our child and not waited for.
    unsafe { libc::kill(agent.id() as i32, libc::SIGTERM) };
    told(&|text| text.contains("STOPPING=1"));
    agent.end();
}
