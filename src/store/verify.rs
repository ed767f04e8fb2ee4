//! Whether an image of the store is what its digests say.
//!
//! In: an [`ImageRecord`]. Out: what is wrong, in words; nothing when all is right. What always holds: every byte that
//! belongs to the image is read and digested: its documents, the blobs of its layers, the tar of each layer in whichever
//! form it is kept, and all that a RUN sees of its trees. What is damaged is noted, and the next command removes it. A layer that is
//! not here, but known to be in a registry, is no damage.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::base::base_images;
use super::images::ImageRecord;
use super::lease::Lease;
use super::recover::tree_problem;
use super::{Store, StoreError};
use crate::digest::{ChainId, ContentDigest, DiffId, Digest, HashingReader};
use crate::image::assemble::{image_content_digest, index_content_digest};
use crate::image::manifest::Descriptor;
use crate::layer::compress;
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{At, LayerIndex};
use crate::layer::scan::scan;
use crate::layer::stack::{LayerStack, on_parents};
use crate::plan::BaseImage;
use crate::sys::root_dir::{Dir, RootDir, Stat, StatKind};

/// Checks the image. Problems are returned; an error is what kept it from looking.
pub fn verify(store: &Store, lease: &Lease, record: &ImageRecord) -> Result<Vec<String>, StoreError> {
    let images = match base_images(store, record) {
        Ok(images) => images,
        Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => return Ok(vec![error.to_string()]),
        Err(error) => return Err(error),
    };
    let mut problems = Vec::new();
    let manifest_size = store.blob_size(&record.manifest)?;
    if manifest_size != record.manifest_size {
        problems.push(format!("its manifest has {manifest_size} bytes, not {}", record.manifest_size));
    }
    let mut contents = Vec::with_capacity(images.len());
    for image in &images {
        contents.push((image.platform.clone(), image_problems(store, lease, image, &mut problems)?));
    }
    let content = match images.as_slice() {
        [image] if record.id.0 != record.manifest => {
            if image.image_id != record.id {
                problems.push(format!("its config is {}, not {}", image.image_id, record.id));
            }
            contents[0].1
        }
        _ => index_content_digest(contents),
    };
    if let (Some(known), Some(content)) = (record.content, content)
        && known != content
    {
        problems.push(format!("its content digest is {content}"));
    }
    Ok(problems)
}

/// Checks the layers of an image; its content digest, if all of them could be read.
fn image_problems(
    store: &Store,
    lease: &Lease,
    image: &BaseImage,
    problems: &mut Vec<String>,
) -> Result<Option<ContentDigest>, StoreError> {
    let mut contents: Vec<ContentDigest> = Vec::new();
    let diff_ids = &image.config.rootfs.diff_ids;
    for (number, (layer, blob)) in diff_ids.iter().zip(&image.layers).enumerate() {
        // What its registry has is not lost.
        let elsewhere = store.lacks(layer, &blob.digest) && !store.origins_of_blob(layer, &blob.digest)?.is_empty();
        if blob.digest != layer.0 && !elsewhere {
            problems.extend(blob_problem(store, lease, layer, blob)?);
        }
        if elsewhere && !store.has_layer(layer) {
            continue;
        }
        match layer_content(store, lease, layer)? {
            Ok(content) => contents.push(content),
            Err(problem) => problems.push(problem),
        }
        match store.layer_summary(layer) {
            Ok(found) if blob.digest == layer.0 && blob.size != found.tar_size => {
                problems.push(format!("its manifest gives layer {layer} {} bytes, not {}", blob.size, found.tar_size));
            }
            // Told above.
            _ => {}
        }
        problems.extend(tree_problems(store, lease, &diff_ids[..=number])?);
    }
    let complete = contents.len() == image.layers.len();
    Ok(complete.then(|| image_content_digest(&image.config, &contents)))
}

