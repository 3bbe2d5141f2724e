use proptest::prelude::*;

use super::*;
use crate::analysis::growth::tests::{NEVER, Run, stay};

fn leak() -> Evidence {
    Evidence {
        allocated: 5_000,
        live: 5_000,
        survivors: 4_500,
        seen: 4_500,
        object_size: 256,
        growth: Growth {
            per_s: 90.0,
            error_per_s: 1.0,
            born_in: 100,
            bins: 110,
            sustained_s: 34.0,
            shape: Shape::Steady,
            stay: Some(stay(2_000, 0)),
            walk: Some(1e-9),
        },
        min_age_s: 5.0,
        window_s: 60.0,
        lifetime_s: None,
        reclaimable: false,
        shaken: None,
        left_behind: false,
        replaces: false,
        for_everybody: false,
        doubted: false,
        missed: 0,
        agreement: Some(Agreement::Agrees),
        cache_grew: Some(0),
        in_module: true,
        allocators: Allocators { context: Context::Kernel, alive: 0.0, module_in_use: Some(true) },
        holder: None,
        can_be_linked: true,
        linkage: Some(Linkage { looked_at: 32, linked: 1, held: 0, unreadable: 0 }),
        proven: None,
    }
}

fn shaped(shape: Shape) -> Evidence {
    Evidence { growth: Growth { shape, ..leak().growth }, ..leak() }
}

#[test]
fn verdicts() {
    assert_eq!(leak().verdict(), Verdict::Leak);
    assert_eq!(shaped(Shape::Bursty).verdict(), Verdict::Leak);
    for shape in [Shape::Plateau, Shape::Step, Shape::Sawtooth, Shape::Unclear] {
        assert_eq!(shaped(shape).verdict(), Verdict::Plateau, "{shape:?}");
    }
    assert_eq!(Evidence { reclaimable: true, ..leak() }.verdict(), Verdict::Cache);
    assert_eq!(Evidence { shaken: Some(4_600), ..leak() }.verdict(), Verdict::Cache);
    assert_eq!(Evidence { shaken: Some(100), ..leak() }.verdict(), Verdict::Leak);
    assert_eq!(Evidence { replaces: true, ..leak() }.verdict(), Verdict::Plateau);
    assert_eq!(Evidence { survivors: 0, ..leak() }.verdict(), Verdict::Churn);
    assert_eq!(Evidence { allocated: 10_000_000, ..shaped(Shape::Plateau) }.verdict(), Verdict::Churn);
    // One in a thousand of a busy site, growing.
    assert_eq!(
        Evidence { allocated: 10_000_000, lifetime_s: Some(0.001), ..leak() }.verdict(),
        Verdict::Leak
    );
    assert_eq!(Evidence { survivors: 3, seen: 3, ..leak() }.verdict(), Verdict::Plateau);
}

#[test]
fn what_a_removed_module_left_is_suspected_whatever_its_shape() {
    for shape in [Shape::Plateau, Shape::Step, Shape::Sawtooth, Shape::Unclear] {
        let left = Evidence { left_behind: true, ..shaped(shape) };
        assert_eq!((left.verdict(), left.open()), (Verdict::Suspect, vec![Open::Uncertain]), "{shape:?}");
        assert_eq!(Evidence { allocated: 10_000_000, ..left.clone() }.verdict(), Verdict::Suspect);
        assert_eq!(Evidence { survivors: 3, seen: 3, ..left.clone() }.verdict(), Verdict::Plateau);
        // Frees that were missed may have been theirs.
        assert_eq!(Evidence { missed: 600, ..left }.verdict(), Verdict::Plateau);
    }
    assert_eq!(Evidence { left_behind: true, ..leak() }.verdict(), Verdict::Leak);
}

