//! Loading and attaching the programs, and saying in one line what the kernel refused.

use std::{io, os::fd::AsFd as _};

use anyhow::{Result, anyhow};
use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{HashMap, MapError},
    programs::{FEntry, FExit, KProbe, ProgramError, ProgramType, RawTracePoint},
    sys::is_program_supported,
};
use leaktrace_common::{CACHE_NAME_LEN, Config, MODULE_NAME_LEN};

use super::{
    Settings,
    hooks::{Kind, Program},
    messages,
    sizes::Sizes,
};
use crate::units;

/// Frames that are looked at for those of a watched module.
const WATCHED_DEPTH: u32 = 40;

/// The programs, compiled by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/leaktrace.bpf.o"));

/// The read-only global, as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Global(Config);

// SAFETY: `Config` is plain integers without padding, which its crate asserts.
unsafe impl aya::Pod for Global {}

/// Creates the maps; programs are loaded by [`load`].
///
/// # Errors
/// One line on what the kernel refused: memory, permission or the object itself.
pub fn create(config: Config, sizes: &Sizes, settings: &Settings) -> Result<Ebpf> {
    let config = Global(complete(config, sizes, settings));
    let mut loader = EbpfLoader::new();
    loader
        .override_global("CONFIG", &config, true)
        .map_max_entries("LIVE", sizes.buckets)
        .map_max_entries("OVERFLOW", sizes.overflow)
        .map_max_entries("SITES", sizes.sites)
        .map_max_entries("COUNTERS", sizes.sites * sizes.shards)
        .map_max_entries("STACKS", sizes.stacks)
        .map_max_entries("CPUS", sizes.cpus)
        .map_max_entries("CACHES", settings.caches.len().max(1) as u32)
        .verifier_log_level(if settings.verbose {
            VerifierLogLevel::DEBUG
        } else {
            VerifierLogLevel::DISABLE
        });
    messages::set_level(&mut loader, settings.verbose);
    let mut ebpf = loader.load(OBJECT).map_err(|error| explain_create(error, sizes))?;
    allow_caches(&mut ebpf, &settings.caches)?;
    watch_modules(&mut ebpf, &settings.modules)?;
    Ok(ebpf)
}

fn complete(mut config: Config, sizes: &Sizes, settings: &Settings) -> Config {
    config.bucket_mask = sizes.buckets - 1;
    config.site_mask = sizes.sites - 1;
    config.site_bits = sizes.sites.trailing_zeros();
    config.stack_index_mask = sizes.stacks - 1;
    config.shard_mask = sizes.shards - 1;
    config.counters_shared |= u32::from(sizes.shards < sizes.cpus);
    config.stack_share = (settings.stack_share * f64::from(1 << 20)) as u32;
    // Whether an object is a watched module's is told by the stack, whatever that costs.
    config.stack_depth = match settings.stack_depth {
        depth if !settings.modules.is_empty() => depth.max(WATCHED_DEPTH),
        _ if config.stack_share == 0 => 0,
        depth => depth,
    };
    config.min_size = settings.min_size;
    config.max_size = settings.max_size;
    config.filter_caches = u32::from(settings.filter_caches);
    config.filter_modules = u32::from(!settings.modules.is_empty());
    config.possible_cpus = sizes.cpus;
    config
}

/// Tells the programs which caches the filter lets through.
///
/// # Errors
/// When the kernel refuses the update.
pub fn allow_caches(ebpf: &mut Ebpf, caches: &[String]) -> Result<()> {
    let map = ebpf.map_mut("CACHES").ok_or_else(|| anyhow!("the BPF object has no map CACHES"))?;
    let mut map: HashMap<_, [u8; CACHE_NAME_LEN], u8> = HashMap::try_from(map)?;
    for cache in caches {
        let mut name = [0; CACHE_NAME_LEN];
        let length = cache.len().min(CACHE_NAME_LEN - 1);
        name[..length].copy_from_slice(&cache.as_bytes()[..length]);
        map.insert(name, 1, 0)?;
    }
    Ok(())
}

/// Tells the programs the names of the watched modules; their indices are those of the list.
///
/// # Errors
/// When the kernel refuses the update.
fn watch_modules(ebpf: &mut Ebpf, modules: &[String]) -> Result<()> {
    let map = ebpf.map_mut("WATCHED").ok_or_else(|| anyhow!("the BPF object has no map WATCHED"))?;
    let mut map: HashMap<_, [u8; MODULE_NAME_LEN], u32> = HashMap::try_from(map)?;
    for (index, module) in modules.iter().enumerate() {
        let mut name = [0; MODULE_NAME_LEN];
        let length = module.len().min(MODULE_NAME_LEN - 1);
        name[..length].copy_from_slice(&module.as_bytes()[..length]);
        map.insert(name, index as u32, 0)?;
    }
    Ok(())
}

/// Loads one program.
///
/// # Errors
/// Names the program and what the kernel said.
pub fn load(ebpf: &mut Ebpf, btf: &Btf, program: &Program) -> Result<()> {
    let loaded = find(ebpf, program)?;
    let result = match program.kind {
        Kind::RawTracepoint => TryInto::<&mut RawTracePoint>::try_into(loaded)?.load(),
        Kind::Fentry => TryInto::<&mut FEntry>::try_into(loaded)?.load(program.target, btf),
        Kind::Fexit => TryInto::<&mut FExit>::try_into(loaded)?.load(program.target, btf),
        Kind::Kprobe => TryInto::<&mut KProbe>::try_into(loaded)?.load(),
    };
    result.map_err(|error| explain_program(error, program, "load"))
}

