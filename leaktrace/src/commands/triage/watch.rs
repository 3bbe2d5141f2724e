//! The screen of `--watch`: a terminal's other screen, or one answer after the other where there is no terminal.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

/// Shows texts in place of each other, and gives the terminal back when dropped.
pub(super) struct Screen {
    terminal: bool,
}

/// To the other screen and back, with the cursor hidden meanwhile.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the upper left corner; erase the rest of a line, and of the screen.
const HOME: &str = "\x1b[H";
const LINE: &str = "\x1b[K\r\n";
const BELOW: &str = "\x1b[J";

impl Screen {
    /// Takes the terminal, if there is one.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub(super) fn open() -> Result<Self> {
        let screen = Self { terminal: io::stdout().is_terminal() };
        if screen.terminal {
            Self::write(ENTER)?;
        }
        Ok(screen)
    }

    /// Shows a text, as much of it as there are lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn show(&mut self, text: &str) -> Result<()> {
        if !self.terminal {
            return Self::write(&format!("{text}\n"));
        }
        let size = terminal_size::terminal_size_of(io::stdout());
        let (columns, rows) =
            size.map_or((80, 24), |(columns, rows)| (usize::from(columns.0), usize::from(rows.0)));
        Self::write(&page(text, columns, rows))
    }

    fn write(text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .context("cannot write to the terminal")
    }
}

/// What replaces the screen's text by another, of which the first lines fit. A command is not broken where it is wrapped: the
/// terminal goes on with it on its next line.
fn page(text: &str, columns: usize, rows: usize) -> String {
    let mut room = rows.saturating_sub(1);
    let mut page = String::from(HOME);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.peek() {
        let takes = shown(line).div_ceil(columns.max(1)).max(1);
        if takes > room {
            break;
        }
        room -= takes;
        page.push_str(line);
        page.push_str(LINE);
        lines.next();
    }
    let more = match lines.count() {
        0 => "(".to_owned(),
        more => format!("({more} more lines; "),
    };
    page.push_str(&more);
    page.push_str("Ctrl-C ends)\x1b[K");
    page.push_str(BELOW);
    page
}

/// Characters of a line that take room: all but our own colours.
fn shown(line: &str) -> usize {
    let parts = line.split("\x1b[").enumerate();
    parts
        .map(|(index, part)| {
            if index == 0 { part } else { part.split_once('m').map_or("", |(_, text)| text) }.chars().count()
        })
        .sum()
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            // Nothing more can be done where this fails.
            let _ = Self::write(LEAVE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_as_many_lines_as_the_screen() {
        let text = (0..50).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
        let page = page(&text, 80, 24);
        assert_eq!(page.matches('\n').count(), 23);
        assert!(page.contains("line 22") && !page.contains("line 23") && page.contains("(27 more lines; "));
        assert!(super::page("a\n", 80, 24).contains("(Ctrl-C ends)"));
        // What the terminal wraps takes as many of its lines; colours take no room.
        let wide = format!("\x1b[36m{}\x1b[0m\nb\nc", "a".repeat(100));
        let page = super::page(&wide, 40, 5);
        assert!(
            page.contains("b\x1b[K") && !page.contains("c\x1b[K") && page.contains("(1 more lines; "),
            "{page}"
        );
    }
}
