//! Work that allocates and frees all kinds of objects all the time, and leaks none.

use std::{
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};

use super::trace::LEAKTRACE;

/// One kind of work: a round of it, in a directory of its own.
type Round = fn(&Path) -> Result<()>;

/// What is done, in two threads: one for each CPU that guests have.
const KINDS: [&[(&str, Round)]; 2] =
    [&[("sockets", sockets), ("pipes", pipes), ("mounts", mounts)], &[("forks", forks), ("find", find)]];

/// Work that is going on.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Starts all kinds of it.
    pub fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = KINDS
            .into_iter()
            .map(|kinds| {
                let round = move || -> Result<()> {
                    for (name, round) in kinds {
                        let directory = Path::new("/tmp/load").join(name);
                        fs::create_dir_all(&directory)?;
                        round(&directory).with_context(|| format!("no load by {name}"))?;
                    }
                    Ok(())
                };
                // A kind that does not work here would be no load.
                round()?;
                let stop = Arc::clone(&stop);
                Ok(thread::spawn(move || {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) && round().is_ok() {
                        rounds += 1;
                    }
                    rounds
                }))
            })
            .collect::<Result<_>>()?;
        Ok(Self { stop, threads })
    }

    /// Ends it; how many rounds each thread had.
    pub fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap_or(0)).collect()
    }
}

fn sockets(_: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let mut server = listener.accept()?.0;
    let (mut near, mut far) = UnixStream::pair()?;
    let mut buffer = [0; 4_096];
    client.write_all(&buffer)?;
    server.read_exact(&mut buffer)?;
    near.write_all(&buffer)?;
    far.read_exact(&mut buffer)?;
    Ok(())
}

fn pipes(_: &Path) -> Result<()> {
    let mut pipes = (0..20).map(|_| std::io::pipe()).collect::<std::io::Result<Vec<_>>>()?;
    for (_, writer) in &mut pipes {
        writer.write_all(&[0; 4_096])?;
    }
    Ok(())
}

/// A process, and one with a program of its own.
fn forks(_: &Path) -> Result<()> {
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: this has no preconditions.
        unsafe { libc::_exit(0) };
    }
    ensure!(child > 0, "cannot fork: {}", std::io::Error::last_os_error());
    // SAFETY: the child is ours, and its status is not asked for.
    ensure!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } == child, "the child is not there");
    ensure!(Command::new(LEAKTRACE).arg("--version").stdout(Stdio::null()).status()?.success(), "no version");
    Ok(())
}

fn mounts(directory: &Path) -> Result<()> {
    let place = CString::new(directory.as_os_str().as_encoded_bytes())?;
    let kind = c"tmpfs".as_ptr();
    // SAFETY: all are strings that live, and this kind needs no options.
    let mounted = unsafe { libc::mount(kind, place.as_ptr(), kind, 0, std::ptr::null()) };
    ensure!(mounted == 0, "cannot mount: {}", std::io::Error::last_os_error());
    let written = (0..10).try_for_each(|file| fs::write(directory.join(file.to_string()), [0; 100]));
    // SAFETY: the path is a string that lives.
    let unmounted = unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    ensure!(unmounted == 0, "cannot unmount: {}", std::io::Error::last_os_error());
    Ok(written?)
}

/// Walks through two file systems that make their files when they are looked for.
fn find(_: &Path) -> Result<()> {
    let mut waiting = vec!["/sys/class".into(), Path::new("/proc/self/task").to_path_buf()];
    let mut files = 0;
    while let Some(directory) = waiting.pop() {
        // Threads end meanwhile.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            } else {
                let _ = fs::read_link(entry.path());
                files += 1;
            }
        }
    }
    ensure!(files > 0, "no file was found");
    Ok(())
}