#[test]
fn each_thing_that_is_open_makes_a_suspect() {
    let process = Allocators { context: Context::Process, alive: 1.0, module_in_use: Some(true) };
    let held = Holder { why: "by TIME_WAIT", seconds: Some(60.0), ask: "" };
    let short = Growth { sustained_s: 8.0, ..leak().growth };
    for (open, evidence) in [
        (Open::FreesUnseen, Evidence { doubted: true, ..leak() }),
        (Open::FreesUnseen, Evidence { missed: 600, ..leak() }),
        (Open::Contradicted, Evidence { agreement: Some(Agreement::Partly), ..leak() }),
        (
            Open::Linked,
            Evidence { linkage: Some(Linkage { looked_at: 32, linked: 30, ..Linkage::default() }), ..leak() },
        ),
        (Open::NotLookedAt, Evidence { linkage: None, ..leak() }),
        (Open::ProcessesRun, Evidence { allocators: process, ..leak() }),
        (
            Open::ProcessesRun,
            Evidence { allocators: Allocators { context: Context::Unknown, ..process }, ..leak() },
        ),
        (Open::Held(held), Evidence { holder: Some(held), ..leak() }),
        (Open::Few, Evidence { seen: 12, ..leak() }),
        (Open::Short, Evidence { growth: short, ..leak() }),
        (Open::Short, Evidence { growth: Growth { born_in: 9, ..leak().growth }, ..leak() }),
        (Open::Core, Evidence { in_module: false, ..leak() }),
        (
            Open::Core,
            Evidence {
                in_module: false,
                growth: Growth { sustained_s: 500.0, shape: Shape::Bursty, ..leak().growth },
                ..leak()
            },
        ),
        (Open::Uncertain, Evidence { growth: Growth { walk: Some(0.01), ..leak().growth }, ..leak() }),
        (Open::Uncertain, Evidence { growth: Growth { walk: None, ..leak().growth }, ..leak() }),
        (
            Open::Uncertain,
            Evidence { growth: Growth { stay: Some(stay(90, 20)), ..leak().growth }, ..leak() },
        ),
        (Open::Uncertain, Evidence { growth: Growth { stay: None, ..leak().growth }, ..leak() }),
        (Open::LongLived, Evidence { lifetime_s: Some(20.0), ..leak() }),
    ] {
        assert_eq!((evidence.open(), evidence.verdict()), (vec![open], Verdict::Suspect));
    }
    // Frees were missed, but the cache grew by as much; nothing was replaced, then, either.
    let confirmed = Evidence { missed: 600, replaces: true, cache_grew: Some(5_050), ..leak() };
    assert_eq!(confirmed.verdict(), Verdict::Leak);
    // Of kmalloc's caches others have been freed; a module's is suspected, and the kernel's own is not.
    let replaced = Evidence { replaces: true, for_everybody: true, ..leak() };
    assert_eq!((replaced.open(), replaced.verdict()), (vec![Open::Replaced], Verdict::Suspect));
    assert_eq!(Evidence { in_module: false, ..replaced.clone() }.verdict(), Verdict::Plateau);
    assert_eq!(Evidence { for_everybody: false, ..replaced }.verdict(), Verdict::Plateau);
    // Nothing of the module is in use, so no process holds anything of it.
    let unused = Allocators { module_in_use: Some(false), ..process };
    assert_eq!(Evidence { allocators: unused, ..leak() }.verdict(), Verdict::Leak);
    // They outlived their processes.
    let dead = Allocators { alive: 0.0, ..process };
    assert_eq!(Evidence { allocators: dead, ..leak() }.verdict(), Verdict::Leak);
    // Vmalloc areas cannot be looked at.
    let area = Evidence { can_be_linked: false, linkage: None, ..leak() };
    assert_eq!(area.verdict(), Verdict::Leak);
    // And those of the kernel itself are many things, such as stacks of processes that stay.
    let long = Growth { sustained_s: 500.0, ..leak().growth };
    assert_eq!(Evidence { in_module: false, growth: long, ..area }.open(), [Open::NotLookedAt]);
    assert_eq!(Evidence { in_module: false, growth: long, ..leak() }.verdict(), Verdict::Leak);
}

