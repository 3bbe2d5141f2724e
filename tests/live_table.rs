//! The table of outstanding objects, the code that runs in the kernel, against a hash map.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use leaktrace_common::{
    BUCKET_SHIFT, BUCKET_SLOTS, Bucket, Payload, address_hash, decode_address, encode_address,
};
use leaktrace_ebpf::{
    live,
    table::{self, NO_SITE, Overflow},
};
use proptest::prelude::*;

/// So few that they fill up.
const BUCKETS: usize = 4;
const OVERFLOW: usize = 6;

/// What the kernel's hash map does for the programs.
#[derive(Default)]
struct Spill(HashMap<u64, Payload>);

impl Overflow for Spill {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put(&mut self, key: u64, payload: &Payload) -> bool {
        if self.0.len() >= OVERFLOW && !self.0.contains_key(&key) {
            return false;
        }
        self.0.insert(key, *payload);
        true
    }

    fn take(&mut self, key: u64) -> Option<Payload> {
        self.0.remove(&key)
    }

    fn size(&self, key: u64) -> u32 {
        self.0.get(&key).map_or(0, |payload| payload.size)
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Allocate(u16),
    Free(u16),
}

fn events(objects: u16) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0..objects).prop_map(Event::Allocate),
        2 => (0..objects).prop_map(Event::Free),
    ];
    prop::collection::vec(event, 0..600)
}

/// Objects as a slab has them: at a fixed stride in the direct map.
fn address(object: u16) -> u64 {
    0xffff_8881_0234_0000 + u64::from(object) * 192
}

fn bucket_of(address: u64, buckets: usize) -> usize {
    (address_hash(address) >> BUCKET_SHIFT) as usize % buckets
}

fn payload(number: usize) -> Payload {
    let small = number as u32;
    Payload { time_ns: number as u64, site: small % 7, stack: small, tgid: small, size: small }
}

/// Everything in the table: address to payload; fails when an address is there twice.
fn contents(buckets: &[Bucket], spill: &Spill) -> HashMap<u64, Payload> {
    let mut found = HashMap::new();
    let mut add = |key: u64, payload: Payload| {
        assert!(found.insert(decode_address(key), payload).is_none(), "{key:#x} is there twice");
    };
    for bucket in buckets {
        for slot in 0..BUCKET_SLOTS {
            // SAFETY: the bucket is borrowed, and the slot below BUCKET_SLOTS.
            if let Some((key, payload)) = unsafe { live::read(bucket, slot) } {
                add(key, payload);
            }
        }
    }
    spill.0.iter().for_each(|(&key, &payload)| add(key, payload));
    found
}

fn behaves_like_a_map(events: &[Event], weakly_ordered: bool) {
    let mut buckets: Vec<Bucket> = (0..BUCKETS).map(|_| Bucket::default()).collect();
    let mut spill = Spill::default();
    let mut model: HashMap<u64, Payload> = HashMap::new();
    for (number, &event) in events.iter().enumerate() {
        let (Event::Allocate(object) | Event::Free(object)) = event;
        let address = address(object);
        let index = bucket_of(address, BUCKETS);
        let key = encode_address(address);
        let bucket = &raw mut buckets[index];
        match event {
            Event::Allocate(_) => {
                let payload = payload(number);
                let in_bucket = model.keys().filter(|&&other| bucket_of(other, BUCKETS) == index).count();
                // SAFETY: the bucket is ours alone.
                let stored = unsafe { table::put(bucket, &mut spill, key, &payload, weakly_ordered) };
                assert_eq!(stored.replaced, model.remove(&address).map_or(NO_SITE, |old| old.site));
                if stored.tracked {
                    model.insert(address, payload);
                } else {
                    assert!(
                        in_bucket >= BUCKET_SLOTS && spill.0.len() >= OVERFLOW,
                        "lost with room to spare"
                    );
                }
            }
            Event::Free(_) => {
                // SAFETY: as above.
                let size = unsafe { table::size(bucket, &spill, key) };
                assert_eq!(size, model.get(&address).map_or(0, |payload| payload.size));
                // SAFETY: as above.
                let taken = unsafe { table::take(bucket, &mut spill, key, weakly_ordered) };
                assert_eq!(taken, model.remove(&address));
            }
        }
        assert!(spill.0.len() <= OVERFLOW);
    }
    assert_eq!(contents(&buckets, &spill), model);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn sparse_table_is_a_map(events in events(24), weak in any::<bool>()) {
        behaves_like_a_map(&events, weak);
    }

    #[test]
    fn full_buckets_and_full_overflow_are_told(events in events(200), weak in any::<bool>()) {
        behaves_like_a_map(&events, weak);
    }
}

/// A table that several threads use as CPUs do.
struct Shared(Vec<Bucket>);

// SAFETY: every access goes through the table's own atomics.
unsafe impl Sync for Shared {}

impl Shared {
    fn bucket(&self, address: u64) -> *mut Bucket {
        (&raw const self.0[bucket_of(address, self.0.len())]).cast_mut()
    }
}

/// One map for all threads, as in the kernel, with its own lock.
struct SharedSpill<'a>(&'a Mutex<Spill>, &'a AtomicU64);

impl Overflow for SharedSpill<'_> {
    fn is_empty(&self) -> bool {
        self.1.load(Ordering::Relaxed) == 0
    }

    fn put(&mut self, key: u64, payload: &Payload) -> bool {
        let room = self.0.lock().unwrap().put(key, payload);
        self.1.fetch_add(u64::from(room), Ordering::SeqCst);
        room
    }

    fn take(&mut self, key: u64) -> Option<Payload> {
        let taken = self.0.lock().unwrap().take(key);
        self.1.fetch_sub(u64::from(taken.is_some()), Ordering::SeqCst);
        taken
    }

    fn size(&self, key: u64) -> u32 {
        self.0.lock().unwrap().size(key)
    }
}

#[test]
fn concurrent_cpus_do_not_disturb_each_other() {
    let table = Shared((0..64).map(|_| Bucket::default()).collect());
    let (spill, spilled) = (Mutex::new(Spill::default()), AtomicU64::new(0));
    let kept: Vec<HashMap<u64, Payload>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u16)
            .map(|cpu| {
                let (table, spill, spilled) = (&table, &spill, &spilled);
                scope.spawn(move || {
                    let mut spill = SharedSpill(spill, spilled);
                    let mut mine: HashMap<u64, Payload> = HashMap::new();
                    for number in 0..200_000_usize {
                        // The kernel orders the events of one address, so each is one thread's.
                        let address = address(cpu + 4 * (number * 7919 % 120) as u16);
                        let key = encode_address(address);
                        // SAFETY: the table lives as long as the scope.
                        unsafe {
                            if let Some(old) = mine.remove(&address) {
                                let taken = table::take(table.bucket(address), &mut spill, key, false);
                                assert_eq!(taken, Some(old));
                            } else {
                                let payload = payload(number);
                                let stored =
                                    table::put(table.bucket(address), &mut spill, key, &payload, false);
                                assert_eq!(stored.replaced, NO_SITE);
                                if stored.tracked {
                                    mine.insert(address, payload);
                                }
                            }
                        }
                    }
                    mine
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let kept: HashMap<u64, Payload> = kept.into_iter().flatten().collect();
    assert!(kept.len() > 100, "only {} were kept", kept.len());
    assert_eq!(contents(&table.0, &spill.into_inner().unwrap()), kept);
}
