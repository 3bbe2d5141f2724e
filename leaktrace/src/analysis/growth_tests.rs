use proptest::prelude::*;

use super::*;
use crate::analysis::births::width_for;

/// Objects that were allocated and freed at a time, in seconds: none that lives is freed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) objects: Vec<(f64, f64)>,
}

/// What became of so many, allocated all the time.
pub(crate) fn stay(aged: u64, died: u64) -> Stay {
    Stay { aged, died, watched_s: 20.0, old: (aged / 2, died / 2), bins: (40, 0) }
}

/// Not freed.
pub(crate) const NEVER: f64 = f64::INFINITY;

impl Run {
    fn births(&self, at: f64, width: f64) -> Births {
        let mut counts = vec![0; (at / width) as usize + 1];
        for (born, _) in self.objects.iter().filter(|(born, freed)| *born < at && *freed > at) {
            counts[(born / width) as usize] += 1;
        }
        Births::new(width, counts)
    }

    /// Survivors at each tick.
    fn levels(&self, tick: f64, min_age_s: f64) -> Vec<(f64, f64)> {
        let ticks = (self.seconds / tick) as usize;
        let mut change = vec![0.0; ticks + 2];
        let next = |seconds: f64| ((seconds / tick).ceil() as usize).min(ticks + 1);
        for &(born, freed) in self.objects.iter().filter(|(born, freed)| freed - born > min_age_s) {
            change[next(born + min_age_s)] += 1.0;
            if freed.is_finite() {
                change[next(freed)] -= 1.0;
            }
        }
        let mut live = 0.0;
        (0..=ticks)
            .map(|at| {
                live += change[at];
                (at as f64 * tick, live)
            })
            .collect()
    }

    /// What the tool makes of it that looked before, at some part of the time.
    pub(crate) fn measured(&self, look: f64, min_age_s: f64) -> Growth {
        self.looked_at_every(1.0, look, min_age_s)
    }

    /// The same, where survivors are counted at such intervals.
    pub(crate) fn looked_at_every(&self, tick: f64, look: f64, min_age_s: f64) -> Growth {
        self.judged(&self.levels(tick, min_age_s), look, min_age_s)
    }

    /// The same, where all that are live are counted at each tick, and survivors only once.
    pub(crate) fn by_live_objects(&self, look: f64, min_age_s: f64) -> Growth {
        self.judged(&self.levels(1.0, 0.0), look, min_age_s)
    }

    fn judged(&self, levels: &[(f64, f64)], look: f64, min_age_s: f64) -> Growth {
        let now_s = self.seconds;
        let width = width_for(now_s);
        let births = self.births(now_s, width);
        let then_s = now_s * look;
        // In finer stretches, as then.
        let then = self.births(then_s, width_for(then_s)).widened(width);
        measure(&Seen {
            births: Some(&births),
            now_s,
            min_age_s,
            stay: Some(Stay::of(&then, then_s, &births, now_s, min_age_s)),
            levels,
            events: (
                self.objects.len() as u64,
                self.objects.iter().filter(|(_, freed)| *freed < now_s).count() as u64,
            ),
            scale: 1.0,
        })
    }
}

/// Objects that come at such times, and stay.
fn kept(seconds: f64, times: impl IntoIterator<Item = f64>) -> Run {
    Run { seconds, objects: times.into_iter().map(|at| (at, NEVER)).collect() }
}

fn every(period: f64, from: f64, until: f64) -> impl Iterator<Item = f64> {
    (0..).map(move |i| from + f64::from(i) * period).take_while(move |at| *at < until)
}

#[test]
fn shapes() {
    let burst = |at: f64, count: usize| std::iter::repeat_n(at, count);
    for (name, expected, run) in [
        ("a leak", Shape::Steady, kept(60.0, every(0.1, 0.0, 60.0))),
        ("a slow leak", Shape::Steady, kept(60.0, every(3.0, 0.5, 60.0))),
        (
            "a leak that begins late",
            Shape::Bursty,
            kept(60.0, every(0.1, 0.0, 4.0).chain(every(0.1, 42.0, 60.0))),
        ),
        (
            "a burst every half a minute",
            Shape::Bursty,
            kept(240.0, every(29.0, 1.0, 240.0).flat_map(|at| burst(at, 100))),
        ),
        ("one burst", Shape::Step, kept(60.0, every(10.0, 0.0, 30.0).chain(burst(40.0, 5_000)))),
        ("a pool that filled up", Shape::Plateau, kept(60.0, every(0.01, 0.0, 12.0))),
        (
            "a cache that fills ever slower",
            Shape::Plateau,
            kept(60.0, (0..1_000).map(|i| -9.0 * (1.0 - f64::from(i) / 1_001.0).ln())),
        ),
        (
            "freed after half a minute",
            Shape::Sawtooth,
            Run { seconds: 90.0, objects: every(0.1, 0.0, 90.0).map(|at| (at, at + 30.0)).collect() },
        ),
        ("nothing", Shape::Unclear, kept(60.0, [])),
    ] {
        assert_eq!(run.measured(0.5, 5.0).shape, expected, "{name}");
    }
}

