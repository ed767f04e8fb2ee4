//! Layouts and archives made here, with every kind of damage.

mod corpus;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, Write};

use serde_json::{Value, json};

use super::*;
use crate::digest::{ContentDigest, HashingWriter};
use crate::layer::compress::{Compression, Encoder};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The files of a layout or an archive, before they are written.
#[derive(Clone, Default)]
struct Sample {
    files: BTreeMap<String, Vec<u8>>,
    entries: Vec<Value>,
}

impl Sample {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.files.insert(layout::blob_name(&digest), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// An image with one file per layer, compressed in turn; its descriptor.
    fn image(&mut self, architecture: &str, texts: &[&str]) -> Value {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let tar = tar_of(&[("file", text)]);
            diff_ids.push(Digest::of(&tar).to_string());
            let (suffix, compression) =
                [("", Compression::None), ("+gzip", Compression::GZIP), ("+zstd", Compression::ZSTD)][number % 3];
            layers.push(self.blob(&format!("{LAYER}{suffix}"), &compressed(&tar, compression)));
        }
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []});
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        self.manifest(&config, &layers)
    }

    fn manifest(&mut self, config: &Value, layers: &[Value]) -> Value {
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    fn list(&mut self, mut entry: Value, annotations: &[(&str, &str)]) -> &mut Self {
        if !annotations.is_empty() {
            entry["annotations"] = annotations.iter().copied().collect();
        }
        self.entries.push(entry);
        self
    }

    fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files.insert("index.json".into(), json!({"schemaVersion": 2, "manifests": self.entries}).to_string().into());
        files
    }

    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in self.all() {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn archive_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Place {
    _folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        Self { _folder: folder, store }
    }

    fn bring(&self, source: &LayoutSource, wanted: &Selector) -> Result<BaseImage, LoadError> {
        let lease = self.store.lease("boot").unwrap();
        bring_layout(&self.store, &lease, source, wanted, &amd64())
    }

    fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, LoadError> {
        let lease = self.store.lease("boot").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        file.rewind().unwrap();
        load(&self.store, &lease, file, "x.tar", &amd64(), &[])
    }

    /// What lies in the store: layers, blobs, unfinished files.
    fn count(&self) -> (usize, usize, usize) {
        let count = |folder| fs::read_dir(self.store.path(folder)).unwrap().count();
        (count("layers"), count("blobs/sha256"), count("tmp"))
    }
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

#[test]
fn a_layout_comes_in_and_is_not_read_twice() {
    let mut sample = Sample::default();
    let image = sample.image("amd64", &["one", "two", "three", "one"]);
    sample.list(image.clone(), &[]);
    let folder = sample.folder();
    let place = Place::new();
    let source = LayoutSource::Folder(folder.path().to_owned());
    let base = place.bring(&source, &Selector::Any).unwrap();
    assert_eq!(base.layers.len(), 4);
    assert_eq!(base.config.config.cmd, ["sh"]);
    assert_eq!(base.manifest.as_ref().unwrap().digest.to_string(), image["digest"]);
    for diff_id in &base.config.rootfs.diff_ids {
        let mut out = HashingWriter::new(std::io::sink());
        place.store.write_tar(diff_id, &mut out).unwrap();
        assert_eq!(out.finish().1, diff_id.0);
    }
    // Documents, and the two compressed layers: the first and the fourth are one tar.
    assert_eq!(place.count(), (3, 4, 0));

    // Again, with the layers gone from the layout: nobody looks at them.
    for layer in &base.layers {
        let _gone_twice = fs::remove_file(folder.path().join(layout::blob_name(&layer.digest)));
    }
    let again = place.bring(&source, &Selector::Any).unwrap();
    assert_eq!((again.image_id, again.layers), (base.image_id, base.layers));
    let error = Place::new().bring(&source, &Selector::Any).unwrap_err().to_string();
    assert!(error.contains("is incomplete") && error.contains("the layer sha256:"), "{error}");
}

/// The image with its platform in the descriptor.
fn for_platform(image: &Value, architecture: &str) -> Value {
    let mut image = image.clone();
    image["platform"] = json!({"os": "linux", "architecture": architecture});
    image
}

#[test]
fn an_index_comes_in_whole_or_is_one_image() {
    let mut sample = Sample::default();
    let (arm, amd) = (sample.image("arm64", &["one", "two"]), sample.image("amd64", &["one", "three"]));
    let mut attestation = sample.blob(MANIFEST, b"{}");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let (arm, amd) = (for_platform(&arm, "arm64"), for_platform(&amd, "amd64"));
    let names = [(IMAGE_NAME, "docker.io/library/x:1")];
    let load_index = |manifests: &[Value], without: Option<&Value>| {
        let mut sample = sample.clone();
        let index = sample.index(manifests);
        sample.list(index.clone(), &names).list(index.clone(), &[(IMAGE_NAME, "docker.io/library/y:2")]);
        if let Some(blob) = without {
            let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
            sample.files.remove(&layout::blob_name(&digest));
        }
        let place = Place::new();
        let mut loaded = place.load(&archive_of(&sample.all())).unwrap();
        assert_eq!(loaded.len(), 1);
        let loaded = loaded.remove(0);
        assert_eq!(loaded.names.len(), 2);
        let lease = place.store.lease("boot").unwrap();
        let problems = crate::store::verify::verify(&place.store, &lease, &loaded.record).unwrap();
        assert_eq!(problems, [""; 0]);
        let images = base::base_images(&place.store, &loaded.record).unwrap();
        let platforms: Vec<String> = images.iter().map(|image| image.platform.to_string()).collect();
        (index["digest"] == loaded.record.id.to_string(), platforms.join(" "), loaded.record.size)
    };
    let both = [arm.clone(), amd.clone()];
    assert_eq!(load_index(&both, None), (true, "linux/arm64 linux/amd64".into(), 11));
    assert_eq!(load_index(&[arm.clone(), attestation.clone(), amd.clone()], None).1, "linux/arm64 linux/amd64");
    assert_eq!(load_index(std::slice::from_ref(&amd), None), (true, "linux/amd64".into(), 8));
    // As every build of Docker has it.
    assert_eq!(load_index(&[amd.clone(), attestation], None), (false, "linux/amd64".into(), 8));
    // As `docker save` leaves it where one platform was pulled.
    assert_eq!(load_index(&both, Some(&arm)), (false, "linux/amd64".into(), 8));
    assert_eq!(load_index(&both, Some(&amd)), (false, "linux/arm64".into(), 6));
}

#[test]
fn damage_to_one_image_of_an_index_is_found() {
    let mut sample = Sample::default();
    let (arm, amd) = (sample.image("arm64", &["one"]), sample.image("amd64", &["two"]));
    let index = sample.index(&[for_platform(&arm, "arm64"), for_platform(&amd, "amd64")]);
    sample.list(index, &[]);
    let archive = archive_of(&sample.all());
    type Harm<'a> = &'a dyn Fn(&Place, &mut Loaded);
    let arm: Digest = arm["digest"].as_str().unwrap().parse().unwrap();
    let cases: [(Harm<'_>, &str); 4] = [
        (&|_, _| (), ""),
        (&|place, _| fs::remove_file(place.store.blob_path(&arm)).unwrap(), "not in the store"),
        (&|place, loaded| fs::write(place.store.blob_path(&loaded.record.manifest), "{}").unwrap(), "is damaged"),
        (&|_, loaded| loaded.record.content = Some(ContentDigest(arm)), "its content digest is sha256:"),
    ];
    for (harm, expected) in cases {
        let place = Place::new();
        let mut loaded = place.load(&archive).unwrap().remove(0);
        harm(&place, &mut loaded);
        let lease = place.store.lease("boot").unwrap();
        let problems = crate::store::verify::verify(&place.store, &lease, &loaded.record).unwrap().join("; ");
        assert_eq!(problems.is_empty(), expected.is_empty(), "{problems}");
        assert!(problems.contains(expected), "{problems}");
    }
}

#[test]
fn archives_may_be_compressed_and_lie_in_pipes() {
    let mut sample = Sample::default();
    let image = sample.image("amd64", &["one", "two"]);
    sample.list(image, &[(REF_NAME, "example.com/a/b:1"), (IMAGE_NAME, "docker.io/library/x:latest")]);
    let tar = archive_of(&sample.all());
    let mut ids = Vec::new();
    for bytes in [tar.clone(), compressed(&tar, Compression::GZIP), compressed(&tar, Compression::ZSTD)] {
        let place = Place::new();
        let loaded = place.load(&bytes).unwrap();
        let names: Vec<_> = loaded[0].names.iter().map(Reference::to_string).collect();
        assert_eq!(names, ["docker.io/library/x:latest", "example.com/a/b:1"]);
        let base = base::base_image(&place.store, &loaded[0].record).unwrap();
        assert_eq!(base.layers.len(), 2);
        assert_eq!(place.count().2, 0);
        ids.push(loaded[0].record.clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(ids[0].size, 6);

    let (read, mut write) = std::io::pipe().unwrap();
    let place = Place::new();
    let writing = std::thread::spawn(move || write.write_all(&tar));
    let lease = place.store.lease("boot").unwrap();
    let from = File::from(std::os::fd::OwnedFd::from(read));
    let loaded = load(&place.store, &lease, from, "standard input", &amd64(), &[]).unwrap();
    assert_eq!(loaded[0].record, ids[0]);
    writing.join().unwrap().unwrap();
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

#[test]
fn damage_is_found_and_leaves_nothing_behind() {
    type Harm = fn(&mut Sample);
    fn replace(sample: &mut Sample, what: &str, with: &str) {
        for entry in &mut sample.entries {
            *entry = serde_json::from_str(&entry.to_string().replace(what, with)).unwrap();
        }
    }
    /// Changes the one image of the sample: the manifest is made anew from what `change` makes of it.
    fn remake(sample: &mut Sample, change: impl Fn(&mut Value)) {
        let digest: Digest = sample.entries[0]["digest"].as_str().unwrap().parse().unwrap();
        let mut manifest = serde_json::from_slice(&sample.files.remove(&layout::blob_name(&digest)).unwrap()).unwrap();
        change(&mut manifest);
        sample.entries[0] = sample.blob(MANIFEST, manifest.to_string().as_bytes());
    }
    fn spoil(sample: &mut Sample, pick: impl Fn(&[u8]) -> bool, change: impl Fn(&mut Vec<u8>)) {
        let spoiled = sample.files.values_mut().filter(|bytes| pick(bytes)).map(change).count();
        assert!(spoiled > 0);
    }
    let cases: [(&str, Harm, &str); 19] = [
        ("a changed manifest", |s| spoil(s, |b| b.starts_with(b"{\"schema"), |b| b[2] = b'S'), "manifest sha256:"),
        ("a longer manifest", |s| spoil(s, |b| b.starts_with(b"{\"schema"), |b| b.push(b' ')), "its descriptor says"),
        ("a changed config", |s| spoil(s, |b| b.starts_with(b"{\"arch"), |b| b[2] = b'A'), "config sha256:"),
        ("a changed gzip layer", |s| spoil(s, |b| b.starts_with(b"\x1f\x8b"), |b| b[4] ^= 1), "has the digest"),
        ("a cut gzip layer", |s| spoil(s, |b| b.starts_with(b"\x1f\x8b"), |b| b.truncate(40)), "has 40 bytes"),
        (
            "a changed zstd layer",
            |s| spoil(s, |b| b.starts_with(b"\x28\xb5"), |b| *b.last_mut().unwrap() ^= 1),
            "the layer",
        ),
        ("a changed tar", |s| spoil(s, |b| b.starts_with(b"file"), |b| b[512] ^= 1), "has the digest"),
        ("no manifest", |s| s.files.retain(|_, b| !b.starts_with(b"{\"schema")), "the manifest sha256:"),
        ("no config", |s| s.files.retain(|_, b| !b.starts_with(b"{\"arch")), "the config sha256:"),
        ("schema 1", |s| remake(s, |m| m["schemaVersion"] = 1.into()), "schema version 1"),
        ("a manifest that is an index too", |s| remake(s, |m| m["manifests"] = json!([])), "both layers and manifests"),
        ("an artifact", |s| remake(s, |m| m["config"]["mediaType"] = "x/y".into()), "no image"),
        (
            "too few layers",
            |s| remake(s, |m| drop(m["layers"].as_array_mut().unwrap().pop())),
            "lists 2 layers, its config 3",
        ),
        ("an unknown layer", |s| remake(s, |m| m["layers"][0]["mediaType"] = "x/y".into()), "media type x/y"),
        ("layers in another order", |s| remake(s, |m| m["layers"].as_array_mut().unwrap().swap(1, 2)), "diffID"),
        ("a size that lies", |s| remake(s, |m| m["layers"][1]["size"] = 1.into()), "its descriptor says 1"),
        ("a digest of another kind", |s| remake(s, |m| m["layers"][1]["digest"] = "md5:00".into()), "md5:00"),
        ("a media type of nothing", |s| replace(s, MANIFEST, "text/plain"), "does not have an image"),
        (
            "a huge config",
            |s| {
                let config = s.blob(CONFIG, &vec![b' '; (8 << 20) + 1]);
                let image = s.manifest(&config, &[]);
                s.entries = vec![image];
            },
            "more than 8388608 are not read",
        ),
    ];
    for (name, harm, expected) in cases {
        let mut sample = Sample::default();
        let image = sample.image("amd64", &["one", "two", "three"]);
        sample.list(image, &[]);
        harm(&mut sample);
        let folder = sample.folder();
        let place = Place::new();
        let error = place.bring(&LayoutSource::Folder(folder.path().to_owned()), &Selector::Any).unwrap_err();
        let error = chain(&error);
        assert!(error.contains(expected) && error.contains(folder.path().to_str().unwrap()), "{name}: {error}");
        assert_eq!(place.count().2, 0, "{name}");
        assert!(place.store.images().unwrap().is_empty(), "{name}");
        // What was complete may stay; what was not is not there under any name.
        for blob in fs::read_dir(place.store.path("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            let found = Digest::of(&fs::read(&path).unwrap());
            assert_eq!(found.hex(), path.file_name().unwrap().to_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn the_wanted_image_is_found() {
    let mut sample = Sample::default();
    let a = sample.image("amd64", &["a"]);
    let b = sample.image("amd64", &["b"]);
    let arm = sample.image("arm64", &["arm"]);
    let mut attestation = sample.image("unknown", &["attestation"]);
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let both = [for_platform(&arm, "arm64"), for_platform(&b, "amd64"), attestation.clone()];
    let multi = sample.index(&both);
    let nested = sample.index(std::slice::from_ref(&multi));
    let arm_only = sample.index(&[for_platform(&arm, "arm64"), for_platform(&arm, "s390x")]);
    let mut deep = sample.index(std::slice::from_ref(&a));
    for _ in 0..20 {
        deep = sample.index(std::slice::from_ref(&deep));
    }
    let mut wide = sample.index(std::slice::from_ref(&a));
    for _ in 0..4 {
        wide = sample.index(&vec![wide; 30]);
    }
    let unmarked = sample.index(&[arm.clone(), a.clone()]);
    let text = |value: &Value| value["digest"].as_str().unwrap().to_owned();
    let digest = |value: &Value| Selector::Digest(text(value).parse().unwrap());
    let tag = |tag: &str| Selector::Tag(tag.to_owned());
    let named = |tag| vec![(REF_NAME, tag)];
    type Entries<'a> = Vec<(&'a Value, Vec<(&'a str, &'a str)>)>;
    let cases: Vec<(Entries<'_>, Selector, Result<&Value, &str>)> = vec![
        (vec![(&a, vec![])], Selector::Any, Ok(&a)),
        (vec![(&a, named("1")), (&a, named("2"))], Selector::Any, Ok(&a)),
        (
            vec![(&a, named("1")), (&b, named("2"))],
            Selector::Any,
            Err("several images; say which by :TAG or @DIGEST: 1, 2"),
        ),
        (vec![(&a, named("1")), (&b, named("latest"))], Selector::Any, Ok(&b)),
        (vec![(&a, named("1")), (&b, named("2"))], tag("2"), Ok(&b)),
        (vec![(&a, named("1")), (&b, named("2"))], tag("3"), Err("does not have the tag 3; it has 1, 2")),
        (vec![(&a, named("1")), (&b, vec![])], digest(&b), Ok(&b)),
        (vec![(&a, named("1"))], digest(&b), Err("does not have the digest sha256:")),
        (vec![(&multi, vec![])], digest(&arm), Ok(&arm)),
        (vec![(&a, vec![(IMAGE_NAME, "docker.io/library/x:3")]), (&b, vec![])], tag("3"), Ok(&a)),
        (vec![(&a, vec![(IMAGE_NAME, "docker.io/library/x:3")]), (&b, vec![])], tag("x:3"), Ok(&a)),
        (vec![(&multi, vec![])], Selector::Any, Ok(&b)),
        (vec![(&nested, named("n"))], tag("n"), Ok(&b)),
        (vec![(&both[0], vec![]), (&both[1], vec![])], Selector::Any, Ok(&b)),
        (vec![(&attestation, vec![]), (&a, vec![])], Selector::Any, Ok(&a)),
        (vec![(&unmarked, vec![])], Selector::Any, Ok(&a)),
        (vec![(&arm, vec![])], Selector::Any, Ok(&arm)),
        (vec![(&arm_only, vec![])], Selector::Any, Err("no image for linux/amd64; it has linux/arm64, linux/s390x")),
        (vec![(&deep, vec![])], Selector::Any, Err("too many indexes inside of indexes")),
        (vec![(&wide, vec![])], Selector::Any, Err("too many indexes inside of indexes")),
        (vec![], Selector::Any, Err("does not have an image; it has nothing")),
    ];
    for (number, (entries, wanted, expected)) in cases.into_iter().enumerate() {
        let mut sample = sample.clone();
        for (entry, annotations) in entries {
            sample.list(entry.clone(), &annotations);
        }
        let folder = sample.folder();
        let found = Place::new().bring(&LayoutSource::Folder(folder.path().to_owned()), &wanted);
        match (found, expected) {
            (Ok(image), Ok(expected)) => {
                assert_eq!(image.manifest.unwrap().digest.to_string(), expected["digest"], "case {number}");
            }
            (Err(error), Err(expected)) => {
                let error = chain(&error);
                assert!(error.contains(expected), "case {number}: {error}");
            }
            (found, expected) => panic!("case {number}: {found:?}, expected {expected:?}"),
        }
    }
}

/// An archive as `docker save` wrote it before it wrote layouts too.
fn docker_archive(layers: &[(&str, Vec<u8>)], diff_ids: &[Digest], tags: &Value) -> BTreeMap<String, Vec<u8>> {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>()}});
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": "c.json", "RepoTags": tags, "Layers": names}]);
    let mut files: BTreeMap<String, Vec<u8>> =
        layers.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    files.insert("c.json".into(), config.to_string().into());
    files.insert("manifest.json".into(), manifest.to_string().into());
    files
}

#[test]
fn docker_archives_come_in() {
    let (one, two) = (tar_of(&[("a", "1")]), tar_of(&[("b", "2")]));
    let ids = [Digest::of(&one), Digest::of(&two)];
    let plain = [("1/layer.tar", one.clone()), ("2/layer.tar", two.clone())];
    let gzip = [("1.tar.gz", compressed(&one, Compression::GZIP)), ("2/layer.tar", two.clone())];
    for (layers, tags, names) in [
        (&plain, json!(["x", "localhost:5000/y:2"]), vec!["docker.io/library/x:latest", "localhost:5000/y:2"]),
        (&plain, Value::Null, vec![]),
        (&gzip, json!([]), vec![]),
    ] {
        let place = Place::new();
        let archive = archive_of(&docker_archive(layers, &ids, &tags));
        let loaded = place.load(&archive).unwrap();
        assert_eq!(loaded[0].names.iter().map(Reference::to_string).collect::<Vec<_>>(), names);
        assert_eq!(loaded[0].record.size, 2);
        let base = base::base_image(&place.store, &loaded[0].record).unwrap();
        assert_eq!(base.config.rootfs.diff_ids, ids.map(DiffId));
        assert_eq!(base.layers[1].digest, ids[1]);
        assert_eq!(place.load(&archive).unwrap()[0].record, loaded[0].record, "the same manifest again");
    }

    // A layer that is a link to another's, as old versions wrote it.
    let files = docker_archive(&plain, &[ids[0], ids[0]], &Value::Null);
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "2/layer.tar") {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    for (kind, target) in [(tar::EntryType::Symlink, "../1/layer.tar"), (tar::EntryType::Link, "./1/layer.tar")] {
        let mut tar = tar::Builder::new(tar.get_ref().clone());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        tar.append_link(&mut header, "2/layer.tar", target).unwrap();
        let loaded = Place::new().load(&tar.into_inner().unwrap()).unwrap();
        assert_eq!(loaded[0].record.size, 2, "{kind:?}");
    }

    for (files, expected) in [
        (docker_archive(&plain, &ids[..1], &Value::Null), "lists 2 layers"),
        (docker_archive(&plain, &[ids[1], ids[0]], &Value::Null), "diffID"),
        (docker_archive(&plain, &ids, &json!(["UPPER"])), "upper case"),
        (docker_archive(&plain, &ids, &json!([format!("h/x@{}", ids[0])])), "a name with a digest"),
        (BTreeMap::from([("manifest.json".to_owned(), b"null".to_vec())]), "holds no image"),
        (BTreeMap::from([("repositories".to_owned(), b"{}".to_vec())]), "before 2016"),
        (BTreeMap::from([("etc/passwd".to_owned(), Vec::new())]), "use `rbuild import`"),
        (BTreeMap::from([("manifest.json".to_owned(), b"[{}]".to_vec())]), "Config"),
        (BTreeMap::from([("a".to_owned(), Vec::new())]), "holds no image"),
    ] {
        let error = chain(&Place::new().load(&archive_of(&files)).unwrap_err());
        let expected = expected.strip_prefix("use ").unwrap_or(expected);
        assert!(error.contains(expected) && error.contains("x.tar"), "{expected}: {error}");
    }
    for (bytes, expected) in [
        (&b"hello"[..], "ends inside the header"),
        (&[b'x'; 1024], "is no tar"),
        (&archive_of(&docker_archive(&plain, &ids, &Value::Null))[..1500], "cut off"),
        (b"", "holds no image"),
        (b"\x1f\x8b", "decompress"),
    ] {
        let error = chain(&Place::new().load(bytes).unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn long_names_are_read_and_links_end() {
    let one = tar_of(&[("a", "1")]);
    let long = format!("{}/layer.tar", "long".repeat(60));
    let files = docker_archive(&[(&long, one.clone())], &[Digest::of(&one)], &Value::Null);
    // GNU's way, which `append_data` takes, and PAX.
    assert_eq!(Place::new().load(&archive_of(&files)).unwrap().len(), 1);
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in &files {
        let size = bytes.len().to_string();
        tar.append_pax_extensions([("path", name.as_bytes()), ("size", size.as_bytes())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).unwrap();
    }
    assert_eq!(Place::new().load(&tar.into_inner().unwrap()).unwrap().len(), 1);

    for (target, expected) in
        [("layer.tar", "leads to itself"), ("../../etc/passwd", "is not in it"), ("gone", "is not in it")]
    {
        let files = docker_archive(&[("1/layer.tar", one.clone())], &[Digest::of(&one)], &Value::Null);
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            if name == "1/layer.tar" {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, name, target).unwrap();
            } else {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
            }
        }
        let error = chain(&Place::new().load(&tar.into_inner().unwrap()).unwrap_err());
        assert!(error.contains(expected), "{target}: {error}");
    }
}

#[test]
fn a_layout_that_lists_nothing_is_a_docker_archive() {
    let one = tar_of(&[("a", "1")]);
    let mut files = docker_archive(&[("blobs/sha256/x", one.clone())], &[Digest::of(&one)], &Value::Null);
    files.extend(Sample::default().all());
    let archive = archive_of(&files);
    assert_eq!(Place::new().load(&archive).unwrap().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tar");
    fs::write(&path, archive).unwrap();
    Place::new().bring(&LayoutSource::Archive(path), &Selector::Any).unwrap();
}
