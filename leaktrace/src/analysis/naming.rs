//! What an object is called: the kernel merges caches of one size and keeps only one of their names, which may be anybody's.

/// Words that are in the names of many caches and functions, and say nothing of what they are for.
const COMMON: [&str; 22] = [
    "alloc", "cache", "cachep", "kmem", "slab", "get", "new", "create", "init", "add", "make", "setup",
    "object", "entry", "struct", "data", "info", "node", "the", "kmalloc", "and", "from",
];

fn words(name: &str) -> impl Iterator<Item = String> + '_ {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .map(str::to_ascii_lowercase)
        .filter(|word| word.len() >= 3 && !COMMON.contains(&word.as_str()))
}

/// Whether two words are one, or one is short for the other.
fn alike(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Of the names of caches that were merged, the one that fits who allocates: `functions` are those that do, `module` is the one to
/// blame. `None` when no other name fits better than the cache's own.
pub fn object_name<'a>(
    cache: &str,
    aliases: &'a [String],
    functions: &[&str],
    module: Option<&str>,
) -> Option<&'a str> {
    let said: Vec<String> = functions.iter().copied().chain(module).flat_map(words).collect();
    let fits = |name: &str| words(name).filter(|word| said.iter().any(|said| alike(said, word))).count();
    let own = fits(cache);
    let (best, name) = aliases
        .iter()
        .map(|alias| (fits(alias), alias.as_str()))
        .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1)))?;
    (best > own).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_fits_is_taken() {
        let aliases = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (cache, merged, functions, module, name) in [
            (
                "Acpi-State",
                "can_receiver kernfs_iattrs_cache",
                &["can_rx_register"][..],
                Some("can_isotp"),
                Some("can_receiver"),
            ),
            (
                "ftrace_event_field",
                "Acpi-Parse damon_region file_lock_ctx",
                &["damon_split_region_at"],
                None,
                Some("damon_region"),
            ),
            ("net_bridge_fdb_entry", "backing_aio", &["fdb_create"], Some("bridge"), None),
            ("signal_cache", "UDP TCP", &["sk_prot_alloc", "sk_alloc"], None, None),
            ("kmalloc-64", "", &["foo"], None, None),
        ] {
            let merged = aliases(merged);
            assert_eq!(object_name(cache, &merged, functions, module), name, "{cache}");
        }
        assert_eq!(object_name("pid", &[], &["alloc_pid"], None), None);
    }
}
