//! Growth over the ticks: how fast, how surely, and in what shape.

/// Points that a slope and its p-value are taken from at most: both look at all pairs.
const MOST_POINTS: usize = 240;
/// Blocks of ticks that a shape is told by.
const BLOCKS: usize = 8;

/// The Theil-Sen slope: the median of the slopes between all pairs of points, which a few odd
/// ticks do not move. In units of `y` per unit of `x`; 0 for fewer than two points.
pub fn theil_sen(points: &[(f64, f64)]) -> f64 {
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
pub fn mann_kendall(values: &[f64]) -> f64 {
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

/// How the number of surviving objects changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// There is too little to see one.
    #[default]
    Unclear,
    /// It grows all the time.
    Steady,
    /// It grows now and then, again and again.
    Bursty,
    /// It grew at one time.
    Step,
    /// It does not grow, or has stopped growing.
    Plateau,
    /// It rises and falls.
    Sawtooth,
}

impl Shape {
    /// The word for it in the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unclear => "unclear",
            Self::Steady => "steady",
            Self::Bursty => "bursty",
            Self::Step => "step",
            Self::Plateau => "plateau",
            Self::Sawtooth => "sawtooth",
        }
    }

    /// Whether it goes on.
    pub fn grows(self) -> bool {
        matches!(self, Self::Steady | Self::Bursty)
    }
}

/// What the ticks say of a site's survivors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Theil-Sen slope, in objects per second.
    pub per_s: f64,
    /// Mann-Kendall p-value of its rising.
    pub p_value: f64,
    /// Ticks that both were taken from.
    pub ticks: usize,
    /// Seconds for which it has been growing.
    pub sustained_s: f64,
    /// The shape.
    pub shape: Shape,
}

impl Default for Growth {
    fn default() -> Self {
        Self { per_s: 0.0, p_value: 1.0, ticks: 0, sustained_s: 0.0, shape: Shape::Unclear }
    }
}

/// A block must rise by this share of an even rise to count as rising.
const RISING: f64 = 0.25;
/// One block with this share of the whole rise is a step.
const ONE_STEP: f64 = 0.75;
/// The second half must rise by this share of what the first half did, or it levels off.
const LEVELS_OFF: f64 = 0.4;
/// Falls of this share of the rises make a sawtooth.
const FALLS: f64 = 0.3;

/// Measures the growth of survivors: points are (seconds, objects), one a tick.
///
/// Tracing begins with nothing live, so each site first fills up to what it normally holds: the
/// first third of the time since the first survivor says nothing and is left out.
pub fn measure(points: &[(f64, f64)]) -> Growth {
    let begin = points.iter().position(|&(_, objects)| objects > 0.0).unwrap_or(points.len());
    let points = &points[begin.saturating_sub(1)..];
    let (Some(&(first, _)), Some(&(last, _))) = (points.first(), points.last()) else {
        return Growth::default();
    };
    let settled: Vec<_> =
        points.iter().copied().filter(|&(seconds, _)| seconds >= first + (last - first) / 3.0).collect();
    let thinned: Vec<_> =
        settled.iter().copied().step_by(settled.len().div_ceil(MOST_POINTS).max(1)).collect();
    if thinned.len() < 4 {
        return Growth { per_s: theil_sen(&thinned), ticks: thinned.len(), ..Growth::default() };
    }
    let values: Vec<f64> = thinned.iter().map(|&(_, objects)| objects).collect();
    let shape = shape(&thinned);
    let (begin, end) = (thinned[0], thinned[thinned.len() - 1]);
    let mut per_s = theil_sen(&thinned);
    if shape == Shape::Bursty && per_s <= 0.0 {
        // Of rare bursts most pairs of ticks see none.
        per_s = (end.1 - begin.1) / (end.0 - begin.0);
    }
    let settled_at = first + (last - first) / 3.0;
    let level = at(points, settled_at);
    let rising_since = crossed(points, settled_at, level + (end.1 - level) / 10.0).unwrap_or(end.0);
    Growth {
        per_s,
        p_value: mann_kendall(&values),
        ticks: thinned.len(),
        sustained_s: if end.1 > level { end.0 - rising_since } else { 0.0 },
        shape,
    }
}

/// The value on the line between the two points around a time.
fn at(points: &[(f64, f64)], seconds: f64) -> f64 {
    let after = points.partition_point(|point| point.0 < seconds).min(points.len() - 1);
    let (from, to) = (points[after.saturating_sub(1)], points[after]);
    if to.0 > from.0 { from.1 + (to.1 - from.1) * (seconds - from.0) / (to.0 - from.0) } else { to.1 }
}

/// When a level was first exceeded from some time on, between two ticks in proportion: else the answer would
/// jump by a tick with each new point, and what was certain a moment ago would not be any more.
fn crossed(points: &[(f64, f64)], since: f64, level: f64) -> Option<f64> {
    let after = points.iter().position(|&(seconds, objects)| seconds >= since && objects > level)?;
    let (from, to) = (points[after.saturating_sub(1)], points[after]);
    let share = if to.1 > from.1 { ((level - from.1) / (to.1 - from.1)).clamp(0.0, 1.0) } else { 1.0 };
    Some((from.0 + (to.0 - from.0) * share).max(since))
}

/// Tells the shape by the means of blocks of equal time, which no single tick moves much. A block
/// in which the tool was stalled has no points, and takes part in none.
fn shape(points: &[(f64, f64)]) -> Shape {
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let blocks = BLOCKS.min(points.len() / 2).max(2);
    let mut sums = vec![(0.0, 0.0, 0.0); blocks];
    for &(seconds, objects) in points {
        let share = if last > first { (seconds - first) / (last - first) } else { 0.0 };
        let block = &mut sums[((share * blocks as f64) as usize).min(blocks - 1)];
        *block = (block.0 + 1.0, block.1 + seconds, block.2 + objects);
    }
    let means: Vec<(f64, f64)> = sums
        .into_iter()
        .filter(|&(count, ..)| count > 0.0)
        .map(|(count, seconds, objects)| (seconds / count, objects / count))
        .collect();
    let level = means.iter().map(|mean| mean.1).fold(0.0, f64::max);
    if level <= 0.0 {
        return Shape::Unclear;
    }
    let steps: Vec<f64> = means.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    let rise: f64 = steps.iter().filter(|step| **step > 0.0).sum();
    let fall: f64 = -steps.iter().filter(|step| **step < 0.0).sum::<f64>();
    let net = rise - fall;
    let noise = level * 0.01;
    if fall > rise * FALLS && rise > noise * 2.0 && fall > noise * 2.0 {
        return Shape::Sawtooth;
    }
    // Fewer than one object is no growth, and neither is a little of much that is there.
    if net < 1.0 || rise <= 0.0 {
        return Shape::Plateau;
    }
    if steps.iter().any(|step| *step > rise * ONE_STEP) {
        return Shape::Step;
    }
    let half = steps.len() / 2;
    let mean_rate = |part: &[(f64, f64)]| match (part.first(), part.last()) {
        (Some(a), Some(b)) if b.0 > a.0 => (b.1 - a.1) / (b.0 - a.0),
        _ => 0.0,
    };
    let (before, after) = (mean_rate(&means[..=half]), mean_rate(&means[half..]));
    if after < before * LEVELS_OFF {
        return Shape::Plateau;
    }
    let even = net / steps.len() as f64;
    let rising = steps.iter().filter(|step| **step > even * RISING).count();
    if rising * 10 >= steps.len() * 7 { Shape::Steady } else { Shape::Bursty }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
