//! `leaktrace report`: a saved report, told again.

use anyhow::Result;

use super::{
    output::{Output, say},
    saved,
};
use crate::{
    cli::ReportArgs,
    report::{escape, forms::Form},
    units,
};

/// Tells a report in a form.
///
/// # Errors
/// When the file is no report, or the answer cannot be written.
pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let output = Output::open(args.output.as_deref())?;
    output.check(args.format)?;
    let mut report = saved::read_at(&args.report, args.at.map(|at| at.as_secs_f64()))?;
    if let (Some(at), Some(recorded)) = (args.at, &report.recorded)
        && recorded.until_s + 1.0 < at.as_secs_f64()
    {
        say(&format!("note: the recording ends after {}: showing its end", units::seconds(recorded.until_s)));
    }
    let damage = report.recorded.as_ref().and_then(|recorded| recorded.damage.as_ref());
    // The other forms have it themselves.
    if let (Some(damage), Form::Csv | Form::Folded | Form::Svg | Form::Pprof) = (damage, args.format) {
        say(&format!("note: not readable of the recording: {}", escape(damage)));
    }
    let top = args.top.unwrap_or_else(|| args.format.top());
    // Leaks are told however many there are.
    report.findings.retain(|finding| finding.rank <= top as usize || finding.verdict == "leak");
    output.tell(&report, args.format, args.verbose, top)
}
