//! Every kind of output of one image with a base from outside and a layer made here, read back by rbuild itself and by
//! the programs that others use.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;

use serde_json::{Value, json};

use super::*;
use crate::digest::{Digest, HashingWriter};
use crate::image::manifest::{Encoding, Kind};
use crate::layer::compress::{Encoder, decompress};
use crate::layer::entry::{Entry, Kind as EntryKind};
use crate::layer::write::{Body, LayerWriter};
use crate::store::base::base_image;
use crate::store::layers::Form;
use crate::store::load::{LayoutSource, Selector, bring_layout, load};

const OLD: i64 = 1_500_000_000;

struct Place {
    folder: tempfile::TempDir,
    store: Store,
    lease: Lease,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("boot").unwrap();
        Self { folder, store, lease }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, output: &Output, image: &OutputImage, epoch: Option<i64>) -> Result<Written, OutputError> {
        write(output, image, &self.store, &self.lease, epoch)
    }

    fn archive(&self, kind: OutputKind, name: &str) -> Output {
        let dest = Destination::Path(self.path(name));
        Output { kind, dest, compression: None, force_compression: false, family: None }
    }

    /// The image: `/etc/passwd`, `/bin` with links, `/d` with two files in the base; the layer on it takes one of the
    /// two away, replaces a file by a folder, and adds a file and a second name of it.
    fn image(&self, base_compression: Compression) -> OutputImage {
        let base = base_tar();
        let diff_id = Digest::of(&base);
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        let mut encoder = Encoder::new(Vec::new(), base_compression);
        encoder.write_all(&base).unwrap();
        let manifest = json!([{"Config": "c", "RepoTags": null, "Layers": ["l"]}]);
        let files = [
            ("c", config.to_string().into_bytes()),
            ("l", encoder.finish().unwrap()),
            ("manifest.json", manifest.to_string().into_bytes()),
        ];
        let mut tar = ::tar::Builder::new(Vec::new());
        for (name, bytes) in &files {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        let path = self.path("base.tar");
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        let file = fs::File::open(&path).unwrap();
        let loaded =
            load(&self.store, &self.lease, file, "base.tar", &Platform::new("linux", "amd64", ""), &[]).unwrap();
        let mut image = base_image(&self.store, &loaded[0].record).unwrap();

        let path = self.lease.fresh_path();
        let mut writer = LayerWriter::new(fs::File::create(&path).unwrap());
        let mut push = |name: &str, kind: EntryKind, data: &str| {
            let mode = if kind == EntryKind::Directory { 0o750 } else { 0o640 };
            let mut entry = Entry { path: name.into(), kind, mode, uid: 7, gid: 8, mtime: OLD + 1, capability: None };
            let body = if data.is_empty() { Body::None } else { Body::Bytes(data.as_bytes()) };
            writer.push(&mut entry, body).unwrap();
        };
        let file = |data: &str| EntryKind::File { size: data.len() as u64, sha256: Digest::of(data.as_bytes()) };
        push("d", EntryKind::Directory, "");
        push("d/gone", EntryKind::Whiteout, "");
        push("d/new", file("new"), "new");
        push("d/second", EntryKind::HardLink { target: b"d/new".to_vec() }, "");
        push("f", EntryKind::Directory, "");
        push("f/in", file("in"), "in");
        let (_, index) = writer.finish().unwrap();
        let new = index.diff_id();
        let size = index.tar_size();
        self.store.put_layer(&self.lease, &index, Form::Tar(path)).unwrap();
        image.config.rootfs.diff_ids.push(new);
        image.layers.push(Descriptor::new(Family::Oci.layer(Encoding::Tar), new.0, size));
        let config = image.config.to_bytes();
        let manifest = Manifest::new(Family::Oci, Descriptor::of(Family::Oci.config(), &config), image.layers);
        let names = vec!["example.com/a/b:1".parse().unwrap(), "x".parse().unwrap()];
        OutputImage::new(config, &image.config, manifest, names)
    }
}

