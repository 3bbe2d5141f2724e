//! `leaktrace check`: what this kernel offers, and whether it works.

use std::{fmt::Write as _, path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    attribute::Attribution,
    output::Output,
    probe::{self, Kernel},
    selftest::{self, Outcome},
};
use crate::{
    cli::{CheckArgs, Format},
    kernel::machine::Machine,
    proc::slab,
    report::{escape, model::BlindSpot, page},
    tracer::{
        Settings, Tracer,
        hooks::{self, Family},
        sizes::Sizes,
    },
    units,
};

/// Name and version of the answer's schema.
const SCHEMA: &str = "leaktrace.check/1";

/// Objects that the tables of the self-test have room for, on any machine.
const TEST_OBJECTS: u32 = 1 << 16;

/// The answer.
#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    tool_version: &'static str,
    kernel: String,
    architecture: String,
    cpus: u32,
    /// Whether tracing works here.
    usable: bool,
    /// Why not.
    reason: Option<String>,
    hooks: Vec<HookAnswer>,
    sources: Vec<Source>,
    blind_spots: Vec<BlindSpot>,
}

/// A hook and its test.
#[derive(Serialize)]
struct HookAnswer {
    name: &'static str,
    path: &'static str,
    mechanism: &'static str,
    attached: bool,
    error: Option<String>,
    self_test: Option<Outcome>,
}

/// Something that is read beside the hooks.
#[derive(Serialize)]
struct Source {
    name: &'static str,
    available: bool,
    detail: String,
}

/// Checks and answers; the exit status is 1 where tracing cannot work.
///
/// # Errors
/// When the answer cannot be written.
pub(super) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let answer = answer();
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&answer).context("cannot write JSON")? + "\n",
        Format::Text => text(&answer),
    };
    Output::Stdout.write(text.as_bytes())?;
    Ok(if answer.usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn answer() -> Answer {
    let mut answer = Answer {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION"),
        kernel: String::new(),
        architecture: String::new(),
        cpus: 0,
        usable: false,
        reason: None,
        hooks: Vec::new(),
        sources: Vec::new(),
        blind_spots: Vec::new(),
    };
    if let Ok(machine) = Machine::current() {
        answer.kernel.clone_from(&machine.release);
        answer.architecture.clone_from(&machine.architecture);
        answer.cpus = machine.online_cpus;
    }
    if let Err(error) = examine(&mut answer) {
        answer.usable = false;
        answer.reason = Some(format!("{error:#}"));
    }
    answer
}

fn examine(answer: &mut Answer) -> Result<()> {
    let root = Path::new("/");
    let kernel = probe::probe(root)?;
    answer.sources = sources(&kernel, root);
    answer.blind_spots = blind_spots(&kernel);
    let settings = Settings { max_size: u32::MAX, families: Family::ALL.to_vec(), ..Settings::default() };
    let sizes = Sizes::choose(&kernel.machine, Some(TEST_OBJECTS))?;
    let attribution = Attribution::new(Arc::new(kernel.symbols), Vec::new());
    let mut tracer = Tracer::new(&kernel.layout, sizes, settings, Arc::new(attribution), &[])?;
    let memory = tracer.can_look_at_memory();
    answer.sources.push(Source {
        name: "objects in memory",
        available: memory.is_ok(),
        detail: match memory {
            Ok(()) => "whether survivors are on lists".to_owned(),
            Err(reason) => format!("{reason}: nothing is called a leak without"),
        },
    });
    tracer.attach()?;
    let outcomes = selftest::run(&tracer)?;
    let outcome =
        |name: &str| outcomes.iter().find(|(tested, _)| *tested == name).map(|(_, outcome)| *outcome);
    answer.hooks = tracer
        .hooks()
        .iter()
        .map(|state| HookAnswer {
            name: state.hook.name,
            path: state.hook.path,
            mechanism: state.mechanism(),
            attached: state.error.is_none(),
            error: state.error.clone(),
            self_test: outcome(state.hook.name),
        })
        .collect();
    answer.blind_spots.extend(tracer.hooks().iter().filter(|state| state.error.is_some()).map(|state| {
        BlindSpot {
            path: state.hook.path.to_owned(),
            effect: state.hook.without.to_owned(),
            caches: Vec::new(),
        }
    }));
    tracer.detach()?;
    let deaf: Vec<_> = answer
        .hooks
        .iter()
        .filter(|hook| hook.name != "task_rename" && hook.self_test.is_some_and(|outcome| !outcome.passed()))
        .map(|hook| hook.name)
        .collect();
    answer.usable = deaf.is_empty();
    if !deaf.is_empty() {
        answer.reason = Some(format!("the self-test's events were not seen by {}", deaf.join(" and ")));
    }
    Ok(())
}

fn sources(kernel: &Kernel, root: &Path) -> Vec<Source> {
    let slabinfo = slab::read_slabinfo(root);
    let caches: Vec<String> = slabinfo.iter().flat_map(|caches| caches.keys().cloned()).collect();
    let traits = slab::read_traits(root, caches.iter().map(String::as_str));
    let merged: usize = traits.values().map(|traits| traits.aliases.len()).sum();
    vec![
        Source { name: "BTF", available: true, detail: "argument positions and struct offsets".into() },
        Source {
            name: "/proc/slabinfo",
            available: slabinfo.is_ok(),
            detail: match &slabinfo {
                Ok(caches) => format!("{} caches", caches.len()),
                Err(error) => format!("{error:#}"),
            },
        },
        Source {
            name: "/sys/kernel/slab",
            available: !traits.is_empty(),
            detail: format!("{} caches, {merged} merged into others", traits.len()),
        },
        Source {
            name: "/proc/kallsyms",
            available: !kernel.symbols.is_empty(),
            detail: kernel.symbols.note().map_or_else(
                || format!("{} functions", units::count(kernel.symbols.len() as u64)),
                ToOwned::to_owned,
            ),
        },
        Source {
            name: "cache of kmalloc objects",
            available: kernel.layout.no_page_lookup.is_none(),
            detail: kernel.layout.no_page_lookup.clone().unwrap_or_else(|| "by the object's page".into()),
        },
    ]
}

fn blind_spots(kernel: &Kernel) -> Vec<BlindSpot> {
    let mut spots: Vec<BlindSpot> = hooks::UNSEEN
        .iter()
        .map(|unseen| BlindSpot {
            path: unseen.path.into(),
            effect: unseen.effect.into(),
            caches: Vec::new(),
        })
        .collect();
    if let Some(reason) = &kernel.layout.no_page_lookup {
        spots.push(BlindSpot {
            path: "cache of a kmalloc object".into(),
            effect: format!("{reason}: kmalloc caches are named by size"),
            caches: Vec::new(),
        });
    }
    spots
}

fn text(answer: &Answer) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, answer);
    out
}

