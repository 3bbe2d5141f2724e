//! Findings with one cause: what a process keeps by one system call is in several slab caches.

use serde::{Deserialize, Serialize};

use super::{
    escape,
    model::{Amount, Finding},
};
use crate::units;

/// Findings that grow together, because one process keeps what one system call of its allocates.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Group {
    /// Ranks of the findings, the leading one first.
    pub findings: Vec<usize>,
    /// Name of the process.
    pub comm: String,
    /// Its id.
    pub pid: u32,
    /// The system call, without prefix; empty where no stack tells it.
    pub call: String,
    /// What it makes, in the plural, where that has a name.
    pub keeps: Option<String>,
    /// How many slab caches, or other kinds of blocks.
    pub caches: usize,
    /// What is alive.
    pub live: Amount,
    /// Growth of all of them.
    pub bytes_per_s: f64,
}

/// Of a finding's objects one process has to have allocated so many.
const MOST: f64 = 0.8;
/// Two normalised curves of survivors may be so far apart at most.
const APART: f64 = 0.15;
/// Looks that a curve has to have to be compared.
const FEWEST_POINTS: usize = 4;
/// Where curves are compared: at so many moments.
const MOMENTS: usize = 32;

/// What system calls make, in the plural, and whether it is a file descriptor that is kept open.
const MAKES: [(&str, &str, bool); 27] = [
    ("pipe", "pipes", true),
    ("pipe2", "pipes", true),
    ("open", "files", true),
    ("openat", "files", true),
    ("openat2", "files", true),
    ("creat", "files", true),
    ("socket", "sockets", true),
    ("socketpair", "sockets", true),
    ("accept", "connections", true),
    ("accept4", "connections", true),
    ("epoll_create", "epoll instances", true),
    ("epoll_create1", "epoll instances", true),
    ("epoll_ctl", "files in epoll instances", false),
    ("eventfd", "eventfds", true),
    ("eventfd2", "eventfds", true),
    ("timerfd_create", "timerfds", true),
    ("signalfd4", "signalfds", true),
    ("inotify_init1", "inotify instances", true),
    ("inotify_add_watch", "inotify watches", false),
    ("memfd_create", "memory files", true),
    ("perf_event_open", "perf events", true),
    ("io_uring_setup", "io_uring instances", true),
    ("timer_create", "timers", false),
    ("shmget", "shared memory segments", false),
    ("mmap", "mappings", false),
    ("add_key", "keys", false),
    ("bpf", "BPF objects", true),
];

impl Group {
    /// The process, as it is named in a list.
    pub fn who(&self) -> String {
        format!("{} ({})", escape(&self.comm), self.pid)
    }

    /// What it keeps, in words that follow its name.
    pub fn what(&self) -> String {
        match (&self.keeps, self.call.as_str()) {
            (Some(keeps), call) if MAKES.iter().any(|(name, _, open)| *name == call && *open) => {
                format!("keeps {} open", escape(keeps))
            }
            (Some(keeps), _) => format!("keeps {}", escape(keeps)),
            (None, "") => "keeps what it allocates".to_owned(),
            (None, call) => format!("keeps what {}() allocates", escape(call)),
        }
    }

    /// How many kinds of blocks it takes.
    pub fn kinds(&self) -> String {
        units::plural(self.caches, "cache")
    }
}

/// What a finding has in common with others of its cause.
struct Cause<'a> {
    comm: &'a str,
    pid: u32,
    call: Option<&'a str>,
    curve: Vec<f64>,
}

