//! The cases of testdata/copy: what an instruction makes of a context or a stage on given layers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::*;
use crate::context::ignore::Patterns;
use crate::context::local::LocalContext;
use crate::context::stat_cache::StatCache;
use crate::digest::Digest;
use crate::layer::entry::Kind;
use crate::layer::index::Origin;
use crate::layer::sample::{bytes, index};
use crate::layer::stack::LayerStack;
use crate::plan::step::{Chmod, Chown, ContextId, CopyFrom, CopyOp, CopySource, MakeDirOp, ModeClause, Stack};

/// A case: sections in order, each with the rest of its first line and its other lines.
pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    sections: Vec<(&'a str, &'a str, Vec<&'a str>)>,
}

/// Cases of a file: `== NAME`, then sections that begin in column 1; their lines are indented.
pub(super) fn cases(text: &str) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case { name, sections: Vec::new() });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        if let Some(line) = line.strip_prefix("  ") {
            case.sections.last_mut().expect("a section is open").2.push(line);
        } else {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            case.sections.push((kind, rest, Vec::new()));
        }
    }
    cases
}

impl<'a> Case<'a> {
    fn all(&self, kind: &str) -> impl Iterator<Item = &(&'a str, &'a str, Vec<&'a str>)> {
        self.sections.iter().filter(move |(name, ..)| *name == kind)
    }

    fn stack(&self, kind: &str) -> LayerStack {
        let layers = self.all(kind).map(|(_, _, lines)| {
            let mut lines = lines.clone();
            let path = |line: &&str| line.split_whitespace().nth(1).unwrap_or_default().to_owned();
            lines.sort_by(|a, b| crate::layer::entry::compare_paths(path(a).as_bytes(), path(b).as_bytes()));
            Arc::new(index(Origin::Foreign, &lines.join("\n")))
        });
        LayerStack::new(layers).expect("good layers")
    }
}

/// A context on disk.
pub(super) fn make_context(root: &Path, case: &Case<'_>) -> LocalContext {
    let mut modes: Vec<(std::path::PathBuf, u32)> = Vec::new();
    for line in case.all("context").flat_map(|(_, _, lines)| lines) {
        let words: Vec<&str> = line.split_whitespace().collect();

        let path = root.join(crate::context::local::as_path(&bytes(words[1])));
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("makes a folder");
        let mode = |default: &str| u32::from_str_radix(words.get(2).unwrap_or(&default), 8).expect("an octal mode");
        match words[0] {
            "file" => {
                fs::write(&path, bytes(words.get(3).unwrap_or(&words[1]))).expect("writes");
                modes.push((path, mode("644")));
            }
            "dir" => {
                fs::create_dir_all(&path).expect("makes a folder");
                modes.push((path, mode("755")));
            }
            "symlink" => symlink(words[2], &path).expect("links"),
            "hard" => fs::hard_link(root.join(words[2]), &path).expect("links"),
            "socket" => drop(std::os::unix::net::UnixListener::bind(&path).expect("binds")),
            "fifo" => rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).expect("makes a pipe"),
            other => panic!("{}: {other}", case.name),
        }
    }
    for (_, rest, lines) in case.all("tar") {
        let (name, compression) = rest.split_once(' ').unwrap_or((rest, ""));
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("makes a folder");
        fs::write(&path, compress(tarball(lines), compression)).expect("writes");
        modes.push((path, 0o644));
    }
    // Directories last, and whatever the umask was: what the context's folders are is part of the cases.
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("reads").map(|entry| entry.expect("reads")) {
            if entry.file_type().expect("has a type").is_dir() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755)).expect("sets the mode");
                folders.push(entry.path());
            }
        }
    }
    for (path, mode) in modes.into_iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    }
    let ignore = case.all("ignore").flat_map(|(_, _, lines)| lines).copied().collect::<Vec<_>>().join("\n");
    let patterns = Patterns::parse(".dockerignore", &ignore).expect("good patterns");
    LocalContext::open(root, patterns, StatCache::in_memory(), UNIX_EPOCH).expect("opens")
}

