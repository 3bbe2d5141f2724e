//! Requests over netlink, of the few kinds that triggers need.

use std::{io, os::fd::AsRawFd as _, os::fd::FromRawFd as _, os::fd::OwnedFd};

use anyhow::{Context as _, Result, bail};

/// Flags of a request: it is one, and wants an answer (include/uapi/linux/netlink.h).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// And of one that makes something new, which may not be there.
pub const CREATE: u16 = 0x400 | 0x200;

/// Something nested in an attribute.
pub const NESTED: u16 = 0x8000;

/// A netlink socket.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one of a protocol.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open(protocol: i32) -> Result<Self> {
        // SAFETY: a system call with integers; its descriptor is new and owned.
        unsafe {
            let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol);
            if socket < 0 {
                return Err(io::Error::last_os_error()).context("no netlink of this protocol");
            }
            Ok(Self(OwnedFd::from_raw_fd(socket)))
        }
    }

    /// Sends a request, and returns what its answer says: 0 or an error's number.
    ///
    /// # Errors
    /// When it cannot be sent, or has no answer.
    pub fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<i32> {
        let mut message = Vec::new();
        message.extend(((16 + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        let mut answer = [0_u8; 8_192];
        // SAFETY: open descriptors, and buffers of the sizes that are said.
        let received = unsafe {
            if libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) < 0 {
                bail!("cannot send over netlink: {}", io::Error::last_os_error());
            }
            libc::recv(self.0.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        if received < 20 {
            bail!("netlink answers with {received} bytes");
        }
        Ok(-i32::from_ne_bytes(answer[16..20].try_into()?))
    }

    /// The same, of a request that must succeed.
    ///
    /// # Errors
    /// When it is refused.
    pub fn done(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        match self.ask(kind, flags, body)? {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)).context(format!("netlink refuses {kind:#x}")),
        }
    }
}

/// An attribute.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut all = Vec::from(((4 + value.len()) as u16).to_ne_bytes());
    all.extend(kind.to_ne_bytes());
    all.extend(value);
    all.resize(all.len().next_multiple_of(4), 0);
    all
}

/// A text as an attribute.
pub fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), b"\0"].concat())
}

/// `struct ifinfomsg`, of an interface that is to be up.
pub fn interface(index: i32) -> Vec<u8> {
    let up = libc::IFF_UP as u32;
    let mut all = vec![0; 4];
    all.extend(index.to_ne_bytes());
    all.extend(up.to_ne_bytes());
    all.extend(up.to_ne_bytes());
    all
}

/// Makes a network interface of a kind, up, and returns its index.
///
/// # Errors
/// When the kernel does not make it.
pub fn add_link(name: &str, kind: &str) -> Result<i32> {
    let info = attribute(libc::IFLA_LINKINFO | NESTED, &text(libc::IFLA_INFO_KIND, kind));
    let body = [interface(0), text(libc::IFLA_IFNAME, name), info].concat();
    Netlink::open(libc::NETLINK_ROUTE)?
        .done(libc::RTM_NEWLINK, CREATE, &body)
        .with_context(|| format!("cannot make {name}"))?;
    index(name)
}

/// The index of an interface.
///
/// # Errors
/// When there is none of this name.
pub fn index(name: &str) -> Result<i32> {
    let terminated = std::ffi::CString::new(name)?;
    // SAFETY: a terminated string.
    match unsafe { libc::if_nametoindex(terminated.as_ptr()) } {
        0 => bail!("there is no interface {name}"),
        index => Ok(index as i32),
    }
}
