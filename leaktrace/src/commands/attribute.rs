//! Whose a stack is, by the symbols of the kernel and of all modules that have been seen.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{
    analysis::blame::{self, Function, Place, Uses as _},
    kernel::{
        modules::Users,
        places::{Learned, Places},
        symbols::Symbols,
    },
    tracer::{Attribute, Located, Stay},
};

/// The symbols, and what the user calls a helper.
pub(super) struct Attribution {
    symbols: Arc<Symbols>,
    helpers: Vec<String>,
    modules: RwLock<(Vec<Arc<Learned>>, Arc<Users>)>,
}

impl Attribution {
    pub(super) fn new(symbols: Arc<Symbols>, helpers: Vec<String>) -> Self {
        Self { symbols, helpers, modules: RwLock::default() }
    }

    /// Learns what has become known of modules.
    pub(super) fn learn(&self, places: &Places) {
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        *modules = (places.learned().to_vec(), Arc::clone(places.users()));
    }

    fn of<R>(
        &self,
        frames: &[u64],
        stays: &[Stay],
        with: impl FnOnce(&[Option<Function<'_>>], &Users) -> R,
    ) -> R {
        let modules = self.modules.read().unwrap_or_else(PoisonError::into_inner);
        let (learned, users) = &*modules;
        let functions: Vec<_> = frames
            .iter()
            .map(|&address| {
                let location = learned
                    .iter()
                    .find_map(|learned| learned.locate_return(address))
                    .or_else(|| self.symbols.locate_return(address));
                match location {
                    Some(location) => Some(Function { symbol: location.symbol, module: location.module }),
                    // A watched module's, loaded since the symbols were read.
                    None => stays
                        .iter()
                        .find(|stay| stay.contains(address.wrapping_sub(1)))
                        .map(|stay| Function { symbol: "", module: Some(&stay.module) }),
                }
            })
            .collect();
        with(&functions, users)
    }
}

impl Attribute for Attribution {
    fn call_site(&self, frames: &[u64], pages: bool, stays: &[Stay]) -> Located {
        self.of(frames, stays, |functions, _| match blame::call_site(functions, pages) {
            Place::At(index) => Located::At(frames[index]),
            Place::CountedElsewhere => Located::CountedElsewhere,
            Place::Unknown => Located::At(0),
        })
    }

    fn responsible(&self, frames: &[u64], stays: &[Stay]) -> Option<u64> {
        self.of(frames, stays, |functions, users| {
            blame::responsible(functions, &self.helpers, users).map(|index| frames[index])
        })
    }

    fn is_shared(&self, call_site: u64, stays: &[Stay]) -> bool {
        self.of(&[call_site], stays, |functions, users| {
            blame::responsible(functions, &self.helpers, users).is_none()
                || functions[0]
                    .and_then(|function| function.module)
                    .is_some_and(|module| users.is_library(module))
        })
    }
}
