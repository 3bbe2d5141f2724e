//! Growth over the ticks.

/// The Theil-Sen slope: the median of the slopes between all pairs of points, which a few odd
/// ticks do not move. In units of `y` per unit of `x`; 0 for fewer than two points.
pub fn theil_sen(points: &[(f64, f64)]) -> f64 {
    let mut slopes: Vec<f64> = points
        .iter()
        .enumerate()
        .flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)))
        .filter(|(a, b)| b.0 > a.0)
        .map(|(a, b)| (b.1 - a.1) / (b.0 - a.0))
        .collect();
    if slopes.is_empty() {
        return 0.0;
    }
    let middle = slopes.len() / 2;
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// Growth of a site's live objects, in objects per second.
///
/// Tracing begins with nothing live, so each site first fills up to what it normally holds: the
/// first third of the window says nothing and is left out.
pub fn objects_per_second(points: &[(f64, f64)]) -> f64 {
    let Some(&(last, _)) = points.last() else { return 0.0 };
    let settled: Vec<_> = points.iter().copied().filter(|&(seconds, _)| seconds >= last / 3.0).collect();
    theil_sen(&settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_ticks_do_not_count() {
        let mut points: Vec<_> = (0..30).map(|i| (f64::from(i), f64::from(i) * 5.0 + 7.0)).collect();
        points[12].1 = 1e9;
        points[25].1 = 0.0;
        assert!((theil_sen(&points) - 5.0).abs() < 0.2);
    }

    #[test]
    fn filling_up_is_no_growth() {
        let points: Vec<_> = (0..60).map(|i| (f64::from(i), f64::from(i.min(10)) * 100.0)).collect();
        assert!(objects_per_second(&points).abs() < 1e-9);
        assert!(theil_sen(&[]).abs() < 1e-9 && objects_per_second(&[(1.0, 5.0)]).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn finds_any_line(slope in -1e6..1e6_f64, start in -1e6..1e6_f64, n in 2..60_u32) {
            let points: Vec<_> = (0..n).map(|i| (f64::from(i), start + slope * f64::from(i))).collect();
            prop_assert!((theil_sen(&points) - slope).abs() < 1e-3);
        }
    }
}
