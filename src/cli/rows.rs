//! Rows of a command, in the form that `--format` asks for.
//!
//! In: rows as JSON objects with Docker's placeholders, and the format. Out: a table, JSON lines, or text by a template.
//! What always holds: a template is read, and its mistakes told, before anything is looked up or printed.

use std::io::Write;

use serde_json::Value;

use super::failure::Failure;
use super::render::table;
use super::template::Template;
use super::template::value::{self, field};

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
    /// Reads `--format`; `raw` is what the word `raw` stands for.
    pub(super) fn parse(text: Option<&str>, raw: Option<&str>) -> Result<Self, Failure> {
        match (text.map(str::trim_end), raw) {
            (None | Some("table" | ""), _) => Ok(Self::Table),
            (Some("json"), _) => Ok(Self::Json),
            (Some("raw"), Some(raw)) => template(raw).map(Self::Template),
            (Some(text), _) => match text.strip_prefix("table") {
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
                let rows = rows.into_iter().collect::<Vec<_>>();
                let mut titles: Vec<_> = headings.iter().map(|(name, text)| field(*name, *text)).collect();
                for name in rows.first().and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name) {
                    if !headings.iter().any(|(known, _)| known == name) {
                        titles.push(field(name.as_str(), heading(name)));
                    }
                }
                let mut lines = vec![template.render_titles(&titles.into()).map_err(wrong)?];
                for row in rows {
                    lines.push(render(template, &row)?);
                }
                let lines: Vec<&str> = lines.iter().flat_map(|lines| lines.split('\n')).collect();
                let titles: Vec<&str> = lines[0].split('\t').collect();
                table::write(out, &titles, lines[1..].iter().map(|line| line.split('\t')))?;
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

fn template(text: &str) -> Result<Template, Failure> {
    Template::of_rows(text).map_err(wrong)
}

fn render(template: &Template, row: &Value) -> Result<String, Failure> {
    template.render(&value::Value::structure(row)).map_err(wrong)
}

/// What is wrong with a template.
#[allow(clippy::needless_pass_by_value)] // For `map_err`.
pub(super) fn wrong(why: String) -> Failure {
    Failure::Usage(format!("--format: {why}"))
}

/// A field of a row, which is text in all of them.
pub(super) fn text(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
