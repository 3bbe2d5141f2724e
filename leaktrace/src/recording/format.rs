//! The messages of a recording. Fields may be added, never changed.

use prost::Message;

/// One frame's content; any part of it may be missing.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Block {
    /// The first frame of a file has it.
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    /// Sites that are spoken of from here on.
    #[prost(message, repeated, tag = "2")]
    pub(super) sites: Vec<Site>,
    #[prost(message, optional, tag = "3")]
    pub(super) ticks: Option<Ticks>,
    /// A whole report as it stood then: `leaktrace.report/1`. The header is told once more with it.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) report: Vec<u8>,
    /// Milliseconds since the start, of the last tick before the report; 0 in files of before 0.1.
    #[prost(uint64, tag = "5")]
    pub(super) report_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub(super) tool_version: String,
    #[prost(string, tag = "2")]
    pub(super) kernel: String,
    /// In RFC 3339.
    #[prost(string, tag = "3")]
    pub(super) started: String,
    #[prost(string, tag = "4")]
    pub(super) boot_id: String,
    /// Which of the files of this recording it is, from 0.
    #[prost(uint32, tag = "5")]
    pub(super) part: u32,
    /// The version of the file, once more; 0 in files of before 0.1, which are of version 1.
    #[prost(uint32, tag = "6")]
    pub(super) version: u32,
    /// The machine, as reports have it.
    #[prost(string, tag = "7")]
    pub(super) architecture: String,
    #[prost(uint32, tag = "8")]
    pub(super) cpus: u32,
    #[prost(uint64, tag = "9")]
    pub(super) memory_kb: u64,
    /// Age from which a live object is a survivor.
    #[prost(double, tag = "10")]
    pub(super) min_age_s: f64,
}

/// A call site.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Site {
    /// By which it is spoken of.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Return address.
    #[prost(uint64, tag = "2")]
    pub address: u64,
    /// As in a finding.
    #[prost(string, tag = "3")]
    pub family: String,
    /// As in a finding.
    #[prost(string, tag = "4")]
    pub cache: String,
    /// Bytes of an object.
    #[prost(uint32, tag = "5")]
    pub object_size: u32,
    /// The function; empty where it is not known.
    #[prost(string, tag = "6")]
    pub symbol: String,
    /// Bytes into it.
    #[prost(uint64, tag = "7")]
    pub offset: u64,
    /// Its loadable module; empty where it is in none.
    #[prost(string, tag = "8")]
    pub module: String,
}

/// Some ticks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ticks {
    /// Milliseconds since the start, of the first tick.
    #[prost(uint64, tag = "1")]
    pub(super) first_ms: u64,
    /// From each tick to the next one.
    #[prost(uint32, repeated, tag = "2")]
    pub(super) steps_ms: Vec<u32>,
    /// `MemAvailable` at the first one, and how it changed from one to the next.
    #[prost(sint64, repeated, tag = "3")]
    pub(super) available_kb: Vec<i64>,
    /// Sites at which something happened.
    #[prost(message, repeated, tag = "4")]
    pub(super) series: Vec<Series>,
}

/// A site over some ticks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Series {
    #[prost(uint32, tag = "1")]
    pub(super) site: u32,
    /// Live objects at the first tick, and how they changed from one to the next.
    #[prost(sint64, repeated, tag = "2")]
    pub(super) live: Vec<i64>,
    /// Allocations up to the last tick, since the start.
    #[prost(uint64, tag = "3")]
    pub(super) allocated: u64,
}
