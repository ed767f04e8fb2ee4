//! The documents of a finished image: config, history, manifest, and the digests that name it.
//!
//! In: what the planner made of the Dockerfile, the base, and the layers that the steps led to. Out: [`Assembled`].
//! What always holds: the base's history and layers come first and stay as they are; there are as many entries with
//! a layer in the history as there are layers; with an epoch no other time is in what was added.

use std::collections::BTreeMap;

use crate::digest::{ContentDigest, DiffId, Digest, Hasher, ImageId};
use crate::image::config::{History, ImageConfig};
use crate::image::manifest::{Descriptor, Family, Index, Kind, Manifest};
use crate::image::platform::Platform;
use crate::plan::BaseImage;
use crate::plan::step::{PlannedHistory, PlannedImage, StepId};

/// What BuildKit writes beside every instruction.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// What BuildKit writes where a layer has no instruction.
const COMMENT_WITHOUT_INSTRUCTION: &str = "buildkit.exporter.image.v0";

/// The first field of an image's content digest: another way to compute it gets another name.
const CONTENT_VERSION: &[u8] = b"rbuild image content 1";

/// The same of an index.
const INDEX_CONTENT_VERSION: &[u8] = b"rbuild index content 1";

/// A layer that a step led to.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLayer {
    /// In the form that the image lists: of true times, or of the epoch.
    pub diff_id: DiffId,
    /// What it holds, times left out.
    pub content: ContentDigest,
    /// Its blob.
    pub descriptor: Descriptor,
    /// When it was made, by RFC 3339; with an epoch it is not looked at.
    pub created: String,
}

/// All that an image is assembled from.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What the planner made of it.
    pub image: &'a PlannedImage,
    /// The image under it; `None` for scratch.
    pub base: Option<&'a BaseImage>,
    /// The content digests of the base's layers, bottom first; `None` where they never came to this machine.
    pub base_contents: Option<&'a [ContentDigest]>,
    /// The layers of the image's steps.
    pub layers: &'a BTreeMap<StepId, NewLayer>,
    /// The time that all new entries get.
    pub epoch: Option<i64>,
    /// Whose media types the manifest uses.
    pub family: Family,
}

/// The documents of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Assembled {
    /// The config.
    pub config: ImageConfig,
    /// Its bytes.
    pub config_bytes: Vec<u8>,
    /// Their digest.
    pub image_id: ImageId,
    /// What the image holds, times left out; `None` where the base's part is not known.
    pub content: Option<ContentDigest>,
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes.
    pub manifest_bytes: Vec<u8>,
}

impl Assembled {
    /// The descriptor of the manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::of(self.manifest.family().manifest(), &self.manifest_bytes)
    }

    /// The same image with a manifest of another family, with other blobs of the same layers and with annotations.
    pub fn listed(&self, family: Family, layers: Vec<Descriptor>, annotations: BTreeMap<String, String>) -> Self {
        let config = Descriptor { media_type: family.config(), ..self.manifest.config.clone() };
        let layers = layers.into_iter().map(|blob| in_family(blob, family)).collect();
        let manifest = Manifest { annotations, ..Manifest::new(family, config, layers) };
        Self { manifest_bytes: manifest.to_bytes(), manifest, ..self.clone() }
    }
}

/// An index over images: its bytes, and what names it.
#[derive(Debug, Clone, PartialEq)]
pub struct AssembledIndex {
    /// The index.
    pub index: Index,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl AssembledIndex {
    /// The index over these manifests, each for its platform.
    pub fn new(family: Family, manifests: Vec<(Descriptor, Platform)>, annotations: BTreeMap<String, String>) -> Self {
        let entry = |(descriptor, platform): (Descriptor, Platform)| Descriptor {
            platform: Some((&platform).into()),
            ..descriptor
        };
        let mut index = Index::new(family, manifests.into_iter().map(entry).collect());
        index.annotations = annotations;
        Self { bytes: index.to_bytes(), index }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::of(self.index.family().index(), &self.bytes)
    }
}

/// Why the parts do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A step of the image has no layer.
    #[error("step {} of the plan has no layer", .0.0)]
    MissingLayer(StepId),
    /// The base's config and manifest do not agree.
    #[error("base image {name} has {blobs} layers in its manifest and {diff_ids} in its config")]
    BaseLayers {
        /// Its name.
        name: String,
        /// How many its manifest lists.
        blobs: usize,
        /// How many its config lists.
        diff_ids: usize,
    },
}

