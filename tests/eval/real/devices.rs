//! What makes devices leak that only exist in software, and drivers that are told what to do by files.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Case, Step, block::write};

/// Waits until there is a file.
fn wait_for(path: &str) -> Result<()> {
    for _ in 0..100 {
        if Path::new(path).exists() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("there is no {path}")
}

/// Lets the other end of a QRTR tunnel send a message, which is of no known version.
pub fn qrtr_message(_: &Case) -> Result<Step> {
    wait_for("/dev/qrtr-tun")?;
    let mut tunnel = File::options().read(true).write(true).open("/dev/qrtr-tun")?;
    Ok(Box::new(move || {
        // The answer is that it is invalid.
        let _ = tunnel.write(&[0; 100]);
        Ok(())
    }))
}

/// Asks for the same batch of firmware again and again, which there is none of.
pub fn firmware_batch(_: &Case) -> Result<Step> {
    let device = "/sys/devices/virtual/misc/test_firmware";
    wait_for(device)?;
    write(format!("{device}/config_num_requests"), "1")?;
    Ok(Box::new(move || {
        // That there is none is an error; and with the fix, that there is a batch.
        let _ = fs::write(format!("{device}/trigger_batched_requests"), "1");
        Ok(())
    }))
}

/// Makes simulated network devices, gives each a cookie, and removes it.
pub fn netdevsim_cookie(_: &Case) -> Result<Step> {
    let bus = "/sys/bus/netdevsim";
    wait_for(bus)?;
    Ok(Box::new(move || {
        write(format!("{bus}/new_device"), "1 0")?;
        write("/sys/kernel/debug/netdevsim/netdevsim1/trap_flow_action_cookie", "0011223344556677\n")?;
        write(format!("{bus}/del_device"), "1")
    }))
}

/// Opens and closes a simulated NFC device.
pub fn nci_device(_: &Case) -> Result<Step> {
    wait_for("/dev/virtual_nci")?;
    Ok(Box::new(|| {
        File::options().read(true).write(true).open("/dev/virtual_nci").context("no NFC device")?;
        Ok(())
    }))
}

/// Plugs in an input device, opens it, and closes it without a look at its reports.
pub fn hidraw_unread(_: &Case) -> Result<Step> {
    // Events and their sizes (`include/uapi/linux/uhid.h`).
    const CREATE: u32 = 11;
    const INPUT: u32 = 12;
    const TEXTS: usize = 128 + 64 + 64;
    const PLACE: &str = "/dev/hidraw0";
    // One byte of a vendor's own kind.
    let descriptor = [
        0x06, 0x00, 0xff, 0x09, 0x01, 0xa1, 0x01, 0x09, 0x02, 0x15, 0x00, 0x26, 0xff, 0x00, 0x75, 0x08, 0x95,
        0x10, 0x81, 0x02, 0xc0,
    ];
    wait_for("/dev/uhid")?;
    let mut device =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/uhid")?;
    let mut create = Vec::from(CREATE.to_ne_bytes());
    create.extend([0; TEXTS]);
    create.extend((descriptor.len() as u16).to_ne_bytes());
    create.extend(3_u16.to_ne_bytes());
    create.extend([0x34, 0x12, 0, 0, 0x78, 0x56, 0, 0]);
    create.extend([0; 8]);
    create.extend(descriptor);
    device.write_all(&create).context("cannot make an input device")?;
    wait_for(PLACE)?;
    let mut input = Vec::from(INPUT.to_ne_bytes());
    input.extend(16_u16.to_ne_bytes());
    input.extend([7; 16]);
    Ok(Box::new(move || {
        let _open = File::open(PLACE).context("cannot open the input device")?;
        for _ in 0..2 {
            device.write_all(&input).context("cannot report")?;
        }
        // What the kernel tells of it, until there is no more.
        let mut events = [0_u8; 4_400];
        while device.read(&mut events).is_ok_and(|read| read > 0) {}
        Ok(())
    }))
}
