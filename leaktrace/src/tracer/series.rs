//! How a site's surviving objects changed over the ticks, in bounded memory.

/// Points kept of a series; beyond that every other one is dropped and the step doubles.
const MAX_POINTS: usize = 240;

/// Points in time, evenly spaced but for the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    points: Vec<(f32, f32)>,
    step: u32,
    skipped: u32,
}

impl Series {
    /// Adds the number of objects at `seconds` since the start.
    pub fn push(&mut self, seconds: f64, objects: f64) {
        if self.skipped < self.step {
            self.skipped += 1;
            return;
        }
        self.skipped = 0;
        self.points.push((seconds as f32, objects as f32));
        if self.points.len() >= MAX_POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.step = self.step * 2 + 1;
        }
    }

    /// Multiplies all numbers of objects.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for point in &mut self.points {
            point.1 *= factor as f32;
        }
        self
    }

    /// The last number of objects.
    pub fn last(&self) -> f64 {
        self.points.last().map_or(0.0, |point| f64::from(point.1))
    }

    /// By how much the last number is above that of half as many points ago.
    pub fn recent_rise(&self) -> f64 {
        self.points.get(self.points.len() / 2).map_or(0.0, |point| self.last() - f64::from(point.1))
    }

    /// The points: seconds since the start, objects.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (f64, f64)> + '_ {
        self.points.iter().map(|&(seconds, objects)| (f64::from(seconds), f64::from(objects)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_series_stay_short_and_even() {
        let mut series = Series::default();
        for tick in 0..10_000 {
            series.push(f64::from(tick), f64::from(tick) * 2.0);
        }
        let points: Vec<_> = series.points().collect();
        assert!(points.len() >= MAX_POINTS / 2 - 1 && points.len() < MAX_POINTS);
        assert!(points.iter().all(|&(seconds, objects)| (objects - 2.0 * seconds).abs() < 1e-3));
        let steps: Vec<_> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(steps.iter().all(|&step| (step - steps[0]).abs() < 1e-3), "{steps:?}");
        assert!(points[points.len() - 1].0 > 9_900.0);
        assert!((series.recent_rise() - series.last() / 2.0).abs() < series.last() * 0.02);
        assert!((series.clone().scaled(0.5).last() - series.last() / 2.0).abs() < 1e-3);
    }
}
