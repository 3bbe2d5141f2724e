//! Next steps as somebody can take them: what this machine refuses is left out, nothing is said twice, and a command begins
//! as it has to be typed.

use std::time::Duration;

use crate::units;

/// What this machine offers to somebody who looks closer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Why nothing can be traced here, where it cannot.
    pub no_trace: Option<String>,
    /// Whether memory can be searched for pointers, and has not just been.
    pub prove: bool,
    /// Whether caches can be dropped.
    pub shake: bool,
    /// Whether a command that only root may run begins with `sudo`.
    pub sudo: bool,
    /// How this program is called: its name, or the path by which it was found.
    pub program: String,
}

/// What looks into a process, which may be another user's.
const INTO_PROCESSES: [&str; 6] =
    ["strace ", "gdb -p ", "heaptrack --pid ", "lsof -a ", "ls -l /proc/", "ss -anp "];

/// Times that are advised, in seconds and as they are typed.
const TIMES: [(u64, &str); 10] = [
    (60, "60s"),
    (300, "5m"),
    (600, "10m"),
    (1_800, "30m"),
    (3_600, "1h"),
    (7_200, "2h"),
    (21_600, "6h"),
    (43_200, "12h"),
    (86_400, "1d"),
    (172_800, "2d"),
];

/// The time to advise: at least so many seconds, and at least twice as many as were just traced; the longest where both
/// are more.
pub fn time(least_s: f64, traced_s: f64) -> &'static str {
    let wanted = least_s.max(traced_s * 2.0);
    let found = TIMES.iter().find(|(seconds, _)| *seconds as f64 >= wanted);
    found.unwrap_or(&TIMES[TIMES.len() - 1]).1
}

/// Whether a time of so many seconds may be advised at all.
pub fn is_advisable(seconds: f64) -> bool {
    seconds <= TIMES[TIMES.len() - 1].0 as f64
}

/// A command of this program, taken apart: without `sudo`, its time and its remark.
#[derive(PartialEq)]
struct Own<'a> {
    /// Words, without the time.
    words: Vec<&'a str>,
    time: Option<(Duration, &'a str)>,
    remark: &'a str,
    /// Whether it is written with `sudo` although an ordinary user may run it: then root sees more.
    with_sudo: bool,
}

impl<'a> Own<'a> {
    /// None where it is something else: other programs, and what is no command.
    fn parse(step: &'a str) -> Option<Self> {
        let (command, remark) = step.find("   (").map_or((step, ""), |at| step.split_at(at));
        let without = command.strip_prefix("sudo ");
        let mut rest = without.unwrap_or(command).strip_prefix("leaktrace")?.split(' ');
        if rest.next() != Some("") {
            return None;
        }
        let (mut words, mut time) = (Vec::new(), None);
        while let Some(word) = rest.next() {
            let value = (word == "--duration").then(|| rest.next()).flatten();
            match value.and_then(|value| Some((units::parse_duration(value).ok()?, value))) {
                Some(value) => time = Some(value),
                None => words.push(word),
            }
        }
        Some(Self { words, time, remark, with_sudo: without.is_some() })
    }

    /// Whether it traces, as opposed to `triage` and the like.
    fn traces(&self) -> bool {
        self.words.first().is_none_or(|word| word.starts_with('-'))
    }

    fn looks_at_the_heap(&self) -> bool {
        self.words.first() == Some(&"heap")
    }

    fn asks_for(&self, option: &str) -> bool {
        self.words.contains(&option)
    }

    fn typed(&self, offers: &Offers) -> String {
        let sudo = if offers.sudo && (self.traces() || self.with_sudo) { "sudo " } else { "" };
        let mut text = format!("{sudo}{}", offers.program);
        let time = self.time.map(|(_, time)| ["--duration", time]);
        // `triage --duration`, but `--duration --module`.
        let first = usize::from(!self.traces()).min(self.words.len());
        let words = self.words[..first].iter().copied().chain(time.into_iter().flatten());
        for word in words.chain(self.words[first..].iter().copied()) {
            text.push(' ');
            text.push_str(word);
        }
        text + &commented(self.remark)
    }
}

/// A remark as a shell has it: the whole line can be typed.
fn commented(remark: &str) -> String {
    let words = remark.trim_start().strip_prefix('(').and_then(|words| words.strip_suffix(')'));
    words.map_or_else(|| remark.to_owned(), |words| format!("   # {words}"))
}

