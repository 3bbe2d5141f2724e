//! `leaktrace diff`: how two reports differ.

use anyhow::{Context as _, Result, bail};

use super::{
    output::{self, Output},
    saved,
};
use crate::{
    cli::{DiffArgs, Format},
    report::{difference, forms::without_controls, known},
};

/// Compares, and tells.
///
/// # Errors
/// When a report cannot be read, or the answer cannot be written.
pub(super) fn run(args: &DiffArgs) -> Result<()> {
    if args.before.as_os_str() == "-" && args.after.as_os_str() == "-" {
        bail!("only one of the two reports can come from standard input");
    }
    let (before, after) = (saved::read(&args.before)?, saved::read(&args.after)?);
    let diff = known::diff(&before, &after);
    let text = match args.format {
        Format::Json => {
            without_controls(&serde_json::to_string_pretty(&diff).context("cannot write JSON")?) + "\n"
        }
        Format::Text => difference::render(&diff, output::width()),
    };
    Output::Stdout.write(text.as_bytes())
}
