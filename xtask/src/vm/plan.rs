//! Which tests run in which guests, by tier. What depends on the kernel runs on each; what does not, on one.

use super::Extra;
use crate::test::Tier;

/// Parts of the names of tests in tests/guest/tests.
const KMEMLEAK: &str = "kmemleak's word";
const TRIAGE: &str = "triage of a driver";
const ACCOUNTS: &str = "the kernel's own accounts";
const PROOF: &str = "what nothing points to";
const HEAP: &str = "what was lost before";
const WELL: &str = "has lost nothing";
const BUSY: &str = "nothing is lost under load";
const HELD_OPEN: &str = "who has what is held open";
const BY_FENTRY: &str = "every path, by fentry";
const BY_KPROBES: &str = "every path, by kprobes";
const BY_NEITHER: &str = "every path, without either";
const PEER: &str = "freed without a tracepoint";
const STORM: &str = "interrupts in the middle";
const LEAK: &str = "a leak ends the trace";
const DISTURBED: &str = "with the rights of the service";
const MODULE: &str = "the four largest leaks of a module";
const COME_AND_GO: &str = "come and go";
const OUT_OF_MEMORY: &str = "memory that runs out";
const PACKAGE: &str = "the package in a whole system";
const MANY_SITES: &str = "a hundred thousand call sites";
const LOCKED_DOWN: &str = "locked down";

/// One guest.
#[derive(Clone, Copy)]
pub(super) struct Planned {
    /// Its kernel.
    pub(super) kernel: &'static str,
    /// What tells it from others with this kernel.
    pub(super) what: &'static str,
    /// What that is told at its start.
    pub(super) boot: &'static str,
    /// What it has besides; in a whole system, our package as well.
    pub(super) with: &'static [Extra],
    /// The tests.
    pub(super) tests: &'static [&'static str],
}

const fn plain(kernel: &'static str, with: &'static [Extra], tests: &'static [&'static str]) -> Planned {
    Planned { kernel, what: "", boot: "", with, tests }
}

const fn special(
    what: &'static str,
    boot: &'static str,
    with: &'static [Extra],
    tests: &'static [&'static str],
) -> Planned {
    Planned { kernel: "6.12", what, boot, with, tests }
}

