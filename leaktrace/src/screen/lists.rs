//! The lists of `leaktrace top`, as cells of text.

use super::Tab;
use crate::{
    report::{
        escape,
        findings::{place, share_freed},
        model::{Finding, Report},
        page::shorten,
    },
    units,
};

/// A list: its columns' titles and widths (0 takes what is left), and its rows.
pub(super) struct List {
    pub(super) columns: Vec<(&'static str, u16, bool)>,
    pub(super) rows: Vec<Vec<String>>,
}

/// From this width on findings have all their columns.
const ROOMY: u16 = 110;
/// What columns are apart.
pub(super) const GAP: u16 = 1;

/// Findings, in a width.
pub(super) fn findings(findings: &[&Finding], width: u16) -> List {
    let roomy = width >= ROOMY;
    let (cache, bars) = match width.checked_sub(ROOMY) {
        None => (12, 6),
        // The place needs more room than they do.
        Some(more) => ((14 + more / 4).min(20), (8 + more / 4).min(16)),
    };
    let mut columns = vec![("#", 3, true), ("verdict", 7, false), ("where", 0, false)];
    columns.extend([("cache", cache, false), ("live", 9, true), ("bytes", 8, true), ("growth", 11, true)]);
    if roomy {
        columns.extend([("freed", 5, true), ("oldest", 7, true)]);
    }
    columns.push(("trend", bars, false));
    let fixed: u16 = columns.iter().map(|(_, width, _)| width + GAP).sum();
    let room = usize::from(width.saturating_sub(fixed)).max(8);
    let rows = findings
        .iter()
        .map(|finding| {
            let mut row = vec![
                finding.rank.to_string(),
                if finding.known { "known".to_owned() } else { escape(&finding.verdict).into_owned() },
                place(&finding.responsible, room),
                shorten(&escape(&finding.what()), cache.into()),
                units::count(finding.live.objects),
                units::bytes(finding.live.bytes as f64),
                finding.growth.in_words(),
            ];
            if roomy {
                row.push(share_freed(finding));
                row.push(units::seconds(finding.survivors.oldest_s));
            }
            row.push(trend(&finding.growth.points, bars.into()));
            row
        })
        .collect();
    List { columns, rows }
}

/// Any other list.
pub(super) fn others(tab: Tab, report: &Report) -> List {
    match tab {
        Tab::Caches => caches(report),
        Tab::Modules => modules(report),
        _ => families(report),
    }
}

fn caches(report: &Report) -> List {
    let row = |cache: &crate::report::model::Cache| {
        let in_slabinfo = cache.slabinfo.map(|change| change.after as i64 - change.before as i64);
        vec![
            shorten(&escape(&cache.name), 40),
            units::count(cache.object_size.into()),
            units::count(cache.traced.live),
            units::change(cache.traced.net),
            in_slabinfo.map_or_else(|| "-".to_owned(), units::change),
            escape(&cache.agreement).into_owned(),
        ]
    };
    List {
        columns: vec![
            ("cache", 0, false),
            ("size", 7, true),
            ("live", 10, true),
            ("traced", 10, true),
            ("slabinfo", 10, true),
            ("both", 16, false),
        ],
        rows: report.caches.iter().map(row).collect(),
    }
}

fn modules(report: &Report) -> List {
    let row = |module: &crate::report::model::Module| {
        vec![
            shorten(&escape(&module.name), 40),
            units::count(module.findings as u64),
            units::bytes(module.live_bytes as f64),
            units::bytes(module.survivor_bytes as f64),
            units::rate(module.bytes_per_s),
        ]
    };
    List {
        columns: vec![
            ("module", 0, false),
            ("sites", 7, true),
            ("live", 10, true),
            ("surviving", 10, true),
            ("growth", 13, true),
        ],
        rows: report.modules.iter().map(row).collect(),
    }
}

fn families(report: &Report) -> List {
    let mut sums: Vec<(&str, u64, u64, u64, f64)> = Vec::new();
    for finding in &report.findings {
        let family = &*finding.family;
        let at = sums.iter().position(|sum| sum.0 == family).unwrap_or_else(|| {
            sums.push((family, 0, 0, 0, 0.0));
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.1 += 1;
        sum.2 += finding.live.objects;
        sum.3 += finding.live.bytes;
        sum.4 += finding.growth.rate();
    }
    sums.sort_by_key(|sum| std::cmp::Reverse(sum.3));
    let row = |&(family, sites, objects, bytes, growth): &(&str, u64, u64, u64, f64)| {
        vec![
            escape(family).into_owned(),
            units::count(sites),
            units::count(objects),
            units::bytes(bytes as f64),
            units::rate(growth),
        ]
    };
    List {
        columns: vec![
            ("family", 0, false),
            ("sites", 7, true),
            ("live", 12, true),
            ("bytes", 10, true),
            ("growth", 13, true),
        ],
        rows: sums.iter().map(row).collect(),
    }
}

/// Blocks of eight heights.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Numbers over time in so many characters, the highest at full height.
pub(super) fn trend(points: &[(f32, f32)], width: usize) -> String {
    heights(points, width).into_iter().map(|height| BLOCKS[(height * 7.0).round() as usize]).collect()
}

/// The same as numbers from 0 to 1; empty for fewer than two points.
pub(super) fn heights(points: &[(f32, f32)], width: usize) -> Vec<f64> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    let span = f64::from(last.0 - first.0);
    if points.len() < 2 || span <= 0.0 {
        return Vec::new();
    }
    let most = points.iter().map(|point| f64::from(point.1)).fold(0.0, f64::max);
    let mut next = 0;
    (0..width)
        .map(|column| {
            let until = f64::from(first.0) + span * (column + 1) as f64 / width as f64;
            while next + 1 < points.len() && f64::from(points[next + 1].0) <= until + 1e-6 {
                next += 1;
            }
            if most > 0.0 { (f64::from(points[next].1) / most).clamp(0.0, 1.0) } else { 0.0 }
        })
        .collect()
}
