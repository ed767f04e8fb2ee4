use super::*;
use crate::layer::entry::{Entry, Kind, compare_paths, parent};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::Origin;
use crate::layer::sample;
use crate::layer::write::{Body, LayerWriter};
use proptest::prelude::*;
use std::collections::BTreeMap;
use tar::{EntryType, Header};

/// Headers and data one after the other.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// Adds an entry whose type is the first letter of `kind`; a `link` goes to `data`.
    fn add(mut self, kind: u8, name: &str, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[156] = kind;
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        if matches!(kind, b'1' | b'2') {
            header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data);
            header.set_size(0);
        } else {
            header.set_size(data.len() as u64);
        }
        self = self.block(header);
        if !matches!(kind, b'1' | b'2') {
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        }
        self
    }

    fn block(mut self, mut header: Header) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(b'0', name, data.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.add(b'5', name, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(b'1', name, target.as_bytes())
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(b'2', name, target.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn listed(tar: Tar) -> String {
    let bytes = tar.end();
    let index = scan(bytes.as_slice()).unwrap();
    assert_eq!((index.diff_id().0, index.tar_size()), (Digest::of(&bytes), bytes.len() as u64));
    assert_eq!(index.origin(), Origin::Foreign);
    let index = LayerIndex::from_bytes(index.as_bytes().to_vec()).unwrap();
    for position in 0..index.len() {
        if let KindRef::File { size, sha256 } = index.entry_ref(position).kind {
            let start = index.offset(position) as usize;
            assert_eq!(Digest::of(&bytes[start..start + size as usize]), sha256);
        }
    }
    sample::list(&index).trim_end().replace('\n', ", ")
}

fn refused(tar: Tar) -> String {
    scan(tar.end().as_slice()).unwrap_err().to_string()
}

#[test]
fn what_applying_would_leave() {
    let tar = Tar::default;
    for (what, tar, expected) in [
        ("empty", tar(), ""),
        (
            "our order",
            tar().file("b", "1").file("a-b", "").dir("a").file("a/b", "22"),
            "dir a 0755, file a/b 2, file a-b 0, file b 1",
        ),
        ("paths", tar().dir("./").dir("./a//./b/").file("/abs", ""), "dir a/b 0755, file abs 0"),
        ("the last wins", tar().file("a", "1").file("a", "22"), "file a 2"),
        ("directories merge", tar().dir("a").file("a/b", "").dir("a"), "dir a 0755, file a/b 0"),
        ("file over directory", tar().dir("a").file("a/b", "").file("a/c/d", "").file("a", "1"), "file a 1"),
        ("directory over file", tar().file("a", "1").dir("a").file("a/b", ""), "dir a 0755, file a/b 0"),
        ("old directories", tar().add(0, "a/", b"").add(0, "a/b", b"1"), "dir a 0644, file a/b 1"),
        ("contiguous files", tar().add(b'7', "a", b"1"), "file a 1"),
        ("hard links", tar().file("b", "1").link("c", "b").link("a", "./b"), "file a 1, link b a, link c a"),
        ("links of links", tar().file("b", "1").link("c", "b").link("a", "c"), "file a 1, link b a, link c a"),
        ("a link survives its file", tar().file("b", "1").link("c", "b").file("b", "22"), "file b 2, file c 1"),
        ("a link to a lower file", tar().link("c", "b"), "link c b"),
        ("a link to a link", tar().symlink("b", "x").link("c", "b"), "symlink b x, symlink c x"),
        (
            "through an own link",
            tar().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", "1"),
            "symlink lib usr/lib, dir usr 0755, dir usr/lib 0755, file usr/lib/x 1",
        ),
        ("the link came later", tar().file("lib/x", "1").symlink("lib", "usr/lib"), "symlink lib usr/lib"),
        (
            "the link was replaced",
            tar().symlink("lib", "usr/lib").file("lib/x", "").dir("lib").file("lib/y", ""),
            "dir lib 0755, file lib/y 0, file usr/lib/x 0",
        ),
        ("out of the root", tar().symlink("l", "../../../etc").file("l/x", ""), "file etc/x 0, symlink l ../../../etc"),
        ("whiteouts", tar().file(".wh.a", "").dir("b").file("b/.wh.c", ""), "whiteout a, dir b 0755, whiteout b/c"),
        ("a whiteout hides nothing of its own layer", tar().file("a", "1").file(".wh.a", ""), "file a 1"),
        ("nor of a directory", tar().dir("a").file("a/b", "").file(".wh.a", ""), "dir a 0755, opaque a, file a/b 0"),
        ("nor of one without a header", tar().file(".wh.a", "").file("a/b", ""), "opaque a, file a/b 0"),
        (
            "whiteouts in what is gone",
            tar().file(".wh.a", "").file("a/.wh.b", "").file("a/.wh..wh..opq", ""),
            "whiteout a",
        ),
        ("opaque", tar().dir("a").file("a/.wh..wh..opq", "").file("a/b", ""), "dir a 0755, opaque a, file a/b 0"),
        ("aufs", tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "").file(".wh..wh.aufs", ""), ""),
        ("other kinds", tar().add(b'6', "p", b"").symlink("s", "x/../y"), "pipe p, symlink s x/../y"),
        ("global headers do nothing", tar().add(b'g', "g", b"10 path=x\n").file("a", ""), "file a 0"),
    ] {
        assert_eq!(listed(tar), expected, "{what}");
    }
}

#[test]
fn what_is_refused() {
    let tar = Tar::default;
    let kinds = |kind| tar().add(kind, "k", b"");
    for (tar, expected) in [
        (tar().file("a/../b", ""), "/a/../b in the tar leads out of its directory by \"..\""),
        (tar().file("..", ""), "/.. in the tar leads out of its directory by \"..\""),
        (tar().link("a", "../b"), "/a in the tar is a hard link out of the image"),
        (tar().link("a", "a"), "/a in the tar is a hard link to itself"),
        (tar().dir("d").link("a", "d"), "/a in the tar is a hard link to a directory"),
        (tar().file("d/x", "").link("a", "d"), "/a in the tar is a hard link to a directory"),
        (tar().link("a", "/"), "/a in the tar is a hard link to a directory"),
        (tar().file("a", "").file("a/b", ""), "/a/b in the tar lies below something that is no directory"),
        (tar().symlink("l", "l").file("l/b", ""), "/l/b in the tar lies behind too many links"),
        (tar().file(".wh.", ""), "/.wh. in the tar deletes its own directory"),
        (tar().file(".wh...", ""), "/.wh... in the tar deletes its own directory"),
        (tar().file(".wh.a/b", ""), "/.wh.a/b in the tar lies in a directory whose name means a deletion"),
        (tar().file("./", ""), "/ in the tar is the root, but no directory"),
        (tar().symlink("l", ""), "/l in the tar is a link to nothing"),
        (kinds(b'V'), "/k in the tar is of a kind that no image can hold"),
        (kinds(b'M'), "/k in the tar is of a kind that no image can hold"),
        (tar().add(b'x', "x", b"5 a=b\n"), "this is no tar: a broken PAX header at byte 0"),
        (
            tar().add(b'x', "x", &vec![b' '; (1 << 20) + 1]),
            "this is no tar: an extended header of more than 1 MiB at byte 0",
        ),
        (tar().add(b'x', "x", b"27 uid=4294967295000000000\n").file("a", ""), "/a in the tar has no proper owner"),
        (tar().add(b'x', "x", b"18 uid=4294967295\n").file("a", ""), "/a in the tar has no proper owner"),
        (tar().add(b'x', "x", b"11 path=a\0\n").file("a", ""), "/a\0 in the tar has a NUL in its name"),
        (
            tar().add(b'x', "x", b"38 SCHILY.xattr.security.capability=x\n").file("a", ""),
            "/a in the tar has broken capabilities",
        ),
        (
            tar().add(b'L', "x", &vec![b'y'; 256]).file("a", ""),
            &format!("/{} in the tar has a name of more than 255 bytes", "y".repeat(256)),
        ),
        (
            tar().add(b'L', "x", &b"y/".repeat(2048)).file("a", ""),
            &format!("/{} in the tar has a path of more than 4095 bytes", "y/".repeat(2048).trim_end_matches('!')),
        ),
    ] {
        if expected.contains("4095") {
            // 2048 components of one byte are 4095 bytes with the slashes between them: the longest that there is.
            assert!(scan(tar.end().as_slice()).is_ok());
            continue;
        }
        assert_eq!(refused(tar), expected);
    }
    let long = Tar::default().add(b'L', "x", &b"yy/".repeat(1366)).file("a", "");
    assert!(refused(long).ends_with("has a path of more than 4095 bytes"));
    // Nothing is repeated that is longer than Linux knows: not by links to links, nor by hard links to them.
    let far = b"yy/".repeat(1364);
    let link = |tar: Tar, name: &str| tar.add(b'K', "x", &far).symlink(name, "");
    for tar in [
        link(link(tar(), "l"), "l/l").file("l/l/f", ""),
        link(link(tar(), "l"), "l/l").link("g", "l/l/f"),
        link(tar(), "l").file("l/more", ""),
        tar().add(b'K', "x", &vec![b'y'; 4096]).symlink("l", ""),
    ] {
        assert!(refused(tar).contains("a path of more than 4095 bytes"));
    }
    for (bytes, expected) in [
        (vec![b'x'; 512], "this is no tar: a wrong checksum at byte 0"),
        (vec![0; 100], "the tar is cut short: it ends after 100 bytes"),
        ([vec![0; 512], vec![1; 512]].concat(), "this is no tar: a single zero block at byte 0"),
        (Tar::default().file("a", "data").0[..600].to_vec(), "the tar is cut short: it ends after 600 bytes"),
        (Tar::default().file("a", "data").0[..515].to_vec(), "the tar is cut short: it ends after 515 bytes"),
    ] {
        assert_eq!(scan(bytes.as_slice()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn ends_of_all_sorts() {
    let tar = Tar::default().file("a", "1").0;
    for end in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10240], [vec![0; 1024], b"anything".to_vec()].concat()] {
        let bytes = [tar.clone(), end].concat();
        let index = scan(bytes.as_slice()).unwrap();
        assert_eq!((index.len(), index.diff_id().0, index.tar_size()), (1, Digest::of(&bytes), bytes.len() as u64));
    }
    assert_eq!(scan(io::empty()).unwrap().len(), 0);
}

#[test]
fn metadata() {
    let mut old = Header::new_gnu();
    old.as_mut_bytes()[..1].copy_from_slice(b"a");
    old.set_entry_type(EntryType::Char);
    old.set_mode(0o20666);
    old.set_uid(3_000_000_000);
    old.set_gid(5);
    old.set_mtime(9);
    old.set_size(0);
    old.set_device_major(1).unwrap();
    old.set_device_minor(300_000).unwrap();
    let pax = b"13 uid=70000\n14 mtime=-1.5\n12 gid=8888\n10 size=4\n";
    let mut tar = Tar::default().block(old).add(b'x', "x", pax);
    tar = tar.add(b'0', "b", b"data").add(b'K', "x", &[b'z'; 300]).symlink("c", "cut");
    tar = tar.add(b'5', "./", b"");
    let index = scan(tar.end().as_slice()).unwrap();
    let a = index.get(b"a").unwrap();
    assert_eq!((a.mode, a.uid, a.gid, a.mtime), (0o666, 3_000_000_000, 5, 9));
    assert_eq!(a.kind, Kind::CharDevice { major: 1, minor: 300_000 });
    let b = index.get(b"b").unwrap();
    assert_eq!((b.mode, b.uid, b.gid, b.mtime), (0o644, 70000, 8888, -2));
    assert_eq!(index.get(b"c").unwrap().kind, Kind::Symlink { target: vec![b'z'; 300] });
    assert_eq!(index.root(), Some(RootMetadata { mode: 0o755, uid: 0, gid: 0, mtime: 7 }));
}

#[test]
fn sparse_files_of_all_forms() {
    let forms: [(&str, &[u8]); 4] = [
        ("old", include_bytes!("../../../testdata/layers/sparse-old.tar.gz")),
        ("0.0", include_bytes!("../../../testdata/layers/sparse-p00.tar.gz")),
        ("0.1", include_bytes!("../../../testdata/layers/sparse-p01.tar.gz")),
        ("1.0", include_bytes!("../../../testdata/layers/sparse-p10.tar.gz")),
    ];
    let mut expected = vec![0; 6 * 3 * 65536];
    for piece in 0..6 {
        expected[piece * 3 * 65536..][..4096].fill(b'A' + piece as u8);
    }
    for (form, packed) in forms {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        let index = scan(bytes.as_slice()).unwrap();
        let index = LayerIndex::from_bytes(index.as_bytes().to_vec()).unwrap();
        assert_eq!(sample::list(&index), "file hole 100000\nfile plain 5\nfile sparse 1179648\n", "{form}");
        let digest = |path: &[u8]| match index.get(path).unwrap().kind {
            Kind::File { sha256, .. } => sha256,
            other => panic!("{form}: {other:?}"),
        };
        assert_eq!(digest(b"sparse"), Digest::of(&expected), "{form}");
        assert_eq!(digest(b"hole"), Digest::of(&vec![0; 100_000]), "{form}");
        assert_eq!(digest(b"plain"), Digest::of(b"plain"), "{form}");
        let position = index.position(b"sparse").unwrap();
        let (mut at, mut found) = (index.offset(position) as usize, vec![0; expected.len()]);
        for extent in index.extents(position).unwrap() {
            let (start, length) = (extent.start as usize, extent.length as usize);
            found[start..start + length].copy_from_slice(&bytes[at..at + length]);
            at += length;
        }
        assert!(found == expected, "{form}");
        assert_eq!(index.extents(index.position(b"plain").unwrap()), None);
    }
}

#[test]
fn hostile_sparse_files() {
    for records in [
        "GNU.sparse.major=1 GNU.sparse.minor=0 GNU.sparse.realsize=9",
        "GNU.sparse.major=1 GNU.sparse.minor=0",
        "GNU.sparse.map=0,1 GNU.sparse.size=1",
        "GNU.sparse.map=0,4,3,1 GNU.sparse.size=9",
        "GNU.sparse.map=0,4,5 GNU.sparse.size=9",
        "GNU.sparse.map=8,4 GNU.sparse.size=9",
        "GNU.sparse.map=18446744073709551615,4 GNU.sparse.size=9",
        "GNU.sparse.map=0,4 GNU.sparse.size=9223372036854775807",
        "GNU.sparse.map=0,4",
        "GNU.sparse.major=2 GNU.sparse.minor=0 GNU.sparse.realsize=4",
    ] {
        let mut pax = Vec::new();
        for record in records.split(' ') {
            let length = record.len() + 4;
            pax.extend_from_slice(format!("{length} {record}\n").as_bytes());
        }
        let tar = Tar::default().add(b'x', "x", &pax).file("a", "data");
        let error = refused(tar);
        assert!(error.starts_with("/a in the tar has"), "{records}: {error}");
    }
}

#[test]
fn accounts_are_kept() {
    let index = scan(Tar::default().file("etc/passwd", "old").file("./etc/passwd", "new").end().as_slice()).unwrap();
    assert_eq!(index.file_bytes(b"etc/passwd"), Some(b"new" as &[u8]));
    let index = scan(Tar::default().file("etc/group-", "g").link("etc/group", "etc/group-").end().as_slice()).unwrap();
    assert_eq!(index.file_bytes(b"etc/group"), None);
}

#[test]
fn large_tars_take_the_threads() {
    let large = "x".repeat(9 << 20);
    assert_eq!(
        listed(Tar::default().file("a", &large).file("b", "1").file("c", &large)),
        "file a 9437184, file b 1, file c 9437184"
    );
}

/// Layers as rbuild writes them, with names of all sorts.
fn made() -> impl Strategy<Value = Vec<(Entry, Vec<u8>)>> {
    let name = prop_oneof![
        proptest::collection::vec(1u8..=255, 1..6),
        Just(vec![b'n'; 120]),
        Just("ä\n=".as_bytes().to_vec()),
        Just(b"a".to_vec())
    ];
    let path = proptest::collection::vec(name, 1..4);
    let kind = (0u8..8, proptest::collection::vec(any::<u8>(), 0..600));
    let metadata = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), any::<bool>());
    proptest::collection::vec((path, kind, metadata), 0..12).prop_map(|entries| {
        let mut all: BTreeMap<Vec<u8>, (Entry, Vec<u8>)> = BTreeMap::new();
        let mut files: Vec<Vec<u8>> = Vec::new();
        for (names, (kind, data), (mode, uid, gid, mtime, capable)) in entries {
            let bad =
                |name: &Vec<u8>| name.contains(&b'/') || name == b"." || name == b".." || name.starts_with(b".wh.");
            if names.iter().any(bad) || uid == u32::MAX || gid == u32::MAX {
                continue;
            }
            let path = names.join(&b'/');
            let mut entry =
                Entry { path: path.clone(), kind: Kind::Directory, mode, uid, gid, mtime, capability: None };
            let mut body = Vec::new();
            match kind {
                0 | 1 => {
                    entry.kind = Kind::File { size: data.len() as u64, sha256: Digest::of(&data) };
                    entry.capability = capable.then(|| [&[1, 0, 0, 2], [mode as u8; 16].as_slice()].concat());
                    body = data;
                }
                2 => {
                    entry.kind =
                        Kind::Symlink { target: [b"t", data.as_slice()].concat().iter().map(|byte| byte | 1).collect() }
                }
                3 => entry.kind = Kind::CharDevice { major: mode, minor: uid & 0xf_ffff },
                4 => entry.kind = Kind::Fifo,
                5 => entry.kind = Kind::Whiteout,
                6 if !files.is_empty() => {
                    entry.kind = Kind::HardLink { target: files[mode as usize % files.len()].clone() }
                }
                _ => {}
            }
            let mut dirs: Vec<Vec<u8>> = Vec::new();
            while let Some(dir) = parent(dirs.last().map_or(&path, |dir| dir)) {
                dirs.push(dir.to_vec());
            }
            let is_directory = |(entry, _): &(Entry, Vec<u8>)| entry.kind == Kind::Directory;
            if all.contains_key(&path) || dirs.iter().any(|dir| all.get(dir).is_some_and(|entry| !is_directory(entry)))
            {
                continue;
            }
            for dir in dirs {
                let path = dir.clone();
                let kind = Kind::Directory;
                all.entry(dir).or_insert((Entry { path, kind, mode, uid, gid, mtime, capability: None }, Vec::new()));
            }
            if let Kind::File { .. } = entry.kind {
                files.push(path.clone());
            }
            all.insert(path, (entry, body));
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by(|(a, _), (b, _)| compare_paths(&a.path, &b.path));
        // A link has the metadata of its file, which comes first.
        let files: BTreeMap<Vec<u8>, Entry> =
            all.iter().map(|(entry, _)| (entry.path.clone(), entry.clone())).collect();
        all.retain_mut(|(entry, _)| match &entry.kind {
            Kind::HardLink { target } if compare_paths(target, &entry.path).is_lt() => {
                *entry = Entry { path: entry.path.clone(), kind: entry.kind.clone(), ..files[target].clone() };
                true
            }
            Kind::HardLink { .. } => false,
            _ => true,
        });
        all
    })
}

proptest! {
    #[test]
    fn reads_what_the_writer_writes(entries in made()) {
        let mut writer = LayerWriter::new(Vec::new());
        for (entry, body) in &entries {
            writer.push(&mut entry.clone(), if body.is_empty() { Body::None } else { Body::Bytes(body) }).unwrap();
        }
        let (tar, made) = writer.finish().unwrap();
        let scanned = scan(tar.as_slice()).unwrap();
        let both = |index: &LayerIndex| (0..index.len()).map(|at| (index.entry(at), index.offset(at))).collect::<Vec<_>>();
        for ((made, offset), (scanned, there)) in both(&made).into_iter().zip(both(&scanned)) {
            let is_file = matches!(made.kind, Kind::File { .. });
            prop_assert_eq!((&made, is_file.then_some(offset)), (&scanned, is_file.then_some(there)));
        }
        prop_assert_eq!(made.len(), scanned.len());
        prop_assert_eq!(made.content(), scanned.content());
        prop_assert_eq!(made.diff_id(), scanned.diff_id());
    }

    #[test]
    fn damaged_tars_never_panic(entries in made(), damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6), mend: bool) {
        let mut writer = LayerWriter::new(Vec::new());
        for (entry, body) in &entries {
            writer.push(&mut entry.clone(), if body.is_empty() { Body::None } else { Body::Bytes(body) }).unwrap();
        }
        let (mut tar, _) = writer.finish().unwrap();
        for (at, value) in damage {
            let at = at % tar.len();
            tar[at] = value;
            if mend {
                let header = &mut tar[at / BLOCK * BLOCK..][..BLOCK];
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Ok(index) = scan(tar.as_slice()) {
            // What is accepted is an index that its own checks accept.
            let read = LayerIndex::from_bytes(index.as_bytes().to_vec());
            prop_assert!(read.is_ok(), "{:?}", read.err());
        }
    }

    #[test]
    fn the_order_of_a_tar_does_not_count(lines in Just(vec!["f b", "f c/d", "d c", "l a b", "l c/a b", "s x y", "w g", "d e"]).prop_shuffle()) {
        // A link must follow its file, and a directory merges with itself.
        let mut tar = Tar::default().file("b", "1");
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            tar = match words[0] {
                "f" if words[1] != "b" => tar.file(words[1], words[1]),
                "d" => tar.dir(words[1]),
                "l" => tar.link(words[1], words[2]),
                "s" => tar.symlink(words[1], words[2]),
                "w" => tar.file(&format!(".wh.{}", words[1]), ""),
                _ => tar,
            };
        }
        prop_assert_eq!(listed(tar), "file a 1, link b a, dir c 0755, link c/a a, file c/d 3, dir e 0755, whiteout g, symlink x y");
    }
}

#[test]
fn views_agree_with_entries() {
    let index = scan(Tar::default().file("a", "1").symlink("b", "a").end().as_slice()).unwrap();
    for position in 0..index.len() {
        let entry = index.entry(position);
        assert_eq!(EntryRef::from(&entry), index.entry_ref(position));
    }
}
