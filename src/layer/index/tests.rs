use super::*;
use crate::layer::sample;
use proptest::prelude::*;

const SAMPLE: &str = "
    dir a 0750 1 2
    file a/b 4755 0 0 hello 0102
    link a/b-c 0755 0 0 a/b
    dir a/d
    opaque a/d
    file a/d/e
    whiteout a/f
    file a-b
    char dev/null 0666 0 0 1 3
    dir etc
    file etc/group 0644 0 0 g:x:1:
    file etc/passwd 0644 0 0 u:x:1:1::/:/bin/sh
    symlink lib 0777 0 0 usr/lib
    file usr/lib/x/y
    opaque var
    pipe var/run";

fn sample() -> LayerIndex {
    sample::index(Origin::Foreign, SAMPLE)
}

#[test]
fn round_trips() {
    let index = sample();
    let read = LayerIndex::from_bytes(index.as_bytes().to_vec()).unwrap();
    assert_eq!(sample::list(&read), sample::list(&index));
    assert_eq!((read.diff_id(), read.content()), (index.diff_id(), index.content()));
    assert_eq!((read.len(), read.files_size(), read.tar_size()), (16, 5 + 6 + 18, 1 << 40));
    assert_eq!((read.origin(), read.root(), read.has_whiteouts()), (Origin::Foreign, None, true));
    let file = read.get(b"a/b").unwrap();
    assert_eq!((file.mode, file.mtime, file.capability), (0o4755, 7, Some(vec![1, 2])));
    let made = sample::index(Origin::Made { writer: 3 }, "root 1777\ndir a");
    let made = LayerIndex::from_bytes(made.as_bytes().to_vec()).unwrap();
    assert_eq!((made.origin(), made.root().unwrap().mode), (Origin::Made { writer: 3 }, 0o1777));
    assert!(!made.has_whiteouts());
}

#[test]
fn finds_by_path() {
    let index = sample();
    for position in 0..index.len() {
        let path = index.path(position).to_vec();
        let opaque = index.entry_ref(position).kind == KindRef::Opaque;
        let expected = if path == b"var" { None } else { Some(position - usize::from(opaque)) };
        assert_eq!(index.position(&path), expected, "{}", String::from_utf8_lossy(&path));
    }
    for missing in ["", "A", "a/", "a/b/c", "dev", "usr", "usr/lib", "z", "etc/pass"] {
        assert_eq!(index.position(missing.as_bytes()), None, "{missing}");
    }
}

