//! How large the tables are: decided once, at load, from the machine and the user's word.

use std::time::Duration;

use anyhow::{Result, bail};
use leaktrace_common::{BUCKET_SLOTS, Bucket, Counters, CpuState, Payload, Site, StackRecord};

use crate::{kernel::machine::Machine, units};

/// Sizes of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Outstanding objects that are tracked before sampling begins.
    pub max_objects: u64,
    /// Buckets of the live table; a power of two.
    pub buckets: u32,
    /// Entries of the overflow map.
    pub overflow: u32,
    /// Allocation sites; a power of two.
    pub sites: u32,
    /// Distinct stacks; a power of two.
    pub stacks: u32,
    /// Copies of each site's counters; a power of two.
    pub shards: u32,
    /// CPUs that the machine may have.
    pub cpus: u32,
}

/// The live table takes this share of memory unless the user says otherwise...
const MEMORY_SHARE: u64 = 256;
/// ...but at least and at most this much.
const LIVE_BYTES: std::ops::RangeInclusive<u64> = 2 << 20..=64 << 20;
/// All the tables together may take this share of the memory that is available.
const AVAILABLE_SHARE: u64 = 2;
/// What the counters, which are kept for each CPU, may take at most.
const COUNTER_BYTES: u64 = 128 << 20;
/// The table is sized for half its slots: fuller buckets overflow more often.
const SLOTS_PER_OBJECT: u64 = 2;
/// What one entry of the overflow hash map takes: bucket, element header, key and payload.
const OVERFLOW_ENTRY_BYTES: u64 = 96;
/// What one entry of the task names takes, and how many there are.
const TASK_BYTES: u64 = 8_192 * 88;
/// A traced allocation that is kept takes a CPU longer than this.
const FASTEST_ALLOCATION_NS: u64 = 200;
/// Looking at the tables more often than this would cost more than it saves.
const RELIEF_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(1);
/// Modules' code and events, and what probed functions were called with.
const MODULE_BYTES: u64 = 256 * 64 + 32 * 16 + 16 * 128 + 1_024 * 96;
/// Who frees the objects of which site, with what a hash map's entry takes beside, and the reads of memory.
const LOOK_BYTES: u64 = leaktrace_common::MAX_FREE_CALLERS as u64 * 80
    + leaktrace_common::MAX_PEEKS as u64 * size_of::<leaktrace_common::Peek>() as u64;
/// The ring buffer of the programs' messages.
const LOG_BYTES: u64 = 1 << 17;
/// The buffers in which each CPU captures stacks.
const SCRATCH_BYTES: u64 = 8 * 512;

impl Sizes {
    /// Chooses sizes for a machine.
    ///
    /// # Errors
    /// When what the user asks for would take more than half of the available memory.
    pub fn choose(machine: &Machine, max_objects: Option<u32>) -> Result<Self> {
        let slots = if let Some(objects) = max_objects {
            u64::from(objects) * SLOTS_PER_OBJECT
        } else {
            let share = (machine.memory / MEMORY_SHARE).clamp(*LIVE_BYTES.start(), *LIVE_BYTES.end());
            let bytes = share.min(machine.available / 16).max(1 << 18);
            // Rounded down to a power of two; what the user asks for is rounded up.
            1 << (bytes / size_of::<Bucket>() as u64 * BUCKET_SLOTS as u64).ilog2()
        };
        let buckets = slots.div_ceil(BUCKET_SLOTS as u64).next_power_of_two() as u32;
        // A machine of less than 1 GiB has few drivers, and nothing to give away.
        let small = machine.memory < 1 << 30;
        let sites: u32 = if small { 4_096 } else { 16_384 };
        let cell_bytes = u64::from(sites) * size_of::<Counters>() as u64;
        let most_shards = (COUNTER_BYTES / cell_bytes).max(1);
        let shards = u64::from(machine.possible_cpus).next_power_of_two().min(most_shards) as u32;
        let sizes = Self {
            max_objects: max_objects.map_or(slots / SLOTS_PER_OBJECT, u64::from),
            buckets,
            overflow: (u64::from(buckets) * BUCKET_SLOTS as u64 / 32).clamp(256, 65_536) as u32,
            sites,
            stacks: if small { 4_096 } else { 16_384 },
            shards,
            cpus: machine.possible_cpus,
        };
        if sizes.bytes() > machine.available / AVAILABLE_SHARE {
            bail!(
                "the tables for {} objects would take {}, more than half of the {} that are available: \
                 give a smaller --max-objects",
                units::count(sizes.max_objects),
                units::bytes(sizes.bytes() as f64),
                units::bytes(machine.available as f64)
            );
        }
        Ok(sizes)
    }

