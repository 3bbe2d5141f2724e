//! The lock-free tables that leaktrace's eBPF programs keep.
//!
//! They are a library because the same code also builds for the host: property tests hold it
//! against a model there, and user space uses it on the tables that it has mapped.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod atomic;
pub mod blocks;
pub mod live;
pub mod probe;
pub mod table;
