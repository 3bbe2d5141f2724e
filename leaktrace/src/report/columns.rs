//! Tables that fit any page from 40 columns on: less important columns go first, then names are cut. Numbers are whole or not there.

use super::page::{plain_table, right_aligned, shorten, trimmed};

/// What a name is cut to before a column goes that is always there on a wide page.
const NAME: usize = 8;
/// What a place is cut to: for more of it less important columns go, and for less than the other nothing does.
const PLACE: usize = 16;
const LEAST_PLACE: usize = 12;
/// What columns are apart.
const GAP: usize = 2;

/// A table, column by column.
#[derive(Debug, Default)]
pub struct Columns(Vec<Column>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Name,
    /// `function+0x1 [module]`.
    Place,
    /// Never cut.
    Number,
}

#[derive(Debug)]
struct Column {
    title: String,
    kind: Kind,
    rank: u8,
    cells: Vec<String>,
}

impl Column {
    /// The widest cell, and the title unless that is a heading that may stand above the table.
    fn width(&self, is_first: bool) -> usize {
        let cells = self.cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let title = self.title.chars().count();
        if is_first && title > NAME { cells } else { cells.max(title) }
    }

    /// What it may be cut to while less important columns are there, and at last.
    fn least(&self, is_first: bool) -> (usize, usize) {
        let width = self.width(is_first);
        match self.kind {
            Kind::Name => (width, width.min(NAME)),
            Kind::Place => (width.min(PLACE), width.min(LEAST_PLACE)),
            Kind::Number => (width, width),
        }
    }

    fn cut(&mut self, limit: usize) {
        let cut = if self.kind == Kind::Place { shorten_place } else { shorten_name };
        for cell in &mut self.cells {
            *cell = cut(cell, limit);
        }
        self.title = shorten(&self.title, limit);
    }
}

/// Cuts a place to so many characters: of a long name the module is what must be seen.
pub fn shorten_place(label: &str, limit: usize) -> String {
    match label.rsplit_once(' ') {
        Some((symbol, module)) if module.starts_with('[') && label.chars().count() > limit => {
            let room = limit.saturating_sub(module.chars().count() + 1).max(limit / 2);
            shorten(&format!("{} {module}", shorten(symbol, room)), limit)
        }
        _ => shorten(label, limit),
    }
}

/// Cuts a name to so many characters, and before a number in it that would not be whole.
fn shorten_name(name: &str, limit: usize) -> String {
    let cut = shorten(name, limit);
    match cut.rsplit_once(' ') {
        Some((before, last)) if cut != name && last.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{before}~")
        }
        _ => cut,
    }
}

impl Columns {
    /// Adds a column whose cells stand to the left. Of rank 0 it is there on any page of usual width; the higher, the sooner it goes.
    #[must_use]
    pub fn left(self, rank: u8, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        self.with(rank, Kind::Name, title, cells)
    }

    /// Adds a column of places in code.
    #[must_use]
    pub fn place(self, rank: u8, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        self.with(rank, Kind::Place, title, cells)
    }

    /// Adds a column whose cells stand to the right.
    #[must_use]
    pub fn right(self, rank: u8, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        self.with(rank, Kind::Number, title, cells)
    }

    fn with(mut self, rank: u8, kind: Kind, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        let cells = cells.into_iter().collect();
        self.0.push(Column { title: title.to_owned(), kind, rank, cells });
        self
    }

    /// The table's lines, none wider than the page.
    pub fn lines(mut self, width: usize) -> String {
        self.0.retain(|column| column.rank == 0 || column.cells.iter().any(|cell| !cell.is_empty()));
        while let Some(index) = self.goes(width) {
            self.0.remove(index);
        }
        self.cut(width);
        let mut above = String::new();
        if let Some(first) = self.0.first_mut()
            && first.title.chars().count() > first.width(true)
            && sum(self.0.iter().map(|column| column.width(false))) > width
        {
            above = std::mem::take(&mut self.0[0].title) + "\n";
        }
        let text = self.text();
        let lines = text.lines().filter(|line| !line.is_empty() || above.is_empty());
        let lines = lines.map(|line| shorten(line, width)).collect::<Vec<_>>().join("\n");
        format!("{above}{lines}")
    }

    /// The column that goes next, if all are too wide.
    fn goes(&self, width: usize) -> Option<usize> {
        let columns = || self.0.iter().enumerate();
        let (first, last): (Vec<_>, Vec<_>) =
            columns().map(|(index, column)| column.least(index == 0)).unzip();
        let ranked = columns().filter(|(_, column)| column.rank > 0).max_by_key(|(_, column)| column.rank);
        match ranked {
            Some((index, _)) if sum(first) > width => Some(index),
            None if sum(last) > width => {
                let others = || columns().skip(1).rev();
                let name = others().find(|(_, column)| column.kind == Kind::Name);
                name.or_else(|| others().next()).map(|(index, _)| index)
            }
            _ => None,
        }
    }

