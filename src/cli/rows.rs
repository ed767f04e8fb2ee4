//! Rows of a command, in the form that `--format` asks for.
//!
//! In: rows as JSON objects with Docker's placeholders, and the format. Out: a table, JSON lines, or text by a template.
//! What always holds: a template is read, and its mistakes told, before anything is looked up or printed.

use std::io::Write;

use serde_json::{Map, Value};

use super::failure::Failure;
use super::render::table;
use super::template::Template;

/// What `--format` asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Format {
    /// The command's own table.
    Table,
    /// `table TEMPLATE`: a table with these columns.
    Columns(Template),
    /// A JSON object in each line.
    Json,
    /// A line by the template for each row.
    Template(Template),
}

impl Format {
    /// Reads `--format`.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        match text.map(str::trim_end) {
            None | Some("table" | "") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => template(columns.trim_start()).map(Self::Columns),
                None => template(text).map(Self::Template),
            },
        }
    }

    /// Prints `rows`. `columns` are those of the command's own table; `headings` gives the heading of every placeholder.
    pub(super) fn write(
        &self,
        out: &mut dyn Write,
        columns: &[&str],
        headings: &[(&str, &str)],
        rows: impl IntoIterator<Item = Value>,
    ) -> Result<(), Failure> {
        let heading = |field: &str| {
            headings
                .iter()
                .find(|(known, _)| *known == field)
                .map_or_else(|| field.to_uppercase(), |(_, text)| (*text).to_owned())
        };
        match self {
            Self::Table => {
                let titles: Vec<String> = columns.iter().map(|field| heading(field)).collect();
                let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
                let cells =
                    rows.into_iter().map(|row| columns.iter().map(|field| text(&row, field)).collect::<Vec<_>>());
                table::write(out, &titles, cells)?;
            }
            Self::Columns(template) => {
                let mut lines = Vec::new();
                for row in rows {
                    if lines.is_empty() {
                        let fields = row.as_object().into_iter().flatten().map(|(field, _)| field);
                        let titles: Map<String, Value> =
                            fields.map(|field| (field.clone(), heading(field).into())).collect();
                        lines.push(render(template, &Value::Object(titles))?);
                    }
                    lines.push(render(template, &row)?);
                }
                if lines.is_empty() {
                    let titles: Map<String, Value> =
                        headings.iter().map(|(field, text)| ((*field).to_owned(), (*text).into())).collect();
                    lines.push(render(template, &Value::Object(titles))?);
                }
                let cells = |line: &String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
                let titles = cells(&lines[0]);
                let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
                table::write(out, &titles, lines[1..].iter().map(cells))?;
            }
            Self::Json => {
                for row in rows {
                    writeln!(out, "{row}")?;
                }
            }
            Self::Template(template) => {
                for row in rows {
                    writeln!(out, "{}", render(template, &row)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads a template. Shells make it hard to write tabs and line ends; Docker reads them as `\t` and `\n`.
pub(super) fn template(text: &str) -> Result<Template, Failure> {
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    Template::parse(&text).map_err(|why| Failure::Usage(format!("--format: {why}")))
}

fn render(template: &Template, row: &Value) -> Result<String, Failure> {
    template.render(row).map_err(|why| Failure::Usage(format!("--format: {why}")))
}

/// A field of a row, which is text in all of them.
pub(super) fn text(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
