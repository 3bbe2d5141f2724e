//! Listing: what is allocated at all, before it is known what leads to it.

use anyhow::Result;

use super::{Kind, marking::Surveyor, scan::NOTHING, survey::Surveyed};
use crate::{
    analysis::{blame, objects::Slab},
    proc::kpageflags::{BUDDY, COMPOUND_HEAD, COMPOUND_TAIL, MMAP, RESERVED, SLAB, is_users},
};

/// Caches that are told apart: a kernel has some hundreds.
const MOST_CACHES: usize = u16::MAX as usize;

impl Surveyor<'_, '_> {
    /// Notes all slabs, and which of their objects are allocated.
    pub(super) fn list(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<bool> {
        let done = self.each_chunk(|this| {
            this.scan.find_heads();
            this.note_blocks();
            let memory = this.scan.memory;
            let words = (memory.layout.page.size / 8) as usize;
            for index in 0..this.scan.chunk.heads.len() {
                if this.scan.chunk.heads[index] != Some(index as u32) {
                    continue;
                }
                let page = this.scan.chunk.pages[index * words..(index + 1) * words].to_vec();
                let base = memory.address(this.scan.chunk.first + index as u64);
                let Some(slab) = this.scan.slabs.slab(&page, base) else { continue };
                let Some(cache) = this.scan.slabs.cache(slab.cache).cloned() else { continue };
                let survey = &mut *this.survey;
                let number = *this.numbers.entry(slab.cache).or_insert_with(|| {
                    let is = survey.caches.len() < MOST_CACHES
                        && !blame::is_bookkeeping(&cache.name)
                        && wanted(&cache.name);
                    is.then(|| {
                        survey.caches.push(Surveyed {
                            name: cache.name.clone(),
                            kind: Kind::Slab,
                            caller: None,
                            size: cache.size,
                            own: cache.own,
                            objects: 0,
                            bytes: 0,
                        });
                        (survey.caches.len() - 1) as u16
                    })
                });
                // A single object in a page may be KFENCE's, which lies anywhere in it: it is read as what is no slab's.
                let is_single = slab.objects == 1 && cache.size <= memory.page_bytes;
                let Some(number) = number.filter(|_| !is_single) else { continue };
                let (size, own) = (cache.size as u32, cache.own.min(cache.size) as u32);
                let start = base + cache.pad;
                // Red zones before the first object shift the last one to the end of its slot.
                let known = Slab::new(start, (size, own), slab.objects as u16, number);
                // The allocator's own arrays hold nothing, and it links them to each other only.
                let is_allocated = |nth: u16| {
                    let address = start + u64::from(nth) * cache.size;
                    !slab.is_free(address) && !this.scan.slabs.is_sheaf(address)
                };
                survey.bytes += slab.objects * cache.size;
                survey.not_noted += u64::from(!survey.objects.add(known, is_allocated));
            }
            Ok(())
        })?;
        self.survey.objects.finish();
        Ok(done)
    }

    /// Notes compound pages that are neither slab's, nor a user's, nor an area's.
    fn note_blocks(&mut self) {
        let scan = &self.scan;
        let chunk = &scan.chunk;
        let is_one = |index: usize| {
            let (flags, frame) = (chunk.flags[index], chunk.first + index as u64);
            flags & COMPOUND_HEAD != 0
                && flags & (SLAB | BUDDY | RESERVED | MMAP | NOTHING) == 0
                && !is_users(flags)
                && chunk.heads[index].is_none()
                && scan.areas.of_frame(frame).is_none()
                && !scan.stacks.contains(&frame)
        };
        for index in (0..chunk.flags.len()).filter(|&index| is_one(index)) {
            let is_tail = |flags: &&u64| **flags & COMPOUND_TAIL != 0;
            let pages = 1 + chunk.flags[index + 1..].iter().take_while(is_tail).count() as u64;
            self.blocks.add_pages(scan.memory, chunk.first + index as u64, pages);
        }
    }
}
