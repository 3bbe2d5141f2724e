//! One bucket of the table of outstanding objects.
//!
//! The kernel orders the events of one address: an allocation is announced after the object was
//! obtained, a free before it can be had again. So at most one program at a time works on one
//! address, and what programs contend for is only the empty slots.

use core::hint::cold_path;

use leaktrace_common::{BUCKET_SLOTS, Bucket, KEY_BUSY, KEY_EMPTY, Payload};

use crate::atomic;

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The object has a slot of its own.
    New,
    /// The address was there already, so its free was missed; this is the site of the old object.
    Replaced(u32),
    /// Every slot is taken.
    Full,
}

/// Puts an object into its bucket.
///
/// # Safety
/// `bucket` points to a bucket that stays mapped and that everyone accesses by this module's rules.
#[inline(always)]
pub unsafe fn insert(bucket: *mut Bucket, key: u64, payload: &Payload, weakly_ordered: bool) -> Inserted {
    let keys = bucket.cast::<u64>();
    // One look at all keys for this address, then one for room. Together they would be a branch for
    // each slot that depends on who else is in the bucket, which no CPU predicts.
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: `slot` is below BUCKET_SLOTS and the bucket begins with its keys.
        unsafe {
            if atomic::load(keys.add(slot)) == key {
                cold_path();
                // The slot is this address's and nobody else touches it.
                return take_over(bucket, slot, key, payload, weakly_ordered);
            }
        }
    }
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: as above. A slot that another CPU takes between the two accesses is passed over.
        unsafe {
            if atomic::load(keys.add(slot)) == KEY_EMPTY
                && atomic::replace(keys.add(slot), KEY_EMPTY, KEY_BUSY)
            {
                write_payload(bucket, slot, payload);
                atomic::publish(keys.add(slot), key, weakly_ordered);
                return Inserted::New;
            }
        }
    }
    Inserted::Full
}

/// Reuses the slot of an older object at the same address.
#[inline(always)]
unsafe fn take_over(
    bucket: *mut Bucket,
    slot: usize,
    key: u64,
    payload: &Payload,
    weakly_ordered: bool,
) -> Inserted {
    let keys = bucket.cast::<u64>();
    // SAFETY: the caller's promise. User space, which scans meanwhile, must not see the new
    // payload under the old key half written, hence the busy mark.
    unsafe {
        atomic::publish(keys.add(slot), KEY_BUSY, weakly_ordered);
        let old = (&raw const (*bucket).payloads[slot].site).read_volatile();
        write_payload(bucket, slot, payload);
        atomic::publish(keys.add(slot), key, weakly_ordered);
        Inserted::Replaced(old)
    }
}

#[inline(always)]
unsafe fn write_payload(bucket: *mut Bucket, slot: usize, payload: &Payload) {
    // SAFETY: the caller has claimed the slot, which is below BUCKET_SLOTS.
    unsafe { (&raw mut (*bucket).payloads[slot]).write_volatile(*payload) }
}

/// Size of an object, 0 when the bucket does not have it.
///
/// # Safety
/// As for [`insert`].
#[inline(always)]
pub unsafe fn size(bucket: *const Bucket, key: u64) -> u32 {
    let keys = bucket.cast::<u64>();
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: `slot` is below BUCKET_SLOTS; the caller asks for an address that is its own.
        unsafe {
            if atomic::load(keys.add(slot)) == key {
                return (&raw const (*bucket).payloads[slot].size).read_volatile();
            }
        }
    }
    0
}

/// Takes an object out of its bucket and returns what was known of it.
///
/// # Safety
/// As for [`insert`].
#[inline(always)]
pub unsafe fn remove(bucket: *mut Bucket, key: u64, weakly_ordered: bool) -> Option<Payload> {
    let keys = bucket.cast::<u64>();
    for slot in 0..BUCKET_SLOTS {
        // SAFETY: `slot` is below BUCKET_SLOTS; a slot with our key is ours until we clear it.
        unsafe {
            if atomic::load(keys.add(slot)) == key {
                let payload = (&raw const (*bucket).payloads[slot]).read_volatile();
                atomic::publish(keys.add(slot), KEY_EMPTY, weakly_ordered);
                return Some(payload);
            }
        }
    }
    None
}

/// Reads a slot from user space while programs are changing it; `None` when it holds nothing
/// that was stable for the time of the read.
///
/// # Safety
/// As for [`insert`], but the bucket need not be writable; `slot` is below [`BUCKET_SLOTS`].
#[inline]
pub unsafe fn read(bucket: *const Bucket, slot: usize) -> Option<(u64, Payload)> {
    let keys = bucket.cast::<u64>();
    // SAFETY: the caller's promise. The second look at the key tells whether the slot changed
    // hands meanwhile; the same object freed and allocated again in between has a new time, and
    // either payload is a true one because a slot is never reused without KEY_BUSY or KEY_EMPTY
    // in between, which x86 and the fence keep in order.
    unsafe {
        let key = atomic::load(keys.add(slot));
        if key == KEY_EMPTY || key == KEY_BUSY {
            return None;
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        let payload = (&raw const (*bucket).payloads[slot]).read_volatile();
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        (atomic::load(keys.add(slot)) == key).then_some((key, payload))
    }
}
