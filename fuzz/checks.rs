//! What must hold for any bytes: one function per fuzz target.
//!
//! In: bytes that nobody vouches for. Out: nothing, or a panic that says what does not hold. The fuzz targets call these
//! with bytes that libFuzzer found, `tests/seeds.rs` with seeds and random changes of them, so that a stable tool chain
//! runs them too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild::cache::record::CacheRecord;
use rbuild::context::ignore::Patterns;
use rbuild::diagnostic::{Diagnostic, Source};
use rbuild::digest::{Digest, ImageId};
use rbuild::dockerfile::ast::Escape;
use rbuild::dockerfile::{self, lint, word};
use rbuild::image::accounts;
use rbuild::image::config::ImageConfig;
use rbuild::image::manifest::Document;
use rbuild::image::platform::Platform;
use rbuild::image::reference::Reference;
use rbuild::layer::apply::{Flavour, TreeOptions, apply as apply_layer};
use rbuild::layer::compress::{Compression, Encoder, decompress};
use rbuild::layer::entry::Kind;
use rbuild::layer::index::LayerIndex;
use rbuild::layer::scan::scan as scan_layer;
use rbuild::plan::chmod::parse_mode;
use rbuild::plan::{self, BaseImage, Bases, Outcome, PlanOptions, Resolved};

/// Parsing ends, says what is wrong inside the text, and prints what it understood.
pub fn parse(data: &[u8]) {
    let source = Source { name: "Dockerfile".to_owned(), text: String::from_utf8_lossy(data).into_owned() };
    let parsed = dockerfile::parse(&source);
    for Diagnostic { span, message, .. } in &parsed.diagnostics {
        assert!(!message.is_empty());
        if let Some(span) = span {
            assert!(source.text.get(span.start..span.end).is_some(), "{message}: {span:?} is no part of the text");
        }
    }
    assert!(parsed.has_errors() || !parsed.dockerfile.stages.is_empty(), "neither a stage nor an error");
    let printed = dockerfile::print_ast(&parsed.nodes);
    assert_eq!(printed.as_array().map(Vec::len), Some(parsed.nodes.len()));
    // The build checks point into the text as well.
    let (checks, mut found) = lint::Checks::new(&parsed, None);
    found.extend(lint::check_syntax(&parsed.nodes));
    for Diagnostic { span, message, .. } in checks.settle(found, None).warnings {
        assert!(span.is_none_or(|span| source.text.get(span.start..span.end).is_some()), "{message}: {span:?}");
    }
    // The same text is the same result.
    assert_eq!(dockerfile::parse(&source).diagnostics, parsed.diagnostics);
}

/// Expansion ends, and without anything to expand a word is itself.
pub fn word(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let escape = if first % 2 == 0 { Escape::Backslash } else { Escape::Backtick };
    let text = String::from_utf8_lossy(rest);
    let lookup = |name: &str| match name.len() % 3 {
        0 => None,
        1 => Some(String::new()),
        _ => Some(format!("<{name} *?>")),
    };
    let expanded = word::expand(&text, escape, &lookup);
    if !text.contains(['$', '\'', '"', '\\', '`']) {
        assert_eq!(expanded.map(|expanded| expanded.text).as_deref(), Ok(&*text));
    }
    if let Ok(words) = word::expand_words(&text, escape, &lookup) {
        assert!(words.iter().map(String::len).sum::<usize>() <= text.len() + (1 << 20));
    }
    if let Ok(body) = word::expand_heredoc(&text, escape, &lookup)
        && !text.contains(['$', '\\'])
    {
        assert_eq!(body.text, text);
    }
}

