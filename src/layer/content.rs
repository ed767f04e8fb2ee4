//! The content digest of a layer: what it holds, with the times left out.
//!
//! In: the entries of a layer, in their order. Out: a [`ContentDigest`].
//! What always holds: layers that differ only in times, in the order of a foreign tar, or in which of several
//! hard-linked names came first there have one digest; any other difference in what an image would hold changes it.
//!
//! The sum is over [`FORMAT`], then for each entry these fields, each preceded by its length (8 bytes, little endian):
//!
//! | field | bytes |
//! |---|---|
//! | path | as in the tar, without the trailing slash of directories; whiteouts `dir/.wh.name`, opaque `dir/.wh..wh..opq` |
//! | type | one of `f` file, `h` hard link, `d` directory, `l` symbolic link, `c` `b` devices, `p` pipe, `w` whiteout or opaque |
//! | mode, uid, gid | 4 bytes each, little endian, each a field; zero for whiteouts; symbolic links have mode 0777 |
//! | target | of hard and symbolic links, else empty |
//! | device | major and minor, 4 bytes each, one field; empty unless a device |
//! | capability | value of `security.capability`, else empty |
//! | size, data | for files only: 8 bytes, little endian, and the 32 bytes of the SHA-256 of the data |
//!
//! Entries come in the order of the layer index: by the path that they are *about*, a whiteout by its victim's.

use crate::digest::{ContentDigest, Hasher};
use crate::layer::entry::{file_name, parent};
use crate::layer::entry_ref::{EntryRef, KindRef};

/// The first field of every sum; a change of the rules above changes it.
pub const FORMAT: &[u8] = b"rbuild layer content 1";

/// What precedes the name of the victim in the name of a whiteout.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The name that marks a directory as opaque.
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// A running content digest.
pub struct ContentHasher {
    sum: Hasher,
    fields: Vec<u8>,
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHasher {
    /// Starts the digest of a layer without entries.
    pub fn new() -> Self {
        let mut sum = Hasher::new();
        sum.field(FORMAT);
        Self { sum, fields: Vec::with_capacity(512) }
    }

    /// Adds the next entry; entries come in component-wise order.
    pub fn push(&mut self, entry: &EntryRef<'_>) {
        let (tag, target): (u8, &[u8]) = match entry.kind {
            KindRef::File { .. } => (b'f', b""),
            KindRef::HardLink { target } => (b'h', target),
            KindRef::Directory => (b'd', b""),
            KindRef::Symlink { target } => (b'l', target),
            KindRef::CharDevice { .. } => (b'c', b""),
            KindRef::BlockDevice { .. } => (b'b', b""),
            KindRef::Fifo => (b'p', b""),
            KindRef::Whiteout | KindRef::Opaque => (b'w', b""),
        };
        let (mode, uid, gid) = match entry.kind {
            KindRef::Whiteout | KindRef::Opaque => (0, 0, 0),
            KindRef::Symlink { .. } => (0o777, entry.uid, entry.gid),
            _ => (entry.mode, entry.uid, entry.gid),
        };
        self.fields.clear();
        field(&mut self.fields, &[&tar_name(entry)]);
        field(&mut self.fields, &[&[tag]]);
        for number in [mode, uid, gid] {
            field(&mut self.fields, &[&number.to_le_bytes()]);
        }
        field(&mut self.fields, &[target]);
        match entry.kind {
            KindRef::CharDevice { major, minor } | KindRef::BlockDevice { major, minor } => {
                field(&mut self.fields, &[&major.to_le_bytes(), &minor.to_le_bytes()]);
            }
            _ => field(&mut self.fields, &[]),
        }
        field(&mut self.fields, &[entry.capability.unwrap_or_default()]);
        if let KindRef::File { size, sha256 } = entry.kind {
            field(&mut self.fields, &[&size.to_le_bytes()]);
            field(&mut self.fields, &[sha256.as_bytes()]);
        }
        self.sum.update(&self.fields);
    }

    /// Ends the digest.
    pub fn finish(self) -> ContentDigest {
        ContentDigest(self.sum.finish())
    }
}

/// The content digest of `entries`, which come in component-wise order.
pub fn content_digest<'a>(entries: impl IntoIterator<Item = EntryRef<'a>>) -> ContentDigest {
    let mut sum = ContentHasher::new();
    for entry in entries {
        sum.push(&entry);
    }
    sum.finish()
}

