//! Reports of how a trace stands.

use std::{path::Path, time::Instant};

use anyhow::Result;

use super::{
    assemble::{self, Before, Judgement},
    objects,
    session::Session,
};
use crate::{analysis::verdict::Verdict, report::model::Report, tracer::Snapshot};

impl Session {
    /// Judges what a snapshot shows.
    pub(super) fn judge<'a>(&self, snapshot: &'a Snapshot, shaken: Option<&Before>) -> Judgement<'a> {
        let look = |snapshot: &Snapshot, which: &[usize], modules: &[&str]| {
            self.tracer.linkage(snapshot, which, modules, &self.surroundings.data)
        };
        assemble::judge(snapshot, &self.surroundings, shaken, &look)
    }

    /// The report on how things stand now, while tracing goes on.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn look(&mut self) -> Result<Report> {
        self.surroundings.refresh(Path::new("/"));
        let snapshot = self.tracer.snapshot()?;
        self.report(&snapshot, None)
    }

    /// The report on a snapshot, with the objects of leaks and suspects.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn report(&mut self, snapshot: &Snapshot, shaken: Option<&Before>) -> Result<Report> {
        let begun = Instant::now();
        self.admit();
        self.note_absent();
        let judgement = self.judge(snapshot, shaken);
        let baseline = self.baseline.as_ref();
        let report = assemble::report(snapshot, judgement, shaken, &self.surroundings, baseline);
        self.complete(snapshot, report, begun)
    }

    /// The same, if a leak is certain that no baseline has.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn report_of_leak(&mut self, snapshot: &Snapshot) -> Result<Option<Report>> {
        let begun = Instant::now();
        self.admit();
        self.note_absent();
        let judgement = self.judge(snapshot, None);
        if judgement.judged.iter().all(|judged| judged.evidence.verdict() != Verdict::Leak) {
            return Ok(None);
        }
        let report = assemble::report(snapshot, judgement, None, &self.surroundings, self.baseline.as_ref());
        (report.headline.verdict == "leak").then(|| self.complete(snapshot, report, begun)).transpose()
    }

    fn complete(&mut self, snapshot: &Snapshot, mut report: Report, begun: Instant) -> Result<Report> {
        objects::list(&mut self.tracer, snapshot, &self.surroundings, &mut report)?;
        report.overhead.ranking_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(report)
    }
}