/// A tar of `KIND PATH MODE UID GID [content or target]` lines, in their order.
fn tarball(lines: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).map_or(0, |word| word.parse::<u64>().expect("a number"));
        if words[0] == "pax" {
            let (key, value) = words[1].split_once('=').expect("a key and a value");
            builder.append_pax_extensions([(key, bytes(value).as_slice())]).expect("appends");
            continue;
        }
        let mut header = tar::Header::new_gnu();
        let name = bytes(words[1]);
        header.as_gnu_mut().expect("it is a GNU header").name[..name.len()].copy_from_slice(&name);
        header.set_mode(words.get(2).map_or(0o644, |mode| u32::from_str_radix(mode, 8).expect("an octal mode")));
        header.set_uid(number(3));
        header.set_gid(number(4));
        header.set_mtime(1_000_000);
        let last = bytes(words.get(5).copied().unwrap_or_default());
        let mut data = Vec::new();
        header.set_entry_type(match words[0] {
            "file" => {
                data.clone_from(&last);
                tar::EntryType::Regular
            }
            "dir" => tar::EntryType::Directory,
            "symlink" => tar::EntryType::Symlink,
            "hard" => tar::EntryType::Link,
            "fifo" => tar::EntryType::Fifo,
            "char" => tar::EntryType::Char,
            "global" => tar::EntryType::XGlobalHeader,
            "odd" => tar::EntryType::new(b'Z'),
            other => panic!("{other}"),
        });
        if matches!(words[0], "symlink" | "hard") {
            header.as_gnu_mut().expect("it is a GNU header").linkname[..last.len()].copy_from_slice(&last);
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_slice()).expect("appends");
    }
    builder.into_inner().expect("ends")
}

fn compress(tar: Vec<u8>, compression: &str) -> Vec<u8> {
    match compression {
        "" => tar,
        "gzip" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&tar).expect("writes");
            out.finish().expect("ends")
        }
        "bzip2" => {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            out.write_all(&tar).expect("writes");
            out.finish().expect("ends")
        }
        "zstd" => zstd::encode_all(tar.as_slice(), 1).expect("ends"),
        // There is no encoder here: an archive of `file f 0640 7 8 x`, made once.
        "xz" => include_bytes!("../../../testdata/copy/f.tar.xz").to_vec(),
        "truncated" => compress(tar[..tar.len().min(700)].to_vec(), "gzip"),
        other => panic!("{other}"),
    }
}

/// `COPY [flags] source… destination`, `ADD …`.
pub(super) fn copy_op(line: &str) -> CopyOp {
    let mut op = CopyOp {
        sources: Vec::new(),
        from: CopyFrom::Context(ContextId(0)),
        destination: String::new(),
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        unpack: line.starts_with("ADD "),
    };
    for word in line.split_whitespace().skip(1) {
        if let Some(value) = word.strip_prefix("--chown=") {
            let (user, group) = value.split_once(':').map_or((value, None), |(user, group)| (user, Some(group)));
            op.chown = Some(Chown { user: user.to_owned(), group: group.map(str::to_owned) });
        } else if let Some(value) = word.strip_prefix("--chmod=") {
            op.chmod = Some(match u32::from_str_radix(value, 8) {
                Ok(mode) => Chmod::Octal(mode),
                Err(_) => Chmod::Symbolic(value.split(',').map(clause).collect()),
            });
        } else if let Some(value) = word.strip_prefix("--exclude=") {
            op.exclude.push(value.to_owned());
        } else if let Some(name) = word.strip_prefix("<<") {
            op.sources.push(CopySource::Inline { name: name.to_owned(), content: format!("in {name}\n") });
        } else {
            match word {
                "--link" => op.link = true,
                "--parents" => op.parents = true,
                "--from" => op.from = CopyFrom::Stack(Stack::Scratch),
                "\"\"" => op.sources.push(CopySource::Path(String::new())),
                path => op.sources.push(CopySource::Path(path.to_owned())),
            }
        }
    }
    let Some(CopySource::Path(destination)) = op.sources.pop() else { panic!("{line}: no destination") };
    op.destination = destination;
    op
}

