//! What COPY copies: nothing of the destination is known yet.
//!
//! In: the operation and where it reads from. Out: a [`Selection`]: for each source the entries, relative to it, with
//! final modes. What always holds: a directory stands for its contents; a source that is a link stands for what it leads
//! to, links inside a directory for themselves; owners are those of the source, or open where `--chown` says them.

use std::collections::HashMap;
use std::sync::Arc;

use super::archive::{self, Listing, Spool};
use super::land::Landing;
use super::remote::{self, Brought};
use super::source::{Node, NodeKind, SourceView, relative};
use super::wildcard::{Hit, hits, is_pattern};
use super::{CopyError, FileData, FileId, lossy, mode};
use crate::context::glob::{Glob, clean};
use crate::context::ignore::Patterns;
use crate::context::local::ContextEntry;
use crate::context::stat_cache::Facts;
use crate::digest::Digest;
use crate::layer::entry::{Kind, file_name, join};
use crate::plan::remote::{RemoteKind, RemoteSource, without_password};
use crate::plan::step::{CopyOp, CopySource};

/// What is copied.
#[derive(Debug)]
pub struct Selection {
    pub(super) sources: Vec<Source>,
}

/// One source: what a word of the instruction names, or one match of a pattern.
#[derive(Debug)]
pub(super) struct Source {
    /// For messages.
    pub(super) text: String,
    pub(super) shape: Shape,
    /// Relative to the source; a leaf has one, without a path.
    pub(super) entries: Vec<Selected>,
}

#[derive(Debug)]
pub(super) enum Shape {
    /// The contents of a directory.
    Tree {
        /// Directories that are there keep what they are: `--parents`.
        keep_existing: bool,
    },
    /// Something else, with the name that it gets in a directory.
    Leaf { name: Vec<u8> },
    /// An archive to be unpacked; what is in it, once it is.
    Archive { listing: Option<Arc<Listing>> },
    /// What is not here; the digest stands for its content. Such a selection has a key and cannot land.
    Named(Digest),
}

/// One entry.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    pub(super) path: Vec<u8>,
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    /// `None`: 0:0, or what `--chown` says.
    pub(super) owner: Option<(u32, u32)>,
    /// `None`: that of the build.
    pub(super) mtime: Option<i64>,
    pub(super) capability: Option<Vec<u8>>,
    /// Number of the file, where it is one of several names in this selection.
    pub(super) inode: Option<usize>,
    pub(super) data: FileData,
}

/// Finds what `op` copies, which fetches nothing.
pub fn select(op: &CopyOp, source: &SourceView<'_>) -> Result<Selection, CopyError> {
    select_brought(op, source, &[])
}

/// Finds what `op` copies. `brought` has those of its sources that are fetched, in order.
pub fn select_brought(op: &CopyOp, source: &SourceView<'_>, brought: &[Brought]) -> Result<Selection, CopyError> {
    let exclude = Patterns::from_list(&op.exclude)?;
    let maker = Maker { op, exclude: (!op.exclude.is_empty()).then_some(exclude) };
    let mut sources = Vec::new();
    // Files with several names, by what they share.
    let mut inodes: HashMap<(u64, u64), Vec<FileId>> = HashMap::new();
    let mut note = |sources: &[Source], nodes: Vec<Option<(u64, u64)>>| {
        for (entry, inode) in nodes.into_iter().enumerate() {
            if let Some(inode) = inode {
                inodes.entry(inode).or_default().push(FileId { source: sources.len() - 1, entry });
            }
        }
    };
    let mut fetched = brought.iter();
    for text in &op.sources {
        match text {
            CopySource::Inline { name, content } => sources.push(maker.inline(name, content)),
            CopySource::Remote(remote) => {
                // Proof: the one who selects for a step that fetches passes one for each; nobody else has such sources.
                let brought = fetched.next().expect("each source that is fetched was brought");
                let (made, nodes) = maker.remote(source, remote, brought)?;
                sources.push(made);
                note(&sources, nodes);
            }
            CopySource::Path(text) if op.parents => {
                for (made, nodes) in maker.with_parents(source, text)? {
                    sources.push(made);
                    note(&sources, nodes);
                }
            }
            CopySource::Path(text) => {
                for hit in hits(source, text)? {
                    if let Some((made, nodes)) = maker.hit(source, text, hit)? {
                        sources.push(made);
                        note(&sources, nodes);
                    }
                }
            }
        }
    }
    let shared = inodes.into_values().filter(|names| names.len() > 1);
    let mut shared: Vec<Vec<FileId>> = shared.collect();
    shared.sort_unstable();
    for (number, names) in shared.into_iter().enumerate() {
        for name in names {
            sources[name.source].entries[name.entry].inode = Some(number);
        }
    }
    Ok(Selection { sources })
}

