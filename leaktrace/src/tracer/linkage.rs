//! Looks at survivors in memory: who in them points to whom, and who points back.

use std::path::Path;

use anyhow::{Result, anyhow};
use leaktrace_common::{FAMILY_PAGE, FAMILY_PERCPU, FAMILY_VMALLOC, FRAGMENT, Payload};
use rustc_hash::FxHashMap;

use super::{
    Snapshot, Tracer, names,
    peek::{self, Peeker},
    scan::{self, LiveObject},
};
use crate::{
    analysis::{
        blame,
        linkage::{Linkage, Span, address_in, in_common, offset_in, pointers_out},
    },
    kernel::{data::DataPlaces, machine::page_bytes},
};

/// Bytes that are read of one object.
const OBJECT_BYTES: u64 = 4_096;
/// Pointers that are followed of one object.
const MOST_POINTERS: usize = 96;
/// Bytes before the place that is pointed to that are looked at, too: the pointer back need not lie
/// behind it.
const BEFORE: u64 = 56;
/// What holds an object is mostly allocated with it: so near in time, which is that of a timer tick, other traced
/// objects are looked at for pointers to survivors.
const NEAR_NS: u64 = 12_000_000;
/// So many of them at most; if there are more, fewer survivors are looked at.
const MOST_HOLDERS: usize = 40_000;
/// Bytes that are read of each, and how many are read at a time.
const HOLDER_BYTES: u64 = 2_048;
const HOLDERS_AT_A_TIME: usize = 1_024;
/// Survivors of each site that are looked at, in the order in which it is tried.
const EACH: [usize; 3] = [24, 12, 6];

/// Bytes of one range of data that are read at most.
const MOST_DATA: u64 = 64 << 20;

/// Of x86-64: how much of physical memory the direct map may show, and where it begins to be memory: below
/// lies what belongs to devices.
const DIRECT_MAP: u64 = 1 << 46;
const LOW_MEMORY: u64 = 1 << 20;
/// How much `struct page`s may take.
const PAGES: u64 = 1 << 40;
/// The kernel's image and modules on x86-64 (`Documentation/arch/x86/x86_64/mm.rst`), without the
/// fixed mappings behind them, some of which are of devices.
const IMAGE: Span = Span { start: 0xffff_ffff_8000_0000, end: 0xffff_ffff_ff00_0000 };

/// An object that is looked at.
#[derive(Clone, Debug, Default)]
struct Subject {
    /// Where it is, and of pages also where its `struct page` is.
    spans: Vec<Span>,
    /// The part of that which may be read: not of vmalloc areas, which may be a device's registers.
    reads: Vec<Span>,
    /// Its words by their offsets.
    words: Vec<(u64, u64)>,
    time_ns: u64,
    unreadable: bool,
    /// Links that are answered: the offset of the pointer, and that of what points back.
    links: Vec<(u64, u64)>,
    /// Who points to it, and to which offset.
    holders: Vec<(Holder, u64)>,
    /// Whether it has the link that most of its site have.
    linked: bool,
}

/// What points to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Holder {
    /// Data of the kernel or a module.
    Data,
    /// A linked object of this site.
    Site(u32),
}

/// What was found of one site's objects.
fn summary(subjects: &[Subject]) -> Linkage {
    let holder = in_common(&subjects.iter().map(|subject| &*subject.holders).collect::<Vec<_>>());
    let mut found = Linkage::default();
    for subject in subjects {
        let held = holder.is_some_and(|holder| subject.holders.contains(&holder));
        found.looked_at += u64::from(!subject.unreadable);
        found.unreadable += u64::from(subject.unreadable);
        found.linked += u64::from(subject.linked);
        found.held += u64::from(held && !subject.linked);
    }
    found
}

/// Which unlinked object lies where.
struct Places(Vec<(Span, usize)>);

impl Places {
    fn of(subjects: &[Subject]) -> Self {
        let mut places: Vec<(Span, usize)> = Vec::new();
        let loose = |subject: &Subject| !subject.linked;
        for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| loose(subject)) {
            places.extend(subject.spans.iter().map(|span| (*span, index)));
        }
        places.sort_unstable_by_key(|(span, _)| span.start);
        Self(places)
    }

    /// The object that a word points into, and where.
    fn pointed_to(&self, word: u64, subjects: &[Subject]) -> Option<(usize, u64)> {
        let address = address_in(word);
        let at = self.0.partition_point(|(span, _)| span.start <= address).checked_sub(1)?;
        let index = self.0[at].1;
        Some((index, offset_in(address, &subjects[index].spans)?))
    }
}

/// Data of the kernel's image, by way of the direct map, and of modules. kmemleak has notes on every object in the
/// image's data: with it, only modules are asked.
///
/// # Errors
/// When the kernel hides where some of it is: what was not looked at cannot be said to hold nothing.
fn data(places: &DataPlaces, direct_map: u64, modules: &[&str], snapshot: &Snapshot) -> Result<Vec<Span>> {
    let noted = snapshot.sites.iter().any(|site| blame::is_bookkeeping(&site.cache));
    let mut ranges = if noted { Vec::new() } else { places.image(direct_map)? };
    for module in modules {
        ranges.extend(places.of_module(Path::new("/"), module)?);
    }
    let mut spans: Vec<Span> = ranges.into_iter().map(|(start, end)| Span { start, end }).collect();
    spans.sort_unstable_by_key(|span| span.start);
    // Sections overlap, because each is taken to be as large as its module.
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    for span in &mut merged {
        span.end = span.end.min(span.start + MOST_DATA);
    }
    Ok(merged)
}

