//! kmemleak's word on the findings: its part of the report, and of its text.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::{
    columns::{Columns, shorten_place},
    escape,
    finding::Amount,
    findings::place,
    model::Report,
    page::paragraph,
};
use crate::{
    analysis::witness::{self, Comparison},
    proc::kmemleak::Listing,
    units,
};

/// Functions that are told of those that only kmemleak lists.
const OTHERS: usize = 50;

/// What kmemleak lists, beside what was found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct KmemleakReport {
    /// Why it could not be asked.
    pub error: Option<String>,
    /// Objects that it lists.
    pub listed: u64,
    /// In both.
    pub both: Amount,
    /// In both, but of sites that are no finding.
    pub elsewhere: Amount,
    /// Live objects of findings that it does not list.
    pub only_here: Amount,
    /// What only it lists.
    pub only_there: Amount,
    /// Functions of those of them that are no finding's, the most bytes first.
    pub others: Vec<KmemleakOther>,
    /// What is to be known of its list.
    pub notes: Vec<String>,
}

/// One finding beside kmemleak's list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct KmemleakSide {
    /// In both.
    pub both: Amount,
    /// Only here.
    pub only_here: Amount,
    /// Why.
    pub reasons: Vec<KmemleakReason>,
    /// Listed from the same function, and not live here.
    pub only_there: Amount,
}

/// Why kmemleak does not list objects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct KmemleakReason {
    /// In words.
    pub why: String,
    /// How many.
    pub objects: u64,
}

/// Objects of a function that only kmemleak lists.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct KmemleakOther {
    /// The function.
    pub function: String,
    /// Its module.
    pub module: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
    /// Age of the oldest, where kmemleak says it.
    pub oldest_s: Option<f64>,
    /// Why it is not here.
    pub why: String,
}

fn amount(amount: witness::Amount) -> Amount {
    Amount { objects: amount.objects, bytes: amount.bytes }
}

fn add(sum: &mut Amount, more: Amount) {
    sum.objects += more.objects;
    sum.bytes += more.bytes;
}

/// Puts a comparison, whose findings are the report's in their order, into the report.
pub fn put(report: &mut Report, comparison: &Comparison, listing: &Listing) {
    let mut whole = KmemleakReport {
        listed: listing.objects.len() as u64 + listing.dropped,
        elsewhere: amount(comparison.elsewhere),
        both: amount(comparison.elsewhere),
        notes: notes(listing),
        ..KmemleakReport::default()
    };
    let mut by_function = 0;
    for (finding, compared) in report.findings.iter_mut().zip(&comparison.ours) {
        let side = KmemleakSide {
            both: amount(compared.both),
            only_here: amount(compared.only_here),
            reasons: compared
                .reasons
                .iter()
                .map(|&(why, objects)| KmemleakReason { why: why.words().to_owned(), objects })
                .collect(),
            only_there: amount(compared.only_there),
        };
        by_function += compared.by_function;
        add(&mut whole.both, side.both);
        add(&mut whole.only_here, side.only_here);
        add(&mut whole.only_there, side.only_there);
        finding.proof.get_or_insert_default().kmemleak = Some(side);
    }
    if by_function > 0 {
        let number = units::count(by_function);
        whole.notes.push(format!(
            "{number} objects were matched by their function: their addresses are not known here"
        ));
    }
    for other in &comparison.others {
        add(&mut whole.only_there, amount(other.amount));
    }
    whole.others = comparison
        .others
        .iter()
        .take(OTHERS)
        .map(|other| KmemleakOther {
            function: other.function.0.clone(),
            module: other.function.1.clone(),
            objects: other.amount.objects,
            bytes: other.amount.bytes,
            oldest_s: other.oldest_s,
            why: other.reason.words().to_owned(),
        })
        .collect();
    report.kmemleak = Some(whole);
}

fn notes(listing: &Listing) -> Vec<String> {
    let mut notes = Vec::new();
    if listing.cut_short {
        notes
            .push("its list ends in the middle of an object: the last one may lack its backtrace".to_owned());
    }
    for (number, what) in [
        (listing.unknown_lines, "lines of it were not understood"),
        (listing.dropped, "objects of it were too many to be kept"),
        (listing.backtraces_dropped, "objects of it lost their backtraces, of which there were too many"),
    ] {
        if number > 0 {
            notes.push(format!("{} {what}", units::count(number)));
        }
    }
    notes
}

/// The part of the text; nothing where kmemleak was not asked.
pub fn render(report: &Report, width: usize) -> String {
    let mut out = String::new();
    if let Some(kmemleak) = &report.kmemleak {
        // Writing to a string cannot fail.
        let _ = write(&mut out, report, kmemleak, width);
    }
    out
}

fn write(out: &mut String, report: &Report, kmemleak: &KmemleakReport, width: usize) -> fmt::Result {
    if let Some(error) = &kmemleak.error {
        return paragraph(out, 0, width, &format!("kmemleak could not be asked: {}.", escape(error)));
    }
    let text = format!(
        "kmemleak lists {} unreferenced objects: {} are live here, too ({} of them of sites that are no finding); {} are \
         only here, {} only there.",
        units::count(kmemleak.listed),
        units::count(kmemleak.both.objects),
        units::count(kmemleak.elsewhere.objects),
        units::count(kmemleak.only_here.objects),
        units::count(kmemleak.only_there.objects)
    );
    paragraph(out, 0, width, &text)?;
    let rows: Vec<_> = report
        .findings
        .iter()
        .filter_map(|finding| Some((finding, finding.proof.as_ref()?.kmemleak.as_ref()?)))
        .collect();
    if !rows.is_empty() {
        let columns = Columns::default()
            .right(0, "#", rows.iter().map(|(finding, _)| finding.rank.to_string()))
            .left(2, "verdict", rows.iter().map(|(finding, _)| escape(&finding.verdict).into_owned()))
            .place(0, "where", rows.iter().map(|(finding, _)| place(&finding.responsible, 40)))
            .right(1, "both", rows.iter().map(|(_, side)| units::count(side.both.objects)))
            .right(0, "only here", rows.iter().map(|(_, side)| units::count(side.only_here.objects)))
            .right(0, "only there", rows.iter().map(|(_, side)| units::count(side.only_there.objects)));
        writeln!(out, "{}", columns.lines(width))?;
        for (finding, side) in &rows {
            for reason in &side.reasons {
                let text = format!(
                    "only here, of {}: {} {}",
                    finding.rank,
                    units::count(reason.objects),
                    escape(&reason.why)
                );
                paragraph(out, 2, width, &text)?;
            }
        }
    }
    if !kmemleak.others.is_empty() {
        let label = |other: &KmemleakOther| match &other.module {
            Some(module) => format!("{} [{module}]", other.function),
            None => other.function.clone(),
        };
        let others = || kmemleak.others.iter().take(10);
        let columns = Columns::default()
            .place(
                0,
                "Only in kmemleak's list",
                others().map(|other| shorten_place(&escape(&label(other)), 40)),
            )
            .right(0, "objects", others().map(|other| units::count(other.objects)))
            .right(0, "bytes", others().map(|other| units::bytes(other.bytes as f64)))
            .right(1, "oldest", others().map(|other| other.oldest_s.map_or_else(String::new, units::seconds)))
            .left(2, "why", others().map(|other| escape(&other.why).into_owned()));
        writeln!(out, "{}", columns.lines(width))?;
    }
    for note in &kmemleak.notes {
        paragraph(out, 0, width, &format!("note: {}", escape(note)))?;
    }
    Ok(())
}