/// Makes sources of what was found, by the flags of the operation.
struct Maker<'a> {
    op: &'a CopyOp,
    exclude: Option<Patterns>,
}

/// A source, and what each entry shares with other names of the same file.
type Made = (Source, Vec<Option<(u64, u64)>>);

impl Maker<'_> {
    fn selected(&self, node: Node, path: Vec<u8>) -> Selected {
        let is_directory = node.is_directory();
        let mode = match &self.op.chmod {
            Some(chmod) if !matches!(node.kind, NodeKind::Symlink(_)) => mode::apply(chmod, node.mode, is_directory),
            _ => node.mode,
        };
        let owner = if self.op.chown.is_some() { None } else { node.owner };
        Selected {
            path,
            kind: node.kind,
            mode,
            owner,
            mtime: Some(node.mtime),
            capability: node.capability,
            inode: None,
            data: node.data,
        }
    }

    fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.as_ref().is_some_and(|patterns| patterns.matches(path))
    }

    fn inline(&self, name: &str, content: &str) -> Source {
        let node = Node {
            path: Vec::new(),
            kind: NodeKind::File { size: content.len() as u64, sha256: Some(Digest::of(content.as_bytes())) },
            mode: 0o644,
            owner: None,
            mtime: 0,
            capability: None,
            inode: None,
            data: FileData::Inline(Arc::from(content.as_bytes())),
        };
        Source {
            text: format!("<<{name}"),
            shape: Shape::Leaf { name: file_name(name.as_bytes()).to_vec() },
            entries: vec![Selected { mtime: None, ..self.selected(node, Vec::new()) }],
        }
    }

    /// What a fetched source brings.
    fn remote(&self, view: &SourceView<'_>, remote: &RemoteSource, brought: &Brought) -> Result<Made, CopyError> {
        let text = without_password(&remote.text);
        let (name, unpack) = match &remote.kind {
            RemoteKind::File { name, unpack, .. } => (name.as_str(), *unpack),
            RemoteKind::Git(_) => ("", false),
        };
        Ok(match brought {
            Brought::Named(id) => (Source { text, shape: Shape::Named(*id), entries: Vec::new() }, Vec::new()),
            Brought::Tree(checkout) => self.tree(&text, false, checkout.nodes.iter().cloned(), b""),
            Brought::File { path, size, sha256, mtime } => {
                let node = remote::file(path, *size, *sha256, *mtime);
                let shape = if unpack && archive::is_archive(view, &node.data)? {
                    Shape::Archive { listing: None }
                } else {
                    Shape::Leaf { name: name.as_bytes().to_vec() }
                };
                (Source { text, shape, entries: vec![self.selected(node, Vec::new())] }, vec![None])
            }
        })
    }

    /// What a match brings; nothing if it is excluded.
    fn hit(&self, view: &SourceView<'_>, text: &str, hit: Hit) -> Result<Option<Made>, CopyError> {
        let Hit { name, node } = hit;
        if node.is_directory() {
            let nodes = view.subtree(&node.path)?;
            return Ok(Some(self.tree(text, false, nodes, &node.path)));
        }
        if self.excludes(&name) {
            return Ok(None);
        }
        let text = if is_pattern(text) { lossy(&node.path) } else { text.to_owned() };
        let (inode, is_archive) = (node.inode, self.op.unpack && archive::is_archive(view, &node.data)?);
        let shape = if is_archive { Shape::Archive { listing: None } } else { Shape::Leaf { name } };
        let source = Source { text, shape, entries: vec![self.selected(node, Vec::new())] };
        Ok(Some((source, vec![inode])))
    }

    /// The source that `nodes` below `top` make: without what is excluded, but with the directories above what stays.
    fn tree(&self, text: &str, keep_existing: bool, nodes: impl Iterator<Item = Node>, top: &[u8]) -> Made {
        let (few, many) = nodes.size_hint();
        let mut entries: Vec<Selected> = Vec::with_capacity(many.unwrap_or(few));
        let mut inodes = Vec::with_capacity(many.unwrap_or(few));
        // Directories that are excluded, or with `--parents` not matched: they come only with what is in them.
        let mut waiting: Vec<Node> = Vec::new();
        for mut node in nodes {
            if self.exclude.is_none() {
                let path =
                    if top.is_empty() { std::mem::take(&mut node.path) } else { relative(&node.path, top).to_vec() };
                inodes.push(node.inode);
                entries.push(self.selected(node, path));
                continue;
            }
            let path = relative(&node.path, top).to_vec();
            waiting.retain(|dir| crate::layer::entry::is_below(&path, relative(&dir.path, top)));
            if self.excludes(&path) {
                if node.is_directory() {
                    waiting.push(node);
                }
                continue;
            }
            for dir in waiting.drain(..) {
                let path = relative(&dir.path, top).to_vec();
                inodes.push(None);
                entries.push(self.selected(dir, path));
            }
            inodes.push(node.inode);
            entries.push(self.selected(node, path));
        }
        (Source { text: text.to_owned(), shape: Shape::Tree { keep_existing }, entries }, inodes)
    }

    /// `--parents`: what `text` names keeps the directories above it, from the pivot `/./` on.
    fn with_parents(&self, view: &SourceView<'_>, text: &str) -> Result<Vec<Made>, CopyError> {
        let (base, pattern) = text.split_once("/./").map_or(("", text), |(base, pattern)| (base, pattern));
        let pattern = clean(&format!("/{pattern}"));
        let pattern = &pattern[1..];
        let literal = !is_pattern(pattern);
        let glob = Glob::ignore(pattern).map_err(|why| CopyError::BadWildcard { source_text: text.to_owned(), why })?;
        let mut made = Vec::new();
        let bases = hits(view, base).map_err(|error| match error {
            CopyError::NotFound { place, reason, near, .. } => {
                CopyError::NotFound { source_text: text.to_owned(), place, reason, near }
            }
            other => other,
        })?;
        for Hit { node: base, .. } in bases {
            if !base.is_directory() {
                continue;
            }
            let nodes = if pattern.is_empty() {
                // BuildKit copies nothing for `.`, and so does everybody who compares with it.
                Vec::new()
            } else {
                matches(view, &base.path, pattern, literal, &glob)?
            };
            if literal && nodes.is_empty() && !pattern.is_empty() {
                return Err(view.not_found(text, &join(&base.path, pattern.as_bytes())));
            }
            made.push(self.tree(text, true, nodes.into_iter(), &base.path));
        }
        Ok(made)
    }
}

