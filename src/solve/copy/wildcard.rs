//! From the text of a source to the paths that it names.
//!
//! In: a source as written. Out: [`Hit`]s in the order of their paths. What always holds: wildcards are those of Go's
//! `filepath.Match`, one element each, so there is no `**`; a literal that is not there is an error, a pattern without
//! a match is not; folders on the way to a match are real ones, what matches may be a link and is followed.

use super::source::{Node, SourceView};
use super::{CopyError, lossy};
use crate::context::glob::{Glob, clean};
use crate::layer::entry::join;

/// Something that a source names.
#[derive(Debug)]
pub(super) struct Hit {
    /// The last component of the path as named, before links were followed.
    pub(super) name: Vec<u8>,
    /// What it is, at its real path.
    pub(super) node: Node,
}

/// Whether `text` is a pattern: has `*`, `?` or `[` that no backslash escapes.
pub(super) fn is_pattern(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// All that `text` names.
pub(super) fn hits(view: &SourceView<'_>, text: &str) -> Result<Vec<Hit>, CopyError> {
    let cleaned = clean(&format!("/{text}"));
    let path = &cleaned[1..];
    if !is_pattern(path) {
        return Ok(vec![follow(view, text, path.as_bytes())?]);
    }
    let parts: Vec<&str> = path.split('/').collect();
    // A pattern has a part that is one.
    let first = parts.iter().position(|part| is_pattern(part)).unwrap_or(0);
    let globs = parts[first..]
        .iter()
        .map(|part| Glob::element(part))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| CopyError::BadWildcard { source_text: text.to_owned(), why })?;
    let base = view.resolve(parts[..first].join("/").as_bytes())?;
    let is_directory = view.lookup(&base)?.is_some_and(|node| node.is_directory());
    let mut dirs = if is_directory { vec![base] } else { Vec::new() };
    for (index, glob) in globs.iter().enumerate() {
        let last = index + 1 == globs.len();
        let mut found = Vec::new();
        for dir in &dirs {
            for node in view.children(dir)? {
                let name = crate::layer::entry::file_name(&node.path);
                if (last || node.is_directory()) && glob.matches(name) {
                    found.push(join(dir, name));
                }
            }
        }
        dirs = found;
    }
    dirs.iter().map(|path| follow(view, text, path)).collect()
}

/// What `path` leads to.
fn follow(view: &SourceView<'_>, text: &str, path: &[u8]) -> Result<Hit, CopyError> {
    let real = view.resolve(path)?;
    let Some(node) = view.lookup(&real)? else {
        let text = if is_pattern(text) { &lossy(path) } else { text };
        return Err(view.not_found(text, &real));
    };
    Ok(Hit { name: crate::layer::entry::file_name(path).to_vec(), node })
}
