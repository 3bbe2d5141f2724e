//! What the eBPF programs have to say for themselves, on their slow paths.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, LEVEL, Level};
use log::{Log, Metadata, Record};

/// Messages kept between two ticks: each program says a thing once, or a few times on several CPUs.
const MESSAGES: usize = 64;

/// The level below which the verifier removes the messages from the programs.
const SILENT: u8 = 0;

/// Keeps messages until they are asked for.
#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl Kept {
    fn messages(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Kept {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut messages = self.messages();
        if messages.len() < MESSAGES {
            messages.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Decides at load whether the programs speak.
pub(super) fn set_level(loader: &mut EbpfLoader<'_>, verbose: bool) {
    const WARN: u8 = Level::Warn as u8;
    loader.override_global(LEVEL, if verbose { &WARN } else { &SILENT }, true);
}

/// The reader of the programs' messages.
pub(super) struct Messages {
    kept: Arc<Kept>,
    reader: EbpfLogger<Arc<Kept>>,
}

impl Messages {
    /// Opens the ring buffer that the messages come through.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        let kept = Arc::new(Kept::default());
        let reader = EbpfLogger::init_with_logger(ebpf, Arc::clone(&kept))
            .context("cannot read the programs' messages")?;
        Ok(Self { kept, reader })
    }

    /// What was said since the last call.
    pub(super) fn take(&mut self) -> Vec<String> {
        self.reader.flush();
        std::mem::take(&mut *self.kept.messages())
    }
}