    /// Cuts the widest names until all fit.
    fn cut(&mut self, width: usize) {
        loop {
            let all: Vec<usize> =
                self.0.iter().enumerate().map(|(index, column)| column.width(index == 0)).collect();
            let over = sum(all.iter().copied()).saturating_sub(width);
            let may = |&(index, column): &(usize, &Column)| all[index] > column.least(index == 0).1;
            let widest = self.0.iter().enumerate().filter(may).max_by_key(|(index, _)| all[*index]);
            match widest.map(|(index, _)| index) {
                Some(index) if over > 0 => {
                    let (title, kind) = (self.0[index].title.clone(), self.0[index].kind);
                    let least = if kind == Kind::Place { LEAST_PLACE } else { NAME };
                    self.0[index].cut(all[index].saturating_sub(over).max(least));
                    if index == 0 {
                        self.0[0].title = title;
                    }
                }
                _ => return,
            }
        }
    }

    fn text(&self) -> String {
        let mut table = plain_table();
        table.set_header(self.0.iter().map(|column| column.title.as_str()));
        let rows = self.0.iter().map(|column| column.cells.len()).max().unwrap_or(0);
        for row in 0..rows {
            table.add_row(self.0.iter().map(|column| column.cells.get(row).map_or("", String::as_str)));
        }
        let numbers = self.0.iter().enumerate().filter(|(_, column)| column.kind == Kind::Number);
        let right: Vec<usize> = numbers.map(|(index, _)| index).collect();
        right_aligned(&mut table, &right);
        trimmed(&table)
    }
}

/// Columns side by side.
fn sum(widths: impl IntoIterator<Item = usize>) -> usize {
    widths.into_iter().map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn table() -> Columns {
        let cells = |cells: [&str; 2]| cells.map(ToOwned::to_owned);
        Columns::default()
            .left(0, "name", cells(["alpha", "b"]))
            .right(2, "first", cells(["1", "22"]))
            .right(1, "second", cells(["333", ""]))
            .right(3, "empty", cells(["", ""]))
    }

    #[test]
    fn columns_go_by_rank() {
        assert_eq!(table().lines(40), "name   first  second\nalpha      1     333\nb         22");
        assert_eq!(table().lines(15), "name   second\nalpha     333\nb");
        assert_eq!(table().lines(6), "name\nalpha\nb");
        assert_eq!(table().lines(4), "name\nalp~\nb");
    }

    #[test]
    fn a_place_keeps_its_module() {
        let cells = || ["a_function_with_a_long_name+0x12 [module]".to_owned(), "b+0x1".to_owned()];
        let table = || {
            Columns::default()
                .right(2, "#", ["1".to_owned(), "2".to_owned()])
                .place(0, "where", cells())
                .right(0, "growth", ["+44.6 KiB/s".to_owned(), "plateau".to_owned()])
        };
        assert_eq!(
            table().lines(40),
            "#  where                          growth\n\
             1  a_function_wit~ [module]  +44.6 KiB/s\n\
             2  b+0x1                         plateau"
        );
        assert!(table().lines(30).starts_with("where "), "{}", table().lines(30));
        assert!(table().lines(30).contains("a_funct~ [module]"), "{}", table().lines(30));
    }

    #[test]
    fn a_long_title_stands_above() {
        let table = || {
            Columns::default().left(0, "A title that is long", ["a".to_owned()]).right(
                0,
                "n",
                ["12".to_owned()],
            )
        };
        assert_eq!(table().lines(40), "A title that is long   n\na                     12");
        assert_eq!(table().lines(10), "A title that is long\n    n\na  12");
    }

    proptest! {
        /// Whatever is in it, a number is whole or not there, and no line is too wide.
        #[test]
        fn numbers_are_whole_or_not_there(
            columns in prop::collection::vec((0_u8..4, 0_u8..3, 1_usize..14, 1_u64..u64::MAX), 1..9),
            width in 40_usize..140,
        ) {
            let mut table = Columns::default().place(0, "where", ["some_function+0x12 [module]".to_owned()]);
            let mut all = HashSet::new();
            for (rank, kind, digits, number) in columns {
                let number = number.to_string().chars().take(digits).collect::<String>();
                table = match kind {
                    0 => table.left(rank, "name", ["name_of_something".to_owned()]),
                    1 => table.right(rank, "title", [format!("{number}.0")]),
                    _ => table.right(rank, "", [format!("+{number}KiB/s")]),
                };
                all.extend([format!("{number}.0"), format!("+{number}KiB/s")]);
            }
            let text = table.lines(width);
            prop_assert!(text.lines().all(|line| line.chars().count() <= width), "{}", text);
            let numbers = text.split_whitespace().filter(|word| word.starts_with(|c: char| c == '+' || c.is_ascii_digit()));
            for number in numbers {
                prop_assert!(all.contains(number), "{} in {}", number, text);
            }
        }
    }
}
