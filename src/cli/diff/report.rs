//! What a comparison found, for people and for programs.
//!
//! In: the fields, layers and files that differ. Out: text, or JSON. What always holds: names from images are shown
//! without control characters; both forms say the same.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::cause::Cause;
use crate::digest::{ContentDigest, DiffId, Digest, ImageId};
use crate::image::assemble::rfc3339;
use crate::image::compare::FieldChange;
use crate::layer::compare::Aspect;
use crate::layer::entry_ref::{EntryRef, KindRef};

/// Lines for files that the text has at most.
const MOST_FILES: usize = 1000;

/// All that differs between two images.
#[derive(Debug, PartialEq)]
pub(in crate::cli) struct Report {
    pub(in crate::cli) names: [String; 2],
    pub(in crate::cli) ids: [ImageId; 2],
    pub(in crate::cli) contents: [Option<ContentDigest>; 2],
    pub(in crate::cli) manifests: [Digest; 2],
    pub(in crate::cli) config: Vec<FieldChange>,
    pub(in crate::cli) layers: Vec<LayerReport>,
    pub(in crate::cli) files: Vec<FileReport>,
}

/// A layer that is not the same.
#[derive(Debug, PartialEq)]
pub(in crate::cli) struct LayerReport {
    pub(super) number: usize,
    pub(super) layers: [Option<DiffId>; 2],
    pub(super) contents: [Option<ContentDigest>; 2],
    pub(super) steps: [Option<String>; 2],
}

/// A file that is not the same.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct FileReport {
    /// The layer it is in; `None` where what is visible was compared.
    pub(in crate::cli) layer: Option<usize>,
    pub(in crate::cli) path: Vec<u8>,
    pub(in crate::cli) a: Option<EntryReport>,
    pub(in crate::cli) b: Option<EntryReport>,
    pub(in crate::cli) aspects: Vec<Aspect>,
    /// The first byte that differs.
    pub(in crate::cli) offset: Option<u64>,
    pub(in crate::cli) cause: Option<Cause>,
}

/// What one side has.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct EntryReport {
    kind: &'static str,
    content: Option<(u64, Digest)>,
    link: Option<Vec<u8>>,
    device: Option<(u32, u32)>,
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    capability: Option<Vec<u8>>,
}

impl EntryReport {
    pub(super) fn of(entry: &EntryRef<'_>) -> Self {
        let (mut content, mut link, mut device) = (None, None, None);
        let kind = match entry.kind {
            KindRef::File { size, sha256 } => {
                content = Some((size, sha256));
                "file"
            }
            KindRef::HardLink { target } => {
                link = Some(target.to_vec());
                "hard link"
            }
            KindRef::Symlink { target } => {
                link = Some(target.to_vec());
                "symbolic link"
            }
            KindRef::CharDevice { major, minor } => {
                device = Some((major, minor));
                "character device"
            }
            KindRef::BlockDevice { major, minor } => {
                device = Some((major, minor));
                "block device"
            }
            KindRef::Directory => "directory",
            KindRef::Fifo => "pipe",
            KindRef::Whiteout => "whiteout",
            KindRef::Opaque => "opaque mark",
        };
        let owner = (entry.uid, entry.gid);
        let capability = entry.capability.map(<[u8]>::to_vec);
        Self { kind, content, link, device, mode: entry.mode, owner, mtime: entry.mtime, capability }
    }

    /// The value of one aspect, for people.
    fn value(&self, aspect: Aspect) -> String {
        match aspect {
            Aspect::Kind => self.kind.to_owned(),
            Aspect::Content => self.content.map_or_else(String::new, |(size, _)| format!("{size} bytes")),
            Aspect::Mode => format!("{:04o}", self.mode),
            Aspect::Owner => format!("{}:{}", self.owner.0, self.owner.1),
            Aspect::Time => rfc3339(self.mtime),
            Aspect::Link => self.link.as_deref().map(shown).unwrap_or_default(),
            Aspect::Device => self.device.map_or_else(String::new, |(major, minor)| format!("{major},{minor}")),
            Aspect::Xattr => match &self.capability {
                Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                None => "none".to_owned(),
            },
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({
            "type": self.kind,
            "mode": format!("{:04o}", self.mode),
            "uid": self.owner.0,
            "gid": self.owner.1,
            "mtime": self.mtime,
        });
        if let Some((size, digest)) = self.content {
            value["size"] = json!(size);
            value["digest"] = json!(digest.to_string());
        }
        if let Some(link) = &self.link {
            value["link"] = json!(String::from_utf8_lossy(link));
        }
        if let Some((major, minor)) = self.device {
            value["device"] = json!([major, minor]);
        }
        if self.capability.is_some() {
            value["capability"] = json!(self.value(Aspect::Xattr));
        }
        value
    }
}

/// A name of an image, fit for a terminal.
pub(in crate::cli) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

impl FileReport {
    /// One line for it.
    pub(in crate::cli) fn line(&self) -> String {
        let mut line = format!("/{}: ", shown(&self.path));
        match (&self.a, &self.b) {
            (Some(a), None) => {
                let _ = write!(line, "{} only in the first", a.kind);
            }
            (None, Some(b)) => {
                let _ = write!(line, "{} only in the second", b.kind);
            }
            (Some(a), Some(b)) => {
                for (number, aspect) in self.aspects.iter().enumerate() {
                    let comma = if number > 0 { ", " } else { "" };
                    let (x, y) = (a.value(*aspect), b.value(*aspect));
                    let _ = match (aspect, self.offset) {
                        (Aspect::Content, offset) => {
                            let sizes = if x == y { x } else { format!("{x} → {y}") };
                            let from = offset.map_or_else(String::new, |at| format!(", differing from byte {at}"));
                            write!(line, "{comma}content ({sizes}{from})")
                        }
                        _ => write!(line, "{comma}{} {x} → {y}", aspect.name()),
                    };
                }
            }
            (None, None) => {}
        }
        line
    }

