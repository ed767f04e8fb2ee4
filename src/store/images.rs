//! The images that have names, and those that had one.
//!
//! In: manifests that are in the content store, and references. Out: records of them. What always holds: `images.json`
//! is replaced as a whole under `images.lock`; a name leads to one image; an image that lost its last name stays,
//! without names, until it is removed. The file ends with a checksum, and has a copy, `images.copy.json`, which is read where
//! the file is damaged or lost: names stand nowhere else. The next change writes both again.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::layout::{Store, StoreError, open_if_there, read_if_there};
use crate::digest::{ContentDigest, Digest, ImageId};

const VERSION: u32 = 1;

/// What the store knows of an image without opening its documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the config; of several platforms, that of the index.
    pub id: ImageId,
    /// Full references with tags, such as `docker.io/library/nginx:latest`, sorted.
    pub names: Vec<String>,
    /// Digest of the manifest, or of the index.
    pub manifest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's size in bytes.
    pub manifest_size: u64,
    /// Digest of what it holds, times left out; see the decisions in ARCHITECTURE.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentDigest>,
    /// `created` of the config: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Bytes of the files of all layers: Docker's SIZE.
    pub size: u64,
    /// The platform, as `os/architecture[/variant]`.
    pub platform: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    images: Vec<ImageRecord>,
}

/// A list of images that was read.
#[derive(Debug)]
pub struct Listed {
    _file: File,
    stamp: Stamp,
    bytes: Arc<Vec<u8>>,
}

/// Device, number, size, and the times of the last changes of a file.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(file: &Metadata) -> Stamp {
    (file.dev(), file.ino(), file.size(), (file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()))
}

const FILE: &str = "images.json";
const COPY: &str = "images.copy.json";

/// The answer to a search for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Exactly one fits.
    Found(ImageRecord),
    /// None fits.
    None,
    /// A shortened id fits several.
    Ambiguous(Vec<ImageId>),
}

