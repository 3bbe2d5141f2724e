//! One look at the machine: everything of /proc that a ledger needs, cheap enough for a machine in trouble.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    analysis::triage::{Identity, Look, Process, allocates_stacks, kin::Kin, ledger},
    kernel::{machine::page_bytes, privilege::is_root},
    proc::{
        cgroups::{self, Groups},
        fields::Fields,
        kin,
        mounts::{self, Mount},
        slab,
        slab::SlabCache,
        sockets,
        status::{Found, Reader},
        swap,
        vmallocinfo::{self, Callers},
        zoneinfo,
    },
    report::triage::model::Unreadable,
};

/// Takes looks.
pub(super) struct Looker {
    root: PathBuf,
    reader: Reader,
    kin: kin::Finder,
    started: Instant,
    page_kb: u64,
    /// Who the processes of the last look are.
    pub(super) names: BTreeMap<u32, Identity>,
    /// What could not be read at the last look.
    pub(super) unreadable: Vec<Unreadable>,
    /// What is mounted, at the last look.
    mounts: Vec<Mount>,
    /// /proc/meminfo of the last look.
    pub(super) meminfo: Fields,
    /// The longest look.
    pub(super) slowest_ms: f64,
}

/// Size of a page in kB.
pub(super) fn page_kb() -> u64 {
    page_bytes() / 1_024
}

/// Why something could not be read, without the file's name.
pub(super) fn why(error: &anyhow::Error) -> String {
    let cause = error.root_cause().to_string();
    let cause = cause.split(" (os error").next().unwrap_or_default();
    match cause {
        "Permission denied" if is_root() => {
            "the kernel refuses it to this root, as in a container".to_owned()
        }
        "Permission denied" => "it is for root".to_owned(),
        cause => cause.to_lowercase(),
    }
}

