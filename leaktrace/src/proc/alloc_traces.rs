//! `/sys/kernel/debug/slab/*/alloc_traces`: who has the objects of a cache, on kernels that were started with
//! `slub_debug=U` or `slab_debug=U` (`slab_debug_trace_show` of `mm/slub.c`).

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use super::{for_lines, profile::Places};

/// Lines that are read of a cache, and caches, at most.
const LINES: usize = 500_000;
const CACHES: usize = 10_000;

/// Bytes in use by the function that asked for them, of all caches that note it: with what SLUB notes beside each object,
/// as the tracepoints have it (`bytes_alloc`).
///
/// # Errors
/// When there is no debugfs to read. A cache that cannot be read is left out.
pub fn read(root: &Path) -> io::Result<Places> {
    let mut places = Places::new();
    for cache in fs::read_dir(root.join("sys/kernel/debug/slab"))?.flatten().take(CACHES) {
        let size = root.join("sys/kernel/slab").join(cache.file_name()).join("slab_size");
        let Some(size) = number(&size) else { continue };
        let _ = for_lines(&cache.path().join("alloc_traces"), LINES, |line| {
            if let Some((place, objects)) = owner(line) {
                let bytes: &mut u64 = places.entry(place).or_default();
                *bytes = bytes.saturating_add(objects.saturating_mul(size));
            }
        });
    }
    Ok(places)
}

/// Objects in use of one cache by the function that asked for them, the most first; none where that is not noted.
pub fn of_cache(root: &Path, cache: &str) -> Vec<(String, u64)> {
    let mut places = Places::new();
    // A name that leads elsewhere is no cache's.
    if !cache.contains('/') {
        let path = root.join("sys/kernel/debug/slab").join(cache).join("alloc_traces");
        let _ = for_lines(&path, LINES, |line| {
            if let Some((place, objects)) = owner(line) {
                let sum: &mut u64 = places.entry(place).or_default();
                *sum = sum.saturating_add(objects);
            }
        });
    }
    let mut places: Vec<(String, u64)> = places.into_iter().collect();
    places.sort_by_key(|(_, objects)| std::cmp::Reverse(*objects));
    places
}

fn number(path: &Path) -> Option<u64> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// `    200 take+0x32/0x90 [foo] waste=800/4 age=1/2/3 pid=7 cpus=0`, the only lines that begin with a number: below are
/// the frames of the stack.
fn owner(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_ascii_whitespace();
    let objects = words.next()?.parse().ok()?;
    let (function, offset) = words.next()?.split_once("+0x")?;
    offset.split_once('/')?;
    let module = words.next().filter(|word| word.starts_with('[') && word.ends_with(']'));
    Some((module.map_or_else(|| function.to_owned(), |module| format!("{function} {module}")), objects))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn caches_have_owners() {
        let root = tempfile::tempdir().unwrap();
        let cache = |name: &str, traces: Option<&str>, size: &str| {
            let debug = root.path().join("sys/kernel/debug/slab").join(name);
            let plain = root.path().join("sys/kernel/slab").join(name);
            fs::create_dir_all(&debug).unwrap();
            fs::create_dir_all(&plain).unwrap();
            fs::write(plain.join("slab_size"), size).unwrap();
            if let Some(traces) = traces {
                fs::write(debug.join("alloc_traces"), traces).unwrap();
            }
        };
        let traces = "     12 take+0x2b/0x80 [foo] waste=768/64 age=3/9/20 pid=71 cpus=0-1\n        __kmalloc_noprof+0x1/0x2\n        take+0x2b/0x80 [foo]\n\n      3 start+0x1/0x9 age=3 pid=1\n      1 <not-available> age=3 pid=1\n";
        cache("kmalloc-256", Some(traces), "256\n");
        cache("kmalloc-64", Some("      2 take+0x9c/0x80 [foo] age=1 pid=71\n"), "64\n");
        cache("kmalloc-8", None, "8\n");
        cache("broken", Some(traces), "many\n");
        let expected = [("take [foo]", 12 * 256 + 2 * 64), ("start", 3 * 256)];
        let expected = expected.map(|(place, bytes)| (place.to_owned(), bytes));
        assert_eq!(read(root.path()).unwrap(), Places::from(expected));
        assert!(read(&root.path().join("none")).is_err());
        let of = |cache: &str| of_cache(root.path(), cache);
        assert_eq!(of("kmalloc-256"), [("take [foo]".to_owned(), 12), ("start".to_owned(), 3)]);
        assert!(of("kmalloc-8").is_empty() && of("../slab/kmalloc-256").is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,80}|[0-9]{1,24} \\PC{0,40}") {
            let _ = owner(&line);
        }
    }
}
