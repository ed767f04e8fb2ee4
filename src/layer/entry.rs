//! One entry of a layer, and what it says.
//!
//! In: nothing; plain values. What always holds: `path` is relative, without `./`, `..`, doubled or trailing slashes,
//! and never empty; order is component-wise (so a directory comes before what is in it, and `a/b` before `a-b`).

use crate::digest::Digest;
use std::cmp::Ordering;

/// An entry of a layer as the layer index holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Raw bytes: names need not be UTF-8.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777. Symbolic links: 0o777.
    pub mode: u32,
    /// Numeric owner, as the image sees it.
    pub uid: u32,
    /// Numeric group, as the image sees it.
    pub gid: u32,
    /// Whole seconds since 1970; may be negative.
    pub mtime: i64,
    /// Value of `security.capability`, in its v2 form.
    pub capability: Option<Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes of data.
        size: u64,
        /// SHA-256 of the data.
        sha256: Digest,
    },
    /// Another name of a regular file that comes earlier in the same layer.
    HardLink {
        /// Path of the first name.
        target: Vec<u8>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// What was there below is gone. `path` is that of the victim, without `.wh.`.
    Whiteout,
    /// Directory `path` hides all that was in it below. Only in layers from outside.
    Opaque,
}

/// Component-wise order of two relative paths: `/` sorts before every other byte.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    let shared = shared_prefix(a, b);
    let key = |byte: &u8| if *byte == b'/' { 0u16 } else { u16::from(*byte) + 1 };
    match (a.get(shared), b.get(shared)) {
        (Some(x), Some(y)) => key(x).cmp(&key(y)),
        (x, y) => x.is_some().cmp(&y.is_some()),
    }
}

/// How many bytes two paths share at their start.
pub fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    // Eight bytes at a time: the paths of a layer share long starts, and look-ups compare little else.
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).take_while(|(x, y)| x == y).count() * 8;
    words + a[words..].iter().zip(&b[words..]).take_while(|(x, y)| x == y).count()
}

/// Whether `path` lies below directory `dir`, at any depth. Everything lies below the root, which is "".
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || (path.len() > dir.len() && path[dir.len()] == b'/' && path.starts_with(dir))
}

/// Whether `path` has the form that every path of a layer has: relative, without `.`, `..`, empty components or NUL.
pub fn is_clean(path: &[u8]) -> bool {
    // Length of the current component, and whether it has nothing but dots so far.
    let (mut length, mut dots) = (0usize, true);
    for byte in path.iter().chain(b"/") {
        match byte {
            0 => return false,
            b'/' if length == 0 || (dots && length <= 2) => return false,
            b'/' => (length, dots) = (0, true),
            byte => {
                length += 1;
                dots &= *byte == b'.';
            }
        }
    }
    true
}

/// The directory that holds `path`; `None` at the top.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
}

/// `dir/name`; either may be empty.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (false, true) => dir.to_vec(),
        (false, false) => [dir, b"/", name].concat(),
    }
}

/// The last component.
pub fn file_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |slash| &path[slash + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_component_wise() {
        let mut paths: Vec<&[u8]> = vec![b"a-b", b"a/b", b"a", b"a/b/c", b"a.b", b"a/b-c", b"B"];
        paths.sort_by(|a, b| compare_paths(a, b));
        assert_eq!(paths, [b"B" as &[u8], b"a", b"a/b", b"a/b/c", b"a/b-c", b"a-b", b"a.b"]);
    }

    #[test]
    fn clean_paths() {
        for path in ["a", "a/b", "...", ".a", "a.", "..a/b..", "a/.../b", " "] {
            assert!(is_clean(path.as_bytes()), "{path}");
        }
        for path in ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/..", "a/../b", "a\0", "\0"] {
            assert!(!is_clean(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn shared_starts() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "a", 0),
            ("abcdefghi", "abcdefghi", 9),
            ("abcdefghi", "abcdefghj", 8),
            ("abcdefgh", "abcdefghij", 8),
            ("abcdefghijklmnopqr", "abcdefghijkl", 12),
            ("xbcdefghi", "abcdefghi", 0),
        ] {
            assert_eq!(shared_prefix(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        }
        assert!(is_below(b"a/b", b"a") && is_below(b"a", b"") && !is_below(b"a", b"a") && !is_below(b"ab", b"a"));
    }

    #[test]
    fn parts_of_a_path() {
        assert_eq!((parent(b"a/b/c"), file_name(b"a/b/c")), (Some(b"a/b" as &[u8]), b"c" as &[u8]));
        assert_eq!((parent(b"a"), file_name(b"a")), (None, b"a" as &[u8]));
    }
}
