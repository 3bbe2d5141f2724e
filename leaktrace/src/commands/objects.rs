//! The addresses of a finding's objects, for those who look at memory by other means.

use std::collections::HashMap;

use anyhow::Result;

use super::surroundings::Surroundings;
use crate::{
    report::model::{Finding, Report},
    tracer::{LiveObject, Snapshot, Tracer},
};

/// Objects that are listed of a leak or a suspect.
const LISTED: usize = 1_000;

/// Whether nothing points to some of a finding's objects: a lost tree's nodes, which are what holds the rest together.
fn has_orphans(finding: &Finding) -> bool {
    let side = finding.proof.as_ref().and_then(|proof| proof.reachability.as_ref());
    side.is_some_and(|side| side.orphans > 0)
}

/// Lists more objects of leaks, of suspects and of what is lost than the oldest: all of them, if they are not too many.
///
/// # Errors
/// When the kernel refuses a look at the tables.
pub(super) fn list(
    tracer: &mut Tracer,
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    report: &mut Report,
) -> Result<()> {
    let mut objects: HashMap<usize, Vec<LiveObject>> = report
        .findings
        .iter()
        .filter(|finding| finding.is_of_note() || has_orphans(finding))
        .map(|finding| (finding.site, snapshot.sites[finding.site].objects.clone()))
        .collect();
    if objects.is_empty() {
        return Ok(());
    }
    tracer.each_object(snapshot, |site, object| {
        if let Some(listed) = objects.get_mut(&site)
            && listed.len() < LISTED
        {
            listed.push(*object);
        }
    })?;
    for finding in &mut report.findings {
        let Some(mut listed) = objects.remove(&finding.site) else { continue };
        listed.sort_unstable_by_key(|object| (object.time_ns, object.address));
        // The oldest were there already.
        listed.dedup_by_key(|object| object.address);
        let site = &snapshot.sites[finding.site];
        finding.objects = listed.iter().map(|object| surroundings.object(object, site, snapshot)).collect();
    }
    Ok(())
}
