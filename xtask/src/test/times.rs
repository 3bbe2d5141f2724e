//! How long tests and steps took: told at the end of a run, because time is what everybody pays.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

/// Tests that are told.
const SLOWEST: usize = 15;

/// What took how long.
#[derive(Debug, Default)]
pub(crate) struct Times {
    tests: Vec<(String, Duration)>,
    steps: Vec<(&'static str, Duration)>,
}

impl Times {
    /// Notes a test.
    pub(crate) fn test(&mut self, name: String, took: Duration) {
        self.tests.push((name, took));
    }

    /// Runs a step, and notes it.
    pub(crate) fn step<T>(&mut self, name: &'static str, run: impl FnOnce(&mut Self) -> T) -> T {
        eprintln!("test: {name}");
        let begun = Instant::now();
        let result = run(self);
        self.steps.push((name, begun.elapsed()));
        result
    }

    /// The slowest tests, and all steps with their sum.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut slowest: Vec<_> = self.tests.iter().collect();
        slowest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        slowest.truncate(SLOWEST);
        if !slowest.is_empty() {
            let _ = writeln!(out, "test: the slowest {} of {} tests", slowest.len(), self.tests.len());
        }
        for (name, took) in slowest {
            let _ = writeln!(out, "{:>9.1} s  {name}", took.as_secs_f64());
        }
        let _ = writeln!(out, "test: steps");
        for (name, took) in &self.steps {
            let _ = writeln!(out, "{:>9.1} s  {name}", took.as_secs_f64());
        }
        let all: Duration = self.steps.iter().map(|(_, took)| *took).sum();
        let _ = write!(out, "{:>9.1} s  in all", all.as_secs_f64());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_come_first_and_steps_in_their_order() {
        let mut times = Times::default();
        for n in 0..20 {
            times.test(format!("test {n}"), Duration::from_secs(n));
        }
        times.steps = vec![("lints", Duration::from_millis(1_500)), ("guests", Duration::from_secs(90))];
        let table = times.table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "test: the slowest 15 of 20 tests");
        assert_eq!((lines[1].trim(), lines[15].trim()), ("19.0 s  test 19", "5.0 s  test 5"));
        assert_eq!(lines[16], "test: steps");
        assert_eq!(
            lines[17..].iter().map(|line| line.trim()).collect::<Vec<_>>(),
            ["1.5 s  lints", "90.0 s  guests", "91.5 s  in all"]
        );
    }
}
