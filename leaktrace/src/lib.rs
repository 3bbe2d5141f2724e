//! leaktrace finds kernel memory leaks on a running Linux.
//!
//! Data flows one way: [`tracer`] keeps what the eBPF programs saw, [`analysis`] judges it, and
//! [`report`] tells; [`proof`] looks for pointers in memory, and [`screen`] is what `top` shows. [`kernel`] is the one place that knows what the running kernel is and
//! offers, and [`proc`] reads what it says of itself.

// These end the process where nobody reads what they write.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod analysis;
pub mod cli;
pub mod commands;
pub mod kernel;
pub mod proc;
pub mod proof;
pub mod recording;
pub mod report;
pub mod screen;
pub mod tracer;
pub mod units;
