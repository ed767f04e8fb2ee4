use super::*;
use crate::digest::Digest;
use crate::layer::entry::{Entry, Kind};
use crate::layer::index::Origin;
use crate::layer::sample;
use crate::layer::scan::scan;
use crate::layer::write::{Body, LayerWriter};
use crate::sys::root_dir::{Stat, StatKind};
use std::io::Write;
use std::sync::Arc;

const OPTIONS: TreeOptions = TreeOptions { flavour: Flavour::Trusted, devices: true };

/// A layer written from text, and its tar.
fn layer(text: &str, mtime: i64) -> (File, LayerIndex) {
    let (uid, gid) = file::owner_of_new_files();
    let mut writer = LayerWriter::new(tempfile::tempfile().unwrap());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut entry = Entry { mtime, ..sample::entry(line) };
        // Owners that the text leaves open are ours, so that most tests need no privilege.
        if line.split_whitespace().nth(3).is_none_or(|word| word == "-1") {
            (entry.uid, entry.gid) = (uid, gid);
        }
        let data = sample::bytes(line.split_whitespace().nth(5).unwrap_or_default());
        let body = if matches!(entry.kind, Kind::File { .. }) { Body::Bytes(&data) } else { Body::None };
        writer.push(&mut entry, body).unwrap();
    }
    writer.finish().unwrap()
}

fn foreign(text: &str) -> (File, LayerIndex) {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    let (uid, gid) = file::owner_of_new_files();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut header = tar::Header::new_ustar();
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(7);
        header.set_mode(0o755);
        let data = words.get(2).copied().unwrap_or_default();
        header.set_size(0);
        match words[0] {
            "file" => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, words[1], data.as_bytes()).unwrap();
            }
            "dir" => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, words[1], io::empty()).unwrap();
            }
            kind => {
                header.set_entry_type(if kind == "link" { tar::EntryType::Link } else { tar::EntryType::Symlink });
                builder.append_link(&mut header, words[1], data).unwrap();
            }
        }
    }
    let file = builder.into_inner().unwrap();
    let mut bytes = Vec::new();
    data_of(&file).read_to_end(&mut bytes).unwrap();
    let index = scan(bytes.as_slice()).unwrap();
    (file, index)
}

fn data_of(file: &File) -> impl Read {
    use std::io::Seek;
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    file
}

