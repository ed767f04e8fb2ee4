//! `rbuild history`: how an image was made.
//!
//! In: an image's config and the indexes of its layers. Out: a table, newest first, or text by a template. What always
//! holds: only the first row has an id, as no other belongs to an image that anyone could use.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::args::HistoryArgs;
use super::failure::Failure;
use super::rows::{Format, text};
use super::settings::Settings;
use super::stdout::stdout;
use super::{age, find, size};
use crate::digest::{DiffId, ImageId};
use crate::image::config::History;
use crate::image::manifest::Descriptor;
use crate::plan::BaseImage;
use crate::store::{Store, base};

/// Columns that CREATED BY has in the table.
const SHOWN: usize = 45;

/// 2000-01-01: what claims to be older was made without a clock.
const NO_CLOCK: i64 = 946_684_800;

/// The heading of every placeholder.
const HEADINGS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Prints it.
pub(super) fn run(args: &HistoryArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let format = Format::parse(args.format.as_deref(), None)?;
    let platform = args.platform.as_deref().map(find::platform).transpose()?;
    let store = find::store(settings)?;
    let record = find::image(&store, &args.image)?;
    let image = match &platform {
        None => base::base_image(&store, &record).map_err(anyhow::Error::from)?,
        Some(platform) => {
            let images = base::base_images(&store, &record).map_err(anyhow::Error::from)?;
            find::for_platform(images, platform, &args.image)?
        }
    };
    let sizes = sizes(&store, &image)?;
    let now = find::now();
    let rows: Vec<Value> = image
        .config
        .history
        .iter()
        .zip(sizes)
        .rev()
        .enumerate()
        .map(|(number, (entry, size))| row(entry, size, (number == 0).then_some(&image.image_id), args, now))
        .collect();
    let mut out = stdout();
    if args.quiet && format == Format::Table {
        for row in &rows {
            writeln!(out, "{}", text(row, "ID"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let created = if args.human { "CreatedSince" } else { "CreatedAt" };
    format.write(&mut out, &["ID", created, "CreatedBy", "Size", "Comment"], &HEADINGS, rows)?;
    Ok(ExitCode::SUCCESS)
}

/// The size of the layer of each history entry, by its blob where the layer is not here; nothing for those without one.
fn sizes(store: &Store, image: &BaseImage) -> Result<Vec<u64>, Failure> {
    let mut layers = image.config.rootfs.diff_ids.iter().zip(&image.layers);
    let size = |(layer, blob): (&DiffId, &Descriptor)| {
        base::layer_size(store, layer, blob).map_err(|error| Failure::Error(error.into()))
    };
    image
        .config
        .history
        .iter()
        .map(|entry| if entry.empty_layer { Ok(0) } else { layers.next().map_or(Ok(0), size) })
        .collect()
}

fn row(entry: &History, bytes: u64, id: Option<&ImageId>, args: &HistoryArgs, now: i64) -> Value {
    let created = find::seconds(entry.created.as_deref());
    let created_at = created.map(created_at).unwrap_or_default();
    let shown = |id: &ImageId| if args.no_trunc { id.to_string() } else { find::short(id) };
    // A tab would begin a new column, and in a table a new line a new row.
    let in_table = args.format.as_deref().is_none_or(|format| format.starts_with("table"));
    let created_by = entry.created_by.replace(|letter| letter == '\t' || letter == '\n' && in_table, " ");
    json!({
        "ID": id.map_or_else(|| "<missing>".to_owned(), shown),
        "CreatedSince": match created {
            _ if !args.human => created_at.clone(),
            Some(created) if created > NO_CLOCK => age::ago(created, now),
            _ => "N/A".to_owned(),
        },
        "CreatedAt": created_at,
        "CreatedBy": if args.no_trunc { created_by } else { shorten(&created_by) },
        "Size": if args.human { size::human(bytes) } else { bytes.to_string() },
        "Comment": entry.comment.clone(),
    })
}

/// A time by RFC 3339, in whole seconds and in the zone of this machine.
fn created_at(seconds: i64) -> String {
    age::local(seconds, "%Y-%m-%dT%H:%M:%S%:z", "%Y-%m-%dT%H:%M:%SZ")
}

/// Cut to what the table shows, the last letter of it an ellipsis.
fn shorten(text: &str) -> String {
    if text.width() <= SHOWN {
        return text.to_owned();
    }
    let mut left = SHOWN - 1;
    let fits = |letter: &char| {
        let width = letter.width().unwrap_or(0);
        left.checked_sub(width).inspect(|rest| left = *rest).is_some()
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_docker_like() {
        let entry = |created: &str, by: &str| History {
            created: Some(created.to_owned()),
            created_by: by.to_owned(),
            ..History::default()
        };
        let args =
            HistoryArgs { image: "x".into(), human: true, no_trunc: false, quiet: false, format: None, platform: None };
        let long = "RUN /bin/sh -c apt-get update && apt-get install -y nginx # buildkit";
        for (entry, id, human, created, by, size) in [
            (entry("2024-01-01T00:00:00Z", "CMD"), false, true, "2 hours ago", "CMD", "1.5kB"),
            (entry("2024-01-01T00:00:00.123456Z", "CMD"), false, false, "2024-01-01T00:00:00Z", "CMD", "1500"),
            (entry("1970-01-01T00:00:00Z", long), false, true, "N/A", &format!("{}…", &long[..44]), "1.5kB"),
            (entry("nonsense", "a\tb\nc"), true, true, "N/A", "a b c", "1.5kB"),
        ] {
            let id = id.then_some(ImageId(crate::digest::Digest::of(b"")));
            let args = HistoryArgs { human, ..args.clone() };
            let row = row(&entry, 1500, id.as_ref(), &args, 1_704_067_200 + 7200);
            assert_eq!(row["ID"], if id.is_some() { "e3b0c44298fc" } else { "<missing>" });
            assert_eq!(row["CreatedSince"], created);
            assert!(human || row["CreatedAt"] == created);
            assert_eq!((&row["CreatedBy"], &row["Size"]), (&by.into(), &size.into()));
        }
        for (format, by) in [("{{.CreatedBy}}", "a b\nc"), ("json", "a b\nc"), ("table {{.CreatedBy}}", "a b c")] {
            let args = HistoryArgs { format: Some(format.to_owned()), ..args.clone() };
            assert_eq!(row(&entry("", "a\tb\nc"), 0, None, &args, 0)["CreatedBy"], by, "{format}");
        }
        assert_eq!(shorten(&"ü".repeat(45)), "ü".repeat(45));
        assert_eq!(shorten(&"中".repeat(23)), format!("{}…", "中".repeat(22)));
        assert_eq!(shorten(&"中".repeat(22)), "中".repeat(22));
    }
}