fn clause(text: &str) -> ModeClause {
    let operator = text.find(['+', '-', '=']).expect("it has an operator");
    let (who, all) = (&text[..operator], operator == 0);
    let who = (all || who.contains('u'), all || who.contains('g'), all || who.contains('o'));
    ModeClause { who, operator: char::from(text.as_bytes()[operator]), permissions: text[operator + 1..].to_owned() }
}

/// What a case gives: entries, the source's digest, the landing's.
struct Outcome {
    lines: Vec<String>,
    source: Option<Digest>,
    landing: Digest,
}

/// Runs the instruction `line` of `case`.
fn run(case: &Case<'_>, line: &str) -> Result<Outcome, CopyError> {
    let below = case.stack("below");
    if let Some(rest) = line.strip_prefix("WORKDIR ") {
        let (path, user) = rest.split_once(' ').unwrap_or((rest, ""));
        let landing = make_dir(&MakeDirOp { path: path.to_owned(), user: user.to_owned() }, &below)?;
        let lines = landing.entries.iter().map(|landed| show(landed, &BTreeMap::new())).collect();
        return Ok(Outcome { lines, source: None, landing: landing.digest() });
    }
    let op = copy_op(line);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("context");
    fs::create_dir(&root).expect("makes a folder");
    let context = make_context(&root, case);
    let from = case.stack("from");
    let source = match op.from {
        CopyFrom::Context(_) => SourceView::Context(&context),
        CopyFrom::Stack(_) => SourceView::Stack(&from),
    };
    let mut selection = select(&op, &source)?;
    selection.hash_missing(&source)?;
    assert_eq!(selection.unknown_bytes(), 0, "{}", case.name);
    let mut spool = Spool::new(tempfile::tempfile().expect("a temporary file"));
    selection.unpack(&source, &mut spool)?;
    let landing = land(&op, &selection, &below)?;
    let mut paths: Vec<&[u8]> = landing.entries.iter().map(|landed| landed.entry.path.as_slice()).collect();
    let sorted = paths.clone();
    paths.sort_by(|a, b| crate::layer::entry::compare_paths(a, b));
    paths.dedup();
    assert_eq!(paths, sorted, "{}: sorted, each once", case.name);
    let mut contents = BTreeMap::new();
    for landed in &landing.entries {
        let text = match &landed.data {
            FileData::None => continue,
            FileData::Context(file) => {
                let mut text = Vec::new();
                let mut file = context.open_file(file)?;
                std::io::Read::read_to_end(&mut file, &mut text).expect("reads");
                text
            }
            FileData::Inline(bytes) => bytes.to_vec(),
            FileData::Layer { layer, position } => {
                contents.insert(landed.entry.path.clone(), format!("@{}", lossy(from.layers[*layer].path(*position))));
                continue;
            }
            FileData::Fetched(path) => std::fs::read(path).expect("reads"),
            FileData::Spool { offset, size } => {
                let mut text = Vec::new();
                std::io::Read::read_to_end(&mut spool.reader(*offset, *size), &mut text).expect("reads");
                text
            }
        };
        if let Kind::File { size, sha256 } = landed.entry.kind {
            assert_eq!((size, sha256), (text.len() as u64, Digest::of(&text)), "{}: {landed:?}", case.name);
        }
        contents.insert(landed.entry.path.clone(), format!("={}", lossy(&text).trim_end()));
    }
    let lines = landing.entries.iter().map(|landed| show(landed, &contents)).collect();
    Ok(Outcome { lines, source: selection.digest(), landing: landing.digest() })
}