impl Looker {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            reader: Reader::new(root),
            kin: kin::Finder::new(root),
            started: Instant::now(),
            page_kb: page_kb(),
            names: BTreeMap::new(),
            unreadable: Vec::new(),
            mounts: Vec::new(),
            meminfo: Fields::default(),
            slowest_ms: 0.0,
        }
    }

    /// Looks.
    ///
    /// # Errors
    /// When /proc/meminfo or the list of processes cannot be read: nothing can be said without.
    pub(super) fn look(&mut self) -> Result<Look> {
        let begun = Instant::now();
        self.unreadable.clear();
        let processes = self.processes()?;
        let (caches, callers) = (self.caches(), self.callers());
        let kin = self.kin(&processes);
        let mounts = mounts::read(&self.root);
        let mounts =
            self.allow(mounts, "/proc/self/mountinfo", "files in memory and control groups are missing");
        let mounts = mounts.unwrap_or_default();
        let in_memory = mounts::in_memory(&self.root, &mounts);
        self.mounts = mounts;
        // Last, so that the numbers that have to add up are read one after the other.
        let socket_pages = sockets::buffer_pages(&self.root);
        let socket_pages =
            self.allow(socket_pages, "/proc/net/sockstat", "socket buffers count as unaccounted");
        let cpu_list_pages = zoneinfo::free_on_cpu_lists(&self.root);
        let cpu_list_pages =
            self.allow(cpu_list_pages, "/proc/zoneinfo", "free pages on lists of CPUs count as unaccounted");
        let vmstat = Fields::read(&self.root, "proc/vmstat");
        let vmstat =
            self.allow(vmstat, "/proc/vmstat", "compressed swap counts as unaccounted").unwrap_or_default();
        let zram_kb = swap::zram(&self.root).iter().map(|device| device.memory_kb).sum();
        let meminfo = Fields::read(&self.root, "proc/meminfo").context("nothing can be said without it")?;
        let (stacks, used) =
            (meminfo.get("KernelStack").unwrap_or(0), meminfo.get("VmallocUsed").unwrap_or(0));
        let (total_kb, levels) = ledger::levels(&ledger::Sources {
            meminfo: &meminfo,
            vmstat: &vmstat,
            cpu_list_pages: cpu_list_pages.unwrap_or(0),
            socket_pages: socket_pages.unwrap_or(0),
            zram_kb,
            stacks_in_vmalloc: callers.as_ref().map_or(used >= stacks, has_stacks),
            page_kb: self.page_kb,
        });
        let field = |name: &str| meminfo.get(name).unwrap_or(0);
        let look = Look {
            at_s: self.started.elapsed().as_secs_f64(),
            total_kb,
            available_kb: meminfo.get("MemAvailable").unwrap_or_else(|| field("MemFree")),
            swap_kb: (field("SwapTotal"), field("SwapTotal").saturating_sub(field("SwapFree"))),
            levels,
            caches,
            callers,
            mounts: in_memory,
            groups: Groups::default(),
            processes,
            kin,
        };
        self.meminfo = meminfo;
        self.slowest_ms = self.slowest_ms.max(begun.elapsed().as_secs_f64() * 1e3);
        Ok(look)
    }

    /// Reads the control groups, for the first look and for the last: the kernel adds up the counters of all CPUs
    /// for each.
    pub(super) fn groups(&self) -> Groups {
        cgroups::read(&self.root, &self.mounts)
    }

    /// What was read, or nothing and a note of why.
    fn allow<T>(&mut self, result: Result<T>, what: &str, effect: &str) -> Option<T> {
        result
            .map_err(|error| {
                self.unreadable.push(Unreadable {
                    what: what.into(),
                    why: why(&error),
                    effect: effect.into(),
                });
            })
            .ok()
    }

    fn processes(&mut self) -> Result<Vec<Process>> {
        let read = self.reader.read()?;
        let total = read.found.len();
        for (hidden, what, effect) in [
            (read.hidden, "/proc/PID/status", "their memory is missing"),
            (read.hidden_fds, "/proc/PID/fd", "their open files are missing"),
        ] {
            if hidden > 0 {
                self.unreadable.push(Unreadable {
                    what: format!("{what} of {hidden} of {total} processes"),
                    why: "they are for their owner and root".into(),
                    effect: effect.into(),
                });
            }
        }
        let own = std::process::id();
        self.names.clear();
        let mut processes = Vec::with_capacity(total);
        // What we do ourselves is no finding.
        for found in read.found.into_iter().filter(|found| found.pid != own) {
            processes.push(process(&found));
            let status = found.status;
            let identity =
                Identity { comm: status.comm, uid: status.uid, ppid: status.ppid, state: status.state };
            self.names.insert(found.pid, identity);
        }
        Ok(processes)
    }

    /// Other leaktraces: what they take is no leak.
    fn kin(&mut self, processes: &[Process]) -> Vec<Kin> {
        let (finder, names) = (&mut self.kin, &self.names);
        finder.keep(|pid| names.contains_key(&pid));
        let pids = processes.iter().map(|process| process.pid);
        let kin: Vec<u32> =
            pids.filter(|&pid| names.get(&pid).is_some_and(|name| finder.is_one(pid, &name.comm))).collect();
        kin.into_iter().map(|pid| Kin { pid, maps: finder.maps(pid).ok() }).collect()
    }

    fn caches(&mut self) -> Option<BTreeMap<String, SlabCache>> {
        let caches = slab::read_slabinfo(&self.root).or_else(|error| {
            // Masked or not built in; the same numbers are in a file each.
            slab::read_sysfs(&self.root).map_err(|_| error)
        });
        self.allow(caches, "/proc/slabinfo", "slab memory is known as a whole only, not by cache")
    }

    fn callers(&mut self) -> Option<Callers> {
        let callers = vmallocinfo::read(&self.root);
        self.allow(callers, "/proc/vmallocinfo", "vmalloc memory is known as a whole only, not by caller")
    }
}

fn has_stacks(callers: &Callers) -> bool {
    callers.iter().any(|(caller, areas)| areas.pages > 0 && allocates_stacks(caller))
}

/// What is kept of a process at each look.
pub(super) fn process(found: &Found) -> Process {
    let status = &found.status;
    let small = |kb: u64| u32::try_from(kb).unwrap_or(u32::MAX);
    Process {
        pid: found.pid,
        anon_kb: small(status.anon_kb.saturating_add(status.swap_kb)),
        file_kb: small(status.file_kb),
        shmem_kb: small(status.shmem_kb),
        swap_kb: small(status.swap_kb),
        page_tables_kb: small(status.page_tables_kb),
        vsz_kb: status.vsz_kb,
        threads: small(status.threads),
        fds: found.fds.map(small),
    }
}