/// All below `base` that `pattern` matches or that lies in a matching directory, with the directories above it.
fn matches(
    view: &SourceView<'_>,
    base: &[u8],
    pattern: &str,
    literal: bool,
    glob: &Glob,
) -> Result<Vec<Node>, CopyError> {
    // The directories before the first wildcard need no walk.
    let parts: Vec<&str> = pattern.split('/').collect();
    let fixed = if literal { parts.len() } else { parts.iter().position(|part| is_pattern(part)).unwrap_or(0) };
    let mut above = Vec::new();
    let mut dir = base.to_vec();
    for part in &parts[..fixed] {
        dir = join(&dir, part.as_bytes());
        match view.lookup(&dir)? {
            Some(node) => above.push(node),
            None => return Ok(Vec::new()),
        }
    }
    let walked: Box<dyn Iterator<Item = Node>> = match above.last() {
        Some(last) if !last.is_directory() => Box::new(std::iter::empty()),
        _ => view.subtree(&dir)?,
    };
    if literal {
        above.extend(walked);
        return Ok(above);
    }
    let (mut nodes, mut found) = (Vec::new(), false);
    // Directories above the current node that are not in yet, and the matching directory that it lies in.
    let mut waiting: Vec<Node> = above;
    let mut inside: Option<Vec<u8>> = None;
    for node in walked {
        let is_inside = inside.as_ref().is_some_and(|dir| crate::layer::entry::is_below(&node.path, dir));
        waiting.retain(|dir| crate::layer::entry::is_below(&node.path, &dir.path));
        if is_inside || glob.matches(relative(&node.path, base)) {
            if !is_inside && node.is_directory() {
                inside = Some(node.path.clone());
            }
            found = true;
            nodes.append(&mut waiting);
            nodes.push(node);
        } else if node.is_directory() {
            waiting.push(node);
        }
    }
    Ok(if found { nodes } else { Vec::new() })
}