/// Reads the files of the trees of the last of these layers: its own, and the one on these parents.
fn tree_problems(store: &Store, lease: &Lease, layers: &[DiffId]) -> Result<Vec<String>, StoreError> {
    let Some((layer, below)) = layers.split_last() else { return Ok(Vec::new()) };
    // What is wrong with an index is told where it is read alone.
    let Ok(Some(index)) = store.layer_index(layer) else { return Ok(Vec::new()) };
    let mut problems = Vec::new();
    // What a form under an epoch is made of has the tree that a RUN sees.
    let source = store.source_of_epoch(layer).ok().flatten();
    for own in std::iter::once(*layer).chain(source) {
        if let Some(tree) = store.layer_tree(&own)
            && let Ok(Some(index)) = store.layer_index(&own)
            && let Some(why) = bytes_or_entries(lease, &index, &tree)?
        {
            problems.push(store.damaged(&tree, why).to_string());
        }
    }
    if let Some(tree) = ChainId::of(layers).and_then(|chain| store.chain_tree(&chain)) {
        let below: Option<Vec<_>> =
            below.iter().map(|layer| store.layer_index(layer).ok().flatten().map(Arc::new)).collect();
        let alone = below.and_then(|below| on_parents(&index, &LayerStack::new(below).ok()?).ok());
        if let Some(alone) = alone
            && let Some(why) = bytes_or_entries(lease, &alone, &tree)?
        {
            problems.push(store.damaged(&tree, why).to_string());
        }
    }
    Ok(problems)
}

/// What is wrong with a tree: with the bytes of its files, else with all else that a RUN sees.
pub(super) fn bytes_or_entries(lease: &Lease, index: &LayerIndex, tree: &Path) -> Result<Option<String>, StoreError> {
    if let Some(problem) = tree_problem(lease, index, tree)? {
        return Ok(Some(problem));
    }
    let found = entries_problem(index, tree).map_err(StoreError::io("read", tree));
    match found {
        Err(ref error @ StoreError::Io { ref source, .. }) if lease.blames_thing(error) => Ok(Some(source.to_string())),
        found => found,
    }
}

/// Whoever asks sees this id where the real one is not mapped.
const UNMAPPED: u32 = 65534;

/// Compares names, kinds, modes, owners and times of a tree with what an index says: whichever way a tree came to be, it is
/// just that. Left out are the times of folders, which any look into them may set on some file systems, and devices, which
/// not everyone can make.
fn entries_problem(index: &LayerIndex, tree: &Path) -> io::Result<Option<String>> {
    let root = RootDir::open(tree)?;
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let dir = root.open_dir(&folder)?;
        let join = |name: &[u8]| if folder.is_empty() { name.to_vec() } else { [&folder, &b"/"[..], name].concat() };
        let there: BTreeSet<Vec<u8>> = dir.names()?.into_iter().collect();
        let mut listed = 0;
        for child in index.names(&folder) {
            let path = join(child.name);
            let shown = String::from_utf8_lossy(&path);
            let entry = child.position.map(|position| index.entry_ref(position));
            if !there.contains(child.name) {
                if entry.is_some_and(|entry| is_device(&entry.kind)) {
                    continue;
                }
                return Ok(Some(format!("{shown} is not there")));
            }
            listed += 1;
            let found = dir.stat(child.name)?;
            if found.kind == StatKind::Directory {
                folders.push(path.clone());
            }
            if let Some(entry) = entry
                && let Some(why) = entry_problem(&dir, child.name, &entry, &found)?
            {
                return Ok(Some(format!("{shown} {why}")));
            }
        }
        if listed < there.len() {
            let more = there.iter().find(|name| matches!(index.place(&join(name)).at, At::Absent | At::Hidden));
            let shown = more.map(|name| String::from_utf8_lossy(&join(name)).into_owned()).unwrap_or_default();
            return Ok(Some(format!("{shown} is there, which the layer has not")));
        }
    }
    Ok(None)
}

fn is_device(kind: &KindRef<'_>) -> bool {
    matches!(kind, KindRef::CharDevice { .. } | KindRef::BlockDevice { .. })
}

