//! What makes file systems leak.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Case, Step};

/// Lets a process wait for the daemon of an automounter, which then says that it is gone (`include/uapi/linux/auto_fs.h`).
pub fn autofs_catatonic(_: &Case) -> Result<Step> {
    const CATATONIC: libc::Ioctl = 0x9362;
    let place = "/tmp/automounted";
    fs::create_dir(place).context("cannot make a directory")?;
    Ok(Box::new(move || {
        let (requests, pipe) = io::pipe()?;
        let options = format!("fd={},minproto=5,maxproto=5,indirect\0", pipe.as_raw_fd());
        // SAFETY: terminated strings.
        let result = unsafe {
            libc::mount(
                c"auto".as_ptr(),
                c"/tmp/automounted".as_ptr(),
                c"autofs".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        if result != 0 {
            bail!("cannot mount autofs: {}", io::Error::last_os_error());
        }
        let root = File::open(place)?;
        // SAFETY: the child calls what may be called after fork, with a terminated string.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above. Who is of the daemon's process group would not wait.
            unsafe {
                libc::setpgid(0, 0);
                libc::open(c"/tmp/automounted/one".as_ptr(), libc::O_RDONLY);
                libc::_exit(0);
            }
        }
        let asked = asked(&requests);
        // SAFETY: open descriptors, integers and a terminated string; the child is ours.
        let (ended, removed) = unsafe {
            let ended = libc::ioctl(root.as_raw_fd(), CATATONIC, 0);
            if ended != 0 {
                libc::kill(child, libc::SIGKILL);
            }
            libc::waitpid(child, std::ptr::null_mut(), 0);
            drop(root);
            (ended, libc::umount2(c"/tmp/automounted".as_ptr(), libc::MNT_DETACH))
        };
        ensure!(asked, "nobody waits for the automounter");
        ensure!(ended == 0 && removed == 0, "the automounter did not end: {}", io::Error::last_os_error());
        Ok(())
    }))
}

/// Waits for a request to the daemon.
fn asked(requests: &io::PipeReader) -> bool {
    let mut wait = libc::pollfd { fd: requests.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: a valid pointer to one element.
    unsafe { libc::poll(&raw mut wait, 1, 2_000) == 1 }
}
