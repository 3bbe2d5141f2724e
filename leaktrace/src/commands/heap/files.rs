//! What hangs on the open files of processes.

use std::path::Path;

use crate::{
    analysis::{
        claims::{Claims, Opened, claim},
        objects::Object,
    },
    proc::fds,
    proof::{File, Opener, Prover, Survey},
};

/// Open files that are looked at in all.
const MOST_FILES: usize = 500_000;
/// Bytes that keeping an object in mind takes.
const BYTES_EACH: u64 = 100;
/// Caches whose objects lead to everybody's.
const COMMON: [&str; 19] = [
    "cred",
    "cred_jar",
    "dentry",
    "files_cache",
    "filp",
    "fs_cache",
    "kernfs_node_cache",
    "mm_struct",
    "mnt_cache",
    "net_namespace",
    "nsproxy",
    "pid",
    "pid_namespace",
    "sighand_cache",
    "signal_cache",
    "task_struct",
    "user_namespace",
    "uts_namespace",
    "vm_area_struct",
];

/// An open file, or all of one kind of a process.
pub(super) struct Named {
    /// The process.
    pub(super) pid: u32,
    pub(super) comm: String,
    /// What it is: `pipe`, `socket`, `inotify`, the path of a device.
    pub(super) what: String,
}

/// What hangs on which.
pub(super) struct Files {
    claims: Claims,
    /// Of each file its name's number.
    names_of: Vec<u32>,
    names: Vec<Named>,
    /// Whether there are more files than were looked at.
    more: bool,
}

impl Files {
    /// Looks at the open files of all processes; `room` is how many bytes it may take, and `goes_on` says whether there is time.
    pub(super) fn read(
        prover: &Prover,
        survey: &Survey,
        room: u64,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Self {
        let (mut opened, mut names_of, mut names) = (Vec::new(), Vec::new(), Vec::<Named>::new());
        let (openers, more) = prover.openers(MOST_FILES);
        for (process, opener) in (0..).zip(openers) {
            let first = names.len();
            for file in &opener.files {
                if !goes_on() {
                    break;
                }
                let what = what(&opener, file);
                let begins = begins(file, &what);
                let known = names[first..].iter().position(|named| named.what == what);
                let name = first
                    + known.unwrap_or_else(|| {
                        names.push(Named { pid: opener.pid, comm: opener.comm.clone(), what });
                        names.len() - first - 1
                    });
                opened.push(Opened { process, begins });
                names_of.push(name as u32);
            }
        }
        let is_common = |cache: u16| {
            let name = &survey.caches[usize::from(cache)].name;
            COMMON.contains(&name.as_str()) || name.ends_with("inode_cache") || name.ends_with("_inode")
        };
        let mut words = |object: Object| {
            if !goes_on() {
                return Vec::new();
            }
            let slab = survey.objects.slab(object.slab);
            prover.contents(slab.address(object.nth), slab.own.into()).unwrap_or_default()
        };
        let most = usize::try_from(room / BYTES_EACH).unwrap_or(usize::MAX);
        let claims = claim(&survey.objects, &opened, &is_common, &mut words, most);
        Self { claims, names_of, names, more }
    }

    /// The files that an object hangs on, and nothing else does.
    pub(super) fn of(&self, object: Object) -> Option<&Named> {
        Some(&self.names[self.names_of[self.claims.of(object)?] as usize])
    }

    /// What is not known, if it is not all.
    pub(super) fn note(&self) -> Option<String> {
        if self.claims.cut {
            return Some(
                "more hangs on open files than could be kept in mind: --max-memory gives more".to_owned(),
            );
        }
        let cut =
            "more files are open than were looked at: some that hang on them are told as held by others";
        self.more.then(|| cut.to_owned())
    }
}

/// What a file is; of one that was closed meanwhile only that it was one.
fn what(opener: &Opener, file: &File) -> String {
    fds::what(Path::new("/"), opener.pid, file.descriptor).unwrap_or_else(|_| "file".to_owned())
}

/// Where looking begins. The inode of a pipe or a socket belongs to nothing else.
fn begins(file: &File, what: &str) -> Vec<u64> {
    if matches!(what, "pipe" | "socket") {
        vec![file.address, file.private, file.inode]
    } else {
        vec![file.address, file.private]
    }
}
