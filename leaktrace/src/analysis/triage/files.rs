//! Growth by open files, and of files in memory.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Culprit, Details, Diagnosis, Kind, Observation, Ranked,
    growing::{FLOOR_KB, how},
    ledger::Class,
    processes::{counted, growers, tell_the_rest},
    trend::Trend,
};
use crate::units;

/// Processes that are named at most.
const NAMED: usize = 3;
/// Files by which a process has to grow: all the time, or at once.
const STEADY: f64 = 8.0;
const STEP: f64 = 100.0;
/// kB that an open file takes at least: a `struct file`, and mostly an inode and a name.
const FILE_KB: f64 = 1.0;
/// A cache whose objects grew by so many for each open file grew because of them.
const FEWEST_EACH: f64 = 0.4;
const MOST_EACH: f64 = 2.5;
/// Objects below which nothing is explained.
const EXPLAINED: f64 = 50.0;

/// What open files tell.
pub(super) struct Fds {
    /// Processes that leak them.
    pub(super) found: Vec<Ranked>,
    /// Slab caches that grew because of them.
    pub(super) explained: Vec<String>,
}

/// Processes that open files and keep them.
pub(super) fn fds(seen: &Observation) -> Fds {
    let trends = seen.suspects(|process| process.fds.map_or(0.0, f64::from));
    let mut growers = growers(trends, STEADY);
    growers.retain(|(_, trend)| trend.steady || trend.change() >= STEP);
    let opened: f64 = growers.iter().map(|(_, trend)| trend.change()).sum();
    let explained = explained(seen, opened);
    let slab_kb: f64 = explained.values().sum();
    let rest = growers.len().saturating_sub(NAMED);
    let mut found: Vec<Ranked> = growers
        .into_iter()
        .take(NAMED)
        .map(|(pid, trend)| {
            let share = trend.change() / opened;
            let caches: Vec<&str> = explained.keys().map(String::as_str).collect();
            one(seen, pid, &trend, (&caches, slab_kb * share))
        })
        .collect();
    tell_the_rest(&mut found, rest, "open files and keep them");
    Fds { found, explained: explained.into_keys().collect() }
}

/// Caches that grew by about as many objects as files were opened, and by how many kB.
fn explained(seen: &Observation, opened: f64) -> BTreeMap<String, f64> {
    let (Some(before), Some(after)) = (&seen.first().caches, &seen.last().caches) else {
        return BTreeMap::new();
    };
    let grown = after.iter().filter_map(|(name, cache)| {
        let objects =
            cache.active_objects as f64 - before.get(name).map_or(0.0, |cache| cache.active_objects as f64);
        let because = objects >= EXPLAINED && (opened * FEWEST_EACH..=opened * MOST_EACH).contains(&objects);
        because.then(|| (name.clone(), objects * f64::from(cache.object_size) / 1_024.0))
    });
    grown.collect()
}

fn one(seen: &Observation, pid: u32, trend: &Trend, (caches, slab_kb): (&[&str], f64)) -> Ranked {
    let nothing = Details::default();
    let details = seen.details.get(&pid).unwrap_or(&nothing);
    let kinds = leaking_kinds(details);
    let what = in_words(&kinds, trend.after);
    let kind = kinds.into_iter().next().filter(|(_, count)| *count as f64 * MOSTLY >= trend.after);
    let mut text = format!(
        "{} (pid {pid}) opens files and does not close them: {} more in {}, {} in all, {what}.",
        seen.comm(pid),
        units::count(trend.change() as u64),
        units::seconds(seen.duration_s()),
        units::count(trend.after as u64)
    );
    if let Some((kind, _)) = &kind {
        text += &meaning(details, kind);
    }
    if slab_kb >= 64.0 {
        let grew = units::bytes(slab_kb * 1_024.0);
        let _ =
            write!(text, " The slab caches behind them grew with them, by {grew}: {}.", caches.join(", "));
    }
    if let Some(limit) = details.max_fds
        && trend.per_s > 0.0
        && trend.after < limit as f64
    {
        let left = units::seconds((limit as f64 - trend.after) / trend.per_s);
        let _ = write!(text, " At this rate it reaches its limit of {} in {left}.", units::count(limit));
    }
    let next = match kind.as_ref().map(|(kind, _)| kind.as_str()) {
        Some("socket") => vec![
            format!("ss -anp | grep pid={pid},"),
            format!("strace -f -k -e trace=socket,accept4,close -p {pid}"),
        ],
        Some("pipe") => {
            vec![format!("strace -f -k -e trace=pipe2,close -p {pid}   (-k shows who opens them)")]
        }
        Some("deleted file") => {
            vec![format!("lsof -a +L1 -p {pid}"), format!("ls -l /proc/{pid}/fd | grep deleted")]
        }
        _ => vec![format!("ls -l /proc/{pid}/fd"), format!("strace -f -k -e trace=desc -p {pid}")],
    };
    let culprit = Culprit {
        pid: Some(pid),
        comm: Some(seen.comm(pid).into()),
        file_kind: kind.map(|(kind, _)| kind),
        ..Culprit::default()
    };
    let each_kb = (slab_kb / trend.change()).max(FILE_KB);
    (trend.change() * each_kb, counted(Kind::Fds, culprit, text, next, trend, each_kb))
}

/// A kind of files of which there are so much fewer than of all is not what most are.
const MOSTLY: f64 = 4.0;