/// Reads and compares.
struct Look<'a> {
    peeker: &'a Peeker,
    memory: Vec<Span>,
}

/// What reads memory, the begin of the direct map, and the first `struct page`.
///
/// # Errors
/// Says why memory cannot be read.
pub(super) fn ways(tracer: &Tracer) -> Result<(&Peeker, u64, u64), String> {
    let peeker = tracer.peeker.as_ref().map_err(Clone::clone)?;
    let control = tracer.control.read(0);
    if control.page_offset == 0 || control.vmemmap == 0 {
        return Err("where this kernel maps physical memory is not known".to_owned());
    }
    Ok((peeker, control.page_offset, control.vmemmap))
}

/// Looks at samples of the survivors of some of the snapshot's sites.
///
/// # Errors
/// Says why memory cannot be read.
pub(super) fn look(
    tracer: &Tracer,
    snapshot: &Snapshot,
    which: &[usize],
    modules: &[&str],
    places: &DataPlaces,
) -> Result<Vec<Linkage>> {
    let (peeker, direct_map, first_page) = ways(tracer).map_err(|reason| anyhow!("{reason}"))?;
    let data = data(places, direct_map, modules, snapshot)?;
    let memory = tracer.memory.as_ref().map_or_else(
        || vec![Span::new(direct_map + LOW_MEMORY, DIRECT_MAP), Span::new(first_page, PAGES), IMAGE],
        |map| map.readable.clone(),
    );
    let page_struct = u64::from(tracer.page_struct.max(1));
    let subject = |family: &str, object: &LiveObject, size: u32| -> (Vec<Span>, Vec<Span>) {
        let size = u64::from(if size == 0 { object.size & !FRAGMENT } else { size });
        let whole = Span::new(object.address, size);
        match family {
            "page" => {
                let frame = object.address.saturating_sub(first_page) / page_struct;
                let page = Span::new(object.address, page_struct);
                let data = Span::new(
                    direct_map.wrapping_add(frame * page_bytes()),
                    u64::from(object.size & !FRAGMENT),
                );
                (vec![page, data], vec![page, data])
            }
            "vmalloc" | "percpu" => (vec![whole], Vec::new()),
            _ => (vec![whole], vec![whole]),
        }
    };
    let subject = |family: &str, object: &LiveObject, size: u32| {
        let (spans, reads) = subject(family, object, size);
        Subject { spans, reads, time_ns: object.time_ns, ..Subject::default() }
    };
    let mut subjects: Vec<Subject> = Vec::new();
    let mut ranges = Vec::with_capacity(which.len());
    let mut holders = Vec::new();
    for each in EACH {
        subjects.clear();
        ranges.clear();
        for &index in which {
            let record = &snapshot.sites[index];
            let begin = subjects.len();
            let size = if record.is_slab { record.object_size } else { 0 };
            let samples = record.samples.iter().take(each);
            subjects.extend(samples.map(|object| subject(record.family, object, size)));
            ranges.push(begin..subjects.len());
        }
        holders = others(tracer, &subjects)?;
        if holders.len() < MOST_HOLDERS {
            break;
        }
    }
    let look = Look { peeker, memory };
    look.fill(&mut subjects, OBJECT_BYTES)?;
    look.link(&mut subjects)?;
    for range in &ranges {
        let link =
            in_common(&subjects[range.clone()].iter().map(|subject| &*subject.links).collect::<Vec<_>>());
        for subject in &mut subjects[range.clone()] {
            subject.linked = link.is_some_and(|link| subject.links.contains(&link));
        }
    }
    look.find_in_data(&data, &mut subjects)?;
    look.find_holders(&holders, &mut subjects)?;
    Ok(ranges.into_iter().map(|range| summary(&subjects[range])).collect())
}