/// How what is in a tree differs from its entry.
fn entry_problem(dir: &Dir, name: &[u8], entry: &EntryRef<'_>, found: &Stat) -> io::Result<Option<String>> {
    let is_kind = match entry.kind {
        KindRef::File { .. } => found.kind == StatKind::File,
        KindRef::Directory | KindRef::Opaque => found.kind == StatKind::Directory,
        KindRef::Symlink { .. } => found.kind == StatKind::Symlink,
        KindRef::Fifo => found.kind == StatKind::Fifo,
        KindRef::Whiteout => found.kind == StatKind::CharDevice && found.device == (0, 0),
        // Another name of what is compared under its first one.
        KindRef::HardLink { .. } => found.kind != StatKind::Directory,
        KindRef::CharDevice { .. } | KindRef::BlockDevice { .. } => true,
    };
    if !is_kind {
        return Ok(Some("is of another kind than in the layer".to_owned()));
    }
    if matches!(entry.kind, KindRef::Whiteout | KindRef::HardLink { .. } | KindRef::Opaque) || is_device(&entry.kind) {
        return Ok(None);
    }
    if let KindRef::Symlink { target } = entry.kind {
        let found = dir.read_link(name)?;
        if found != target {
            return Ok(Some(format!("leads to {}", String::from_utf8_lossy(&found))));
        }
    } else if found.mode != entry.mode {
        return Ok(Some(format!("has the mode {:o}, not {:o}", found.mode, entry.mode)));
    }
    let owner = [(found.uid, entry.uid), (found.gid, entry.gid)];
    if owner.iter().any(|(found, known)| found != known && *found != UNMAPPED) {
        let (found, known) = ((found.uid, found.gid), (entry.uid, entry.gid));
        return Ok(Some(format!("belongs to {}:{}, not {}:{}", found.0, found.1, known.0, known.1)));
    }
    if matches!(entry.kind, KindRef::File { .. }) && found.mtime.0 != entry.mtime {
        return Ok(Some("has another time than in the layer".to_owned()));
    }
    Ok(None)
}

/// Whether an error says that bytes are wrong, not that they could not be read. Decoders do not agree on how to say so.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof | Other)
}

/// Reads a layer's blob, packed and unpacked.
fn blob_problem(store: &Store, lease: &Lease, layer: &DiffId, blob: &Descriptor) -> Result<Option<String>, StoreError> {
    let path = store.blob_path(&blob.digest);
    let layer_path = store.path("layers").join(layer.0.hex());
    if !store.has_blob(&blob.digest) {
        let why = format!("the blob {} of layer {layer} is not there", blob.digest);
        return Ok(Some(store.damaged(&layer_path, why).to_string()));
    }
    let file = std::fs::File::open(&path).map_err(StoreError::io("open", &path))?;
    let mut packed = HashingReader::new(file);
    let unpacked = compress::decompress(Box::new(&mut packed)).and_then(Digest::of_reader);
    // Bytes after the compressed stream belong to the blob too.
    if let Err(error) = io::copy(&mut packed, &mut io::sink()).map_err(StoreError::io("read", &path)) {
        let problem = unreadable(store, lease, &path, error)?;
        return Ok(Some(problem));
    }
    let (_, found, size) = packed.finish();
    if (found, size) != (blob.digest, blob.size) {
        let why = format!("the blob {} of layer {layer} has {size} bytes with the digest {found}", blob.digest);
        return Ok(Some(store.damaged(&path, why).to_string()));
    }
    Ok(match unpacked {
        Ok(found) if found == layer.0 => None,
        Ok(found) => Some(format!("the blob {} does not hold layer {layer} but {found}", blob.digest)),
        Err(error) => Some(format!("the blob {} cannot be unpacked: {error}", blob.digest)),
    })
}

/// What is wrong with something that cannot be read; an error that says nothing of it is handed on.
fn unreadable(store: &Store, lease: &Lease, path: &Path, error: StoreError) -> Result<String, StoreError> {
    match &error {
        StoreError::Io { source, .. } if lease.blames_thing(&error) => {
            Ok(store.damaged(path, format!("it cannot be read: {source}")).to_string())
        }
        _ => Err(error),
    }
}