fn base_tar() -> Vec<u8> {
    use ::tar::{Builder, EntryType, Header};
    let mut tar = Builder::new(Vec::new());
    let mut put = |name: &str, kind: EntryType, mode: u32, target: &str, data: &str| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(OLD as u64);
        header.set_size(data.len() as u64);
        if target.is_empty() {
            tar.append_data(&mut header, name, data.as_bytes()).unwrap();
        } else {
            tar.append_link(&mut header, name, target).unwrap();
        }
    };
    put("etc", EntryType::Directory, 0o755, "", "");
    put("etc/passwd", EntryType::Regular, 0o644, "", "root:x:0:0::/:/bin/sh\n");
    put("bin", EntryType::Directory, 0o555, "", "");
    put("bin/a", EntryType::Regular, 0o4755, "", "program");
    put("bin/b", EntryType::Link, 0o4755, "bin/a", "");
    put("bin/c", EntryType::Symlink, 0o777, "/bin/a", "");
    put("d", EntryType::Directory, 0o755, "", "");
    put("d/gone", EntryType::Regular, 0o644, "", "gone");
    put("d/stays", EntryType::Regular, 0o600, "", "stays");
    put("f", EntryType::Regular, 0o644, "", "a file");
    put("pipe", EntryType::Fifo, 0o622, "", "");
    tar.into_inner().unwrap()
}

/// Path, kind with mode, link or data, of every entry of a tar.
fn list(tar: &[u8]) -> Vec<(String, String, String)> {
    let mut archive = ::tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let kind = format!("{:?} {:o}", entry.header().entry_type(), entry.header().mode().unwrap());
        let mut data = String::new();
        entry.read_to_string(&mut data).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        (path, kind, link.unwrap_or(data))
    });
    entries.collect()
}

const MERGED: [(&str, &str, &str); 13] = [
    ("bin/", "Directory 555", ""),
    ("bin/a", "Regular 4755", "program"),
    ("bin/b", "Link 4755", "bin/a"),
    ("bin/c", "Symlink 777", "/bin/a"),
    ("d/", "Directory 750", ""),
    ("d/new", "Regular 640", "new"),
    ("d/second", "Link 640", "d/new"),
    ("d/stays", "Regular 600", "stays"),
    ("etc/", "Directory 755", ""),
    ("etc/passwd", "Regular 644", "root:x:0:0::/:/bin/sh\n"),
    ("f/", "Directory 750", ""),
    ("f/in", "Regular 640", "in"),
    ("pipe", "Fifo 622", ""),
];

#[test]
fn what_was_looked_up_stays() {
    let mut place = Place::new();
    let image = place.image(Compression::GZIP);
    let wish = blobs::Wish { compression: Compression::GZIP, force: false, family: Family::Oci, gently: None };
    let blobs = |place: &Place| -> Vec<Digest> {
        let layers = image.diff_ids.iter().zip(&image.manifest.layers);
        let blob = |(layer, listed)| blobs::layer_blob(&place.store, &place.lease, layer, listed, wish).unwrap();
        layers.map(|layer| blob(layer).descriptor.digest).collect()
    };
    blobs(&place);
    // Who made them has ended, nobody has named the image, and somebody looks for them.
    place.lease = place.store.lease("boot").unwrap();
    let found = blobs(&place);
    std::thread::sleep(std::time::Duration::from_millis(50));
    place.store.collect(None).unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|blob| place.store.has_blob(blob)), "a prune took what a push is about to read");
    place.lease = place.store.lease("boot").unwrap();
    place.store.collect(None).unwrap();
    assert!(!found.iter().any(|blob| place.store.has_blob(blob)));
}

#[test]
fn a_root_file_system_is_merged_into_one_tar() {
    let place = Place::new();
    let image = place.image(Compression::GZIP);
    let output = place.archive(OutputKind::Tar, "root.tar");
    assert_eq!(place.write(&output, &image, None).unwrap(), Written::default());
    let plain = fs::read(place.path("root.tar")).unwrap();
    let expected: Vec<_> = MERGED.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect();
    assert_eq!(list(&plain), expected);
    let times = |tar: &[u8]| -> Vec<u64> {
        let mut archive = ::tar::Archive::new(tar);
        archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap()).collect()
    };
    let (old, new) = (OLD as u64, OLD as u64 + 1);
    assert_eq!(times(&plain), [old, old, old, old, new, new, new, old, old, old, new, new, old]);

    place.write(&output, &image, Some(5)).unwrap();
    let epoch = fs::read(place.path("root.tar")).unwrap();
    assert_eq!(list(&epoch), expected);
    assert_eq!(times(&epoch), [5; 13]);
    let other = Place::new();
    let image = other.image(Compression::ZSTD);
    other.write(&other.archive(OutputKind::Tar, "root.tar"), &image, Some(5)).unwrap();
    assert_eq!(fs::read(other.path("root.tar")).unwrap(), epoch, "another store, another base blob");
}

