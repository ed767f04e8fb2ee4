//! The list of files that a cache has beside a layer.
//!
//! In: a claim. Out: what COPY and USER ask of the layer. What always holds: it is used only when its entries give the content
//! that was claimed, whoever sent it; it gives no way to the data of files, and its times are claimed.

use std::io::Read as _;

use super::artifact::{MAX_INDEX, MAX_PACKED_INDEX};
use super::{Claim, Place, SharedError};
use crate::digest::{DiffId, Digest};
use crate::layer::compress;
use crate::layer::entry_ref::KindRef;
use crate::layer::index::{IndexBuilder, KEPT_LIMIT, KEPT_PATHS, LayerIndex, Origin};

/// Fetches it; `None` where the claim has none.
pub(super) fn fetch(claim: &Claim, place: &Place<'_>) -> Result<Option<LayerIndex>, SharedError> {
    let Some(descriptor) = &claim.index else { return Ok(None) };
    let packed = place.read(descriptor, MAX_PACKED_INDEX)?;
    let wrong = |why: String| SharedError::Wrong(format!("the index of the layer {}: {why}", claim.result.layer));
    let mut bytes = Vec::new();
    let unpacked = compress::decompress(Box::new(packed.as_slice()))
        .and_then(|reader| reader.take(MAX_INDEX + 1).read_to_end(&mut bytes));
    unpacked.map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX_INDEX {
        return Err(wrong(format!("it has more than {MAX_INDEX} bytes")));
    }
    let index = LayerIndex::from_bytes(bytes).map_err(|error| wrong(error.to_string()))?;
    let index = retaken(&index).map_err(wrong)?;
    let (found, claimed) = (index.content(), claim.result.content);
    if found != claimed {
        return Err(wrong(format!("its entries have the content {found}, not {claimed}")));
    }
    Ok(Some(index))
}

/// The same entries, their content computed anew, under a name that no layer has: so nobody takes offsets from it. The kept
/// files are those that the entries say, or it is refused.
fn retaken(index: &LayerIndex) -> Result<LayerIndex, String> {
    if index.root().is_some() || index.is_opaque_root() {
        // The root's header is in no content digest, so it cannot be believed.
        return Err("it has the header of a root directory, which no step's layer has".to_owned());
    }
    let mut builder = IndexBuilder::new();
    for entry in index.entries() {
        builder.push(&entry, 0);
    }
    for path in KEPT_PATHS {
        let entry = index.get_ref(path).map(|entry| entry.kind);
        match (entry, index.file_bytes(path)) {
            (Some(KindRef::File { size, sha256 }), Some(bytes))
                if bytes.len() as u64 == size && Digest::of(bytes) == sha256 =>
            {
                builder.keep(path, bytes);
            }
            (Some(KindRef::File { size, .. }), None) if size > KEPT_LIMIT => {}
            (Some(KindRef::File { .. } | KindRef::HardLink { .. }), _) | (_, Some(_)) => {
                return Err("the accounts that it keeps are not those of its files".to_owned());
            }
            (_, None) => {}
        }
    }
    let name = DiffId(Digest::of(b"an index that a shared cache claims"));
    builder.finish(Origin::Foreign, name, index.tar_size()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry_ref::EntryRef;
    use crate::layer::index::RootMetadata;

    const ACCOUNTS: &[u8] = b"a:x:1:1::/:";

    /// An index with accounts: what etc/passwd is, and what is kept of it.
    fn index(kind: KindRef<'_>, kept: Option<&[u8]>, root: bool) -> LayerIndex {
        let mut builder = IndexBuilder::new();
        if root {
            builder.set_root(RootMetadata::default());
        }
        let mut push = |path: &[u8], kind| {
            builder.push(&EntryRef { path, kind, mode: 0o755, uid: 0, gid: 0, mtime: 7, capability: None }, 512);
        };
        push(b"a", KindRef::File { size: 0, sha256: Digest::of(b"") });
        push(b"etc", KindRef::Directory);
        push(b"etc/passwd", kind);
        if let Some(bytes) = kept {
            builder.keep(b"etc/passwd", bytes);
        }
        builder.finish(Origin::Made { writer: 1 }, DiffId(Digest::of(b"layer")), 4096).unwrap()
    }

    #[test]
    fn an_index_is_believed_as_far_as_its_content_says() {
        let file = KindRef::File { size: ACCOUNTS.len() as u64, sha256: Digest::of(ACCOUNTS) };
        let large = KindRef::File { size: KEPT_LIMIT + 1, sha256: Digest::of(b"large") };
        let good = index(file, Some(ACCOUNTS), false);
        let taken = retaken(&good).unwrap();
        assert_eq!((taken.content(), taken.len()), (good.content(), good.len()));
        assert_eq!(taken.file_bytes(b"etc/passwd"), Some(ACCOUNTS));
        assert!(taken.diff_id() != good.diff_id() && taken.offset(0) == 0, "nobody finds data by it");
        assert_eq!(taken.entry(1).mtime, 7);
        retaken(&index(large, None, false)).unwrap();
        retaken(&index(KindRef::Symlink { target: b"other" }, None, false)).unwrap();
        for (name, kind, kept, root) in [
            ("other accounts", file, Some(&b"b:x:0:0::/:"[..]), false),
            ("no accounts", file, None, false),
            ("accounts of a link", KindRef::Symlink { target: b"other" }, Some(ACCOUNTS), false),
            ("a hard link, which may have accounts", KindRef::HardLink { target: b"a" }, None, false),
            ("a root", file, Some(ACCOUNTS), true),
        ] {
            assert!(retaken(&index(kind, kept, root)).is_err(), "{name}");
        }
    }
}
