//! The kernel's own accounts of who holds memory (`proc::profile`), beside what was traced.

use std::collections::{BTreeMap, HashMap};

use crate::proc::profile::Places;

/// Bytes that a place in the kernel's source holds, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// `file:line [module] function`, or `function [module]`.
    pub place: String,
    /// At the beginning.
    pub before: u64,
    /// At the end.
    pub after: u64,
}

impl Account {
    /// The change.
    pub fn grown(&self) -> i64 {
        self.after as i64 - self.before as i64
    }
}

/// All accounts, by function.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    all: Vec<Account>,
    by_function: HashMap<(String, Option<String>), Vec<usize>>,
}

/// What the accounts say of what was traced at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// They grew by about as much.
    Agrees,
    /// They grew by more: the function has other callers or other allocations.
    More,
    /// They grew by less: some of what was traced may have been freed unseen.
    Less,
}

impl Agreement {
    /// The word for it in the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::More => "more in the accounts",
            Self::Less => "less in the accounts",
        }
    }

    /// Compares a change with live bytes: what was freed of older objects makes it smaller, by chance.
    pub fn of(grown: i64, live: u64) -> Self {
        let (grown, live) = (grown as f64, live as f64);
        if grown < live * 0.8 {
            Self::Less
        } else if grown > live * 1.25 {
            Self::More
        } else {
            Self::Agrees
        }
    }
}

impl Accounts {
    /// Brings both readings together.
    pub fn new(before: &Places, after: &Places) -> Self {
        let mut both: BTreeMap<&String, (u64, u64)> = BTreeMap::new();
        for (place, &bytes) in before {
            both.entry(place).or_default().0 = bytes;
        }
        for (place, &bytes) in after {
            both.entry(place).or_default().1 = bytes;
        }
        let mut accounts = Self::default();
        for (place, (before, after)) in both {
            let index = accounts.all.len();
            accounts.all.push(Account { place: place.clone(), before, after });
            if let Some(function) = function(place) {
                accounts.by_function.entry(function).or_default().push(index);
            }
        }
        accounts
    }

    /// The accounts of the first of some functions that has any, as one; with the place that holds most.
    pub fn of(&self, functions: &[(String, Option<String>)]) -> Option<Account> {
        let plain = |(symbol, module): &(String, Option<String>)| {
            // The compiler names its own copies of a function so.
            (symbol.split('.').next().unwrap_or_default().to_owned(), module.clone())
        };
        let indices = functions.iter().find_map(|function| self.by_function.get(&plain(function)))?;
        let of_function = || indices.iter().map(|&index| &self.all[index]);
        let largest = of_function().max_by_key(|account| account.after.max(account.before))?;
        Some(Account {
            place: largest.place.clone(),
            before: of_function().map(|account| account.before).sum(),
            after: of_function().map(|account| account.after).sum(),
        })
    }

    /// The only account of a module whose growth agrees with live bytes: an account has the name of the function in the
    /// source, which the compiler may have put into its caller.
    pub fn alike(&self, module: &str, live: u64) -> Option<Account> {
        let of_module = |account: &&Account| {
            function(&account.place).is_some_and(|(_, of)| of.as_deref() == Some(module))
                && Agreement::of(account.grown(), live) == Agreement::Agrees
        };
        let mut alike = self.all.iter().filter(of_module);
        let first = alike.next()?;
        alike.next().is_none().then(|| first.clone())
    }

    /// Those that grew most, and then the largest.
    pub fn most(&self, number: usize) -> Vec<Account> {
        let mut all: Vec<&Account> = self.all.iter().filter(|account| account.after > 0).collect();
        // Growth below this is told by size.
        let grown = |account: &Account| account.grown().max(0) >> 16;
        all.sort_by(|a, b| grown(b).cmp(&grown(a)).then(b.after.cmp(&a.after)).then(a.place.cmp(&b.place)));
        all.into_iter().take(number).cloned().collect()
    }
}

/// Function and module of `file:line [module] function` or `function [module]`.
fn function(place: &str) -> Option<(String, Option<String>)> {
    let mut module = None;
    let mut function = None;
    for word in place.split(' ') {
        if let Some(name) = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) {
            module = Some(name.to_owned());
        } else if !word.contains(':') {
            function = Some(word.to_owned());
        }
    }
    Some((function?, module))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(places: &[(&str, u64)]) -> Places {
        places.iter().map(|&(place, bytes)| (place.to_owned(), bytes)).collect()
    }

    #[test]
    fn accounts_are_found_by_function() {
        let accounts = Accounts::new(
            &places(&[("drv.c:7 [drv] take", 5_000), ("mm/slub.c:12 alloc_slab", 900)]),
            &places(&[
                ("drv.c:7 [drv] take", 9_000),
                ("drv.c:9 [drv] take", 100),
                ("mm/slub.c:12 alloc_slab", 800),
            ]),
        );
        let of = |symbol: &str, module: Option<&str>| {
            accounts.of(&[(symbol.to_owned(), module.map(str::to_owned))])
        };
        let take = of("take.constprop.0", Some("drv")).unwrap();
        assert_eq!(
            (take.place.as_str(), take.before, take.after, take.grown()),
            ("drv.c:7 [drv] take", 5_000, 9_100, 4_100)
        );
        assert_eq!(of("take", None), None);
        assert_eq!(accounts.alike("drv", 4_000).unwrap().place, "drv.c:7 [drv] take");
        assert_eq!((accounts.alike("drv", 400), accounts.alike("other", 4_000)), (None, None));
        assert_eq!(of("alloc_slab", None).unwrap().grown(), -100);
        assert_eq!(accounts.most(1)[0].place, "drv.c:7 [drv] take");
        assert_eq!(function("page_leak [drv]"), Some(("page_leak".into(), Some("drv".into()))));
    }

    #[test]
    fn changes_are_compared() {
        assert_eq!(Agreement::of(100, 100), Agreement::Agrees);
        assert_eq!(Agreement::of(79, 100), Agreement::Less);
        assert_eq!(Agreement::of(-5, 100), Agreement::Less);
        assert_eq!(Agreement::of(126, 100), Agreement::More);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(before in prop::collection::btree_map("[a-z]{1,3}", 0_u64..100, 0..10), after in prop::collection::btree_map("[a-z]{1,3}", 1_u64..100, 0..10)) {
            let accounts = Accounts::new(&before, &after);
            prop_assert_eq!(accounts.most(100).iter().map(|account| account.after).sum::<u64>(), after.values().sum::<u64>());
        }
    }
}