/// Makes the layer's tar from the form that is there, indexes it anew and compares.
pub(super) fn layer_content(
    store: &Store,
    lease: &Lease,
    layer: &DiffId,
) -> Result<Result<ContentDigest, String>, StoreError> {
    let path = store.path("layers").join(layer.0.hex());
    let damaged = |why: String| store.damaged(&path, why).to_string();
    let tar = match store.tar_file(layer, lease) {
        Ok(tar) => tar,
        Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => return Ok(Err(error.to_string())),
        Err(error) => return unreadable(store, lease, &path, error).map(Err),
    };
    let index = match store.layer_index(layer) {
        Ok(Some(index)) => index,
        Ok(None) => return Ok(Err(damaged(format!("the index of layer {layer} is not there")))),
        Err(error @ StoreError::Damaged { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return unreadable(store, lease, &path, error).map(Err),
    };
    Ok(match scan(tar) {
        Ok(found) if found.diff_id() != *layer => Err(damaged(format!("layer {layer} holds {}", found.diff_id()))),
        Ok(found) if found.content() != index.content() => {
            Err(damaged(format!("the index of layer {layer} is not that of its tar")))
        }
        Ok(found) => Ok(found.content()),
        Err(error) => Err(damaged(format!("layer {layer} cannot be read: {error}"))),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use serde_json::json;

    use super::*;
    use crate::image::platform::Platform;
    use crate::layer::compress::{Compression, Encoder};
    use crate::layer::sample;
    use crate::store::load::load;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn each_damage_is_found() {
        let (one, two) = (tar_of(&[("a", b"1")]), tar_of(&[("b", b"2")]));
        let mut encoder = Encoder::new(Vec::new(), Compression::GZIP);
        encoder.write_all(&two).unwrap();
        let packed = encoder.finish().unwrap();
        let diff_ids = [Digest::of(&one), Digest::of(&two)];
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let manifest = json!([{"Config": "c", "RepoTags": null, "Layers": ["1", "2"]}]).to_string();
        let config = config.to_string();
        let archive =
            tar_of(&[("c", config.as_bytes()), ("1", &one), ("2", &packed), ("manifest.json", manifest.as_bytes())]);
        type Harm<'a> = Box<dyn Fn(&Store, &ImageRecord) + 'a>;
        let flip = |path: std::path::PathBuf, at: usize| {
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let layer = |store: &Store, number: usize| store.path("layers").join(diff_ids[number].hex());
        let cases: Vec<(&str, Harm<'_>, &str)> = vec![
            ("nothing", Box::new(|_, _| ()), ""),
            ("the manifest", Box::new(|store, image| flip(store.blob_path(&image.manifest), 3)), "is damaged"),
            ("the config", Box::new(|store, image| flip(store.blob_path(&image.id.0), 3)), "is damaged"),
            (
                "no config",
                Box::new(|store, image| fs::remove_file(store.blob_path(&image.id.0)).unwrap()),
                "not in the store",
            ),
            ("a tar", Box::new(|store, _| flip(layer(store, 0).join("tar"), 512)), " holds sha256:"),
            ("a blob", Box::new(|store, _| flip(store.blob_path(&Digest::of(&packed)), 20)), "the blob sha256:"),
            (
                "no blob",
                Box::new(|store, _| fs::remove_file(store.blob_path(&Digest::of(&packed))).unwrap()),
                "is not there",
            ),
            ("an index", Box::new(|store, _| flip(layer(store, 0).join("index"), 60)), "damaged"),
            (
                "no index",
                Box::new(|store, _| fs::remove_file(layer(store, 0).join("index")).unwrap()),
                "index of layer",
            ),
            (
                "the index of another layer",
                Box::new(|store, _| {
                    assert!(fs::copy(layer(store, 1).join("index"), layer(store, 0).join("index")).unwrap() > 0);
                }),
                "it is the index of",
            ),
        ];
        for (name, harm, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let lease = store.lease("boot").unwrap();
            let path = folder.path().join("archive");
            fs::write(&path, &archive).unwrap();
            let file = fs::File::open(path).unwrap();
            let record =
                load(&store, &lease, file, "x", &Platform::new("linux", "amd64", ""), &[]).unwrap()[0].record.clone();
            harm(&store, &record);
            let problems = verify(&store, &lease, &record).unwrap().join("; ");
            assert_eq!(problems.is_empty(), expected.is_empty(), "{name}: {problems}");
            assert!(problems.contains(expected), "{name}: {problems}");
        }
    }

    #[test]
    fn a_tree_is_what_its_index_says() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
        use std::time::{Duration, UNIX_EPOCH};
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("boot").unwrap();
        let made = fs::metadata(folder.path()).unwrap();
        let owner = format!("{} {}", made.uid(), made.gid());
        let text = format!(
            "dir d 0755 {owner}\nfile d/f 0644 {owner} data\nlink d/g 0644 {owner} d/f\nfile e/f 0600 {owner} x\n\
             symlink s 0777 {owner} d/f\nchar z 0644 {owner} 5 1"
        );
        let index = sample::index(crate::layer::index::Origin::Foreign, &text);
        type Change = fn(&Path);
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let cases: [(Change, Option<&str>); 10] = [
            (|_| (), None),
            (
                |tree| fs::set_permissions(tree.join("d/f"), fs::Permissions::from_mode(0o4777)).unwrap(),
                Some("d/f has the mode 4777, not 644"),
            ),
            (
                |tree| fs::set_permissions(tree.join("d"), fs::Permissions::from_mode(0o700)).unwrap(),
                Some("d has the mode 700, not 755"),
            ),
            (
                |tree| {
                    fs::File::open(tree.join("d/f"))
                        .unwrap()
                        .set_modified(UNIX_EPOCH + Duration::from_secs(9))
                        .unwrap();
                },
                Some("d/f has another time"),
            ),
            (|tree| fs::write(tree.join("extra"), "").unwrap(), Some("extra is there, which the layer has not")),
            (|tree| fs::write(tree.join("e/extra"), "").unwrap(), Some("e/extra is there")),
            (|tree| fs::remove_file(tree.join("s")).unwrap(), Some("s is not there")),
            (
                |tree| fs::remove_file(tree.join("s")).and_then(|()| symlink("/", tree.join("s"))).unwrap(),
                Some("s leads to /"),
            ),
            (
                |tree| fs::remove_file(tree.join("s")).and_then(|()| fs::create_dir(tree.join("s"))).unwrap(),
                Some("s is of another kind"),
            ),
            (|tree| fs::remove_file(tree.join("d/g")).unwrap(), Some("d/g is not there")),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            let tree = folder.path().join(number.to_string());
            fs::create_dir_all(tree.join("d")).unwrap();
            fs::create_dir_all(tree.join("e")).unwrap();
            for (name, text, bits) in [("d/f", "data", 0o644), ("e/f", "x", 0o600)] {
                fs::write(tree.join(name), text).unwrap();
                mode(&tree.join(name), bits);
                let time = UNIX_EPOCH + Duration::from_secs(index.get(name.as_bytes()).unwrap().mtime as u64);
                fs::File::open(tree.join(name)).unwrap().set_modified(time).unwrap();
            }
            mode(&tree.join("d"), 0o755);
            fs::hard_link(tree.join("d/f"), tree.join("d/g")).unwrap();
            symlink("d/f", tree.join("s")).unwrap();
            change(&tree);
            let problem = bytes_or_entries(&lease, &index, &tree).unwrap();
            match (&problem, expected) {
                (None, None) => {}
                (Some(problem), Some(expected)) => assert!(problem.starts_with(expected), "{problem}"),
                (problem, expected) => panic!("{problem:?}, expected {expected:?}"),
            }
        }
    }
}
