//! The table of outstanding objects, when others work on the same address after all: two CPUs that free parts of one block,
//! and user space that takes entries out.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use leaktrace_common::{BUCKET_SLOTS, Bucket, KEY_BUSY, KEY_EMPTY, Payload, SITE_PENDING, encode_address};
use leaktrace_ebpf::live::{self, Inserted};

/// A bucket that several threads use as CPUs do.
struct Shared(Bucket);

// SAFETY: every access goes through the table's own atomics.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Self {
        Self(Bucket::default())
    }

    fn bucket(&self) -> *mut Bucket {
        (&raw const self.0).cast_mut()
    }

    fn insert(&self, key: u64, payload: &Payload) -> Inserted {
        // SAFETY: the bucket lives as long as `self`.
        unsafe { live::insert(self.bucket(), key, payload, false) }
    }

    fn remove(&self, key: u64) -> Option<Payload> {
        // SAFETY: as above.
        unsafe { live::remove(self.bucket(), key, false) }
    }

    fn read(&self) -> impl Iterator<Item = (u64, Payload)> + '_ {
        // SAFETY: as above, and the slot is in range.
        (0..BUCKET_SLOTS).filter_map(|slot| unsafe { live::read(self.bucket(), slot) })
    }

    fn forget(&self, mut wanted: impl FnMut(u64, &Payload) -> bool) -> usize {
        // SAFETY: as above.
        (0..BUCKET_SLOTS).filter(|&slot| unsafe { live::forget(self.bucket(), slot, &mut wanted) }).count()
    }
}

fn key(object: u64) -> u64 {
    encode_address(0xffff_8881_0234_0000 + object * 64)
}

/// All fields say the same, so that half of one and half of another shows.
fn payload(number: u64) -> Payload {
    let small = number as u32 & 0xff_ffff;
    Payload { time_ns: u64::from(small), site: small, stack: small, tgid: small, size: small }
}

fn is_whole(payload: &Payload) -> bool {
    let Payload { time_ns, site, stack, tgid, size } = *payload;
    time_ns == u64::from(site) && site == stack && stack == tgid && tgid == size
}

/// Waits until a number is reached; gives way now and then, should there be one CPU only.
fn wait_for(number: &AtomicU64, reached: u64) {
    let mut spins = 0_u32;
    while number.load(SeqCst) < reached {
        spins += 1;
        if spins.is_multiple_of(4_096) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Two pages of one block are freed at a time: the block is one CPU's.
#[test]
fn an_object_is_taken_once() {
    const ROUNDS: u64 = 400_000;
    let shared = Shared::new();
    let (begun, ended, taken) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let take = |round: u64| {
        if let Some(found) = shared.remove(key(1)) {
            assert_eq!(found, payload(round));
            taken.fetch_add(1, SeqCst);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&begun, round);
                take(round);
                ended.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            assert_eq!(shared.insert(key(1), &payload(round)), Inserted::New);
            begun.store(round, SeqCst);
            // By turns a little later, so that the two meet in each place.
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            take(round);
            wait_for(&ended, round);
        }
    });
    assert_eq!(taken.into_inner(), ROUNDS);
}

/// User space takes out what is no longer in the sample, while programs free it and allocate others: nobody's entry is lost,
/// and none has another's payload.
#[test]
fn a_purge_disturbs_nobody_else() {
    const ROUNDS: u64 = 2_000_000;
    let (shared, done) = (Shared::new(), AtomicBool::new(false));
    let (mut purged_by_us, mut not_found) = (0_u64, 0_u64);
    std::thread::scope(|scope| {
        let purge = scope.spawn(|| {
            let mut purged = 0;
            while !done.load(Relaxed) {
                purged += shared.forget(|found, _| found == key(1)) as u64;
            }
            purged
        });
        let (shared, done) = (&shared, &done);
        let cpu = scope.spawn(move || {
            let mut missing = 0;
            for round in 0..ROUNDS {
                // One that may be purged, and one that stays.
                assert!(matches!(shared.insert(key(1), &payload(round)), Inserted::New));
                assert_eq!(shared.insert(key(2), &payload(round + 1)), Inserted::New, "{round}");
                match shared.remove(key(1)) {
                    Some(found) => assert_eq!(found, payload(round)),
                    None => missing += 1,
                }
                assert_eq!(shared.remove(key(2)), Some(payload(round + 1)), "{round}");
            }
            done.store(true, Relaxed);
            missing
        });
        not_found = cpu.join().unwrap();
        purged_by_us = purge.join().unwrap();
    });
    // Whose free found nothing has been purged, and the other way round.
    assert_eq!(purged_by_us, not_found);
    assert_eq!(shared.read().count(), 0);
    assert!(shared.0.keys.iter().all(|&key| key == KEY_EMPTY && key != KEY_BUSY));
}

/// Between the look at a note and its removal its address is allocated again: what lives stays.
#[test]
fn a_note_is_looked_at_again_before_it_goes() {
    let shared = Shared::new();
    let note = Payload { site: SITE_PENDING, ..payload(7) };
    assert_eq!(shared.insert(key(1), &note), Inserted::New);
    let mut looks = 0;
    let gone = shared.forget(|_, payload_of| {
        looks += 1;
        let pending = payload_of.site == SITE_PENDING;
        if looks == 1 {
            assert_eq!(shared.remove(key(1)), Some(note));
            assert_eq!(shared.insert(key(1), &payload(8)), Inserted::New);
        }
        pending
    });
    assert_eq!((gone, looks), (0, 2));
    assert_eq!(shared.read().collect::<Vec<_>>(), [(key(1), payload(8))]);
    assert_eq!(shared.forget(|_, found| found.site == 8), 1);
    assert_eq!(shared.read().count(), 0);
}

/// The same address is freed and allocated again and again: what is read is one of its objects, never half of two.
#[test]
fn what_is_read_is_whole() {
    const READ: u64 = 3_000_000;
    let (shared, done) = (Shared::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (shared, done) = (&shared, &done);
        let writer = scope.spawn(move || {
            let mut round = 0;
            while !done.load(Relaxed) {
                round += 1;
                shared.insert(key(1), &payload(round));
                if round % 3 != 0 {
                    // Else it is taken over.
                    shared.remove(key(1));
                }
            }
            round
        });
        for _ in 0..READ {
            for (found, payload) in shared.read() {
                assert!(found == key(1) && is_whole(&payload), "{payload:?}");
            }
        }
        done.store(true, Relaxed);
        assert!(writer.join().unwrap() > 1_000);
    });
}
