//! Entries and indexes written as text, for the tests of this module.
//!
//! In: lines such as `dir usr 0755 0 0`. Out: entries and indexes. Only compiled for tests.

#![allow(clippy::print_stderr)] // Tests say what they leave out.

use crate::digest::{DiffId, Digest};
use crate::layer::entry::{Entry, Kind};
use crate::layer::entry_ref::{EntryRef, KindRef};
use crate::layer::index::{IndexBuilder, LayerIndex, Origin, RootMetadata};
use crate::sys::file::owner_of_new_files;

/// One entry: `KIND PATH [MODE UID GID] [what the kind needs]`, as in testdata/content/vectors.txt; what is left out
/// at the end has a default.
pub(crate) fn entry(line: &str) -> Entry {
    let words: Vec<&str> = line.split_whitespace().collect();
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    let number = |at: usize, default: u32| match words.get(at) {
        None | Some(&"-1") => default,
        Some(word) => word.parse().unwrap(),
    };
    let capability = |at: usize| {
        let hex = word(at);
        (!hex.is_empty() && hex != "-").then(|| {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect::<Vec<u8>>()
        })
    };
    let mut entry = Entry {
        path: bytes(word(1)),
        kind: Kind::Directory,
        mode: words.get(2).map_or(0o755, |mode| u32::from_str_radix(mode, 8).unwrap()),
        uid: number(3, 0),
        gid: number(4, 0),
        mtime: 0,
        capability: None,
    };
    match word(0) {
        "file" => {
            let data = bytes(word(5));
            entry.kind = Kind::File { size: data.len() as u64, sha256: Digest::of(&data) };
            entry.capability = capability(6);
        }
        "link" => {
            entry.kind = Kind::HardLink { target: bytes(word(5)) };
            entry.capability = capability(6);
        }
        "dir" => {}
        "symlink" => {
            entry.kind = Kind::Symlink { target: bytes(word(5)) };
            entry.mode = 0o777;
        }
        "char" => entry.kind = Kind::CharDevice { major: number(5, 0), minor: number(6, 0) },
        "block" => entry.kind = Kind::BlockDevice { major: number(5, 0), minor: number(6, 0) },
        "pipe" => entry.kind = Kind::Fifo,
        "whiteout" => (entry.kind, entry.mode) = (Kind::Whiteout, 0),
        "opaque" => (entry.kind, entry.mode) = (Kind::Opaque, 0),
        kind => panic!("unknown kind {kind}"),
    }
    entry
}

/// A word with `\xNN` for bytes; `""` is empty.
pub(crate) fn bytes(word: &str) -> Vec<u8> {
    let mut rest = if word == "\"\"" { "" } else { word };
    let mut bytes = Vec::new();
    while let Some(first) = rest.chars().next() {
        if let Some(hex) = rest.strip_prefix("\\x") {
            bytes.push(u8::from_str_radix(&hex[..2], 16).unwrap());
            rest = &hex[2..];
        } else {
            bytes.push(first as u8);
            rest = &rest[1..];
        }
    }
    bytes
}

/// An index of the entries in `text`, one per line, in order; `root MODE` sets the root directory.
pub(crate) fn index(origin: Origin, text: &str) -> LayerIndex {
    let mut builder = IndexBuilder::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(mode) = line.strip_prefix("root ") {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            builder.set_root(RootMetadata { mode, ..RootMetadata::default() });
            continue;
        }
        let mut entry = entry(line);
        if entry.path.is_empty() {
            builder.set_opaque_root();
            continue;
        }
        if let Kind::File { .. } = entry.kind {
            builder.keep(&entry.path, &bytes(line.split_whitespace().nth(5).unwrap_or_default()));
        }
        entry.mtime = 7;
        builder.push(&EntryRef::from(&entry), 512);
    }
    builder.finish(origin, DiffId(Digest::of(text.as_bytes())), 1 << 40).unwrap()
}

/// The entries of an index as text, one per line: kind, path, target.
pub(crate) fn list(index: &LayerIndex) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    index
        .entries()
        .map(|entry| {
            let path = text(entry.path);
            match entry.kind {
                KindRef::File { size, .. } => format!("file {path} {size}\n"),
                KindRef::HardLink { target } => format!("link {path} {}\n", text(target)),
                KindRef::Directory => format!("dir {path} {:04o}\n", entry.mode),
                KindRef::Symlink { target } => format!("symlink {path} {}\n", text(target)),
                KindRef::CharDevice { major, minor } => format!("char {path} {major} {minor}\n"),
                KindRef::BlockDevice { major, minor } => format!("block {path} {major} {minor}\n"),
                KindRef::Fifo => format!("pipe {path}\n"),
                KindRef::Whiteout => format!("whiteout {path}\n"),
                KindRef::Opaque => format!("opaque {path}\n"),
            }
        })
        .collect()
}

/// Compares with a file of golden values below testdata/layers, or writes it when `RBUILD_BLESS` is set.
pub(crate) fn golden(name: &str, found: &str) {
    let path = format!("{}/testdata/layers/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("RBUILD_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&path).unwrap_or_default(), "{path}");
}

/// Whether this process is root with all ids and powers; says so when a test must be left out.
pub(crate) fn is_full_root(test: &str) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let full = owner_of_new_files().0 == 0 && map.split_whitespace().eq(["0", "0", "4294967295"]);
    if !full {
        leave_to_root(test, "it needs root and all ids");
    }
    full
}

/// Says that a test is left out, unless the same run has it as root elsewhere (see tests/run.sh).
pub(crate) fn leave_to_root(test: &str, why: &str) {
    let elsewhere = std::env::var("RBUILD_TEST_ELSEWHERE").unwrap_or_default();
    if !elsewhere.split(',').any(|word| word == "root") {
        eprintln!("skipped: {test}: {why}");
    }
}

/// Whether a test that needs to be root can go on here. If not, it is run once more in a user namespace, or it says that
/// this machine has none.
pub(crate) fn is_root(module: &str, test: &str) -> bool {
    if owner_of_new_files().0 == 0 {
        return true;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["-U", "-r"]);
    let works = |command: &mut std::process::Command| command.output().is_ok_and(|output| output.status.success());
    if !works(std::process::Command::new("unshare").args(["-U", "-r", "true"])) {
        eprintln!("skipped: {test}: it needs root or a user namespace");
        return false;
    }
    let module = module.split_once("::").map_or(module, |(_, module)| module);
    command.arg(std::env::current_exe().unwrap()).arg(format!("{module}::{test}")).args(["--exact", "--nocapture"]);
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprint!("{err}");
    assert!(output.status.success() && out.contains("1 passed"), "in a user namespace: {out}");
    false
}
