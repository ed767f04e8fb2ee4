//! What COPY reads from: a build context, or the merged layers of a stage or an image.
//!
//! In: paths. Out: [`Node`]s, the same for both. What always holds: paths are relative to the source's root, links lead
//! inside it, `..` stops there; a socket appears as an empty file, which is what becomes of it.

use std::sync::Arc;

use super::wildcard::is_pattern;
use super::{CopyError, FileData, lossy};
use crate::context::local::{ContextFile, ContextKind, LocalContext, Subtree};
use crate::context::stat_cache::Stamp;
use crate::digest::Digest;
use crate::layer::entry::{is_below, join};
use crate::layer::entry_ref::KindRef;
use crate::layer::stack::{FoundRef, LINK_LIMIT, LayerStack};

/// Where the sources of COPY are.
#[derive(Debug, Clone, Copy)]
pub enum SourceView<'a> {
    /// A build context. Its files belong to 0:0, whoever owns them here.
    Context(&'a LocalContext),
    /// A stage or an image.
    Stack(&'a LayerStack),
}

/// Something at a path of a source.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) path: Vec<u8>,
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    /// Owner and group; `None` in a build context.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mtime: i64,
    pub(super) capability: Option<Vec<u8>>,
    /// What it shares with its other names, if it may have some.
    pub(super) inode: Option<(u64, u64)>,
    pub(super) data: FileData,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeKind {
    File { size: u64, sha256: Option<Digest> },
    Directory,
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl Node {
    pub(super) fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }

    pub(super) fn of_context(file: &ContextFile) -> Self {
        let Stamp { dev, ino, size, mode, .. } = file.stamp;
        let mut data = FileData::None;
        let kind = match &file.kind {
            ContextKind::File => {
                data = FileData::Context(file.clone());
                NodeKind::File { size, sha256: file.sha256 }
            }
            ContextKind::Socket => {
                data = FileData::Inline(Arc::from([]));
                NodeKind::File { size: 0, sha256: Some(Digest::of(b"")) }
            }
            ContextKind::Directory => NodeKind::Directory,
            ContextKind::Symlink(target) => NodeKind::Symlink(target.clone()),
            ContextKind::CharDevice(major, minor) => NodeKind::CharDevice(*major, *minor),
            ContextKind::BlockDevice(major, minor) => NodeKind::BlockDevice(*major, *minor),
            ContextKind::Fifo => NodeKind::Fifo,
        };
        let shared = file.links > 1 && matches!(data, FileData::Context(_));
        Self {
            path: file.path.clone(),
            mode: if matches!(kind, NodeKind::Symlink(_)) { 0o777 } else { mode & 0o7777 },
            kind,
            owner: None,
            mtime: file.stamp.mtime_seconds(),
            capability: file.capability.map(|value| value.to_vec()),
            inode: shared.then_some((dev, ino)),
            data,
        }
    }

    fn of_layer(path: Vec<u8>, found: &FoundRef<'_>) -> Self {
        let entry = &found.entry;
        let (mut data, mut inode) = (FileData::None, None);
        let kind = match entry.kind {
            KindRef::File { size, sha256 } => {
                data = FileData::Layer { layer: found.layer, position: found.position };
                inode = Some((found.layer as u64, found.position as u64));
                NodeKind::File { size, sha256: Some(sha256) }
            }
            KindRef::Symlink { target } => NodeKind::Symlink(target.to_vec()),
            KindRef::CharDevice { major, minor } => NodeKind::CharDevice(major, minor),
            KindRef::BlockDevice { major, minor } => NodeKind::BlockDevice(major, minor),
            KindRef::Fifo => NodeKind::Fifo,
            // The stack shows hard links as files, and nothing that is hidden.
            KindRef::Directory | KindRef::HardLink { .. } | KindRef::Whiteout | KindRef::Opaque => NodeKind::Directory,
        };
        Self {
            path,
            kind,
            mode: entry.mode,
            owner: Some((entry.uid, entry.gid)),
            mtime: entry.mtime,
            capability: entry.capability.map(<[u8]>::to_vec),
            inode,
            data,
        }
    }
}

impl SourceView<'_> {
    /// What messages call it.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Context(context) => format!("the build context {}", context.root().display()),
            Self::Stack(_) => "the files of the stage or image that --from names".to_owned(),
        }
    }

    /// What is at `path`, which has no links in its parents.
    pub(super) fn lookup(&self, path: &[u8]) -> Result<Option<Node>, CopyError> {
        match self {
            Self::Context(context) => {
                Ok(context.lookup(path)?.map(|entry| Node::of_context(&Subtree::of(vec![entry]).file(0))))
            }
            Self::Stack(stack) => Ok(stack.lookup_ref(path).map(|found| Node::of_layer(path.to_vec(), &found))),
        }
    }

    /// What is in the directory `dir`, sorted by name.
    pub(super) fn children(&self, dir: &[u8]) -> Result<Vec<Node>, CopyError> {
        match self {
            Self::Context(context) => Ok(context_nodes(Subtree::of(context.read_dir(dir)?)).collect()),
            Self::Stack(stack) => Ok(stack_children(stack, dir)),
        }
    }

    /// All that is below the directory `dir`, sorted component-wise.
    pub(super) fn subtree<'b>(&'b self, dir: &[u8]) -> Result<Box<dyn Iterator<Item = Node> + 'b>, CopyError> {
        match self {
            Self::Context(context) => Ok(Box::new(context_nodes(context.walk(dir)?))),
            Self::Stack(stack) => {
                // Directories that are open: what is left of their children.
                let mut open = vec![stack_children(stack, dir).into_iter()];
                Ok(Box::new(std::iter::from_fn(move || {
                    while let Some(children) = open.last_mut() {
                        if let Some(node) = children.next() {
                            if node.is_directory() {
                                open.push(stack_children(stack, &node.path).into_iter());
                            }
                            return Some(node);
                        }
                        open.pop();
                    }
                    None
                })))
            }
        }
    }

    /// The real path of `path`: all links followed, the last one too.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, CopyError> {
        resolve(path, |path| {
            Ok(match self.lookup(path)?.map(|node| node.kind) {
                Some(NodeKind::Symlink(target)) => Some(target),
                _ => None,
            })
        })
    }

    /// The error for a source that leads to `path`, where nothing is.
    pub(super) fn not_found(&self, source_text: &str, path: &[u8]) -> CopyError {
        let mut reason = None;
        if let Self::Context(context) = self {
            let mut upwards = std::iter::successors(Some(path), |path| crate::layer::entry::parent(path));
            let hidden = upwards.find_map(|path| Some((path, context.hidden_by(path)?)));
            reason = hidden.map(|(hidden, pattern)| {
                let file = &context.patterns().file;
                let what = if hidden == path { "it is".to_owned() } else { format!("{:?} is", lossy(hidden)) };
                format!("{what} excluded by line {} of {file}: {:?}", pattern.line, pattern.text)
            });
        }
        let written = crate::context::glob::clean(&format!("/{source_text}"));
        if reason.is_none() && written.as_bytes()[1..] != *path {
            let links = if is_pattern(source_text) { "" } else { "its links lead to " };
            reason = Some(format!("{links}/{}, where nothing is", lossy(path)));
        }
        let reason = self.obstacle(path).or(reason);
        let near = if reason.is_none() { self.near(path) } else { Vec::new() };
        CopyError::NotFound { source_text: source_text.to_owned(), place: self.place(), reason, near }
    }

    /// What ends the way to `path` before its last name: something that is there and no directory.
    fn obstacle(&self, path: &[u8]) -> Option<String> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        let mut nodes = ends.map_while(|end| self.lookup(&path[..end]).ok().flatten());
        let node = nodes.find(|node| !node.is_directory())?;
        let shown = lossy(&node.path);
        Some(match node.kind {
            NodeKind::Symlink(_) => format!("/{shown} is a link, which --parents does not follow"),
            _ => format!("/{shown} is no directory"),
        })
    }

    /// Names beside the first component of `path` that is not there, and much like it.
    fn near(&self, path: &[u8]) -> Vec<String> {
        let (mut dir, mut rest) = (Vec::new(), path.split(|byte| *byte == b'/').peekable());
        while let Some(name) = rest.next() {
            let next = join(&dir, name);
            if rest.peek().is_some() && self.lookup(&next).ok().flatten().is_some_and(|node| node.is_directory()) {
                dir = next;
                continue;
            }
            // It is for a message about another error, so an error here is no more than one hint less.
            let names: Vec<String> = self
                .children(&dir)
                .unwrap_or_default()
                .iter()
                .map(|node| lossy(crate::layer::entry::file_name(&node.path)))
                .collect();
            let near = crate::diagnostic::nearest(&lossy(name), names.iter().map(String::as_str));
            let near = near.filter(|near| near.as_bytes() != name);
            let rest: Vec<String> = rest.map(lossy).collect();
            return near
                .map(|near| {
                    let parts = (!dir.is_empty()).then(|| lossy(&dir)).into_iter().chain([near.to_owned()]).chain(rest);
                    parts.collect::<Vec<_>>().join("/")
                })
                .into_iter()
                .collect();
        }
        Vec::new()
    }
}

