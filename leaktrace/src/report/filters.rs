//! What a trace was narrowed to, and what of that was never there.

use serde::{Deserialize, Serialize};

use super::{escape, model::Word};
use crate::units;

/// What was recorded: where nothing is set, everything was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Filters {
    /// Only allocations whose stack passes through one of these modules.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Only slab caches with such a name, as globs.
    #[serde(default)]
    pub caches: Vec<String>,
    /// Only these kinds of memory.
    #[serde(default)]
    pub families: Vec<Word>,
    /// Only objects that are at least this large, in bytes.
    #[serde(default)]
    pub min_size: u32,
    /// Only objects that are at most this large, in bytes.
    #[serde(default)]
    pub max_size: Option<u32>,
    /// The same in a sentence; empty where everything was recorded.
    #[serde(default)]
    pub text: String,
    /// Of `modules` those that were never loaded while it was traced.
    #[serde(default)]
    pub absent_modules: Vec<String>,
    /// Of `caches` those that no cache's name matched.
    #[serde(default)]
    pub absent_caches: Vec<String>,
}

impl Filters {
    /// What is recorded, in a sentence; nothing where that is everything.
    pub fn in_words(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.modules.is_empty() {
            parts.push(format!("allocations through {}", named("module", &self.modules, "or")));
        }
        if !self.caches.is_empty() {
            parts.push(format!("slab caches named {}", list(&self.caches, "or")));
        }
        if !self.families.is_empty() {
            let families: Vec<String> = self.families.iter().map(ToString::to_string).collect();
            parts.push(format!("{} memory", list(&families, "and")));
        }
        let size = |bytes: u32| units::bytes(f64::from(bytes));
        match (self.min_size, self.max_size) {
            (0, None) => {}
            (0, Some(max)) => parts.push(format!("objects of at most {}", size(max))),
            (min, None) => parts.push(format!("objects of at least {}", size(min))),
            (min, Some(max)) => parts.push(format!("objects from {} to {}", size(min), size(max))),
        }
        (!parts.is_empty()).then(|| format!("Recorded only {}.", parts.join("; only ")))
    }

    /// What was asked for and never there: a misspelled name, or a module whose load failed. Nothing can be said of that.
    pub fn absent(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.absent_modules.is_empty() {
            let was = if self.absent_modules.len() == 1 { "was" } else { "were" };
            parts.push(format!("{} {was} never loaded", named("module", &self.absent_modules, "and")));
        }
        if !self.absent_caches.is_empty() {
            parts.push(format!("no slab cache is named {}", list(&self.absent_caches, "or")));
        }
        if parts.is_empty() {
            return None;
        }
        let all = |absent: &[String], asked: &[String]| !asked.is_empty() && absent.len() == asked.len();
        // Either filter alone lets nothing through where all that it names is absent.
        let nothing = all(&self.absent_modules, &self.modules) || all(&self.absent_caches, &self.caches);
        let rest = if nothing { "so nothing was traced" } else { "and that was not traced" };
        Some(format!("{}, {rest}", parts.join(" and ")))
    }
}

/// `module a`, `modules a or b`.
fn named(what: &str, names: &[String], word: &str) -> String {
    format!("{what}{} {}", if names.len() == 1 { "" } else { "s" }, list(names, word))
}

/// `a`, `a or b`, `a, b or c`.
fn list(names: &[String], word: &str) -> String {
    let names: Vec<_> = names.iter().map(|name| escape(name)).collect();
    match names.split_last() {
        Some((last, [])) => last.to_string(),
        Some((last, others)) => format!("{} {word} {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn filters_are_told() {
        assert_eq!(Filters::default().in_words(), None);
        let filters = Filters { modules: owned(&["foo"]), min_size: 512, ..Filters::default() };
        assert_eq!(
            filters.in_words().as_deref(),
            Some("Recorded only allocations through module foo; only objects of at least 512 B.")
        );
        let filters = Filters {
            caches: owned(&["a*", "b", "c"]),
            families: vec!["slab".into(), "page".into()],
            min_size: 1_024,
            max_size: Some(4_096),
            ..Filters::default()
        };
        assert_eq!(
            filters.in_words().as_deref(),
            Some(
                "Recorded only slab caches named a*, b or c; only slab and page memory; \
                 only objects from 1.0 KiB to 4.0 KiB."
            )
        );
    }

    #[test]
    fn what_was_never_there_is_named() {
        let absent = |modules: &[&str], caches: &[&str], absent: (&[&str], &[&str])| {
            Filters {
                modules: owned(modules),
                caches: owned(caches),
                absent_modules: owned(absent.0),
                absent_caches: owned(absent.1),
                ..Filters::default()
            }
            .absent()
        };
        assert_eq!(absent(&["foo"], &[], (&[], &[])), None);
        assert_eq!(
            absent(&["foo"], &[], (&["foo"], &[])).as_deref(),
            Some("module foo was never loaded, so nothing was traced")
        );
        assert_eq!(
            absent(&["bar", "foo"], &[], (&["foo"], &[])).as_deref(),
            Some("module foo was never loaded, and that was not traced")
        );
        assert_eq!(
            absent(&["a", "b"], &["x*"], (&["a", "b"], &["x*"])).as_deref(),
            Some("modules a and b were never loaded and no slab cache is named x*, so nothing was traced")
        );
        // The caches are there, but no allocation can pass through the module.
        assert_eq!(
            absent(&["a"], &["x", "y"], (&["a"], &["y"])).as_deref(),
            Some("module a was never loaded and no slab cache is named y, so nothing was traced")
        );
    }
}
