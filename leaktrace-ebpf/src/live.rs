//! One bucket of the table of outstanding objects.
//!
//! The kernel orders the events of one address: an allocation is announced after the object was
//! obtained, a free before it can be had again. So mostly one program at a time works on one
//! address. Not always: two CPUs may free two pages of one block, and user space takes entries out
//! when tables run short. Whoever changes a slot therefore claims it first, from empty or from its
//! key to busy, by an exchange that only one can win, and gives it up again when it is done.

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
                if atomic::replace(keys.add(slot), key, KEY_BUSY) {
                    return take_over(bucket, slot, key, payload, weakly_ordered);
                }
                // Taken out by somebody else meanwhile: it needs a slot of its own.
                break;
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

/// Reuses the slot of an older object at the same address, which the caller has claimed.
#[inline(always)]
unsafe fn take_over(
    bucket: *mut Bucket,
    slot: usize,
    key: u64,
    payload: &Payload,
    weakly_ordered: bool,
) -> Inserted {
    let keys = bucket.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe {
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
        // SAFETY: `slot` is below BUCKET_SLOTS; a slot that was claimed is ours until we clear it.
        unsafe {
            if atomic::load(keys.add(slot)) == key && atomic::replace(keys.add(slot), key, KEY_BUSY) {
                let payload = (&raw const (*bucket).payloads[slot]).read_volatile();
                atomic::publish(keys.add(slot), KEY_EMPTY, weakly_ordered);
                return Some(payload);
            }
        }
    }
    None
}

/// Takes an entry out of a slot from user space, if `wanted` says so of its payload; says whether it did.
///
/// It is asked once more of what was claimed: since the first look the object may have been freed, and another one
/// allocated at its address. Programs that look for that one just then do not find it, for some nanoseconds.
///
/// # Safety
/// As for [`insert`]; `slot` is below [`BUCKET_SLOTS`].
pub unsafe fn forget(
    bucket: *mut Bucket,
    slot: usize,
    mut wanted: impl FnMut(u64, &Payload) -> bool,
) -> bool {
    let word = bucket.cast::<u64>().wrapping_add(slot);
    // SAFETY: the caller's promise. What was claimed is nobody else's until it is published again.
    unsafe {
        let Some((key, payload)) = read(bucket, slot) else { return false };
        if !wanted(key, &payload) || !atomic::replace(word, key, KEY_BUSY) {
            return false;
        }
        let claimed = (&raw const (*bucket).payloads[slot]).read_volatile();
        let goes = wanted(key, &claimed);
        // Ordered whatever the machine is: this is user space, and seldom.
        atomic::publish(word, if goes { KEY_EMPTY } else { key }, true);
        goes
    }
}

/// Reads a slot from user space while programs are changing it; `None` when it holds nothing
/// that was stable for the time of the read.
///
/// # Safety
/// As for [`insert`], but the bucket need not be writable; `slot` is below [`BUCKET_SLOTS`].
#[inline]
pub unsafe fn read(bucket: *const Bucket, slot: usize) -> Option<(u64, Payload)> {
    let keys = bucket.cast::<u64>();
    // SAFETY: the caller's promise. The second look at the key tells whether the slot changed hands
    // meanwhile, but not whether it did so twice: freed, and allocated again at the same address. So the payload
    // is read twice, with a look at the key between and after. Half of one and half of another would have to be read
    // alike both times, while whoever writes it holds the key back.
    unsafe {
        use core::sync::atomic::{Ordering, fence};
        let key = atomic::load(keys.add(slot));
        if key == KEY_EMPTY || key == KEY_BUSY {
            return None;
        }
        fence(Ordering::Acquire);
        let payload = (&raw const (*bucket).payloads[slot]).read_volatile();
        fence(Ordering::Acquire);
        let between = atomic::load(keys.add(slot));
        fence(Ordering::Acquire);
        let again = (&raw const (*bucket).payloads[slot]).read_volatile();
        fence(Ordering::Acquire);
        (between == key && again == payload && atomic::load(keys.add(slot)) == key).then_some((key, payload))
    }
}
