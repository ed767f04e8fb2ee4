//! Where what COPY copies lands, and what the layer then holds.
//!
//! In: the operation, a [`Selection`] and the layers below. Out: a [`Landing`]: the entries of the layer, and a digest of
//! all that was asked of the layers below. What always holds: links on the way to the destination lead inside the root; a
//! directory is never replaced by something else, nor the reverse, but by an archive; a directory that was there keeps
//! what it is where the destination names it, and takes over the source's metadata inside of what is copied.

use std::collections::HashSet;

use super::archive::{Listing, Packed, PackedKind};
use super::select::{Selected, Selection, Shape, Source};
use super::source::{NodeKind, resolve};
use super::target::{At, Slot, Target};
use super::{CopyError, FileData, FileId, LandedEntry, lossy, mode};
use crate::context::glob::clean;
use crate::digest::{Digest, Hasher};
use crate::image::accounts::{self, Owner};
use crate::layer::entry::{Entry, Kind, is_below, join, parent};
use crate::layer::entry_ref::KindRef;
use crate::layer::stack::LayerStack;
use crate::plan::step::{Chown, CopyOp};

/// The layer that a COPY, ADD or WORKDIR makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    /// Sorted, each directory before what is in it, directories above included.
    pub entries: Vec<LandedEntry>,
    digest: Digest,
}

impl Landing {
    pub(super) fn new(target: Target<'_>, mut findings: Findings) -> Self {
        let entries = target.finish();
        entries.iter().filter(|landed| landed.is_below).for_each(|landed| findings.header(&landed.entry));
        Self { entries, digest: findings.digest() }
    }

    /// The digest of what the destination was found to be: resolved paths, what is there and above, looked-up owners.
    /// Two stacks with the same landing get the same layer from the same operation and source.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Gives what has no time of its own `now`, in seconds since 1970.
    pub fn date_new(&mut self, now: i64) {
        self.entries.iter_mut().filter(|landed| landed.is_new).for_each(|landed| landed.entry.mtime = now);
    }
}

/// What was asked of the layers below, in order.
pub(super) struct Findings(Hasher);

impl Findings {
    pub(super) fn new(owner: Owner) -> Self {
        let mut hasher = Hasher::new();
        hasher.field(b"rbuild landing 1");
        hasher.update(&owner.uid.to_le_bytes());
        hasher.update(&owner.gid.to_le_bytes());
        Self(hasher)
    }

    fn path(&mut self, path: &[u8]) {
        self.0.field(path);
    }

    fn at(&mut self, at: &At) {
        let code = match at {
            At::Absent => 0,
            At::Directory => 1,
            At::Link(_) => 2,
            At::Other(_) => 3,
        };
        self.0.update(&[code]);
    }

    /// `path`, what is there, and what is at each directory above it, with mode and owner.
    pub(super) fn destination(&mut self, target: &Target<'_>, path: &[u8]) {
        let mut above: Vec<&[u8]> = std::iter::successors(Some(path), |path| parent(path)).collect();
        above.retain(|path| !path.is_empty());
        self.0.update(&(above.len() as u64).to_le_bytes());
        while let Some(path) = above.pop() {
            self.path(path);
            self.at(&target.at(path));
            if let Some(found) = target.below.lookup_ref(path) {
                self.0.update(&found.entry.mode.to_le_bytes());
                self.0.update(&found.entry.uid.to_le_bytes());
                self.0.update(&found.entry.gid.to_le_bytes());
            }
        }
    }

    /// A header of the layers below that the new layer repeats, or a whiteout for what they hold.
    fn header(&mut self, entry: &Entry) {
        self.path(&entry.path);
        self.0.update(&[u8::from(entry.kind == Kind::Directory)]);
        for number in [entry.mode, entry.uid, entry.gid] {
            self.0.update(&number.to_le_bytes());
        }
    }

    /// A file of the layers below that the new layer repeats.
    fn file(&mut self, path: &[u8], sha256: &Digest, slot: &Slot) {
        self.path(path);
        self.0.update(sha256.as_bytes());
        for number in [slot.mode, slot.uid, slot.gid] {
            self.0.update(&number.to_le_bytes());
        }
        self.0.field(slot.capability.as_deref().unwrap_or_default());
    }

    pub(super) fn digest(self) -> Digest {
        self.0.finish()
    }
}