#[test]
fn a_root_file_system_is_written_as_files() {
    let place = Place::new();
    let image = place.image(Compression::GZIP);
    let dest = place.path("out/deep");
    let outside = place.path("outside");
    fs::create_dir_all(outside.join("in")).unwrap();
    fs::create_dir_all(&dest).unwrap();
    // What lies in the way: links that lead out, files where folders come, files that the image does not have.
    std::os::unix::fs::symlink(&outside, dest.join("d")).unwrap();
    std::os::unix::fs::symlink(outside.join("passwd"), dest.join("f")).unwrap();
    fs::create_dir(dest.join("etc")).unwrap();
    std::os::unix::fs::symlink(outside.join("passwd"), dest.join("etc/passwd")).unwrap();
    fs::write(dest.join("bin"), "a file").unwrap();
    fs::create_dir(dest.join("pipe")).unwrap();
    fs::write(dest.join("mine"), "mine").unwrap();
    let output =
        Output { dest: Destination::Path(dest.clone()), ..place.archive(OutputKind::Local { split: false }, "") };
    for epoch in [None, Some(9)] {
        assert_eq!(place.write(&output, &image, epoch).unwrap().notes, [""; 0]);
        for (path, kind, content) in MERGED {
            let path = path.trim_end_matches('/');
            let file = dest.join(path);
            let metadata = fs::symlink_metadata(&file).unwrap();
            let (kind, mode) = kind.split_once(' ').unwrap();
            match kind {
                "Directory" => assert!(metadata.is_dir(), "{path}"),
                "Symlink" => assert_eq!(fs::read_link(&file).unwrap().to_str().unwrap(), content),
                "Regular" => assert_eq!(fs::read_to_string(&file).unwrap(), content, "{path}"),
                "Link" => assert_eq!(metadata.ino(), fs::metadata(dest.join(content)).unwrap().ino(), "{path}"),
                _ => assert!(metadata.file_type().is_fifo(), "{path}"),
            }
            if kind != "Symlink" {
                assert_eq!(format!("{:o}", metadata.permissions().mode() & 0o7777), mode, "{path}");
            }
            assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw(), "{path}");
            let old = if matches!(path, "d" | "d/new" | "d/second" | "f" | "f/in") { OLD + 1 } else { OLD };
            assert_eq!(metadata.mtime(), epoch.unwrap_or(old), "{path}");
        }
        assert_eq!(fs::read_to_string(dest.join("mine")).unwrap(), "mine");
        assert!(!dest.join("d/gone").exists());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(outside.join("in")).unwrap().count(), 0);
    }
    // A folder with something in it is not thrown away for a file.
    fs::set_permissions(dest.join("etc"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(dest.join("etc/passwd")).unwrap();
    fs::create_dir_all(dest.join("etc/passwd/mine")).unwrap();
    let error = place.write(&output, &image, None).unwrap_err().to_string();
    assert!(error.contains("etc/passwd") && error.contains("folder with something in it"), "{error}");
    for name in ["bin", "d", "f"] {
        fs::set_permissions(dest.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The documents and blobs of an archive.
fn members(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let mut archive = ::tar::Archive::new(bytes.as_slice());
    let mut members = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let name = entry.path().unwrap().display().to_string();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        assert!(members.insert(name.clone(), data).is_none(), "{name} twice");
    }
    members
}

/// What stands in an archive for a manifest's layers, checked: compression and family of each, and its digest.
fn layers_of(members: &BTreeMap<String, Vec<u8>>, written: &Written, image: &OutputImage) -> Vec<(Encoding, Digest)> {
    let descriptor = written.manifest.as_ref().unwrap();
    let blob = |digest: &Digest| &members[&format!("blobs/sha256/{}", digest.hex())];
    let manifest = Manifest::parse(blob(&descriptor.digest)).unwrap();
    assert_eq!(blob(&manifest.config.digest), &image.config);
    let layers = manifest.layers.iter().zip(&image.diff_ids).map(|(layer, diff_id)| {
        let bytes = blob(&layer.digest);
        assert_eq!((Digest::of(bytes), bytes.len() as u64), (layer.digest, layer.size));
        let mut plain = HashingWriter::new(std::io::sink());
        std::io::copy(&mut decompress(Box::new(bytes.as_slice())).unwrap(), &mut plain).unwrap();
        assert_eq!(plain.finish().1, diff_id.0);
        let Some(Kind::Layer(encoding)) = Kind::of(&layer.media_type) else { panic!("{layer:?}") };
        assert_eq!(layer.media_type, manifest.family().layer(encoding));
        (encoding, layer.digest)
    });
    layers.collect()
}

#[test]
fn layers_have_the_compression_that_was_asked_for() {
    use Compression as C;
    use Encoding::{Gzip, Tar, Zstd};
    const OCI: OutputKind = OutputKind::Oci { tar: true };
    const DOCKER: OutputKind = OutputKind::Docker { tar: true };
    for (kind, base, wish, force, expected, base_kept) in [
        (OCI, C::GZIP, None, false, [Gzip, Gzip], true),
        (OCI, C::ZSTD, None, false, [Zstd, Gzip], true),
        (OCI, C::None, None, false, [Gzip, Gzip], false),
        (OCI, C::GZIP, Some(C::ZSTD), false, [Gzip, Zstd], true),
        (OCI, C::GZIP, Some(C::ZSTD), true, [Zstd, Zstd], false),
        (OCI, C::GZIP, Some(C::None), false, [Gzip, Tar], true),
        (OCI, C::GZIP, Some(C::None), true, [Tar, Tar], false),
        (OCI, C::Gzip(9), Some(C::GZIP), true, [Gzip, Gzip], false),
        (DOCKER, C::GZIP, None, false, [Tar, Tar], false),
        (DOCKER, C::GZIP, Some(C::GZIP), false, [Gzip, Gzip], true),
        (DOCKER, C::None, Some(C::GZIP), false, [Gzip, Gzip], false),
    ] {
        let place = Place::new();
        let image = place.image(base);
        for family in [Family::Oci, Family::Docker] {
            let case = format!("{kind:?} {base:?} {wish:?} {force} {family:?}");
            let output = Output {
                compression: wish,
                force_compression: force,
                family: Some(family),
                ..place.archive(kind, "out.tar")
            };
            let written = place.write(&output, &image, None).unwrap();
            assert_eq!(written.manifest.as_ref().unwrap().media_type, family.manifest(), "{case}");
            let layers = layers_of(&members(&place.path("out.tar")), &written, &image);
            assert_eq!([layers[0].0, layers[1].0], expected, "{case}");
            assert_eq!(layers[0].1 == image.manifest.layers[0].digest, base_kept, "{case}");
        }
        assert_eq!(fs::read_dir(place.lease.folder()).unwrap().count(), 0, "unfinished files");
    }
}

#[test]
fn archives_are_the_same_bytes_every_time() {
    let mut found: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let place = Place::new();
        let image = place.image(Compression::GZIP);
        for _ in 0..2 {
            place.write(&place.archive(OutputKind::Oci { tar: true }, "o"), &image, Some(77)).unwrap();
            found.push(fs::read(place.path("o")).unwrap());
        }
        // Once compressed, always known; but not to another level.
        let layer = &image.diff_ids[1];
        assert_eq!(place.store.layer_blobs(layer).unwrap().len(), 1);
        let known = &place.store.layer_blobs(layer).unwrap()[0];
        assert_eq!(known.encoder.as_deref(), Some("gzip-4 libdeflate-1.26.1 one member"));
        let nine =
            Output { compression: Some(Compression::Gzip(9)), ..place.archive(OutputKind::Oci { tar: true }, "9") };
        place.write(&nine, &image, Some(77)).unwrap();
        assert_eq!(place.store.layer_blobs(layer).unwrap().len(), 2);
    }
    assert!(found.iter().all(|bytes| *bytes == found[0]));
    let mut archive = ::tar::Archive::new(found[0].as_slice());
    let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
    let names: Vec<_> = entries
        .map(|entry| {
            assert_eq!(entry.header().mtime().unwrap(), 77);
            entry.path().unwrap().display().to_string()
        })
        .collect();
    assert_eq!(names[..4], ["index.json", "oci-layout", "blobs/", "blobs/sha256/"]);
    assert!(names[4..].is_sorted() && names.len() == 8, "{names:?}");
}

#[test]
fn archives_come_back_in() {
    let place = Place::new();
    let image = place.image(Compression::GZIP);
    for kind in [OutputKind::Oci { tar: true }, OutputKind::Docker { tar: true }] {
        let written = place.write(&place.archive(kind, "out.tar"), &image, None).unwrap();
        let other = Place::new();
        let file = fs::File::open(place.path("out.tar")).unwrap();
        let loaded =
            load(&other.store, &other.lease, file, "out.tar", &Platform::new("linux", "amd64", ""), &[]).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].record.id.0, Digest::of(&image.config));
        assert_eq!(loaded[0].record.manifest, written.manifest.unwrap().digest);
        let names: Vec<String> = loaded[0].names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["x:latest", "example.com/a/b:1"]);
        let documents = members(&place.path("out.tar"));
        if let Some(manifest) = documents.get("manifest.json") {
            let manifest: Value = serde_json::from_slice(manifest).unwrap();
            assert_eq!(manifest[0]["RepoTags"], json!(["example.com/a/b:1", "x:latest"]));
            for layer in manifest[0]["Layers"].as_array().unwrap() {
                assert!(documents.contains_key(layer.as_str().unwrap()), "{layer}");
            }
            // Without the layout it is an archive of old.
            let config = manifest[0]["Config"].as_str().unwrap();
            assert_eq!(documents[config], image.config);
        }
    }
}

