//! The programs on their hooks: each by the best mechanism that the kernel lets it have.

use std::{cell::OnceCell, path::Path};

use anyhow::{Result, anyhow};
use aya::{Btf, Ebpf};
use leaktrace_common::FREEING_PAIRS;

use super::{
    cost::{self, ProgramCost},
    hooks::{Family, Hook, Kind, Program},
    load,
    nested::{Nested, Wanted},
};

/// Where the kernel says how kprobes are attached, if it has them (`kernel/events/core.c`).
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

/// A hook, and how it is attached, or why it is not.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// Index of the way that is loaded or attached.
    way: usize,
    /// What the kernel said to each way, if it refused all.
    pub error: Option<String>,
    /// What it has said so far.
    refusals: Vec<String>,
}

impl HookState {
    /// Its programs, none when it was refused.
    pub fn programs(&self) -> &[Program] {
        match self.error {
            None => self.hook.ways.get(self.way).map_or(&[], Vec::as_slice),
            Some(_) => &[],
        }
    }

    /// The word for how it is attached, or would be best.
    pub fn mechanism(&self) -> &'static str {
        let way = if self.error.is_none() { self.hook.ways.get(self.way) } else { self.hook.ways.first() };
        way.and_then(|way| way.first()).map_or("none", |program| program.mechanism().word())
    }
}

/// All hooks of a trace.
pub struct Programs {
    hooks: Vec<HookState>,
    nested: Option<Nested>,
    btf: OnceCell<Result<Btf, String>>,
}

impl Programs {
    /// Loads the programs of each hook.
    ///
    /// # Errors
    /// Names the required hook that the kernel refused.
    pub(super) fn load(ebpf: &mut Ebpf, hooks: Vec<Hook>) -> Result<Self> {
        let mut programs = Self { hooks: Vec::new(), nested: None, btf: OnceCell::new() };
        for hook in hooks {
            let mut state = HookState { hook, way: 0, error: None, refusals: Vec::new() };
            programs.settle(ebpf, &mut state, false)?;
            programs.hooks.push(state);
        }
        if programs.has("kfree") {
            programs.nested = Some(Nested::load(ebpf, programs.btf()?));
        }
        Ok(programs)
    }

    /// Finds the first way from the present one on that the kernel takes.
    fn settle(&self, ebpf: &mut Ebpf, state: &mut HookState, attach: bool) -> Result<()> {
        while let Some(way) = state.hook.ways.get(state.way) {
            let loaded = self.load_way(ebpf, way);
            let result = loaded.and_then(|()| if attach { attach_way(ebpf, way) } else { Ok(()) });
            let Err(error) = result else { return Ok(()) };
            if state.hook.required {
                return Err(error);
            }
            state.refusals.push(format!("{error:#}"));
            state.way += 1;
        }
        let said = match state.refusals.as_slice() {
            [] => "no mechanism is left for it".to_owned(),
            refusals => refusals.join("; "),
        };
        if state.hook.required {
            return Err(anyhow!("the hook {} cannot be had: {said}", state.hook.name));
        }
        state.error = Some(said);
        Ok(())
    }

    fn btf(&self) -> Result<&Btf> {
        self.btf
            .get_or_init(|| Btf::from_sys_fs().map_err(|error| error.to_string()))
            .as_ref()
            .map_err(|error| anyhow!("cannot read the kernel's BTF: {error}"))
    }

    fn load_way(&self, ebpf: &mut Ebpf, way: &[Program]) -> Result<()> {
        // Verifying a program that cannot be attached would be in vain.
        if way.iter().any(|program| program.kind == Kind::Kprobe) && !Path::new(KPROBES).exists() {
            return Err(anyhow!("this kernel has no kprobes"));
        }
        for (index, program) in way.iter().enumerate() {
            if let Err(error) = load::load(ebpf, self.btf()?, program) {
                unload(ebpf, &way[..index]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Attaches what is loaded; what the kernel refuses now is tried by the next mechanism.
    ///
    /// # Errors
    /// Names the required hook that the kernel refused.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        for index in 0..self.hooks.len() {
            let mut state = self.hooks[index].clone();
            if state.error.is_some() {
                continue;
            }
            if let Some(missing) = self.missing_free(&state.hook) {
                unload(ebpf, state.programs());
                state.error = Some(format!("left out, because {missing} is missing: {}", state.hook.without));
                self.hooks[index] = state;
                continue;
            }
            let way = state.hook.ways[state.way].clone();
            if let Err(error) = attach_way(ebpf, &way) {
                if state.hook.required {
                    return Err(error);
                }
                state.refusals.push(format!("{error:#}"));
                state.way += 1;
                self.settle(ebpf, &mut state, true)?;
            }
            self.hooks[index] = state;
        }
        self.miss_fewer(ebpf, Wanted::Usual)
    }

    /// The hook that sees the frees of what a hook sees allocated, if it was refused and everything
    /// would look leaked. Of slab much is freed by others, and slabinfo is there to contradict.
    fn missing_free(&self, hook: &Hook) -> Option<&'static str> {
        let family = hook.family.filter(|&family| family != Family::Slab && !hook.frees)?;
        self.hooks
            .iter()
            .find(|state| {
                state.hook.frees
                    && state.hook.family == Some(family)
                    && state.error.is_some()
                    && state.hook.name != "kvfree_call_rcu"
            })
            .map(|state| state.hook.name)
    }

    /// Whether a hook is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.hooks.iter().any(|state| state.hook.name == name && state.error.is_none())
    }

    /// What each program cost, and the events that it missed; `booked` are those of them that second programs booked.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn costs(
        &self,
        ebpf: &Ebpf,
        booked: [u64; FREEING_PAIRS],
    ) -> Result<Vec<(&'static str, ProgramCost, u64)>> {
        let mut costs = Vec::new();
        for program in self.hooks.iter().flat_map(HookState::programs) {
            let (cost, misses) = cost::read(ebpf, program)?;
            costs.push((program.name, cost, misses));
        }
        if let Some(nested) = &self.nested {
            nested.account(ebpf, booked, &mut costs)?;
        }
        Ok(costs)
    }

    /// Attaches the second programs that are wanted by now.
    ///
    /// # Errors
    /// When the kernel does not say what the first ones missed.
    pub(super) fn miss_fewer(&mut self, ebpf: &mut Ebpf, wanted: Wanted) -> Result<()> {
        self.nested.as_mut().map_or(Ok(()), |nested| nested.attach(ebpf, wanted))
    }

    /// Takes all programs off their hooks and out of the kernel.
    ///
    /// # Errors
    /// When a program was not loaded.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        if let Some(nested) = &mut self.nested {
            nested.unload(ebpf);
        }
        // Allocations first, so that every object that was recorded can still be seen freed.
        for state in self.hooks.iter().rev() {
            for program in state.programs() {
                load::unload(ebpf, program)?;
            }
        }
        load::wait_for_programs();
        Ok(())
    }

    /// The hooks, in the order in which they are attached.
    pub(super) fn hooks(&self) -> &[HookState] {
        &self.hooks
    }
}

/// Attaches the programs of one way, or none of them.
fn attach_way(ebpf: &mut Ebpf, way: &[Program]) -> Result<()> {
    for program in way {
        if let Err(error) = load::attach(ebpf, program) {
            unload(ebpf, way);
            return Err(error);
        }
    }
    Ok(())
}

/// Unloads programs that will not be used; one that was not loaded stays so.
fn unload(ebpf: &mut Ebpf, programs: &[Program]) {
    for program in programs {
        let _ = load::unload(ebpf, program);
    }
}
