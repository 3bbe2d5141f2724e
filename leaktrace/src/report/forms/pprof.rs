//! A heap profile of the kernel: `go tool pprof`, Speedscope, Pyroscope and Parca read it (`proto/profile.proto` of
//! github.com/google/pprof).

use std::{collections::BTreeMap, io::Write as _};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use prost::Message;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::stacks::shares;
use crate::report::model::{Frame, Report};

/// Writes the profile, compressed as all its readers expect.
pub(super) fn render(report: &Report) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&profile(report).encode_to_vec()).context("cannot write the profile")?;
    gzip.finish().context("cannot write the profile")
}

fn profile(report: &Report) -> Profile {
    let mut tables = Tables::default();
    tables.text("");
    let (objects, count) = (tables.text("inuse_objects"), tables.text("count"));
    let (space, bytes) = (tables.text("inuse_space"), tables.text("bytes"));
    let keys = ["cache", "family", "verdict", "module"].map(|key| tables.text(key));
    let mut samples = Vec::new();
    for share in shares(report) {
        let finding = share.finding;
        let values = [&*finding.cache, &*finding.family, &*finding.verdict, &*finding.module];
        let label = |(key, value): (i64, &str)| Label { key, str: tables.text(value) };
        samples.push(Sample {
            label: keys.into_iter().zip(values).map(label).collect(),
            location_id: tables.locations(&share.frames),
            value: vec![share.objects as i64, share.bytes as i64],
        });
    }
    let started = OffsetDateTime::parse(&report.window.started, &Rfc3339);
    let mut comment =
        vec![tables.text(&format!("leaktrace {} on Linux {}", report.tool_version, report.kernel))];
    comment.extend(report.filters.in_words().map(|filters| tables.text(&filters)));
    Profile {
        sample_type: vec![
            ValueType { r#type: objects, unit: count },
            ValueType { r#type: space, unit: bytes },
        ],
        sample: samples,
        time_nanos: started.map_or(0, |time| time.unix_timestamp_nanos() as i64),
        duration_nanos: (report.window.duration_s * 1e9) as i64,
        period_type: Some(ValueType { r#type: space, unit: bytes }),
        period: i64::try_from(report.coverage.sampling).unwrap_or(1),
        comment,
        default_sample_type: space,
        mapping: tables.mappings,
        location: tables.locations,
        function: tables.functions,
        string_table: tables.strings,
    }
}

/// What is referred to by number, each thing once.
#[derive(Default)]
struct Tables {
    strings: Vec<String>,
    string_of: BTreeMap<String, i64>,
    functions: Vec<Function>,
    function_of: BTreeMap<(String, String), u64>,
    mappings: Vec<Mapping>,
    mapping_of: BTreeMap<String, u64>,
    locations: Vec<Location>,
    location_of: BTreeMap<(u64, String), u64>,
}

impl Tables {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.string_of.get(text) {
            return index;
        }
        let index = self.strings.len() as i64;
        self.strings.push(text.to_owned());
        self.string_of.insert(text.to_owned(), index);
        index
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let name = frame.symbol.clone().unwrap_or_else(|| format!("{:#x}", frame.address));
        let key = (name, frame.file.clone().unwrap_or_default());
        if let Some(&id) = self.function_of.get(&key) {
            return id;
        }
        let id = self.functions.len() as u64 + 1;
        let (name, filename) = (self.text(&key.0), self.text(&key.1));
        self.functions.push(Function { id, name, system_name: name, filename });
        self.function_of.insert(key, id);
        id
    }

    /// The module's, or the kernel's, grown to have an address.
    fn mapping(&mut self, frame: &Frame) -> u64 {
        let name =
            frame.module.as_ref().map_or("[kernel.kallsyms]".to_owned(), |module| format!("[{module}]"));
        let id = if let Some(&id) = self.mapping_of.get(&name) {
            id
        } else {
            let id = self.mappings.len() as u64 + 1;
            let filename = self.text(&name);
            self.mappings.push(Mapping {
                id,
                memory_start: frame.address,
                memory_limit: frame.address,
                filename,
                // Nobody has to look for symbols: they are all here.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            });
            self.mapping_of.insert(name, id);
            id
        };
        let mapping = &mut self.mappings[id as usize - 1];
        mapping.memory_start = mapping.memory_start.min(frame.address);
        mapping.memory_limit = mapping.memory_limit.max(frame.address.saturating_add(1));
        id
    }

    /// Of a stack, the call site first. Inlined functions share the place of the one that they are inlined into.
    fn locations(&mut self, frames: &[&Frame]) -> Vec<u64> {
        let mut ids = Vec::new();
        let mut rest = frames;
        while !rest.is_empty() {
            let length = rest.iter().take_while(|frame| frame.inlined).count() + 1;
            let (place, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            let names: Vec<_> =
                place.iter().map(|frame| frame.symbol.as_deref().unwrap_or_default()).collect();
            let key = (place[0].address, names.join("\n"));
            if let Some(&id) = self.location_of.get(&key) {
                ids.push(id);
                continue;
            }
            let id = self.locations.len() as u64 + 1;
            let line = |frame: &&Frame| Line {
                function_id: self.function(frame),
                line: i64::from(frame.line.unwrap_or(0)),
            };
            let line = place.iter().map(line).collect();
            let mapping_id = self.mapping(place[place.len() - 1]);
            self.locations.push(Location { id, mapping_id, address: place[0].address, line });
            self.location_of.insert(key, id);
            ids.push(id);
        }
        ids
    }
}

/// A whole profile; strings are told by their index in `string_table`.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Sample {
    /// The call site first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[expect(clippy::struct_excessive_bools, reason = "the format has them")]
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    /// The inlined function first.
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::report::sample;

    #[test]
    fn all_references_lead_somewhere() {
        let mut report = sample::report("leak");
        let mut inlined = report.findings[0].stacks[0].frames[1].clone();
        inlined.inlined = true;
        report.findings[0].stacks[0].frames.insert(1, inlined);
        let mut bytes = Vec::new();
        GzDecoder::new(render(&report).unwrap().as_slice()).read_to_end(&mut bytes).unwrap();
        let profile = Profile::decode(bytes.as_slice()).unwrap();
        assert_eq!(profile.string_table[0], "");
        let text = |index: i64| profile.string_table[index as usize].as_str();
        assert_eq!(text(profile.default_sample_type), "inuse_space");
        let [sample] = profile.sample.as_slice() else { panic!("{profile:?}") };
        assert_eq!(sample.value, [5_102, 5_102 * 256]);
        let labels: Vec<_> = sample.label.iter().map(|label| (text(label.key), text(label.str))).collect();
        assert!(labels.contains(&("cache", "skbuff_head_cache")) && labels.contains(&("module", "foo")));
        let names: Vec<Vec<&str>> = sample
            .location_id
            .iter()
            .map(|&id| {
                let location = &profile.location[id as usize - 1];
                assert!(location.id == id && (location.mapping_id as usize) <= profile.mapping.len());
                let name = |line: &Line| text(profile.function[line.function_id as usize - 1].name);
                location.line.iter().map(name).collect()
            })
            .collect();
        assert_eq!(names[..3], [vec!["__alloc_skb"], vec!["foo_rx", "foo_rx"], vec!["process_one_work"]]);
        assert_eq!(profile.duration_nanos, 60_000_000_000);
        assert_eq!(profile.time_nanos, 1_795_608_000_000_000_000);
    }
}