/// The name that an entry has in a tar, without the trailing slash of directories.
pub fn tar_name<'a>(entry: &EntryRef<'a>) -> std::borrow::Cow<'a, [u8]> {
    let marked = |dir: Option<&[u8]>, name: &[&[u8]]| {
        let mut path = dir.map_or_else(Vec::new, |dir| [dir, b"/"].concat());
        for part in name {
            path.extend_from_slice(part);
        }
        path.into()
    };
    match entry.kind {
        KindRef::Whiteout => marked(parent(entry.path), &[WHITEOUT_PREFIX, file_name(entry.path)]),
        KindRef::Opaque => marked(Some(entry.path).filter(|dir| !dir.is_empty()), &[OPAQUE_NAME]),
        _ => entry.path.into(),
    }
}

/// Appends the length of `parts` together, then `parts`.
fn field(fields: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    fields.extend_from_slice(&(length as u64).to_le_bytes());
    for part in parts {
        fields.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Entry;
    use crate::layer::sample;

    #[test]
    fn golden_vectors() {
        let text = include_str!("../../testdata/content/vectors.txt");
        let (mut name, mut entries, mut checked) = ("", Vec::<Entry>::new(), 0);
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(next) = line.strip_prefix("layer ") {
                (name, entries) = (next, Vec::new());
            } else if let Some(expected) = line.strip_prefix("content ") {
                let digest = content_digest(entries.iter().map(EntryRef::from));
                assert_eq!(digest.to_string(), expected, "{name}");
                checked += 1;
            } else {
                entries.push(sample::entry(line));
            }
        }
        assert_eq!(checked, 6);
    }

    #[test]
    fn counts_everything_but_times() {
        let digest = |lines: &[&str], mtime| {
            let entries: Vec<Entry> = lines.iter().map(|line| Entry { mtime, ..sample::entry(line) }).collect();
            content_digest(entries.iter().map(EntryRef::from))
        };
        let plain = digest(&["file a 0644 0 0 x -"], 0);
        assert_eq!(plain, digest(&["file a 0644 0 0 x -"], 5));
        for other in [
            "file b 0644 0 0 x -",
            "file a 0600 0 0 x -",
            "file a 0644 1 0 x -",
            "file a 0644 0 1 x -",
            "file a 0644 0 0 y -",
            "file a 0644 0 0 x 01",
            "dir a 0644 0 0",
            "pipe a 0644 0 0",
            "char a 0644 0 0 0 0",
            "block a 0644 0 0 0 0",
            "symlink a 0777 0 0 x",
            "whiteout a",
        ] {
            assert_ne!(plain, digest(&[other], 0), "{other}");
        }
        assert_ne!(digest(&["char a 0644 0 0 0 1"], 0), digest(&["char a 0644 0 0 1 0"], 0));
        assert_ne!(digest(&["symlink a 0777 0 0 x"], 0), digest(&["symlink a 0777 0 0 y"], 0));
        assert_ne!(digest(&["dir a"], 0), digest(&["dir a", "opaque a"], 0));
    }

    #[test]
    fn names_of_whiteouts() {
        let name =
            |line: &str| String::from_utf8(tar_name(&EntryRef::from(&sample::entry(line))).into_owned()).unwrap();
        assert_eq!(name("whiteout a"), ".wh.a");
        assert_eq!(name("whiteout a/b"), "a/.wh.b");
        assert_eq!(name("opaque a"), "a/.wh..wh..opq");
        assert_eq!(name("opaque \"\""), ".wh..wh..opq");
        assert_eq!(name("dir a/b"), "a/b");
    }
}
