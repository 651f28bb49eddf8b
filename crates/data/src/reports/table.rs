//! Tables: plain text, Markdown of GitHub, CSV.

/// Columns with titles, and rows of as many cells.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The titles of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// A form of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Columns with two spaces between them.
    Text,
    /// Markdown of GitHub.
    Markdown,
    /// Comma-separated values.
    Csv,
}

/// The columns of a table are wider than their titles by at least this, as DVC's library for tables does.
const TITLE_PADDING: usize = 2;

/// Draws the line below the titles for the widths of the columns.
type Rule<'a> = &'a dyn Fn(&[usize]) -> String;

impl Table {
    /// A table without rows.
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// Removes the columns that do not pass a test of their index.
    pub fn keep_columns(&mut self, keep: impl Fn(&Self, usize) -> bool) {
        let kept: Vec<usize> = (0..self.columns.len()).filter(|i| keep(self, *i)).collect();
        let project = |row: &[String]| kept.iter().map(|i| row[*i].clone()).collect::<Vec<_>>();
        self.columns = project(&self.columns);
        self.rows = self.rows.iter().map(|row| project(row)).collect();
    }

    /// The table as text that ends with a line break.
    pub fn render(&self, form: Form) -> String {
        match form {
            Form::Text => self.aligned(|cells| format!("{}\n", cells.join("  ").trim_end()), None),
            Form::Markdown => {
                let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
                let mut text = self.aligned(
                    line,
                    Some(&|widths: &[usize]| {
                        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                        format!("|{}|\n", rules.join("|"))
                    }),
                );
                text.push('\n');
                text
            }
            Form::Csv => {
                let mut text = csv_line(&self.columns);
                self.rows.iter().for_each(|row| text.push_str(&csv_line(row)));
                text
            }
        }
    }

    fn aligned(&self, line: impl Fn(&[String]) -> String, rule: Option<Rule<'_>>) -> String {
        // A line break in a cell would start a new row.
        let clean = |cell: &str| cell.trim().replace(['\n', '\r'], " ");
        let width = |cell: &String| clean(cell).chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = self.rows.iter().map(|row| width(&row[i]));
                cells.max().unwrap_or(0).max(self.columns[i].chars().count() + TITLE_PADDING)
            })
            .collect();
        let mut text = String::new();
        for (i, row) in std::iter::once(&self.columns).chain(&self.rows).enumerate() {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{:width$}", clean(cell))).collect();
            text.push_str(&line(&cells));
            if let (0, Some(rule)) = (i, rule) {
                text.push_str(&rule(&widths));
            }
        }
        text
    }
}

/// A line of CSV with quotes where they are needed, which ends with CRLF as in Python.
fn csv_line(cells: &[String]) -> String {
    let quoted = |cell: &String| match cell.contains(['"', ',', '\r', '\n']) || (cells.len() == 1 && cell.is_empty()) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    format!("{}\r\n", cells.iter().map(quoted).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["Path", "Metric"]);
        table.rows.push(vec!["metrics.json".into(), " a, \"b\"".into()]);
        table
    }

    #[test]
    fn tables_are_aligned_as_by_dvc() {
        assert_eq!(table().render(Form::Text), "Path          Metric\nmetrics.json  a, \"b\"\n");
        let markdown = "| Path         | Metric   |\n|--------------|----------|\n| metrics.json | a, \"b\"   |\n\n";
        assert_eq!(table().render(Form::Markdown), markdown);
        assert_eq!(table().render(Form::Csv), "Path,Metric\r\nmetrics.json,\" a, \"\"b\"\"\"\r\n");
        assert_eq!(Table::new(&["Path", "Metric"]).render(Form::Text), "Path    Metric\n");
    }

    #[test]
    fn columns_are_removed() {
        let mut table = table();
        table.keep_columns(|table, i| table.columns[i] != "Path");
        assert_eq!(table.render(Form::Csv), "Metric\r\n\" a, \"\"b\"\"\"\r\n");
    }
}
