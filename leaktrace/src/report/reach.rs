//! What the kernel's own memory says of the findings' objects: whether anything still points to them.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::{
    escape,
    model::{Report, Word},
    page::paragraph,
};
use crate::units;

/// How memory was looked at, by `--prove` or for suspects.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ReachReport {
    /// Why it could not be.
    pub error: Option<String>,
    /// Why less is proven than should be.
    pub cut_short: Option<String>,
    /// What could not be told apart, so that it counts as holding.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Objects that were looked for.
    pub candidates: u64,
    /// Survivors that were left out, because there were too many.
    pub left_out: u64,
    /// Looks at all memory that were finished.
    pub looks: usize,
    /// Bytes that each of them read.
    pub bytes: u64,
    /// How long they took, without rests.
    pub seconds: f64,
    /// What they read and compared.
    pub bytes_per_s: f64,
    /// What /proc/kcore gives at most: the same without comparing.
    pub kcore_bytes_per_s: f64,
}

/// What was found of one finding's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ReachSide {
    /// Survivors that were looked for.
    pub candidates: u64,
    /// Nothing points to these: they are lost.
    pub orphans: u64,
    /// Something points to these.
    pub held: u64,
    /// The looks at memory differ, or there was only one.
    pub undecided: u64,
    /// These are free, though no free was seen.
    pub free: u64,
    /// These were freed meanwhile.
    pub freed_meanwhile: u64,
    /// Structures that the orphans are parts of, by what is at their root; empty where each is alone.
    pub structures: Vec<LostStructure>,
    /// Who holds the others, the most objects first.
    pub holders: Vec<HolderSide>,
    /// Memory out of use that has old pointers to orphans.
    pub old: Vec<OldPointers>,
}

/// Structures that were lost as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LostStructure {
    /// Where their roots were allocated.
    pub root: String,
    /// How many structures.
    pub structures: u64,
    /// Objects that they have altogether, of all findings.
    pub objects: u64,
}

/// What holds objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HolderSide {
    /// A variable, or an object of a cache, with the place in it; a stack, a page.
    pub what: String,
    /// Where in the objects it points to, or they point to each other.
    pub offset: u64,
    /// Objects that are reached from there.
    pub objects: u64,
    /// Those of them that it points to itself; the others are reached by way of these.
    pub directly: u64,
    /// What holds the holder, and what that.
    pub chain: Vec<String>,
}

/// Old pointers to orphans, which hold nothing but mislead who takes them for references.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct OldPointers {
    /// Where they are.
    pub place: Word,
    /// Orphans that they point to.
    pub objects: u64,
}

impl ReachSide {
    /// What was found, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let mut words = Vec::new();
        let of = units::count(self.candidates);
        if self.orphans > 0 {
            words.push(format!(
                "{} of {of} looked for in memory are unreachable: nothing points to them any more",
                units::count(self.orphans)
            ));
        }
        for structure in &self.structures {
            words.push(format!(
                "they are parts of {} lost as a whole, {} objects in all, with the root from {}",
                units::plural(structure.structures as usize, "structure"),
                units::count(structure.objects),
                structure.root
            ));
        }
        for holder in self.holders.iter().take(HOLDERS) {
            let others = match holder.objects - holder.directly {
                0 => String::new(),
                others => format!(
                    ", {} of them by way of others: it is a structure that lives",
                    units::count(others)
                ),
            };
            let chain: String = holder.chain.iter().fold(String::new(), |mut text, next| {
                let _ = write!(text, ", which {next} holds");
                text
            });
            words.push(format!(
                "{} of {of} are held by {} through offset {:#x}{others}{chain}",
                units::count(holder.objects),
                holder.what,
                holder.offset
            ));
        }
        if self.holders.len() > HOLDERS {
            words.push(format!("{} more hold others", units::plural(self.holders.len() - HOLDERS, "place")));
        }
        let mut rest = Vec::new();
        for (objects, what) in [
            (self.undecided, "may be on their way from one place to another"),
            (self.free, "are free, though no free was seen"),
            (self.freed_meanwhile, "were freed meanwhile"),
        ] {
            if objects > 0 {
                rest.push(format!("{} {what}", units::count(objects)));
            }
        }
        if !rest.is_empty() {
            words.push(format!("of {of} looked for in memory {}", rest.join(", ")));
        }
        for old in &self.old {
            words.push(format!(
                "{} has old pointers to {} of the unreachable ones, which kmemleak may take for references",
                old.place,
                units::count(old.objects)
            ));
        }
        words
    }
}

/// Holders that are told of one finding.
const HOLDERS: usize = 3;

/// The part of the text on how memory was looked at; empty where it was not looked at.
pub(super) fn render(report: &Report, width: usize) -> Result<String, fmt::Error> {
    let mut out = String::new();
    let Some(reach) = &report.reachability else { return Ok(out) };
    if let Some(error) = &reach.error {
        paragraph(&mut out, 0, width, &format!("Nothing is proven by memory: {}.", escape(error)))?;
        return Ok(out);
    }
    let rate = |bytes_per_s: f64| format!("{}/s", units::bytes(bytes_per_s));
    let mut text = format!(
        "Looked for {} in memory: {} of {}, {} at {} (/proc/kcore alone gives {}).",
        units::plural(reach.candidates as usize, "object"),
        units::plural(reach.looks, "look"),
        units::bytes(reach.bytes as f64),
        units::seconds(reach.seconds),
        rate(reach.bytes_per_s),
        rate(reach.kcore_bytes_per_s),
    );
    if reach.left_out > 0 {
        let _ = write!(text, " {} more survivors were left out.", units::count(reach.left_out));
    }
    if let Some(why) = &reach.cut_short {
        let _ = write!(text, " It was cut short: {why}.");
    }
    paragraph(&mut out, 0, width, &text)?;
    for note in &reach.notes {
        paragraph(&mut out, 2, width, &escape(note))?;
    }
    Ok(out)
}