impl Store {
    /// All images, those made last first.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        Ok(self.read_images(|bytes| self.parse_images(bytes))?.unwrap_or_default())
    }

    /// Reads the list, or its copy; `None` where there is neither.
    fn read_images<T>(&self, parse: impl Fn(&[u8]) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let found = match self.list_of_images()? {
            Some(bytes) => match parse(&bytes) {
                Err(error @ StoreError::Damaged { .. }) => Err(error),
                other => return other.map(Some),
            },
            None => Ok(None),
        };
        match read_if_there(&self.path(COPY))?.map(|bytes| parse(&bytes)) {
            Some(Ok(copy)) => Ok(Some(copy)),
            _ => found,
        }
    }

    /// The bytes of the list. A build looks into it several times, and with a thousand images it is half a megabyte: they
    /// are read once as long as the file is the same. It is held open, so that no other has its number.
    fn list_of_images(&self) -> Result<Option<Arc<Vec<u8>>>, StoreError> {
        let path = self.path(FILE);
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(known), Ok(now)) = (&*listed, path.metadata())
            && stamp(&now) == known.stamp
        {
            return Ok(Some(Arc::clone(&known.bytes)));
        }
        let Some(mut file) = open_if_there(&path)? else { return Ok(None) };
        let stamp = stamp(&file.metadata().map_err(StoreError::io("look at", &path))?);
        let mut bytes = Vec::with_capacity(usize::try_from(stamp.2).unwrap_or(0) + 1);
        file.read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        let bytes = Arc::new(bytes);
        *listed = Some(Listed { _file: file, stamp, bytes: Arc::clone(&bytes) });
        Ok(Some(bytes))
    }

    /// What is wrong with the list of images, although its copy is used.
    pub fn images_problem(&self) -> Result<Option<String>, StoreError> {
        let path = self.path(FILE);
        let why = match read_if_there(&path)?.map(|bytes| self.parse_images(&bytes)) {
            Some(Ok(_)) => return Ok(None),
            Some(Err(error)) => error.to_string(),
            None if self.path(COPY).exists() => format!("{} is not there", path.display()),
            None => return Ok(None),
        };
        Ok(Some(format!("{why}; its copy is used, and takes its place")))
    }

    /// Writes the list again if it is damaged.
    pub fn restore_images(&self) -> Result<bool, StoreError> {
        self.change_images(|_| ())
    }

    fn parse_images(&self, bytes: &[u8]) -> Result<Vec<ImageRecord>, StoreError> {
        let damaged = |why: String| StoreError::Damaged { path: self.path(FILE), why };
        if has_right_sum(bytes) == Some(false) {
            return Err(damaged("its checksum is wrong".to_owned()));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if document.version > VERSION {
            return Err(damaged(format!("written by a newer rbuild (version {})", document.version)));
        }
        Ok(document.images)
    }

    /// The image with this full reference.
    pub fn image_by_name(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        self.find_image(name, |image| image.names.iter().any(|known| known == name))
    }

    /// The image with this manifest or index.
    pub fn image_by_manifest(&self, manifest: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        self.find_image(&manifest.to_string(), |image| image.manifest == *manifest)
    }

    /// Whether there is an image with this manifest, of which all layers were here and made an image.
    pub fn knows_content(&self, manifest: &Digest) -> Result<bool, StoreError> {
        Ok(self.image_by_manifest(manifest)?.is_some_and(|image| image.content.is_some()))
    }

    /// The first image that `fits`; its record holds `text` as a string. In a store of a thousand images this reads one
    /// record, not a thousand: a build without anything to do takes no longer for them.
    fn find_image(&self, text: &str, fits: impl Fn(&ImageRecord) -> bool) -> Result<Option<ImageRecord>, StoreError> {
        let found = self.read_images(|bytes| match find_record(bytes, text, &fits) {
            Search::Found(record) => Ok(Some(*record)),
            Search::Absent => Ok(None),
            // Somebody else wrote the file, or another version: it is read as a whole, and judged.
            Search::Unlike => Ok(self.parse_images(bytes)?.into_iter().find(&fits)),
        });
        Ok(found?.flatten())
    }

    /// The image whose id or manifest digest begins with `prefix`: hexadecimal digits, with or without `sha256:`.
    pub fn image_by_id(&self, prefix: &str) -> Result<Lookup, StoreError> {
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Ok(Lookup::None);
        }
        let prefix = prefix.to_ascii_lowercase();
        let fits = |image: &ImageRecord| {
            image.id.0.hex().starts_with(&prefix) || (prefix.len() == 64 && image.manifest.hex() == prefix)
        };
        let mut found: Vec<_> = self.images()?.into_iter().filter(fits).collect();
        let mut ids: Vec<_> = found.iter().map(|image| image.id).collect();
        ids.dedup();
        Ok(match (ids.len(), found.is_empty()) {
            (_, true) => Lookup::None,
            (1, _) => Lookup::Found(found.swap_remove(0)),
            _ => Lookup::Ambiguous(ids),
        })
    }

    /// Gives `image` its names, in addition to those it had, and takes them from whichever image had them.
    /// Writes nothing where all is so already; says whether it wrote.
    pub fn tag(&self, image: &ImageRecord) -> Result<bool, StoreError> {
        self.change_images(|images| {
            for other in images.iter_mut() {
                if (other.id, other.manifest) != (image.id, image.manifest) {
                    other.names.retain(|name| !image.names.contains(name));
                }
            }
            let mut merged = image.clone();
            if let Some(known) =
                images.iter().position(|other| (other.id, other.manifest) == (image.id, image.manifest))
            {
                let mut known_image = images[known].clone();
                merged.names.append(&mut known_image.names);
                merged.names.sort();
                merged.names.dedup();
                merged.content = merged.content.or(known_image.content);
                // What is known stays where it is: a build with nothing to do writes nothing.
                images[known] = merged;
            } else {
                merged.names.sort();
                merged.names.dedup();
                images.insert(0, merged);
            }
            // Two manifests of one config (other compression) are one image to the user: the unnamed older one goes.
            images.retain(|other| !other.names.is_empty() || other.manifest == image.manifest || other.id != image.id);
        })
    }

    /// Writes down what was learned of an image, if it is here still: its size and what it holds.
    pub fn refresh_image(&self, image: &ImageRecord) -> Result<bool, StoreError> {
        self.change_images(|images| {
            let same = |other: &&mut ImageRecord| (other.id, other.manifest) == (image.id, image.manifest);
            for known in images.iter_mut().filter(same) {
                (known.size, known.content) = (image.size, image.content);
            }
        })
    }

    /// Takes names away. The image with that id is forgotten if it has none then; others stay, with names or without. The
    /// names that were there, and whether it went.
    pub fn untag(&self, id: &ImageId, names: &[String]) -> Result<(Vec<String>, bool), StoreError> {
        let (mut gone, mut forgotten) = (Vec::new(), false);
        self.change_images(|images| {
            for image in images.iter_mut() {
                gone.extend(image.names.extract_if(.., |name| names.contains(name)));
            }
            // Two manifests of one config are one image to the user.
            if !images.iter().any(|image| image.id == *id && !image.names.is_empty()) {
                forgotten = images.iter().any(|image| image.id == *id);
                images.retain(|image| image.id != *id);
            }
        })?;
        Ok((gone, forgotten))
    }

    /// Forgets these images, names and all, unless their names have changed in the meantime. Those that went.
    pub fn remove_images(&self, going: &[ImageRecord]) -> Result<Vec<ImageRecord>, StoreError> {
        let mut gone = Vec::new();
        if !going.is_empty() {
            let same = |a: &ImageRecord, b: &ImageRecord| (a.id, a.manifest, &a.names) == (b.id, b.manifest, &b.names);
            let goes = |image: &mut ImageRecord| going.iter().any(|other| same(image, other));
            self.change_images(|images| gone.extend(images.extract_if(.., goes)))?;
        }
        Ok(gone)
    }

    fn change_images(&self, change: impl FnOnce(&mut Vec<ImageRecord>)) -> Result<bool, StoreError> {
        let path = self.path("images.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(self.not_made("open", &path))?;
        lock.lock().map_err(StoreError::io("lock", &path))?;
        let before = self.images()?;
        let mut images = before.clone();
        change(&mut images);
        if images == before && self.images_problem()?.is_none() {
            return Ok(false);
        }
        let path = self.path(FILE);
        let document = serde_json::to_vec(&Document { version: VERSION, images });
        let bytes = document.map_err(|error| StoreError::io("write", &path)(error.into()))?;
        let bytes = with_sum(bytes);
        match self.replace(&path, &bytes) {
            // On a full disk the copy is what makes room: else no name could be taken away there.
            Err(StoreError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
                    && std::fs::remove_file(self.path(COPY)).is_ok() =>
            {
                self.replace(&path, &bytes)?;
            }
            other => other?,
        }
        // Not waited for: the file itself is on the disk now. No copy is better than an old one.
        if self.replace_later(&self.path(COPY), &bytes).is_err() {
            drop(std::fs::remove_file(self.path(COPY)));
        }
        Ok(true)
    }
}

/// Adds a checksum to an object: its last field.
fn with_sum(mut object: Vec<u8>) -> Vec<u8> {
    object.pop();
    let sum = libdeflater::crc32(&object);
    object.extend_from_slice(format!("{SUM}{sum:08x}\"}}").as_bytes());
    object
}

/// Whether the checksum is right; `None` where there is none.
fn has_right_sum(bytes: &[u8]) -> Option<bool> {
    let (object, tail) = bytes.split_at_checked(bytes.len().checked_sub(SUM.len() + 10)?)?;
    let sum = tail.strip_prefix(SUM.as_bytes())?.strip_suffix(b"\"}")?;
    Some(sum == format!("{:08x}", libdeflater::crc32(object)).as_bytes())
}

/// What stands before the checksum.
const SUM: &str = ",\"sum\":\"";

/// How the file begins, and how each record in it, as [`Store::change_images`] writes them. In a string the quotes would
/// have a backslash, so these bytes are never a part of one.
const BEGIN: &[u8] = b"{\"version\":1,\"images\":[";
const RECORD: &[u8] = b"{\"id\":\"";

/// The answer of [`find_record`].
enum Search {
    /// The record.
    Found(Box<ImageRecord>),
    /// There is none.
    Absent,
    /// The file does not look as it should.
    Unlike,
}

/// Looks for a record without reading the others.
fn find_record(bytes: &[u8], text: &str, fits: &impl Fn(&ImageRecord) -> bool) -> Search {
    let whole = has_right_sum(bytes) == Some(true);
    let (true, true, Ok(text)) = (bytes.starts_with(BEGIN), whole, serde_json::to_vec(text)) else {
        return Search::Unlike;
    };
    for at in memchr::memmem::find_iter(bytes, &text) {
        let Some(start) = memchr::memmem::rfind(&bytes[..at], RECORD) else { return Search::Unlike };
        let mut records = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<ImageRecord>();
        match records.next() {
            Some(Ok(record)) if fits(&record) => return Search::Found(Box::new(record)),
            Some(Ok(_)) => {}
            _ => return Search::Unlike,
        }
    }
    Search::Absent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, names: &[&str]) -> ImageRecord {
        ImageRecord {
            id: ImageId(Digest::of(id.as_bytes())),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            manifest: Digest::of(format!("manifest of {id}").as_bytes()),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest_size: 3,
            content: None,
            created: None,
            size: 7,
            platform: "linux/amd64".into(),
        }
    }

    #[test]
    fn a_name_moves_from_image_to_image() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.images().unwrap(), []);
        assert!(store.tag(&image("a", &["x:1", "y:1"])).unwrap());
        assert!(!store.tag(&image("a", &["y:1"])).unwrap(), "nothing to write");
        assert!(store.tag(&image("b", &["x:1"])).unwrap());
        let names = |id: &str| {
            let images = store.images().unwrap();
            images.into_iter().find(|other| other.id == image(id, &[]).id).map(|image| image.names)
        };
        assert_eq!(names("a"), Some(vec!["y:1".to_owned()]));
        assert_eq!(names("b"), Some(vec!["x:1".to_owned()]));
        let untag = |id: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            store.untag(&image(id, &[]).id, &names).unwrap()
        };
        assert_eq!(untag("b", &["y:1", "z:1"]), (vec!["y:1".to_owned()], false));
        assert_eq!(names("a"), Some(vec![]), "an image without a name stays");
        assert_eq!(untag("a", &[]), (vec![], true));
        assert_eq!(names("a"), None);
        assert_eq!(untag("b", &["x:1"]), (vec!["x:1".to_owned()], true));
        assert_eq!(untag("b", &["x:1"]), (vec![], false));
    }

    #[test]
    fn one_record_is_found_among_many() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.image_by_name("n:1").unwrap(), None);
        for id in 0..9 {
            // What stands in other fields leads nobody astray.
            let created = format!("\"n:{}\",{{\"id\":\"sha256:", id + 1);
            let record =
                ImageRecord { created: Some(created), ..image(&id.to_string(), &[&format!("n:{id}"), "é\"\\"]) };
            store.tag(&record).unwrap();
        }
        let find = |name: &str| store.image_by_name(name).unwrap().map(|image| image.id);
        for id in 0..9 {
            let expected = image(&id.to_string(), &[]);
            assert_eq!(find(&format!("n:{id}")), Some(expected.id));
            assert_eq!(store.image_by_manifest(&expected.manifest).unwrap().map(|image| image.id), Some(expected.id));
        }
        assert_eq!(find("é\"\\"), Some(image("8", &[]).id));
        assert_eq!((find("n:9"), find("n"), find("")), (None, None, None));
        // Written by somebody else, with blanks: it is read all the same.
        let path = store.path(FILE);
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        std::fs::write(&path, format!("{value:#}")).unwrap();
        assert_eq!(find("n:3"), Some(image("3", &[]).id));
        std::fs::remove_file(store.path(COPY)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(store.image_by_name("n:3").is_err());
        store.replace(&path, b"{\"version\":1,\"images\":[]}").unwrap();
        assert_eq!(find("n:3"), None);
    }

    #[test]
    fn names_outlive_damage_to_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let path = store.path(FILE);
        let images = [image("b", &["n:2"]), image("a", &["n:1"])];
        images.iter().rev().for_each(|image| assert!(store.tag(image).unwrap()));
        let right = std::fs::read(&path).unwrap();
        let mut flipped = right.clone();
        // The tag of a name: what is left is a document like any other.
        let at = memchr::memmem::find(&flipped, b"n:1").unwrap() + 2;
        flipped[at] ^= 2;
        let zeros = vec![0; right.len()];
        for damage in [Some(&right[..0]), Some(&right[..right.len() / 2]), Some(&zeros), Some(&flipped), None] {
            match damage {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            assert!(store.images_problem().unwrap().is_some());
            assert_eq!(store.images().unwrap(), images);
            assert_eq!(store.image_by_name("n:1").unwrap().as_ref(), Some(&images[1]));
            assert_eq!(store.image_by_name("n:3").unwrap(), None);
            assert!(store.restore_images().unwrap());
            assert_eq!(store.images_problem().unwrap(), None, "it was written again");
            assert!(!store.restore_images().unwrap());
            assert!(store.tag(&image("a", &["m:1"])).unwrap());
            store.untag(&images[1].id, &["m:1".to_owned()]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), right);
        }
        std::fs::write(&path, &flipped).unwrap();
        std::fs::write(store.path(COPY), &flipped).unwrap();
        let error = store.images().unwrap_err().to_string();
        assert!(error.contains("images.json is damaged: its checksum is wrong"), "{error}");
    }

    #[test]
    fn ids_may_be_shortened() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for id in 0..40 {
            store.tag(&image(&id.to_string(), &[&format!("n:{id}")])).unwrap();
        }
        let wanted = image("7", &["n:7"]);
        assert_eq!(store.image_by_id(&wanted.id.to_string()).unwrap(), Lookup::Found(wanted.clone()));
        assert_eq!(store.image_by_id(&wanted.id.0.hex()[..16]).unwrap(), Lookup::Found(wanted.clone()));
        assert_eq!(store.image_by_id("").unwrap(), Lookup::None);
        assert_eq!(store.image_by_id("xyz").unwrap(), Lookup::None);
        let first = &wanted.id.0.hex()[..1];
        assert!(matches!(store.image_by_id(first).unwrap(), Lookup::Ambiguous(_) | Lookup::Found(_)));
    }
}