/// Groups of two or more suspects, in the order of their leading findings. Only what a process may hold is grouped: what a
/// module takes is summed up by the module.
pub fn groups(findings: &[Finding]) -> Vec<Group> {
    let suspects = findings.iter().filter(|finding| {
        finding.verdict == "suspect" && !finding.known && !finding.is_module && finding.growth.rate() > 0.0
    });
    let mut causes: Vec<(Cause<'_>, Vec<&Finding>)> = Vec::new();
    for finding in suspects {
        let Some(cause) = cause(finding) else { continue };
        match causes.iter_mut().find(|(other, _)| other.is(&cause)) {
            Some((known, members)) => {
                known.call = known.call.or(cause.call);
                members.push(finding);
            }
            None => causes.push((cause, vec![finding])),
        }
    }
    causes
        .iter()
        .filter(|(_, members)| members.len() > 1)
        .map(|(cause, members)| group(cause, members))
        .collect()
}

fn group(cause: &Cause<'_>, members: &[&Finding]) -> Group {
    let mut caches: Vec<&str> = members.iter().map(|finding| finding.cache.as_str()).collect();
    caches.sort_unstable();
    caches.dedup();
    let call = cause.call.unwrap_or_default();
    let sum = |of: &dyn Fn(&Finding) -> u64| members.iter().map(|finding| of(finding)).sum();
    Group {
        findings: members.iter().map(|finding| finding.rank).collect(),
        comm: cause.comm.to_owned(),
        pid: cause.pid,
        call: call.to_owned(),
        keeps: MAKES.iter().find(|(name, ..)| *name == call).map(|(_, makes, _)| (*makes).to_owned()),
        caches: caches.len(),
        live: Amount {
            objects: sum(&|finding| finding.live.objects),
            bytes: sum(&|finding| finding.live.bytes),
        },
        bytes_per_s: members.iter().map(|finding| finding.growth.rate()).sum(),
    }
}

fn cause(finding: &Finding) -> Option<Cause<'_>> {
    let all: u64 = finding.tasks.iter().map(|task| task.objects).sum();
    let first = finding.tasks.iter().max_by_key(|task| task.objects)?;
    if first.pid == 0 || (first.objects as f64) < all as f64 * MOST {
        return None;
    }
    let frames = finding.stacks.first().map(|stack| stack.frames.as_slice()).unwrap_or_default();
    let call = frames.iter().rev().find_map(|frame| system_call(frame.symbol.as_deref()?));
    Some(Cause { comm: &first.comm, pid: first.pid, call, curve: curve(&finding.growth.points)? })
}

impl Cause<'_> {
    fn is(&self, other: &Self) -> bool {
        let same_call = match (self.call, other.call) {
            (Some(a), Some(b)) => a == b,
            // Of few objects a stack is captured where stacks are scarce.
            _ => true,
        };
        self.pid == other.pid
            && same_call
            && self.curve.iter().zip(&other.curve).all(|(a, b)| (a - b).abs() <= APART)
    }
}

/// The name of the system call whose function that is (`arch/*/include/asm/syscall_wrapper.h`).
fn system_call(symbol: &str) -> Option<&str> {
    ["__x64_sys_", "__ia32_sys_", "__arm64_sys_", "__riscv_sys_", "__s390x_sys_", "__se_sys_", "__do_sys_"]
        .iter()
        .find_map(|prefix| symbol.strip_prefix(prefix))
        .map(|name| name.split('.').next().unwrap_or(name))
}

