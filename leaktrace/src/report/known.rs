//! What an earlier report already had, and how two reports differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{Finding, Frame, Report, Word};

/// By what a finding is known again: names, because addresses and offsets change with each boot and build.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Key {
    /// The responsible function, with its module.
    pub function: String,
    /// The slab cache, or what stands for it.
    pub cache: String,
}

/// The strongest verdict and the growth of all findings with one key.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    strength: u8,
    bytes_per_s: f64,
    live_bytes: u64,
}

/// What grows by no more than so many times what it did is what was known.
const GREW: f64 = 2.0;

/// Function and module of a frame, without what compilers add to copies of a function.
pub fn function(frame: &Frame) -> String {
    let symbol = frame.symbol.as_deref().map_or_else(
        || format!("{:#x}", frame.address),
        |symbol| symbol.split('.').next().unwrap_or_default().to_owned(),
    );
    match &frame.module {
        Some(module) => format!("{symbol} [{module}]"),
        None => symbol,
    }
}

fn key(finding: &Finding) -> Key {
    // Reports of before 0.1 had no responsible frame.
    let frame = if finding.responsible.address == 0 { &finding.call_site } else { &finding.responsible };
    Key { function: function(frame), cache: finding.cache.clone() }
}

/// What of a verdict counts here.
const LEAK: u8 = 4;
const SUSPECT: u8 = 3;

fn strength(verdict: &str) -> u8 {
    match verdict {
        "leak" => LEAK,
        "suspect" => SUSPECT,
        "plateau" => 2,
        "cache" => 1,
        _ => 0,
    }
}

/// What it grows by, whatever the verdict: under the same load the same site may be a plateau once, and a suspect the next time.
fn rate(finding: &Finding) -> f64 {
    finding.growth.bytes_per_s.max(0.0)
}

fn sums(report: &Report) -> BTreeMap<Key, Sum> {
    let mut sums: BTreeMap<Key, Sum> = BTreeMap::new();
    for finding in &report.findings {
        let sum = sums.entry(key(finding)).or_default();
        sum.strength = sum.strength.max(strength(&finding.verdict));
        sum.bytes_per_s += rate(finding);
        sum.live_bytes += finding.live.bytes;
    }
    sums
}

/// The findings of an earlier report.
pub struct Known(BTreeMap<Key, Sum>);

impl Known {
    /// Takes them from a report.
    pub fn of(report: &Report) -> Self {
        Self(sums(report))
    }

    /// Marks the findings that are known: growing about as fast or slower than they did, and no leak where none was suspected. What
    /// did not grow at all is not known by having been there. They come after the new ones.
    pub fn mark(&self, findings: &mut [Finding]) {
        for finding in findings.iter_mut() {
            finding.known = self.0.get(&key(finding)).is_some_and(|known| {
                let (was, is) = (known.strength, strength(&finding.verdict));
                (was >= is || (is == SUSPECT && known.bytes_per_s > 0.0))
                    && rate(finding) <= known.bytes_per_s * GREW + f64::EPSILON
            });
        }
        findings.sort_by_key(|finding| (finding.known, finding.rank));
        for (index, finding) in findings.iter_mut().enumerate() {
            finding.rank = index + 1;
        }
    }
}

/// How a finding changed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Change {
    /// `appeared`, `grew`, `shrank` or `vanished`.
    pub what: Word,
    /// The responsible function, with its module.
    pub function: String,
    /// The slab cache, or what stands for it.
    pub cache: String,
    /// Its verdict in each report; empty where it is in none.
    pub verdicts: [Word; 2],
    /// Its growth in each report.
    pub bytes_per_s: [f64; 2],
    /// Its live bytes in each report.
    pub live_bytes: [u64; 2],
}

/// How a slab cache's growth in /proc/slabinfo changed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CacheChange {
    /// Its name.
    pub cache: String,
    /// Growth in each report, in objects per second.
    pub objects_per_s: [f64; 2],
    /// The same in bytes.
    pub bytes_per_s: [f64; 2],
}