#[test]
fn only_frees_of_older_objects_make_room_for_these() {
    // 1,521 live objects that appeared while the cache lost 1,700 older ones.
    assert!(replaces(1_521, -179, 1_700));
    // A leak in a busy cache, and one in a cache that nothing else uses.
    assert!(!replaces(1_500, 1_100, 400));
    assert!(!replaces(5_000, 5_000, 0));
    // The cache did not grow because frees were not seen: for slabinfo to say.
    assert!(!replaces(5_000, 0, 100));
}

#[test]
fn a_small_leak_ranks_above_everything_else() {
    let mut sites = [
        Evidence { reclaimable: true, object_size: 4_096, ..leak() },
        Evidence { object_size: 4_096, ..shaped(Shape::Plateau) },
        Evidence { object_size: 4_096, doubted: true, ..leak() },
        Evidence { object_size: 64, ..leak() },
    ];
    sites.sort_by(by_rank);
    let order: Vec<_> = sites.iter().map(Evidence::verdict).collect();
    assert_eq!(order, [Verdict::Leak, Verdict::Suspect, Verdict::Plateau, Verdict::Cache]);
}

#[test]
fn nothing_is_certain_sooner() {
    let judged = |seconds: f64| {
        let objects = (0..(seconds * 10.0) as u32).map(|i| (f64::from(i) / 10.0, NEVER)).collect();
        let growth = Run { seconds, objects }.measured(0.5, 5.0);
        Evidence { growth, ..leak() }.verdict()
    };
    assert_eq!(judged(soonest(5.0) - 2.0), Verdict::Suspect);
    assert_eq!(judged(soonest(5.0) + 2.0), Verdict::Leak);
}

#[test]
fn floors_and_errors() {
    let floor = detection_floor(60.0, 5.0, 60, 1).unwrap();
    assert!((floor - 22.0 / 55.0).abs() < 1e-5, "{floor}");
    assert!((detection_floor(60.0, 5.0, 60, 4).unwrap() - floor * 4.0).abs() < 1e-5);
    assert_eq!(detection_floor(60.0, 5.0, 13, 1), None, "nearly all looks are needed");
    assert_eq!(detection_floor(5.0, 5.0, 100, 1), None);
    assert!(sampling_error(100, 1).abs() < 1e-9 && sampling_error(0, 8).abs() < 1e-9);
    assert!((sampling_error(100, 1_000_000) - 0.196).abs() < 1e-3);
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    let shapes = [Shape::Steady, Shape::Bursty, Shape::Step, Shape::Plateau, Shape::Sawtooth, Shape::Unclear];
    let growth = (0.0..100.0_f64, 0.0..0.02_f64, 0..60_usize, 0.0..120.0_f64, 0..6_usize, 0..40_u64)
        .prop_map(move |(per_s, walk, born_in, sustained_s, shape, died)| Growth {
            per_s,
            walk: Some(walk),
            born_in,
            sustained_s,
            shape: shapes[shape],
            stay: Some(stay(100, died)),
            ..leak().growth
        });
    let flags = prop::array::uniform8(prop::bool::weighted(0.2));
    (growth, 0_u64..10_000, 0_u64..10_000, flags, 0_u64..33).prop_map(
        |(growth, live, survivors, flags, linked)| {
            let [reclaimable, replaces, doubted, core, unlinkable, contradicted, process, freed] = flags;
            let survivors = survivors.min(live);
            Evidence {
                live,
                survivors,
                seen: survivors,
                growth,
                reclaimable,
                replaces,
                doubted,
                in_module: !core,
                can_be_linked: !unlinkable,
                agreement: Some(if contradicted { Agreement::Contradicts } else { Agreement::Agrees }),
                allocators: Allocators {
                    context: if process { Context::Process } else { Context::Kernel },
                    alive: 1.0,
                    module_in_use: Some(true),
                },
                lifetime_s: freed.then_some(3.0),
                linkage: Some(Linkage { looked_at: 32, linked, ..Linkage::default() }),
                ..leak()
            }
        },
    )
}

