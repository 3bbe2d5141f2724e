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
        let rows = terminal_size::terminal_size_of(io::stdout()).map_or(24, |(_, rows)| usize::from(rows.0));
        Self::write(&page(text, rows))
    }

    fn write(text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .context("cannot write to the terminal")
    }
}

/// What replaces the screen's text by another, of which the first lines fit.
fn page(text: &str, rows: usize) -> String {
    let lines = text.lines().count();
    let fit = rows.saturating_sub(1);
    let mut page = String::from(HOME);
    for line in text.lines().take(fit) {
        page.push_str(line);
        page.push_str(LINE);
    }
    let more = if lines > fit { format!("({} more lines; ", lines - fit) } else { "(".to_owned() };
    page.push_str(&more);
    page.push_str("Ctrl-C ends)\x1b[K");
    page.push_str(BELOW);
    page
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
        let page = page(&text, 24);
        assert_eq!(page.matches('\n').count(), 23);
        assert!(page.contains("line 22") && !page.contains("line 23") && page.contains("(27 more lines; "));
        assert!(super::page("a\n", 24).contains("(Ctrl-C ends)"));
    }
}
