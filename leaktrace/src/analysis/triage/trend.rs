//! How a level changed over the looks at it.

use serde::{Deserialize, Serialize};

use crate::analysis::growth::{mann_kendall, theil_sen};

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
        let steady = slope != 0.0 && slope.signum() == mean.signum() && mann_kendall(&rising) < SURE;
        Self { before, after, per_s: if steady { slope } else { mean }, steady }
    }

    /// Change from first to last look.
    pub fn change(&self) -> f64 {
        self.after - self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let falling = trend(&[50.0, 40.0, 30.0, 20.0, 10.0]);
        assert!(falling.steady && (falling.per_s + 10.0).abs() < 1e-9);
        assert_eq!(trend(&[5.0]), Trend { before: 5.0, after: 5.0, per_s: 0.0, steady: false });
        assert_eq!(trend(&[]), Trend::default());
        assert!(!trend(&[7.0; 8]).steady);
    }
}
