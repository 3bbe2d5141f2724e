//! What is read around a trace, at its beginning and again at its end.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use procfs::{Current as _, Meminfo};

use super::prove::{self, Proofs};
use crate::{
    analysis::{accounts::Accounts, steps::Offers, verdict::Proven},
    kernel::{
        data::DataPlaces,
        machine::{Machine, page_bytes},
        places::Places,
    },
    proc::{
        profile,
        slab::{self, CacheTraits, SlabCache},
    },
    report::model::{Filters, Object, ReachSide},
    tracer::{LiveObject, SiteRecord, Snapshot},
};

/// How much is told, and of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// Age from which a live object counts as a survivor.
    pub(super) min_age: Duration,
    /// Findings; leaks are told however many there are.
    pub(super) findings: usize,
    /// Frames of a stack.
    pub(super) frames: usize,
}

/// What was read around the trace.
pub(super) struct Surroundings {
    pub(super) started: String,
    pub(super) machine: Machine,
    pub(super) slabinfo: Option<(BTreeMap<String, SlabCache>, BTreeMap<String, SlabCache>)>,
    pub(super) traits: HashMap<String, CacheTraits>,
    pub(super) memory: (Meminfo, Meminfo),
    pub(super) places: Places,
    pub(super) data: DataPlaces,
    pub(super) no_page_lookup: Option<String>,
    pub(super) slabinfo_error: Option<String>,
    pub(super) scope: Scope,
    /// What may be advised here.
    pub(super) offers: Offers,
    /// What is recorded, where that is not everything.
    pub(super) filters: Filters,
    /// What the kernel's own accounts had at the beginning and at the end, where it keeps them.
    pub(super) accounts: Option<(profile::Places, Accounts)>,
    /// What looking for pointers in memory found, if anybody looked.
    pub(super) proofs: Option<Proofs>,
}

impl Surroundings {
    /// What was found in memory of a site's survivors.
    pub(super) fn reachability(&self, site: &SiteRecord) -> Option<&ReachSide> {
        self.proofs.as_ref()?.sides.get(&(site.site, site.owner.unwrap_or(0)))
    }

    /// The same as numbers; none where nothing was finished.
    pub(super) fn proven(&self, site: &SiteRecord) -> Option<Proven> {
        let side = self.reachability(site)?;
        Some(Proven { checked: side.candidates, orphans: side.orphans, held: side.held, free: side.free })
    }

    /// One object of a site, as it is reported.
    pub(super) fn object(&self, object: &LiveObject, site: &SiteRecord, snapshot: &Snapshot) -> Object {
        let outcome = self.proofs.as_ref().and_then(|proofs| proofs.outcomes.get(&object.address));
        Object {
            address: object.address,
            size: if object.size == 0 { site.object_size } else { object.size },
            age_s: snapshot.taken_ns.saturating_sub(object.time_ns) as f64 / 1e9,
            reach: outcome.map(|outcome| prove::word(*outcome).into()),
        }
    }

    /// Reads again what changes meanwhile.
    pub(super) fn refresh(&mut self, root: &Path) {
        if let Some((_, after)) = &mut self.slabinfo
            && let Ok(now) = slab::read_slabinfo(root)
        {
            *after = now;
        }
        if let Ok(now) = Meminfo::current() {
            self.memory.1 = now;
        }
        if let Some((before, accounts)) = &mut self.accounts
            && let Some(now) = profile::read(root, page_bytes())
        {
            *accounts = Accounts::new(before, &now);
        }
        self.places.refresh();
    }
}
