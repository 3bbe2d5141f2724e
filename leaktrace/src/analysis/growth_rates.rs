//! How often innocents are called growing, and leaks are not: by simulation, since it is what verdicts stand on.

use fastrand::Rng;

use super::{
    growth::{
        Growth,
        tests::{NEVER, Run},
    },
    verdict,
};

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

/// Times of so many events a second by chance.
fn poisson(rng: &mut Rng, rate: f64, seconds: f64) -> Vec<f64> {
    let (mut at, mut times) = (0.0, Vec::new());
    loop {
        at += exponential(rng, 1.0 / rate);
        if at >= seconds {
            return times;
        }
        times.push(at);
    }
}

/// Who is freed when one goes.
#[derive(Clone, Copy)]
enum Order {
    First,
    Last,
    Any,
}

/// A number of objects that goes up and down by chance, in steps of so many: the trace begins in the middle of it, so some
/// that are freed are older. (Where many are, new ones stand for old ones: `verdict::replaces` asks that of the cache.)
fn walk(rng: &mut Rng, seconds: f64, step: usize, order: Order) -> Vec<(f64, f64)> {
    let rate = 1.0 + rng.f64() * 4.0;
    let (mut objects, mut live): (Vec<(f64, f64)>, std::collections::VecDeque<usize>) = Default::default();
    let mut older = if matches!(order, Order::Any) { 3 } else { 1_000 };
    for at in poisson(rng, rate, seconds) {
        let up = rng.bool();
        for _ in 0..step {
            if up {
                live.push_back(objects.len());
                objects.push((at, NEVER));
                continue;
            }
            let freed = match order {
                Order::Any if rng.usize(0..=older + live.len()) <= older => None,
                Order::First => live.pop_front(),
                Order::Last => live.pop_back(),
                Order::Any => live.swap_remove_back(rng.usize(0..live.len())),
            };
            match freed {
                Some(index) => objects[index].1 = at,
                None => older = older.saturating_sub(1),
            }
        }
    }
    objects
}

/// One innocent of each kind, by chance.
fn innocent(rng: &mut Rng, kind: usize, seconds: f64) -> Vec<(f64, f64)> {
    let rate = 0.5 + rng.f64() * 8.0;
    let times = |rng: &mut Rng| poisson(rng, rate, seconds);
    match kind {
        0 => walk(rng, seconds, 1, Order::Last),
        1 => walk(rng, seconds, 1, Order::Any),
        2 => walk(rng, seconds, 10, Order::Last),
        // A pool that is full after half of the time, and gives what it has by turns.
        3 | 4 => {
            let order = if kind == 3 { Order::First } else { Order::Last };
            let size = (seconds * rate * (0.05 + rng.f64() * 0.35)) as usize + 1;
            let (mut objects, mut live): (Vec<(f64, f64)>, std::collections::VecDeque<usize>) =
                Default::default();
            for at in times(rng) {
                if live.len() >= size {
                    let gone = if matches!(order, Order::First) { live.pop_front() } else { live.pop_back() };
                    objects[gone.expect("it is full")].1 = at;
                }
                live.push_back(objects.len());
                objects.push((at, NEVER));
            }
            objects
        }
        // Lifetimes by chance.
        5 => {
            let mean = seconds * (0.001 + rng.f64() * 0.3);
            times(rng).into_iter().map(|at| (at, at + exponential(rng, mean))).collect()
        }
        // Lifetimes without a mean.
        6 => {
            let least = seconds * (0.0001 + rng.f64() * 0.03);
            let power = 0.6 + rng.f64();
            times(rng).into_iter().map(|at| (at, at + least * (1.0 - rng.f64()).powf(-1.0 / power))).collect()
        }
        // All at once, now and then.
        7 => {
            let period = seconds * (0.02 + rng.f64() * 0.43);
            let from = rng.f64() * period;
            times(rng)
                .into_iter()
                .map(|at| (at, from + ((at - from) / period).floor() * period + period))
                .collect()
        }
        // Batches that live for a while.
        8 => {
            let (size, mean) = (rng.usize(2..60), seconds * (0.005 + rng.f64() * 0.25));
            let times = poisson(rng, rate / size as f64 + 6.0 / seconds, seconds);
            times
                .into_iter()
                .flat_map(|at| {
                    let freed = at + exponential(rng, mean);
                    std::iter::repeat_n((at, freed), size)
                })
                .collect()
        }
        // What is allocated once, in the first half.
        _ => {
            let filled = seconds * (0.02 + rng.f64() * 0.48);
            times(rng).into_iter().filter(|at| *at < filled).map(|at| (at, NEVER)).collect()
        }
    }
}

const KINDS: [&str; 10] = [
    "a walk, last in first out",
    "a walk, any out",
    "a walk in steps of ten",
    "a pool, first in first out",
    "a pool, last in first out",
    "exponential lifetimes",
    "heavy tails",
    "periodic frees",
    "batches",
    "a pool that fills up",
];

/// How often survivors are counted.
#[derive(Clone, Copy, Debug)]
enum Counted {
    /// At such intervals, in seconds.
    Every(f64),
    /// So seldom that all live objects are counted instead, with each tick.
    Live,
}

