//! Recordings, written and read again: whole, cut off, damaged, and full.

use std::{fs, path::Path};

use clap::ValueEnum as _;
use proptest::prelude::*;

use super::*;
use crate::{
    report::{forms, model::Report, plausible, sample, text},
    tracer::Level,
};

const START: u64 = 1_000_000;

fn start() -> Start {
    Start {
        kernel: "6.12".to_owned(),
        started: "2026-11-25T12:00:00Z".to_owned(),
        boot_id: "boot".to_owned(),
        architecture: "x86_64".to_owned(),
        cpus: 2,
        memory_kb: 1 << 20,
        min_age_s: 5.0,
    }
}

/// A report whose finding is of the recorded site 7.
fn report() -> Report {
    let mut report = sample::report("suspect");
    report.findings[0].call_site.address = 0x1007;
    report.findings[0].cache = "cache-7".to_owned();
    report
}

fn describe(id: u32) -> Site {
    Site {
        id,
        address: 0x1000 + u64::from(id),
        family: "kmem_cache".to_owned(),
        cache: format!("cache-{id}"),
        object_size: 64,
        symbol: format!("function_{id}"),
        offset: 0x10,
        module: String::new(),
    }
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
    assert_eq!(recorded.report_s, Some(99.0));
}

/// Before the first report its ticks are told: how long, what grew by how much, and that nothing is judged.
#[test]
fn ticks_alone_are_told_where_there_is_no_report_yet() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut recorder = record(&path, 60, 1 << 30);
    recorder.flush().unwrap();
    drop(recorder);
    let early = read(&path, Some(40.0)).unwrap();
    assert!(early.is_of_ticks() && early.headline.verdict == "unknown", "{:?}", early.headline);
    for words in [
        "there is no report yet, only ticks, up to 40 s",
        "function_7+0x10 grew most in them, by 7.5 KiB in cache-7",
    ] {
        assert!(early.headline.text.contains(words), "{}", early.headline.text);
    }
    let recorded = early.recorded.as_ref().unwrap();
    assert_eq!((recorded.ticks, recorded.until_s, recorded.reports, recorded.report_s), (41, 40.0, 0, None));
    let first = &early.findings[0];
    assert_eq!((&*first.verdict, first.live.objects, first.live.bytes), ("unknown", 120, 120 * 64));
    assert!((first.growth.bytes_per_s - 3.0 * 64.0).abs() < 1e-6 && first.recorded.len() == 41);
    assert_eq!((early.caches[0].name.as_str(), early.caches[0].traced.net), ("cache-7", 120));
    assert_eq!((early.kernel.as_str(), early.machine.cpus, early.window.min_age_s), ("6.12", 2, 5.0));
    // Nothing is made up of what only reports have.
    let text = text::render(&early, &text::Style::default());
    assert!(text.contains("UNKNOWN") && !text.contains("Lost: nothing") && !text.contains("Cost:"), "{text}");
    assert!(text.contains("192 B/s"), "{text}");
    for form in forms::Form::value_variants() {
        let bytes = forms::render(&early, *form, &text::Style::default()).unwrap();
        assert!(!bytes.is_empty(), "{form:?}");
    }
    // And it is told again from its own JSON.
    plausible::parse(&serde_json::to_vec(&early).unwrap(), "x").unwrap();
    // A kill takes a quarter of the time at most.
    for seconds in [1, 2, 3, 9, 20] {
        record(&path, seconds, 1 << 30);
        let ticks = read(&path, None).unwrap().recorded.unwrap().ticks;
        assert!((seconds - seconds / 4..=seconds).contains(&ticks), "{ticks} of {seconds}");
    }
    record(&path, 0, 1 << 30);
    let none = read(&path, None).unwrap_err().to_string();
    assert!(none.contains("has no tick and no report"), "{none}");
    // Nothing is that early.
    let mut late = Recorder::create(&path, &start(), 1 << 30).unwrap();
    late.tick(3_000, START, Vec::new(), describe).unwrap();
    late.flush().unwrap();
    let none = read(&path, Some(1.0)).unwrap_err().to_string();
    assert!(none.contains("has nothing that early: its first tick is 3.0 s after the start"), "{none}");
}

#[test]
fn numbers_that_cannot_be_are_refused_by_their_field() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut recorder = record(&path, 10, 1 << 30);
    let mut edited = report();
    edited.window.duration_s = -4.0;
    recorder.report(&edited).unwrap();
    let said = read(&path, None).unwrap_err().to_string();
    assert!(said.contains("is no report that leaktrace wrote: window.duration_s is -4"), "{said}");
    drop(recorder);
    let mut recorder = record(&path, 0, 1 << 30);
    recorder.tick(u64::MAX, START, vec![Level { site: 7, allocated: 1, live: 1 }], describe).unwrap();
    recorder.flush().unwrap();
    let said = read(&path, None).unwrap_err().to_string();
    assert!(
        said.contains("is no report that leaktrace wrote: recorded.available_kb[0][0] is 184467"),
        "{said}"
    );
}

/// Where each frame begins, and the end.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![MAGIC.len()];
    while let Some(head) = bytes.get(starts[starts.len() - 1]..).filter(|rest| rest.len() > 8) {
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        starts.push(starts[starts.len() - 1] + 8 + length);
    }
    starts
}