#[test]
fn lists_children() {
    let index = sample();
    let children = |dir: &str| -> String {
        let paths = index.children(dir.as_bytes()).map(|at| String::from_utf8_lossy(index.path(at)).into_owned());
        paths.collect::<Vec<_>>().join(" ")
    };
    let names = |dir: &str| -> String {
        let names = index.names(dir.as_bytes()).map(|child| String::from_utf8_lossy(child.name).into_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    for (dir, expected_children, expected_names) in [
        ("", "a a-b etc lib", "a a-b dev etc lib usr var"),
        ("a", "a/b a/b-c a/d a/f", "b b-c d f"),
        ("a/b", "", ""),
        ("a/d", "a/d/e", "e"),
        ("dev", "dev/null", "null"),
        ("usr", "", "lib"),
        ("usr/lib", "", "x"),
        ("usr/lib/x", "usr/lib/x/y", "y"),
        ("var", "var/run", "run"),
        ("nothing", "", ""),
    ] {
        assert_eq!((children(dir).as_str(), names(dir).as_str()), (expected_children, expected_names), "{dir}");
    }
}

#[test]
fn places() {
    let index = sample();
    for (path, at, cut, opaque) in [
        ("a", At::Entry(0), false, false),
        ("a/b", At::Entry(1), false, false),
        ("a/b/c/d", At::Hidden, false, false),
        ("a/d", At::Entry(3), false, true),
        ("a/d/e", At::Entry(5), true, false),
        ("a/d/f", At::Absent, true, false),
        ("a/d/f/g", At::Absent, true, false),
        ("a/f/x", At::Hidden, false, false),
        ("dev", At::Implied(8), false, false),
        ("dev/zero", At::Absent, false, false),
        ("usr/lib", At::Implied(13), false, false),
        ("usr/lib/x/y", At::Entry(13), false, false),
        ("usr/lib/z", At::Absent, false, false),
        ("var", At::Implied(14), false, true),
        ("var/x", At::Absent, true, false),
        ("b/c", At::Absent, false, false),
    ] {
        assert_eq!(index.place(path.as_bytes()), Place { at, cut, opaque }, "{path}");
    }
    let bottom = sample::index(Origin::Foreign, "opaque \"\"\nfile x");
    assert_eq!(bottom.place(b"y"), Place { at: At::Absent, cut: true, opaque: false });
    assert_eq!(bottom.place(b""), Place { at: At::Implied(0), cut: false, opaque: true });
}

#[test]
fn keeps_accounts() {
    let index = sample();
    assert_eq!(index.file_bytes(b"etc/passwd"), Some(b"u:x:1:1::/:/bin/sh" as &[u8]));
    assert_eq!(index.file_bytes(b"etc/group"), Some(b"g:x:1:" as &[u8]));
    assert_eq!(index.file_bytes(b"a/b"), None);
    assert_eq!(sample::index(Origin::Foreign, "dir etc").file_bytes(b"etc/passwd"), None);
    let mut builder = IndexBuilder::new();
    builder.keep(b"etc/passwd", &vec![b'x'; KEPT_LIMIT as usize + 1]);
    let index = builder.finish(Origin::Foreign, DiffId(Digest::of(b"")), 0).unwrap();
    assert_eq!(index.file_bytes(b"etc/passwd"), None);
}

#[test]
fn sparse_files_have_extents() {
    let mut builder = IndexBuilder::new();
    let entry = Entry {
        kind: crate::layer::entry::Kind::File { size: 100, sha256: Digest::of(b"") },
        ..sample::entry("file a")
    };
    let extents = [Extent { start: 0, length: 10 }, Extent { start: 50, length: 5 }];
    builder.push_sparse(&EntryRef::from(&entry), 512, Some(&extents));
    builder.push(&EntryRef::from(&sample::entry("file b")), 1024);
    let index = builder.finish(Origin::Foreign, DiffId(Digest::of(b"")), 1024).unwrap();
    let index = LayerIndex::from_bytes(index.as_bytes().to_vec()).unwrap();
    assert_eq!((index.extents(0), index.extents(1)), (Some(extents.to_vec()), None));
}

/// Sets a byte of a good index and mends the checksum, so that the checks behind it are reached.
fn with_byte(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = value;
    let crc = libdeflater::crc32(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Looks at everything that an index offers.
fn use_all(index: &LayerIndex) {
    for position in 0..index.len() {
        let entry = index.entry(position);
        let _: Option<usize> = index.position(&entry.path);
        let _: Place = index.place(&[&entry.path[..], b"/x/y"].concat());
        assert!(index.children(&entry.path).count() <= index.len());
        let _: Option<Vec<Extent>> = index.extents(position);
        let _: Option<usize> = index.data_position(position);
    }
    assert!(index.names(b"").count() <= index.len());
    let _: (Option<&[u8]>, Option<&[u8]>) = (index.file_bytes(b"etc/passwd"), index.file_bytes(b"etc/group"));
}

#[test]
fn damage_is_an_error() {
    let good = sample().as_bytes().to_vec();
    for length in 0..good.len() {
        assert!(LayerIndex::from_bytes(good[..length].to_vec()).is_err(), "cut to {length}");
    }
    let mut flipped = good.clone();
    flipped[HEADER + 3] ^= 1;
    assert_eq!(LayerIndex::from_bytes(flipped).unwrap_err(), IndexError::Damaged("its checksum does not match"));
    assert_eq!(LayerIndex::from_bytes(with_byte(&good, 8, 2)).unwrap_err(), IndexError::Version { found: 2 });
    assert_eq!(LayerIndex::from_bytes(b"something else entirely".to_vec()).unwrap_err(), IndexError::NotAnIndex);
}

#[test]
fn entries_that_no_layer_can_have() {
    for (text, what) in [
        ("file b\nfile a", "is out of order"),
        ("file a\nfile a", "is out of order"),
        ("opaque a\nopaque a", "is out of order"),
        ("file a\nopaque a", "is out of order"),
        ("file a/b\nfile a", "is out of order"),
        ("file a-b\nfile a/b", "is out of order"),
        ("file a\nfile a/b", "lies below something that is no directory"),
        ("symlink a 0777 0 0 /\nfile a/b", "lies below something that is no directory"),
        ("whiteout a\nfile a/b", "lies below something that is no directory"),
        ("dir a\nfile a/..", "has a path that no layer may have"),
        ("file ..", "has a path that no layer may have"),
        ("file a/./b", "has a path that no layer may have"),
        ("file /a", "has a path that no layer may have"),
        ("file a//b", "has a path that no layer may have"),
        ("dir a/", "has a path that no layer may have"),
        ("file a\\x00", "has a path that no layer may have"),
        ("dir a\nfile a/b\nfile a/..", "has a path that no layer may have"),
        ("file a\nlink b 0644 0 0 ../x", "has no proper link target"),
        ("symlink a 0777 0 0 x\\x00", "has no proper link target"),
    ] {
        let bytes = sample::index(Origin::Foreign, text).as_bytes().to_vec();
        match LayerIndex::from_bytes(bytes) {
            Err(IndexError::Entry { what: found, .. }) => {
                // "b, a/.." is both; which one is told does not matter.
                assert!(found == what || text.contains("..") && found == "is out of order", "{text}: {found}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(at in 0usize..4096, value: u8, second in 0usize..4096, other: u8) {
        let good = sample().as_bytes().to_vec();
        let bytes = with_byte(&good, at % good.len(), value);
        let second = HEADER + second % (good.len() - HEADER);
        if let Ok(index) = LayerIndex::from_bytes(with_byte(&bytes, second, other)) {
            use_all(&index);
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if bytes.len() >= 16 {
            bytes[..12].copy_from_slice(b"rbuildLI\x01\0\0\0");
            bytes = with_byte(&bytes, 15, 0);
        }
        if let Ok(index) = LayerIndex::from_bytes(bytes) {
            use_all(&index);
        }
    }
}
