//! The report: its model, which is the JSON schema, and the forms in which it is told.

pub mod columns;
pub mod difference;
pub mod finding;
pub mod findings;
pub mod forms;
pub mod headline;
pub mod kmemleak;
pub mod known;
pub mod metrics;
pub mod model;
pub mod page;
pub mod reach;
#[cfg(test)]
pub mod sample;
pub mod text;
pub mod triage;
pub mod unload;

use std::{borrow::Cow, fmt::Write as _};

/// Makes text from the kernel or from a file harmless to a terminal: control and formatting
/// characters, and what merely looks like others, are shown by their code.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
    Cow::Owned(out)
}

fn is_plain(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(escape("kworker/0:1-events"), "kworker/0:1-events");
        assert_eq!(escape("\x1b[31mred\n"), "\\u{1b}[31mred\\u{a}");
        assert_eq!(escape("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(escape("büro"), "büro");
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left(text in "\\PC{0,40}|[\\x00-\\x1f\\x7f-\\u{9f}]{0,10}") {
            prop_assert!(escape(&text).chars().all(|c| !c.is_control()));
        }
    }
}