#[test]
fn a_layout_in_a_folder_keeps_its_other_images() {
    let place = Place::new();
    let mut image = place.image(Compression::GZIP);
    let output = place.archive(OutputKind::Oci { tar: false }, "layout");
    let bring = |tag: &str| {
        let source = LayoutSource::Folder(place.path("layout"));
        let other = Place::new();
        let platform = Platform::new("linux", "amd64", "");
        bring_layout(&other.store, &other.lease, &source, &Selector::Tag(tag.into()), &platform)
            .map(|base| base.image_id.0)
    };
    let entries = || {
        let index: Value = serde_json::from_slice(&fs::read(place.path("layout/index.json")).unwrap()).unwrap();
        index["manifests"].as_array().unwrap().len()
    };
    place.write(&output, &image, None).unwrap();
    assert_eq!((bring("1").unwrap(), entries()), (Digest::of(&image.config), 2));
    // Another image takes one of the two names.
    let first = Digest::of(&image.config);
    image.config.push(b' ');
    image.names.remove(0);
    place.write(&output, &image, None).unwrap();
    assert_eq!((bring("1").unwrap(), bring("latest").unwrap(), entries()), (first, Digest::of(&image.config), 2));
    // And again without any name: it is there already.
    image.names.clear();
    place.write(&output, &image, None).unwrap();
    place.write(&output, &image, None).unwrap();
    assert_eq!(entries(), 3);

    fs::create_dir(place.path("other")).unwrap();
    fs::write(place.path("other/mine"), "").unwrap();
    for (name, expected) in [("other", "holds other things"), ("base.tar", "cannot make")] {
        let error = place.write(&place.archive(OutputKind::Oci { tar: false }, name), &image, None).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    fs::write(place.path("layout/index.json"), "nonsense").unwrap();
    let error = place.write(&output, &image, None).unwrap_err().to_string();
    assert!(error.contains("index.json"), "{error}");
}

#[test]
fn destinations_are_replaced_whole_or_not_at_all() {
    let place = Place::new();
    let image = place.image(Compression::GZIP);
    let output = |name: &str| place.archive(OutputKind::Oci { tar: true }, name);
    fs::write(place.path("old"), "old").unwrap();
    std::os::unix::fs::symlink("old", place.path("link")).unwrap();
    place.write(&output("link"), &image, None).unwrap();
    assert!(fs::symlink_metadata(place.path("link")).unwrap().is_symlink());
    assert!(fs::metadata(place.path("old")).unwrap().len() > 1000);
    place.write(&output("/dev/null"), &image, None).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());

    for (name, expected) in [("store", "is a folder"), ("no/such", "cannot make a file in")] {
        let error = place.write(&output(name), &image, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let stdout = Output { dest: Destination::Stdout, ..place.archive(OutputKind::Local { split: false }, "") };
    assert!(matches!(place.write(&stdout, &image, None), Err(OutputError::FolderToStdout)));

    // A base blob that the store has lost: what was there before stays.
    let lost = place.store.blob_path(&image.manifest.layers[0].digest);
    fs::remove_file(lost).unwrap();
    fs::write(place.path("old"), "old").unwrap();
    let error = place.write(&output("old"), &image, None).unwrap_err().to_string();
    assert!(error.contains("is not in the store"), "{error}");
    assert_eq!(fs::read_to_string(place.path("old")).unwrap(), "old");
    let left: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".rbuild-")), "{left:?}");
}

