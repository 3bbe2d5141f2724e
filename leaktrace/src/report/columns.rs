//! Tables that leave out their less important columns where these are empty or the page is too narrow.

use super::page::{plain_table, right_aligned, shorten, trimmed};

/// A table, column by column.
#[derive(Debug, Default)]
pub struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    title: String,
    right: bool,
    rank: u8,
    cells: Vec<String>,
}

impl Columns {
    /// Adds a column whose cells stand to the left. Of rank 0 it is always there; the higher, the sooner it goes.
    #[must_use]
    pub fn left(self, rank: u8, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        self.with(rank, false, title, cells)
    }

    /// Adds a column whose cells stand to the right.
    #[must_use]
    pub fn right(self, rank: u8, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        self.with(rank, true, title, cells)
    }

    fn with(mut self, rank: u8, right: bool, title: &str, cells: impl IntoIterator<Item = String>) -> Self {
        let cells = cells.into_iter().collect();
        self.0.push(Column { title: title.to_owned(), right, rank, cells });
        self
    }

    /// The table's lines, none wider than the page.
    pub fn lines(mut self, width: usize) -> String {
        self.0.retain(|column| column.rank == 0 || column.cells.iter().any(|cell| !cell.is_empty()));
        loop {
            let text = self.text();
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            let least = self.0.iter().enumerate().filter(|(_, column)| column.rank > 0);
            let least = least.max_by_key(|(_, column)| column.rank).map(|(index, _)| index);
            match least {
                Some(index) if widest > width => {
                    self.0.remove(index);
                }
                _ => return text.lines().map(|line| shorten(line, width)).collect::<Vec<_>>().join("\n"),
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
        let right: Vec<usize> =
            self.0.iter().enumerate().filter(|(_, column)| column.right).map(|(index, _)| index).collect();
        right_aligned(&mut table, &right);
        trimmed(&table)
    }
}

#[cfg(test)]
mod tests {
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
}
