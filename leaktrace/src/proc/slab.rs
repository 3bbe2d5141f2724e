//! /proc/slabinfo, and what /sys/kernel/slab adds to it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

/// One cache of /proc/slabinfo (`mm/slab_common.c`, `cache_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabCache {
    /// Objects that SLUB counts as in use: see [`CacheTraits`] for what that includes.
    pub active_objects: u64,
    /// Objects that its slabs have room for.
    pub total_objects: u64,
    /// Bytes that each takes.
    pub object_size: u32,
    /// Objects in a slab.
    pub objects_per_slab: u32,
    /// Pages that its slabs take.
    pub pages: u64,
}

/// Reads `/proc/slabinfo` below `root`, by cache name.
///
/// # Errors
/// When the file cannot be read (it is for root only) or is no slabinfo of version 2.
pub fn read_slabinfo(root: &Path) -> Result<BTreeMap<String, SlabCache>> {
    let path = root.join("proc/slabinfo");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_slabinfo(&String::from_utf8_lossy(&text))
        .with_context(|| format!("cannot understand {}", path.display()))
}

fn parse_slabinfo(text: &str) -> Result<BTreeMap<String, SlabCache>> {
    ensure!(text.starts_with("slabinfo - version: 2"), "it is not of version 2");
    let mut caches: BTreeMap<String, SlabCache> = BTreeMap::new();
    for (name, cache) in text.lines().skip(1).filter(|line| !line.starts_with('#')).filter_map(parse_line) {
        // A module that is loaded again while objects of its last stay are left has two caches of one name.
        caches
            .entry(name)
            .and_modify(|other| {
                other.active_objects += cache.active_objects;
                other.total_objects += cache.total_objects;
                other.objects_per_slab = other.objects_per_slab.max(cache.objects_per_slab);
                other.pages += cache.pages;
            })
            .or_insert(cache);
    }
    Ok(caches)
}

/// A name may contain spaces, so the numbers are counted from the colon that ends them.
fn parse_line(line: &str) -> Option<(String, SlabCache)> {
    let numbers = line.split(" : tunables").next()?;
    let mut fields = numbers.rsplit_ascii_whitespace_n(6)?;
    fields.reverse();
    let [name, active, total, size, per_slab, pages_per_slab] = fields.as_slice() else { return None };
    let slabs = || line.split(" : slabdata").nth(1)?.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
    Some((
        (*name).to_owned(),
        SlabCache {
            active_objects: active.parse().ok()?,
            total_objects: total.parse().ok()?,
            object_size: size.parse().ok()?,
            objects_per_slab: per_slab.parse().ok()?,
            pages: slabs().unwrap_or(0).saturating_mul(pages_per_slab.parse().ok()?),
        },
    ))
}

/// Splitting off the last fields of a line.
trait SplitLast {
    /// The last `n - 1` fields, last first, and then all that is before them.
    fn rsplit_ascii_whitespace_n(&self, n: usize) -> Option<Vec<&str>>;
}

impl SplitLast for str {
    fn rsplit_ascii_whitespace_n(&self, n: usize) -> Option<Vec<&str>> {
        let mut rest = self.trim();
        let mut fields = Vec::with_capacity(n);
        for _ in 1..n {
            let space = rest.rfind(|c: char| c.is_ascii_whitespace())?;
            fields.push(&rest[space + 1..]);
            rest = rest[..space].trim_end();
        }
        fields.push(rest);
        Some(fields)
    }
}

/// Reads `/sys/kernel/slab` below `root`, which has the same numbers in a file each: where slabinfo is masked.
///
/// # Errors
/// When nothing of it can be read: it is for root only.
pub fn read_sysfs(root: &Path) -> Result<BTreeMap<String, SlabCache>> {
    let directory = root.join("sys/kernel/slab");
    let unreadable = || format!("cannot read {}", directory.display());
    let aliases = read_aliases(&directory);
    let mut caches = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(unreadable)?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let number = |file: &str| -> Option<u64> {
            fs::read_to_string(entry.path().join(file)).ok()?.split_ascii_whitespace().next()?.parse().ok()
        };
        let cache = || {
            Some(SlabCache {
                active_objects: number("objects")?,
                total_objects: number("total_objects")?,
                object_size: u32::try_from(number("slab_size")?).ok()?,
                objects_per_slab: u32::try_from(number("objs_per_slab")?).ok()?,
                pages: number("slabs")?.checked_shl(u32::try_from(number("order")?).ok()?)?,
            })
        };
        let (Some(cache), Ok(name)) = (cache(), entry.file_name().into_string()) else { continue };
        // What is merged has a name that nobody knows, and links to it with those of its caches.
        let known = aliases.get(&name).and_then(|names| names.iter().min().cloned());
        caches.insert(known.unwrap_or(name), cache);
    }
    ensure!(!caches.is_empty(), "{}: nothing in it can be read", directory.display());
    Ok(caches)
}

