//! What makes protocols and network drivers leak.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Case, Step,
    block::write,
    netlink::{self, Netlink, attribute, text},
};

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

/// Receives messages of its own without room for the time stamp that it asked for.
pub fn rds_message(_: &Case) -> Result<Step> {
    let socket = socket(libc::AF_RDS, libc::SOCK_SEQPACKET, 0)?;
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&4_000_u16.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    bind(&socket, &address)?;
    if !set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMP, &1_i32.to_ne_bytes()) {
        bail!("no time stamps: {}", io::Error::last_os_error());
    }
    Ok(Box::new(move || {
        let mut text = [1_u8; 200];
        let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
        // SAFETY: an open descriptor, and buffers of the sizes that are said; the kernel refuses the one that is none.
        unsafe {
            let sent = libc::sendto(
                socket.as_raw_fd(),
                text.as_ptr().cast(),
                text.len(),
                0,
                address.as_ptr().cast(),
                address.len() as u32,
            );
            if sent < 0 {
                bail!("cannot send: {}", io::Error::last_os_error());
            }
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = std::ptr::dangling_mut::<libc::cmsghdr>().cast();
            message.msg_controllen = 64;
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
        }
        Ok(())
    }))
}

/// Gives SCTP sockets a key, and closes them (`include/uapi/linux/sctp.h`).
pub fn sctp_key(_: &Case) -> Result<Step> {
    const AUTH_KEY: i32 = 23;
    write("/proc/sys/net/sctp/auth_enable", "1")?;
    let key = [7_u8; 32];
    let mut value = vec![0_u8; 4];
    value.extend(1_u16.to_ne_bytes());
    value.extend((key.len() as u16).to_ne_bytes());
    value.extend(key);
    Ok(Box::new(move || {
        let socket = socket(libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP)?;
        if !set(&socket, libc::IPPROTO_SCTP, AUTH_KEY, &value) {
            bail!("the key is refused: {}", io::Error::last_os_error());
        }
        Ok(())
    }))
}

/// Attributes of an action of traffic control (`include/uapi/linux/pkt_cls.h`).
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const INDEX: u16 = 3;

/// The body of a request about an action.
fn action(kind: &str, parts: &[u8]) -> Vec<u8> {
    let action = [&text(KIND, kind), parts].concat();
    [vec![0; 4], attribute(1 | netlink::NESTED, &attribute(1 | netlink::NESTED, &action))].concat()
}

/// Makes an action of traffic control, and removes it (`include/uapi/linux/tc_act/tc_ctinfo.h`).
pub fn ctinfo_action(_: &Case) -> Result<Step> {
    const ACT: u16 = 3;
    const CPMARK_MASK: u16 = 7;
    let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
    let index = 5_u32.to_ne_bytes();
    let options =
        [attribute(ACT, &[&index[..], &[0; 16]].concat()), attribute(CPMARK_MASK, &u32::MAX.to_ne_bytes())];
    let make = action("ctinfo", &attribute(OPTIONS | netlink::NESTED, &options.concat()));
    let remove = action("ctinfo", &attribute(INDEX, &index));
    Ok(Box::new(move || {
        netlink.done(libc::RTM_NEWACTION, netlink::CREATE, &make)?;
        netlink.done(libc::RTM_DELACTION, 0, &remove)
    }))
}

/// Replaces the program of an action of traffic control (`include/uapi/linux/tc_act/tc_bpf.h`).
pub fn bpf_action(_: &Case) -> Result<Step> {
    const PARMS: u16 = 2;
    const OPS_LEN: u16 = 3;
    const OPS: u16 = 4;
    const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
    let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
    // One instruction: to return nothing.
    let options = [
        attribute(PARMS, &[&7_u32.to_ne_bytes()[..], &[0; 16]].concat()),
        attribute(OPS_LEN, &1_u16.to_ne_bytes()),
        attribute(OPS, &[6, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let set = action("bpf", &attribute(OPTIONS | netlink::NESTED, &options.concat()));
    Ok(Box::new(move || netlink.done(libc::RTM_NEWACTION, CREATE_OR_REPLACE, &set)))
}
