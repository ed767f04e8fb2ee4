//! PAX extended headers: `length key=value\n`, again and again.
//!
//! Values may hold any byte, newlines included, so the length alone says where a record ends.

use super::number::{decimal, seconds};
use super::sparse::PaxSparse;

/// What a PAX header says about the entry behind it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<i64>,
    pub(super) capability: Option<Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    /// Reads the records; `None` when they are broken.
    pub(super) fn parse(mut records: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        // Some writers fill the block with NULs and count them.
        while records.first().is_some_and(|byte| *byte != 0) {
            let space = records.iter().take(20).position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(&records[..space])?).ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            pax.set(key, value)?;
        }
        Some(pax)
    }

    /// Takes one record; an empty value takes back what was said.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = |parse: fn(&[u8]) -> Option<u64>| -> Option<Option<u64>> {
            if value.is_empty() { Some(None) } else { Some(Some(parse(value)?)) }
        };
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number(decimal)?,
            b"uid" => self.uid = number(decimal)?,
            b"gid" => self.gid = number(decimal)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(seconds(value)?) },
            b"SCHILY.xattr.security.capability" => self.capability = bytes(),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let pax = Pax::parse(b"12 path=a\nb\n13 uid=70000\n16 mtime=-1.500\n20 comment=whatever\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(b"a\nb" as &[u8]));
        assert_eq!((pax.uid, pax.mtime), (Some(70000), Some(-2)));
        let pax = Pax::parse(b"10 path=a\n8 path=\n\0\0\0").unwrap();
        assert_eq!(pax, Pax::default());
        let binary = b"44 SCHILY.xattr.security.capability=\x01\n=\n 7 \n".as_slice();
        assert_eq!(Pax::parse(binary).unwrap().capability.as_deref(), Some(b"\x01\n=\n 7 " as &[u8]));
    }

    #[test]
    fn broken_records() {
        for text in [
            "x",
            "5",
            "5 ",
            "0 a=b\n",
            "3 a=b\n",
            "4 a=b\n",
            "7 a=b\n",
            "6 a=bc\n",
            "6 path\n",
            "9999999999999999999999 a=b\n",
            "-6 a=b\n",
            "12 size=abc\n",
            "10 uid=-1\n",
            "12 mtime=x1\n",
        ] {
            assert_eq!(Pax::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
