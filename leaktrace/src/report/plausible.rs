//! Whether the numbers of a report that was read can be: an edited or damaged one must not be told as fact.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    heap::model::{self as heap, Heap},
    model::{Report, SCHEMA},
};

/// Values that a report has at most: ten thousand findings have a third as many.
const MOST_VALUES: usize = 6_000_000;
/// Numbers that may be below 0.
const SIGNED: [&str; 4] = ["net", "bytes_per_s", "bytes_per_h", "score"];
/// Shares in percent and probabilities, and what they are at most; rounding may add a little.
const SHARES: [(&str, f64); 2] = [("percent", 100.000_1), ("walk", 1.000_1)];
/// Times of a trace in seconds: none took longer than a hundred years.
const TIMES: [&str; 10] = [
    "duration_s",
    "min_age_s",
    "oldest_s",
    "age_s",
    "after_s",
    "until_s",
    "watched_s",
    "report_s",
    "from_s",
    "to_s",
];
const LONGEST_S: f64 = 100.0 * 366.0 * 86_400.0;
/// No amount is larger than the address space, and no count.
const LARGEST: f64 = 18_446_744_073_709_551_616.0;

/// What was saved: a report of a trace, or a look at the heap.
pub enum Saved {
    /// As leaktrace.report/1.
    Report(Box<Report>),
    /// As leaktrace.heap/1.
    Heap(Box<Heap>),
}

/// Reads a report of this version, whose numbers can be; `name` is what errors call it.
///
/// # Errors
/// When the text is none, or names the first field whose number cannot be.
pub fn parse(text: &[u8], name: &str) -> Result<Report> {
    match parse_any(text, name)? {
        Saved::Report(report) => Ok(*report),
        Saved::Heap(_) => bail!("{name} is a look at the heap, and no report of a trace"),
    }
}

/// The same, but it may be a look at the heap, too.
///
/// # Errors
/// As [`parse`].
pub fn parse_any(text: &[u8], name: &str) -> Result<Saved> {
    // Each takes some ten times its text as a value.
    if text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MOST_VALUES {
        bail!("{name} has too many values for a report");
    }
    let value: Value =
        serde_json::from_slice(text).with_context(|| format!("{name} is no report: it is no JSON"))?;
    let schema = value["schema"].as_str();
    match schema {
        Some(SCHEMA | heap::SCHEMA) => {}
        Some(other) => bail!("{name} has the schema {other}, not {SCHEMA}"),
        None => bail!("{name} is no report: make one with `leaktrace --format json --output FILE`"),
    }
    let is_heap = schema == Some(heap::SCHEMA);
    said(check(&value), name)?;
    let whole = || format!("{name} is no whole report");
    Ok(if is_heap {
        Saved::Heap(Box::new(serde_json::from_value(value).with_context(whole)?))
    } else {
        Saved::Report(Box::new(serde_json::from_value(value).with_context(whole)?))
    })
}

/// The same of what was read from elsewhere and put into a report.
///
/// # Errors
/// Names the first field whose number cannot be.
pub fn check_report(report: &Report, name: &str) -> Result<()> {
    let value = serde_json::to_value(report).context("cannot write JSON")?;
    said(check(&value), name)
}

fn said(checked: Result<(), String>, name: &str) -> Result<()> {
    checked.map_err(|what| anyhow::anyhow!("{name} is no report that leaktrace wrote: {what}"))
}

/// Looks at each number.
///
/// # Errors
/// Names the first field whose number cannot be, with that number.
fn check(report: &Value) -> Result<(), String> {
    walk(report, "", &mut Vec::new())
}

/// One value under a field's name; of a list the name is the list's.
fn walk<'a>(value: &'a Value, name: &'a str, path: &mut Vec<String>) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if can_be(name, number) { Ok(()) } else { Err(format!("{} is {number}", path.concat())) }
        }
        Value::Array(values) => values.iter().enumerate().try_for_each(|(index, value)| {
            within(path, format!("[{index}]"), |path| walk(value, name, path))
        }),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            within(path, format!("{dot}{name}"), |path| walk(value, name, path))
        }),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

fn within(
    path: &mut Vec<String>,
    part: String,
    walk: impl FnOnce(&mut Vec<String>) -> Result<(), String>,
) -> Result<(), String> {
    path.push(part);
    walk(path)?;
    path.pop();
    Ok(())
}

fn can_be(name: &str, number: f64) -> bool {
    let least = if SIGNED.contains(&name) { -LARGEST } else { 0.0 };
    let most = match SHARES.iter().find(|(share, _)| *share == name) {
        Some(&(_, most)) => most,
        None if TIMES.contains(&name) => LONGEST_S,
        None if name.ends_with("_kb") => LARGEST / 1_024.0,
        None => LARGEST,
    };
    (least..=most).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn edited(pointer: &str, number: Value) -> Result<(), String> {
        let mut report = serde_json::to_value(sample::report("leak")).unwrap();
        *report.pointer_mut(pointer).expect("the field is there") = number;
        check(&report)
    }

    #[test]
    fn what_cannot_be_is_named_by_its_field() {
        for verdict in ["none", "leak", "suspect"] {
            assert_eq!(check(&serde_json::to_value(sample::report(verdict)).unwrap()), Ok(()));
        }
        assert_eq!(edited("/caches/0/traced/net", (-5).into()), Ok(()));
        for (pointer, number, told) in [
            ("/findings/0/live/objects", Value::from(-5), "findings[0].live.objects is -5"),
            ("/window/duration_s", 1e12.into(), "window.duration_s is 1000000000000"),
            ("/machine/memory_kb", 1e18.into(), "machine.memory_kb is 1000000000000000000"),
            ("/findings/0/freed_by/0/percent", 101.into(), "findings[0].freed_by[0].percent is 101"),
            ("/findings/0/growth/points/0/1", (-1).into(), "findings[0].growth.points[0][1] is -1"),
            ("/headline/bytes_per_s", 1e300.into(), "headline.bytes_per_s is 1"),
        ] {
            let error = edited(pointer, number).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