/// Makes the documents.
pub fn assemble(parts: &Parts<'_>) -> Result<Assembled, AssembleError> {
    let Parts { image, base, base_contents, layers, epoch, family } = *parts;
    let mut config = image.config.clone();
    let mut blobs: Vec<Descriptor> = base.map(|base| base.layers.clone()).unwrap_or_default();
    if blobs.len() != config.rootfs.diff_ids.len() {
        return Err(AssembleError::BaseLayers {
            name: base.map(|base| base.name.clone()).unwrap_or_default(),
            blobs: blobs.len(),
            diff_ids: config.rootfs.diff_ids.len(),
        });
    }
    settle_history(&mut config);
    let new = image
        .history
        .iter()
        .filter_map(|entry| entry.step)
        .map(|step| layers.get(&step).ok_or(AssembleError::MissingLayer(step)))
        .collect::<Result<Vec<_>, _>>()?;
    let epoch = epoch.map(rfc3339);
    let before = config.created.clone().or_else(|| config.history.iter().rev().find_map(|entry| entry.created.clone()));
    let time = |layer: &NewLayer| epoch.clone().unwrap_or_else(|| layer.created.clone());
    // Before the first new layer stands that layer's time: the base's would say that the instruction is as old.
    let mut now = epoch.clone().or_else(|| new.first().map(|layer| time(layer))).or(before);
    for PlannedHistory { created_by, step } in &image.history {
        if let Some(layer) = step.and_then(|step| layers.get(&step)) {
            now = Some(time(layer));
        }
        config.history.push(History {
            created: now.clone(),
            created_by: created_by.clone(),
            comment: COMMENT.to_owned(),
            empty_layer: step.is_none(),
            ..History::default()
        });
    }
    if let Some(epoch) = epoch {
        config.created = Some(epoch);
    } else if !new.is_empty() {
        config.created = now;
    }
    config.rootfs.diff_ids.extend(new.iter().map(|layer| layer.diff_id));
    blobs.extend(new.iter().map(|layer| layer.descriptor.clone()));

    let below = if config.rootfs.diff_ids.len() == new.len() { Some(&[][..]) } else { base_contents };
    let content = below.filter(|below| below.len() + new.len() == blobs.len()).map(|below| {
        let contents: Vec<ContentDigest> = below.iter().copied().chain(new.iter().map(|layer| layer.content)).collect();
        image_content_digest(&config, &contents)
    });
    let config_bytes = config.to_bytes();
    let image_id = ImageId(Digest::of(&config_bytes));
    let blobs = blobs.into_iter().map(|blob| in_family(blob, family)).collect();
    let manifest = Manifest::new(family, Descriptor::of(family.config(), &config_bytes), blobs);
    let manifest_bytes = manifest.to_bytes();
    Ok(Assembled { config, config_bytes, image_id, content, manifest, manifest_bytes })
}

/// The digest of what an image is, times left out: its config without `created`, history times and diffIDs, and the
/// content digests of all its layers, the base's included. A function of the image alone.
pub fn image_content_digest(config: &ImageConfig, layers: &[ContentDigest]) -> ContentDigest {
    let mut timeless = config.clone();
    timeless.created = None;
    timeless.rootfs.diff_ids.clear();
    for entry in &mut timeless.history {
        entry.created = None;
    }
    let mut hasher = Hasher::new();
    hasher.field(CONTENT_VERSION);
    hasher.field(&timeless.to_bytes());
    for layer in layers {
        hasher.field(layer.0.as_bytes());
    }
    ContentDigest(hasher.finish())
}

/// The digest of what several images are, times left out; `None` where one of them is not known.
pub fn index_content_digest(
    images: impl IntoIterator<Item = (Platform, Option<ContentDigest>)>,
) -> Option<ContentDigest> {
    let mut hasher = Hasher::new();
    hasher.field(INDEX_CONTENT_VERSION);
    for (platform, content) in images {
        hasher.field(platform.normalised().to_string().as_bytes());
        hasher.field(content?.0.as_bytes());
    }
    Some(ContentDigest(hasher.finish()))
}

/// Seconds since 1970 as RFC 3339 has them. Beyond the years that it can write (no epoch does),
/// the nearest that it can.
pub fn rfc3339(seconds: i64) -> String {
    let nearest = if seconds < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
    jiff::Timestamp::from_second(seconds).unwrap_or(nearest).to_string()
}

/// The same blob with the media type that the family has for it.
pub fn in_family(blob: Descriptor, family: Family) -> Descriptor {
    match Kind::of(&blob.media_type) {
        Some(Kind::Layer(encoding)) => Descriptor { media_type: family.layer(encoding), ..blob },
        _ => blob,
    }
}

