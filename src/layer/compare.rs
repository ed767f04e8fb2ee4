//! What differs between two lists of entries.
//!
//! In: the entries of two layers, or of two stacks, each in component-wise order. Out: one [`Change`] per path that is
//! not the same on both sides, in that order. What always holds: nothing is read but the entries; equal lists give
//! nothing.

use std::cmp::Ordering;

use crate::layer::entry::compare_paths;
use crate::layer::entry_ref::{EntryRef, KindRef};

/// A path that is not the same on both sides: what each has there, and in what they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<'a, 'b> {
    /// What the first side has.
    pub a: Option<EntryRef<'a>>,
    /// What the second side has.
    pub b: Option<EntryRef<'b>>,
    /// In what they differ; empty where only one side has the path.
    pub aspects: Vec<Aspect>,
}

/// In what two entries of one path differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// One is a file, the other a directory, or the like; nothing else is compared then.
    Kind,
    /// The bytes of a file.
    Content,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Modification time.
    Time,
    /// What a symbolic or hard link leads to.
    Link,
    /// Device numbers.
    Device,
    /// `security.capability`, the one extended attribute that layers keep.
    Xattr,
}

impl Aspect {
    /// Its name, as reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kind => "type",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Link => "link",
            Self::Device => "device",
            Self::Xattr => "xattr",
        }
    }
}

/// Compares two lists of entries.
pub fn compare<'a, 'b>(
    a: impl IntoIterator<Item = EntryRef<'a>>,
    b: impl IntoIterator<Item = EntryRef<'b>>,
) -> Vec<Change<'a, 'b>> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => compare_paths(x.path, y.path).then(rank(x).cmp(&rank(y))),
        };
        let change = match order {
            Ordering::Less => Change { a: a.next(), b: None, aspects: Vec::new() },
            Ordering::Greater => Change { a: None, b: b.next(), aspects: Vec::new() },
            Ordering::Equal => {
                let (Some(x), Some(y)) = (a.next(), b.next()) else { continue };
                let aspects = aspects(&x, &y);
                if aspects.is_empty() {
                    continue;
                }
                Change { a: Some(x), b: Some(y), aspects }
            }
        };
        changes.push(change);
    }
}

/// A directory and the mark that it is opaque have one path.
fn rank(entry: &EntryRef<'_>) -> bool {
    entry.kind == KindRef::Opaque
}

fn aspects(a: &EntryRef<'_>, b: &EntryRef<'_>) -> Vec<Aspect> {
    if std::mem::discriminant(&a.kind) != std::mem::discriminant(&b.kind) {
        return vec![Aspect::Kind];
    }
    let kind = match (a.kind, b.kind) {
        (x, y) if x == y => None,
        (KindRef::File { .. }, _) => Some(Aspect::Content),
        (KindRef::HardLink { .. } | KindRef::Symlink { .. }, _) => Some(Aspect::Link),
        _ => Some(Aspect::Device),
    };
    let others = [
        (a.mode != b.mode, Aspect::Mode),
        ((a.uid, a.gid) != (b.uid, b.gid), Aspect::Owner),
        (a.capability != b.capability, Aspect::Xattr),
        (a.mtime != b.mtime, Aspect::Time),
    ];
    kind.into_iter().chain(others.into_iter().filter_map(|(differs, aspect)| differs.then_some(aspect))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::entry::{Entry, Kind};

    fn file(path: &str) -> Entry {
        Entry {
            path: path.into(),
            kind: Kind::File { size: 1, sha256: Digest::of(b"x") },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 7,
            capability: None,
        }
    }

    #[test]
    fn each_path_is_told_with_what_differs() {
        use Aspect::{Content, Device, Kind as Type, Link, Mode, Owner, Time, Xattr};
        let link = |target: &str| Entry { kind: Kind::Symlink { target: target.into() }, ..file("f") };
        let pipe = |major| Entry { kind: Kind::CharDevice { major, minor: 0 }, ..file("f") };
        for (a, b, expected) in [
            (file("f"), file("f"), None),
            (
                file("f"),
                Entry { kind: Kind::File { size: 2, sha256: Digest::of(b"yz") }, ..file("f") },
                Some(vec![Content]),
            ),
            (file("f"), Entry { mode: 0o755, mtime: 8, ..file("f") }, Some(vec![Mode, Time])),
            (file("f"), Entry { uid: 1, ..file("f") }, Some(vec![Owner])),
            (file("f"), Entry { gid: 1, capability: Some(vec![1]), ..file("f") }, Some(vec![Owner, Xattr])),
            (file("f"), Entry { kind: Kind::Directory, mode: 0o755, ..file("f") }, Some(vec![Type])),
            (link("a"), link("b"), Some(vec![Link])),
            (pipe(1), pipe(2), Some(vec![Device])),
        ] {
            let changes = compare([EntryRef::from(&a)], [EntryRef::from(&b)]);
            assert_eq!(changes.first().map(|change| change.aspects.clone()), expected, "{a:?} {b:?}");
        }
    }

    #[test]
    fn what_only_one_side_has_is_told_in_order() {
        let of = |paths: &[&str]| paths.iter().map(|path| file(path)).collect::<Vec<_>>();
        let (a, b) = (of(&["a", "a/b", "a-b", "c"]), of(&["a", "a-b", "b", "c", "d"]));
        let changes = compare(a.iter().map(EntryRef::from), b.iter().map(EntryRef::from));
        let shown: Vec<_> =
            changes.iter().map(|change| (change.a.map(|entry| entry.path), change.b.map(|entry| entry.path))).collect();
        let path = |text: &'static str| Some(text.as_bytes());
        assert_eq!(shown, [(path("a/b"), None), (None, path("b")), (None, path("d"))]);
        assert_eq!(compare(a.iter().map(EntryRef::from), a.iter().map(EntryRef::from)), []);
    }
}
