//! The hash map behind the buckets; the control block counts what it holds.

use leaktrace_common::{Control, Payload};
use leaktrace_ebpf::{atomic, table::Overflow};

use crate::maps::OVERFLOW;

/// The map, with the control block.
pub(crate) struct OverflowMap(pub(crate) *mut Control);

impl Overflow for OverflowMap {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        // SAFETY: the control block is a map value.
        unsafe { (&raw const (*self.0).overflow_live).read_volatile() == 0 }
    }

    #[inline(always)]
    fn put(&mut self, key: u64, payload: &Payload) -> bool {
        let room = OVERFLOW.insert(&key, payload, 0).is_ok();
        if room {
            // SAFETY: the control block is a map value.
            unsafe { atomic::add(&raw mut (*self.0).overflow_live, 1) };
        }
        room
    }

    #[inline(always)]
    fn take(&mut self, key: u64) -> Option<Payload> {
        // SAFETY: the entry is this address's, and the kernel keeps its memory while programs that found it run.
        unsafe {
            let found = *OVERFLOW.get_ptr(&key)?;
            // Only one of those that found it takes it out.
            if OVERFLOW.remove(&key).is_err() {
                return None;
            }
            atomic::add(&raw mut (*self.0).overflow_live, u64::MAX);
            Some(found)
        }
    }

    #[inline(always)]
    fn size(&self, key: u64) -> u32 {
        // SAFETY: as above.
        OVERFLOW.get_ptr(&key).map_or(0, |found| unsafe { (*found).size })
    }
}
