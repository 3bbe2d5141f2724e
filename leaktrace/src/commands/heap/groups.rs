//! What is lost, by kinds.

use rustc_hash::FxHashMap;

use super::{content, makers::Makers};
use crate::{
    analysis::content::{Group, Sign, group},
    commands::prove::sides,
    kernel::symbols::Symbols,
    proof::{Proof, Prover, Survey, Surveyed},
    report::{
        heap::model::{self, Heap, Known, Object},
        reach::ReachSide,
    },
};

/// Objects of a group that are named.
const NAMED: usize = 8;

/// Groups what is lost.
pub(super) fn conclude(
    heap: &mut Heap,
    (prover, survey, symbols): (&Prover, &Survey, &Symbols),
    (proof, is_lost): (&Proof, &[bool]),
    makers: &Makers,
    goes_on: &mut dyn FnMut() -> bool,
) {
    let mut known = Vec::new();
    let mut lost: Vec<usize> = (0..is_lost.len()).filter(|&index| is_lost[index]).collect();
    // What is always there is told by its content: where there is no time to read that, nothing is said.
    lost.retain(|&index| {
        let object = survey.unreached[index];
        let read = || prover.contents(object.address, object.bytes.min(content::MOST)).unwrap_or_default();
        let words = goes_on().then(read);
        known.extend(words.as_ref().map(|words| content::of(words, object, (prover, survey, symbols))));
        words.is_some()
    });
    let read = lost.len() as u64;
    heap.scanned.unclear += is_lost.iter().filter(|is| **is).count() as u64 - read;
    let mut groups = group(&known);
    heap.known = set_known_aside(&mut groups, survey);
    // Behind the groups, what is in none of them.
    let mut group_of = vec![groups.len() as u32; is_lost.len()];
    for (number, group) in (0_u32..).zip(&groups) {
        group.members.iter().for_each(|&member| group_of[lost[member]] = number);
    }
    let cache = |group: &Group| &survey.caches[usize::from(group.cache)];
    let labels: Vec<String> = groups.iter().map(|group| label(group, cache(group))).collect();
    let mut names: Vec<&str> = labels.iter().map(String::as_str).collect();
    names.push("others");
    let place = |caller: u64| symbols.locate_return(caller).map(|location| location.label());
    let sides = sides(proof, &group_of, &names, is_lost, &FxHashMap::default(), &place);
    let modules: FxHashMap<&str, Option<&String>> =
        names.iter().copied().zip(groups.iter().map(|group| group.module.as_ref())).collect();
    for (group, side) in groups.iter().zip(sides) {
        let of = cache(group);
        let size = |member: usize| if of.size > 0 { of.size } else { survey.unreached[lost[member]].bytes };
        let maker = of.caller.as_ref().and_then(|(_, module)| module.clone());
        heap.groups.push(model::Group {
            verdict: "lost".to_owned(),
            cache: of.name.clone(),
            caller: of.caller.as_ref().map(|(function, _)| function.clone()),
            module: maker.or_else(|| group.module.clone()).or_else(|| module_of_root(&side, &modules)),
            objects: group.members.len() as u64,
            bytes: group.members.iter().map(|&member| size(member)).sum(),
            content: group.shared.iter().map(content::told).collect(),
            allocated_by: makers
                .of(&of.name, group.members.iter().map(|&member| survey.unreached[lost[member]].address)),
            proof: side,
            objects_sample: group
                .members
                .iter()
                .take(NAMED)
                .map(|&member| Object { address: survey.unreached[lost[member]].address, size: size(member) })
                .collect(),
        });
    }
    heap.groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
}

/// How a group is called where it is the root of a structure.
fn label(group: &Group, cache: &Surveyed) -> String {
    if let Some((function, _)) = &cache.caller {
        return format!("{} by {function}", cache.name);
    }
    let cache = &cache.name;
    let first = group.shared.iter().find_map(|shared| match &shared.sign {
        Sign::Symbol(name, _) => Some(name.as_str()),
        _ => None,
    });
    first.map_or_else(|| cache.clone(), |first| format!("{cache} with {first}"))
}

/// The module of what a group was lost with.
fn module_of_root(side: &ReachSide, modules: &FxHashMap<&str, Option<&String>>) -> Option<String> {
    let root = side.structures.iter().max_by_key(|structure| structure.objects)?;
    modules.get(root.root.as_str()).copied().flatten().cloned()
}

/// What nothing leads to on any kernel: a variable that is in it, why, and where in the kernel's source that is done.
const ALWAYS: [(&str, &str); 3] = [
    ("sysctl_mount_point", EMPTY_DIRECTORY),
    // Older kernels have no variable for that. What is no empty directory hangs in a tree by its entries.
    ("sysctl_table_root", EMPTY_DIRECTORY),
    (
        "kernel_base_table",
        "the kernel registers the directories of /proc/sys once, and keeps no pointer to the list of what it made \
         (__register_sysctl_base of fs/proc/proc_sysctl.c)",
    ),
];
/// More of them are none of those.
const MOST_ALWAYS: usize = 8;
const EMPTY_DIRECTORY: &str = "the kernel registers an empty directory for a file system under /proc/sys, and keeps no pointer to what it \
                               made (register_sysctl_mount_point of fs/proc/proc_sysctl.c)";

/// Takes what is always there out of the groups.
fn set_known_aside(groups: &mut Vec<Group>, survey: &Survey) -> Vec<Known> {
    let mut known = Vec::new();
    groups.retain(|group| {
        let few = group.members.len() <= MOST_ALWAYS;
        let why = ALWAYS.iter().filter(|_| few).find(|(symbol, _)| {
            group
                .shared
                .iter()
                .any(|shared| matches!(&shared.sign, Sign::Symbol(name, None) if name.split('+').next() == Some(symbol)))
        });
        if let Some((_, why)) = why {
            known.push(Known {
                cache: survey.caches[usize::from(group.cache)].name.clone(),
                objects: group.members.len() as u64,
                why: (*why).to_owned(),
            });
        }
        why.is_none()
    });
    known
}
