//! Looks at survivors in memory: who in them points to whom, and who points back.

use anyhow::{Result, anyhow};
use leaktrace_common::{FAMILY_PAGE, FAMILY_PERCPU, FAMILY_VMALLOC, FRAGMENT, Payload};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Snapshot, Tracer,
    peek::{PEEK_BYTES, Peeker},
    scan::{self, LiveObject},
};
use crate::analysis::linkage::{Linkage, Span, address_in, pointers_out, points_into};

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
/// Holders of one survivor that are looked at themselves.
const HOLDERS_EACH: usize = 3;

/// How much of physical memory the direct map may show, and where it begins to be memory: below lies
/// what belongs to devices.
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
    words: Vec<u64>,
    time_ns: u64,
    unreadable: bool,
    linked: bool,
    held: bool,
}

/// Reads and compares.
struct Look<'a> {
    peeker: &'a Peeker,
    memory: Vec<Span>,
}

/// Looks at samples of the survivors of some of the snapshot's sites.
///
/// # Errors
/// Says why memory cannot be read.
pub(super) fn look(tracer: &Tracer, snapshot: &Snapshot, which: &[usize]) -> Result<Vec<Linkage>> {
    let peeker = tracer.peeker.as_ref().map_err(|error| anyhow!("{error}"))?;
    let control = tracer.control.read(0);
    let (direct_map, first_page) = (control.page_offset, control.vmemmap);
    if direct_map == 0 || first_page == 0 {
        return Err(anyhow!("where this kernel maps physical memory is not known"));
    }
    let memory = vec![Span::new(direct_map + LOW_MEMORY, DIRECT_MAP), Span::new(first_page, PAGES), IMAGE];
    let page_struct = u64::from(tracer.page_struct.max(1));
    let subject = |family: &str, object: &LiveObject, size: u32| -> (Vec<Span>, Vec<Span>) {
        let size = u64::from(if size == 0 { object.size & !FRAGMENT } else { size });
        let whole = Span::new(object.address, size);
        match family {
            "page" => {
                let frame = object.address.saturating_sub(first_page) / page_struct;
                let page = Span::new(object.address, page_struct);
                let data = Span::new(direct_map + frame * 4_096, u64::from(object.size & !FRAGMENT));
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
    look.find_holders(&holders, &mut subjects)?;
    Ok(ranges
        .into_iter()
        .map(|range| {
            let mut found = Linkage::default();
            for subject in &subjects[range] {
                found.looked_at += u64::from(!subject.unreadable);
                found.unreadable += u64::from(subject.unreadable);
                found.linked += u64::from(subject.linked);
                found.held += u64::from(subject.held && !subject.linked);
            }
            found
        })
        .collect())
}

impl Look<'_> {
    /// Reads the objects' memory.
    fn fill(&self, subjects: &mut [Subject], limit: u64) -> Result<()> {
        let mut places = Vec::new();
        let mut addresses = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            for span in &subject.reads {
                let end = span.end.min(span.start + limit);
                let mut at = span.start & !7;
                while at < end {
                    places.push((index, *span));
                    addresses.push(at);
                    // A read may be moved back at a page's end: then the next one begins with the page.
                    at = (at + PEEK_BYTES).min((at & !4_095) + 4_096);
                }
            }
        }
        self.peeker.read(&addresses, |at, from, words| {
            let (index, span) = places[at];
            let Some(words) = words else {
                subjects[index].unreadable = true;
                return;
            };
            let own = (from..).step_by(8).zip(words).filter(|(address, _)| span.contains(*address));
            subjects[index].words.extend(own.map(|(_, word)| *word));
        })
    }

    /// Follows the objects' pointers, and sees who points back.
    fn link(&self, subjects: &mut [Subject]) -> Result<()> {
        let mut places = Vec::new();
        let mut addresses = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            for pointer in
                pointers_out(&subject.words, &subject.spans, &self.memory).into_iter().take(MOST_POINTERS)
            {
                let page = pointer & !4_095;
                places.push(index);
                addresses.push(pointer.saturating_sub(BEFORE).max(page));
            }
        }
        self.peeker.read(&addresses, |at, from, words| {
            let subject = &mut subjects[places[at]];
            let Some(words) = words else { return };
            // What lies in the object itself is not pointing back to it.
            let elsewhere: Vec<u64> = (from..)
                .step_by(8)
                .zip(words)
                .filter(|(address, _)| !subject.spans.iter().any(|span| span.contains(*address)))
                .map(|(_, word)| *word)
                .collect();
            subject.linked |= points_into(&elsewhere, &subject.spans);
        })
    }

    /// Looks for traced objects that point to survivors and are linked themselves.
    fn find_holders(&self, holders: &[Span], subjects: &mut [Subject]) -> Result<()> {
        let mut spans: Vec<(Span, usize)> = Vec::new();
        for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| !subject.linked) {
            spans.extend(subject.spans.iter().map(|span| (*span, index)));
        }
        if spans.is_empty() {
            return Ok(());
        }
        spans.sort_unstable_by_key(|(span, _)| span.start);
        let pointed_to = |word: u64| {
            let address = address_in(word);
            let at = spans.partition_point(|(span, _)| span.start <= address);
            at.checked_sub(1).map(|at| spans[at]).filter(|(span, _)| span.contains(address))
        };
        let mut held_by: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut those: Vec<Subject> = Vec::new();
        // Not all of them at once: their memory is copied.
        for some in holders.chunks(HOLDERS_AT_A_TIME) {
            let whole =
                |span: &Span| Subject { spans: vec![*span], reads: vec![*span], ..Subject::default() };
            let mut some: Vec<Subject> = some.iter().map(whole).collect();
            self.fill(&mut some, HOLDER_BYTES)?;
            for holder in some {
                let targets: FxHashSet<usize> = holder
                    .words
                    .iter()
                    .filter_map(|&word| pointed_to(word))
                    .filter(|(span, _)| !holder.spans.contains(span))
                    .map(|(_, index)| index)
                    .filter(|index| held_by.get(index).is_none_or(|list| list.len() < HOLDERS_EACH))
                    .collect();
                for &target in &targets {
                    held_by.entry(target).or_default().push(those.len());
                }
                if !targets.is_empty() {
                    those.push(holder);
                }
            }
        }
        self.link(&mut those)?;
        for (target, list) in held_by {
            subjects[target].held = list.iter().any(|&holder| those[holder].linked);
        }
        Ok(())
    }
}

/// Traced slab objects that were allocated at about the same time as these. What the allocators note of what
/// they give out holds nothing: every vmalloc area is in their trees.
fn others(tracer: &Tracer, subjects: &[Subject]) -> Result<Vec<Span>> {
    let sites: FxHashMap<u32, u32> = tracer
        .sites
        .used()
        .filter(|(_, site)| !matches!(site.family, FAMILY_PAGE | FAMILY_VMALLOC | FAMILY_PERCPU))
        .filter(|(_, site)| site.object_size > 8 && !tracer.sites.is_allocators(site))
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
    Ok(objects.into_iter().map(|(address, site)| Span::new(address, u64::from(sites[&site]))).collect())
}
