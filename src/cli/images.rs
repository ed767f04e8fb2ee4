//! `rbuild images`: which images there are.
//!
//! In: the records of the store. Out: a table, ids, or text by a template. What always holds: one row per name, newest
//! image first; an image without a name has one row with `<none>`.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::args::ImagesArgs;
use super::failure::Failure;
use super::render::table;
use super::settings::Settings;
use super::stdout::stdout;
use super::template::Template;
use super::{age, find, size};
use crate::context::glob::Glob;
use crate::image::reference::Reference;
use crate::store::images::ImageRecord;

const NONE: &str = "<none>";

/// Prints them.
pub(super) fn run(args: &ImagesArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let format = args.format.as_deref().map(format).transpose()?;
    let filter = Filter::new(args)?;
    let store = find::store(settings)?;
    let mut images = store.images().map_err(anyhow::Error::from)?;
    images.sort_by_key(|image| std::cmp::Reverse(find::seconds(image.created.as_deref())));
    let mut rows = Vec::new();
    for image in &images {
        let names = find::names(image);
        if names.is_empty() {
            rows.push((image, None));
        }
        rows.extend(names.into_iter().map(|name| (image, Some(name))));
    }
    rows.retain(|(_, name)| filter.takes(name.as_ref()));
    let now = find::now();
    let rows = rows.iter().map(|(image, name)| row(image, name.as_ref(), args.no_trunc, now));
    let mut out = stdout();
    match format {
        _ if args.quiet => {
            for row in rows {
                writeln!(out, "{}", text(&row, "ID"))?;
            }
        }
        Some(Format::Json) => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Some(Format::Template(template)) => {
            for row in rows {
                let line = template.render(&row).map_err(|why| Failure::Usage(format!("--format: {why}")))?;
                writeln!(out, "{line}")?;
            }
        }
        Some(Format::Table) | None => {
            let columns: &[(&str, &str)] = if args.digests {
                &[
                    ("REPOSITORY", "Repository"),
                    ("TAG", "Tag"),
                    ("DIGEST", "Digest"),
                    ("CONTENT DIGEST", "ContentDigest"),
                    ("IMAGE ID", "ID"),
                    ("CREATED", "CreatedSince"),
                    ("SIZE", "Size"),
                ]
            } else {
                &[
                    ("REPOSITORY", "Repository"),
                    ("TAG", "Tag"),
                    ("IMAGE ID", "ID"),
                    ("CREATED", "CreatedSince"),
                    ("SIZE", "Size"),
                ]
            };
            let heading: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
            let cells = rows.map(|row| columns.iter().map(|(_, field)| text(&row, field)).collect::<Vec<_>>());
            table::write(&mut out, &heading, cells)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--format` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
    Template(Template),
}

/// Reads `--format` of a command that prints rows.
pub(super) fn format(text: &str) -> Result<Format, Failure> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        text if text.starts_with("table ") => {
            Err(Failure::Usage("not supported yet: --format \"table TEMPLATE\"; leave `table` out, or use json".into()))
        }
        text => {
            // Shells make it hard to write these two; Docker reads them like that.
            let text = text.replace("\\t", "\t").replace("\\n", "\n");
            Template::parse(&text).map(Format::Template).map_err(|why| Failure::Usage(format!("--format: {why}")))
        }
    }
}

pub(super) fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

fn row(image: &ImageRecord, name: Option<&Reference>, whole: bool, now: i64) -> Value {
    let created = find::seconds(image.created.as_deref());
    let none = || NONE.to_owned();
    json!({
        "Repository": name.map_or_else(none, Reference::familiar_name),
        "Tag": name.and_then(Reference::tag).unwrap_or(NONE),
        "Digest": image.manifest.to_string(),
        "ContentDigest": image.content.map_or_else(none, |content| content.to_string()),
        "ID": if whole { image.id.to_string() } else { find::short(&image.id) },
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), |created| age::ago(created, now)),
        "CreatedAt": image.created.clone().unwrap_or_default(),
        "Size": size::human(image.size),
    })
}

/// Which rows are shown.
#[derive(Debug, Default)]
struct Filter {
    references: Vec<(String, Glob)>,
    dangling: Option<bool>,
}

impl Filter {
    fn new(args: &ImagesArgs) -> Result<Self, Failure> {
        let mut filter = Self::default();
        let asked = args.filters.iter().filter(|(key, _)| key == "reference").map(|(_, value)| value);
        for pattern in args.reference.iter().chain(asked) {
            let glob = Glob::element(pattern).map_err(|why| Failure::Usage(format!("{pattern}: {why}")))?;
            filter.references.push((pattern.clone(), glob));
        }
        for (key, value) in &args.filters {
            match (key.as_str(), value.as_str()) {
                ("reference", _) => {}
                ("dangling", "true" | "1") => filter.dangling = Some(true),
                ("dangling", "false" | "0") => filter.dangling = Some(false),
                ("dangling", other) => {
                    return Err(Failure::Usage(format!("--filter dangling={other}: expected true or false")));
                }
                ("label" | "before" | "since" | "until", _) => {
                    return Err(Failure::Usage(format!("not supported yet: --filter {key}=")));
                }
                _ => return Err(Failure::Usage(format!("there is no filter {key}; there are dangling, reference"))),
            }
        }
        Ok(filter)
    }

    fn takes(&self, name: Option<&Reference>) -> bool {
        if self.dangling.is_some_and(|dangling| dangling != name.is_none()) {
            return false;
        }
        self.references.is_empty()
            || name.is_some_and(|name| {
                let whole = name.to_string();
                let repository = whole.rsplit_once(':').map_or(whole.as_str(), |(repository, _)| repository);
                let shown = [name.familiar(), name.familiar_name(), repository.to_owned(), whole.clone()];
                self.references.iter().any(|(_, glob)| shown.iter().any(|shown| glob.matches(shown.as_bytes())))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_matched_as_docker_does() {
        let name = Reference::parse("ghcr.io/team/app:1.2").unwrap();
        let hub = Reference::parse("nginx").unwrap();
        for (pattern, takes, takes_hub) in [
            ("nginx", false, true),
            ("nginx:latest", false, true),
            ("docker.io/library/nginx", false, true),
            ("nginx:1", false, false),
            ("ngin?", false, true),
            ("*", false, true),
            ("ghcr.io/team/app", true, false),
            ("ghcr.io/*/app:1.*", true, false),
            ("ghcr.io/*", false, false),
            ("app", false, false),
        ] {
            let args = ImagesArgs { reference: Some(pattern.to_owned()), ..ImagesArgs::default() };
            let filter = Filter::new(&args).unwrap();
            assert_eq!((filter.takes(Some(&name)), filter.takes(Some(&hub))), (takes, takes_hub), "{pattern}");
            assert!(!filter.takes(None), "{pattern}");
        }
        for (key, value, status) in
            [("dangling", "true", None), ("dangling", "x", Some(2)), ("label", "a", Some(2)), ("nonsense", "", Some(2))]
        {
            let args = ImagesArgs { filters: vec![(key.into(), value.into())], ..ImagesArgs::default() };
            assert_eq!(Filter::new(&args).err().map(|failure| failure.status()), status, "{key}");
        }
    }
}
