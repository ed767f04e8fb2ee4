//! COPY, ADD and WORKDIR: which entries a layer gets.
//!
//! In: an operation, what it copies from and the layers it lands on. Out: first a [`Selection`] (what is copied, nothing
//! of the base needed), then a [`Landing`] (the entries of the layer, with where their bytes are). What always holds:
//! nothing is mounted or unpacked for it; entries come sorted, each directory before what is in it, and with the headers
//! of all directories above them; neither depends on the clock.
//!
//! ```text
//! CopyOp + SourceView ──select──▶ Selection ─────────land──▶ Landing ──▶ LayerWriter
//!                                 │ digest()  ▲ below        │ digest()
//!                                 ▼           │              ▼
//!                                 quick key   LayerStack     landing key
//! ```
//!
//! What the two keys must hold besides the digests: the operation without the texts of its sources (they are no more
//! than a way to the files), for the quick key the StackId too.

mod archive;
mod digest;
mod land;
mod mode;
mod remote;
mod select;
mod source;
mod target;
mod wildcard;
mod workdir;

pub use archive::Spool;
pub use land::{Landing, land};
pub use remote::{Brought, Checkout};
pub use select::{Selection, select, select_brought};
pub use source::SourceView;
pub use workdir::make_dir;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::context::glob::BadGlob;
use crate::context::ignore::PatternError;
use crate::context::local::{ContextError, ContextFile};
use crate::image::accounts::AccountError;
use crate::layer::entry::Entry;

/// One entry of a layer to be written, and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LandedEntry {
    /// Its header. The SHA-256 of a file that nobody has read yet is all zeros: see [`LandedEntry::is_hashed`].
    pub entry: Entry,
    /// Its bytes; [`FileData::None`] unless it is a regular file.
    pub data: FileData,
    /// It has no time of its own (a directory made on the way, a here-document): [`Landing::date_new`] gives it one.
    pub is_new: bool,
    /// The file of the selection that it is a copy of.
    pub(super) file: Option<FileId>,
    /// It says what is there already, or hides it.
    pub(super) is_below: bool,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileData {
    /// It has none.
    None,
    /// In the build context, as it was when it was selected; another stamp means that it changed since.
    Context(ContextFile),
    /// Here.
    Inline(Arc<[u8]>),
    /// In a layer of the stack that is copied from; where a context is, of the stack that is copied to.
    Layer {
        /// Index into its layers.
        layer: usize,
        /// Position in that layer's index.
        position: usize,
    },
    /// A file of this machine, fetched for this build.
    Fetched(std::path::PathBuf),
    /// In the file that archives were unpacked into.
    Spool {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        size: u64,
    },
}

/// A file of a selection: number of the source, number of the entry in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    source: usize,
    entry: usize,
}

/// The digest of a file that has not been read.
const UNREAD: crate::digest::Digest = crate::digest::Digest::from_bytes([0; 32]);

impl LandedEntry {
    /// An entry for a file of the context.
    #[cfg(test)]
    pub(super) fn of_context(entry: Entry, file: ContextFile) -> Self {
        Self { entry, data: FileData::Context(file), is_new: false, file: None, is_below: false }
    }

    /// Whether the SHA-256 in its header is that of its data.
    pub fn is_hashed(&self) -> bool {
        !matches!(self.entry.kind, crate::layer::entry::Kind::File { sha256, .. } if sha256 == UNREAD)
    }
}

/// Why files cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source that must be there is not.
    #[error("\"{source_text}\" not found in {place}{}{}", reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default(), near_names(near))]
    NotFound {
        /// The source as written.
        source_text: String,
        /// Where it was looked for.
        place: String,
        /// What hides it, or where its link leads.
        reason: Option<String>,
        /// Names there that look like it.
        near: Vec<String>,
    },
    /// The context cannot be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A source is no pattern.
    #[error("\"{source_text}\" is no pattern: {why}")]
    BadWildcard {
        /// The source as written.
        source_text: String,
        /// Why.
        why: BadGlob,
    },
    /// An `--exclude` is no pattern.
    #[error(transparent)]
    Exclude(#[from] PatternError),
    /// Links that lead in a circle.
    #[error("{path:?} leads through more than {} symbolic links", crate::layer::stack::LINK_LIMIT)]
    TooManyLinks {
        /// The path.
        path: String,
    },
    /// Several files, one name to put them.
    #[error(
        "{count} sources, and {destination:?} is no directory: with more than one source, the destination must be a \
         directory; end it with a slash (\"{destination}/\")"
    )]
    NeedsDirectory {
        /// As written.
        destination: String,
        /// How many.
        count: usize,
    },
    /// A directory would land on something else.
    #[error("cannot copy directory {from:?} to /{path}: a {what} is there, and a directory replaces nothing else")]
    DirectoryOntoOther {
        /// The source.
        from: String,
        /// Where.
        path: String,
        /// What is there.
        what: &'static str,
    },
    /// Something else would land on a directory.
    #[error("cannot copy {from:?} to /{path}: a directory is there, and only a directory can be copied onto it")]
    OtherOntoDirectory {
        /// The source.
        from: String,
        /// Where.
        path: String,
    },
    /// The destination leads through something that is no directory.
    #[error("cannot make directory /{path}: a {what} is at /{at}")]
    NotADirectory {
        /// What should be made.
        path: String,
        /// What is in the way.
        at: String,
        /// What it is.
        what: &'static str,
    },
    /// `--chown` names somebody whom the image does not know.
    #[error("--chown={value}: {why}; use a numeric id, or create it with RUN before this step")]
    Chown {
        /// As written.
        value: String,
        /// Why.
        why: AccountError,
    },
    /// A name that means something else in a layer.
    #[error("/{path}: names that begin with .wh. cannot be in an image: there they mean that a file was removed")]
    ReservedName {
        /// The path in the image.
        path: String,
    },
    /// An archive that cannot be unpacked.
    #[error("cannot unpack {archive:?}: {why}")]
    Archive {
        /// The source.
        archive: String,
        /// Why.
        why: String,
    },
    /// A file that was read is not the one that was selected.
    #[error("{path:?} changed while it was being copied")]
    Changed {
        /// Where it was going.
        path: String,
    },
}

fn near_names(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!(
            " (did you mean {}?)",
            names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
        ),
    }
}

/// Bytes of a path for a message.
fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
