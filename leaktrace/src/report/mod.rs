//! The report: its model, which is the JSON schema, and the forms in which it is told.

mod addresses;
pub mod columns;
pub mod difference;
pub mod filters;
pub mod finding;
pub mod findings;
pub mod forms;
pub mod groups;
pub mod headline;
pub mod heap;
pub mod kmemleak;
pub mod known;
pub mod metrics;
pub mod model;
pub mod page;
pub mod plausible;
pub mod reach;
#[cfg(test)]
pub mod sample;
pub mod text;
pub mod triage;
pub mod unload;

use std::{borrow::Cow, fmt::Write as _};

/// Makes text from the kernel or from a file harmless to a terminal: control and formatting characters, and spaces that
/// look like the plain one, are shown as C writes them.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        // Writing to a string cannot fail.
        let _ = match (c, u32::from(c)) {
            _ if is_plain(c) => out.write_char(c),
            ('\n', _) => out.write_str("\\n"),
            ('\r', _) => out.write_str("\\r"),
            ('\t', _) => out.write_str("\\t"),
            (_, code @ ..0x80) => write!(out, "\\x{code:02x}"),
            (_, code @ ..0x1_0000) => write!(out, "\\u{code:04x}"),
            (_, code) => write!(out, "\\U{code:08x}"),
        };
    }
    Cow::Owned(out)
}

fn is_plain(c: char) -> bool {
    // What the library would not escape has a shape of its own; quotes and the backslash have, too.
    c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.escape_debug().len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(escape("kworker/0:1-events"), "kworker/0:1-events");
        assert_eq!(escape("\x1b[31mred\n\t\r\x7f"), "\\x1b[31mred\\n\\t\\r\\x7f");
        assert_eq!(escape("a\u{202e}b\u{a0}c\u{9b}"), "a\\u202eb\\u00a0c\\u009b");
        assert_eq!(escape("\u{e0001}"), "\\U000e0001");
        // What cannot be decoded is shown by the character that stands for it.
        for plain in ["büro", "a\u{fffd}b", "5 µs … – “x”", "漢字"] {
            assert_eq!(escape(plain), plain);
        }
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left(text in "\\PC{0,40}|[\\x00-\\x1f\\x7f-\\u{9f}]{0,10}") {
            prop_assert!(escape(&text).chars().all(|c| !c.is_control()));
        }
    }
}
