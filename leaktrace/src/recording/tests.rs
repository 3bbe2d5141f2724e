//! Recordings, written and read again: whole, cut off, damaged, and full.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{
    report::{model::Report, sample},
    tracer::Level,
};

const START: u64 = 1_000_000;

fn start() -> Start {
    Start {
        kernel: "6.12".to_owned(),
        started: "2026-11-25T12:00:00Z".to_owned(),
        boot_id: "boot".to_owned(),
    }
}

/// A report whose finding is of the recorded site 7.
fn report() -> Report {
    let mut report = sample::report("suspect");
    report.findings[0].call_site.address = 0x1007;
    report.findings[0].cache = "cache-7".to_owned();
    report
}

fn describe(site: u32) -> (u64, String, String, u32) {
    (0x1000 + u64::from(site), "kmem_cache".to_owned(), format!("cache-{site}"), 64)
}

/// Records some seconds, in which site 7 grows by 3 a second and others come and go; a report every 50.
fn record(path: &Path, seconds: u64, most: u64) -> Recorder {
    let mut recorder = Recorder::create(path, &start(), most).unwrap();
    for second in 0..seconds {
        let mut levels = vec![Level { site: 7, allocated: second * 4, live: second * 3 }];
        levels.extend((100..140).map(|site| Level {
            site,
            allocated: second * 1_000 + u64::from(site),
            live: (second * 7_919 + u64::from(site) * 31) % 97,
        }));
        recorder.tick(second * 1_000, START - second * 10, levels, describe).unwrap();
        if second % 50 == 49 {
            recorder.report(&report()).unwrap();
        }
    }
    recorder
}

#[test]
fn what_was_recorded_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut recorder = record(&path, 200, 1 << 30);
    recorder.flush().unwrap();
    assert_eq!(recorder.bytes(), fs::metadata(&path).unwrap().len());
    assert!(is_recording(&path).unwrap());
    let read_back = read(&path, None).unwrap();
    let recorded = read_back.recorded.unwrap();
    assert_eq!((recorded.ticks, recorded.reports, recorded.damage), (200, 4, None));
    assert_eq!(recorded.sites, 41);
    let points = &read_back.findings[0].recorded;
    assert!(points.len() > 100 && points.iter().all(|&(second, live)| (live - second * 3.0).abs() < 0.5));
    assert!((recorded.available_kb[0].1 - START as f32).abs() < 1.0);
    // Up to a moment.
    let early = read(&path, Some(120.0)).unwrap();
    let recorded = early.recorded.unwrap();
    assert_eq!((recorded.reports, recorded.ticks, recorded.until_s), (2, 121, 120.0));
    assert!(early.findings[0].recorded.iter().all(|point| point.0 <= 120.0));
    let none = read(&path, Some(10.0)).unwrap_err().to_string();
    assert!(none.contains("none was recorded that early, the first one is of 49 s"), "{none}");
}

#[test]
fn what_was_cut_off_is_read_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    record(&path, 200, 1 << 30);
    let whole = fs::read(&path).unwrap();
    let mut reports = 0;
    for part in (MAGIC.len()..whole.len()).step_by(97).chain([whole.len()]) {
        fs::write(&path, &whole[..part]).unwrap();
        match read(&path, None) {
            Ok(report) => {
                let recorded = report.recorded.unwrap();
                assert!(recorded.reports >= reports && recorded.damage.is_none());
                reports = recorded.reports;
            }
            Err(error) => assert!(reports == 0, "{part}: {error}"),
        }
    }
    assert_eq!(reports, 4);
}

#[test]
fn a_full_file_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(older(&path), "what another recording left").unwrap();
    let most = 60_000;
    let recorder = record(&path, 4_000, most);
    assert!(recorder.parts() > 3 && recorder.bytes() > most, "{} {}", recorder.parts(), recorder.bytes());
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(size(&path) + size(&older(&path)) <= most + 10_000);
    let read_back = read(&path, None).unwrap();
    let recorded = read_back.recorded.unwrap();
    assert!((3_900.0..4_000.0).contains(&recorded.until_s));
    // Both files are read, and their levels are whole numbers since the start, not since the file.
    let points = &read_back.findings[0].recorded;
    assert!(points[0].0 > 10.0 && points.iter().all(|&(second, live)| (live - second * 3.0).abs() < 1.0));
}

#[test]
fn other_files_are_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for content in [&b""[..], b"{}", b"LKTR"] {
        fs::write(&path, content).unwrap();
        assert!(!is_recording(&path).unwrap());
        assert!(read(&path, None).unwrap_err().to_string().contains("is no recording"));
    }
    fs::write(&path, b"LKTRACE\x09").unwrap();
    assert!(read(&path, None).unwrap_err().to_string().contains("version 9"));
    // A block that would fill memory when it is unpacked.
    let bomb = zstd::bulk::compress(&vec![0; LARGEST_BLOCK as usize + 4_096], 3).unwrap();
    let mut file = MAGIC.to_vec();
    file.extend((bomb.len() as u32).to_le_bytes());
    file.extend(crc32fast::hash(&bomb).to_le_bytes());
    file.extend(bomb);
    fs::write(&path, file).unwrap();
    assert!(read(&path, None).is_err());
}

/// A week of a busy box: 300 sites at which something happens in each second, of 2,000.
#[test]
fn a_week_fits_a_gibibyte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut recorder = Recorder::create(&path, &start(), 1 << 30).unwrap();
    let mut random = 12_345_u64;
    let mut levels: Vec<Level> = (0..2_000).map(|site| Level { site, allocated: 0, live: 0 }).collect();
    let seconds = 1_200;
    for second in 0..seconds {
        for _ in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let level = &mut levels[(random >> 33) as usize % 2_000];
            let allocated = (random >> 50) % 2_000;
            level.allocated += allocated;
            level.live = (level.live + (random >> 40) % 16).saturating_sub(8);
        }
        recorder.tick(second * 1_000, START - random % 5_000, levels.clone(), describe).unwrap();
    }
    recorder.flush().unwrap();
    let week = recorder.bytes() as f64 / seconds as f64 * 604_800.0;
    println!(
        "{:.0} bytes a tick, {:.0} MiB a week",
        recorder.bytes() as f64 / seconds as f64,
        week / 1_048_576.0
    );
    assert!(week < 0.95 * (1_u64 << 30) as f64, "{week}");
}

proptest! {
    /// Any byte may be any other: no panic, and nothing unbounded.
    #[test]
    fn damage_is_survived(at in 0.0..1.0_f64, byte in any::<u8>()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        record(&path, 60, 1 << 30);
        let mut bytes = fs::read(&path).unwrap();
        let index = (at * bytes.len() as f64) as usize;
        bytes[index] = byte;
        fs::write(&path, bytes).unwrap();
        let _ = read(&path, None);
    }

    #[test]
    fn any_block_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let packed = zstd::bulk::compress(&bytes, 1).unwrap();
        let mut file = MAGIC.to_vec();
        for _ in 0..2 {
            file.extend((packed.len() as u32).to_le_bytes());
            file.extend(crc32fast::hash(&packed).to_le_bytes());
            file.extend(&packed);
        }
        fs::write(&path, file).unwrap();
        let _ = read(&path, None);
    }
}
