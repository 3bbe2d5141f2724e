//! Growth of what survives: whether it goes on, whether it stays, and whether it is more than a coming and going.
//!
//! The number of survivors at each tick is a running sum, and no test of independent values holds for it. What is
//! independent are cohorts, objects of one stretch of time. So three things are asked, of the objects themselves:
//! are survivors of late cohorts as many as of earlier ones, do those that came of age stay, and is the rise more than a
//! walk of the same steps up and down would make.

use super::births::Births;

/// Parts of the time that a step is told by, and those that steady growth is.
const PARTS: usize = 8;
const FINE_PARTS: usize = 12;
/// Stretches of time that growth is told from at least.
const FEWEST_BINS: usize = 6;

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
    /// What survives goes in the end.
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

/// What an earlier look found, and what of it is left.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stay {
    /// Survivors of the earlier look.
    pub aged: u64,
    /// Those that were freed since.
    pub died: u64,
    /// Time between the looks, in seconds.
    pub watched_s: f64,
    /// The same of the older half of them.
    old: (u64, u64),
    /// The same of the stretches of time in which they were allocated: one is gone once half of its objects are.
    bins: (u64, u64),
}

/// How far an upper limit is from what was seen, in standard deviations of a normal variable: for what is exceeded in 1 of
/// 10,000 cases, and in 1 of 20.
const RARE: f64 = 3.72;
const LIKELY: f64 = 1.645;

/// The upper limit of a Poisson mean of which `seen` were seen, by Wilson and Hilferty.
fn upper_limit(seen: u64, z: f64) -> f64 {
    let next = seen as f64 + 1.0;
    next * (1.0 - 1.0 / (9.0 * next) + z / (3.0 * next.sqrt())).powi(3)
}

impl Stay {
    /// What of the survivors of an earlier look is left: `then` are the births that it found at `then_s`, and `now` those
    /// of all objects now, both in the same stretches of time.
    pub fn of(then: &Births, then_s: f64, now: &Births, now_s: f64, min_age_s: f64) -> Self {
        let end = then.over_at(then_s - min_age_s);
        let aged: u64 = (0..end).map(|bin| u64::from(then.count(bin))).sum();
        let mut stay = Self { aged, watched_s: now_s - then_s, ..Self::default() };
        for bin in 0..end {
            let count = u64::from(then.count(bin));
            let died = count - count.min(u64::from(now.count(bin)));
            if count == 0 {
                continue;
            }
            if stay.old.0 * 2 < aged {
                stay.old = (stay.old.0 + count, stay.old.1 + died);
            }
            stay.died += died;
            stay.bins = (stay.bins.0 + 1, stay.bins.1 + u64::from(died * 2 >= count));
        }
        stay
    }

    /// Whether old objects go: then there are as many as are on their way.
    fn go(&self) -> bool {
        self.old.1 >= 2 && self.old.1 * 4 > self.old.0
    }

    /// Whether so few go that it is no chance.
    fn surely_stay(&self) -> bool {
        let few =
            |(all, gone): (u64, u64), z: f64| gone * 10 <= all && upper_limit(gone, z) * 2.0 <= all as f64;
        // What was allocated at one time may go at one time.
        few((self.aged, self.died), RARE) && few(self.bins, LIKELY) && self.old.1 * 20 <= self.old.0
    }

    /// How long such objects live on at least, on average, in seconds: 95 % of the time it is more. `None` where nothing was
    /// watched.
    pub fn lives_on_s(&self) -> Option<f64> {
        let exposed = (self.aged as f64 - self.died as f64 / 2.0) * self.watched_s;
        (exposed > 0.0).then(|| exposed / upper_limit(self.died, LIKELY))
    }
}