proptest! {
    /// Whatever else is said: where a free may not have been seen, the cache is contradicted or the
    /// objects are in structures, it is not called a leak.
    #[test]
    fn what_is_open_is_no_leak(evidence in any_evidence()) {
        if evidence.verdict() == Verdict::Leak {
            prop_assert!(!evidence.doubted && !evidence.reclaimable && !evidence.replaces);
            prop_assert!(evidence.cache_grew == Some(0), "not confirmed by the cache");
            prop_assert!(evidence.agreement == Some(Agreement::Agrees));
            prop_assert!(evidence.growth.surely() && evidence.growth.born_in >= FEWEST_BINS);
            prop_assert!(!evidence.can_be_linked || evidence.linkage.unwrap().is_loose() == Some(true));
        }
    }

    /// The order in which sites come changes neither verdicts nor ranks.
    #[test]
    fn order_does_not_matter(sites in prop::collection::vec(any_evidence(), 1..20), turn in 0..20_usize) {
        let ranked = |mut sites: Vec<Evidence>| {
            sites.sort_by(by_rank);
            sites.iter().map(|site| (site.verdict(), site.score().to_bits(), site.live)).collect::<Vec<_>>()
        };
        let mut turned = sites.clone();
        turned.rotate_left(turn % sites.len());
        prop_assert_eq!(ranked(sites), ranked(turned));
    }

    /// A sample of 1 in 2^shift gives the same verdict, as long as it has enough of the survivors.
    #[test]
    fn verdicts_scale_with_sampling(evidence in any_evidence(), shift in 0..4_u32) {
        let sampled = Evidence { seen: evidence.survivors >> shift, ..evidence.clone() };
        prop_assume!(sampled.seen >= FEWEST_LEAK);
        prop_assert_eq!(sampled.verdict(), evidence.verdict());
    }

    /// More survivors never rank lower.
    #[test]
    fn more_growth_never_ranks_lower(a in 0.1..1e4_f64, b in 0.1..1e4_f64) {
        let growing = |per_s| Evidence { growth: Growth { per_s, ..leak().growth }, ..leak() };
        prop_assert!(growing(a.min(b)).score() <= growing(a.max(b)).score());
    }
}

/// What nothing points to is leaked, whatever else is open; what most pointers lead to is not called so.
#[test]
fn memory_has_the_last_word() {
    let suspect = Evidence { growth: Growth { born_in: 3, ..leak().growth }, ..leak() };
    assert_eq!(suspect.verdict(), Verdict::Suspect);
    let proven = |checked, orphans, held| Some(Proven { checked, orphans, held, free: 0 });
    let with = |evidence: &Evidence, proven| Evidence { proven, ..evidence.clone() }.verdict();
    assert_eq!(with(&suspect, proven(100, 100, 0)), Verdict::Leak);
    // On one of its ways only.
    assert_eq!(with(&suspect, proven(100, 30, 70)), Verdict::Leak);
    assert_eq!(with(&suspect, proven(100, 10, 90)), Verdict::Suspect);
    assert_eq!(with(&suspect, proven(5, 5, 0)), Verdict::Suspect, "too few");
    assert_eq!(with(&leak(), proven(100, 0, 100)), Verdict::Suspect);
    assert_eq!(with(&leak(), proven(100, 0, 0)), Verdict::Leak, "nothing was decided");
    // A burst that was lost has stopped growing.
    assert_eq!(with(&shaped(Shape::Plateau), proven(100, 100, 0)), Verdict::Leak);
    assert_eq!(with(&Evidence { reclaimable: true, ..leak() }, proven(100, 100, 0)), Verdict::Cache);
}