/// Attaches one program, which is loaded.
///
/// # Errors
/// Names the program and what the kernel said.
pub fn attach(ebpf: &mut Ebpf, program: &Program) -> Result<()> {
    let loaded = find(ebpf, program)?;
    let result = match program.kind {
        Kind::RawTracepoint => {
            TryInto::<&mut RawTracePoint>::try_into(loaded)?.attach(program.target).map(drop)
        }
        Kind::Fentry => TryInto::<&mut FEntry>::try_into(loaded)?.attach().map(drop),
        Kind::Fexit => TryInto::<&mut FExit>::try_into(loaded)?.attach().map(drop),
        Kind::Kprobe => TryInto::<&mut KProbe>::try_into(loaded)?.attach(program.target, 0).map(drop),
    };
    result.map_err(|error| explain_program(error, program, "attach"))
}

fn find<'a>(ebpf: &'a mut Ebpf, program: &Program) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(program.name).ok_or_else(|| anyhow!("the BPF object has no program {}", program.name))
}

/// The fdinfo of a program: `recursion_misses` is nowhere else.
///
/// # Errors
/// When the program is not loaded.
pub fn program_fdinfo(ebpf: &Ebpf, name: &str) -> Result<String> {
    use std::os::fd::AsRawFd as _;
    let program = ebpf.program(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    let fd = program.fd()?.as_fd().as_raw_fd();
    Ok(std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?)
}

/// The system's word at the bottom of an error, if there is one.
fn system_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

fn explain_create(error: EbpfError, sizes: &Sizes) -> anyhow::Error {
    let memory = || units::bytes(sizes.bytes() as f64);
    match system_error(&error).map(io::Error::raw_os_error) {
        Some(Some(libc::ENOMEM | libc::E2BIG)) => {
            anyhow!("the kernel refused {} for the tables: give a smaller --max-objects", memory())
        }
        Some(Some(libc::EPERM | libc::EACCES)) => anyhow!(
            "the kernel refused to create the BPF map {} (EPERM): a security module, seccomp or lockdown forbids bpf()",
            match &error {
                EbpfError::MapError(MapError::CreateError { name, .. }) => name.as_str(),
                _ => "for the tables",
            }
        ),
        Some(Some(libc::ENOSYS)) => {
            anyhow!("this kernel has no bpf() system call (CONFIG_BPF_SYSCALL is off)")
        }
        _ => {
            no_programs().unwrap_or_else(|| anyhow::Error::new(error).context("cannot set up the BPF tables"))
        }
    }
}

/// Whether the kernel lets us load no program at all, on which aya's preparations founder.
fn no_programs() -> Option<anyhow::Error> {
    match is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => None,
        Ok(false) => Some(anyhow!("this kernel has no raw tracepoint programs, which all hooks are")),
        Err(error) => Some(anyhow!(
            "the kernel refused to load raw tracepoint programs, which the hook kmalloc and all others are ({}): \
             a security module, seccomp or lockdown forbids it",
            system_error(&error).map_or_else(|| error.to_string(), name_of)
        )),
    }
}

/// The name that people search for.
fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM".to_owned(),
        Some(libc::EACCES) => "EACCES".to_owned(),
        _ => error.to_string(),
    }
}

fn explain_program(error: ProgramError, program: &Program, verb: &str) -> anyhow::Error {
    let refused = system_error(&error).map(io::Error::raw_os_error);
    match (refused, error) {
        (Some(Some(libc::EPERM)), _) => anyhow!(
            "the kernel refused to {verb} the hook {} by {} (EPERM): a security module or lockdown forbids it",
            program.target,
            program.mechanism().word()
        ),
        (Some(Some(libc::ENOENT)), _) if program.kind == Kind::RawTracepoint => {
            anyhow!("this kernel has no tracepoint {}", program.target)
        }
        (_, ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let last =
                log.lines().rev().find(|line| !line.starts_with("processed") && !line.trim().is_empty());
            anyhow!(
                "the kernel's verifier refused the hook {} by {}: {io_error}{}",
                program.target,
                program.mechanism().word(),
                last.map(|line| format!(" ({line})")).unwrap_or_default()
            )
        }
        (_, error) => anyhow::Error::new(error).context(format!(
            "cannot {verb} the hook {} by {}",
            program.target,
            program.mechanism().word()
        )),
    }
}

/// Takes a program off its hook and out of the kernel.
///
/// # Errors
/// When it was not loaded.
pub fn unload(ebpf: &mut Ebpf, program: &Program) -> Result<()> {
    let loaded = find(ebpf, program)?;
    match program.kind {
        Kind::RawTracepoint => TryInto::<&mut RawTracePoint>::try_into(loaded)?.unload(),
        Kind::Fentry => TryInto::<&mut FEntry>::try_into(loaded)?.unload(),
        Kind::Fexit => TryInto::<&mut FExit>::try_into(loaded)?.unload(),
        Kind::Kprobe => TryInto::<&mut KProbe>::try_into(loaded)?.unload(),
    }
    .map_err(Into::into)
}

/// Waits until every program that is running now has ended: each runs as a reader of RCU, preempted or not
/// (`kernel/bpf/trampoline.c`, `kernel/trace/bpf_trace.c`), and the global membarrier is a grace period
/// (`kernel/sched/membarrier.c`).
pub fn wait_for_programs() {
    // SAFETY: membarrier takes integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // No membarrier (or nohz_full CPUs, which it refuses): programs take microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