/// Lands `selection` on the layers `below`. Archives must have been unpacked.
pub fn land(op: &CopyOp, selection: &Selection, below: &LayerStack) -> Result<Landing, CopyError> {
    let owner = op.chown.as_ref().map(|chown| owner(chown, below)).transpose()?;
    let mut lander = Lander {
        op,
        owner,
        // BuildKit drops --link where --chmod is given, too.
        link: op.link && op.chmod.is_none(),
        target: Target::new(below, selection.sources.iter().map(|source| source.entries.len()).sum()),
        findings: Findings::new(owner.unwrap_or_default()),
        inodes: 0,
    };
    let shared = selection.sources.iter().flat_map(|source| &source.entries).filter_map(|entry| entry.inode);
    lander.inodes = shared.max().map_or(0, |last| last + 1);
    if !selection.is_empty() {
        lander.land_all(selection)?;
    }
    Ok(Landing::new(lander.target, lander.findings))
}

/// The ids that `--chown` means on the layers `below`.
fn owner(chown: &Chown, below: &LayerStack) -> Result<Owner, CopyError> {
    let passwd = account_file(below, b"etc/passwd")?;
    let group = account_file(below, b"etc/group")?;
    accounts::owner(&chown.user, chown.group.as_deref(), passwd, group).map_err(|why| CopyError::Chown {
        value: match &chown.group {
            Some(group) => format!("{}:{group}", chown.user),
            None => chown.user.clone(),
        },
        why,
    })
}

/// The bytes of passwd or group, through links.
pub(super) fn account_file<'a>(below: &'a LayerStack, path: &[u8]) -> Result<Option<&'a [u8]>, CopyError> {
    let real = below.resolve(path, true).map_err(|_| CopyError::TooManyLinks { path: lossy(path) })?;
    Ok(below.file_bytes(&real))
}

/// The real path of `path` with all its links followed.
pub(super) fn resolve_in(target: &Target<'_>, path: &[u8]) -> Result<Vec<u8>, CopyError> {
    resolve(path, |path| {
        Ok(match target.at(path) {
            At::Link(text) => Some(text),
            _ => None,
        })
    })
}

/// Makes `path` and what is missing above it: directories with this mode and owner. `through_links`: a link in the way
/// is replaced.
pub(super) fn make_directories(
    target: &mut Target<'_>,
    path: &[u8],
    mode: u32,
    owner: Owner,
    through_links: bool,
) -> Result<(), CopyError> {
    let mut above: Vec<&[u8]> = std::iter::successors(Some(path), |path| parent(path)).collect();
    while let Some(dir) = above.pop() {
        match target.at(dir) {
            At::Directory => continue,
            At::Absent => {}
            At::Link(_) if through_links => {}
            other => {
                return Err(CopyError::NotADirectory { path: lossy(path), at: lossy(dir), what: other.name() });
            }
        }
        target.land(dir.to_vec(), Slot::directory(mode, owner))?;
    }
    Ok(())
}

struct Lander<'a> {
    op: &'a CopyOp,
    owner: Option<Owner>,
    /// Links at the destination are replaced, not followed.
    link: bool,
    target: Target<'a>,
    findings: Findings,
    /// Number of the next file that may have several names.
    inodes: usize,
}

