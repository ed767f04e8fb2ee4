use super::*;
use crate::layer::sample;
use proptest::prelude::*;
use std::fmt::Write as _;

/// Writes the entries in `text`, one per line, with `mtime`.
fn write(text: &str, mtime: i64) -> Result<(Vec<u8>, LayerIndex), WriteError> {
    let mut writer = LayerWriter::new(Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut entry = Entry { mtime, ..sample::entry(line) };
        let data = sample::bytes(line.split_whitespace().nth(5).unwrap_or_default());
        match &mut entry.kind {
            Kind::File { sha256, .. } => {
                *sha256 = Digest::of(b"to be filled in");
                writer.push(&mut entry, Body::Bytes(&data))?;
                assert_eq!(entry.kind, Kind::File { size: data.len() as u64, sha256: Digest::of(&data) });
            }
            _ => writer.push(&mut entry, Body::None)?,
        }
    }
    writer.finish()
}

const EVERY_KIND: &str = "
    dir bin 0755 0 0
    file bin/ping 0755 0 0 ping 0100000200200000000000000000000000000000
    link bin/ping4 0755 0 0 bin/ping 0100000200200000000000000000000000000000
    file bin/su 4755 0 0 su
    dir dev
    block dev/loop0 0660 0 6 7 0
    char dev/null 0666 0 0 1 3
    dir etc
    file etc/passwd 0644 0 0 root:x:0:0::/:/bin/sh
    symlink lib 0777 0 0 usr/lib
    pipe run 0600 1000 1001
    dir tmp 1777 0 0
    whiteout tmp/gone";

/// Cases of names and numbers at the edge of what a field holds.
fn golden_cases() -> Vec<(&'static str, String, i64)> {
    let long = |length: usize| "x".repeat(length);
    let deep = |first: usize, second: usize| {
        let (a, b) = (long(first), long(second));
        format!("dir {a}\nfile {a}/{b}")
    };
    vec![
        ("empty", String::new(), 0),
        ("every kind", EVERY_KIND.to_owned(), 1_700_000_000),
        ("epoch", EVERY_KIND.to_owned(), 0),
        ("before 1970", EVERY_KIND.to_owned(), -1),
        ("after 2242", EVERY_KIND.to_owned(), 0o77_777_777_777 + 1),
        ("last octal time", EVERY_KIND.to_owned(), 0o77_777_777_777),
        ("name of 100", format!("file {}", long(100)), 1),
        ("name of 101", format!("file {}", long(101)), 1),
        ("directory of 99", format!("dir {}", long(99)), 1),
        ("directory of 100", format!("dir {}", long(100)), 1),
        ("prefix of 155 and name of 100", deep(155, 100), 1),
        ("prefix of 156", deep(156, 10), 1),
        ("name of 101 in a directory", deep(20, 101), 1),
        ("UTF-8", "file \\xc3\\xa4\nsymlink \\xc3\\xb6 0777 0 0 \\xc3\\xa4".to_owned(), 1),
        ("not UTF-8", "file \\xff\nsymlink \\xff\\xff 0777 0 0 \\xff".to_owned(), 1),
        ("not UTF-8 and long", format!("file {}\\xff", long(100)), 1),
        ("long links", format!("file a\nsymlink b 0777 0 0 {}\nsymlink c 0777 0 0 {}", long(100), long(101)), 1),
        (
            "large ids",
            "file a 0644 2097151 2097151\nfile b 0644 2097152 2097152\nfile c 0644 4294967295 0".to_owned(),
            1,
        ),
        ("blanks and lines", "file a\\x09b\nfile a\\x20b".to_owned(), 1),
        ("data of a block", format!("file a 0644 0 0 {}\nfile b 0644 0 0 {}", long(512), long(513)), 1),
    ]
}

#[test]
fn golden_digests() {
    // A change here needs a new WRITER_VERSION.
    let mut found =
        String::from("# Digest and size of the tar that each case of write/tests.rs gives; writer version 1.\n");
    for (name, text, mtime) in golden_cases() {
        let (tar, index) = write(&text, mtime).unwrap();
        assert_eq!((index.diff_id(), index.tar_size()), (DiffId(Digest::of(&tar)), tar.len() as u64), "{name}");
        writeln!(found, "{} {:6} {name}", index.diff_id(), tar.len()).unwrap();
    }
    sample::golden("tar.txt", &found);
}

