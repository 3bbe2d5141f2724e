//! The table of outstanding objects: buckets, and a map for what full buckets cannot take.

use core::hint::cold_path;

use leaktrace_common::{Bucket, Payload};

use crate::live::{self, Inserted};

/// Where the objects of full buckets go.
pub trait Overflow {
    /// Whether it certainly holds nothing, which spares the look-up.
    fn is_empty(&self) -> bool;
    /// Takes an object in; false when there is no room.
    fn put(&mut self, key: u64, payload: &Payload) -> bool;
    /// Takes an object out; returns what was known of it.
    fn take(&mut self, key: u64) -> Option<Payload>;
    /// Size of an object, 0 when it is not there.
    fn size(&self, key: u64) -> u32;
}

/// What became of an allocated object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Whether there was room for it.
    pub tracked: bool,
    /// Site of the object that was at its address, the free of which was missed, or [`NO_SITE`].
    pub replaced: u32,
}

/// No site. Not an `Option`: the compiler may load the value of a `None` from the stack before it
/// looks, which the verifier of kernels before 6.3 takes for a read of what was never written.
pub const NO_SITE: u32 = u32::MAX;

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
    let mut missed = NO_SITE;
    if !overflow.is_empty()
        && let Some(old) = overflow.take(key)
    {
        cold_path();
        missed = old.site;
    }
    // SAFETY: the caller's promise.
    match unsafe { live::insert(bucket, key, payload, weakly_ordered) } {
        Inserted::Replaced(site) => Stored { tracked: true, replaced: site },
        Inserted::New => Stored { tracked: true, replaced: missed },
        Inserted::Full => Stored { tracked: overflow.put(key, payload), replaced: missed },
    }
}

/// Size of an object as its payload says, 0 when it is not in the table. A number, because the
/// verifier would follow every way of having found a payload.
///
/// # Safety
/// As for [`put`].
#[inline(always)]
pub unsafe fn size(bucket: *const Bucket, overflow: &impl Overflow, key: u64) -> u32 {
    // SAFETY: the caller's promise.
    let size = unsafe { live::size(bucket, key) };
    if size == 0 && !overflow.is_empty() {
        cold_path();
        return overflow.size(key);
    }
    size
}

/// Takes an object out of the table; returns what was known of it.
///
/// # Safety
/// As for [`put`].
#[inline(always)]
pub unsafe fn take(
    bucket: *mut Bucket,
    overflow: &mut impl Overflow,
    key: u64,
    weakly_ordered: bool,
) -> Option<Payload> {
    // SAFETY: the caller's promise.
    match unsafe { live::remove(bucket, key, weakly_ordered) } {
        None if !overflow.is_empty() => {
            cold_path();
            overflow.take(key)
        }
        found => found,
    }
}
