//! From an observation to the answer.

use std::{collections::BTreeSet, path::Path};

use super::look::Looker;
use crate::{
    analysis::triage::{
        Look, Observation, Process, caches, diagnose, holding, language::Language, ledger::Class,
        trend::Trend,
    },
    proc::{fields::Fields, modules::Module, slab::SlabCache, sockets, swap},
    report::triage::model::{self, Triage},
};

/// Rows of each list, whatever is shown of them.
const ROWS: usize = 100;

/// Puts the answer together; what the looker and the caller know besides is filled in by them.
pub(super) fn triage(root: &Path, seen: &Observation, looker: &Looker, modules: &[Module]) -> Triage {
    let last = seen.last();
    Triage {
        schema: model::SCHEMA.into(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        memory: model::Memory {
            total_kb: last.total_kb,
            available_kb: last.available_kb,
            swap_total_kb: last.swap_kb.0,
            swap_used_kb: last.swap_kb.1,
        },
        diagnosis: diagnose(seen),
        ledger: ledger(seen),
        processes: processes(seen),
        process_count: last.processes.len(),
        process_names: process_names(seen),
        caches: slab_caches(seen),
        vmalloc: vmalloc(seen),
        mounts: mounts(seen),
        cgroups: cgroups(seen),
        protocols: protocols(root, seen.page_kb),
        swap: swap::areas(root)
            .into_iter()
            .map(|area| model::SwapArea { path: area.path, size_kb: area.size_kb, used_kb: area.used_kb })
            .collect(),
        zram: swap::zram(root)
            .into_iter()
            .map(|device| model::Zram {
                name: device.name,
                stored_kb: device.stored_kb,
                memory_kb: device.memory_kb,
            })
            .collect(),
        huge_pages: huge_pages(root),
        modules: largest_modules(modules),
        places: places(seen),
        meminfo: looker.meminfo.iter().map(|(name, kb)| (name.to_owned(), kb)).collect(),
        unknown_lines: looker.meminfo.unknown.clone(),
        unreadable: looker.unreadable.clone(),
        ..Triage::default()
    }
}

fn ledger(seen: &Observation) -> Vec<model::Row> {
    let row = |&(class, after): &(Class, i64)| {
        let trend = seen.class_trend(class);
        model::Row {
            class: class.word().into(),
            title: class.title().into(),
            before_kb: seen.first().level(class),
            after_kb: after,
            kb_per_hour: trend.per_s * 3_600.0,
            steady: trend.steady,
            reclaimable: class.is_reclaimable(),
            source: class.source().into(),
        }
    };
    seen.last().levels.iter().map(row).collect()
}

/// The largest processes and those that grow most.
fn processes(seen: &Observation) -> Vec<model::Process> {
    let anon = seen.process_trends(|process| f64::from(process.anon_kb));
    let fds = seen.process_trends(|process| process.fds.map_or(0.0, f64::from));
    let largest = |key: &dyn Fn(&Process) -> f64| {
        let mut all: Vec<_> =
            seen.last().processes.iter().map(|process| (key(process), process.pid)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.into_iter().take(ROWS / 2).map(|(_, pid)| pid).collect::<Vec<_>>()
    };
    let grown = |trends: &std::collections::BTreeMap<u32, Trend>, pid: u32| {
        trends.get(&pid).map_or(0.0, Trend::change)
    };
    let mut pids: BTreeSet<u32> = largest(&|process| f64::from(process.anon_kb)).into_iter().collect();
    pids.extend(largest(&|process| grown(&anon, process.pid)));
    pids.extend(largest(&|process| grown(&fds, process.pid)).into_iter().take(ROWS / 10));
    let chosen = seen.last().processes.iter().filter(|process| pids.contains(&process.pid));
    let mut rows: Vec<_> = chosen
        .map(|process| row(seen, process, grown(&anon, process.pid) as i64, grown(&fds, process.pid) as i64))
        .collect();
    // What grows stands before what is merely large.
    rows.sort_by_key(|row| {
        std::cmp::Reverse((row.anon_grown_kb.max(row.fds_grown).max(0) / 1_024, row.anon_kb, row.rss_kb))
    });
    rows
}

/// A process as the answer has it.
pub(super) fn row(
    seen: &Observation,
    process: &Process,
    anon_grown_kb: i64,
    fds_grown: i64,
) -> model::Process {
    let details = seen.details.get(&process.pid);
    let program = details.and_then(|details| details.program.as_ref());
    let identity = seen.names.get(&process.pid);
    model::Process {
        pid: process.pid,
        comm: seen.comm(process.pid).to_owned(),
        uid: identity.map_or(0, |identity| identity.uid),
        rss_kb: u64::from(process.anon_kb - process.swap_kb.min(process.anon_kb))
            + u64::from(process.file_kb)
            + u64::from(process.shmem_kb),
        pss_kb: details.and_then(|details| details.pss_kb),
        vsz_kb: process.vsz_kb,
        anon_kb: process.anon_kb.into(),
        shmem_kb: process.shmem_kb.into(),
        swap_kb: process.swap_kb.into(),
        page_tables_kb: process.page_tables_kb.into(),
        threads: process.threads,
        fds: process.fds,
        maps: program.map(|program| program.mappings),
        anon_grown_kb,
        fds_grown,
        language: program.map(|program| Language::of(program).name().to_owned()),
    }
}

fn process_names(seen: &Observation) -> Vec<model::Name> {
    let names = holding::by_name(seen).into_iter().take(ROWS);
    names.map(|(comm, kb, processes)| model::Name { comm, processes, anon_kb: kb as u64 }).collect()
}

fn slab_caches(seen: &Observation) -> Vec<model::Cache> {
    let Some(last) = &seen.last().caches else { return Vec::new() };
    let first = seen.first().caches.as_ref();
    let kb =
        |cache: &SlabCache| (cache.active_objects.saturating_mul(cache.object_size.into()) / 1_024) as i64;
    let mut rows: Vec<_> = last
        .iter()
        .map(|(name, cache)| {
            let before = first.and_then(|caches| caches.get(name));
            let known = seen.natures.get(name);
            let nature = known.cloned().unwrap_or_default();
            model::Cache {
                name: name.clone(),
                purpose: nature.purpose(name).map(ToOwned::to_owned),
                module_by: nature.owner.as_ref().map(|owner| match owner.known {
                    caches::Known::ByConstructor => "constructor".to_owned(),
                    caches::Known::ByName => "name".to_owned(),
                }),
                module: nature.owner.map(|owner| owner.module),
                reclaimable: known.map(|nature| nature.reclaimable),
                merged_with: nature.aliases,
                objects: cache.active_objects,
                object_size: cache.object_size,
                kb: cache.pages.saturating_mul(seen.page_kb),
                objects_grown: cache.active_objects as i64
                    - before.map_or(0, |cache| cache.active_objects as i64),
                grown_kb: kb(cache) - before.map_or(0, kb),
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse((row.grown_kb.max(0) / 512, row.kb)));
    rows.truncate(ROWS);
    rows
}

fn vmalloc(seen: &Observation) -> Vec<model::Caller> {
    let kb = |look: &Look, caller: &String| {
        look.callers
            .as_ref()
            .and_then(|callers| callers.get(caller))
            .map_or(0, |areas| areas.pages * seen.page_kb)
    };
    let mut rows: Vec<_> = seen
        .last()
        .callers
        .iter()
        .flatten()
        .map(|(caller, areas)| model::Caller {
            caller: caller.clone(),
            areas: areas.areas,
            kb: areas.pages * seen.page_kb,
            grown_kb: kb(seen.last(), caller) as i64 - kb(seen.first(), caller) as i64,
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.kb));
    rows.truncate(ROWS);
    rows
}

fn mounts(seen: &Observation) -> Vec<model::Mount> {
    let mut rows: Vec<_> = seen
        .last()
        .mounts
        .iter()
        .map(|mount| {
            let before = seen.first().mounts.iter().find(|other| other.path == mount.path);
            model::Mount {
                path: mount.path.to_string_lossy().into_owned(),
                kind: mount.kind.clone(),
                used_kb: mount.used_kb,
                limit_kb: mount.limit_kb,
                grown_kb: mount.used_kb as i64 - before.map_or(0, |mount| mount.used_kb as i64),
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.used_kb));
    rows.truncate(ROWS);
    rows
}

fn cgroups(seen: &Observation) -> Vec<model::Cgroup> {
    let before: std::collections::HashMap<&str, u64> =
        seen.first().groups.groups.iter().map(|group| (group.path.as_str(), group.used_kb)).collect();
    let groups = seen.last().groups.groups.iter().filter(|group| group.path != "/");
    let mut rows: Vec<_> = groups
        .map(|group| model::Cgroup {
            path: group.path.clone(),
            used_kb: group.used_kb,
            limit_kb: group.limit_kb,
            anon_kb: group.anon_kb,
            file_kb: group.file_kb,
            shmem_kb: group.shmem_kb,
            kernel_kb: group.kernel_kb,
            oom_kills: group.oom_kills,
            grown_kb: group.used_kb as i64 - before.get(group.path.as_str()).map_or(0, |&kb| kb as i64),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.used_kb));
    rows.truncate(ROWS);
    rows
}

fn protocols(root: &Path, page_kb: u64) -> Vec<model::Protocol> {
    let protocols = sockets::protocols(root).unwrap_or_default().into_iter();
    protocols
        .map(|protocol| model::Protocol {
            name: protocol.name,
            sockets: protocol.sockets,
            buffers_kb: protocol.pages.map(|pages| pages * page_kb),
            module: protocol.module,
        })
        .collect()
}

fn huge_pages(root: &Path) -> Vec<model::HugePages> {
    let entries = std::fs::read_dir(root.join("sys/kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut pools: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = |file: &str| -> Option<u64> {
                std::fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok()
            };
            Some(model::HugePages {
                page_kb: name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?,
                pages: number("nr_hugepages")?,
                free: number("free_hugepages")?,
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.page_kb);
    pools
}

fn largest_modules(modules: &[Module]) -> Vec<model::Module> {
    let mut rows: Vec<_> = modules
        .iter()
        .map(|module| model::Module {
            name: module.name.clone(),
            bytes: module.bytes,
            taints: module.taints.clone(),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows.truncate(ROWS);
    rows
}

fn places(seen: &Observation) -> Vec<model::Place> {
    let Some((before, after)) = &seen.places else { return Vec::new() };
    let mut rows: Vec<_> = after
        .iter()
        .map(|(place, &bytes)| model::Place {
            place: place.clone(),
            bytes,
            bytes_grown: bytes as i64 - before.get(place).map_or(0, |&bytes| bytes as i64),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse((row.bytes_grown.max(0) >> 20, row.bytes)));
    rows.truncate(ROWS);
    rows
}

/// Largest resident memory of this process so far, in kB.
pub(super) fn peak_rss_kb(root: &Path) -> u64 {
    Fields::read(root, "proc/self/status").ok().and_then(|status| status.get("VmHWM")).unwrap_or(0)
}