/// What is known of the objects of a site, or of one caller of a site.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    /// When those that live were allocated.
    pub births: Option<&'a Births>,
    /// Seconds since the start.
    pub now_s: f64,
    /// Age from which they survive.
    pub min_age_s: f64,
    /// What became of the survivors of an earlier look.
    pub stay: Option<Stay>,
    /// Survivors over time: seconds since the start, objects. Empty where nobody counted.
    pub levels: &'a [(f64, f64)],
    /// Objects that were allocated, and those of them that were freed.
    pub events: (u64, u64),
    /// Objects that one of those in `births` stands for.
    pub scale: f64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// Survivors that came to be in a second, without the first third of the time since the first.
    pub per_s: f64,
    /// Half the width of its 95 % interval, from how much parts of the time differ.
    pub error_per_s: f64,
    /// Stretches of time, of as many as [`Growth::bins`], that survivors were allocated in.
    pub born_in: usize,
    /// Stretches of time since the first survivor.
    pub bins: usize,
    /// Seconds for which it has been growing.
    pub sustained_s: f64,
    /// The shape.
    pub shape: Shape,
    /// What became of the survivors of an earlier look.
    pub stay: Option<Stay>,
    /// How likely a walk of the same steps, up or down by chance, would rise as much, at most; `None` where it was not counted.
    pub walk: Option<f64>,
}

/// From which chance on a rise may be a walk. The other two questions rule out most walks, too: what is called growing
/// is one in less than one of 10,000 cases, as the tests of this module measure.
const MAY_BE_WALK: f64 = 0.05;
const SURELY_NO_WALK: f64 = 1e-3;

impl Growth {
    /// Whether it seems to grow.
    pub fn grows(&self) -> bool {
        self.shape.grows() && self.per_s > 0.0 && self.walk.is_none_or(|walk| walk <= MAY_BE_WALK)
    }

    /// Whether that is no chance.
    pub fn surely(&self) -> bool {
        self.grows() && self.walk.is_some_and(|walk| walk <= SURELY_NO_WALK) && self.stays()
    }

    /// Whether what is old surely stays.
    pub fn stays(&self) -> bool {
        self.stay.is_some_and(|stay| stay.surely_stay())
    }
}

/// A site that frees less than one in so many of its objects is no walk: then it need not be counted often.
const SELDOM_FREED: u64 = 20;

/// Measures growth.
pub fn measure(seen: &Seen<'_>) -> Growth {
    let Some((births, first)) = seen.births.and_then(|births| Some((births, births.first()?))) else {
        return Growth::default();
    };
    let end = births.over_at(seen.now_s - seen.min_age_s);
    let bins: Vec<f64> = (first..end).map(|bin| f64::from(births.count(bin))).collect();
    let born_in = bins.iter().filter(|&&count| count > 0.0).count();
    let mut growth = Growth { born_in, bins: bins.len(), stay: seen.stay, ..Growth::default() };
    if bins.len() < FEWEST_BINS || born_in == 0 {
        return growth;
    }
    let settled = &bins[bins.len() / 3..];
    let seconds = settled.len() as f64 * births.width_s();
    let late: f64 = settled.iter().sum();
    growth.per_s = late * seen.scale / seconds;
    growth.error_per_s = error(settled) * seen.scale / births.width_s();
    growth.sustained_s = sustained(settled) * births.width_s();
    growth.walk = match seen.events {
        (allocated, freed) if freed * SELDOM_FREED > allocated => {
            (seen.levels.len() > 1).then(|| walk(seen.levels))
        }
        // A walk goes down as often as up. Only every other stretch counts where more than one in a hundred was freed.
        (allocated, freed) => {
            let counts = if freed * 100 <= allocated { born_in } else { born_in / 2 };
            Some(0.5_f64.powi(counts.min(1_000) as i32))
        }
    };
    growth.shape = shape(&bins, seen.stay);
    growth
}

/// Half the width of the 95 % interval of a mean, from parts that differ.
fn error(bins: &[f64]) -> f64 {
    let n = bins.len() as f64;
    let mean = bins.iter().sum::<f64>() / n;
    let variance = bins.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    1.96 * (variance / n).sqrt()
}

/// Stretches since a tenth of what came was there, until the end.
fn sustained(settled: &[f64]) -> f64 {
    let tenth = settled.iter().sum::<f64>() / 10.0;
    let mut sum = 0.0;
    for (bin, count) in settled.iter().enumerate() {
        if sum + count > tenth {
            // In proportion: else it would jump by a stretch from one look to the next.
            return settled.len() as f64 - (bin as f64 + (tenth - sum) / count);
        }
        sum += count;
    }
    0.0
}

