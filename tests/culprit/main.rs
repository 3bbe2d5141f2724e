//! A program that takes memory in one way, so that a test can see whether it is found out.
//!
//! It says `ready`, waits for a line, takes as much as it was told, says `done`, and holds it until its
//! standard input ends. One way goes on taking until then.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, BufRead as _, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Steps in which it is taken, and time between them.
const STEPS: u64 = 20;
const PAUSE: Duration = Duration::from_millis(80);
/// Slots of a large pipe: its array of buffers takes 2,560 bytes.
const PIPE_BYTES: i32 = 64 * 4_096;
/// Files that one message can carry (`SCM_MAX_FD`).
const CARRIED: usize = 250;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let way = arguments.next().unwrap_or_default().into_string().unwrap_or_default();
    let amount: u64 = arguments.next().and_then(|text| text.into_string().ok()?.parse().ok()).unwrap_or(0);
    let path: PathBuf = arguments.next().unwrap_or_default().into();
    let mut held = Held::default();
    say("ready")?;
    wait_for_line()?;
    match way.as_str() {
        "crowd" => crowd(amount)?,
        "named" => named(path.into_os_string())?,
        "pagetables" => Held::touch_far_apart(amount)?,
        "read" => read(&path, amount)?,
        "on" => go_on(amount),
        _ => {
            for step in 0..STEPS {
                let share = amount * (step + 1) / STEPS - amount * step / STEPS;
                held.take(&way, share, &path)?;
                std::thread::sleep(PAUSE);
            }
        }
    }
    say("done")?;
    // Whatever it is holds until then.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Takes so many bytes of heap again and again, as long as the program runs.
fn go_on(bytes: u64) {
    std::thread::spawn(move || {
        let mut held = Vec::new();
        loop {
            held.push(vec![1_u8; bytes as usize]);
            std::thread::sleep(PAUSE);
        }
    });
}

fn say(word: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

fn wait_for_line() -> Result<()> {
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// What was taken.
#[derive(Default)]
struct Held {
    memory: Vec<Vec<u8>>,
    files: Vec<OwnedFd>,
    streams: Vec<(UnixStream, UnixStream)>,
}

impl Held {
    fn take(&mut self, way: &str, amount: u64, path: &Path) -> Result<()> {
        match way {
            // Bytes.
            "heap" => self.memory.push(vec![1; amount as usize]),
            // Pairs of sockets.
            "sockets" => {
                for _ in 0..amount {
                    self.streams.push(UnixStream::pair()?);
                }
            }
            // Pipes.
            "pipes" => self.files.extend(pipes(amount, None)?),
            // Pipes that no process has open: they are on their way through a socket.
            "hidden" => {
                let pair = UnixStream::pair()?;
                for chunk in pipes(amount, Some(PIPE_BYTES))?.chunks(CARRIED) {
                    send(&pair.0, chunk)?;
                }
                self.streams.push(pair);
            }
            // Files of a page each without a name.
            "deleted" => {
                for number in 0..amount {
                    let place = path.join(format!("gone-{}-{number}", self.files.len()));
                    let mut file = File::create(&place)?;
                    file.write_all(&[1; 4_096])?;
                    std::fs::remove_file(&place)?;
                    self.files.push(file.into());
                }
            }
            // Bytes of a file.
            "file" => {
                let mut file = File::options().create(true).append(true).open(path.join("file"))?;
                file.write_all(&vec![1; amount as usize])?;
            }
            // Threads.
            "threads" => {
                for _ in 0..amount {
                    std::thread::Builder::new().stack_size(64 << 10).spawn(|| {
                        loop {
                            std::thread::park();
                        }
                    })?;
                }
            }
            _ => bail!("there is no such way: {way}"),
        }
        Ok(())
    }

    /// Touches a byte in so many stretches of 2 MiB, each of which has a page table of its own. Nothing else is
    /// taken: what is only read is the page of zeros.
    fn touch_far_apart(tables: u64) -> Result<()> {
        const STRETCH: usize = 2 << 20;
        let bytes = tables as usize * STRETCH;
        // SAFETY: a new mapping that nothing else knows of, and never unmapped.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let start = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0);
            ensure!(start != libc::MAP_FAILED, "cannot map: {}", io::Error::last_os_error());
            libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE);
            start.cast::<u8>()
        };
        for table in 0..tables as usize {
            // SAFETY: inside of the mapping.
            std::hint::black_box(unsafe { start.add(table * STRETCH).read_volatile() });
            if table.is_multiple_of((tables / STEPS).max(1) as usize) {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

/// Both ends of pipes.
fn pipes(amount: u64, size: Option<i32>) -> Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    for _ in 0..amount {
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        if let Some(size) = size {
            // SAFETY: an open descriptor and integers.
            let got = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
            ensure!(got >= size, "cannot enlarge a pipe: {}", io::Error::last_os_error());
        }
        files.push(reader.into());
        files.push(writer.into());
    }
    Ok(files)
}

/// Sends files through a socket.
fn send(socket: &UnixStream, files: &[OwnedFd]) -> Result<()> {
    let descriptors: Vec<i32> = files.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let bytes = size_of_val(descriptors.as_slice());
    let mut byte = [0_u8];
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: sizes only.
    let space = unsafe { libc::CMSG_SPACE(bytes as u32) } as usize;
    // Of u64s, because the header has to be aligned.
    let mut control = vec![0_u64; space.div_ceil(8)];
    // SAFETY: the message points to what lives longer than it, and the control buffer has the size that was asked for.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
        std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), libc::CMSG_DATA(header), bytes);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
    };
    ensure!(sent == 1, "cannot send files: {}", io::Error::last_os_error());
    Ok(())
}

/// Reads so many bytes of a file.
fn read(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let step = bytes / STEPS;
    let (mut read, mut next) = (0, step);
    while read < bytes {
        let got = file.read(&mut buffer)? as u64;
        ensure!(got > 0, "the file is too short");
        read += got;
        if read >= next {
            next += step;
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Takes a name.
fn named(name: OsString) -> Result<()> {
    let name = CString::new(name.into_vec())?;
    // SAFETY: a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    Ok(())
}

/// So many children that do nothing, and end with this process.
fn crowd(processes: u64) -> Result<()> {
    let parent = std::process::id();
    for _ in 0..processes {
        // SAFETY: there are no other threads, and the child only makes system calls.
        unsafe {
            match libc::fork() {
                -1 => bail!("cannot fork: {}", io::Error::last_os_error()),
                0 => {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    if libc::getppid() as u32 != parent {
                        libc::_exit(0);
                    }
                    // What the parent waits for must not be held open here.
                    drop(OwnedFd::from_raw_fd(1));
                    loop {
                        libc::pause();
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