fn show(landed: &LandedEntry, contents: &BTreeMap<Vec<u8>, String>) -> String {
    let entry = &landed.entry;
    let content = contents.get(&entry.path).cloned().unwrap_or_default();
    let (kind, rest) = match &entry.kind {
        Kind::File { .. } => ("file", content),
        Kind::HardLink { target } => ("hard", format!("-> {}", lossy(target))),
        Kind::Directory => ("dir", String::new()),
        Kind::Symlink { target } => ("symlink", format!("-> {}", lossy(target))),
        Kind::CharDevice { major, minor } => ("char", format!("{major} {minor}")),
        Kind::BlockDevice { major, minor } => ("block", format!("{major} {minor}")),
        Kind::Fifo => ("fifo", String::new()),
        Kind::Whiteout => ("whiteout", String::new()),
        Kind::Opaque => ("opaque", String::new()),
    };
    let path = if entry.path.is_ascii() { lossy(&entry.path) } else { format!("{}", entry.path.escape_ascii()) };
    let capability = if entry.capability.is_some() { "(capable) " } else { "" };
    let line = format!("{kind} {path} {:04o} {}:{} {capability}{rest}", entry.mode, entry.uid, entry.gid);
    line.trim_end().to_owned()
}

fn check(text: &str) -> usize {
    let mut wrong = Vec::new();
    let cases = cases(text);
    for case in &cases {
        let line = case.all("run").next().expect("it runs something").1;
        let result = run(case, line);
        let expected_error = case.all("error").next().map(|(_, text, _)| *text);
        match (result, expected_error) {
            (Ok(outcome), None) => {
                let expected: Vec<&str> = case.all("layer").flat_map(|(_, _, lines)| lines).copied().collect();
                if outcome.lines != expected {
                    wrong.push(format!("{}: found\n  {}", case.name, outcome.lines.join("\n  ")));
                }
            }
            (Err(error), Some(expected)) if error.to_string().contains(expected) => {}
            (Ok(outcome), Some(_)) => {
                wrong.push(format!("{}: no error, but\n  {}", case.name, outcome.lines.join("\n  ")));
            }
            (Err(error), _) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    cases.len()
}

#[test]
fn copy_cases() {
    assert!(check(include_str!("../../../testdata/copy/copy.txt")) > 60);
}

#[test]
fn add_cases() {
    assert!(check(include_str!("../../../testdata/copy/add.txt")) > 15);
}

#[test]
fn workdir_cases() {
    assert!(check(include_str!("../../../testdata/copy/workdir.txt")) > 6);
}

/// What an archive may keep of the memory is bounded: a small file can hold a name of gigabytes.
#[test]
fn archives_with_endless_names_are_refused() {
    let header = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("f").expect("a short name");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size as u64);
        header.set_cksum();
        header
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (kind, name, size, expected) in [
        (tar::EntryType::GNULongName, b'y', 5 << 20, "the headers of one entry have more than 4 MiB"),
        (tar::EntryType::XHeader, b'y', 5 << 20, "the headers of one entry have more than 4 MiB"),
        (tar::EntryType::GNULongName, b'y', 256, "is longer than Linux allows"),
        (tar::EntryType::GNULongLink, b'y', 4096, "\"f\" is a link to a name that is longer than Linux allows"),
        // What is skipped may be long.
        (tar::EntryType::Directory, b'y', 5 << 20, ""),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header(kind, size), vec![name; size].as_slice()).expect("writes");
        let last = if kind == tar::EntryType::GNULongLink { tar::EntryType::Symlink } else { tar::EntryType::Regular };
        builder.append(&header(last, 0), std::io::empty()).expect("writes");
        let bytes = compress(builder.into_inner().expect("ends"), "gzip");
        fs::write(folder.path().join("t.tgz"), bytes).expect("writes");
        let context = LocalContext::open(folder.path(), Patterns::default(), StatCache::in_memory(), UNIX_EPOCH);
        let context = context.expect("opens");
        let view = SourceView::Context(&context);
        let mut selection = select(&copy_op("ADD t.tgz /"), &view).expect("selects");
        let mut spool = Spool::new(tempfile::tempfile().expect("a temporary file"));
        let error = selection.unpack(&view, &mut spool).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error.is_empty(), expected.is_empty(), "{kind:?}: {error}");
        assert!(error.contains(expected), "{kind:?}: {error}");
    }
}