#[test]
fn what_was_cut_off_is_read_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    record(&path, 200, 1 << 30);
    let whole = fs::read(&path).unwrap();
    let starts = frames(&whole);
    // Header, and in turn ticks and reports.
    let header_and_ticks = starts[2];
    let (mut reports, mut ticks) = (0, 0);
    for end in (MAGIC.len()..whole.len()).step_by(97).chain(starts.iter().copied()) {
        fs::write(&path, &whole[..end]).unwrap();
        match read(&path, None) {
            Ok(report) => {
                let recorded = report.recorded.unwrap();
                let starts_a_frame = starts.contains(&end);
                assert_eq!(recorded.damage.is_none(), starts_a_frame, "{end}: {:?}", recorded.damage);
                assert_eq!(recorded.report_s.is_some(), recorded.reports > 0);
                reports = reports.max(recorded.reports);
                ticks = ticks.max(recorded.ticks);
                let lost: u64 = recorded.gaps.iter().map(|gap| gap.bytes).sum();
                assert_eq!((recorded.bytes + lost, lost), (end as u64, recorded.bytes_lost));
            }
            Err(error) => assert!(end < header_and_ticks, "{end}: {error}"),
        }
    }
    assert_eq!((reports, ticks), (4, 200));
}

/// Wherever one byte is another, everything else is read, and the gap is named.
#[test]
fn a_damaged_byte_loses_one_frame() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    record(&path, 200, 1 << 30);
    let whole = fs::read(&path).unwrap();
    let starts = frames(&whole);
    let all = (0..starts[1] + 40).chain((0..whole.len()).step_by(97));
    for at in
        all.chain(starts.iter().flat_map(|&start| start.saturating_sub(2)..(start + 13).min(whole.len())))
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        assert!(is_recording(&path).unwrap(), "{at}");
        let report = read(&path, None).unwrap_or_else(|error| panic!("{at}: {error:#}"));
        let recorded = report.recorded.as_ref().unwrap();
        let frame = starts.windows(2).find(|frame| frame[0] <= at && at < frame[1]);
        let (from, to) = frame.map_or((0, MAGIC.len()), |frame| (frame[0], frame[1]));
        let gaps: Vec<_> = recorded.gaps.iter().map(|gap| (gap.at_byte, gap.bytes)).collect();
        assert_eq!(gaps, [(from as u64, (to - from) as u64)], "{at}");
        let damage = recorded.damage.as_ref().unwrap();
        let text = text::render(&report, &text::Style { width: 150, ..text::Style::default() });
        assert!(damage.contains(" of ") && text.contains("DAMAGED  Not readable: "), "{text}");
        assert!(recorded.reports >= 3 && recorded.ticks >= 140 && recorded.until_s >= 149.0, "{recorded:?}");
        if to < whole.len() {
            // Of the header's gap and of each other it is told when that was.
            let (from_s, to_s) = (recorded.gaps[0].from_s, recorded.gaps[0].to_s.unwrap());
            assert!(from_s <= to_s && to_s - from_s <= 62.0, "{at}: {damage}");
        }
    }
}

#[test]
fn only_a_file_with_nothing_whole_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    record(&path, 200, 1 << 30);
    let whole = fs::read(&path).unwrap();
    let starts = frames(&whole);
    // A lost first sector takes the header and the first ticks.
    let mut zeroed = whole.clone();
    zeroed[..starts[1] + 20].fill(0);
    fs::write(&path, &zeroed).unwrap();
    assert!(is_recording(&path).unwrap());
    let recorded = read(&path, None).unwrap().recorded.unwrap();
    assert_eq!((recorded.reports, recorded.gaps.len(), recorded.gaps[0].from_s), (4, 1, 0.0));
    // A crash may leave zeros at the end: no frame, and none of length 0 either.
    let mut longer = whole.clone();
    longer.resize(whole.len() + 100_000, 0);
    fs::write(&path, &longer).unwrap();
    let recorded = read(&path, None).unwrap().recorded.unwrap();
    assert_eq!((recorded.ticks, recorded.bytes_lost, recorded.gaps[0].to_s), (200, 100_000, None));
    // Nothing is whole.
    for end in [MAGIC.len(), MAGIC.len() + 5] {
        fs::write(&path, &whole[..end]).unwrap();
        let said = read(&path, None).unwrap_err().to_string();
        assert!(said.contains("nothing in") && said.lines().count() == 1, "{said}");
    }
    // Of a recording of two files the older one is found by what reports repeat.
    record(&path, 4_000, 60_000);
    let (newer, before) = (fs::read(&path).unwrap(), read(&path, None).unwrap().recorded.unwrap());
    let mut damaged = newer;
    damaged[MAGIC.len() + 20] ^= 1;
    fs::write(&path, damaged).unwrap();
    let recorded = read(&path, None).unwrap().recorded.unwrap();
    assert_eq!((recorded.ticks, recorded.gaps.len()), (before.ticks, 1));
}

/// A file that was made to be searched for long is given up.
#[test]
fn a_hostile_file_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let mut file = MAGIC.to_vec();
    for _ in 0..400_000 {
        // As large as it may be, and packed, but with another sum.
        file.extend(2_000_000_u32.to_le_bytes());
        file.extend([1, 2, 3, 4, 0x28, 0xb5, 0x2f, 0xfd]);
    }
    fs::write(&path, file).unwrap();
    let begun = std::time::Instant::now();
    assert!(read(&path, None).unwrap_err().to_string().contains("nothing in"));
    // Without a bound it would sum up 800 GB.
    assert!(begun.elapsed() < std::time::Duration::from_mins(1), "{:?}", begun.elapsed());
}

#[test]
fn a_full_file_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(older(&path), MAGIC).unwrap();
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
    assert!(read(&path, None).unwrap_err().to_string().contains("nothing in"));
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
