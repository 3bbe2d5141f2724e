//! When the objects that live were allocated: what is left of each cohort.

/// Stretches of time that a window is divided into at most.
pub const MOST_BINS: usize = 128;
/// The shortest stretch, in seconds. Longer windows double it, so that those of two looks fit each other.
const SHORTEST_S: f64 = 1.0 / 16.0;

/// Objects by when they were allocated, in stretches of equal time since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Births {
    width_s: f64,
    counts: Vec<u32>,
}

/// Length of the stretches of a window of so many seconds, in seconds.
pub fn width_for(window_s: f64) -> f64 {
    let mut width = SHORTEST_S;
    while width * (MOST_BINS as f64) < window_s {
        width *= 2.0;
    }
    width
}

impl Births {
    /// Objects by stretches of `width_s` seconds.
    pub fn new(width_s: f64, mut counts: Vec<u32>) -> Self {
        while counts.last() == Some(&0) {
            counts.pop();
        }
        Self { width_s, counts }
    }

    /// Length of a stretch in seconds.
    pub fn width_s(&self) -> f64 {
        self.width_s
    }

    /// Objects of a stretch.
    pub fn count(&self, bin: usize) -> u32 {
        self.counts.get(bin).copied().unwrap_or(0)
    }

    /// The first stretch that has any.
    pub fn first(&self) -> Option<usize> {
        self.counts.iter().position(|&count| count > 0)
    }

    /// Stretches that are over at a time.
    pub fn over_at(&self, seconds: f64) -> usize {
        if self.width_s > 0.0 { (seconds.max(0.0) / self.width_s) as usize } else { 0 }
    }

    /// Objects of the stretches that are over at a time.
    pub fn until(&self, seconds: f64) -> u64 {
        self.counts.iter().take(self.over_at(seconds)).map(|&count| u64::from(count)).sum()
    }

    /// Adds a share of what another one has beyond a third; all have the same stretches.
    pub fn add_share(&mut self, all: &Self, known: &Self, share: f64) {
        self.counts.resize(self.counts.len().max(all.counts.len()), 0);
        for (bin, count) in self.counts.iter_mut().enumerate() {
            let unknown = all.count(bin).saturating_sub(known.count(bin));
            *count += (f64::from(unknown) * share).round() as u32;
        }
    }

    /// Adds another one's objects; both have the same stretches.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.width_s = other.width_s;
        }
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }

    /// The same in longer stretches, a multiple of these.
    #[must_use]
    pub fn widened(&self, width_s: f64) -> Self {
        let of = if self.width_s > 0.0 { ((width_s / self.width_s).round() as usize).max(1) } else { 1 };
        Self::new(width_s, self.counts.chunks(of).map(|part| part.iter().sum()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_two_looks_fit() {
        let widths: Vec<_> = [1.0, 8.0, 8.1, 60.0, 3_600.0].map(width_for).into();
        assert_eq!(widths, [0.0625, 0.0625, 0.125, 0.5, 32.0]);
        let early = Births::new(0.0625, vec![0, 3, 1, 0, 2, 0, 0, 0, 4, 0]);
        let wide = early.widened(0.25);
        assert_eq!(wide, Births::new(0.25, vec![4, 2, 4]));
        assert_eq!((early.first(), wide.first(), Births::default().first()), (Some(1), Some(0), None));
        assert_eq!((wide.over_at(0.74), wide.over_at(0.75), Births::default().over_at(9.0)), (2, 3, 0));
        let mut sum = Births::default();
        sum.add(&early);
        sum.add(&early);
        assert_eq!((0..10).map(|bin| sum.count(bin)).sum::<u32>(), 20);
        assert_eq!((sum.until(10.0), sum.until(0.25), Births::default().until(9.0)), (20, 8, 0));
        // Of 3, 1, 0 and 2 that are nobody's, half.
        let mut one = Births::new(1.0, vec![1, 0, 4]);
        let (all, known) = (Births::new(1.0, vec![5, 1, 4, 2]), Births::new(1.0, vec![2, 0, 4]));
        one.add_share(&all, &known, 0.5);
        assert_eq!(one, Births::new(1.0, vec![3, 1, 4, 1]));
    }
}