/// A step that stays.
#[derive(PartialEq)]
enum Step<'a> {
    Own(Own<'a>),
    Other(&'a str),
}

impl Offers {
    /// Whether this machine can do it.
    fn allow(&self, step: &Step<'_>) -> bool {
        match step {
            Step::Own(own) => {
                (self.no_trace.is_none() || !own.traces())
                    && (self.prove || !own.asks_for("--prove") && !own.looks_at_the_heap())
                    && (self.shake || !own.asks_for("--shake"))
            }
            Step::Other(text) => self.shake || !text.contains("drop_caches"),
        }
    }
}

/// Leaves what can be done, in the same order. Of commands that differ only in their time the longest stays.
pub fn usable(steps: &[String], offers: &Offers) -> Vec<String> {
    let mut kept: Vec<Step<'_>> = Vec::new();
    let mut untraced = None;
    for text in steps {
        let step = Own::parse(text).map_or(Step::Other(text), Step::Own);
        if !offers.allow(&step) {
            untraced = untraced.or_else(|| offers.no_trace.as_ref().filter(|_| matches!(step, Step::Own(_))));
            continue;
        }
        let same = kept.iter_mut().find(|other| match (&**other, &step) {
            (Step::Own(other), Step::Own(own)) => other.words == own.words,
            (other, step) => other == step,
        });
        match (same, step) {
            (Some(Step::Own(other)), Step::Own(own)) if other.time < own.time => *other = own,
            (Some(_), _) => {}
            (None, step) => kept.push(step),
        }
    }
    let typed = kept.iter().map(|step| match step {
        Step::Own(own) => own.typed(offers),
        Step::Other(text) => {
            let (command, remark) = text.find("   (").map_or((*text, ""), |at| text.split_at(at));
            let sudo = offers.sudo && INTO_PROCESSES.iter().any(|beginning| command.starts_with(beginning));
            format!("{}{command}{}", if sudo { "sudo " } else { "" }, commented(remark))
        }
    });
    typed.chain(untraced.map(|why| format!("leaktrace cannot trace here: {why}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Offers {
        Offers { no_trace: None, prove: true, shake: true, sudo: true, program: "leaktrace".to_owned() }
    }

    fn usable_of(steps: &[&str], offers: &Offers) -> Vec<String> {
        let steps: Vec<String> = steps.iter().map(|step| (*step).to_owned()).collect();
        usable(&steps, offers)
    }

    #[test]
    fn commands_begin_as_they_are_typed() {
        let steps = [
            "leaktrace --prove   (who holds them?)",
            "leaktrace triage --pid 7",
            "sudo leaktrace triage",
            "ss -s",
        ];
        assert_eq!(
            usable_of(&steps, &offers()),
            [
                "sudo leaktrace --prove   # who holds them?",
                "leaktrace triage --pid 7",
                "sudo leaktrace triage",
                "ss -s"
            ]
        );
        let as_root = Offers { sudo: false, ..offers() };
        assert_eq!(
            usable_of(&steps, &as_root),
            [
                "leaktrace --prove   # who holds them?",
                "leaktrace triage --pid 7",
                "leaktrace triage",
                "ss -s"
            ]
        );
        // Who came without root needs it for what is another user's.
        let into = ["strace -f -p 7", "ls -l /proc/7/fd   (which?)"];
        assert_eq!(usable_of(&into, &offers()), ["sudo strace -f -p 7", "sudo ls -l /proc/7/fd   # which?"]);
        let here = Offers { program: "./leaktrace".to_owned(), ..offers() };
        assert_eq!(usable_of(&["leaktrace --shake"], &here), ["sudo ./leaktrace --shake"]);
    }

    #[test]
    fn what_the_machine_refuses_is_left_out() {
        let steps = [
            "leaktrace --prove --module foo",
            "leaktrace --shake",
            "echo 2 > /proc/sys/vm/drop_caches",
            "ss -s",
        ];
        assert_eq!(usable_of(&steps, &Offers { prove: false, shake: false, ..offers() }), ["ss -s"]);
        let old = Offers { no_trace: Some("this kernel is too old".into()), ..offers() };
        assert_eq!(
            usable_of(
                &["sudo leaktrace --cache 'x y' --duration 60", "leaktrace triage --duration 10m"],
                &old
            ),
            ["leaktrace triage --duration 10m", "leaktrace cannot trace here: this kernel is too old"]
        );
    }

    #[test]
    fn of_several_times_the_longest_stays() {
        let steps = [
            "leaktrace --duration 60s --module foo",
            "leaktrace --prove --module foo",
            "leaktrace --duration 5m --module foo",
            "ss -s",
            "ss -s",
            "leaktrace --duration 1h30m --cache 'a'",
        ];
        assert_eq!(
            usable_of(&steps, &offers()),
            [
                "sudo leaktrace --duration 5m --module foo",
                "sudo leaktrace --prove --module foo",
                "ss -s",
                "sudo leaktrace --duration 1h30m --cache 'a'"
            ]
        );
        // Another program, whatever its name begins with.
        assert_eq!(usable_of(&["leaktracer --duration 5m"], &offers()), ["leaktracer --duration 5m"]);
    }

    #[test]
    fn a_longer_time_is_longer() {
        assert_eq!(time(60.0, 5.0), "60s");
        assert_eq!(time(60.0, 60.0), "5m");
        assert_eq!(time(300.0, 300.0), "10m");
        assert_eq!(time(600.0, 86_400.0), "2d");
        assert_eq!(time(600.0, 864_000.0), "2d");
        assert!(is_advisable(180.0) && !is_advisable(432_000.0 * 3.0));
        for (seconds, typed) in TIMES {
            assert_eq!(units::parse_duration(typed), Ok(Duration::from_secs(seconds)));
        }
    }
}
