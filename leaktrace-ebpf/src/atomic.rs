//! The few atomic operations that both BPF and the host have.
//!
//! LLVM's BPF target has no relaxed atomic load or store below cpu v4, so plain ones are
//! volatile: one aligned 8-byte move, which is what an atomic one compiles to everywhere.

use core::sync::atomic::{Ordering, compiler_fence};

/// Reads a word that other CPUs may be writing.
///
/// # Safety
/// `word` points to 8 aligned bytes that stay mapped.
#[inline(always)]
pub unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { word.read_volatile() }
}

/// Writes a word that other CPUs may be reading.
///
/// # Safety
/// `word` points to 8 aligned, writable bytes that stay mapped.
#[inline(always)]
pub unsafe fn store(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { word.write_volatile(value) }
}

/// Writes a word after everything before it was written.
///
/// `weakly_ordered` is false on x86, where stores stay in order and a plain one does.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn publish(word: *mut u64, value: u64, weakly_ordered: bool) {
    // The compiler's order is kept by the fence, and by `write_volatile` for volatile accesses.
    compiler_fence(Ordering::SeqCst);
    if weakly_ordered {
        // SAFETY: the caller's promise.
        unsafe { machine::swap(word, value) };
    } else {
        // SAFETY: the caller's promise.
        unsafe { store(word, value) }
    }
}

/// Changes a word from `old` to `new` if nobody else has changed it; says whether it did.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { machine::compare_exchange(word, old, new) == old }
}

/// Adds to a word that others add to as well.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { machine::add(word, value) }
}

/// Adds to a word that others add to as well; returns what it was before.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { machine::fetch_add(word, value) }
}

/// Sets bits of a word that others set bits of as well.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { machine::or(word, bits) }
}

/// Clears all bits but these of a word that others change as well.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
pub unsafe fn and(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise.
    unsafe { machine::and(word, bits) }
}

/// BPF has these instructions since Linux 5.12, but rustc's target does not say so, and so
/// `core::sync::atomic` lacks them there.
#[cfg(target_arch = "bpf")]
mod machine {
    use core::arch::asm;

    #[inline(always)]
    pub(super) unsafe fn swap(word: *mut u64, value: u64) {
        // SAFETY: the caller of the wrapper gives a writable word.
        unsafe { asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value => _, in(reg) word, options(nostack)) }
    }

    #[inline(always)]
    pub(super) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        let found;
        // SAFETY: as above.
        unsafe {
            asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) new, inout("r0") old => found, options(nostack));
        }
        found
    }

    #[inline(always)]
    pub(super) unsafe fn add(word: *mut u64, value: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) value, options(nostack)) }
    }

    #[inline(always)]
    pub(super) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
        let before;
        // SAFETY: as above.
        unsafe {
            asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) value => before, in(reg) word, options(nostack));
        }
        before
    }

    #[inline(always)]
    pub(super) unsafe fn or(word: *mut u64, bits: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack)) }
    }

    #[inline(always)]
    pub(super) unsafe fn and(word: *mut u64, bits: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({0} + 0) &= {1}", in(reg) word, in(reg) bits, options(nostack)) }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod machine {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

    #[inline(always)]
    pub(super) unsafe fn swap(word: *mut u64, value: u64) {
        // SAFETY: the caller of the wrapper gives a writable word; every access is atomic or volatile.
        unsafe { AtomicU64::from_ptr(word) }.swap(value, SeqCst);
    }

    #[inline(always)]
    pub(super) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
        // SAFETY: as above.
        match unsafe { AtomicU64::from_ptr(word) }.compare_exchange(old, new, SeqCst, SeqCst) {
            Ok(found) | Err(found) => found,
        }
    }

    #[inline(always)]
    pub(super) unsafe fn add(word: *mut u64, value: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(value, SeqCst);
    }

    #[inline(always)]
    pub(super) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(value, SeqCst)
    }

    #[inline(always)]
    pub(super) unsafe fn or(word: *mut u64, bits: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.fetch_or(bits, SeqCst);
    }

    #[inline(always)]
    pub(super) unsafe fn and(word: *mut u64, bits: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(word) }.fetch_and(bits, SeqCst);
    }
}
