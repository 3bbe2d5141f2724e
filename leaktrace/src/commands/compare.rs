//! `leaktrace compare`: a saved report beside what other tools listed.

use std::{fs::File, io::BufReader};

use anyhow::{Context as _, Result, bail};

use super::{kmemleak, output, saved};
use crate::{
    cli::{CompareArgs, Format},
    proc::kmemleak::Listing,
    report::{self, forms::json},
};

/// Compares, and tells.
///
/// # Errors
/// When a file cannot be read or is not what it should be, or the answer cannot be written.
pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let mut report = saved::read(&args.report)?;
    let name = args.kmemleak.display();
    let file = File::open(&args.kmemleak).with_context(|| format!("cannot read {name}"))?;
    let listing = Listing::read(BufReader::new(file)).with_context(|| format!("cannot read {name}"))?;
    if listing.objects.is_empty() && listing.unknown_lines > 0 {
        bail!("{name} is no list of kmemleak's: it has no line like `unreferenced object 0x... (size ...):`");
    }
    kmemleak::compare_saved(&listing, &mut report);
    let text = match args.format {
        Format::Json => json(&report)?,
        Format::Text => report::kmemleak::render(&report, output::width()),
    };
    output::Output::Stdout.write(text.as_bytes())
}
