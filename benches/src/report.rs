//! A bench's figures.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::json;

/// The figures of one bench: printed as a table, and kept as JSON under
/// `target/bench/` of the workspace, so that a program can take any ratio.
///
/// The JSON is an array of rows `{"case", "who", "metric", "value", "unit"}`.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    case: String,
    who: String,
    metric: String,
    value: f64,
    unit: String,
}

impl Report {
    /// The report of the bench with this name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// Adds a figure. `who` is `tollway`, or the peer's crate name.
    pub fn row(
        &mut self,
        case: impl Into<String>,
        who: impl Into<String>,
        metric: impl Into<String>,
        value: f64,
        unit: impl Into<String>,
    ) -> &mut Self {
        self.rows.push(Row {
            case: case.into(),
            who: who.into(),
            metric: metric.into(),
            value,
            unit: unit.into(),
        });
        self
    }

    /// Prints the table and writes the JSON.
    ///
    /// # Errors
    ///
    /// Where the file can't be written.
    pub fn finish(&self) -> io::Result<()> {
        print!("{}", self.table());
        let path = self.path();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.case,
                    "who": row.who,
                    "metric": row.metric,
                    "value": row.value,
                    "unit": row.unit,
                })
            })
            .collect();
        let mut text = serde_json::to_string_pretty(&rows)?;
        text.push('\n');
        fs::write(&path, text)?;
        println!("written to {}", path.display());
        Ok(())
    }

    /// A line for each case and contestant, a column for each metric.
    fn table(&self) -> String {
        let mut metrics: Vec<(&str, &str)> = Vec::new();
        let mut lines: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            let metric = (row.metric.as_str(), row.unit.as_str());
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
            let line = (row.case.as_str(), row.who.as_str());
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let mut cells = vec![vec!["case".to_owned(), "who".to_owned()]];
        cells[0].extend(metrics.iter().map(|(metric, unit)| {
            if unit.is_empty() {
                (*metric).to_owned()
            } else {
                format!("{metric} ({unit})")
            }
        }));
        for (case, who) in lines {
            let mut line = vec![case.to_owned(), who.to_owned()];
            for (metric, unit) in &metrics {
                let found = self.rows.iter().find(|row| {
                    (row.case.as_str(), row.who.as_str()) == (case, who)
                        && (row.metric.as_str(), row.unit.as_str()) == (*metric, *unit)
                });
                line.push(found.map_or_else(String::new, |row| number(row.value)));
            }
            cells.push(line);
        }
        let widths: Vec<usize> = (0..metrics.len() + 2)
            .map(|column| {
                let cells = cells.iter().map(|line| line[column].chars().count());
                cells.max().unwrap_or(0)
            })
            .collect();
        let mut table = format!("\n## {}\n\n", self.name);
        for (index, line) in cells.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Words to the left, numbers to the right.
                let _ = if column < 2 {
                    write!(table, "| {cell:<width$} ")
                } else {
                    write!(table, "| {cell:>width$} ")
                };
            }
            table.push_str("|\n");
            if index == 0 {
                for width in &widths {
                    let _ = write!(table, "|{}", "-".repeat(width + 2));
                }
                table.push_str("|\n");
            }
        }
        table.push('\n');
        table
    }

    /// `target/bench/` of the workspace, wherever the build itself goes.
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/bench")
            .join(format!("{}.json", self.name))
    }
}

/// As many digits as mean something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 && small.fract() != 0.0 => 2,
        middle if middle < 1000.0 && middle.fract() != 0.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}
