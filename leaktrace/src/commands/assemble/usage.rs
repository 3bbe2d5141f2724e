//! Whether anything uses a module.

use std::{fs, path::Path, time::Duration};

/// Looks at the reference counts of modules, and the time between two: a file that is only opened for a
/// moment, as most are, holds nothing.
const LOOKS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(5);

/// The modules of these that nothing uses, as their reference counts say: open files, mounts, other modules.
/// Where the count cannot be read although the module is loaded, something may.
pub(super) fn unused(root: &Path, modules: &[String]) -> Vec<String> {
    let is_unused = |module: &String| {
        let directory = root.join("sys/module").join(module);
        match fs::read_to_string(directory.join("refcnt")) {
            Ok(count) => count.trim() == "0",
            Err(_) => !directory.exists(),
        }
    };
    let (mut unused, mut used): (Vec<String>, Vec<String>) = modules.iter().cloned().partition(is_unused);
    for _ in 1..LOOKS {
        if used.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN);
        let (now, still) = used.into_iter().partition(is_unused);
        unused.extend::<Vec<String>>(now);
        used = still;
    }
    unused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_nothing_uses() {
        let root = tempfile::tempdir().unwrap();
        let module = |name: &str, count: Option<&str>| {
            let directory = root.path().join("sys/module").join(name);
            fs::create_dir_all(&directory).unwrap();
            if let Some(count) = count {
                fs::write(directory.join("refcnt"), count).unwrap();
            }
        };
        module("idle", Some("0\n"));
        module("busy", Some("2\n"));
        module("unreadable", None);
        let asked = ["idle", "busy", "unreadable", "gone"].map(str::to_owned);
        assert_eq!(unused(root.path(), &asked), ["idle", "gone"]);
    }
}