/// The last third must bring this share of what the one before did, or it levels off...
const LEVELS_OFF: f64 = 0.4;
/// ...unless there are so few that this is chance.
const BY_CHANCE: f64 = 0.02;
/// One part with this share of all is a step.
const ONE_STEP: f64 = 0.75;
/// A part must rise by this share of an even rise to count as rising.
const RISING: f64 = 0.25;

/// Tells the shape. Tracing begins with nothing live, so each site first fills up to what it normally holds: the first
/// third of the time since the first survivor says nothing.
fn shape(bins: &[f64], stay: Option<Stay>) -> Shape {
    let third = bins.len() / 3;
    let sum = |part: &[f64]| part.iter().sum::<f64>();
    let (before, after) = (sum(&bins[third..bins.len() - third]), sum(&bins[bins.len() - third..]));
    let before = before * third as f64 / (bins.len() - 2 * third) as f64;
    let parts: Vec<f64> = (0..PARTS)
        .map(|part| sum(&bins[part * bins.len() / PARTS..(part + 1) * bins.len() / PARTS]))
        .collect();
    if bins.len() >= PARTS && parts.iter().any(|part| *part > sum(bins) * ONE_STEP) {
        return Shape::Step;
    }
    if after < 1.0 || (after < before * LEVELS_OFF && tail(after, before + after) < BY_CHANCE) {
        return Shape::Plateau;
    }
    if stay.is_some_and(|stay| stay.go()) {
        return Shape::Sawtooth;
    }
    let late = &bins[third..];
    let count = FINE_PARTS.min((sum(late) / 3.0) as usize).clamp(2, late.len());
    let even = sum(late) / count as f64;
    let rising = (0..count)
        .filter(|part| sum(&late[part * late.len() / count..(part + 1) * late.len() / count]) > even * RISING)
        .count();
    if rising * 10 >= count * 7 { Shape::Steady } else { Shape::Bursty }
}

/// The chance of at most `few` of `all` where either way is as likely: by the normal approximation above 60.
fn tail(few: f64, all: f64) -> f64 {
    let (few, all) = (few.floor(), all.round());
    if all > 60.0 {
        let z = (all / 2.0 - few - 0.5) / (all.sqrt() / 2.0);
        return if z <= 0.0 { 1.0 } else { (-z * z / 2.0).exp() };
    }
    let (mut term, mut sum) = (0.5_f64.powf(all), 0.0);
    for k in 0..=few as u32 {
        sum += term;
        term *= (all - f64::from(k)) / (f64::from(k) + 1.0);
    }
    sum
}

/// Steps of a walk that it is told by at least.
const FEWEST_STEPS: usize = 14;
/// Steps from which on the first third, in which everything fills up, is left out.
const ENOUGH_STEPS: usize = 20;

/// How likely a walk whose steps have the same sizes, but go up or down by chance, would rise as much, at most: of n steps x
/// the sum exceeds z times the root of the sum of squares with a chance of exp(-z²/2) (Hoeffding). Longer steps are asked as
/// well, as long as there are enough of them: what rises for a while and falls for a while makes few long ones.
fn walk(levels: &[(f64, f64)]) -> f64 {
    let filling = (levels.len() / 3).min((levels.len() - 1).saturating_sub(ENOUGH_STEPS));
    let mut worst: f64 = 0.0;
    let mut length = 1;
    while length == 1 || (levels.len() - 1) / length >= FEWEST_STEPS {
        worst = worst.max(rise(levels, length).min(rise(&levels[filling..], length)));
        length *= 2;
    }
    worst
}

/// The same for steps of one length.
fn rise(levels: &[(f64, f64)], length: usize) -> f64 {
    // From the end, so that what does not fill a step is left out of the beginning.
    let (mut sum, mut squares) = (0.0, 0.0);
    let mut at = levels.len() - 1;
    while at >= length {
        let step = levels[at].1 - levels[at - length].1;
        sum += step;
        squares += step * step;
        at -= length;
    }
    if sum > 0.0 { (-sum * sum / squares / 2.0).exp() } else { 1.0 }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
pub(super) mod tests;