/// Makes the history of a base fit its layers: tools count on it, and not every builder keeps to it.
fn settle_history(config: &mut ImageConfig) {
    let layers = config.rootfs.diff_ids.len();
    let mut seen = 0;
    for entry in config.history.iter_mut().filter(|entry| !entry.empty_layer) {
        seen += 1;
        entry.empty_layer = seen > layers;
    }
    let created = config.created.clone();
    let missing =
        || History { created: created.clone(), comment: COMMENT_WITHOUT_INSTRUCTION.to_owned(), ..History::default() };
    config.history.extend((seen..layers).map(|_| missing()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Encoding;
    use crate::plan::step::Stack;

    fn layer(name: &str, created: &str) -> NewLayer {
        NewLayer {
            diff_id: DiffId(Digest::of(name.as_bytes())),
            content: ContentDigest(Digest::of(format!("content of {name}").as_bytes())),
            descriptor: Descriptor::of(Family::Oci.layer(Encoding::Tar), name.as_bytes()),
            created: created.to_owned(),
        }
    }

    fn base(config: &str) -> BaseImage {
        let config = ImageConfig::parse(config.as_bytes()).unwrap();
        let blob = |id: &DiffId| Descriptor::new(Family::Docker.layer(Encoding::Gzip), id.0, 9);
        BaseImage {
            name: "base".into(),
            image_id: config.image_id(),
            manifest: None,
            layers: config.rootfs.diff_ids.iter().map(blob).collect(),
            platform: config.platform(),
            config,
        }
    }

    /// History entries that stand for a layer are `L0`, `L1`… in `history`, made at second 10, 20…
    fn assembled(base: Option<&BaseImage>, history: &[&str], epoch: Option<i64>) -> Assembled {
        let mut layers = BTreeMap::new();
        let entry = |text: &&str| {
            let step = text.strip_prefix('L').map(|number| StepId(number.parse().unwrap()));
            if let Some(StepId(number)) = step {
                layers.insert(StepId(number), layer(text, &rfc3339(10 * (number as i64 + 1))));
            }
            PlannedHistory { created_by: (*text).to_owned(), step }
        };
        let history = history.iter().map(entry).collect();
        let config = base.map(|base| base.config.clone()).unwrap_or_default();
        let platform = config.platform();
        let image = PlannedImage { platform, stack: Stack::Scratch, base: None, config, history };
        let contents: Vec<ContentDigest> =
            base.iter().flat_map(|base| &base.layers).map(|blob| ContentDigest(blob.digest)).collect();
        let parts =
            Parts { image: &image, base, base_contents: Some(&contents), layers: &layers, epoch, family: Family::Oci };
        assemble(&parts).unwrap()
    }

    /// `text@seconds`, with `-` behind what has no layer.
    fn show(history: &[History]) -> String {
        let show = |entry: &History| {
            let time = entry.created.as_ref().map_or_else(
                || "none".to_owned(),
                |time| time.parse::<jiff::Timestamp>().unwrap().as_second().to_string(),
            );
            format!("{}@{time}{}", entry.created_by, if entry.empty_layer { "-" } else { "" })
        };
        history.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    const ONE: &str = r#"{"created":"1970-01-01T00:00:05Z","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"history":[{"created":"1970-01-01T00:00:01Z","created_by":"B"},{"created":"1970-01-01T00:00:02Z","created_by":"C","empty_layer":true}]}"#;

    #[test]
    fn times_in_the_history_are_those_of_the_layers() {
        let one = base(ONE);
        for (base, history, epoch, expected, created) in [
            (None, &["a", "L0", "b", "L1", "c"][..], None, "a@10- L0@10 b@10- L1@20 c@20-", Some(20)),
            (None, &["a"], None, "a@none-", None),
            (None, &[], None, "", None),
            (None, &["a", "L0"], Some(7), "a@7- L0@7", Some(7)),
            (None, &["a"], Some(7), "a@7-", Some(7)),
            (Some(&one), &["a", "L0"], None, "B@1 C@2- a@10- L0@10", Some(10)),
            (Some(&one), &["a"], None, "B@1 C@2- a@5-", Some(5)),
            (Some(&one), &[], None, "B@1 C@2-", Some(5)),
            (Some(&one), &["a", "L0"], Some(0), "B@1 C@2- a@0- L0@0", Some(0)),
        ] {
            let Assembled { config, .. } = assembled(base, history, epoch);
            assert_eq!(show(&config.history), expected, "{history:?}");
            assert_eq!(config.created, created.map(rfc3339), "{history:?}");
            let with_layer = config.history.iter().filter(|entry| !entry.empty_layer).count();
            assert_eq!(with_layer, config.rootfs.diff_ids.len());
        }
    }

    #[test]
    fn a_base_whose_history_does_not_fit_its_layers_is_set_right() {
        for (history, expected) in [
            ("[]", "@5 L0@10"),
            (r#"[{"created_by":"x"},{"created_by":"y"}]"#, "x@none y@none- L0@10"),
            (r#"[{"created_by":"x","empty_layer":true}]"#, "x@none- @5 L0@10"),
        ] {
            let text = ONE.split(",\"history\"").next().unwrap();
            let base = base(&format!("{text},\"history\":{history}}}"));
            let Assembled { config, .. } = assembled(Some(&base), &["L0"], None);
            assert_eq!(show(&config.history), expected);
        }
    }

    #[test]
    fn documents_agree_with_each_other() {
        let one = base(ONE);
        let image = assembled(Some(&one), &["L0", "L1"], None);
        assert_eq!(image.image_id, ImageId(Digest::of(&image.config_bytes)));
        assert_eq!(image.manifest.config, Descriptor::of(Family::Oci.config(), &image.config_bytes));
        let types: Vec<&str> = image.manifest.layers.iter().map(|blob| blob.media_type.as_ref()).collect();
        let (gzip, tar) = (Family::Oci.layer(Encoding::Gzip), Family::Oci.layer(Encoding::Tar));
        assert_eq!(types, [gzip.as_ref(), tar.as_ref(), tar.as_ref()]);
        assert_eq!(Manifest::parse(&image.manifest_bytes).unwrap(), image.manifest);
        assert_eq!(ImageConfig::parse(&image.config_bytes).unwrap(), image.config);
        assert_eq!(image.descriptor().digest, Digest::of(&image.manifest_bytes));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let one = base(ONE);
        let mut parts = Parts {
            image: &PlannedImage {
                platform: one.platform.clone(),
                stack: Stack::Scratch,
                base: None,
                config: one.config.clone(),
                history: vec![PlannedHistory { created_by: "x".into(), step: Some(StepId(3)) }],
            },
            base: Some(&one),
            base_contents: None,
            layers: &BTreeMap::new(),
            epoch: None,
            family: Family::Oci,
        };
        assert_eq!(assemble(&parts), Err(AssembleError::MissingLayer(StepId(3))));
        let layers = BTreeMap::from([(StepId(3), layer("x", "1970-01-01T00:00:00Z"))]);
        parts.layers = &layers;
        assert_eq!(assemble(&parts).unwrap().content, None, "the base's layers are not known");
        parts.base = None;
        assert!(matches!(assemble(&parts), Err(AssembleError::BaseLayers { blobs: 0, diff_ids: 1, .. })));
    }

    #[test]
    fn the_content_digest_leaves_out_times_alone() {
        let one = base(ONE);
        let content = |history: &[&str], epoch| assembled(Some(&one), history, epoch).content.unwrap();
        let first = content(&["a", "L0"], None);
        assert_eq!(content(&["a", "L0"], Some(1)), first);
        assert_ne!(content(&["b", "L0"], None), first);
        assert_ne!(content(&["L0", "a"], None), first);
        assert_ne!(content(&["a", "L1"], None), first, "another layer");
        let mut config = one.config.clone();
        let before = image_content_digest(&config, &[]);
        config.rootfs.diff_ids.clear();
        config.created = None;
        config.history[0].created = None;
        assert_eq!(image_content_digest(&config, &[]), before);
        config.config.env.push("A=b".into());
        assert_ne!(image_content_digest(&config, &[]), before);
    }

    /// A changed digest here means that no image compares equal to one made by an earlier version.
    #[test]
    fn golden_content_digests() {
        let golden = include_str!("../../testdata/images/content.txt");
        let mut cases = 0;
        for line in golden.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let mut field = || fields.next().unwrap_or_else(|| panic!("too few fields: {line}"));
            let (expected, layers, config) = (field(), field(), field());
            let layers: Vec<ContentDigest> =
                layers.split(' ').filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect();
            let config = ImageConfig::parse(config.as_bytes()).unwrap();
            assert_eq!(image_content_digest(&config, &layers).to_string(), expected, "{line}");
            cases += 1;
        }
        assert_eq!(cases, 4);
    }
}