/// Patterns and a path, divided by a zero byte: asking for a path and walking down to it give one answer.
pub fn ignore(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let path: Vec<&[u8]> = parts
        .next()
        .unwrap_or(b"a/b")
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"." | b".."))
        .collect();
    let Ok(patterns) = Patterns::parse(".dockerignore", &text) else { return };
    if path.is_empty() {
        return;
    }
    let mut above = patterns.at_root();
    for depth in 1..path.len() {
        let folder = path[..depth].join(&b'/');
        let whole = path.join(&b'/');
        if patterns.matches(&folder) && !patterns.may_match_below(&folder) {
            assert!(
                patterns.matches(&whole),
                "a walk would not have entered, but {:?} stays",
                String::from_utf8_lossy(&whole)
            );
        }
        above = patterns.enter(&above, &folder);
    }
    let whole = path.join(&b'/');
    assert_eq!(patterns.matches(&whole), patterns.excludes(&above, &whole), "asked for and walked to");
    assert_eq!(patterns.matches(&whole), patterns.excluded_by(&whole).is_some());
}

/// Planning what can be parsed ends, with a plan or with errors that lie inside the text.
pub fn plan(data: &[u8]) {
    let source = Source { name: "Dockerfile".to_owned(), text: String::from_utf8_lossy(data).into_owned() };
    let parsed = dockerfile::parse(&source);
    if parsed.has_errors() {
        return;
    }
    let options = PlanOptions::default();
    let inside = |errors: Vec<Diagnostic>| {
        for Diagnostic { span, message, .. } in errors {
            let is_inside = span.is_none_or(|span| source.text.get(span.start..span.end).is_some());
            assert!(is_inside, "{message}: {span:?} is no part of the text");
        }
    };
    let graph = match plan::graph(&parsed.dockerfile, &options) {
        Ok(graph) => graph,
        Err(errors) => return inside(errors),
    };
    let mut bases = Bases::new();
    let mut requests = plan::base_requests(&graph, &options);
    // Triggers of bases can name further images; all images here have the same, so that ends soon.
    for _ in 0..5 {
        for request in requests {
            let resolved = if request.context { Resolved::Context } else { Resolved::Image(Arc::new(base_image())) };
            bases.insert((request.name, request.platform.to_string()), resolved);
        }
        match plan::plan(&graph, &bases, &options) {
            Ok(Outcome::NeedBases(missing)) => requests = missing,
            Ok(Outcome::Planned(planned, warnings)) => {
                assert!(!plan::print::text(&planned).is_empty());
                return inside(warnings);
            }
            // What triggers say has no place in the text.
            Err(_) => return,
        }
    }
    panic!("always further images");
}

fn base_image() -> BaseImage {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","a=b c"],"OnBuild":["COPY --from=x y /z","ENV q=$a"],
        "User":"1:2","WorkingDir":"/w","Entrypoint":["e"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    BaseImage {
        name: "base".to_owned(),
        config: ImageConfig::parse(config).expect("a config that can be read"),
        image_id: ImageId(Digest::of(config)),
        manifest: None,
        layers: Vec::new(),
        platform: Platform::new("linux", "amd64", ""),
    }
}

/// The tar with each header's checksum set right: else nothing but that would be tried.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

/// A layer from outside is refused, or its index holds clean paths that can be looked up.
pub fn scan(data: &[u8]) {
    let Ok(index) = scan_layer(&*with_checksums(data)) else { return };
    look_through(&index);
    let again = LayerIndex::from_bytes(index.as_bytes().to_vec()).expect("what was made can be read");
    assert_eq!((again.diff_id(), again.content(), again.len()), (index.diff_id(), index.content(), index.len()));
}

/// A layer's tree holds what its index says, and nothing is made or changed outside.
pub fn apply(data: &[u8]) {
    let tar = with_checksums(data);
    let Ok(index) = scan_layer(&*tar) else { return };
    let sizes: u64 = (0..index.len())
        .map(|position| match index.entry(position).kind {
            Kind::File { size, .. } => size,
            _ => 0,
        })
        .fold(0, u64::saturating_add);
    if sizes > 1 << 24 {
        return; // mostly holes, which cost only time
    }
    let place = tempfile::tempdir().expect("a temporary folder");
    let (tree, outside) = (place.path().join("tree"), place.path().join("outside"));
    fs::create_dir(&tree).expect("a folder in a new folder");
    fs::write(&outside, "outside").expect("a file in a new folder");
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&tar).expect("it takes bytes");
    let options = TreeOptions { flavour: Flavour::Trusted, devices: false };
    let applied = apply_layer(&index, &file, &tree, &options);
    let names: BTreeSet<_> =
        fs::read_dir(place.path()).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, BTreeSet::from(["outside".into(), "tree".into()]), "something was made outside");
    assert_eq!(fs::read(&outside).expect("it is there"), b"outside", "something outside was changed");
    assert_eq!(outside.symlink_metadata().expect("it is there").nlink(), 1, "something outside has another name");
    if applied.is_ok() {
        holds_what_the_index_says(&index, &tree, &file);
    }
    // The same as a build context, which is the caller's own.
    let context = place.path().join("context");
    fs::create_dir(&context).expect("a folder in a new folder");
    let unpacked = rbuild::context::tar::unpack(Box::new(&*tar), &place.path().join("scratch"), &context);
    assert_eq!(fs::read(&outside).expect("it is there"), b"outside", "something outside was changed");
    if unpacked.is_ok() {
        let mut names: Vec<_> =
            fs::read_dir(place.path()).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["context", "outside", "tree"], "something was made outside");
    }
    open_up(&context);
    // Modes that nobody can enter are the tree's own affair.
    open_up(&tree);
}

