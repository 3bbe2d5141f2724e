//! Live memory by stack, of all findings: what flame graphs and profiles are made of.

use super::super::model::{Finding, Frame, Report};

/// Live memory of a finding that was allocated from one stack.
pub(super) struct Share<'a> {
    pub(super) finding: &'a Finding,
    /// The call site first, the outermost frame last.
    pub(super) frames: Vec<&'a Frame>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// All live memory. Stacks are captured of a part of the objects: each stack of a finding stands for its share of all of
/// them. Where none was captured, the call site stands alone.
pub(super) fn shares(report: &Report) -> Vec<Share<'_>> {
    let mut shares = Vec::new();
    for finding in report.findings.iter().filter(|finding| finding.live.bytes > 0) {
        let known: u64 = finding.stacks.iter().map(|stack| stack.objects).sum();
        if known == 0 {
            let mut frames = vec![&finding.call_site];
            if finding.responsible.address != finding.call_site.address {
                frames.push(&finding.responsible);
            }
            let (objects, bytes) = (finding.live.objects, finding.live.bytes);
            shares.push(Share { finding, frames, objects, bytes });
            continue;
        }
        // What rounding leaves goes to the last one, so that nothing is lost.
        let (mut objects, mut bytes) = (finding.live.objects, finding.live.bytes);
        let mut left = known;
        for stack in finding.stacks.iter().filter(|stack| stack.objects > 0) {
            let part = |all: u64| (u128::from(all) * u128::from(stack.objects) / u128::from(left)) as u64;
            let (of_objects, of_bytes) = (part(objects), part(bytes));
            (objects, bytes, left) = (objects - of_objects, bytes - of_bytes, left - stack.objects);
            if of_bytes > 0 {
                let frames = stack.frames.iter().collect();
                shares.push(Share { finding, frames, objects: of_objects, bytes: of_bytes });
            }
        }
    }
    shares
}

/// A function without the offset, with its module.
pub(super) fn function(frame: &Frame) -> String {
    let name = frame.symbol.clone().unwrap_or_else(|| format!("{:#x}", frame.address));
    match &frame.module {
        Some(module) => format!("{name} [{module}]"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{
        model::{Amount, Stack},
        sample,
    };

    proptest! {
        #[test]
        fn all_live_memory_is_shared_out(objects in 1_u64..1 << 50, bytes in 1_u64..1 << 60, parts in prop::collection::vec(0_u64..1 << 40, 0..8)) {
            let mut report = sample::report("leak");
            let frames = report.findings[0].stacks[0].frames.clone();
            report.findings[0].live = Amount { objects, bytes };
            report.findings[0].stacks =
                parts.into_iter().map(|objects| Stack { objects, bytes: objects * 8, frames: frames.clone() }).collect();
            let shares = shares(&report);
            prop_assert_eq!(shares.iter().map(|share| share.bytes).sum::<u64>(), bytes);
            prop_assert!(shares.iter().map(|share| share.objects).sum::<u64>() <= objects);
        }
    }
}