    pub(in crate::cli) fn json(&self) -> Value {
        let mut value = json!({
            "path": format!("/{}", String::from_utf8_lossy(&self.path)),
            "layer": self.layer,
            "change": match (&self.a, &self.b) {
                (Some(_), None) => "removed",
                (None, Some(_)) => "added",
                _ => "changed",
            },
            "differs": self.aspects.iter().map(|aspect| aspect.name()).collect::<Vec<_>>(),
            "a": self.a.as_ref().map(EntryReport::json),
            "b": self.b.as_ref().map(EntryReport::json),
        });
        if let Some(offset) = self.offset {
            value["offset"] = json!(offset);
        }
        if let Some(cause) = &self.cause {
            value["cause"] = json!({"what": cause.what, "remedy": cause.remedy});
        }
        value
    }
}

impl Report {
    /// Whether nothing differs.
    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.config.is_empty() && self.layers.is_empty() && self.files.is_empty() && self.ids[0] == self.ids[1]
    }

    /// For people; empty where nothing differs.
    pub(in crate::cli) fn text(&self) -> String {
        let mut text = String::new();
        if self.is_empty() {
            return text;
        }
        // Writing to a String cannot fail.
        let mut line = |line: &str| text.push_str(&format!("{line}\n"));
        for (sign, number) in [("-", 0), ("+", 1)] {
            line(&format!("{sign} {} image {}", self.names[number], self.ids[number]));
        }
        match self.contents {
            [Some(a), Some(b)] if a == b => line(&format!("  the content is the same, {a}: only times differ")),
            _ => {}
        }
        if !self.config.is_empty() {
            line("config");
        }
        for change in &self.config {
            let value = |value: &Option<Value>| value.as_ref().map_or_else(|| "none".to_owned(), Value::to_string);
            line(&format!("  {}: {} → {}", shown(change.field.as_bytes()), value(&change.a), value(&change.b)));
        }
        if !self.layers.is_empty() {
            line("layers");
        }
        for layer in &self.layers {
            let id = |id: &Option<DiffId>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let note = if layer.contents[0].is_some() && layer.contents[0] == layer.contents[1] {
                " (same content, other times)"
            } else {
                ""
            };
            line(&format!("  {}: {} → {}{note}", layer.number + 1, id(&layer.layers[0]), id(&layer.layers[1])));
            for step in steps(&layer.steps) {
                line(&format!("     {step}"));
            }
        }
        if !self.files.is_empty() {
            line("files");
        }
        for file in self.files.iter().take(MOST_FILES) {
            let layer = file.layer.map_or_else(String::new, |layer| format!("layer {}: ", layer + 1));
            line(&format!("  {layer}{}", file.line()));
            if let Some(Cause { what, remedy }) = &file.cause {
                line(&format!("     {what}; others mend it so: {remedy}"));
            }
        }
        if self.files.len() > MOST_FILES {
            line(&format!("  and {} more; --format json has them all", self.files.len() - MOST_FILES));
        }
        text
    }

    /// For programs.
    pub(in crate::cli) fn json(&self) -> Value {
        let image = |number: usize| {
            json!({
                "name": self.names[number],
                "id": self.ids[number].to_string(),
                "digest": self.manifests[number].to_string(),
                "content": self.contents[number].map(|content| content.to_string()),
            })
        };
        let config = self.config.iter().map(|change| json!({"field": change.field, "a": change.a, "b": change.b}));
        let layers = self.layers.iter().map(|layer| {
            let side = |number: usize| {
                layer.layers[number].map(|id| {
                    let content = layer.contents[number].map(|content| content.to_string());
                    json!({"diff_id": id.to_string(), "content": content, "created_by": layer.steps[number]})
                })
            };
            json!({"layer": layer.number, "a": side(0), "b": side(1)})
        });
        json!({
            "equal": self.is_empty(),
            "a": image(0),
            "b": image(1),
            "config": config.collect::<Vec<_>>(),
            "layers": layers.collect::<Vec<_>>(),
            "files": self.files.iter().map(FileReport::json).collect::<Vec<_>>(),
        })
    }
}

/// The instructions of two layers at one place: once where they are the same.
fn steps(steps: &[Option<String>; 2]) -> Vec<String> {
    let shown = |step: &String| shown(step.as_bytes());
    match steps {
        [Some(a), Some(b)] if a != b => vec![format!("- {}", shown(a)), format!("+ {}", shown(b))],
        [Some(step), _] | [None, Some(step)] => vec![shown(step)],
        [None, None] => Vec::new(),
    }
}