#[test]
fn other_readers_understand_it() {
    for (name, text, mtime) in golden_cases() {
        let (tar, index) = write(&text, mtime).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut seen = 0;
        for (entry, read) in index.entries().zip(archive.entries().unwrap()) {
            let mut read = read.unwrap();
            let path = read.path_bytes().into_owned();
            let path = path.strip_suffix(b"/").unwrap_or(&path);
            assert_eq!(path, &*crate::layer::content::tar_name(&entry), "{name}");
            if let KindRef::File { size, sha256 } = entry.kind {
                let mut data = Vec::new();
                read.read_to_end(&mut data).unwrap();
                assert_eq!((data.len() as u64, Digest::of(&data)), (size, sha256), "{name}");
                let offset = read.raw_file_position();
                let position = index.position(entry.path).unwrap();
                assert_eq!(index.offset(position), offset, "{name}");
            }
            if let KindRef::Symlink { target } | KindRef::HardLink { target } = entry.kind {
                assert_eq!(read.link_name_bytes().as_deref(), Some(target), "{name}");
            }
            seen += 1;
        }
        assert_eq!(seen, index.len(), "{name}");
        assert_eq!(tar[tar.len() - 1024..], [0; 1024], "{name}");
    }
}

#[test]
fn an_index_says_what_was_written() {
    let (_, index) = write(EVERY_KIND, 5).unwrap();
    assert_eq!(LayerIndex::from_bytes(index.as_bytes().to_vec()).unwrap().content(), index.content());
    assert_eq!(index.origin(), Origin::Made { writer: WRITER_VERSION });
    assert_eq!(index.file_bytes(b"etc/passwd"), Some(b"root:x:0:0::/:/bin/sh" as &[u8]));
    assert_eq!(index.get(b"tmp/gone").unwrap().mtime, 0);
    assert_eq!(index.get(b"tmp").unwrap().mtime, 5);
}

#[test]
fn forms_are_made_again() {
    let (tar, index) = write(EVERY_KIND, -77).unwrap();
    let mut data = |position: usize| -> io::Result<Box<dyn Read>> {
        let KindRef::File { size, .. } = index.entry_ref(position).kind else { unreachable!("only files have data") };
        let start = index.offset(position) as usize;
        Ok(Box::new(io::Cursor::new(tar[start..start + size as usize].to_vec())))
    };
    let mut again = Vec::new();
    assert_eq!(write_form(&index, &mut data, None, &mut again).unwrap(), (index.diff_id(), tar.len() as u64));
    assert_eq!(again, tar);
    // With an epoch it is what writing with these times gives, whiteouts included.
    let mut form = Vec::new();
    let (diff_id, size) = write_form(&index, &mut data, Some(1000), &mut form).unwrap();
    assert_eq!((Digest::of(&form), form.len() as u64), (diff_id.0, size));
    assert_ne!(form.len(), tar.len(), "negative times need records, so offsets differ");
    let mut archive = tar::Archive::new(form.as_slice());
    assert!(archive.entries().unwrap().all(|entry| entry.unwrap().header().mtime().unwrap() == 1000));
    let epoch = epoch_index(&index, diff_id, 1000).unwrap();
    assert_eq!((epoch.diff_id(), epoch.tar_size(), epoch.content()), (diff_id, size, index.content()));
    assert!(epoch.entries().all(|entry| entry.mtime == 1000));
    assert_eq!(epoch.file_bytes(b"etc/passwd"), index.file_bytes(b"etc/passwd"));
    // The form made from the form is the same, and its offsets are right.
    let mut data = |position: usize| -> io::Result<Box<dyn Read>> {
        let KindRef::File { size, .. } = epoch.entry_ref(position).kind else { unreachable!("only files have data") };
        let start = epoch.offset(position) as usize;
        Ok(Box::new(io::Cursor::new(form[start..start + size as usize].to_vec())))
    };
    assert_eq!(write_form(&epoch, &mut data, None, io::sink()).unwrap(), (diff_id, size));
    assert_eq!(write_form(&index, &mut data, Some(1000), io::sink()).unwrap(), (diff_id, size));
}

#[test]
fn wrong_data_is_told() {
    let (_, index) = write("file a 0644 0 0 data", 0).unwrap();
    let form = |bytes: &'static [u8]| {
        let error = write_form(&index, &mut |_| Ok(Box::new(bytes)), None, io::sink()).unwrap_err();
        error.to_string()
    };
    assert!(form(b"date").starts_with("the data of /a is not that of the layer: sha256:"));
    assert_eq!(form(b"dat"), "/a changed while it was read: it no longer has 4 bytes");
    assert_eq!(form(b"data!"), "/a changed while it was read: it no longer has 4 bytes");
    let foreign = sample::index(Origin::Foreign, "");
    let error = write_form(&foreign, &mut |_| Ok(Box::new(io::empty())), None, io::sink()).unwrap_err();
    assert!(matches!(error, WriteError::Foreign(_)));
    let newer = sample::index(Origin::Made { writer: 9 }, "");
    assert!(matches!(epoch_index(&newer, newer.diff_id(), 0), Err(WriteError::Version { writer: 9, .. })));
}

