//! Tables with aligned columns.

use std::fmt;

/// The text between two columns.
const GAP: &str = "  ";

/// A table. An empty cell is shown as `-`. The last column has no width limit.
pub(super) struct TextTable<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> TextTable<COLUMNS> {
    /// Makes a table with these headings.
    pub(super) fn new(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }

    /// Returns the table as text, or `nothing` if there are no rows.
    pub(super) fn or(&self, nothing: &str) -> String {
        if self.rows.len() > 1 { self.to_string() } else { format!("{nothing}\n") }
    }
}

impl<const COLUMNS: usize> fmt::Display for TextTable<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; COLUMNS];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join(GAP).trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::new(["A", "LONG", "C"]);
        table.row(["wider".into(), String::new(), "x y".into()]);
        table.row(["ö".into(), "1".into(), String::new()]);
        assert_eq!(table.to_string(), "A      LONG  C\nwider  -     x y\nö      1     -\n");
    }

    #[test]
    fn an_empty_table_is_a_sentence() {
        assert_eq!(TextTable::new(["A"]).or("Nothing here."), "Nothing here.\n");
    }
}
