//! leaktrace's eBPF programs: the list of them, and the maps they share.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod arguments;
#[cfg(target_arch = "bpf")]
mod book;
#[cfg(target_arch = "bpf")]
mod callers;
#[cfg(target_arch = "bpf")]
mod config;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod overflow;
#[cfg(target_arch = "bpf")]
mod pages;
#[cfg(target_arch = "bpf")]
mod sites;
#[cfg(target_arch = "bpf")]
mod stacks;
#[cfg(target_arch = "bpf")]
mod tasks;

/// The licence that the kernel's verifier asks for: several helpers are for GPL-compatible programs.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program in which this can be reached.
    loop {}
}

/// The programs exist for the BPF target only; on the host this package is its library.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
