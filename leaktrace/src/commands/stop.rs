//! The signals that end a run early, with its report.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

/// Ctrl-C, SIGTERM and SIGHUP, from now on. They come through a file descriptor, which is closed
/// when this is dropped; handlers would need a pipe that stays open until the process ends.
pub(super) struct Stop(AsyncFd<OwnedFd>);

impl Stop {
    /// Catches them; to be called inside a runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: an all-zero set is valid to be overwritten, and all pointers are to it.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            // nohup has it ignored, and means it.
            if !hangup_is_ignored() {
                libc::sigaddset(&raw mut set, libc::SIGHUP);
            }
            // Only blocked signals wait for a reader; this is the only thread.
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's, and stays what it is while it is owned.
        Ok(Self(unsafe { AsyncFd::register(OwnedFd::from_raw_fd(fd))? }))
    }

    /// Waits; true when a signal came first.
    pub(super) async fn wait_until(&self, deadline: Instant) -> bool {
        tokio::select! {
            () = self.signalled() => true,
            () = sleep_until(deadline) => false,
        }
    }

    async fn signalled(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return };
            let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
            let fd = self.0.as_raw_fd();
            // SAFETY: the buffer is as long as is said.
            if unsafe { libc::read(fd, info.as_mut_ptr().cast(), info.len()) } > 0 {
                return;
            }
            ready.clear_ready();
        }
    }
}

fn hangup_is_ignored() -> bool {
    // SAFETY: an all-zero sigaction is valid to be overwritten, and a null new action changes nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
