//! `rbuild images`: which images there are.
//!
//! In: the records of the store. Out: a table, ids, or text by a template. What always holds: one row per name, newest
//! image first; an image without a name has one row with `<none>`.

use std::io::Write;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::args::{ImagesArgs, until};
use super::failure::Failure;
use super::rows::Format;
use super::settings::Settings;
use super::stdout::stdout;
use super::{age, find, size};
use crate::context::glob::Glob;
use crate::diagnostic::nearest;
use crate::digest::Digest;
use crate::image::reference::Reference;
use crate::store::images::ImageRecord;
use crate::store::{Store, base};

const NONE: &str = "<none>";

/// The heading of every placeholder.
const HEADINGS: [(&str, &str); 12] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ContentDigest", "CONTENT DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

/// What `--format raw` is: with ids alone, with digests, and as a rule.
const RAW: [&str; 3] = [
    "image_id: {{.ID}}",
    "repository: {{.Repository}}\ntag: {{.Tag}}\ndigest: {{.Digest}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n",
    "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n",
];

/// Prints them.
pub(super) fn run(args: &ImagesArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let raw = RAW[if args.quiet {
        0
    } else if args.digests {
        1
    } else {
        2
    }];
    let mut asked = args.format.clone();
    if let Some(text) = &mut asked
        && args.digests
        && text.starts_with("table ")
        && !text.contains("{{.Digest}}")
    {
        text.push_str("\\t{{.Digest}}");
    }
    let format = Format::parse(asked.as_deref(), Some(raw))?;
    let store = find::store(settings)?;
    let now = find::now();
    let filter = Filter::new(args, &store, now)?;
    let mut images = store.images().map_err(anyhow::Error::from)?;
    images.sort_by_key(|image| std::cmp::Reverse(age::moment(image.created.as_deref())));
    let mut rows = Vec::new();
    for image in &images {
        if !filter.takes_image(image, &store)? {
            continue;
        }
        let mut names = find::names(image);
        names.extend(find::repositories(&store, image)?);
        if names.is_empty() {
            rows.push((image, None));
        }
        rows.extend(names.into_iter().map(|name| (image, Some(name))));
    }
    let by_digest = filter.references.iter().any(|(pattern, _)| pattern.contains('@'));
    let mut shown = Vec::with_capacity(rows.len());
    for (image, name) in rows {
        let digest = match &name {
            Some(name) if by_digest => Some(find::digest(&store, image, name)?),
            _ => None,
        };
        if filter.takes(name.as_ref(), digest.as_ref()) {
            shown.push((image, name));
        }
    }
    let rows = shown;
    let mut out = stdout();
    if args.quiet && format == Format::Table {
        for (image, _) in rows {
            writeln!(out, "{}", if args.no_trunc { image.id.to_string() } else { find::short(&image.id) })?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let columns: &[&str] = if args.digests {
        &["Repository", "Tag", "Digest", "ContentDigest", "ID", "CreatedSince", "Size"]
    } else {
        &["Repository", "Tag", "ID", "CreatedSince", "Size"]
    };
    // A file for each image: only where somebody looks at it.
    let digests =
        args.digests || asked.is_some_and(|format| ["Digest", "json"].iter().any(|word| format.contains(word)));
    let digest = |image: &ImageRecord, name: &Option<Reference>| match name {
        Some(name) if digests => find::digest(&store, image, name),
        _ => Ok(image.manifest),
    };
    let rows =
        rows.iter().map(|(image, name)| Ok(row(image, name.as_ref(), &digest(image, name)?, args.no_trunc, now)));
    format.write(&mut out, columns, &HEADINGS, rows.collect::<Result<Vec<_>, Failure>>()?)?;
    Ok(ExitCode::SUCCESS)
}

fn row(image: &ImageRecord, name: Option<&Reference>, digest: &Digest, whole: bool, now: i64) -> Value {
    let created = find::seconds(image.created.as_deref());
    let none = || NONE.to_owned();
    let unknown = "N/A";
    json!({
        "Repository": name.map_or_else(none, Reference::familiar_name),
        "Tag": name.and_then(Reference::tag).unwrap_or(NONE),
        "Digest": digest.to_string(),
        "ContentDigest": image.content.map_or_else(none, |content| content.to_string()),
        "ID": if whole { image.id.to_string() } else { find::short(&image.id) },
        "CreatedSince": created.map_or_else(|| unknown.to_owned(), |created| age::ago(created, now)),
        "CreatedAt": created.map_or_else(|| unknown.to_owned(), created_at),
        "Size": size::human(image.size),
        "VirtualSize": size::human(image.size),
        "Containers": unknown,
        "SharedSize": unknown,
        "UniqueSize": unknown,
    })
}

/// A time as Go's `String` has it, in the zone of this machine, which is what Docker prints here.
fn created_at(seconds: i64) -> String {
    age::local(seconds, "%Y-%m-%d %H:%M:%S %z %Z", "%Y-%m-%d %H:%M:%S +0000 UTC")
}

/// A label that images are to have, or with `false` not to have.
#[derive(Debug)]
struct Label {
    name: String,
    /// Its value; `None` is any.
    value: Option<String>,
    has: bool,
}

/// Which rows are shown.
#[derive(Debug, Default)]
struct Filter {
    references: Vec<(String, Glob)>,
    dangling: Option<bool>,
    labels: Vec<Label>,
    /// Made before.
    before: Option<Timestamp>,
    /// Made after.
    since: Option<Timestamp>,
}

impl Filter {
    fn new(args: &ImagesArgs, store: &Store, now: i64) -> Result<Self, Failure> {
        let mut filter = Self::default();
        let asked = args.filters.iter().filter(|(key, _)| key == "reference").map(|(_, value)| value);
        for pattern in args.reference.iter().chain(asked) {
            let glob = Glob::element(pattern).map_err(|why| Failure::Usage(format!("{pattern}: {why}")))?;
            filter.references.push((pattern.clone(), glob));
        }
        // An image without a time was made before all others.
        let made = |name: &str| -> Result<Timestamp, Failure> {
            Ok(age::moment(find::image(store, name)?.created.as_deref()).unwrap_or(Timestamp::MIN))
        };
        let earlier = |known: Option<Timestamp>, other| Some(known.map_or(other, |known| known.min(other)));
        for (key, value) in &args.filters {
            match (key.as_str(), value.as_str()) {
                ("reference", _) => {}
                ("dangling", "true" | "1") => filter.dangling = Some(true),
                ("dangling", "false" | "0") => filter.dangling = Some(false),
                ("dangling", other) => {
                    return Err(Failure::Usage(format!("--filter dangling={other}: expected true or false")));
                }
                ("label" | "label!", label) => {
                    let (name, value) = label.split_once('=').map_or((label, None), |(name, text)| (name, Some(text)));
                    let (name, value) = (name.to_owned(), value.map(str::to_owned));
                    filter.labels.push(Label { name, value, has: key == "label" });
                }
                ("before", name) => filter.before = earlier(filter.before, made(name)?),
                ("since", name) => filter.since = filter.since.max(Some(made(name)?)),
                ("until", text) => {
                    let until = until(text).map_err(|why| Failure::Usage(format!("--filter until: {why}")))?;
                    let until = Timestamp::from_second(until.seconds(now)).unwrap_or(Timestamp::MAX);
                    filter.before = earlier(filter.before, until);
                }
                (key, _) => {
                    let known = ["before", "dangling", "label", "label!", "reference", "since", "until"];
                    let meant = nearest(key, known).map_or_else(
                        || format!("there are {}", known.join(", ")),
                        |meant| format!("did you mean {meant}?"),
                    );
                    return Err(Failure::Usage(format!("there is no filter {key}; {meant}")));
                }
            }
        }
        Ok(filter)
    }

    /// By what the image is, whatever its names are. Its config is read only where labels are asked for.
    fn takes_image(&self, image: &ImageRecord, store: &Store) -> Result<bool, Failure> {
        let created = age::moment(image.created.as_deref()).unwrap_or(Timestamp::MIN);
        if self.before.is_some_and(|before| created >= before) || self.since.is_some_and(|since| created <= since) {
            return Ok(false);
        }
        if self.labels.is_empty() {
            return Ok(true);
        }
        let labels = base::base_image(store, image).map_err(anyhow::Error::from)?.config.config.labels;
        let fits = |Label { name, value, has }: &Label| {
            labels.get(name).is_some_and(|found| value.as_ref().is_none_or(|value| value == found)) == *has
        };
        Ok(self.labels.iter().all(fits))
    }

    /// By a name of the image, and the digest by which it is known under that, where somebody asks for it.
    fn takes(&self, name: Option<&Reference>, digest: Option<&Digest>) -> bool {
        if self.dangling.is_some_and(|dangling| dangling != name.is_none_or(|name| name.tag().is_none())) {
            return false;
        }
        self.references.is_empty()
            || name.is_some_and(|name| {
                let whole = name.to_string();
                let repository = whole.rsplit_once(':').map_or(whole.as_str(), |(repository, _)| repository);
                let mut shown = vec![name.familiar(), name.familiar_name(), repository.to_owned(), whole.clone()];
                if let Some(digest) = digest {
                    shown.extend([format!("{}@{digest}", name.familiar_name()), format!("{repository}@{digest}")]);
                }
                self.references.iter().any(|(_, glob)| shown.iter().any(|shown| glob.matches(shown.as_bytes())))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter_of(args: &ImagesArgs) -> Result<Filter, Failure> {
        let folder = tempfile::tempdir().unwrap();
        Filter::new(args, &Store::open(folder.path()).unwrap(), 0)
    }

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
            ("nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", false, true),
            ("docker.io/library/nginx@sha256:e3b0*", false, true),
            ("nginx@sha256:1*", false, false),
        ] {
            let args = ImagesArgs { reference: Some(pattern.to_owned()), ..ImagesArgs::default() };
            let filter = filter_of(&args).unwrap();
            let digest = Digest::of(b"");
            let shown = |name| filter.takes(Some(name), Some(&digest));
            assert_eq!((shown(&name), shown(&hub)), (takes, takes_hub), "{pattern}");
            assert!(!filter.takes(None, None), "{pattern}");
        }
        for (key, value, status) in
            [("dangling", "true", None), ("dangling", "x", Some(2)), ("label", "a", None), ("nonsense", "", Some(2))]
        {
            let args = ImagesArgs { filters: vec![(key.into(), value.into())], ..ImagesArgs::default() };
            assert_eq!(filter_of(&args).err().map(|failure| failure.status()), status, "{key}");
        }
    }
}