fn holds_what_the_index_says(index: &LayerIndex, tree: &Path, tar: &File) {
    for position in 0..index.len() {
        let entry = index.entry(position);
        let path = tree.join(std::ffi::OsStr::from_bytes(&entry.path));
        if path.as_os_str().len() > 4000 {
            continue;
        }
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => continue,
            Err(error) => {
                // Devices are left out here, and deletions where nothing is below.
                let may_be = matches!(
                    entry.kind,
                    Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Whiteout | Kind::Opaque
                );
                assert!(may_be, "{} is missing: {error}", path.display());
                continue;
            }
        };
        let kind = found.file_type();
        let is_right = match &entry.kind {
            Kind::File { size, .. } => kind.is_file() && found.len() == *size,
            Kind::HardLink { .. } => kind.is_file() && found.nlink() > 1,
            Kind::Directory | Kind::Opaque => kind.is_dir(),
            Kind::Symlink { target } => {
                kind.is_symlink() && fs::read_link(&path).is_ok_and(|link| link.as_os_str().as_bytes() == *target)
            }
            Kind::Whiteout => kind.is_char_device() && found.rdev() == 0,
            Kind::Fifo => kind.is_fifo(),
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => false,
        };
        assert!(is_right, "{} is no {:?}", path.display(), entry.kind);
        if matches!(entry.kind, Kind::File { .. })
            && let Ok(bytes) = fs::read(&path)
        {
            let mut data = Vec::new();
            let mut reader = rbuild::layer::data::from_tar(index, position, tar).expect("the tar is there");
            reader.read_to_end(&mut data).expect("the tar is whole");
            assert!(bytes == data, "the bytes of {}", path.display());
        }
    }
}

/// Lets the owner of a tree remove it.
fn open_up(folder: &Path) {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
}

/// What is compressed comes back, whatever it is; what is no archive ends, with bytes or an error.
pub fn archive(data: &[u8]) {
    if let Ok(reader) = decompress(Box::new(data)) {
        let mut bytes = Vec::new();
        let _ = reader.take(1 << 22).read_to_end(&mut bytes);
    }
    let Some((first, rest)) = data.split_first() else { return };
    let compression = match first % 13 {
        level @ 0..10 => Compression::Gzip(level),
        10 => Compression::Zstd(1),
        11 => Compression::Zstd(3),
        _ => Compression::None,
    };
    // Half of them without what repeats, which is stored.
    let plain = if first & 0x80 == 0 { rest.repeat(3) } else { rest.to_vec() };
    let mut encoder = Encoder::new(Vec::new(), compression);
    encoder.write_all(&plain).expect("memory takes every write");
    let bytes = encoder.finish().expect("memory takes every write");
    if compression == Compression::None {
        assert!(bytes == plain);
        return;
    }
    let mut again = Vec::new();
    let decoder = decompress(Box::new(&*bytes)).expect("memory can be read");
    decoder.take(1 << 24).read_to_end(&mut again).expect("what was compressed can be read");
    assert!(again == plain, "{compression:?} gives other bytes back");
}

