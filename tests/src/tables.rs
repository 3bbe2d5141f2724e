//! The tables of a trace that is going on, as the kernel has them: of that trace, because others may run beside.

use std::fs;

use aya::maps::{MapData, MapInfo};

/// The table of this name that a process has open.
pub fn open(pid: u32, name: &str) -> MapData {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process runs");
    let ids = files.filter_map(|file| {
        let text = fs::read_to_string(file.ok()?.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    });
    let is_wanted = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some(name));
    let id = ids.into_iter().find(is_wanted).unwrap_or_else(|| panic!("process {pid} has no table {name}"));
    MapData::from_id(id).expect("the table is there as long as its process is")
}