/// Survivors at moments that are evenly spread over the time, as parts of the last number.
fn curve(points: &[(f32, f32)]) -> Option<Vec<f64>> {
    let (first, last) = (points.first()?, points.last()?);
    if points.len() < FEWEST_POINTS || last.1 <= 0.0 {
        return None;
    }
    let at = |moment: f32| {
        let next = points.partition_point(|point| point.0 < moment).clamp(1, points.len() - 1);
        let (before, after) = (points[next - 1], points[next]);
        let part = ((moment - before.0) / (after.0 - before.0).max(f32::EPSILON)).clamp(0.0, 1.0);
        before.1 + (after.1 - before.1) * part
    };
    let span = last.0 - first.0;
    Some(
        (0..=MOMENTS)
            .map(|index| f64::from(at(first.0 + span * index as f32 / MOMENTS as f32) / last.1))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        model::{Frame, Task},
        sample,
    };

    /// A suspect that a process allocates by a system call, with a curve.
    fn suspect(rank: usize, cache: &str, pid: u32, call: &str, curve: impl Fn(f32) -> f32) -> Finding {
        let mut finding = sample::finding("suspect");
        (finding.rank, finding.is_module) = (rank, false);
        cache.clone_into(&mut finding.cache);
        finding.tasks = vec![
            Task { comm: "pipeleaker".to_owned(), pid, objects: 5_000 },
            Task { comm: "sshd".to_owned(), pid: 7, objects: 102 },
        ];
        let frame = |symbol: &str| Frame { symbol: Some(symbol.to_owned()), ..Frame::default() };
        finding.stacks[0].frames =
            ["alloc_pipe_info", call, "do_syscall_64", "entry_SYSCALL_64_after_hwframe"].map(frame).to_vec();
        finding.growth.points =
            (0_u16..60).map(f32::from).map(|second| (second, curve(second) * rank as f32)).collect();
        finding
    }

    #[test]
    fn what_a_process_keeps_by_one_call_is_one_cause() {
        let steady = |second: f32| second * 1_000.0;
        let findings = [
            suspect(1, "kmalloc-cg-1k", 391, "__x64_sys_pipe2", steady),
            suspect(2, "kmalloc-cg-192", 391, "__x64_sys_pipe2", steady),
            // Another call, another process, another time.
            suspect(3, "filp", 391, "__x64_sys_openat", steady),
            suspect(4, "filp", 392, "__x64_sys_pipe2", steady),
            suspect(
                5,
                "dentry",
                391,
                "__x64_sys_pipe2",
                |second| if second < 40.0 { 1.0 } else { second * 9.0 },
            ),
            // Where no stack was captured, process and time tell.
            Finding { stacks: Vec::new(), ..suspect(6, "kmalloc-cg-192", 391, "", steady) },
        ];
        let groups = groups(&findings);
        assert_eq!(groups.len(), 1, "{groups:?}");
        let group = &groups[0];
        assert_eq!((group.findings.as_slice(), group.caches), (&[1, 2, 6][..], 2));
        assert_eq!((group.who(), group.what()), ("pipeleaker (391)".into(), "keeps pipes open".into()));
        assert!((group.bytes_per_s - 3.0 * 22_300.0).abs() < 1e-6 && group.live.objects == 3 * 5_102);
    }

    #[test]
    fn modules_leaks_and_crowds_are_no_group() {
        let steady = |second: f32| second * 1_000.0;
        let two =
            || vec![1, 2].into_iter().map(|rank| suspect(rank, "filp", 391, "__x64_sys_accept4", steady));
        assert_eq!(groups(&two().collect::<Vec<_>>())[0].what(), "keeps connections open");
        let none = |change: &dyn Fn(&mut Finding)| {
            let mut findings: Vec<Finding> = two().collect();
            change(&mut findings[1]);
            assert_eq!(groups(&findings), []);
        };
        none(&|finding| finding.is_module = true);
        none(&|finding| finding.known = true);
        none(&|finding| finding.verdict = "leak".into());
        none(&|finding| finding.tasks[1].objects = 5_000);
        none(&|finding| finding.tasks.clear());
        none(&|finding| finding.growth.points.truncate(3));
        none(&|finding| finding.growth.shape = "plateau".into());
    }

    #[test]
    fn calls_have_names() {
        assert_eq!(system_call("__x64_sys_pipe2"), Some("pipe2"));
        assert_eq!(system_call("__se_sys_bpf.constprop.0"), Some("bpf"));
        assert_eq!(system_call("do_pipe2"), None);
        let what = |call: &str| {
            let keeps =
                MAKES.iter().find(|(name, ..)| *name == call).map(|(_, makes, _)| (*makes).to_owned());
            Group { call: call.to_owned(), keeps, ..Group::default() }.what()
        };
        assert_eq!(what("inotify_add_watch"), "keeps inotify watches");
        assert_eq!(what("ioctl"), "keeps what ioctl() allocates");
        assert_eq!(what(""), "keeps what it allocates");
    }
}
