//! What goes on while leaktrace traces: work that leaks nothing, however it looks.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use leaktrace_tests::driver::{self, Mode};

/// Argument with which this program does nothing.
pub const NOTHING: &str = "nothing";

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// A directory for this load, removed at its end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("leaktrace-eval-{}-{name}", std::process::id()));
        let _ = fs::create_dir_all(&place);
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a tree of small files, reads it as tar would, and removes it.
pub fn files(stop: &AtomicBool) {
    let place = Place::new("files");
    while !stop.load(Relaxed) {
        for directory in 0..20 {
            let directory = place.0.join(directory.to_string());
            let _ = fs::create_dir_all(&directory);
            for file in 0..50 {
                let _ = fs::write(directory.join(file.to_string()), [7; 300]);
            }
        }
        visit(&place.0, &mut |path| {
            let _ = fs::read(path);
            !stop.load(Relaxed)
        });
        let _ = fs::remove_dir_all(&place.0);
        pause(20);
    }
}

/// Calls `with` for each file below a directory until it says no. Follows no links.
fn visit(directory: &Path, with: &mut dyn FnMut(&Path) -> bool) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let goes_on = if kind.is_dir() { visit(&entry.path(), with) } else { with(&entry.path()) };
        if !goes_on {
            return false;
        }
    }
    true
}

/// What find does: looks at every file of /proc and /sys, and opens none.
pub fn walk(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        for root in ["/proc", "/sys"] {
            visit(Path::new(root), &mut |path| {
                let _ = path.symlink_metadata();
                !stop.load(Relaxed)
            });
        }
    }
}

/// tar of a large tree that is on a disk.
pub fn tar(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let child = Command::new("tar")
            .args(["--create", "--file", "-", "/usr/lib", "/usr/share"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else { return };
        let mut buffer = vec![0; 1 << 16];
        if let Some(mut out) = child.stdout.take() {
            while !stop.load(Relaxed) && out.read(&mut buffer).is_ok_and(|read| read > 0) {}
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Reads and writes one large file.
pub fn page_cache(stop: &AtomicBool) {
    let place = Place::new("cache");
    let path = place.0.join("large");
    let block = vec![1; 1 << 16];
    while !stop.load(Relaxed) {
        let Ok(mut file) = File::create(&path) else { return };
        for _ in 0..1_500 {
            if stop.load(Relaxed) || file.write_all(&block).is_err() {
                break;
            }
            pause(2);
        }
        let _ = fs::read(&path);
    }
}

/// Connections that are opened, used and closed: each leaves one in `TIME_WAIT` for a minute.
pub fn connections(stop: &AtomicBool) {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { return };
    let Ok(address) = listener.local_addr() else { return };
    while !stop.load(Relaxed) {
        let (Ok(mut client), Ok((mut server, _))) = (TcpStream::connect(address), listener.accept()) else {
            pause(50);
            continue;
        };
        let _ = client.write_all(b"request");
        let _ = server.read(&mut [0; 16]);
        drop(client);
        pause(2);
    }
}

/// A server whose clients do not go away.
pub fn held_connections(stop: &AtomicBool) {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { return };
    let Ok(address) = listener.local_addr() else { return };
    let mut held = Vec::new();
    while !stop.load(Relaxed) {
        if let (Ok(mut client), Ok((server, _))) = (TcpStream::connect(address), listener.accept()) {
            // Never read: it stays in the kernel.
            let _ = client.write_all(&[0; 2_000]);
            held.push((client, server));
        }
        pause(40);
    }
}

/// A process that forgets to close its pipes.
pub fn held_pipes(stop: &AtomicBool) {
    let mut held = Vec::new();
    while !stop.load(Relaxed) {
        held.extend(std::io::pipe().ok());
        pause(30);
    }
}

/// Processes that are started and stay.
pub fn held_processes(stop: &AtomicBool) {
    let mut children: Vec<Child> = Vec::new();
    while !stop.load(Relaxed) {
        children.extend(waiting());
        pause(150);
    }
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Argument with which this program waits until its standard input ends.
pub const WAIT: &str = "wait";

/// A process that waits until its standard input ends.
fn waiting() -> Option<Child> {
    Command::new("/proc/self/exe").arg(WAIT).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().ok()
}

/// Files that are made and stay.
pub fn held_files(stop: &AtomicBool) {
    let place = Place::new("held");
    for file in 0_u64.. {
        if stop.load(Relaxed) {
            break;
        }
        let _ = fs::write(place.0.join(file.to_string()), [1; 100]);
        pause(30);
    }
}

/// Processes that come and go.
pub fn forks(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let _ = Command::new("/proc/self/exe").arg(NOTHING).status();
    }
}

/// Descriptors of many kinds, opened, used and closed.
pub fn sockets(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        for _ in 0..20 {
            if let (Ok((_, mut writer)), Ok((mut a, mut b))) = (std::io::pipe(), UnixStream::pair()) {
                let _ = writer.write_all(&[0; 100]);
                let _ = a.write_all(&[0; 500]);
                let _ = b.read(&mut [0; 500]);
            }
            // SAFETY: system calls with integers; what they return is closed.
            unsafe {
                for fd in [
                    libc::eventfd(0, 0),
                    libc::epoll_create1(0),
                    libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
                ] {
                    if fd >= 0 {
                        libc::close(fd);
                    }
                }
            }
        }
        pause(2);
    }
}

/// Network namespaces that are made and left by a thread of their own.
pub fn namespaces(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let thread = std::thread::spawn(|| {
            // SAFETY: an integer; it is this thread's namespace only.
            unsafe { libc::unshare(libc::CLONE_NEWNET) };
        });
        let _ = thread.join();
        pause(100);
    }
}

/// The driver's objects that it keeps for an open file, and frees when that is closed.
pub fn handles(stop: &AtomicBool) {
    let Ok(mut file) = File::options().write(true).open("/sys/kernel/debug/leakdrv/handles") else { return };
    while !stop.load(Relaxed) {
        let _ = file.write_all(b"2");
        pause(100);
    }
}

/// Fills the driver's pool by so many objects a second up to so many.
fn fill(stop: &AtomicBool, per_s: u64, most: u64) {
    let begun = Instant::now();
    while !stop.load(Relaxed) {
        let target = (begun.elapsed().as_millis() as u64 * per_s / 1_000).min(most);
        let _ = driver::run("pool", Mode::Balanced, target);
        pause(50);
    }
}

/// The driver's pool, filled in twelve seconds.
pub fn fill_pool(stop: &AtomicBool) {
    fill(stop, 250, 3_000);
}

/// The same, filled in more than a minute: only what points to its objects tells that nothing is lost.
pub fn fill_pool_slowly(stop: &AtomicBool) {
    fill(stop, 40, 4_000);
}

/// The driver's objects that live for half a minute, 40 a second.
pub fn slow_objects(stop: &AtomicBool) {
    let _ = driver::run("slow", Mode::Balanced, 40);
    while !stop.load(Relaxed) {
        pause(100);
    }
}

/// The driver loaded and removed, again and again.
pub fn modules(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        if driver::load(0).is_ok() {
            let _ = driver::run("kmalloc", Mode::Balanced, 100);
            let _ = driver::unload();
        }
        pause(200);
    }
}

/// Everything that needs no driver, each in a thread.
pub fn everything(stop: &AtomicBool) {
    let loads: [fn(&AtomicBool); 9] =
        [files, walk, connections, held_connections, held_pipes, held_processes, held_files, forks, sockets];
    std::thread::scope(|scope| {
        for load in loads {
            scope.spawn(move || load(stop));
        }
    });
}
