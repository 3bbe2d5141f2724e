//! Who holds, and who holds that.

use rustc_hash::FxHashMap;

use super::{
    Candidate, Holder, Prover,
    looks::LOOKS,
    place::{Place, What},
    scan::Pass,
};
use crate::{analysis::linkage::Span, kernel::symbols::Location};

/// Places of each group of candidates whose holders are asked for in the next look.
const ASKED: usize = 3;
/// What is asked for of a page is who points to so much around the place.
const SMALL_PAGE: u64 = 4_096;

impl Prover {
    /// Who holds at a place, and who holds that.
    pub(super) fn chain(&self, place: &Place, asked: &[Asked]) -> Vec<Holder> {
        let mut chain = vec![self.holder(place)];
        let mut at = place;
        while chain.len() < LOOKS {
            let of = span(at).and_then(|span| asked.iter().find(|ask| ask.span == span));
            let Some(next) = of.and_then(|ask| ask.held_by.as_ref()) else { break };
            chain.push(self.holder(next));
            at = next;
        }
        chain
    }

    pub(super) fn holder(&self, place: &Place) -> Holder {
        let mut holder = match &place.what {
            What::Variable(address) => match self.memory.variable_at(*address) {
                Some(location) => of_variable(&location),
                None => Holder { what: format!("kernel data at {address:#x}"), ..Holder::default() },
            },
            What::PerCpu { cpu, address } => {
                let variable = self.memory.static_percpu(*address).map(|location| of_variable(&location));
                let known = variable.unwrap_or_else(|| Holder {
                    what: format!("memory at {address:#x}"),
                    ..Holder::default()
                });
                Holder {
                    what: format!("per-CPU {}", known.what),
                    suffix: format!("{} of CPU {cpu}", known.suffix),
                    ..known
                }
            }
            What::Object { cache, start, .. } => Holder {
                what: format!("{cache} object"),
                at: Some(place.address - start),
                object: Some(*start),
                ..Holder::default()
            },
            What::Area { area, address } => Holder {
                what: "vmalloc area".to_owned(),
                at: Some(address - area.start),
                object: Some(area.start),
                caller: Some(area.caller).filter(|&at| at != 0),
                ..Holder::default()
            },
            What::Stack { pid, comm } => {
                Holder { what: format!("the stack of {comm} ({pid})"), ..Holder::default() }
            }
            What::StructPage(frame) => {
                Holder { what: format!("the struct page of frame {frame:#x}"), ..Holder::default() }
            }
            What::Page => Holder {
                what: "page of the kernel".to_owned(),
                object: Some(self.memory.page(self.memory.frame(place.address))),
                ..Holder::default()
            },
        };
        if place.by_page {
            holder.suffix.push_str(", by page and offset");
        }
        holder
    }
}

fn of_variable(location: &Location<'_>) -> Holder {
    Holder {
        what: location.symbol.to_owned(),
        at: Some(location.offset),
        suffix: location.module.map(|module| format!(" [{module}]")).unwrap_or_default(),
        ..Holder::default()
    }
}

/// A holder whose holder is asked for.
pub(super) struct Asked {
    pub(super) span: Span,
    pub(super) held_by: Option<Place>,
    /// The look that found it.
    since: usize,
}

/// The object that a place is in, if that is one.
fn span(place: &Place) -> Option<Span> {
    match &place.what {
        What::Object { start, bytes, .. } => Some(Span::new(*start, *bytes)),
        What::Area { area, .. } => Some(Span { start: area.start, end: area.end }),
        What::Page => Some(Span::new(place.address / SMALL_PAGE * SMALL_PAGE, SMALL_PAGE)),
        _ => None,
    }
}

/// Of each group of candidates the objects that hold most of them.
pub(super) fn first_asked(pass: &Pass, candidates: &[Candidate]) -> Vec<Asked> {
    let mut of_group: FxHashMap<u32, Vec<Span>> = FxHashMap::default();
    for (candidate, place) in candidates.iter().zip(&pass.places) {
        let spans = of_group.entry(candidate.group).or_default();
        if let Some(span) = place.as_ref().and_then(span)
            && spans.len() < ASKED
            && !spans.contains(&span)
        {
            spans.push(span);
        }
    }
    unique(of_group.into_values().flatten(), 0)
}

pub(super) fn next_asked(asked: &[Asked], since: usize) -> Vec<Asked> {
    let known = |span: &Span| asked.iter().any(|ask| ask.span == *span);
    let latest = asked.iter().filter(|ask| ask.since + 1 == since);
    unique(latest.filter_map(|ask| span(ask.held_by.as_ref()?)).filter(|span| !known(span)), since)
}

/// Whether a span overlaps one of some others, which are sorted.
pub(super) fn overlaps(spans: &[Span], span: &Span) -> bool {
    let after = spans.partition_point(|other| other.start < span.end);
    after.checked_sub(1).is_some_and(|at| spans[at].end > span.start)
}

/// Without those that are there twice or overlap: a place may have been freed and given out again.
fn unique(spans: impl Iterator<Item = Span>, since: usize) -> Vec<Asked> {
    let mut spans: Vec<Span> = spans.collect();
    spans.sort_unstable_by_key(|span| span.start);
    spans.dedup_by(|next, before| next.start < before.end);
    spans.into_iter().map(|span| Asked { span, held_by: None, since }).collect()
}