/// Runs a program that others use on images; `None` after having said that it is not there.
fn foreign(test: &str, program: &str, args: &[&str]) -> Option<String> {
    // They leave their own state where HOME is.
    let home = tempfile::tempdir().unwrap();
    match Command::new(program).args(args).env("HOME", home.path()).env_remove("XDG_RUNTIME_DIR").output() {
        Ok(output) => {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{program} {args:?}: {err}");
            Some(out.into_owned())
        }
        Err(error) => {
            let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|word| word == program || word == "all"), "{test}: {program}: {error}");
            std::io::stderr().write_all(format!("skipped: {test}: no program {program} in PATH\n").as_bytes()).unwrap();
            None
        }
    }
}

#[test]
fn skopeo_reads_archives() {
    const TEST: &str = "skopeo_reads_archives";
    let place = Place::new();
    let mut image = place.image(Compression::GZIP);
    image.names.truncate(1);
    for (kind, transport) in
        [(OutputKind::Oci { tar: true }, "oci-archive"), (OutputKind::Docker { tar: true }, "docker-archive")]
    {
        for compression in [None, Some(Compression::GZIP), Some(Compression::ZSTD), Some(Compression::None)] {
            for family in [Family::Oci, Family::Docker] {
                // Docker's own media types do not know zstd, and skopeo neither there.
                if (family, compression) == (Family::Docker, Some(Compression::ZSTD)) {
                    continue;
                }
                let output = Output { compression, family: Some(family), ..place.archive(kind, "out.tar") };
                place.write(&output, &image, None).unwrap();
                let from = format!("{transport}:{}", place.path("out.tar").display());
                let Some(text) = foreign(TEST, "skopeo", &["inspect", &from]) else { return };
                let found: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(found["Layers"].as_array().unwrap().len(), 2);
                let Some(config) = foreign(TEST, "skopeo", &["inspect", "--config", "--raw", &from]) else { return };
                assert_eq!(config.trim_end().as_bytes(), image.config, "{transport}");
                // A copy reads and checks every byte.
                let to = place.path("copy");
                let policy = ["--insecure-policy", "copy", "-q", &from];
                foreign(TEST, "skopeo", &[&policy[..], &[&format!("dir:{}", to.display())]].concat());
                fs::remove_dir_all(to).unwrap();
            }
        }
    }
}

