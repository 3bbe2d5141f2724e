//! Comma-separated values: one line for each finding.

use anyhow::{Context as _, Result};
use csv::Writer;

use crate::report::{escape, model::Report};

const HEADER: [&str; 25] = [
    "rank",
    "verdict",
    "known",
    "module",
    "responsible",
    "call_site",
    "file",
    "line",
    "cache",
    "family",
    "live_objects",
    "live_bytes",
    "survivor_objects",
    "survivor_bytes",
    "oldest_s",
    "bytes_per_s",
    "p_value",
    "shape",
    "allocated",
    "freed",
    "unreachable",
    "evidence",
    "bytes_per_s_error",
    "sure",
    "filters",
];

pub(super) fn render(report: &Report) -> Result<Vec<u8>> {
    let mut writer = Writer::from_writer(Vec::new());
    writer.write_record(HEADER).context("cannot write CSV")?;
    for finding in &report.findings {
        let unreachable = finding.proof.as_ref().and_then(|proof| proof.reachability.as_ref());
        let record = [
            finding.rank.to_string(),
            cell(&finding.verdict),
            finding.known.to_string(),
            cell(&finding.module),
            cell(&finding.responsible.label()),
            cell(&finding.call_site.label()),
            cell(finding.responsible.file.as_deref().unwrap_or_default()),
            finding.responsible.line.map(|line| line.to_string()).unwrap_or_default(),
            cell(&finding.cache),
            cell(&finding.family),
            finding.live.objects.to_string(),
            finding.live.bytes.to_string(),
            finding.survivors.objects.to_string(),
            finding.survivors.bytes.to_string(),
            format!("{:.1}", finding.survivors.oldest_s),
            format!("{:.1}", finding.growth.bytes_per_s),
            finding.growth.p_value.map(|p| format!("{p:.3e}")).unwrap_or_default(),
            cell(&finding.growth.shape),
            finding.allocated.to_string(),
            finding.freed.to_string(),
            unreachable.map(|side| side.orphans.to_string()).unwrap_or_default(),
            cell(&finding.evidence.join("; ")),
            format!("{:.1}", finding.growth.bytes_per_s_error),
            finding.growth.sure.to_string(),
            cell(&report.filters.in_words().unwrap_or_default()),
        ];
        writer.write_record(record).context("cannot write CSV")?;
    }
    writer.into_inner().context("cannot write CSV")
}

/// Text that is none of a spreadsheet's formulas.
pub(in crate::report) fn cell(text: &str) -> String {
    let text = escape(text);
    if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn names_are_no_formulas() {
        let mut report = sample::report("leak");
        report.findings[0].cache = "=HYPERLINK(\"x\")".to_owned();
        let bytes = render(&report).unwrap();
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        assert_eq!(reader.headers().unwrap().len(), HEADER.len());
        let record = reader.records().next().unwrap().unwrap();
        assert_eq!((&record[1], &record[4], &record[10]), ("leak", "foo_rx+0x31 [foo]", "5102"));
        assert_eq!(&record[8], "'=HYPERLINK(\"x\")");
    }
}
