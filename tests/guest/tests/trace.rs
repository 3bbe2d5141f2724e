//! leaktrace, run on the guest's kernel, and what its report says of the driver's functions.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStderr, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use caps::{CapSet, Capability};
use serde_json::Value;

use leaktrace_tests::driver;

pub const LEAKTRACE: &str = "/guest/leaktrace";

/// The service's description, with what is added to it on this kind of machine.
const UNIT: &[&str] = &[
    include_str!("../../../deploy/systemd/leaktrace.service"),
    #[cfg(target_arch = "aarch64")]
    include_str!("../../../deploy/systemd/arm64.conf"),
];

/// A trace that is going on.
pub struct Trace {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// Where its report goes: a pipe that nobody reads would keep it from ending.
    report: File,
    /// What it said before it began.
    pub said: String,
}

impl Trace {
    /// Starts it, and waits until it traces.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::run(Command::new(LEAKTRACE), args)
    }

    /// The same with the capabilities that the unit of systemd gives it, and no others.
    pub fn start_as_service(args: &[&str]) -> Result<Self> {
        let given: HashSet<Capability> = UNIT
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            .flat_map(str::split_ascii_whitespace)
            .map(|name| name.parse().with_context(|| format!("{name} is no capability")))
            .collect::<Result<_>>()?;
        ensure!(given.len() >= 3, "the unit gives {given:?}");
        let others: Vec<Capability> =
            caps::read(None, CapSet::Bounding)?.into_iter().filter(|one| !given.contains(one)).collect();
        let mut command = Command::new(LEAKTRACE);
        // SAFETY: between fork and exec only calls of prctl are made, with integers.
        unsafe {
            command.pre_exec(move || {
                let mut drops = others.iter().map(|&one| caps::drop(None, CapSet::Bounding, one));
                drops.try_for_each(|result| result.map_err(|_| io::ErrorKind::PermissionDenied.into()))
            });
        }
        Self::run(command, args)
    }

    fn run(mut command: Command, args: &[&str]) -> Result<Self> {
        let report = tempfile::tempfile().context("there is no place for the report")?;
        let mut child = command
            .args([
                "--format",
                "json",
                "--top",
                "10000",
                "--duration",
                "1h",
                "--min-age",
                "1s",
                "--max-objects",
                "200000",
            ])
            .args(args)
            .stdin(Stdio::null())
            .stdout(report.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {LEAKTRACE}"))?;
        let mut stderr = BufReader::new(child.stderr.take().context("it is piped")?);
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.starts_with("Tracing ")) {
            ensure!(stderr.read_line(&mut said)? > 0, "leaktrace ended before tracing: {said}");
        }
        Ok(Self { child, stderr, report, said })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes integers only; the process is our child and not waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Its memory in kB.
    pub fn resident_kb(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("it has no memory")?;
        line.split_ascii_whitespace().nth(1).context("it has no memory")?.parse().context("no number")
    }

    /// Its open descriptors.
    pub fn files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Ends it, and reads its report.
    pub fn stop(self) -> Result<Report> {
        self.signal(libc::SIGTERM);
        self.end(0)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Reads the report of a trace that ends with this exit status.
    pub fn end(mut self, status: i32) -> Result<Report> {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let ended = self.child.wait()?;
        ensure!(ended.code() == Some(status), "leaktrace ended with {ended}: {said}");
        let mut text = String::new();
        self.report.rewind()?;
        self.report.read_to_string(&mut text)?;
        Ok(Report(serde_json::from_str(&text).with_context(|| format!("the report is no JSON: {said}"))?))
    }
}

impl Drop for Trace {
    /// A test that failed must not leave the next one a second tracer.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A report.
pub struct Report(pub Value);

/// What lives of one function of the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Report {
    /// Live objects by the function of the driver that allocated them: the first frame that does
    /// not allocate for others; and by whether they are vmalloc areas, whose descriptions are slab
    /// objects of the same function.
    pub fn live(&self) -> BTreeMap<(String, bool), Live> {
        let mut live: BTreeMap<_, Live> = BTreeMap::new();
        for finding in items(&self.0["findings"]) {
            let area = finding["family"] == "vmalloc";
            let (objects, bytes) = (number(&finding["live"]["objects"]), number(&finding["live"]["bytes"]));
            for stack in items(&finding["stacks"]) {
                let Some(function) = owner(stack) else { continue };
                let share = number(&stack["objects"]);
                let entry = live.entry((function, area)).or_default();
                entry.objects += share;
                entry.bytes += (bytes * share).checked_div(objects).unwrap_or(0);
            }
        }
        live
    }

    /// Live objects of one cache whose stack passes through a function of the driver.
    pub fn passing(&self, function: &str, cache: &str) -> u64 {
        let passes = |stack: &&Value| {
            items(&stack["frames"]).any(|frame| {
                frame["module"] == driver::NAME
                    && frame["symbol"]
                        .as_str()
                        .is_some_and(|symbol| symbol.split('.').next() == Some(function))
            })
        };
        items(&self.0["findings"])
            .filter(|finding| finding["cache"] == cache)
            .flat_map(|finding| items(&finding["stacks"]))
            .filter(passes)
            .map(|stack| number(&stack["objects"]))
            .sum()
    }

    /// Verdicts by function of the driver.
    pub fn verdicts(&self) -> BTreeMap<String, String> {
        items(&self.0["findings"])
            .filter_map(|finding| {
                let function = owner(items(&finding["stacks"]).next()?)?;
                Some((function, finding["verdict"].as_str()?.to_owned()))
            })
            .collect()
    }

    /// Paths that were not seen.
    pub fn blind_spots(&self) -> Vec<String> {
        items(&self.0["coverage"]["blind_spots"])
            .filter_map(|spot| Some(spot["path"].as_str()?.to_owned()))
            .collect()
    }

    /// How a hook was attached; `None` when it was refused or is not there.
    pub fn mechanism(&self, hook: &str) -> Option<&str> {
        let hook = items(&self.0["coverage"]["hooks"]).find(|state| state["name"] == hook)?;
        if hook["attached"] == true { hook["mechanism"].as_str() } else { None }
    }
}

/// Functions of the kernel that stand between the driver and its objects, without the underscores that they begin with and
/// `_noprof`: what the driver calls (tests/guest/driver), and what that calls. Written down from stacks of 6.1 to 7.2, and not
/// leaktrace's own list.
const CALLED: [&str; 21] = [
    "alloc_pages",
    "alloc_pages_bulk",
    "alloc_pages_exact",
    "alloc_skb",
    "alloc_vmap_area",
    "get_free_pages",
    "get_vm_area_node",
    "kmalloc",
    "kmalloc_large",
    "kmalloc_reserve",
    "kmem_cache_alloc_bulk",
    "kmemdup",
    "krealloc",
    "kvmalloc_node",
    "pcpu_alloc",
    "vmalloc",
    "vmalloc_node",
    "vmalloc_node_range",
    "vmap",
    "vmap_alloc_area",
    "vzalloc",
];

/// The function of the driver that a stack begins in, once what allocates for it is passed; `None` for what the kernel keeps
/// for itself, although the driver called it.
pub fn owner(stack: &Value) -> Option<String> {
    for frame in items(&stack["frames"]) {
        // GCC names the parts that it splits off or specialises.
        let symbol = frame["symbol"].as_str()?.split('.').next().unwrap_or_default();
        if frame["module"] == driver::NAME {
            return Some(symbol.to_owned());
        }
        let plain = symbol.trim_start_matches('_');
        if !CALLED.contains(&plain.strip_suffix("_noprof").unwrap_or(plain)) {
            return None;
        }
    }
    None
}

/// Items of an array.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A number, 0 when it is none.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}