#[test]
fn umoci_unpacks_layouts() {
    const TEST: &str = "umoci_unpacks_layouts";
    let place = Place::new();
    let image = place.image(Compression::GZIP);
    place.write(&place.archive(OutputKind::Oci { tar: false }, "layout"), &image, None).unwrap();
    let (layout, bundle) = (format!("{}:1", place.path("layout").display()), place.path("bundle"));
    let args = ["unpack", "--rootless", "--image", &layout, bundle.to_str().unwrap()];
    let Some(_) = foreign(TEST, "umoci", &args) else { return };
    for (path, kind, content) in MERGED {
        let file = bundle.join("rootfs").join(path);
        match kind.split_once(' ').unwrap().0 {
            "Regular" => assert_eq!(fs::read_to_string(&file).unwrap(), content, "{path}"),
            _ => assert!(fs::symlink_metadata(&file).is_ok(), "{path}"),
        }
    }
    assert!(!bundle.join("rootfs/d/gone").exists());
    for name in ["bin", "d", "f"] {
        fs::set_permissions(bundle.join("rootfs").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_file_that_a_tree_lost_is_noted() {
    let place = Place::new();
    let path = place.path("tar");
    let mut writer = LayerWriter::new(fs::File::create(&path).unwrap());
    for name in ["d", "d/f"] {
        let kind = match name {
            "d" => EntryKind::Directory,
            _ => EntryKind::File { size: 1, sha256: Digest::of(b"f") },
        };
        let body = if name == "d" { Body::None } else { Body::Bytes(b"f") };
        let mut entry = Entry { path: name.into(), kind, mode: 0o755, uid: 0, gid: 0, mtime: OLD, capability: None };
        writer.push(&mut entry, body).unwrap();
    }
    let (_, index) = writer.finish().unwrap();
    let tree = place.path("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("d/f"), "f").unwrap();
    place.store.put_layer(&place.lease, &index, Form::Tree(tree)).unwrap();
    let layer = index.diff_id();
    let mut image = place.image(Compression::None);
    image.diff_ids = vec![layer];
    image.manifest.layers.truncate(1);
    let write = |kind| place.write(&place.archive(kind, "out"), &image, None);
    write(OutputKind::Tar).unwrap();
    fs::remove_file(place.path("out")).unwrap();
    let folder = place.store.path("layers").join(layer.0.hex());
    // First the file is not there, then the folder is none.
    let harms: [fn(&Path) -> std::io::Result<()>; 2] = [
        |tree| fs::remove_file(tree.join("d/f")),
        |tree| fs::remove_dir(tree.join("d")).and_then(|()| fs::write(tree.join("d"), "")),
    ];
    for harm in harms {
        harm(&folder.join("tree")).unwrap();
        for kind in [OutputKind::Tar, OutputKind::Local { split: false }] {
            drop(fs::remove_file(place.store.path("suspects")));
            let error = write(kind).unwrap_err().to_string();
            assert!(error.contains("is damaged: its file d/f is not there; the next"), "{kind:?}: {error}");
            let noted = fs::read_to_string(place.store.path("suspects")).unwrap();
            assert!(noted.contains(&format!("layers/{}", layer.0.hex())), "{kind:?}: {noted}");
            drop(fs::remove_dir_all(place.path("out")));
        }
    }
}

#[test]
fn only_what_this_command_wrote_is_taken_without_a_check() {
    let mut place = Place::new();
    let image = place.image(Compression::None);
    let new = *image.diff_ids.last().unwrap();
    let tar = place.store.own_tar(&new, &place.lease).expect("it was written under this lease");
    let other = place.store.lease("boot").unwrap();
    drop(std::mem::replace(&mut place.lease, other));
    // Making the layer once more does not vouch for the file that was there.
    place.image(Compression::None);
    assert_eq!(place.store.own_tar(&new, &place.lease), None);
    let mut bytes = fs::read(&tar).unwrap();
    bytes[600] ^= 1;
    fs::write(&tar, bytes).unwrap();
    for compression in [Compression::None, Compression::GZIP] {
        for (tar, name) in [(true, "damaged.tar"), (false, "damaged")] {
            let mut output = place.archive(OutputKind::Oci { tar }, name);
            output.compression = Some(compression);
            let error = place.write(&output, &image, None).unwrap_err();
            assert!(matches!(error, OutputError::Store(StoreError::Damaged { .. })), "{compression:?}: {error}");
            assert!(
                !place.path("damaged.tar").exists() && !place.path("damaged/index.json").exists(),
                "{compression:?}"
            );
        }
    }
}