/// Slabs note who allocated. What they note beside objects is no place for proofs to be tested.
const NOTED: Planned = special("noted", "slub_debug=U", &[], &[ACCOUNTS]);
/// The kernel has four levels of page tables; in the end it is locked down, for good.
const FOUR_LEVELS: Planned = special("four-levels", "no5lvl", &[], &[PROOF, LOCKED_DOWN]);
/// The package leaks, and so it comes last.
const SYSTEM: Planned = special("system", "", &[Extra::System], &[WELL, PACKAGE]);
const BUSY_SYSTEM: Planned = special("system", "", &[Extra::System], &[WELL, BUSY, HELD_OPEN, PACKAGE]);
/// What was lost before is told of a kernel on which nothing else has leaked anything.
const fn heap(kernel: &'static str, tests: &'static [&'static str]) -> Planned {
    Planned { kernel, what: "heap", boot: "", with: &[], tests }
}
const SITES: Planned = special("sites", "", &[Extra::ManySites], &[MANY_SITES]);

const QUICK: &[Planned] =
    &[plain("6.12", &[], &[TRIAGE, PROOF, BY_FENTRY, STORM, LEAK, MODULE, COME_AND_GO])];

/// The slowest first: two run at a time. The tables of paths by kprobes and by neither are those of an old kernel, a new one
/// and another architecture.
const DEFAULT: &[Planned] = &[
    plain("6.12-arm64", &[], &[PROOF, BY_FENTRY, BY_KPROBES, BY_NEITHER, STORM, LEAK, MODULE, COME_AND_GO]),
    plain(
        "7.2-kmemleak",
        &[],
        &[KMEMLEAK, ACCOUNTS, PROOF, BY_FENTRY, BY_KPROBES, BY_NEITHER, STORM, LEAK, MODULE, COME_AND_GO],
    ),
    plain(
        "6.1",
        &[],
        &[ACCOUNTS, PROOF, BY_FENTRY, BY_KPROBES, BY_NEITHER, STORM, LEAK, MODULE, COME_AND_GO],
    ),
    plain(
        "6.12",
        &[Extra::Peer],
        &[KMEMLEAK, TRIAGE, PROOF, BY_FENTRY, PEER, STORM, DISTURBED, MODULE, COME_AND_GO, OUT_OF_MEMORY],
    ),
    plain("6.12-kmemleak", &[], &[KMEMLEAK, ACCOUNTS, PROOF, BY_FENTRY, STORM, LEAK, MODULE]),
    SYSTEM,
    FOUR_LEVELS,
    SITES,
    NOTED,
    heap("6.12", &[HEAP, HELD_OPEN]),
    heap("6.1", &[HEAP]),
    heap("7.2-kmemleak", &[HEAP]),
    heap("6.12-arm64", &[HEAP]),
];

/// Tests that only the slow tier has: they wait for a busy guest.
const SLOW: &[&str] = &[BUSY];

/// All that a guest can do; the peer, which is not built for every architecture, comes last.
const EVERYTHING: &[&str] = &[
    KMEMLEAK,
    TRIAGE,
    ACCOUNTS,
    PROOF,
    BY_FENTRY,
    BY_KPROBES,
    BY_NEITHER,
    STORM,
    LEAK,
    DISTURBED,
    MODULE,
    COME_AND_GO,
    OUT_OF_MEMORY,
    PEER,
];
const WITHOUT_PEER: &[&str] = EVERYTHING.split_at(EVERYTHING.len() - 1).0;

const ALL: &[Planned] = &[
    plain("6.12-arm64", &[], WITHOUT_PEER),
    plain("7.2-kmemleak", &[Extra::Peer], EVERYTHING),
    plain("6.1", &[Extra::Peer], EVERYTHING),
    plain("6.12", &[Extra::Peer], EVERYTHING),
    plain("6.12-kmemleak", &[Extra::Peer], EVERYTHING),
    BUSY_SYSTEM,
    FOUR_LEVELS,
    SITES,
    NOTED,
    heap("6.12", &[HEAP, BUSY, HELD_OPEN]),
    heap("6.1", &[HEAP, BUSY]),
    heap("7.2-kmemleak", &[HEAP, BUSY]),
    heap("6.12-arm64", &[HEAP, BUSY]),
];

/// The guests of a tier, the slowest first.
pub(super) fn guests(tier: Tier) -> &'static [Planned] {
    match tier {
        Tier::Quick => QUICK,
        Tier::Default => DEFAULT,
        Tier::All => ALL,
    }
}

/// A test that is in no guest of the default tier, and not among the slow ones, of the names of all.
pub(super) fn forgotten(names: &str) -> Option<&str> {
    let planned = |name: &str| {
        let default = DEFAULT.iter().flat_map(|guest| guest.tests);
        default.chain(SLOW).any(|test| name.contains(test))
    };
    names.lines().find(|name| !planned(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels;

    #[test]
    fn a_slower_tier_holds_all_of_a_faster_one() {
        for (fast, slow) in [(QUICK, DEFAULT), (DEFAULT, ALL)] {
            for guest in fast {
                assert!(kernels::find(guest.kernel).is_ok());
                let slower: Vec<_> = slow.iter().filter(|other| other.kernel == guest.kernel).collect();
                // A leak that ends its trace and one that is disturbed are two ways to the same verdict.
                let missing = guest.tests.iter().filter(|&&test| test != LEAK).find(|test| {
                    !slower.iter().any(|other| other.what == guest.what && other.tests.contains(test))
                });
                assert_eq!(missing, None, "on {}", guest.kernel);
            }
        }
    }

    #[test]
    fn a_test_that_no_guest_runs_is_found() {
        assert_eq!(
            forgotten("every path, by kprobes\nnever planned\nmemory that runs out"),
            Some("never planned")
        );
        assert_eq!(forgotten("every path, by kprobes\nmemory that runs out"), None);
    }
}
