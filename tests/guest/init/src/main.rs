//! Process 1 of a test's virtual machine, or a service of the system in it: mounts what leaktrace reads, loads the leaking driver,
//! runs one command, and tells how it ended.
//!
//! The command's output goes over the second serial port, so that it does not mix with the kernel's
//! messages on the first. Its last line is [`ENDED`] and the exit status.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Write as _,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Begins the last line, which says the exit status.
const ENDED: &str = "\x1eended ";
/// Where the results go: the second serial port, or the only one of its kind where the console is of another.
const RESULTS: &str = if cfg!(target_arch = "x86_64") { "/dev/ttyS1" } else { "/dev/ttyS0" };
/// Port of QEMU's isa-debug-exit.
#[cfg(target_arch = "x86_64")]
const EXIT_PORT: u16 = 0x501;
/// What the host put there: the command, one word a line.
const COMMAND: &str = "/guest/command";
/// The driver, if there is one, and the parameters that it is loaded with.
const DRIVER: &str = "/guest/driver.ko";
const PARAMETERS: &str = "/guest/driver.parameters";

/// Type, place and options of what has to be mounted.
const MOUNTS: [(&str, &str, &str); 9] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", ""),
    ("tmpfs", "/tmp", ""),
    ("tmpfs", "/run", ""),
    ("debugfs", "/sys/kernel/debug", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("bpf", "/sys/fs/bpf", ""),
];

fn main() {
    let code = match run() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        Err(error) => {
            eprintln!("guest-init: {error:#}");
            125
        }
    };
    if let Ok(mut results) = File::options().write(true).open(RESULTS) {
        let _ = write!(results, "\n{ENDED}{code}\n");
        // SAFETY: the descriptor is open.
        unsafe { libc::tcdrain(results.as_raw_fd()) };
    }
    power_off(code);
}

fn run() -> Result<ExitStatus> {
    // Where a whole system has been started it has done all that, and this is one of its services.
    if std::process::id() == 1 {
        for (kind, place, options) in MOUNTS {
            mount(kind, place, options)?;
        }
    }
    let results = open_results()?;
    raise_loopback()?;
    if Path::new(DRIVER).exists() {
        load_driver()?;
    }
    let words = fs::read_to_string(COMMAND).with_context(|| format!("cannot read {COMMAND}"))?;
    let mut words = words.lines();
    let program = words.next().context("there is no command")?;
    Command::new(program)
        .args(words)
        .env_clear()
        .envs([("PATH", "/guest:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/tmp"), ("GUEST", "1")])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(results.try_clone()?)
        .stderr(results)
        .status()
        .with_context(|| format!("cannot run {program}"))
}

fn mount(kind: &str, place: &str, options: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
    let [c_kind, c_place, c_options] = [kind, place, options].map(|text| CString::new(text).expect("no NUL"));
    // SAFETY: all are terminated strings.
    let result = unsafe {
        libc::mount(c_kind.as_ptr(), c_place.as_ptr(), c_kind.as_ptr(), 0, c_options.as_ptr().cast())
    };
    // The kernel may have mounted devtmpfs itself.
    let error = std::io::Error::last_os_error();
    if result != 0 && error.raw_os_error() != Some(libc::EBUSY) {
        return Err(error).with_context(|| format!("cannot mount {kind} on {place}"));
    }
    Ok(())
}

/// The serial port without any translation.
fn open_results() -> Result<File> {
    let port = File::options()
        .read(true)
        .write(true)
        .open(RESULTS)
        .with_context(|| format!("cannot open {RESULTS}"))?;
    // SAFETY: an all-zero termios is valid to be overwritten, and the descriptor is open.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        libc::tcgetattr(port.as_raw_fd(), &raw mut settings);
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings);
    }
    Ok(port)
}

/// Tests send packets to themselves.
fn raise_loopback() -> Result<()> {
    // SAFETY: an all-zero ifreq is valid; the descriptor is new, and checked before it is owned.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            // A kernel without networking.
            return Ok(());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot raise the loopback interface");
        }
    }
    Ok(())
}

fn load_driver() -> Result<()> {
    let file = File::open(DRIVER).with_context(|| format!("cannot open {DRIVER}"))?;
    let parameters = CString::new(fs::read_to_string(PARAMETERS).unwrap_or_default().trim())?;
    // SAFETY: an open descriptor and a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result != 0 {
        bail!("cannot load the driver: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Ends the machine: by isa-debug-exit, whose status the host sees, where the kernel lets a process
/// use ports, else by a reboot, which QEMU is told not to do.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "others have no such port"))]
fn power_off(code: i32) -> ! {
    // SAFETY: the port is QEMU's; what else could be at stake ends here.
    unsafe {
        libc::sync();
        #[cfg(target_arch = "x86_64")]
        if libc::iopl(3) == 0 {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") code as u8, options(nomem, nostack));
        }
        libc::reboot(libc::RB_AUTOBOOT);
    }
    loop {
        std::thread::park();
    }
}