/// The constructor of a cache's objects, `function [module]`: it tells whose cache it is (`mm/slub.c`, `ctor_show`).
pub fn constructor(root: &Path, cache: &str) -> Option<String> {
    let text = fs::read_to_string(root.join("sys/kernel/slab").join(cache).join("ctor")).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What /sys/kernel/slab says of one cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheTraits {
    /// Objects that one CPU may keep in partial slabs of its own, which slabinfo counts as active.
    pub cpu_partial: u64,
    /// Objects in one per-CPU sheaf (6.18 and later), free but counted as active.
    pub sheaf_capacity: u64,
    /// Whether its objects are of the kind that the kernel frees when memory is short.
    pub reclaimable: bool,
    /// Other names of the same cache: caches alike are merged, and slabinfo has only the first.
    pub aliases: Vec<String>,
}

/// Reads `/sys/kernel/slab` below `root` for the caches named; those without an entry are left out.
pub fn read_traits<'a>(root: &Path, caches: impl Iterator<Item = &'a str>) -> HashMap<String, CacheTraits> {
    let directory = root.join("sys/kernel/slab");
    let aliases = read_aliases(&directory);
    caches
        .filter_map(|cache| {
            let entry = directory.join(cache);
            let target = fs::canonicalize(&entry).ok()?;
            let number = |file: &str| {
                fs::read_to_string(entry.join(file))
                    .ok()
                    .and_then(|text| text.split_ascii_whitespace().next()?.parse().ok())
                    .unwrap_or(0)
            };
            let mut others: Vec<String> = aliases
                .get(target.file_name()?.to_str()?)
                .map(|names| names.iter().filter(|name| *name != cache).cloned().collect())
                .unwrap_or_default();
            others.sort();
            let traits = CacheTraits {
                cpu_partial: number("cpu_partial"),
                sheaf_capacity: number("sheaf_capacity"),
                reclaimable: number("reclaim_account") != 0,
                aliases: others,
            };
            Some((cache.to_owned(), traits))
        })
        .collect()
}

/// Names by the directory that they link to.
fn read_aliases(directory: &Path) -> HashMap<String, Vec<String>> {
    let mut aliases: HashMap<String, Vec<String>> = HashMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let (Some(target), Ok(name)) =
            (target.file_name().and_then(|name| name.to_str()), entry.file_name().into_string())
        else {
            continue;
        };
        aliases.entry(target.to_owned()).or_default().push(name);
    }
    aliases
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLABINFO: &str = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
fuse request          10     20    152   26    1 : tunables    0    0    0 : slabdata      2      2      0
kmalloc-64          6912   7040     64   64    1 : tunables    0    0    0 : slabdata    110    110      0
";

    #[test]
    fn caches_of_one_name_are_added_up() {
        let line = "foo_ctx 90 100 256 16 1 : tunables 0 0 0 : slabdata 1 1 0\n";
        let text = format!("slabinfo - version: 2.1\n# name\n{line}{}", line.replace("90", "7"));
        let caches = parse_slabinfo(&text).unwrap();
        assert_eq!((caches["foo_ctx"].active_objects, caches["foo_ctx"].object_size), (97, 256));
    }

    #[test]
    fn reads_names_with_spaces() {
        let caches = parse_slabinfo(SLABINFO).unwrap();
        assert_eq!(caches.len(), 2);
        let fuse = &caches["fuse request"];
        assert_eq!(
            (fuse.active_objects, fuse.total_objects, fuse.object_size, fuse.objects_per_slab),
            (10, 20, 152, 26)
        );
        assert_eq!((caches["kmalloc-64"].active_objects, caches["kmalloc-64"].pages), (6_912, 110));
        assert!(parse_slabinfo("slabinfo - version: 1.1\n").is_err());
    }

    #[test]
    fn finds_merged_caches() {
        let root = tempfile::tempdir().unwrap();
        let slab = root.path().join("sys/kernel/slab");
        fs::create_dir_all(slab.join(":0000192")).unwrap();
        fs::write(slab.join(":0000192/cpu_partial"), "120\n").unwrap();
        for name in ["skbuff", "bio-128", "pid"] {
            std::os::unix::fs::symlink(":0000192", slab.join(name)).unwrap();
        }
        let traits = read_traits(root.path(), ["pid", "absent"].into_iter());
        assert_eq!(traits.len(), 1);
        assert_eq!(traits["pid"].aliases, ["bio-128", "skbuff"]);
        assert_eq!((traits["pid"].cpu_partial, traits["pid"].sheaf_capacity), (120, 0));
    }

    #[test]
    fn reads_the_running_kernel() {
        let caches = read_slabinfo(Path::new("/")).unwrap();
        assert!(caches.contains_key("dentry") && caches.contains_key("kmalloc-64"));
        let sysfs = read_sysfs(Path::new("/")).unwrap();
        let (here, there) = (&caches["task_struct"], &sysfs["task_struct"]);
        assert_eq!((here.object_size, here.objects_per_slab), (there.object_size, there.objects_per_slab));
        assert!(here.pages.abs_diff(there.pages) < here.pages / 2, "{here:?} {there:?}");
        assert!(constructor(Path::new("/"), "radix_tree_node").unwrap().starts_with("radix_tree_node_ctor"));
        let traits = read_traits(Path::new("/"), caches.keys().map(String::as_str));
        assert!(traits.values().any(|traits| traits.cpu_partial > 0));
        assert!(traits.values().any(|traits| !traits.aliases.is_empty()));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = parse_slabinfo(&format!("slabinfo - version: 2.1\n{text}"));
        }
    }
}
