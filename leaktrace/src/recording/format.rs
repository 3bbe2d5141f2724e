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
    /// A whole report as it stood then: `leaktrace.report/1`.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) report: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
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
}

/// A call site.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Site {
    #[prost(uint32, tag = "1")]
    pub(super) id: u32,
    /// Return address.
    #[prost(uint64, tag = "2")]
    pub(super) address: u64,
    #[prost(string, tag = "3")]
    pub(super) family: String,
    #[prost(string, tag = "4")]
    pub(super) cache: String,
    #[prost(uint32, tag = "5")]
    pub(super) object_size: u32,
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