/// Ever more slowly is no leak, and neither is what comes and goes.
#[test]
fn what_surely_grows() {
    let leak = kept(60.0, every(0.1, 0.0, 60.0)).measured(0.5, 5.0);
    assert!(leak.surely(), "{leak:?}");
    assert!((leak.per_s - 10.0).abs() < 0.2 && leak.error_per_s < 0.2, "{leak:?}");
    assert!(leak.sustained_s > 30.0 && leak.sustained_s < 38.0, "{leak:?}");
    // A second one beside it frees all that it takes, within two seconds.
    let mut busy = kept(60.0, every(0.1, 0.0, 60.0));
    busy.objects.extend(every(0.02, 0.0, 60.0).map(|at| (at, at + 2.0)));
    assert!(busy.measured(0.5, 5.0).surely(), "{:?}", busy.measured(0.5, 5.0));
    let pool = kept(60.0, every(0.01, 0.0, 25.0)).measured(0.5, 5.0);
    assert!(!pool.grows(), "{pool:?}");
    assert_eq!(measure(&Seen::default()), Growth::default());
}

#[test]
fn few_that_stay_say_little() {
    assert!(stay(20, 0).surely_stay() && !stay(17, 0).surely_stay() && !stay(20, 1).surely_stay());
    assert!(stay(26, 1).surely_stay() && !stay(1_000, 101).surely_stay());
    let burst = Stay { bins: (3, 0), ..stay(1_000, 0) };
    assert!(!burst.surely_stay(), "of one time they are one event");
    // 484 objects for 20 s: 3 deaths may not have been seen by chance.
    let lives_on = stay(484, 0).lives_on_s().unwrap();
    assert!((lives_on - 484.0 * 20.0 / 3.0).abs() < 60.0, "{lives_on}");
    assert_eq!(Stay::default().lives_on_s(), None);
    assert!((upper_limit(0, RARE) - 9.21).abs() < 0.5 && (upper_limit(10, LIKELY) - 16.96).abs() < 0.1);
}

#[test]
fn a_walk_is_told_by_its_steps() {
    let line: Vec<_> = (0..=20).map(|t| (f64::from(t), f64::from(t) * 3.0)).collect();
    assert!((walk(&line) - (-10.0_f64).exp()).abs() < 1e-9);
    // Up and down by turns, for long: it is the long steps that are few.
    let slow: Vec<_> =
        (0..=96).map(|t| (f64::from(t), f64::from(if t % 48 < 36 { t % 48 } else { 72 - t % 48 }))).collect();
    assert!(walk(&slow) > 0.01, "{}", walk(&slow));
    let fall: Vec<_> = line.iter().map(|&(t, level)| (t, -level)).collect();
    assert!((walk(&fall) - 1.0).abs() < 1e-9);
    assert!((tail(3.0, 10.0) - 0.171_875).abs() < 1e-9 && (tail(30.0, 60.0) - 0.551).abs() < 1e-2);
    assert!(tail(35.0, 100.0) < 0.02 && (tail(60.0, 100.0) - 1.0).abs() < 1e-9);
}

/// What has grown for ten seconds has done so a second later, too.
#[test]
fn growth_lasts_the_longer_the_longer_it_is_watched() {
    let mut before = 0.0;
    for end in 12..60 {
        let growth = kept(f64::from(end), every(0.11, 1.0, f64::from(end))).measured(0.5, 5.0);
        assert!(growth.sustained_s > before, "{before} {growth:?}");
        before = growth.sustained_s;
    }
    // Of 53 s two thirds, and of these nine tenths.
    assert!((before - 53.0 * 0.6).abs() < 1.0, "{before}");
}

proptest! {
    /// A rate is found, whatever the machine was suspended or starved for: nothing here depends on ticks.
    #[test]
    fn finds_any_rate(rate in 1.0..500.0_f64, seconds in 20.0..400.0_f64, look in 0.57..0.72_f64) {
        let growth = kept(seconds, every(1.0 / rate, 0.0, seconds)).measured(look, 5.0);
        prop_assert!((growth.per_s / rate - 1.0).abs() < 0.1 + 1.0 / (rate * seconds).sqrt(), "{:?}", growth);
        prop_assert!(growth.grows());
        prop_assert!(rate * seconds < 60.0 || growth.surely(), "{:?}", growth);
    }

    /// Of a sample the same is said, with other numbers.
    #[test]
    fn samples_are_scaled(scale in 1.0..64.0_f64) {
        let births = Births::new(0.5, vec![2; 110]);
        let seen = Seen { births: Some(&births), now_s: 60.0, min_age_s: 5.0, scale: 1.0, ..Seen::default() };
        let (one, many) = (measure(&seen), measure(&Seen { scale, ..seen }));
        prop_assert!((many.per_s / one.per_s - scale).abs() < 1e-9 && many.shape == one.shape);
    }
}
