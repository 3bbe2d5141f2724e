//! Whose a stack is, by the symbols that are known at the start: what is loaded later is no allocator.

use std::sync::Arc;

use crate::{
    analysis::blame::{self, Function, Place},
    kernel::symbols::Symbols,
    tracer::{Attribute, Located, Stay},
};

/// The symbols, and what the user calls a helper.
pub(super) struct Attribution {
    pub(super) symbols: Arc<Symbols>,
    pub(super) helpers: Vec<String>,
}

impl Attribution {
    fn functions(&self, frames: &[u64], stays: &[Stay]) -> Vec<Option<Function<'_>>> {
        frames
            .iter()
            .map(|&address| match self.symbols.locate_return(address) {
                Some(location) => {
                    Some(Function { symbol: location.symbol, in_module: location.module.is_some() })
                }
                // A watched module's, loaded since the symbols were read.
                None if stays.iter().any(|stay| stay.contains(address.wrapping_sub(1))) => {
                    Some(Function { symbol: "", in_module: true })
                }
                None => None,
            })
            .collect()
    }
}

impl Attribute for Attribution {
    fn call_site(&self, frames: &[u64], pages: bool, stays: &[Stay]) -> Located {
        match blame::call_site(&self.functions(frames, stays), pages) {
            Place::At(index) => Located::At(frames[index]),
            Place::CountedElsewhere => Located::CountedElsewhere,
            Place::Unknown => Located::At(0),
        }
    }

    fn responsible(&self, frames: &[u64], stays: &[Stay]) -> Option<u64> {
        blame::responsible(&self.functions(frames, stays), &self.helpers).map(|index| frames[index])
    }
}