fn measured(rng: &mut Rng, seconds: f64, counted: Counted, objects: Vec<(f64, f64)>) -> Growth {
    let (look, min_age_s) = (0.57 + rng.f64() * 0.15, (seconds / 4.0).min(5.0));
    let run = Run { seconds, objects };
    match counted {
        Counted::Every(tick) => run.looked_at_every(tick, look, min_age_s),
        Counted::Live => run.by_live_objects(look, min_age_s),
    }
}

/// Ticks of a window, short ones the more often.
fn window(rng: &mut Rng) -> f64 {
    20.0 * 180.0_f64.powf(rng.f64().powi(2))
}

#[test]
fn innocents_hardly_ever_grow() {
    hardly_ever_grow(17, Counted::Every(1.0));
}

#[test]
fn innocents_whose_live_objects_are_counted_hardly_ever_grow() {
    hardly_ever_grow(19, Counted::Live);
}

fn hardly_ever_grow(seed: u64, counted: Counted) {
    const RUNS: usize = 4_000;
    let mut rng = Rng::with_seed(seed);
    let (mut surely, mut seemingly) = (0, 0);
    for (kind, name) in KINDS.iter().enumerate() {
        let (mut sure, mut seeming) = (0, 0);
        for _ in 0..RUNS {
            let seconds = window(&mut rng).round();
            let objects = innocent(&mut rng, kind, seconds);
            let growth = measured(&mut rng, seconds, counted, objects);
            sure += usize::from(growth.surely());
            seeming += usize::from(growth.grows());
        }
        println!("{name}: of {RUNS}, {sure} surely grow, {seeming} seem to");
        surely += sure;
        seemingly += seeming;
    }
    let all = RUNS * KINDS.len();
    println!("of {all}, {surely} surely grow, {seemingly} seem to");
    assert!(surely * 10_000 <= all, "{surely} of {all}");
}

/// A leak, and what others of the same site take and give back meanwhile.
fn leak(rng: &mut Rng, seconds: f64, rate: f64, others: f64) -> Vec<(f64, f64)> {
    let mut objects: Vec<_> = poisson(rng, rate, seconds).into_iter().map(|at| (at, NEVER)).collect();
    let others = if others > 0.0 { poisson(rng, others, seconds) } else { Vec::new() };
    objects.extend(others.into_iter().map(|at| (at, at + exponential(rng, 0.02))));
    objects
}

/// However often survivors are counted: a look that takes long is taken less often.
#[test]
fn leaks_above_the_floor_are_found() {
    const RUNS: usize = 400;
    let mut rng = Rng::with_seed(18);
    for (seconds, busy, looks) in [
        (20.0, false, 20),
        (45.0, false, 45),
        (45.0, true, 45),
        (45.0, true, 14),
        (60.0, false, 60),
        (60.0, true, 60),
        (60.0, true, 14),
        (300.0, true, 300),
        (300.0, false, 13),
    ] {
        let min_age = 5.0_f64.min(seconds / 4.0);
        let floor = verdict::detection_floor(seconds, min_age, looks, 1).expect("long enough");
        let others = if busy { 20.0 } else { 0.0 };
        let found = |rng: &mut Rng, rate: f64| {
            (0..RUNS)
                .filter(|_| {
                    let objects = leak(rng, seconds, rate, others);
                    measured(rng, seconds, Counted::Every(seconds / looks as f64), objects).grows()
                })
                .count()
        };
        let (above, below) = (found(&mut rng, floor * 1.05), found(&mut rng, floor / 4.0));
        println!(
            "{seconds} s, {looks} looks: of {RUNS} leaks of {floor:.3} objects a second {above} are found, of a quarter of that {below}"
        );
        assert!(above * 20 >= RUNS * 19, "{above} of {RUNS} in {seconds} s, {looks} looks");
        assert!(below * 4 < RUNS * 3, "the floor is far too high: {below} of {RUNS} in {seconds} s");
    }
}

/// Where survivors could be counted a few times only, no floor is told; but a leak of one in ten that a busy site gives out is
/// found, as live objects show it.
#[test]
fn leaks_of_busy_sites_are_found_by_live_objects() {
    const RUNS: usize = 200;
    let mut rng = Rng::with_seed(20);
    for (seconds, looks) in [(20.0, 5), (60.0, 7)] {
        assert_eq!(verdict::detection_floor(seconds, 5.0, looks, 1), None);
        let found = |rng: &mut Rng, counted: Counted| {
            (0..RUNS)
                .filter(|_| {
                    let objects = leak(rng, seconds, 4.0, 36.0);
                    measured(rng, seconds, counted, objects).grows()
                })
                .count()
        };
        let by_survivors = found(&mut rng, Counted::Every(seconds / looks as f64));
        let by_live = found(&mut rng, Counted::Live);
        println!(
            "{seconds} s: of {RUNS} leaks {by_live} are found by live objects, {by_survivors} by {looks} looks"
        );
        assert!(by_live * 20 >= RUNS * 19, "{by_live} of {RUNS} in {seconds} s");
    }
}