/// How two reports differ.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Diff {
    /// Always `leaktrace.diff/1`.
    pub schema: Word,
    /// Kernel of each report.
    pub kernels: [String; 2],
    /// Start of each report.
    pub started: [String; 2],
    /// Length of each report.
    pub duration_s: [f64; 2],
    /// Headline of each report.
    pub headlines: [String; 2],
    /// Findings that differ, the largest difference in growth first.
    pub findings: Vec<Change>,
    /// Caches that differ, likewise.
    pub caches: Vec<CacheChange>,
}

/// Of caches a difference below this many bytes per second is none.
const CACHE_NOISE: f64 = 1_024.0;
/// Of findings a change by less than this share is none.
const SAME: f64 = 0.25;

/// Compares two reports.
pub fn diff(a: &Report, b: &Report) -> Diff {
    let (sums_a, sums_b) = (sums(a), sums(b));
    let keys: std::collections::BTreeSet<&Key> = sums_a.keys().chain(sums_b.keys()).collect();
    let word = |sum: Option<&Sum>| -> Word {
        sum.map_or("", |sum| match sum.strength {
            LEAK => "leak",
            SUSPECT => "suspect",
            2 => "plateau",
            1 => "cache",
            _ => "churn",
        })
        .into()
    };
    let mut findings: Vec<Change> = keys
        .into_iter()
        .filter_map(|key| {
            let (before, after) = (sums_a.get(key), sums_b.get(key));
            let strongest = before.map_or(0, |sum| sum.strength).max(after.map_or(0, |sum| sum.strength));
            let rates = [before, after].map(|sum| sum.map_or(0.0, |sum| sum.bytes_per_s));
            let small = (rates[1] - rates[0]).abs() <= rates[0].abs().max(rates[1].abs()) * SAME;
            let what = match (before, after) {
                // What merely comes and goes does so in every report.
                _ if strongest < SUSPECT => return None,
                (None, _) => "appeared",
                (_, None) => "vanished",
                // Nor has anything changed where the same growth was certain once, and not the other time.
                (Some(x), Some(y)) if small && (x.strength == LEAK) == (y.strength == LEAK) => return None,
                _ if rates[1] >= rates[0] => "grew",
                _ => "shrank",
            };
            Some(Change {
                what: what.into(),
                function: key.function.clone(),
                cache: key.cache.clone(),
                verdicts: [word(before), word(after)],
                bytes_per_s: rates,
                live_bytes: [before, after].map(|sum| sum.map_or(0, |sum| sum.live_bytes)),
            })
        })
        .collect();
    let difference = |rates: &[f64; 2]| (rates[1] - rates[0]).abs();
    findings.sort_by(|x, y| difference(&y.bytes_per_s).total_cmp(&difference(&x.bytes_per_s)));
    Diff {
        schema: "leaktrace.diff/1".into(),
        kernels: [a.kernel.clone(), b.kernel.clone()],
        started: [a.window.started.clone(), b.window.started.clone()],
        duration_s: [a.window.duration_s, b.window.duration_s],
        headlines: [a.headline.text.clone(), b.headline.text.clone()],
        findings,
        caches: caches(a, b),
    }
}

fn caches(a: &Report, b: &Report) -> Vec<CacheChange> {
    let mut rates: BTreeMap<&str, ([f64; 2], u32)> = BTreeMap::new();
    for (index, report) in [a, b].into_iter().enumerate() {
        for cache in &report.caches {
            let Some(slabinfo) = cache.slabinfo else { continue };
            let change = slabinfo.after as f64 - slabinfo.before as f64;
            let entry = rates.entry(&cache.name).or_insert(([0.0; 2], cache.object_size));
            entry.0[index] = change / report.window.duration_s.max(1.0);
        }
    }
    let mut caches: Vec<CacheChange> = rates
        .into_iter()
        .map(|(name, (objects, size))| CacheChange {
            cache: name.to_owned(),
            objects_per_s: objects,
            bytes_per_s: objects.map(|rate| rate * f64::from(size)),
        })
        .filter(|change| (change.bytes_per_s[1] - change.bytes_per_s[0]).abs() >= CACHE_NOISE)
        .collect();
    let difference = |change: &CacheChange| (change.bytes_per_s[1] - change.bytes_per_s[0]).abs();
    caches.sort_by(|x, y| difference(y).total_cmp(&difference(x)));
    caches
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
