//! How a level changed over the looks at it.

use serde::{Deserialize, Serialize};

/// A level at the first and last look, and how it got from one to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// At the first look.
    pub before: f64,
    /// At the last look.
    pub after: f64,
    /// Change per second: of a steady one the Theil-Sen slope, else on the average.
    pub per_s: f64,
    /// Whether it rises or falls all the time, and not at one time.
    pub steady: bool,
}

/// Below this probability that values without a trend rise so, they do rise.
const SURE: f64 = 0.05;
/// Where so much of a change came in one of so many intervals between looks, it came at one time.
const MOST: f64 = 0.8;
const ONE_IN: usize = 4;

impl Trend {
    /// The trend of (seconds, level), in the order of time.
    pub fn of(points: &[(f64, f64)]) -> Self {
        let (Some(&(start, before)), Some(&(end, after))) = (points.first(), points.last()) else {
            return Self::default();
        };
        let mean = if end > start { (after - before) / (end - start) } else { 0.0 };
        let slope = theil_sen(points);
        let rising: Vec<f64> =
            points.iter().map(|&(_, level)| if after < before { -level } else { level }).collect();
        let steady = slope != 0.0
            && slope.signum() == mean.signum()
            && mann_kendall(&rising) < SURE
            && !is_step(&rising);
        Self { before, after, per_s: if steady { slope } else { mean }, steady }
    }

    /// Change from first to last look.
    pub fn change(&self) -> f64 {
        self.after - self.before
    }
}

/// Whether most of a rise came in a few intervals: by ranks alone a step in the middle rises as surely as a line.
fn is_step(rising: &[f64]) -> bool {
    let change = rising.last().unwrap_or(&0.0) - rising.first().unwrap_or(&0.0);
    let mut rises: Vec<f64> = rising.windows(2).map(|pair| pair[1] - pair[0]).collect();
    rises.sort_unstable_by(|a, b| b.total_cmp(a));
    let few = (rises.len() / ONE_IN).max(1);
    rises.iter().take(few).sum::<f64>() >= change * MOST
}

/// The Theil-Sen slope: the median of the slopes between all pairs of points, which a few odd
/// ticks do not move. In units of `y` per unit of `x`; 0 for fewer than two points.
fn theil_sen(points: &[(f64, f64)]) -> f64 {
    let mut slopes: Vec<f64> = points
        .iter()
        .enumerate()
        .flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)))
        .filter(|(a, b)| b.0 > a.0)
        .map(|(a, b)| (b.1 - a.1) / (b.0 - a.0))
        .collect();
    if slopes.is_empty() {
        return 0.0;
    }
    let middle = slopes.len() / 2;
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// The Mann-Kendall test: how likely values without a trend would rise at least as consistently, by
/// the normal approximation with the correction for ties. 1 for fewer than four values.
fn mann_kendall(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 4 {
        return 1.0;
    }
    let mut s = 0.0;
    for (i, a) in values.iter().enumerate() {
        for b in &values[i + 1..] {
            s += (b - a).partial_cmp(&0.0).map_or(0.0, |order| f64::from(order as i8));
        }
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let ties: f64 = sorted
        .chunk_by(|a, b| a.total_cmp(b).is_eq())
        .map(|tied| {
            let t = tied.len() as f64;
            t * (t - 1.0) * (2.0 * t + 5.0)
        })
        .sum();
    let variance = (n * (n - 1.0) * (2.0 * n + 5.0) - ties) / 18.0;
    if variance <= 0.0 || s <= 0.0 {
        return 1.0;
    }
    upper_tail((s - 1.0) / variance.sqrt())
}

/// Probability that a standard normal variable exceeds `z` (Abramowitz and Stegun, 26.2.17; off by
/// 8e-8 at most).
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt() * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_looks_do_not_count() {
        let mut points: Vec<_> = (0..30).map(f64::from).map(|t| (t, t * 5.0 + 7.0)).collect();
        points[12].1 = 1e9;
        points[25].1 = 0.0;
        assert!((theil_sen(&points) - 5.0).abs() < 0.2);
        assert!(theil_sen(&[]).abs() < 1e-9);
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

    fn trend(levels: &[f64]) -> Trend {
        let points: Vec<_> =
            levels.iter().enumerate().map(|(second, &level)| (second as f64, level)).collect();
        Trend::of(&points)
    }

    #[test]
    fn steady_growth_and_steps_are_told_apart() {
        let steady = trend(&[10.0, 20.0, 31.0, 40.0, 50.0, 59.0]);
        assert!(
            steady.steady && (steady.per_s - 10.0).abs() < 0.5 && (steady.change() - 49.0).abs() < 1e-9,
            "{steady:?}"
        );
        let step = trend(&[10.0, 10.0, 10.0, 10.0, 10.0, 60.0]);
        assert!(!step.steady && (step.per_s - 10.0).abs() < 1e-9, "{step:?}");
        for step in [
            &[10.0, 10.0, 10.0, 60.0, 60.0, 60.0, 60.0][..],
            &[1.0, 2.0, 2.0, 3.0, 3.0, 40.0, 60.0, 60.0, 61.0, 61.0, 61.0],
        ] {
            assert!(!trend(step).steady, "{step:?}");
        }
        assert!(trend(&[0.0, 8.0, 9.0, 20.0, 28.0, 29.0, 45.0, 47.0, 60.0, 61.0, 70.0]).steady);
        let falling = trend(&[50.0, 40.0, 30.0, 20.0, 10.0]);
        assert!(falling.steady && (falling.per_s + 10.0).abs() < 1e-9);
        assert_eq!(trend(&[5.0]), Trend { before: 5.0, after: 5.0, per_s: 0.0, steady: false });
        assert_eq!(trend(&[]), Trend::default());
        assert!(!trend(&[7.0; 8]).steady);
    }
}
