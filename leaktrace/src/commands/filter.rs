//! The `--cache` options.

use anyhow::{Context as _, Result};
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::proc::slab::CacheTraits;

/// Names of slab caches that are recorded.
pub(super) struct Filter {
    globs: Option<GlobSet>,
    /// The patterns as they were given, and whether a cache with such a name was seen.
    patterns: Vec<(String, bool)>,
}

impl Filter {
    /// Understands patterns; none records all.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            set.add(Glob::new(pattern).with_context(|| format!("cannot understand --cache {pattern}"))?);
        }
        let globs = if patterns.is_empty() { None } else { Some(set.build()?) };
        Ok(Self { globs, patterns: patterns.iter().map(|pattern| (pattern.clone(), false)).collect() })
    }

    /// Whether it leaves anything out.
    pub(super) fn is_on(&self) -> bool {
        self.globs.is_some()
    }

    /// Whether a cache has such a name, or one that was merged with it has. Remembers which patterns did match.
    pub(super) fn matches(&mut self, name: &str, traits: Option<&CacheTraits>) -> bool {
        let Some(globs) = &self.globs else { return true };
        let aliases = traits.into_iter().flat_map(|traits| traits.aliases.iter().map(String::as_str));
        let mut any = false;
        for name in std::iter::once(name).chain(aliases) {
            for index in globs.matches(name) {
                self.patterns[index].1 = true;
                any = true;
            }
        }
        any
    }

    /// The patterns that no cache's name has matched so far.
    pub(super) fn absent(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().filter(|(_, seen)| !seen).map(|(pattern, _)| pattern.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_without_a_cache_are_known() {
        let mut filter = Filter::new(&["kmalloc-*".into(), "foo_cache".into(), "nosuch".into()]).unwrap();
        assert_eq!(filter.absent().count(), 3);
        assert!(filter.matches("kmalloc-64", None) && !filter.matches("dentry", None));
        assert_eq!(filter.absent().collect::<Vec<_>>(), ["foo_cache", "nosuch"]);
        // A module's cache that the kernel merged has its own name only as an alias.
        let merged = CacheTraits { aliases: vec!["foo_cache".into()], ..CacheTraits::default() };
        assert!(filter.matches("kmalloc-rnd-01-64", Some(&merged)));
        assert_eq!(filter.absent().collect::<Vec<_>>(), ["nosuch"]);
        let mut all = Filter::new(&[]).unwrap();
        assert!(!all.is_on() && all.matches("dentry", None) && all.absent().count() == 0);
    }
}
