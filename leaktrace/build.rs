//! Compiles the eBPF programs for the BPF target and hands the object to the crate.
//!
//! cargo has no way yet to build a dependency for another target, so this runs it a second time.
//! The toolchain is what `cargo xtask setup` found and noted in the user's cache directory, or
//! what `LEAKTRACE_BPF_CARGO`, `LEAKTRACE_BPF_RUSTC` and `LEAKTRACE_BPF_LINKER` say, or rustup's nightly.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let workspace = manifest.parent().expect("the package lies in the workspace");
    for watched in ["leaktrace-ebpf/src", "leaktrace-ebpf/Cargo.toml", "leaktrace-common/src", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    let toolchain = toolchain();
    let object = build(workspace, &out, &toolchain);
    fs::copy(&object, out.join("leaktrace.bpf.o")).expect("the object can be copied");
}

/// The noted toolchain, overridden by the environment.
fn toolchain() -> HashMap<String, String> {
    let mut values = HashMap::new();
    if let Some(file) = toolchain_file() {
        println!("cargo::rerun-if-changed={}", file.display());
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            if let Some((name, value)) = line.split_once('=') {
                values.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    for (variable, name) in [
        ("LEAKTRACE_BPF_CARGO", "cargo"),
        ("LEAKTRACE_BPF_RUSTC", "rustc"),
        ("LEAKTRACE_BPF_LINKER", "linker"),
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
        if let Ok(value) = env::var(variable) {
            values.insert(name.to_owned(), value);
        }
    }
    values
}

/// Where `cargo xtask setup` notes its choice.
fn toolchain_file() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    Some(cache.join("leaktrace/toolchain"))
}

fn build(workspace: &Path, out: &Path, toolchain: &HashMap<String, String>) -> PathBuf {
    // `cargo xtask` builds the tool by more than one profile, and the programs, which have only one, once for all of them.
    let target = env::var_os("LEAKTRACE_BPF_TARGET_DIR").map_or_else(|| out.join("bpf"), PathBuf::from);
    let big_endian = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
    let triple = if big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let target = target.join(&arch);
    let mut command = if let Some(cargo) = toolchain.get("cargo") {
        Command::new(cargo)
    } else {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]);
        command
    };
    command
        .args(["build", "--package", "leaktrace-ebpf", "--bin", "leaktrace-programs", "--release"])
        .args(["-Z", "build-std=core", "--target", triple, "--target-dir"])
        .arg(&target)
        .current_dir(workspace);
    // What cargo told this script about the host build would mislead the second one.
    for variable in
        ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO"]
    {
        command.env_remove(variable);
    }
    if let Some(rustc) = toolchain.get("rustc") {
        command.env("RUSTC", rustc);
    }
    let mut flags = vec![
        // BTF is made from the debug information; it costs nothing in the kernel.
        "-Cdebuginfo=2".to_owned(),
        // v3 has the 32-bit instructions and the atomics.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    if let Some(linker) = toolchain.get("linker") {
        flags.push(format!("-Clinker={linker}"));
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR));
    // -Z is for nightly, and for any compiler that is told so.
    command.env("RUSTC_BOOTSTRAP", "1");
    let output = command.output();
    match output {
        Ok(output) if output.status.success() => target.join(triple).join("release/leaktrace-programs"),
        Ok(output) => fail(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => fail(&format!("cannot run {}: {error}", command.get_program().display())),
    }
}

/// Ends the build with the reason and the remedy.
fn fail(reason: &str) -> ! {
    for line in reason.lines() {
        println!("cargo::error={line}");
    }
    println!(
        "cargo::error=the eBPF programs could not be built: run `cargo xtask setup`, which finds or installs what that takes"
    );
    std::process::exit(1)
}
