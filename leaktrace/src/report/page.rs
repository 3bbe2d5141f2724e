//! Setting text on a page of fixed width.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Columns of a page that is no terminal.
pub const WIDTH: usize = 100;

/// Cuts text to so many characters, and shows that.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['~']).collect()
}

/// Writes a paragraph at an indent; lines after the first stand a little further in.
///
/// # Errors
/// As writing to `out` has.
pub fn paragraph(out: &mut String, indent: usize, width: usize, text: &str) -> fmt::Result {
    for (index, line) in wrap(text, width - indent - 2).into_iter().enumerate() {
        writeln!(out, "{:1$}{2}{line}", "", indent, if index == 0 { "" } else { "  " })?;
    }
    Ok(())
}

/// Breaks text between words; a word that is longer than a line has a line of its own.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A table without lines, as wide as what is in it.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Aligns columns to the right, and the first with the text around the table.
pub fn right_aligned(table: &mut Table, right: &[usize]) {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table without the blanks that fill its lines.
pub fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_words_have_lines_of_their_own() {
        assert_eq!(wrap("a bb ccccccc d", 4), ["a bb", "ccccccc", "d"]);
        assert_eq!(shorten("abcdef", 4), "abc~");
        assert_eq!(shorten("abcd", 4), "abcd");
    }

    proptest! {
        #[test]
        fn no_word_is_lost_and_no_line_too_long(words in prop::collection::vec("[a-z]{1,12}", 1..40)) {
            let lines = wrap(&words.join(" "), 12);
            prop_assert!(lines.iter().all(|line| line.len() <= 12));
            prop_assert_eq!(lines.join(" "), words.join(" "));
        }
    }
}
