//! The lists of `leaktrace top`, as cells of text.

use super::Tab;
use crate::{
    report::{
        columns::shorten_place,
        escape,
        findings::{Line, share_freed},
        model::Report,
    },
    units,
};

/// A list: its columns and its rows. One column takes what the others leave.
#[derive(Default)]
pub(super) struct List {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<String>>,
}

/// A column of a list.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// 0 takes what is left.
    pub(super) width: u16,
    pub(super) right: bool,
    /// Of rank 0 it is always there; the higher, the sooner it goes.
    rank: u8,
}

/// What a column has of one item.
type Cell<'a, T> = Box<dyn Fn(&T) -> String + 'a>;

/// From this width on findings have all their columns.
const ROOMY: u16 = 110;
/// What columns are apart.
pub(super) const GAP: u16 = 1;
/// What the column that takes the rest needs at least.
const LEAST: u16 = 16;

impl List {
    /// A list whose columns have cells; a width is that of the widest cell if that is more.
    fn new<T>(items: &[T], columns: Vec<(Column, Cell<'_, T>)>) -> Self {
        let rows = items.iter().map(|item| columns.iter().map(|(_, cell)| cell(item)).collect()).collect();
        let mut list = Self { columns: columns.into_iter().map(|(column, _)| column).collect(), rows };
        for (index, column) in list.columns.iter_mut().enumerate().filter(|(_, column)| column.right) {
            let widest = list.rows.iter().map(|row| row[index].chars().count()).max().unwrap_or(0);
            column.width = column.width.max(widest as u16);
        }
        list
    }

    /// Leaves out less important columns until the others have room, and cuts names to theirs: numbers are whole or not there.
    fn fit(mut self, width: u16) -> Self {
        let taken = |columns: &[Column]| columns.iter().map(|column| column.width + GAP).sum::<u16>();
        while taken(&self.columns) + LEAST > width + GAP {
            let ranked = self.columns.iter().enumerate().filter(|(_, column)| column.rank > 0);
            let Some((index, _)) = ranked.max_by_key(|(_, column)| column.rank) else { break };
            self.columns.remove(index);
            for row in &mut self.rows {
                row.remove(index);
            }
        }
        let room = (width + GAP).saturating_sub(taken(&self.columns)).max(8);
        for row in &mut self.rows {
            for (cell, column) in row.iter_mut().zip(&self.columns).filter(|(_, column)| !column.right) {
                let limit = if column.width == 0 { room } else { column.width };
                *cell = shorten_place(cell, limit.into());
            }
        }
        self
    }
}

fn left(rank: u8, title: &'static str, width: u16) -> Column {
    Column { title, width, right: false, rank }
}

fn right(rank: u8, title: &'static str, width: u16) -> Column {
    Column { title, width, right: true, rank }
}

/// Findings and groups of them, in a width.
pub(super) fn findings(lines: &[Line<'_>], width: u16) -> List {
    let (cache, bars) = match width.checked_sub(ROOMY) {
        None => (12, 6),
        // The place needs more room than they do.
        Some(more) => ((14 + more / 4).min(20), (8 + more / 4).min(16)),
    };
    let mut columns: Vec<(Column, Cell<'_, Line<'_>>)> = vec![
        (right(2, "#", 3), Box::new(|line| line.finding.rank.to_string())),
        (left(0, "verdict", 7), Box::new(Line::verdict)),
        (left(0, "where", 0), Box::new(Line::place)),
        (left(4, "cache", cache), Box::new(Line::what)),
        (right(3, "live", 9), Box::new(|line| units::count(line.live().objects))),
        (right(1, "bytes", 8), Box::new(|line| units::bytes(line.live().bytes as f64))),
        (right(0, "growth", 11), Box::new(Line::growth)),
    ];
    if width >= ROOMY {
        columns.push((right(7, "freed", 5), Box::new(|line| share_freed(line.finding))));
        columns
            .push((right(6, "oldest", 7), Box::new(|line| units::seconds(line.finding.survivors.oldest_s))));
    }
    columns.push((
        left(5, "trend", bars),
        Box::new(move |line| trend(&line.finding.growth.points, bars.into())),
    ));
    List::new(lines, columns).fit(width)
}

/// Any other list, in a width.
pub(super) fn others(tab: Tab, report: &Report, width: u16) -> List {
    match tab {
        Tab::Caches => caches(report),
        Tab::Modules => modules(report),
        _ => families(report),
    }
    .fit(width)
}

fn caches(report: &Report) -> List {
    let in_slabinfo = |cache: &crate::report::model::Cache| {
        let change = cache.slabinfo.map(|change| change.after as i64 - change.before as i64);
        change.map_or_else(|| "-".to_owned(), units::change)
    };
    List::new(
        &report.caches,
        vec![
            (left(0, "cache", 0), Box::new(|cache| escape(&cache.name).into_owned())),
            (right(4, "size", 7), Box::new(|cache| units::count(cache.object_size.into()))),
            (right(3, "live", 10), Box::new(|cache| units::count(cache.traced.live))),
            (right(0, "traced", 8), Box::new(|cache| units::change(cache.traced.net))),
            (right(1, "slabinfo", 10), Box::new(in_slabinfo)),
            (left(2, "both", 16), Box::new(|cache| escape(&cache.agreement).into_owned())),
        ],
    )
}

fn modules(report: &Report) -> List {
    List::new(
        &report.modules,
        vec![
            (left(0, "module", 0), Box::new(|module| escape(&module.name).into_owned())),
            (right(3, "sites", 7), Box::new(|module| units::count(module.findings as u64))),
            (right(2, "live", 10), Box::new(|module| units::bytes(module.live_bytes as f64))),
            (right(1, "surviving", 10), Box::new(|module| units::bytes(module.survivor_bytes as f64))),
            (right(0, "growth", 12), Box::new(|module| units::rate(module.bytes_per_s))),
        ],
    )
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
    List::new(
        &sums,
        vec![
            (left(0, "family", 0), Box::new(|sum| escape(sum.0).into_owned())),
            (right(2, "sites", 7), Box::new(|sum| units::count(sum.1))),
            (right(3, "live", 12), Box::new(|sum| units::count(sum.2))),
            (right(1, "bytes", 10), Box::new(|sum| units::bytes(sum.3 as f64))),
            (right(0, "growth", 12), Box::new(|sum| units::rate(sum.4))),
        ],
    )
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