    /// How often it has to be seen to that the tables do not overflow: before all CPUs together
    /// could have allocated as many objects as the tables are made for.
    pub fn relief_interval(&self) -> Duration {
        let fill = Duration::from_nanos(self.max_objects * FASTEST_ALLOCATION_NS / u64::from(self.cpus));
        fill.clamp(*RELIEF_INTERVAL.start(), *RELIEF_INTERVAL.end())
    }

    /// Bytes of kernel memory that all the tables take.
    pub fn bytes(&self) -> u64 {
        u64::from(self.buckets) * size_of::<Bucket>() as u64
            + u64::from(self.overflow) * OVERFLOW_ENTRY_BYTES.max(size_of::<Payload>() as u64)
            + u64::from(self.sites) * size_of::<Site>() as u64
            + u64::from(self.stacks) * size_of::<StackRecord>() as u64
            + TASK_BYTES
            + MODULE_BYTES
            + LOOK_BYTES
            + LOG_BYTES
            + self.per_cpu_bytes()
    }

    /// The part of them that grows with the number of CPUs.
    pub fn per_cpu_bytes(&self) -> u64 {
        u64::from(self.shards) * u64::from(self.sites) * size_of::<Counters>() as u64
            + u64::from(self.cpus) * (size_of::<CpuState>() as u64 + SCRATCH_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32, gib: f64) -> Machine {
        let memory = (gib * (1_u64 << 30) as f64) as u64;
        Machine {
            release: "6.18".into(),
            architecture: "x86_64".into(),
            possible_cpus: cpus,
            online_cpus: cpus,
            nodes: 1,
            memory,
            available: memory / 2,
        }
    }

    #[test]
    fn per_cpu_parts_are_bounded() {
        // 256 CPUs: 32 shards of 16,384 sites x 256 bytes are 128 MiB, and 256 x 4,224 bytes one MiB.
        let sizes = Sizes::choose(&machine(256, 512.0), None).unwrap();
        assert_eq!(sizes.shards, 32);
        assert_eq!(sizes.per_cpu_bytes(), (128 << 20) + 256 * 4_224);
        for cpus in [1, 2, 7, 64, 255, 256, 1_024, 8_192] {
            let sizes = Sizes::choose(&machine(cpus, 512.0), None).unwrap();
            assert!(sizes.per_cpu_bytes() <= 256 << 20, "{cpus} CPUs: {}", sizes.per_cpu_bytes());
            assert!(sizes.shards.is_power_of_two());
        }
    }

    #[test]
    fn small_tables_are_looked_at_more_often() {
        let interval = |cpus, objects| {
            Sizes::choose(&machine(cpus, 64.0), Some(objects)).unwrap().relief_interval().as_millis()
        };
        assert_eq!(interval(2, 1_000), 10);
        assert_eq!(interval(2, 1_000_000), 100);
        assert_eq!(interval(16, 1_000_000), 12);
        assert_eq!(interval(1, 40_000_000), 1_000);
    }

    #[test]
    fn tables_follow_the_memory() {
        assert_eq!(Sizes::choose(&machine(2, 64.0), None).unwrap().max_objects, 1 << 20);
        assert_eq!(Sizes::choose(&machine(2, 4.0), None).unwrap().max_objects, 1 << 18);
        let small = Sizes::choose(&machine(1, 0.25), None).unwrap();
        assert!(small.bytes() < 16 << 20, "{}", small.bytes());
        assert_eq!(small.max_objects, 1 << 15);
    }

    #[test]
    fn the_users_word_counts_while_it_fits() {
        let sizes = Sizes::choose(&machine(2, 24.0), Some(1_000)).unwrap();
        assert_eq!((sizes.max_objects, sizes.buckets), (1_000, 256));
        let error = Sizes::choose(&machine(2, 24.0), Some(2_000_000_000)).unwrap_err().to_string();
        assert!(error.contains("--max-objects") && error.contains("2,000,000,000"), "{error}");
    }
}
