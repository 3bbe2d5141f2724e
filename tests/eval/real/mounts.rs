//! What makes file systems leak.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::{Case, Step};

/// Lets a process wait for the daemon of an automounter, which then says that it is gone (`include/uapi/linux/auto_fs.h`).
pub fn autofs_catatonic(_: &Case) -> Result<Step> {
    const CATATONIC: libc::Ioctl = 0x9361;
    let place = "/tmp/automounted";
    fs::create_dir(place).context("cannot make a directory")?;
    Ok(Box::new(move || {
        let (mut requests, pipe) = io::pipe()?;
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
        // Who is of the daemon's process group does not wait.
        let waiter = thread::spawn(|| Command::new("/tmp/automounted/one").process_group(0).status());
        let asked = requests.read(&mut [0; 512])?;
        // SAFETY: an open descriptor, and a terminated string.
        let ended = unsafe { libc::ioctl(root.as_raw_fd(), CATATONIC, 0) };
        let _ = waiter.join();
        drop(root);
        // SAFETY: a terminated string.
        let removed = unsafe { libc::umount2(c"/tmp/automounted".as_ptr(), libc::MNT_DETACH) };
        if asked == 0 || ended != 0 || removed != 0 {
            bail!("the automounter did not work: {}", io::Error::last_os_error());
        }
        Ok(())
    }))
}
