//! What is in deploy/, against a running agent: alerts, dashboard, manifest.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{leaktrace, turn};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

mod agent;

use agent::{Agent, PATIENCE};

/// Where `cargo xtask test` has put Prometheus, unless it is in PATH.
const PROMETHEUS: &str = "LEAKTRACE_PROMETHEUS";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn tool(name: &str) -> Command {
    Command::new(
        std::env::var_os(PROMETHEUS).map_or_else(|| name.into(), |place| Path::new(&place).join(name)),
    )
}

/// Runs it; what it says.
fn check(command: &mut Command) -> String {
    let output = command.output().expect("there is no Prometheus: cargo xtask test brings it");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn alerts_are_right() {
    let place = deploy().join("prometheus");
    check(tool("promtool").args(["check", "rules", "leaktrace.rules.yml"]).current_dir(&place));
    check(tool("promtool").args(["test", "rules", "leaktrace.rules.test.yml"]).current_dir(&place));
}

/// Expressions of the dashboard, for any machine.
fn expressions() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_slice(&fs::read(deploy().join("grafana/leaktrace.json")).unwrap()).unwrap();
    dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap().replace("$instance", ".*"))
        .collect()
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real Prometheus scrapes the agent, has the alerts, and answers all that the dashboard asks.
#[test]
fn prometheus_and_the_dashboard_understand_the_metrics() {
    let _turn = turn();
    let agent = Agent::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let scrape = fs::read_to_string(deploy().join("prometheus/scrape.yml")).unwrap();
    // Its second job needs a token and a certificate that are somewhere else.
    let own = scrape.split("  - job_name: leaktrace-fleet").next().unwrap();
    let config = format!(
        "global:\n  evaluation_interval: 1s\nrule_files:\n  - {}\n{}",
        deploy().join("prometheus/leaktrace.rules.yml").display(),
        own.replace("127.0.0.1:9843", &agent.address.to_string()).replace("15s", "1s")
    );
    let file = directory.path().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    check(tool("promtool").args(["check", "config"]).arg(&file));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _prometheus = Running(
        tool("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let ask = |path: &str, query: &str| -> Value {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "10", "--get", "--data-urlencode", &format!("query={query}")])
            .arg(format!("http://127.0.0.1:{port}/api/v1/{path}"))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let begun = Instant::now();
    while ask("query", "up{job=\"leaktrace\"} == 1")["data"]["result"].as_array().is_none_or(Vec::is_empty) {
        assert!(begun.elapsed() < PATIENCE, "it is not scraped: {}", ask("targets", ""));
        sleep(Duration::from_millis(200));
    }
    // What is told to those that know the older format only is as it should be, too.
    let file = directory.path().join("metrics");
    fs::write(&file, agent.text("/metrics")).unwrap();
    check(tool("promtool").args(["check", "metrics"]).stdin(File::open(&file).unwrap()));
    let mut answered = 0;
    for expression in expressions() {
        let answer = ask("query", &expression);
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answered += u32::from(!answer["data"]["result"].as_array().unwrap().is_empty());
    }
    // Some have nothing to tell without a leak.
    assert!(answered >= 8, "only {answered} of {} have an answer", expressions().len());
    let groups = ask("rules", "");
    let rules = groups["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 5);
    assert!(rules.iter().all(|rule| rule["lastError"].is_null()), "{groups}");
    agent.end();
}

fn strings(yaml: &Yaml) -> Vec<&str> {
    yaml.as_vec().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

/// What it is asked, with its token.
const ASK: &str = "GET /report.json HTTP/1.1\r\nHost: any\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\
    Connection: close\r\n\r\n";

/// With the arguments and the rights of the manifest, and nothing else, the agent works.
#[test]
fn the_manifest_starts_an_agent() {
    let _turn = turn();
    let text = fs::read_to_string(deploy().join("kubernetes/daemonset.yaml")).unwrap();
    let manifest = &YamlLoader::load_from_str(&text).unwrap()[0];
    let pod = &manifest["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["hostPID"].as_bool(), Some(true));
    let version = container["image"].as_str().unwrap().strip_prefix("leaktrace:").unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let rights = &container["securityContext"];
    assert_eq!(strings(&rights["capabilities"]["drop"]), ["ALL"]);
    let added: Vec<String> = strings(&rights["capabilities"]["add"])
        .iter()
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    let port = container["ports"][0]["containerPort"].as_i64().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let args: Vec<String> = strings(&container["args"])
        .iter()
        .map(|arg| match arg.split_once('=') {
            Some(("--listen", address)) => {
                assert!(address.ends_with(&format!(":{port}")), "{address}");
                "--listen=127.0.0.1:0".to_owned()
            }
            Some(("--token-file", _)) => format!("--token-file={}", token.display()),
            _ => (*arg).to_owned(),
        })
        .collect();
    let agent = Agent::spawn(
        Command::new("setpriv")
            .args(["--no-new-privs", &format!("--bounding-set=-all{}", added.concat()), "--inh-caps=-all"])
            .arg(leaktrace())
            .args(args),
    );
    for probe in ["readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(agent.text(path), "ok\n", "{probe}");
    }
    let begun = Instant::now();
    loop {
        let (status, _, body) = agent.ask(ASK);
        if status == 200 {
            let report: Value = serde_json::from_slice(&body).unwrap();
            let named = report["findings"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|finding| finding["call_site"]["symbol"].is_string());
            assert!(named.count() > 3, "without names: {report}");
            let spots = report["coverage"]["blind_spots"].as_array().unwrap();
            let hidden = ["objects in memory", "/proc/slabinfo", "/proc/kallsyms"];
            assert!(!spots.iter().any(|spot| hidden.iter().any(|path| spot["path"] == *path)), "{spots:?}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}: {}", String::from_utf8_lossy(&body));
        sleep(Duration::from_millis(200));
    }
    agent.end();
}
