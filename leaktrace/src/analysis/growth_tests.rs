use proptest::prelude::*;

use super::*;

fn over(seconds: u32, objects: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    (0..seconds).map(f64::from).map(|t| (t, objects(t))).collect()
}

#[test]
fn odd_ticks_do_not_count() {
    let mut points = over(30, |t| t * 5.0 + 7.0);
    points[12].1 = 1e9;
    points[25].1 = 0.0;
    assert!((theil_sen(&points) - 5.0).abs() < 0.2);
}

#[test]
fn mann_kendall_knows_trend_from_chance() {
    let rising: Vec<f64> = (0..10).map(f64::from).collect();
    // S is 45 of a variance of 125: z = 44 / sqrt(125).
    assert!((mann_kendall(&rising) - 4.15e-5).abs() < 1e-6, "{}", mann_kendall(&rising));
    let falling: Vec<f64> = rising.iter().rev().copied().collect();
    assert!((mann_kendall(&falling) - 1.0).abs() < 1e-9);
    assert!(mann_kendall(&[5.0, 1.0, 4.0, 2.0, 3.0, 1.0, 5.0, 2.0, 4.0, 3.0]) > 0.2);
    assert!((mann_kendall(&[3.0; 20]) - 1.0).abs() < 1e-9 && (mann_kendall(&[]) - 1.0).abs() < 1e-9);
    assert!((upper_tail(1.959_964) - 0.025).abs() < 1e-6);
}

#[test]
fn shapes() {
    for (name, expected, points) in [
        ("a leak", Shape::Steady, over(60, |t| (t - 5.0).max(0.0) * 10.0)),
        ("a slow leak", Shape::Steady, over(60, |t| ((t - 5.0).max(0.0) / 4.0).floor())),
        ("a leak that begins late", Shape::Bursty, over(60, |t| 40.0 + (t - 42.0).max(0.0) * 10.0)),
        ("a burst every half a minute", Shape::Bursty, over(120, |t| (t / 29.0).floor() * 100.0)),
        ("one burst", Shape::Step, over(60, |t| if t < 40.0 { 3.0 } else { 5_000.0 })),
        ("a pool that filled up", Shape::Plateau, over(60, |t| t.min(12.0) * 100.0)),
        ("a cache that fills ever slower", Shape::Plateau, over(60, |t| 1_000.0 * (1.0 - (-t / 9.0).exp()))),
        ("objects freed together now and then", Shape::Sawtooth, over(60, |t| (t % 13.0) * 50.0)),
        ("freed after half a minute", Shape::Plateau, over(90, |t| t.min(30.0) * 10.0)),
        ("nothing", Shape::Unclear, over(60, |_| 0.0)),
    ] {
        assert_eq!(measure(&points).shape, expected, "{name}");
    }
}

#[test]
fn filling_up_is_no_growth() {
    let filled = measure(&over(60, |t| t.min(10.0) * 100.0));
    assert!(filled.per_s.abs() < 1e-9 && filled.p_value > 0.5, "{filled:?}");
    assert_eq!(measure(&[]), Growth::default());
    assert!(theil_sen(&[]).abs() < 1e-9 && measure(&[(1.0, 5.0)]).per_s.abs() < 1e-9);
}

#[test]
fn a_leak_is_measured() {
    let leak = measure(&over(30, |t| (t - 5.0).max(0.0) * 10.0));
    assert!((leak.per_s - 10.0).abs() < 1e-6 && leak.p_value < 1e-4, "{leak:?}");
    assert!(leak.sustained_s > 12.0, "{leak:?}");
}

/// What has grown for ten seconds has done so a second later, too, wherever the ticks lie.
#[test]
fn growth_lasts_the_longer_the_longer_it_is_watched() {
    let ticks: Vec<(f64, f64)> = (0..60)
        .map(|i| f64::from(i) * 1.1 + f64::from(i % 3) / 4.0)
        .map(|t| (t, (t - 6.0).max(0.0) * 9.0))
        .collect();
    let mut before = 0.0;
    for end in 12..60 {
        let growth = measure(&ticks[..end]);
        assert!(growth.sustained_s > before, "{before} {growth:?}");
        before = growth.sustained_s;
    }
    let watched = ticks[59].0 - 6.0;
    assert!((before - watched * 0.6).abs() < 1.0, "{before} of {watched}");
}

proptest! {
    #[test]
    fn finds_any_line(slope in -1e6..1e6_f64, start in -1e6..1e6_f64, n in 2..60_u32) {
        let points: Vec<_> = (0..n).map(|i| (f64::from(i), start + slope * f64::from(i))).collect();
        prop_assert!((theil_sen(&points) - slope).abs() < 1e-3);
    }

    /// The machine was suspended, or the tool starved: ticks are missing, and the rest are the same.
    #[test]
    fn stalled_ticks_change_nothing(rate in 2.0..500.0_f64, from in 8..50_usize, stalled in 1..14_usize) {
        let whole = over(60, |t| (t - 5.0).max(0.0) * rate);
        let mut gap = whole.clone();
        gap.drain(from..(from + stalled).min(59));
        let (whole, gap) = (measure(&whole), measure(&gap));
        prop_assert!(gap.shape.grows(), "{:?}", gap);
        prop_assert!((whole.per_s - gap.per_s).abs() < rate * 0.01);
        prop_assert!(gap.p_value < 1e-3);
    }

    /// Noise of what comes and goes does not hide a leak that is larger.
    #[test]
    fn noise_does_not_hide_a_leak(noise in prop::collection::vec(-20.0..20.0_f64, 60), rate in 10.0..100.0_f64) {
        let points = over(60, |t| 200.0 + t * rate + noise[t as usize]);
        let found = measure(&points);
        prop_assert_eq!(found.shape, Shape::Steady);
        prop_assert!(found.p_value < 1e-6 && (found.per_s - rate).abs() < rate * 0.2);
    }

    /// Noise alone never grows surely for long.
    #[test]
    fn noise_is_no_leak(noise in prop::collection::vec(0.0..40.0_f64, 60)) {
        let points = over(60, |t| 200.0 + noise[t as usize]);
        let found = measure(&points);
        prop_assert!(found.p_value > 1e-6 || !found.shape.grows(), "{:?}", found);
    }
}
