//! The `--cache` options.

use anyhow::{Context as _, Result};
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::proc::slab::CacheTraits;

/// Names of slab caches that are recorded.
pub(super) struct Filter {
    globs: Option<GlobSet>,
}

impl Filter {
    /// Understands patterns; none records all.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Self { globs: None });
        }
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            set.add(Glob::new(pattern).with_context(|| format!("cannot understand --cache {pattern}"))?);
        }
        Ok(Self { globs: Some(set.build()?) })
    }

    /// Whether it leaves anything out.
    pub(super) fn is_on(&self) -> bool {
        self.globs.is_some()
    }

    /// Whether a cache has such a name, or one that was merged with it has.
    pub(super) fn matches(&self, name: &str, traits: Option<&CacheTraits>) -> bool {
        let Some(globs) = &self.globs else { return true };
        globs.is_match(name)
            || traits.is_some_and(|traits| traits.aliases.iter().any(|alias| globs.is_match(alias)))
    }
}
