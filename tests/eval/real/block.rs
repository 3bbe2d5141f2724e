//! What makes block drivers and what is set up by files leak.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Case, Step, modules};

/// Writes into a file that is there.
///
/// # Errors
/// When there is none, or it refuses.
pub fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    let mut file =
        File::options().write(true).open(path).with_context(|| format!("no {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {text} into {}", path.display()))
}

/// Mounts configfs, and makes a directory in it.
fn configure(place: &str) -> Result<()> {
    let root = c"/sys/kernel/config";
    // SAFETY: terminated strings.
    let result =
        unsafe { libc::mount(c"none".as_ptr(), root.as_ptr(), c"configfs".as_ptr(), 0, std::ptr::null()) };
    if result != 0 {
        bail!("cannot mount configfs: {}", std::io::Error::last_os_error());
    }
    fs::create_dir(place).with_context(|| format!("cannot make {place}"))
}

/// Sets an `NVMe` host's secret, again and again.
pub fn nvmet_key(_: &Case) -> Result<Step> {
    let host = "/sys/kernel/config/nvmet/hosts/nqn.2014-08.org.nvmexpress:one";
    configure(host)?;
    Ok(Box::new(move || {
        write(format!("{host}/dhchap_key"), "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:")
    }))
}

/// Gives a compressed RAM disk further algorithms, a size, and resets it.
pub fn zram_algorithms(_: &Case) -> Result<Step> {
    let device = Path::new("/sys/block/zram0");
    ensure!(device.exists(), "there is no zram0");
    Ok(Box::new(move || {
        for priority in 1..=3 {
            write(device.join("recomp_algorithm"), &format!("algo=zstd priority={priority}"))?;
        }
        write(device.join("disksize"), "1048576")?;
        write(device.join("reset"), "1")
    }))
}

/// Fills a block device in memory, and loads its driver anew.
pub fn null_blk_reload(case: &Case) -> Result<Step> {
    let module = case.load.last().context("the driver is the last module")?.clone();
    Ok(Box::new(move || {
        fs::write("/dev/nullb0", vec![1; 64 << 10]).context("cannot write /dev/nullb0")?;
        // Who looks at new disks may have it open.
        while modules::unload("null_blk").is_err() {
            thread::sleep(Duration::from_millis(20));
        }
        modules::load(&module)
    }))
}
