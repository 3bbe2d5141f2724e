//! Reading reports that were saved.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use crate::report::model::{Report, SCHEMA};

/// A larger file is no report.
const LARGEST: u64 = 256 << 20;

/// Reads a report, from standard input where the path is `-`.
///
/// # Errors
/// When the file cannot be read or is no report of this version.
pub(super) fn read(path: &Path) -> Result<Report> {
    let name = path.display();
    let mut text = String::new();
    let read = |reader: &mut dyn Read, text: &mut String| reader.take(LARGEST + 1).read_to_string(text);
    let result = if path == Path::new("-") {
        read(&mut io::stdin().lock(), &mut text)
    } else {
        File::open(path).and_then(|mut file| read(&mut file, &mut text))
    };
    result.with_context(|| format!("cannot read the report {name}"))?;
    if text.len() as u64 > LARGEST {
        bail!("{name} is too large for a report");
    }
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{name} is no report: it is no JSON"))?;
    match value["schema"].as_str() {
        Some(SCHEMA) => {}
        Some(other) => bail!("{name} has the schema {other}, not {SCHEMA}"),
        None => bail!("{name} is no report: make one with `leaktrace --format json --output FILE`"),
    }
    serde_json::from_value(value).with_context(|| format!("{name} is no whole report"))
}