/// The kinds of files that there are more of, or most of, and how many there are: the first, and what grew half as much or more
/// with it.
fn leaking_kinds(details: &Details) -> Vec<(String, u64)> {
    let Some(files) = &details.files else { return Vec::new() };
    let before = details.files_before.as_ref().map(|files| &files.kinds);
    let grown = |(kind, files): &(&String, &crate::proc::fds::Kind)| {
        let before = before.and_then(|kinds| kinds.get(*kind)).map_or(0, |files| files.count);
        files.count as i64 - before as i64
    };
    let mut kinds: Vec<_> = files.kinds.iter().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(grown(kind)));
    let Some(most) = kinds.first().map(grown) else { return Vec::new() };
    let with_it =
        kinds.iter().enumerate().filter(|(index, kind)| *index == 0 || grown(kind) * 2 > most.max(1));
    with_it.take(2).map(|(_, (kind, files))| ((*kind).clone(), files.count)).collect()
}

/// Which kinds they are, of so many in all.
fn in_words(kinds: &[(String, u64)], all: f64) -> String {
    let counted: Vec<String> =
        kinds.iter().map(|(kind, count)| format!("{kind}s ({} now)", units::count(*count))).collect();
    match kinds {
        [] => "of which kind could not be read".to_owned(),
        [(_, count), ..] if (*count as f64 * MOSTLY) < all => "of several kinds".to_owned(),
        _ => format!("mostly {}", counted.join(" and ")),
    }
}

/// What a kind of open files means.
fn meaning(details: &Details, kind: &str) -> String {
    if kind == "socket"
        && let Some((state, count)) = details.sockets.iter().max_by_key(|(_, count)| **count)
    {
        let why =
            if state == "TCP CLOSE_WAIT" { ": the peer has closed, and this program has not" } else { "" };
        return format!(" Most sockets are {state} ({}){why}.", units::count(*count));
    }
    let files = details.files.as_ref().and_then(|files| files.kinds.get(kind));
    match files {
        Some(files) if files.bytes > 0 => format!(
            " They have no name any more and still take {}, until they are closed.",
            units::bytes(files.bytes as f64)
        ),
        Some(files) if !files.examples.is_empty() => format!(" For example {}.", files.examples.join(", ")),
        _ => String::new(),
    }
}

/// Growth of tmpfs and shared memory, and where it is.
pub(super) fn shmem(seen: &Observation) -> Vec<Ranked> {
    let total = seen.class_trend(Class::Shmem);
    if total.change() < FLOOR_KB {
        return Vec::new();
    }
    let mut mounts: Vec<_> = seen
        .last()
        .mounts
        .iter()
        .map(|mount| {
            let used = |look: &super::Look| {
                let same = look.mounts.iter().find(|other| other.path == mount.path);
                same.map_or(0.0, |mount| mount.used_kb as f64)
            };
            (mount, seen.trend(|look| Some(used(look))))
        })
        .filter(|(_, trend)| trend.change() >= FLOOR_KB)
        .collect();
    mounts.sort_by(|a, b| b.1.change().total_cmp(&a.1.change()));
    if let Some((mount, trend)) = mounts.first()
        && trend.change() * 2.0 >= total.change()
    {
        let path = mount.path.to_string_lossy().into_owned();
        let limit = if mount.limit_kb > 0 {
            format!(" of the {} that it may have", units::bytes(mount.limit_kb as f64 * 1_024.0))
        } else {
            String::new()
        };
        let text = format!(
            "Files on {path} ({}) are in memory: they {}, to {}{limit}. Nothing but deleting them frees it.",
            mount.kind,
            how(trend, seen.duration_s()).replacen("grows", "grow", 1),
            units::bytes(trend.after * 1_024.0)
        );
        let next = vec![
            format!("du -xah {} | sort -h | tail", quoted(&path)),
            format!("lsof -a +L1 {}   (deleted, but still open)", quoted(&path)),
        ];
        let culprit = Culprit { path: Some(path), ..Culprit::default() };
        return vec![(trend.change(), Diagnosis::new(Kind::Tmpfs, culprit, text, next).grown(trend))];
    }
    vec![shared(seen, &total)]
}

/// Shared memory that is on no mounted file system.
fn shared(seen: &Observation, total: &Trend) -> Ranked {
    let growers = growers(seen.process_trends(|process| f64::from(process.shmem_kb)), FLOOR_KB);
    let held = growers.first().filter(|(_, trend)| trend.change() * 2.0 >= total.change());
    let how = how(total, seen.duration_s());
    let now = units::bytes(total.after * 1_024.0);
    let (culprit, text, next) = match held {
        Some((pid, trend)) => (
            Culprit { pid: Some(*pid), comm: Some(seen.comm(*pid).into()), ..Culprit::default() },
            format!(
                "Shared memory {how}, to {now}: {} (pid {pid}) has {} more of it than before.",
                seen.comm(*pid),
                units::bytes(trend.change() * 1_024.0)
            ),
            vec![format!("leaktrace triage --pid {pid}"), "ipcs -mp   (System V's)".into()],
        ),
        None => (
            Culprit::default(),
            format!(
                "Shared memory {how}, to {now}, on no file system that is mounted here and mapped by no process: memfd, \
                 deleted files, System V segments, or a tmpfs of another mount namespace."
            ),
            vec!["ipcs -m; lsof -n | grep -e memfd -e deleted".into()],
        ),
    };
    (total.change(), Diagnosis::new(Kind::SharedMemory, culprit, text, next).grown(total))
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
