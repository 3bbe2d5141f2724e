//! What makes protocols and network drivers leak.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};

use super::{Case, Step, netlink};

/// Opens a socket.
fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: a system call with integers; its descriptor is new and owned.
    unsafe {
        let socket = libc::socket(family, kind, protocol);
        if socket < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("no socket of family {family}, protocol {protocol}"));
        }
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

/// Sets an option of a socket; false where the kernel refuses it.
fn set(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) -> bool {
    // SAFETY: an open descriptor, and as many bytes as are said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as u32)
    };
    result == 0
}

/// Binds a socket to an address that is given as it lies in memory.
fn bind(socket: &OwnedFd, address: &[u8]) -> Result<()> {
    // SAFETY: an open descriptor, and as many bytes as are said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) };
    if result != 0 {
        bail!("cannot bind: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// Tells ISO-TP sockets that they are bound that they only broadcast, and closes them (include/uapi/linux/can/isotp.h).
pub fn isotp_broadcast(_: &Case) -> Result<Step> {
    const ISOTP: i32 = 6;
    const LEVEL: i32 = 100 + ISOTP;
    const OPTIONS: i32 = 1;
    const BROADCAST: u32 = 0x800;
    let index = netlink::add_link("vcan0", "vcan")?;
    let mut address = vec![0_u8; 24];
    address[..2].copy_from_slice(&(libc::AF_CAN as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    address[8..12].copy_from_slice(&0x123_u32.to_ne_bytes());
    address[12..16].copy_from_slice(&0x321_u32.to_ne_bytes());
    let mut options = [0_u8; 12];
    options[..4].copy_from_slice(&BROADCAST.to_ne_bytes());
    Ok(Box::new(move || {
        let socket = socket(libc::AF_CAN, libc::SOCK_DGRAM, ISOTP)?;
        bind(&socket, &address)?;
        // The driver that has the fix refuses it.
        set(&socket, LEVEL, OPTIONS, &options);
        Ok(())
    }))
}

/// Offers a table of rules that ends amid a rule (`include/uapi/linux/netfilter_bridge/ebtables.h`).
pub fn ebtables_malformed(_: &Case) -> Result<Step> {
    const SET_ENTRIES: i32 = 128;
    // `struct ebt_replace`, and bytes of rules, of which one and a third fit.
    const REPLACE: usize = 120;
    const ENTRIES: usize = 64;
    static RULES: [u8; ENTRIES] = [0; ENTRIES];
    let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let mut replace = [0_u8; REPLACE + ENTRIES];
    replace[..6].copy_from_slice(b"filter");
    replace[40..44].copy_from_slice(&(ENTRIES as u32).to_ne_bytes());
    replace[112..120].copy_from_slice(&(RULES.as_ptr() as u64).to_ne_bytes());
    Ok(Box::new(move || {
        // Without the fix the kernel says that it took them.
        set(&socket, libc::IPPROTO_IP, SET_ENTRIES, &replace);
        Ok(())
    }))
}
