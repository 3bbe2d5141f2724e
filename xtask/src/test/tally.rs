//! What tests printed: how many passed, and what the failed ones said, to be told once more at the end of a
//! long run.

/// Lines of the failed tests of one program that are kept, and characters of each.
const LINES: usize = 60;
const WIDTH: usize = 400;

/// Tests of all test programs together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What failed tests printed.
    said: Vec<String>,
    /// Lines that will have been a failed test's, if it fails.
    pending: Vec<String>,
    /// Whether the lines are of cargo's own list of failures.
    in_failures: bool,
    /// Tests of a program that began and has not told its result.
    begun: Option<u64>,
}

impl Tally {
    /// Takes a line that a test program printed: of the test harness (`running 12 tests`, perhaps
    /// `failures:`, then `test result: ok. 12 passed; 0 failed; ...`), or of the guest's tests (the same, with
    /// `guest 6.1.0: a test` before each, and perhaps `  FAILED` after it).
    pub(crate) fn add(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.begun = None;
            self.count(result);
            if std::mem::take(&mut self.in_failures) {
                self.keep();
            }
            self.pending.clear();
            return;
        }
        if let Some(number) =
            line.strip_prefix("running ").and_then(|rest| rest.split(' ').next()?.parse().ok())
        {
            self.end("a program ended in the middle of its tests");
            self.begun = Some(number);
            self.pending.clear();
        }
        if line == "failures:" {
            // The harness says it twice: with what the tests printed, and with their names only.
            if self.in_failures {
                self.keep();
            }
            self.pending.clear();
            self.in_failures = true;
        } else if line.starts_with("guest ") {
            self.pending.clear();
        }
        if self.pending.len() < LINES {
            self.pending.push(line.chars().take(WIDTH).collect());
        }
        if line == "  FAILED" {
            self.keep();
        }
    }

    fn count(&mut self, result: &str) {
        let Some((_, counts)) = result.split_once(". ") else { return };
        for part in counts.split("; ") {
            match part.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    fn keep(&mut self) {
        self.said.append(&mut self.pending);
    }

    /// A program that has begun will not tell its result any more, for this reason: all of its tests have failed.
    pub(crate) fn end(&mut self, reason: &str) {
        if let Some(number) = self.begun.take() {
            self.broken(number, reason);
        }
    }

    /// Tests that have failed without saying so.
    pub(crate) fn broken(&mut self, number: u64, reason: &str) {
        self.failed += number;
        self.keep();
        self.said.extend(reason.lines().map(str::to_owned));
    }

    /// Adds what another one has counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.said.extend(other.said);
    }

    /// What failed tests said, in their order.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.add(line);
        }
        tally
    }

    #[test]
    fn results_add_up() {
        let tally = tally(&[
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 6.45s",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 6.45s",
        ]);
        assert_eq!((tally.passed, tally.failed), (16, 1));
        assert!(tally.said().is_empty());
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let harness = tally(&[
            "test good ... ok",
            "test bad ... FAILED",
            "",
            "failures:",
            "",
            "---- bad stdout ----",
            "thread 'bad' panicked",
            "",
            "failures:",
            "    bad",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "test later ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ]);
        assert!(harness.said().iter().any(|line| line == "thread 'bad' panicked"));
        assert!(harness.said().iter().any(|line| line == "    bad"));
        assert!(!harness.said().iter().any(|line| line.contains("good") || line.contains("later")));
        let guest = tally(&["guest 6.1: fine", "  1 of 1", "guest 6.1: not fine", "  0 of 1", "  FAILED"]);
        assert_eq!(guest.said(), ["guest 6.1: not fine", "  0 of 1", "  FAILED"]);
    }

    #[test]
    fn tests_without_a_result_have_failed() {
        let mut tally = tally(&[
            "running 3 tests",
            "test good ... ok",
            "running 2 tests",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
            "running 13 tests",
            "guest 6.1: fine",
            "guest 6.1: hangs",
            "  1 of 2",
        ]);
        assert_eq!((tally.passed, tally.failed), (2, 3));
        tally.end("the guest did not end");
        tally.end("once only");
        assert_eq!((tally.passed, tally.failed), (2, 16));
        assert_eq!(tally.said()[..2], ["running 3 tests", "test good ... ok"]);
        assert_eq!(tally.said()[3..], ["guest 6.1: hangs", "  1 of 2", "the guest did not end"]);
    }
}
