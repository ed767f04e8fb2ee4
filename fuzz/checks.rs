//! What must hold for any bytes: one function per fuzz target.
//!
//! In: bytes that nobody vouches for. Out: nothing, or a panic that says what does not hold. The fuzz targets call these
//! with bytes that libFuzzer found, `tests/seeds.rs` with seeds and random changes of them, so that a stable tool chain
//! runs them too.

use rbuild::cache::record::CacheRecord;
use rbuild::context::ignore::Patterns;
use rbuild::diagnostic::{Diagnostic, Source};
use rbuild::dockerfile::ast::Escape;
use rbuild::dockerfile::{self, lint, word};
use rbuild::image::config::ImageConfig;
use rbuild::image::manifest::Document;
use rbuild::image::platform::Platform;
use rbuild::image::reference::Reference;
use rbuild::layer::entry::Kind;
use rbuild::layer::index::LayerIndex;
use rbuild::layer::scan::scan as scan_layer;
use rbuild::plan::chmod::parse_mode;

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
        assert!(words.len() <= text.len() * 20 + 1);
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

/// A layer from outside is refused, or its index holds clean paths that can be looked up.
pub fn scan(data: &[u8]) {
    let Ok(index) = scan_layer(data) else { return };
    look_through(&index);
    let again = LayerIndex::from_bytes(index.as_bytes().to_vec()).expect("what was made can be read");
    assert_eq!((again.diff_id(), again.content(), again.len()), (index.diff_id(), index.content(), index.len()));
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