impl Look<'_> {
    /// Reads the objects' memory.
    fn fill(&self, subjects: &mut [Subject], limit: u64) -> Result<()> {
        let mut places = Vec::new();
        let mut addresses = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            for span in &subject.reads {
                for at in peek::reads(span.start, span.end.min(span.start + limit)) {
                    places.push((index, *span));
                    addresses.push(at);
                }
            }
        }
        self.peeker.read(&addresses, |at, from, words| {
            let (index, span) = places[at];
            let Some(words) = words else {
                subjects[index].unreadable = true;
                return;
            };
            let subject = &mut subjects[index];
            for (address, word) in
                (from..).step_by(8).zip(words).filter(|(address, _)| span.contains(*address))
            {
                subject.words.extend(offset_in(address, &subject.spans).map(|offset| (offset, *word)));
            }
        })
    }

    /// Follows the objects' pointers, and sees who points back.
    fn link(&self, subjects: &mut [Subject]) -> Result<()> {
        let mut places = Vec::new();
        let mut addresses = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            let out = pointers_out(&subject.words, &subject.spans, &self.memory);
            for (offset, pointer) in out.into_iter().take(MOST_POINTERS) {
                let page = pointer & !4_095;
                places.push((index, offset));
                addresses.push(pointer.saturating_sub(BEFORE).max(page));
            }
        }
        self.peeker.read(&addresses, |at, from, words| {
            let (index, offset) = places[at];
            let subject = &mut subjects[index];
            let Some(words) = words else { return };
            for (address, word) in (from..).step_by(8).zip(words) {
                // What lies in the object itself is not pointing back to it.
                if offset_in(address, &subject.spans).is_none()
                    && let Some(back) = offset_in(address_in(*word), &subject.spans)
                {
                    subject.links.push((offset, back));
                }
            }
        })
    }

    /// Looks for data of the kernel and its modules that points to survivors.
    fn find_in_data(&self, data: &[Span], subjects: &mut [Subject]) -> Result<()> {
        let places = Places::of(subjects);
        for span in data {
            let addresses: Vec<u64> = peek::reads(span.start, span.end).collect();
            self.peeker.read(&addresses, |_, _, words| {
                for &word in words.into_iter().flatten() {
                    if let Some((index, offset)) = places.pointed_to(word, subjects) {
                        subjects[index].holders.push((Holder::Data, offset));
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Looks for traced objects that point to survivors and are linked themselves.
    fn find_holders(&self, holders: &[(Span, u32)], subjects: &mut [Subject]) -> Result<()> {
        let places = Places::of(subjects);
        let mut those: Vec<Subject> = Vec::new();
        let mut sites: Vec<u32> = Vec::new();
        let mut targets: Vec<(usize, usize, (Holder, u64))> = Vec::new();
        // Not all of them at once: their memory is copied.
        for some in holders.chunks(HOLDERS_AT_A_TIME) {
            let whole = |(span, _): &(Span, u32)| Subject {
                spans: vec![*span],
                reads: vec![*span],
                ..Subject::default()
            };
            let mut read: Vec<Subject> = some.iter().map(whole).collect();
            self.fill(&mut read, HOLDER_BYTES)?;
            for (holder, (span, site)) in read.into_iter().zip(some) {
                let before = targets.len();
                for &(_, word) in &holder.words {
                    if let Some((index, offset)) = places.pointed_to(word, subjects)
                        && !subjects[index].spans.contains(span)
                    {
                        targets.push((those.len(), index, (Holder::Site(*site), offset)));
                    }
                }
                if targets.len() > before {
                    those.push(holder);
                    sites.push(*site);
                }
            }
        }
        self.link(&mut those)?;
        // As of survivors, only links count that most objects of the holders' site have.
        let mut of_site: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
        for (index, &site) in sites.iter().enumerate() {
            of_site.entry(site).or_default().push(index);
        }
        let mut linked = vec![false; those.len()];
        for group in of_site.values() {
            let links: Vec<_> = group.iter().map(|&index| &*those[index].links).collect();
            let Some(link) = in_common(&links) else { continue };
            let with: Vec<usize> =
                group.iter().copied().filter(|&index| those[index].links.contains(&link)).collect();
            if with.len() * 2 >= group.len() {
                for index in with {
                    linked[index] = true;
                }
            }
        }
        for (holder, target, by) in targets {
            if linked[holder] {
                subjects[target].holders.push(by);
            }
        }
        Ok(())
    }
}

/// Traced slab objects that were allocated at about the same time as these. What the allocators note of what
/// they give out holds nothing: every vmalloc area is in their trees.
fn others(tracer: &Tracer, subjects: &[Subject]) -> Result<Vec<(Span, u32)>> {
    let sites: FxHashMap<u32, u32> = tracer
        .sites
        .used()
        .filter(|(_, site)| !matches!(site.family, FAMILY_PAGE | FAMILY_VMALLOC | FAMILY_PERCPU))
        .filter(|(_, site)| site.object_size > 8 && !tracer.sites.is_allocators(site))
        .filter(|(_, site)| !blame::is_bookkeeping(&names::cache_name(site, true)))
        .map(|(index, site)| (index as u32, site.object_size))
        .collect();
    let mut times: Vec<u64> = subjects.iter().map(|subject| subject.time_ns).collect();
    times.sort_unstable();
    let near = |payload: &Payload| {
        let at = times.partition_point(|&time| time < payload.time_ns.saturating_sub(NEAR_NS));
        sites.contains_key(&payload.site)
            && times.get(at).is_some_and(|&time| time <= payload.time_ns.saturating_add(NEAR_NS))
    };
    let overflow = tracer.overflowed()?;
    let objects = scan::some_objects(&tracer.live, &overflow, MOST_HOLDERS, near);
    let span = |address, site| Span::new(address, u64::from(sites[&site]));
    Ok(objects.into_iter().map(|(address, site)| (span(address, site), site)).collect())
}