#[test]
fn entries_that_are_refused() {
    for (text, why) in [
        ("file .wh.a", "/.wh.a cannot be in a layer: names that begin with .wh. mean deletions in layers; rename it"),
        ("dir .wh.", "/.wh. cannot be in a layer: names that begin with .wh. mean deletions in layers; rename it"),
        ("file b\nfile a", "/a cannot be in a layer: it does not come in order"),
        ("file a\nfile a", "/a cannot be in a layer: it does not come in order"),
        ("file a/b", "/a/b cannot be in a layer: its directory does not come before it"),
        ("file a\nfile a/b", "/a/b cannot be in a layer: its directory does not come before it"),
        ("dir a\nfile ab/c", "/ab/c cannot be in a layer: its directory does not come before it"),
        ("dir a\nfile a/../b", "/a/../b cannot be in a layer: its path is not clean"),
        ("link a 0644 0 0 b", "/a cannot be in a layer: the file that it links to does not come before it"),
        ("dir a\nlink b 0644 0 0 a", "/b cannot be in a layer: the file that it links to does not come before it"),
        ("dir a\nopaque a", "/a cannot be in a layer: it does not come in order"),
        ("opaque a", "/a cannot be in a layer: an opaque mark is not written"),
        ("char a 0644 0 0 2097152 0", "/a cannot be in a layer: its device number does not fit into a tar"),
    ] {
        assert_eq!(write(text, 0).unwrap_err().to_string(), why, "{text}");
    }
}

/// A reader that gives a few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.0.len()).min(self.1);
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

#[test]
fn large_files_take_the_threads() {
    let bytes: Vec<u8> = (0..11_000_000u32).map(|at| (at ^ at >> 7) as u8).collect();
    let mut writer = LayerWriter::new(Vec::new());
    for (name, length) in [("a", 4 << 20), ("b", 3), ("c", 11_000_000), ("d", (4 << 20) - 1), ("e", 5 << 20)] {
        let mut entry = sample::entry(&format!("file {name}"));
        entry.kind = Kind::File { size: length as u64, sha256: Digest::of(b"") };
        writer.push(&mut entry, Body::Reader(Box::new(Trickle(&bytes[..length], 70_001)))).unwrap();
        assert_eq!(entry.kind, Kind::File { size: length as u64, sha256: Digest::of(&bytes[..length]) }, "{name}");
    }
    let (tar, index) = writer.finish().unwrap();
    assert_eq!(index.diff_id(), DiffId(Digest::of(&tar)));
    let start = index.offset(2) as usize;
    assert!(tar[start..start + 11_000_000] == bytes[..]);
}

/// Counts writes.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn writes_are_large() {
    let mut writer = LayerWriter::new(Count(0));
    for number in 0..5000 {
        let mut entry = sample::entry(&format!("file {number:05} 0644 0 0 x"));
        writer.push(&mut entry, Body::Bytes(b"x")).unwrap();
    }
    let (count, index) = writer.finish().unwrap();
    assert_eq!(count.0 as u64, index.tar_size().div_ceil(1 << 20));
}

/// Fails after some writes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let bytes = vec![7; 9 << 20];
    for writes in 0..9 {
        let mut writer = LayerWriter::new(Full(writes));
        let mut entry = sample::entry("file a");
        entry.kind = Kind::File { size: bytes.len() as u64, sha256: Digest::of(b"") };
        let result = writer.push(&mut entry, Body::Bytes(&bytes)).and_then(|()| writer.finish().map(drop));
        assert!(matches!(result, Err(WriteError::Out(_))), "{writes}");
    }
}

proptest! {
    #[test]
    fn any_numbers_survive(mode in 0u32..0o10000, uid: u32, gid: u32, mtime: i64, name in "[^/\0\n]{1,150}", target in "[^\0\n]{1,150}") {
        prop_assume!(name != "." && name != ".." && !name.starts_with(".wh."));
        let mut writer = LayerWriter::new(Vec::new());
        let path = name.clone().into_bytes();
        let kind = Kind::Symlink { target: target.clone().into_bytes() };
        let mut entry = Entry { path, kind, mode, uid, gid, mtime, capability: None };
        writer.push(&mut entry, Body::None).unwrap();
        let (tar, index) = writer.finish().unwrap();
        prop_assert_eq!(index.entry(0), Entry { mode: 0o777, ..entry });
        let mut archive = tar::Archive::new(tar.as_slice());
        let read = archive.entries().unwrap().next().unwrap().unwrap();
        prop_assert_eq!(&*read.path_bytes(), name.as_bytes());
        prop_assert_eq!(read.link_name_bytes().unwrap().into_owned(), target.into_bytes());
    }
}