/// Looking up users and groups ends: who, `passwd` and `group`, divided by zero bytes.
pub fn users(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let who = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let (passwd, group) = (parts.next(), parts.next());
    if let Ok(found) = accounts::user(&who, passwd, group) {
        assert!(
            found.groups.contains(&found.gid) && i32::try_from(found.uid).is_ok() && i32::try_from(found.gid).is_ok()
        );
        assert_eq!(found.groups.iter().collect::<BTreeSet<_>>().len(), found.groups.len(), "a group twice");
    }
    let (name, of) = who.split_once(':').map_or((&*who, None), |(name, of)| (name, Some(of)));
    if let Ok(found) = accounts::owner(name, of, passwd, group) {
        assert!(i32::try_from(found.uid).is_ok() && i32::try_from(found.gid).is_ok());
    }
}

/// An index file of any bytes is refused, or it can be looked through. Its checksum is set right first: else nothing but
/// that would be tried.
pub fn index(data: &[u8]) {
    let mut bytes = data.to_vec();
    if bytes.len() > 16 {
        let sum = libdeflater::crc32(&bytes[16..]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    if let Ok(index) = LayerIndex::from_bytes(bytes) {
        look_through(&index);
    }
}

/// What is read as a config, a manifest, an index or a record of the cache is the same when it is written and read again.
pub fn documents(data: &[u8]) {
    if let Ok(config) = ImageConfig::parse(data) {
        let bytes = config.to_bytes();
        let again = ImageConfig::parse(&bytes).expect("what was written can be read");
        assert_eq!(
            (again.to_bytes(), again.image_id(), again.platform()),
            (bytes, config.image_id(), config.platform())
        );
    }
    if let Ok(document) = Document::parse(data) {
        let bytes = match &document {
            Document::Manifest(manifest) => manifest.to_bytes(),
            Document::Index(index) => index.to_bytes(),
        };
        assert_eq!(Document::parse(&bytes).as_ref().ok(), Some(&document));
    }
    if let Ok(record) = CacheRecord::parse(data) {
        assert_eq!(CacheRecord::parse(&record.to_bytes()), Ok(record));
    }
}

/// A name of an image or a platform is refused, or reads the same in every way in which it is shown.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = Reference::parse(&text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref().ok(), Some(&reference));
        assert_eq!(Reference::parse(&reference.familiar()).as_ref().ok(), Some(&reference), "{}", reference.familiar());
    }
    let here = Platform::new("linux", "amd64", "");
    if let Ok(platform) = Platform::parse(&text, &here) {
        assert_eq!(Platform::parse(&platform.to_string(), &here).as_ref().ok(), Some(&platform), "{platform}");
        assert!(platform.fit(&platform).is_some(), "{platform} does not run on itself");
    }
    assert!(parse_mode(&text).is_err() || text.is_ascii());
}

fn look_through(index: &LayerIndex) {
    for position in 0..index.len() {
        let path = index.path(position).to_vec();
        let unclean = path.split(|byte| *byte == b'/').any(|name| matches!(name, b"" | b"." | b".."));
        assert!(!unclean && !path.contains(&0), "an entry {:?}", String::from_utf8_lossy(&path));
        let entry = index.entry(position);
        let is_found = index.position(&path).is_some() || entry.kind == Kind::Opaque;
        assert!(is_found, "{:?} cannot be found", String::from_utf8_lossy(&path));
        assert_eq!(entry.path, path);
    }
    assert!(index.children(b"").count() <= index.len());
}