impl Lander<'_> {
    fn land_all(&mut self, selection: &Selection) -> Result<(), CopyError> {
        let written = &self.op.destination;
        let cleaned = clean(&format!("/{written}"));
        let last = written.rsplit('/').next().unwrap_or_default();
        let says_directory = matches!(last, "" | "." | "..");
        let cleaned = &cleaned.as_bytes()[1..];
        let destination = if self.link { cleaned.to_vec() } else { resolve_in(&self.target, cleaned)? };
        self.findings.path(cleaned);
        self.findings.path(&destination);
        self.findings.destination(&self.target, &destination);
        for (number, source) in selection.sources.iter().enumerate() {
            match &source.shape {
                Shape::Tree { keep_existing } => self.tree(source, number, *keep_existing, &destination)?,
                Shape::Leaf { name } => {
                    let into = says_directory || self.target.at(&destination) == At::Directory;
                    if !into && selection.sources.len() > 1 {
                        let count = selection.sources.len();
                        return Err(CopyError::NeedsDirectory { destination: written.clone(), count });
                    }
                    self.leaf(source, number, &destination, into.then_some(name))?;
                }
                // What lands has been fetched.
                Shape::Named(_) => {}
                Shape::Archive { listing } => {
                    let why = || "it has not been read yet".to_owned();
                    let listing = listing
                        .as_ref()
                        .ok_or_else(|| CopyError::Archive { archive: source.text.clone(), why: why() })?;
                    self.archive(&source.text, listing, &destination)?;
                }
            }
        }
        Ok(())
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<(), CopyError> {
        let mode = mode::of_new_directory(self.op.chmod.as_ref());
        make_directories(&mut self.target, path, mode, self.owner.unwrap_or_default(), self.link)
    }

    fn slot(&self, selected: &Selected, file: FileId) -> Slot {
        let fixed = selected.owner.map(|(uid, gid)| Owner { uid, gid });
        let Owner { uid, gid } = self.owner.or(fixed).unwrap_or_default();
        Slot {
            kind: selected.kind.clone(),
            mode: selected.mode,
            uid,
            gid,
            mtime: selected.mtime,
            capability: selected.capability.clone(),
            data: selected.data.clone(),
            file: Some(file),
            inode: selected.inode,
            hides: false,
        }
    }

    /// The contents of a directory.
    fn tree(
        &mut self,
        source: &Source,
        number: usize,
        keep_existing: bool,
        destination: &[u8],
    ) -> Result<(), CopyError> {
        self.make_directories(destination)?;
        // A directory that was not there: nothing in it has to be looked up.
        let mut absent: Option<Vec<u8>> = None;
        for (index, selected) in source.entries.iter().enumerate() {
            let path = join(destination, &selected.path);
            let at = match &absent {
                Some(dir) if is_below(&path, dir) => At::Absent,
                _ => self.target.at(&path),
            };
            let is_directory = selected.kind == NodeKind::Directory;
            if is_directory {
                self.findings.at(&at);
                if at == At::Absent && !absent.as_ref().is_some_and(|dir| is_below(&path, dir)) {
                    absent = Some(path.clone());
                }
            }
            let from = || lossy(&join(source.text.trim_end_matches('/').as_bytes(), &selected.path));
            match (&at, is_directory) {
                (At::Directory, true) if keep_existing => continue,
                (At::Absent | At::Directory, true) | (At::Absent | At::Link(_) | At::Other(_), false) => {}
                (At::Link(_), true) if self.link => {}
                (At::Link(_) | At::Other(_), true) => {
                    return Err(CopyError::DirectoryOntoOther { from: from(), path: lossy(&path), what: at.name() });
                }
                (At::Directory, false) => {
                    return Err(CopyError::OtherOntoDirectory { from: from(), path: lossy(&path) });
                }
            }
            let slot = self.slot(selected, FileId { source: number, entry: index });
            self.target.land(path, slot)?;
        }
        Ok(())
    }

    /// Anything but a directory: to `destination`, or under `name` into it.
    fn leaf(
        &mut self,
        source: &Source,
        number: usize,
        destination: &[u8],
        name: Option<&Vec<u8>>,
    ) -> Result<(), CopyError> {
        let path = if let Some(name) = name {
            self.make_directories(destination)?;
            join(destination, name)
        } else {
            if let Some(dir) = parent(destination) {
                self.make_directories(dir)?;
            }
            destination.to_vec()
        };
        let at = self.target.at(&path);
        self.findings.at(&at);
        if at == At::Directory {
            return Err(CopyError::OtherOntoDirectory { from: source.text.clone(), path: lossy(&path) });
        }
        for (index, selected) in source.entries.iter().enumerate() {
            let slot = self.slot(selected, FileId { source: number, entry: index });
            self.target.land(path.clone(), slot)?;
        }
        Ok(())
    }

    /// The entries of an archive, in its order: each replaces what is there, but for a directory on a directory.
    fn archive(&mut self, archive: &str, listing: &Listing, destination: &[u8]) -> Result<(), CopyError> {
        // As in BuildKit, --chmod is not for what an archive brings.
        make_directories(&mut self.target, destination, 0o755, self.owner.unwrap_or_default(), self.link)?;
        let fail = |why: String| CopyError::Archive { archive: archive.to_owned(), why };
        let mut brought: HashSet<Vec<u8>> = HashSet::new();
        for packed in &listing.entries {
            let path = self.place(packed, destination, &brought).map_err(|error| match error {
                Escape::Error(error) => error,
                Escape::Link(link) => fail(format!(
                    "{:?} leads out of the directory that it is unpacked into, through its own link {:?}",
                    lossy(&packed.path),
                    lossy(&link)
                )),
            })?;
            let at = self.target.at(&path);
            self.findings.path(&path);
            self.findings.at(&at);
            if path.is_empty() {
                continue; // The root directory is no entry of any layer.
            }
            let Owner { uid, gid } = self.owner.unwrap_or(Owner { uid: packed.uid, gid: packed.gid });
            let (mut data, mut inode) = (FileData::None, None);
            let kind = match &packed.kind {
                PackedKind::File { size, sha256, offset } => {
                    data = FileData::Spool { offset: *offset, size: *size };
                    inode = Some(self.inodes);
                    self.inodes += 1;
                    NodeKind::File { size: *size, sha256: Some(*sha256) }
                }
                PackedKind::HardLink(name) => {
                    let other = resolve_in(&self.target, &join(destination, name))?;
                    if other == path {
                        continue;
                    }
                    let landed = self.target.landed(&other).cloned();
                    let file = match landed.filter(|slot| matches!(slot.kind, NodeKind::File { .. })) {
                        None => self.file_below(&other)?,
                        file => file,
                    };
                    let Some(file) = file else {
                        let (link, name) = (lossy(&packed.path), lossy(name));
                        return Err(fail(format!("{link:?} is a hard link to {name:?}, which is no file before it")));
                    };
                    // Another name of the same file has the same metadata.
                    self.target.land(path, Slot { hides: false, ..file })?;
                    continue;
                }
                PackedKind::Directory => NodeKind::Directory,
                PackedKind::Symlink(text) => {
                    brought.insert(path.clone());
                    NodeKind::Symlink(text.clone())
                }
                PackedKind::CharDevice(major, minor) => NodeKind::CharDevice(*major, *minor),
                PackedKind::BlockDevice(major, minor) => NodeKind::BlockDevice(*major, *minor),
                PackedKind::Fifo => NodeKind::Fifo,
            };
            // Something on a directory takes its place; so does a directory that lands where one was replaced.
            let capability = packed.capability.clone();
            let slot = Slot {
                kind,
                mode: packed.mode,
                uid,
                gid,
                mtime: Some(packed.mtime),
                capability,
                data,
                file: None,
                inode,
                hides: false,
            };
            self.target.land(path, slot)?;
        }
        Ok(())
    }

    /// Lands a file of the layers below where it is, so that it can have another name; `None` where there is no file.
    fn file_below(&mut self, path: &[u8]) -> Result<Option<Slot>, CopyError> {
        // What --link makes knows nothing of what is below.
        if self.link || !matches!(self.target.at(path), At::Other(_)) {
            return Ok(None);
        }
        let Some(found) = self.target.below.lookup_ref(path) else { return Ok(None) };
        let KindRef::File { size, sha256 } = found.entry.kind else { return Ok(None) };
        let slot = Slot {
            kind: NodeKind::File { size, sha256: Some(sha256) },
            mode: found.entry.mode,
            uid: found.entry.uid,
            gid: found.entry.gid,
            mtime: Some(found.entry.mtime),
            capability: found.entry.capability.map(<[u8]>::to_vec),
            data: FileData::Layer { layer: found.layer, position: found.position },
            file: None,
            inode: Some(self.inodes),
            hides: false,
        };
        self.inodes += 1;
        self.findings.file(path, &sha256, &slot);
        self.target.land(path.to_vec(), slot.clone())?;
        Ok(Some(slot))
    }

    /// Where an entry of an archive lands: links above it are followed inside the root, and what is missing there is
    /// made. A link that the archive itself brought (`brought`) must not lead out of the destination.
    fn place(&mut self, packed: &Packed, destination: &[u8], brought: &HashSet<Vec<u8>>) -> Result<Vec<u8>, Escape> {
        let path = join(destination, &packed.path);
        let Some((above, name)) = packed.path.iter().rposition(|byte| *byte == b'/').map(|slash| {
            let (above, name) = packed.path.split_at(slash);
            (above, &name[1..])
        }) else {
            return Ok(path);
        };
        let mut own_link = None;
        let real = resolve(&join(destination, above), |path| {
            Ok(match self.target.at(path) {
                At::Link(text) => {
                    if brought.contains(path) {
                        own_link = Some(path.to_vec());
                    }
                    Some(text)
                }
                _ => None,
            })
        })?;
        if let Some(link) = own_link.filter(|_| real != destination && !is_below(&real, destination)) {
            return Err(Escape::Link(link));
        }
        let missing: Vec<&[u8]> = std::iter::successors(Some(real.as_slice()), |dir| parent(dir)).collect();
        for dir in missing.into_iter().rev().filter(|dir| !dir.is_empty()) {
            let at = self.target.at(dir);
            if at == At::Directory {
                continue;
            }
            self.findings.path(dir);
            self.findings.at(&at);
            self.target.land(dir.to_vec(), Slot::directory(0o755, self.owner.unwrap_or_default()))?;
        }
        Ok(join(&real, name))
    }
}

/// Why an entry of an archive has no place.
enum Escape {
    Error(CopyError),
    Link(Vec<u8>),
}

impl From<CopyError> for Escape {
    fn from(error: CopyError) -> Self {
        Self::Error(error)
    }
}