impl Selection {
    /// All files, each with its number.
    fn files(&self) -> impl Iterator<Item = (FileId, &Selected, u64, Option<Digest>)> {
        self.sources.iter().enumerate().flat_map(|(source, made)| {
            made.entries.iter().enumerate().filter_map(move |(entry, selected)| match selected.kind {
                NodeKind::File { size, sha256 } => Some((FileId { source, entry }, selected, size, sha256)),
                _ => None,
            })
        })
    }

    /// Whether there is nothing to copy: patterns without a match.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// How many bytes the files have.
    pub fn total_bytes(&self) -> u64 {
        self.files().map(|(_, _, size, _)| size).sum()
    }

    /// How many of them nobody has read yet: what [`Self::digest`] still costs.
    pub fn unknown_bytes(&self) -> u64 {
        self.files().filter(|(_, _, _, sha256)| sha256.is_none()).map(|(_, _, size, _)| size).sum()
    }

    /// Whether all digests are known, so that [`Self::digest`] has an answer.
    pub fn is_hashed(&self) -> bool {
        self.files().all(|(_, _, _, sha256)| sha256.is_some())
    }

    /// Paths and digests of the files from a build context, for an explanation of what changed.
    pub fn listing(&self) -> impl Iterator<Item = (String, Option<Digest>)> {
        self.files().map(|(id, selected, _, sha256)| {
            let path = match &selected.data {
                FileData::Context(file) => lossy(&file.path),
                _ => lossy(&join(self.sources[id.source].text.as_bytes(), &selected.path)),
            };
            (path, sha256)
        })
    }

    /// Reads the files whose digests are not known, on all processors.
    pub fn hash_missing(&mut self, source: &SourceView<'_>) -> Result<(), CopyError> {
        let SourceView::Context(context) = source else { return Ok(()) };
        let (mut ids, mut files) = (Vec::new(), Vec::<&ContextEntry>::new());
        let mut same: HashMap<(u64, u64), usize> = HashMap::new();
        for (id, selected, _, sha256) in self.files() {
            let (None, FileData::Context(file)) = (sha256, &selected.data) else { continue };
            let number = *same.entry((file.stamp.dev, file.stamp.ino)).or_insert(files.len());
            ids.push((id, number));
            if number == files.len() {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Ok(());
        }
        let digests = context.hash(&files)?;
        for (id, number) in ids {
            self.set(id, digests[number]);
        }
        Ok(())
    }

    fn set(&mut self, id: FileId, digest: Digest) {
        if let NodeKind::File { sha256, .. } = &mut self.sources[id.source].entries[id.entry].kind {
            *sha256 = Some(digest);
        }
    }

    /// Takes over the digests of files that were read while the layer was written, and has the context remember them.
    /// An error if a file was not what its digest said (the key that was looked up is not that of what was written), or
    /// changed while it was read.
    pub fn learn(&mut self, landing: &Landing, source: &SourceView<'_>) -> Result<(), CopyError> {
        for landed in landing.entries.iter().filter(|landed| landed.is_hashed()) {
            let (Some(id), Kind::File { sha256, .. }) = (landed.file, &landed.entry.kind) else { continue };
            let selected = &self.sources[id.source].entries[id.entry];
            let NodeKind::File { sha256: known, .. } = selected.kind else { continue };
            if known.is_some_and(|known| known != *sha256) {
                return Err(CopyError::Changed { path: lossy(&landed.entry.path) });
            }
            if let (SourceView::Context(context), FileData::Context(file), None) = (source, &selected.data, known) {
                // Whoever read it looked at the stamp once more afterwards.
                context.remember(file.stamp, Facts { sha256: *sha256, capability: file.capability });
            }
            let names: Vec<FileId> = match selected.inode {
                Some(inode) => {
                    self.files().filter(|(_, other, ..)| other.inode == Some(inode)).map(|(id, ..)| id).collect()
                }
                None => vec![id],
            };
            for name in names {
                self.set(name, *sha256);
            }
        }
        Ok(())
    }

    /// Whether there are archives that have not been unpacked.
    pub fn has_packed_archives(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.shape, Shape::Archive { listing: None }))
    }

    /// Unpacks what ADD has to unpack into `spool`. Must come before [`super::land()`]; the quick key does not need it.
    pub fn unpack(&mut self, source: &SourceView<'_>, spool: &mut Spool) -> Result<(), CopyError> {
        for made in &mut self.sources {
            if let (Shape::Archive { listing: listing @ None }, [file]) = (&mut made.shape, made.entries.as_slice()) {
                *listing = Some(Arc::new(archive::unpack(source, &made.text, &file.data, spool)?));
            }
        }
        Ok(())
    }
}