/// Pairs of cases: `same source`, `other source`, `same landing`, `other landing` say what the second case's digests
/// are to those of the first.
#[test]
fn digest_cases() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for case in cases(include_str!("../../../testdata/copy/digests.txt")) {
        let lines: Vec<&str> = case.all("run").map(|(_, line, _)| *line).collect();
        let split = case.sections.iter().position(|(kind, ..)| *kind == "then").expect("a case has two halves");
        let (first, second) = case.sections.split_at(split);
        let half = |sections: &[(&'static str, &'static str, Vec<&'static str>)], line: &str| {
            run(&Case { name: case.name, sections: sections.to_vec() }, line)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name))
        };
        let one = half(first, lines[0]);
        // The second half changes what it has sections for and takes the rest from the first.
        let changed: Vec<&str> = second.iter().map(|(kind, ..)| *kind).collect();
        let kept = first.iter().filter(|(kind, ..)| !changed.contains(kind)).cloned();
        let two = half(&kept.chain(second.iter().cloned()).collect::<Vec<_>>(), lines.last().expect("a line"));
        for (_, what, _) in case.all("expect") {
            count += 1;
            let holds = match *what {
                "same source" => one.source == two.source,
                "other source" => one.source != two.source,
                "same landing" => one.landing == two.landing,
                "other landing" => one.landing != two.landing,
                other => panic!("{}: {other}", case.name),
            };
            if !holds {
                wrong.push(format!("{}: not {what}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "only {count} expectations");
}

/// A context, an instruction's selection in it, and where it lands on nothing.
fn landed(folder: &Path, line: &str) -> (LocalContext, Selection, Landing) {
    let context = LocalContext::open(folder, Patterns::default(), StatCache::in_memory(), UNIX_EPOCH).expect("opens");
    let op = copy_op(line);
    let selection = select(&op, &SourceView::Context(&context)).expect("selects");
    let landing = land(&op, &selection, &LayerStack::default()).expect("lands");
    (context, selection, landing)
}

/// Decision 12: a file that must be hashed is read once, while the layer is written.
#[test]
fn digests_can_come_from_writing_the_layer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("a"), "aa").expect("writes");
    fs::hard_link(folder.path().join("a"), folder.path().join("b")).expect("links");
    fs::write(folder.path().join("c"), "cc").expect("writes");
    let (context, mut selection, mut landing) = landed(folder.path(), "COPY . /out/");
    assert_eq!((selection.total_bytes(), selection.unknown_bytes()), (6, 6));
    assert_eq!((selection.is_hashed(), selection.digest()), (false, None));
    assert!(landing.entries.iter().any(|landed| !landed.is_hashed()));
    let mut writer = crate::layer::write::LayerWriter::new(Vec::new());
    for landed in &mut landing.entries {
        let body = match &landed.data {
            FileData::Context(file) => {
                crate::layer::write::Body::Reader(Box::new(context.open_file(file).expect("opens")))
            }
            _ => crate::layer::write::Body::None,
        };
        writer.push(&mut landed.entry, body).expect("writes");
    }
    let (_, index) = writer.finish().expect("ends");
    assert_eq!(index.get(b"out/c").map(|entry| entry.kind), Some(Kind::File { size: 2, sha256: Digest::of(b"cc") }));
    let view = SourceView::Context(&context);
    selection.learn(&landing, &view).expect("nothing changed");
    let learned = selection.digest();
    let mut again = select(&copy_op("COPY . /out/"), &view).expect("selects");
    assert_eq!(again.unknown_bytes(), 6, "the walk was made before");
    context.forget();
    again = select(&copy_op("COPY . /out/"), &view).expect("selects");
    assert_eq!((again.unknown_bytes(), again.digest()), (0, learned), "the context remembers");
    let (context, mut hashed, _) = landed_again(folder.path());
    hashed.hash_missing(&SourceView::Context(&context)).expect("hashes");
    assert_eq!(hashed.digest(), learned, "hashing before is the same");
}

fn landed_again(folder: &Path) -> (LocalContext, Selection, Landing) {
    landed(folder, "COPY . /out/")
}

#[test]
fn what_was_written_must_be_what_the_key_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("a"), "aa").expect("writes");
    let (context, mut selection, mut landing) = landed(folder.path(), "COPY a /");
    let view = SourceView::Context(&context);
    selection.hash_missing(&view).expect("hashes");
    landing.entries[0].entry.kind = Kind::File { size: 2, sha256: Digest::of(b"bb") };
    assert!(matches!(selection.learn(&landing, &view), Err(CopyError::Changed { path }) if path == "a"));
}

