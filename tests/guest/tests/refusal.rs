//! A kernel that lets nobody read its memory: leaktrace says so in one line.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::trace::LEAKTRACE;

/// Where a kernel has security modules.
pub const SECURITY: &str = "/sys/kernel/security";

/// Locks the kernel down, for good: a trace is refused with the reason, and triage works without.
pub fn test() -> Result<bool> {
    let (kind, place) = (c"securityfs".as_ptr(), c"/sys/kernel/security".as_ptr());
    // SAFETY: all are strings that live, and this kind takes no options.
    let result = unsafe { libc::mount(kind, place, kind, 0, std::ptr::null()) };
    ensure!(result == 0, "cannot mount securityfs: {}", std::io::Error::last_os_error());
    fs::write(Path::new(SECURITY).join("lockdown"), "confidentiality")
        .context("the kernel cannot be locked down")?;
    let mut good = true;
    for args in [&["--duration", "1"][..], &["--prove", "--duration", "1"]] {
        let output = Command::new(LEAKTRACE).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let right = output.status.code() == Some(1)
            && said.lines().count() == 1
            && said.contains("locked down (confidentiality)")
            && said.contains("lockdown=integrity");
        good &= right;
        println!("  {}: {}{}", args.join(" "), said.trim(), if right { "" } else { "   WRONG" });
    }
    let output = Command::new(LEAKTRACE).arg("check").output()?;
    let right = output.status.code() == Some(1)
        && String::from_utf8_lossy(&output.stdout).contains("locked down (confidentiality)");
    println!("  check says so, too{}", if right { "" } else { "   WRONG" });
    good &= right;
    let output = Command::new(LEAKTRACE).args(["triage", "--duration", "1"]).output()?;
    let right =
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Where memory is");
    println!("  triage answers{}", if right { "" } else { "   WRONG" });
    Ok(good && right)
}