/// Everything in a tree: path, kind, mode, owner, time, and text or target.
fn list(tree: &Path) -> Vec<String> {
    fn walk(dir: &Dir, prefix: &str, lines: &mut Vec<String>) {
        for name in dir.names().unwrap() {
            let Stat { kind, mode, uid, gid, mtime, device, links, .. } = dir.stat(&name).unwrap();
            let path = format!("{prefix}{}", String::from_utf8_lossy(&name));
            let tail = match kind {
                StatKind::File => {
                    let mut data = Vec::new();
                    dir.open_file(&name).unwrap().read_to_end(&mut data).unwrap();
                    let data = if data.len() > 40 { Digest::of(&data).to_string().into_bytes() } else { data };
                    format!("{} x{links}", String::from_utf8_lossy(&data))
                }
                StatKind::Symlink => String::from_utf8_lossy(&dir.read_link(&name).unwrap()).into_owned(),
                StatKind::CharDevice | StatKind::BlockDevice => format!("{device:?}"),
                _ => String::new(),
            };
            // Whiteouts have whatever time they were made at: nobody sees it.
            let whiteout = device == (0, 0) && kind == StatKind::CharDevice;
            assert!(mtime.1 == 0 || whiteout, "{path}: whole seconds");
            let mtime = if whiteout { 0 } else { mtime.0 };
            lines.push(format!("{kind:?} {path} {mode:04o} {uid}:{gid} {mtime} {tail}").trim_end().to_owned());
            if kind == StatKind::Directory {
                walk(&dir.open_dir(&name).unwrap(), &format!("{path}/"), lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(RootDir::open(tree).unwrap().dir(), "", &mut lines);
    lines
}

#[test]
fn makes_what_the_entries_say() {
    if !sample::is_root(module_path!(), "makes_what_the_entries_say") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (uid, gid) = file::owner_of_new_files();
    let (tar, index) = layer(
        "dir a 0500
         dir a/d 2755
         file a/d/s 4755 -1 -1 suid
         file a/f 0444 -1 -1 text
         link a/g 0444 -1 -1 a/f
         file a-b 0666 -1 -1 x
         symlink l 0777 -1 -1 no/where
         pipe p 0622",
        1_000_000,
    );
    assert_eq!(apply(&index, &tar, temp.path(), &OPTIONS).unwrap(), Vec::<String>::new());
    let expected = [
        "Directory a 0500 1000000",
        "Directory a/d 2755 1000000",
        "File a/d/s 4755 1000000 suid x1",
        "File a/f 0444 1000000 text x2",
        "File a/g 0444 1000000 text x2",
        "File a-b 0666 1000000 x x1",
        "Symlink l 0777 1000000 no/where",
        "Fifo p 0622 1000000",
    ];
    let found: Vec<String> =
        list(temp.path()).into_iter().map(|line| line.replace(&format!(" {uid}:{gid}"), "")).collect();
    assert_eq!(found, expected);
    let root = RootDir::open(temp.path()).unwrap().dir().stat_self().unwrap();
    assert_eq!((root.mode, root.mtime), (0o755, (0, 0)));
    // Nothing that is there is replaced.
    let error = apply(&index, &tar, temp.path(), &OPTIONS).unwrap_err();
    assert_eq!(error.to_string(), "cannot make directory /a of a layer's tree");
}

#[test]
fn as_root() {
    if !sample::is_full_root("as_root") {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (tar, index) = layer(
        "dir bin 2755 3 4
         file bin/ping 0755 5 6 ping 0100000200200000000000000000000000000000
         link bin/ping4 0755 5 6 bin/ping 0100000200200000000000000000000000000000
         file bin/su 6755 7 8 su
         dir dev
         block dev/loop0 0660 0 6 7 0
         char dev/null 0666 0 0 1 3
         symlink l 0777 9 10 x
         dir tmp 1777
         whiteout tmp/gone",
        5,
    );
    apply(&index, &tar, temp.path(), &OPTIONS).unwrap();
    let expected = [
        "Directory bin 2755 3:4 5",
        "File bin/ping 0755 5:6 5 ping x2",
        "File bin/ping4 0755 5:6 5 ping x2",
        "File bin/su 6755 7:8 5 su x1",
        "Directory dev 0755 0:0 5",
        "BlockDevice dev/loop0 0660 0:6 5 (7, 0)",
        "CharDevice dev/null 0666 0:0 5 (1, 3)",
        "Symlink l 0777 9:10 5 x",
        "Directory tmp 1777 0:0 5",
        "CharDevice tmp/gone 0000 0:0 0 (0, 0)",
    ];
    assert_eq!(list(temp.path()), expected);
    let ping = RootDir::open(temp.path()).unwrap().open_file(b"bin/ping").unwrap();
    let capability = index.get(b"bin/ping").unwrap().capability;
    assert_eq!(xattr::get(&ping, b"security.capability").unwrap(), capability);

    let without = tempfile::tempdir().unwrap();
    let notes = apply(&index, &tar, without.path(), &TreeOptions { devices: false, ..OPTIONS }).unwrap();
    assert_eq!(
        notes,
        ["2 device files, /dev/loop0 the first, cannot be made here; RUN will not see them, the image keeps what its \
          layers hold"]
    );
    assert_eq!(list(without.path()).len(), expected.len() - 2);
}

#[test]
fn opaque_directories() {
    if !sample::is_full_root("opaque_directories") {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (tar, index) = foreign("dir d\nfile d/.wh..wh..opq\nfile d/x 1\nfile .wh.y");
    let below = LayerStack::new([Arc::new(sample::index(Origin::Foreign, "dir d\nfile d/z\nfile y"))]).unwrap();
    let mut no_data = |_: &Found| -> io::Result<Box<dyn Read>> { unreachable!("no links") };
    apply_on_parents(&index, &tar, &below, &mut no_data, temp.path(), &OPTIONS).unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    let mark = |path: &[u8]| xattr::get(root.open_dir(path).unwrap(), b"trusted.overlay.opaque").unwrap();
    assert_eq!((mark(b"d").as_deref(), mark(b"")), (Some(b"y" as &[u8]), None));
    assert_eq!(root.dir().stat(b"y").unwrap().kind, StatKind::CharDevice);
    // Alone it has nothing to hide.
    let alone = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    apply(&index, &tar, alone.path(), &OPTIONS).unwrap();
    assert_eq!(RootDir::open(alone.path()).unwrap().dir().names().unwrap(), [b"d"]);
}

#[test]
fn on_what_lies_below() {
    if !sample::is_root(module_path!(), "on_what_lies_below") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (lower_tar, lower) = foreign("symlink lib usr/lib\ndir usr\ndir usr/lib\nfile usr/lib/f lower");
    let (tar, index) = foreign("file lib/x upper\nlink lib/g lib/f\nlink lib/h lib/f");
    assert!(needs_parents(&index));
    let below = LayerStack::new([Arc::new(lower)]).unwrap();
    let lower = Arc::clone(&below.layers[0]);
    let mut asked = 0;
    let mut data = |found: &Found| -> io::Result<Box<dyn Read + '_>> {
        asked += 1;
        crate::layer::data::from_tar(&lower, found.position, &lower_tar)
    };
    apply_on_parents(&index, &tar, &below, &mut data, temp.path(), &OPTIONS).unwrap();
    let (uid, gid) = file::owner_of_new_files();
    let found: Vec<String> =
        list(temp.path()).into_iter().map(|line| line.replace(&format!(" {uid}:{gid}"), "")).collect();
    let expected = [
        "Directory usr 0755 7",
        "Directory usr/lib 0755 7",
        "File usr/lib/g 0755 7 lower x2",
        "File usr/lib/h 0755 7 lower x2",
        "File usr/lib/x 0755 7 upper x1",
    ];
    assert_eq!((found.as_slice(), asked), (expected.map(String::from).as_slice(), 1));
    let alone = tempfile::tempdir().unwrap();
    let error = apply(&index, &tar, alone.path(), &OPTIONS).unwrap_err();
    assert_eq!(error.to_string(), "/lib/g is a hard link to /lib/f, which is no file");
}

#[test]
fn unchanged_files_are_links() {
    if !sample::is_root(module_path!(), "unchanged_files_are_links") {
        return;
    }
    let (old_tar, old) = layer(
        "file changed 0644 -1 -1 old
         file linked 0644 -1 -1 text
         link linked2 0644 -1 -1 linked
         file mode 0644 -1 -1 text
         file same 0644 -1 -1 text",
        5,
    );
    let (tar, index) = layer(
        "file changed 0644 -1 -1 new
         file linked 0644 -1 -1 text
         file linked2 0644 -1 -1 text
         file mode 0600 -1 -1 text
         file new 0644 -1 -1 text
         file same 0644 -1 -1 text",
        5,
    );
    let (before, after, fresh) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    apply(&old, &old_tar, before.path(), &OPTIONS).unwrap();
    let previous = Previous { index: &old, tree: before.path() };
    apply_like(&index, &tar, after.path(), &OPTIONS, Some(&previous)).unwrap();
    apply(&index, &tar, fresh.path(), &OPTIONS).unwrap();
    let plain = |tree: &Path| -> Vec<String> { list(tree).iter().map(|line| line.replace("x2", "x1")).collect() };
    assert_eq!(plain(after.path()), plain(fresh.path()));
    let inode = |tree: &Path, name: &[u8]| RootDir::open(tree).unwrap().dir().stat(name).unwrap().inode;
    assert_eq!(inode(before.path(), b"same"), inode(after.path(), b"same"));
    for name in ["changed", "linked", "mode"] {
        assert_ne!(inode(before.path(), name.as_bytes()), inode(after.path(), name.as_bytes()), "{name}");
    }
    assert_ne!(
        inode(after.path(), b"linked"),
        inode(after.path(), b"linked2"),
        "no links that the layer does not have"
    );
    // A time that moved is a change.
    let (tar, later) = layer("file same 0644 -1 -1 text", 6);
    let third = tempfile::tempdir().unwrap();
    apply_like(&later, &tar, third.path(), &OPTIONS, Some(&previous)).unwrap();
    assert_ne!(inode(before.path(), b"same"), inode(third.path(), b"same"));
    // A tree that is gone is no harm.
    drop(before);
    let fourth = tempfile::tempdir().unwrap();
    let gone = Previous { index: &old, tree: Path::new("/nonexistent") };
    apply_like(&later, &tar, fourth.path(), &OPTIONS, Some(&gone)).unwrap();
    assert_eq!(list(fourth.path()), list(third.path()));
}

#[test]
fn many_files_of_all_sizes() {
    if !sample::is_root(module_path!(), "many_files_of_all_sizes") {
        return;
    }
    let (uid, gid) = file::owner_of_new_files();
    let mut writer = LayerWriter::new(tempfile::tempfile().unwrap());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 253) as u8).collect();
    let sizes = |number: usize| match number % 100 {
        0 => 300_000 + number,
        1 => 131_072,
        2 => 131_071,
        3 => 0,
        other => other * 7,
    };
    for dir in 0..10 {
        let mut entry = Entry { uid, gid, ..sample::entry(&format!("dir {dir}")) };
        writer.push(&mut entry, Body::None).unwrap();
        for number in 0..150 {
            let mut entry = Entry { uid, gid, ..sample::entry(&format!("file {dir}/{number:03}")) };
            let data = &bytes[..sizes(dir * 150 + number)];
            entry.kind = Kind::File { size: data.len() as u64, sha256: Digest::of(b"") };
            writer.push(&mut entry, Body::Bytes(data)).unwrap();
        }
    }
    let (tar, index) = writer.finish().unwrap();
    let temp = tempfile::tempdir().unwrap();
    apply(&index, &tar, temp.path(), &OPTIONS).unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    for entry in index.entries() {
        if let KindRef::File { sha256, .. } = entry.kind {
            let mut data = Vec::new();
            root.open_file(entry.path).unwrap().read_to_end(&mut data).unwrap();
            assert_eq!(Digest::of(&data), sha256);
        }
    }
    // A tar that is too short is an error, whatever thread meets it.
    tar.set_len(index.tar_size() / 2).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let error = apply(&index, &tar, temp.path(), &OPTIONS).unwrap_err();
    assert!(matches!(error, ApplyError::Data { .. }), "{error}");
}

#[test]
fn sparse_files_stay_sparse() {
    if !sample::is_root(module_path!(), "sparse_files_stay_sparse") {
        return;
    }
    let packed = include_bytes!("../../../testdata/layers/sparse-old.tar.gz").as_slice();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    let mut tar = tempfile::tempfile().unwrap();
    tar.write_all(&bytes).unwrap();
    let index = scan(bytes.as_slice()).unwrap();
    let temp = tempfile::tempdir().unwrap();
    apply(&index, &tar, temp.path(), &OPTIONS).unwrap();
    let root = RootDir::open(temp.path()).unwrap();
    for entry in index.entries() {
        let KindRef::File { size, sha256 } = entry.kind else { panic!("only files") };
        let mut data = Vec::new();
        root.open_file(entry.path).unwrap().read_to_end(&mut data).unwrap();
        assert_eq!((data.len() as u64, Digest::of(&data)), (size, sha256));
    }
}

#[test]
fn owners_that_are_no_ids() {
    if !sample::is_root(module_path!(), "owners_that_are_no_ids") {
        return;
    }
    let (tar, _) = layer("file a", 0);
    let mut builder = crate::layer::index::IndexBuilder::new();
    let entry = Entry { uid: u32::MAX, ..sample::entry("pipe a") };
    builder.push(&(&entry).into(), 0);
    let index = builder.finish(Origin::Foreign, crate::digest::DiffId(Digest::of(b"")), 0).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let error = apply(&index, &tar, temp.path(), &OPTIONS).unwrap_err().to_string();
    assert!(
        error.starts_with("/a belongs to 4294967295:0, which this user namespace does not have (users 0-"),
        "{error}"
    );
}