#[test]
fn a_file_that_changes_after_selection_is_an_error_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("a"), "aa").expect("writes");
    let (context, mut selection, landing) = landed(folder.path(), "COPY a /");
    let FileData::Context(entry) = &landing.entries[0].data else { panic!("it is a file of the context") };
    let file = context.open_file(entry).expect("it is as it was");
    context.check(&file, entry).expect("it still is");
    fs::write(folder.path().join("a"), "longer").expect("writes");
    assert!(!context.is_unchanged(entry));
    assert!(context.check(&file, entry).is_err());
    let error = selection.hash_missing(&SourceView::Context(&context)).expect_err("it changed").to_string();
    assert_eq!(error, "\"a\" of the build context changed while it was being copied");
}

#[test]
fn times_are_those_of_the_source_and_new_ones_those_of_the_build() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("a"), "aa").expect("writes");
    let file = fs::File::options().write(true).open(folder.path().join("a")).expect("opens");
    file.set_modified(UNIX_EPOCH + std::time::Duration::from_millis(1_234_900)).expect("sets the time");
    let (_context, _selection, mut landing) = landed(folder.path(), "COPY a <<b /out/");
    landing.date_new(77);
    let times: Vec<(String, i64)> =
        landing.entries.iter().map(|landed| (lossy(&landed.entry.path), landed.entry.mtime)).collect();
    assert_eq!(times, [("out".to_owned(), 77), ("out/a".to_owned(), 1234), ("out/b".to_owned(), 77)]);
    // What was there keeps its time.
    let below = LayerStack::new([Arc::new(index(Origin::Foreign, "dir out"))]).expect("a good layer");
    let mut landing = land(&copy_op("COPY <<b /out/"), &Selection { sources: Vec::new() }, &below).expect("lands");
    assert!(landing.entries.is_empty(), "nothing selected, nothing landed");
    let op = copy_op("COPY <<b /out/");
    let selection = select(&op, &SourceView::Stack(&below)).expect("selects");
    landing = land(&op, &selection, &below).expect("lands");
    landing.date_new(77);
    let times: Vec<i64> = landing.entries.iter().map(|landed| landed.entry.mtime).collect();
    assert_eq!(times, [7, 77]);
}

/// Decision 17: `security.capability` of the context's files is kept, and nothing else.
#[test]
fn capabilities_of_the_context_are_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("a");
    fs::write(&path, "aa").expect("writes");
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(&path, c"security.capability", &value, flags) {
        let why = format!("cannot set one: {error}");
        crate::layer::sample::leave_to_root("capabilities_of_the_context_are_kept", &why);
        return;
    }
    let (context, mut selection, landing) = landed(folder.path(), "COPY a /");
    assert_eq!(landing.entries[0].entry.capability.as_deref(), Some(value.as_slice()));
    let view = SourceView::Context(&context);
    selection.hash_missing(&view).expect("hashes");
    let with = selection.digest();
    context.forget();
    let again = select(&copy_op("COPY a /"), &view).expect("selects");
    assert_eq!(again.digest(), with, "remembered with the digest");
    rustix::fs::removexattr(&path, c"security.capability").expect("removes");
    context.forget();
    let mut without = select(&copy_op("COPY a /"), &view).expect("selects");
    without.hash_missing(&view).expect("hashes");
    assert_ne!(without.digest(), with);
}
