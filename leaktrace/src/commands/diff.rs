//! `leaktrace diff`: how two reports, or two looks at the heap, differ.

use anyhow::{Result, bail};
use serde::Serialize;

use super::{
    output::{self, Output},
    saved,
};
use crate::{
    cli::{DiffArgs, Format},
    report::{difference, forms::json, heap::difference as heap, known, plausible::Saved},
};

/// Compares, and tells.
///
/// # Errors
/// When a report cannot be read, or the answer cannot be written.
pub(super) fn run(args: &DiffArgs) -> Result<()> {
    if args.before.as_os_str() == "-" && args.after.as_os_str() == "-" {
        bail!("only one of the two reports can come from standard input");
    }
    let width = output::width();
    let text = match (saved::read_any(&args.before)?, saved::read_any(&args.after)?) {
        (Saved::Report(before), Saved::Report(after)) => {
            let diff = known::diff(&before, &after);
            told(args.format, &diff, || difference::render(&diff, width))?
        }
        (Saved::Heap(before), Saved::Heap(after)) => {
            let grown = heap::of(&before, &after);
            told(args.format, &grown, || heap::render(&grown, width))?
        }
        _ => bail!(
            "one is the report of a trace and the other a look at the heap: they have nothing in common"
        ),
    };
    Output::Stdout.write(text.as_bytes())
}

fn told(format: Format, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<String> {
    Ok(match format {
        Format::Json => json(answer)?,
        Format::Text => text(),
    })
}