fn write_text(out: &mut String, answer: &Answer) -> std::fmt::Result {
    writeln!(
        out,
        "leaktrace {} on {} ({}, {} CPUs)",
        answer.tool_version,
        escape(&answer.kernel),
        escape(&answer.architecture),
        answer.cpus
    )?;
    if !answer.hooks.is_empty() {
        writeln!(out, "\nHooks")?;
    }
    for hook in &answer.hooks {
        let state = match (&hook.error, hook.self_test) {
            (Some(_), _) => "refused:".to_owned(),
            (None, Some(outcome)) => format!(
                "{}: saw {} of {}",
                if outcome.passed() { "works" } else { "DEAF" },
                outcome.seen,
                outcome.expected
            ),
            (None, None) => "attached, not tested".into(),
        };
        writeln!(out, "  {:<24} {:<16} {state}", hook.name, hook.mechanism)?;
        if let Some(error) = &hook.error {
            page::paragraph(out, 4, page::WIDTH, &escape(error))?;
        }
    }
    if !answer.sources.is_empty() {
        writeln!(out, "\nSources")?;
    }
    for source in &answer.sources {
        let state = if source.available { "yes" } else { "no" };
        writeln!(out, "  {:<24} {state:<4} {}", source.name, escape(&source.detail))?;
    }
    if !answer.blind_spots.is_empty() {
        writeln!(out, "\nBlind spots")?;
    }
    for spot in &answer.blind_spots {
        writeln!(out, "  {}", escape(&spot.path))?;
        page::paragraph(out, 4, page::WIDTH, &escape(&spot.effect))?;
    }
    match &answer.reason {
        None => writeln!(out, "\nTracing works here."),
        Some(reason) => writeln!(out, "\nTracing does not work here: {}", escape(reason)),
    }
}
