use std::time::Instant;

use super::*;
use proptest::prelude::*;

const BASE: u64 = 0xffff_8880_0000_0000;

fn two() -> Objects {
    let mut objects = Objects::default();
    assert!(objects.add(Slab::new(BASE + 0x1000, (64, 64), 64, 0), |nth| nth % 2 == 0));
    assert!(!objects.add(Slab::new(BASE + 0x1fff, (64, 64), 64, 0), |_| true), "it overlaps");
    assert!(objects.add(Slab::new(BASE + (5 << 20), (192, 192), 21, 1), |_| true));
    objects.finish();
    objects
}

#[test]
fn objects_are_found_by_their_addresses() {
    let objects = two();
    let at = |address: u64| objects.at(address).map(|object| (object.slab, object.nth, object.offset));
    assert_eq!(at(BASE + 0x1000), Some((0, 0, 0)));
    assert_eq!(at(BASE + 0x1fff), Some((0, 63, 63)));
    assert_eq!((at(BASE + 0xfff), at(BASE + 0x2000), at(0), at(u64::MAX)), (None, None, None, None));
    assert_eq!(at(BASE + (5 << 20) + 200), Some((1, 1, 8)));
    // What is left behind the last object is nobody's.
    assert_eq!(at(BASE + (5 << 20) + 21 * 192), None);
    assert_eq!(objects.by_cache(2), [32, 21]);
}

#[test]
fn what_is_reached_waits_once() {
    let mut objects = two();
    let object = objects.at(BASE + 0x1000 + 130).unwrap();
    objects.reach(object, From::Outside(7));
    objects.reach(object, From::Outside(8));
    // Free ones are reached by nothing.
    objects.reach(objects.at(BASE + 0x1000 + 64).unwrap(), From::Outside(9));
    assert_eq!(objects.next_waiting(1), Some(0));
    assert_eq!(objects.take_waiting(0), [2]);
    assert_eq!(objects.next_waiting(0), None);
    objects.reach(object, From::Outside(10));
    assert_eq!((objects.next_waiting(0), objects.open().count()), (None, 32 + 21 - 1));
    assert_eq!(objects.from_where(object), Some(From::Outside(7)));
    let other = objects.at(BASE + (5 << 20)).unwrap();
    assert_eq!(objects.from_where(other), None);
    objects.reach(other, From::Object(object));
    assert_eq!(objects.from_where(other), Some(From::Object(Object { offset: 0, ..object })));
    assert_eq!(objects.reached(1).collect::<Vec<_>>(), [BASE + (5 << 20)]);
}

proptest! {
    /// The coarse index finds what a search of all would.
    #[test]
    fn no_slab_is_missed(
        starts in prop::collection::btree_map(0_u64..1 << 14, (1_u16..64, 1_u32..40), 1..200), address in 0_u64..1 << 27,
    ) {
        let mut objects = Objects::default();
        for (start, (count, size)) in starts {
            objects.add(Slab::new(BASE + (start << 12), (size * 8, size * 8), count, 0), |_| true);
        }
        objects.finish();
        let some = objects.slabs().iter().flat_map(|slab| [slab.start, slab.end() - 1, slab.end()]);
        for address in some.chain([BASE + address]) {
            let plain = objects.slabs().iter().position(|slab| (slab.start..slab.end()).contains(&address));
            prop_assert_eq!(objects.slab_at(address), plain, "{:x}", address);
        }
    }
}

/// Twenty million objects, in the longest way from one to the next: each holds one in another slab.
#[test]
#[ignore = "slow: 20 million objects"]
fn many_objects_take_little() {
    const SLABS: u64 = 312_500;
    let begun = Instant::now();
    let mut objects = Objects::default();
    for slab in 0..SLABS {
        objects.add(Slab::new(BASE + (slab << 12), (64, 64), 64, 0), |_| true);
    }
    objects.finish();
    let built = begun.elapsed();
    let all = SLABS * 64;
    let object = |number: u64| BASE + ((number % SLABS) << 12) + number / SLABS * 64;
    objects.reach(objects.at(object(0)).unwrap(), From::Outside(0));
    let (mut from, mut visited) = (0, 0_u64);
    while let Some(slab) = objects.next_waiting(from) {
        for nth in objects.take_waiting(slab) {
            visited += 1;
            let number = u64::from(nth) * SLABS + slab as u64;
            if number + 1 < all {
                objects.reach(objects.at(object(number + 1)).unwrap(), From::Outside(0));
            }
        }
        from = slab;
    }
    println!(
        "{all} objects: {built:?} to note, {:?} to follow, {} bytes",
        begun.elapsed(),
        bytes_for(SLABS, all)
    );
    assert_eq!((visited, objects.open().count()), (all, 0));
}