fn context_nodes(walk: Subtree) -> impl Iterator<Item = Node> {
    (0..walk.len()).map(move |number| Node::of_context(&walk.file(number)))
}

fn stack_children(stack: &LayerStack, dir: &[u8]) -> Vec<Node> {
    let children = stack.read_dir_ref(dir);
    children.iter().map(|(name, found)| Node::of_layer(join(dir, name), found)).collect()
}

/// `path` seen from the directory `dir` that it lies in.
pub(super) fn relative<'a>(path: &'a [u8], dir: &[u8]) -> &'a [u8] {
    debug_assert!(is_below(path, dir));
    if dir.is_empty() { path } else { path.get(dir.len() + 1..).unwrap_or_default() }
}

/// The real path of `path`, where `link` gives the text of the link at a path without links in its parents. Components
/// that do not exist stay; `..` stops at the root.
pub(super) fn resolve(
    path: &[u8],
    mut link: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, CopyError>,
) -> Result<Vec<u8>, CopyError> {
    let mut real: Vec<u8> = Vec::with_capacity(path.len());
    let mut rest: Vec<Vec<u8>> = Vec::new();
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        let names = path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty() && *name != b".");
        names.map(<[u8]>::to_vec).collect()
    };
    rest.extend(components(path));
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            real.truncate(real.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            continue;
        }
        let parent = real.len();
        if parent != 0 {
            real.push(b'/');
        }
        real.extend_from_slice(&name);
        let Some(target) = link(&real)? else { continue };
        links += 1;
        if links > LINK_LIMIT {
            return Err(CopyError::TooManyLinks { path: lossy(path) });
        }
        real.truncate(if target.starts_with(b"/") { 0 } else { parent });
        rest.extend(components(&target));
    }
    Ok(real)
}
