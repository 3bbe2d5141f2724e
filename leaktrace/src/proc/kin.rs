//! Other leaktraces: which processes they are, and what their BPF maps take of the kernel's memory.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Open files that are looked at, at most.
const LIMIT: usize = 10_000;
/// The name of the program.
const NAME: &str = "leaktrace";

/// Memory of a process's BPF maps in kB, by who allocates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Arrays, which `array_map_alloc` takes.
    pub arrays_kb: u64,
    /// Hash tables, which `htab_map_alloc` takes.
    pub tables_kb: u64,
    /// Per-CPU memory of both.
    pub percpu_kb: u64,
    /// All others.
    pub others_kb: u64,
}

impl Maps {
    /// All of them.
    pub fn all_kb(&self) -> u64 {
        self.arrays_kb + self.tables_kb + self.percpu_kb + self.others_kb
    }
}

/// Tells leaktraces from other processes.
pub struct Finder {
    proc: PathBuf,
    /// Device and inode of this program.
    own: Option<(u64, u64)>,
    /// What is known of processes: their names then, because another program has another, and whether they are one.
    known: HashMap<u32, (String, bool)>,
}

impl Finder {
    /// A finder in `proc` below `root`.
    pub fn new(root: &Path) -> Self {
        let proc = root.join("proc");
        Self { own: file(&proc.join("self/exe")), proc, known: HashMap::new() }
    }

    /// Whether a process is one: it runs this very file, a file of its name, or one that has this in its name and BPF maps.
    /// Of a process whose program nobody may see the name decides.
    pub fn is_one(&mut self, pid: u32, comm: &str) -> bool {
        match self.known.get(&pid) {
            Some((name, is)) if name == comm => *is,
            _ => {
                let is = self.decide(pid, comm);
                self.known.insert(pid, (comm.to_owned(), is));
                is
            }
        }
    }

    fn decide(&self, pid: u32, comm: &str) -> bool {
        let exe = self.proc.join(pid.to_string()).join("exe");
        if self.own.is_some() && file(&exe) == self.own {
            return true;
        }
        match fs::read_link(&exe) {
            Ok(path) => {
                let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
                let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
                name == NAME || (name.contains(NAME) && self.maps(pid).is_ok_and(|maps| maps.all_kb() > 0))
            }
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied && comm == NAME,
        }
    }

    /// Forgets those that are gone.
    pub fn keep(&mut self, is_there: impl Fn(u32) -> bool) {
        self.known.retain(|pid, _| is_there(*pid));
    }

    /// What the BPF maps of a process take (`bpf_map_show_fdinfo` in `kernel/bpf/syscall.c`).
    ///
    /// # Errors
    /// When its open files cannot be read: they are for the owner and root.
    pub fn maps(&self, pid: u32) -> io::Result<Maps> {
        let process = self.proc.join(pid.to_string());
        let mut maps = Maps::default();
        // A map may be open twice.
        let mut seen = std::collections::HashSet::new();
        for entry in fs::read_dir(process.join("fd"))?.take(LIMIT).flatten() {
            if !fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:bpf-map") {
                continue;
            }
            let Ok(text) = fs::read_to_string(process.join("fdinfo").join(entry.file_name())) else {
                continue;
            };
            if let Some((id, kind, bytes)) = parse(&text)
                && (id == 0 || seen.insert(id))
            {
                add(&mut maps, kind, bytes / 1_024);
            }
        }
        Ok(maps)
    }
}

/// Device and inode of what a path leads to.
fn file(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A map's id (0 where the kernel does not say), type and bytes.
fn parse(fdinfo: &str) -> Option<(u64, u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
    };
    Some((field("map_id").unwrap_or(0), field("map_type")?, field("memlock")?))
}

/// By type (`enum bpf_map_type` in `include/uapi/linux/bpf.h`).
fn add(maps: &mut Maps, kind: u64, kb: u64) {
    let sum = match kind {
        2 => &mut maps.arrays_kb,
        1 | 9 => &mut maps.tables_kb,
        5 | 6 | 10 => &mut maps.percpu_kb,
        _ => &mut maps.others_kb,
    };
    *sum = sum.saturating_add(kb);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    /// A process with an open map each of two types, one of them open twice.
    fn process(root: &Path, pid: u32, exe: &Path) {
        let process = root.join("proc").join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(process.join("fdinfo")).unwrap();
        symlink(exe, process.join("exe")).unwrap();
        let maps = [(3, 2, 7, 67_112_960), (4, 9, 8, 721_792), (5, 2, 7, 67_112_960)];
        for (fd, kind, id, memlock) in maps {
            symlink("anon_inode:bpf-map", process.join("fd").join(fd.to_string())).unwrap();
            let text =
                format!("pos:\t0\nflags:\t02000002\nmap_type:\t{kind}\nmemlock:\t{memlock}\nmap_id:\t{id}\n");
            fs::write(process.join("fdinfo").join(fd.to_string()), text).unwrap();
        }
        symlink("/dev/null", process.join("fd/6")).unwrap();
    }

    #[test]
    fn leaktraces_are_known_by_their_program_and_not_by_the_name_they_give_themselves() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let (own, others) = (root.join("lt"), root.join("other"));
        for path in [&own, &others] {
            fs::write(path, "").unwrap();
        }
        process(root, 1, &own);
        fs::create_dir_all(root.join("proc/self")).unwrap();
        symlink(&own, root.join("proc/self/exe")).unwrap();
        process(root, 2, Path::new("/usr/bin/leaktrace (deleted)"));
        process(root, 3, Path::new("/tmp/old-leaktrace-0.1"));
        process(root, 4, &others);
        let mut finder = Finder::new(root);
        let is: Vec<bool> = (1..=4).map(|pid| finder.is_one(pid, "leaktrace")).collect();
        assert_eq!(is, [true, true, true, false]);
        // Its name is like that, but it traces nothing.
        fs::remove_dir_all(root.join("proc/3/fd")).unwrap();
        assert!(finder.is_one(3, "leaktrace") && !finder.is_one(3, "another"));
        // Who has become another program has another name.
        fs::remove_file(root.join("proc/4/exe")).unwrap();
        symlink(&own, root.join("proc/4/exe")).unwrap();
        assert!(!finder.is_one(4, "leaktrace") && finder.is_one(4, "lt"));
        finder.keep(|pid| pid != 4);
        assert!(finder.is_one(4, "leaktrace"));
        let maps = finder.maps(1).unwrap();
        assert_eq!(maps, Maps { arrays_kb: 65_540, tables_kb: 704, percpu_kb: 0, others_kb: 0 });
        assert!(finder.maps(99).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(map_(type|id)|memlock)?:?\\PC{0,40}\n(memlock:\t[0-9]{1,25})?") {
            let _ = parse(&text);
        }
    }
}
