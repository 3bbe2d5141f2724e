//! The table of outstanding objects: buckets, and a map for what full buckets cannot take.

use leaktrace_common::{Bucket, Payload};

use crate::live::{self, Inserted};

/// Where the objects of full buckets go.
pub trait Overflow {
    /// Whether it certainly holds nothing, which spares the look-up.
    fn is_empty(&self) -> bool;
    /// Takes an object in; false when there is no room.
    fn put(&mut self, key: u64, payload: &Payload) -> bool;
    /// Takes an object out; returns when it was allocated, and its site.
    fn take(&mut self, key: u64) -> Option<(u64, u32)>;
}

/// What became of an allocated object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Whether there was room for it.
    pub tracked: bool,
    /// Site of the object that was at its address, the free of which was missed.
    pub replaced: Option<u32>,
}

/// Puts an object into the table.
///
/// # Safety
/// `bucket` is the address's bucket, mapped and accessed by the rules of [`live`].
#[inline(always)]
pub unsafe fn put(
    bucket: *mut Bucket,
    overflow: &mut impl Overflow,
    key: u64,
    payload: &Payload,
    weakly_ordered: bool,
) -> Stored {
    let missed = if overflow.is_empty() { None } else { overflow.take(key) };
    // SAFETY: the caller's promise.
    let inserted = unsafe { live::insert(bucket, key, payload, weakly_ordered) };
    match inserted {
        Inserted::Replaced(site) => Stored { tracked: true, replaced: Some(site) },
        Inserted::New => Stored { tracked: true, replaced: missed.map(|(_, site)| site) },
        Inserted::Full => {
            Stored { tracked: overflow.put(key, payload), replaced: missed.map(|(_, site)| site) }
        }
    }
}

/// Takes an object out of the table; returns when it was allocated, and its site.
///
/// # Safety
/// As for [`put`].
#[inline(always)]
pub unsafe fn take(
    bucket: *mut Bucket,
    overflow: &mut impl Overflow,
    key: u64,
    weakly_ordered: bool,
) -> Option<(u64, u32)> {
    // SAFETY: the caller's promise.
    match unsafe { live::remove(bucket, key, weakly_ordered) } {
        None if !overflow.is_empty() => overflow.take(key),
        found => found,
    }
}
