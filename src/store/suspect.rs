//! One thing of the store by its place: what leases list as made, and what readers found damaged.
//!
//! In: a line of a lease or of a note, or a path. Out: [`Suspect`]. What always holds: it is one thing that came into its place
//! by one rename, never a folder of many; a line that was cut short, or that somebody else wrote, names nothing.

use std::fmt;
use std::path::Path;

use crate::digest::{ChainId, DiffId, Digest};

/// Folders of the cache whose files lie in no folder of their first two digits.
const FLAT: [&str; 2] = ["bases", "files"];

/// What may not be what its name says. It is shown as its path below the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspect {
    /// `layers/<hex>`, with all its forms.
    Layer(DiffId),
    /// `trees/<hex>`: a layer on its parents.
    Tree(ChainId),
    /// `blobs/sha256/<hex>`.
    Blob(Digest),
    /// `origins/<hex>`: repositories of a layer or an image.
    Origins(Digest),
    /// `cache/<kind>/<hex>` or `cache/<kind>/<2>/<hex>`.
    Cache {
        /// `records`, `contents`, `files`…
        kind: String,
        /// The name of the file.
        name: Digest,
    },
}

impl Suspect {
    /// What a line of a lease or of a note names.
    pub fn parse(line: &str) -> Option<Self> {
        Self::around(Path::new(line)).filter(|suspect| suspect.to_string() == line)
    }

    /// What lies at a path below the root, or around it.
    pub(super) fn around(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path.to_str()?.split('/').collect();
        match parts.as_slice() {
            ["layers", name, ..] => Digest::from_hex(name).map(|name| Self::Layer(DiffId(name))),
            ["trees", name, ..] => Digest::from_hex(name).map(|name| Self::Tree(ChainId(name))),
            ["blobs", "sha256", name, ..] => Digest::from_hex(name).map(Self::Blob),
            ["origins", name] => Digest::from_hex(name).map(Self::Origins),
            ["cache", kind, between @ .., name] => {
                let name = Digest::from_hex(name)?;
                let in_place = match between {
                    [] => FLAT.contains(kind),
                    [two] => !FLAT.contains(kind) && *two == &name.hex()[..2],
                    _ => false,
                };
                in_place.then(|| Self::Cache { kind: (*kind).to_owned(), name })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(layer) => write!(f, "layers/{}", layer.0.hex()),
            Self::Tree(chain) => write!(f, "trees/{}", chain.0.hex()),
            Self::Blob(digest) => write!(f, "blobs/sha256/{}", digest.hex()),
            Self::Origins(name) => write!(f, "origins/{}", name.hex()),
            Self::Cache { kind, name } if FLAT.contains(&kind.as_str()) => write!(f, "cache/{kind}/{}", name.hex()),
            Self::Cache { kind, name } => {
                let name = name.hex();
                write!(f, "cache/{kind}/{}/{name}", &name[..2])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of each kind, as leases list it.
    fn lines() -> Vec<String> {
        let hex = Digest::of(b"x").hex();
        let two = &hex[..2];
        vec![
            format!("layers/{hex}"),
            format!("trees/{hex}"),
            format!("blobs/sha256/{hex}"),
            format!("origins/{hex}"),
            format!("cache/records/{two}/{hex}"),
            format!("cache/files/{hex}"),
            format!("cache/bases/{hex}"),
        ]
    }

    #[test]
    fn a_line_that_was_cut_short_names_nothing() {
        for line in lines() {
            assert_eq!(Suspect::parse(&line).map(|suspect| suspect.to_string()).as_ref(), Some(&line));
            for end in 0..line.len() {
                assert_eq!(Suspect::parse(&line[..end]), None, "{}", &line[..end]);
            }
        }
    }

    #[test]
    fn what_is_no_place_of_one_thing_names_nothing() {
        let hex = Digest::of(b"x").hex();
        for line in [
            "/".to_owned(),
            "..".to_owned(),
            format!("/layers/{hex}"),
            format!("layers//{hex}"),
            format!("layers/../layers/{hex}"),
            format!("layers/{}", hex.to_uppercase()),
            format!("layers/{hex}/tree"),
            format!("layers/{hex}/"),
            format!("blobs/{hex}"),
            format!("mounts/{hex}"),
            format!("cache/{hex}"),
            format!("cache/records/{hex}"),
            format!("cache/records/zz/{hex}"),
            format!("cache/files/{}/{hex}", &hex[..2]),
            format!("cache/records/{}/{hex}/x", &hex[..2]),
        ] {
            assert_eq!(Suspect::parse(&line), None, "{line}");
        }
    }

    #[test]
    fn what_lies_in_a_thing_is_that_thing() {
        let hex = Digest::of(b"x").hex();
        for (path, place) in [("tree/bin/sh", "layers"), ("index", "layers"), ("tree/x", "trees")] {
            let found = Suspect::around(Path::new(&format!("{place}/{hex}/{path}"))).unwrap();
            assert_eq!(found.to_string(), format!("{place}/{hex}"));
        }
        assert_eq!(Suspect::around(Path::new("images.json")), None);
    }
}
