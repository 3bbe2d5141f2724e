//! The report in the forms of other programs: pictures, profiles, tables, and text for a mail.

mod folded;
mod html;
mod markdown;
mod pprof;
mod sheet;
mod stacks;

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

pub(in crate::report) use self::{
    markdown::{code, plain},
    sheet::cell,
};
use super::{
    model::Report,
    text::{self, Style},
};

/// A form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For reading.
    Text,
    /// For programs: all of it, as leaktrace.report/1.
    Json,
    /// A page for a browser, which needs nothing else.
    Html,
    /// For a mail or an issue.
    Markdown,
    /// One line for each finding.
    Csv,
    /// One line for each stack and its live bytes, for flame graphs.
    Folded,
    /// A flame graph of live bytes by stack.
    Svg,
    /// A heap profile, compressed.
    Pprof,
}

impl Form {
    /// Findings that are told of where nobody says how many: what is read from the top has few, what is searched has all that
    /// matter.
    pub fn top(self) -> u32 {
        match self {
            Self::Text | Self::Markdown => 10,
            Self::Json | Self::Html | Self::Csv | Self::Folded | Self::Svg | Self::Pprof => 1_000,
        }
    }

    /// Whether it is no text.
    pub fn is_binary(self) -> bool {
        self == Self::Pprof
    }
}

/// Writes the report in a form; `style` is that of text.
///
/// # Errors
/// When a library fails to.
pub fn render(report: &Report, form: Form, style: &Style) -> Result<Vec<u8>> {
    Ok(match form {
        Form::Text => text::render(report, style).into_bytes(),
        Form::Json => json(report)?.into_bytes(),
        Form::Html => html::render(report, false)?.into_bytes(),
        Form::Markdown => markdown::render(report).into_bytes(),
        Form::Csv => sheet::render(report)?,
        Form::Folded => folded::render(report).into_bytes(),
        Form::Svg => folded::flame_graph(report)?.into_bytes(),
        Form::Pprof => pprof::render(report)?,
    })
}

/// Anything as JSON, for reading by people and programs.
///
/// # Errors
/// When it cannot be written as JSON, which does not happen to our models.
pub fn json(answer: &impl Serialize) -> Result<String> {
    Ok(without_controls(&serde_json::to_string_pretty(answer).context("cannot write JSON")?) + "\n")
}

/// JSON whose strings have no character that a terminal might obey or show in another order: it knows the same by number.
pub fn without_controls(json: &str) -> String {
    let unseen = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if unseen(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// The page of an agent, which asks for the next report by itself.
///
/// # Errors
/// When a library fails to make it.
pub fn live_page(report: &Report) -> Result<Vec<u8>> {
    html::render(report, true).map(String::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    const FORMS: [Form; 8] =
        [Form::Text, Form::Json, Form::Html, Form::Markdown, Form::Csv, Form::Folded, Form::Svg, Form::Pprof];

    #[test]
    fn each_form_tells_of_the_culprit_and_obeys_no_name() {
        for verdict in ["leak", "suspect"] {
            let mut report = sample::report(verdict);
            report.findings[0].cache = "</script><img src=x onerror=alert(1)>\u{1b}[31m\"; `x`".into();
            for form in FORMS {
                let bytes = render(&report, form, &Style::default()).unwrap();
                if form.is_binary() {
                    continue;
                }
                let text = String::from_utf8(bytes).unwrap();
                assert!(text.contains("foo_rx") || text.contains("foo_alloc_ctx"), "{form:?}: {text}");
                assert!(!text.contains('\u{1b}'), "{form:?}");
                if matches!(form, Form::Html | Form::Svg) {
                    assert!(!text.contains("<img"), "{form:?}: {text}");
                }
            }
        }
    }

    /// Whoever reads a report knows what it leaves out. Folded stacks have no place for it.
    #[test]
    fn filters_in_force_are_told() {
        let mut report = sample::report("leak");
        report.filters.modules = vec!["only_this".to_owned()];
        report.filters.text = report.filters.in_words().unwrap();
        for form in FORMS.into_iter().filter(|form| *form != Form::Folded) {
            let mut bytes = render(&report, form, &Style::default()).unwrap();
            if form == Form::Pprof {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut plain)
                    .unwrap();
                bytes = plain;
            }
            assert!(String::from_utf8_lossy(&bytes).contains("through module only_this"), "{form:?}");
        }
    }

    #[test]
    fn a_report_without_findings_has_all_forms() {
        let report = sample::report("none");
        for form in FORMS {
            let bytes = render(&report, form, &Style::default()).unwrap();
            assert!(!bytes.is_empty() || form == Form::Folded, "{form:?}");
        }
    }
}
