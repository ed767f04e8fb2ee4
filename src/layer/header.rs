//! The tar header of an entry, as rbuild writes it.
//!
//! In: an entry and the time that it shall have. Out: one header block, preceded by a PAX extended header where a value
//! does not fit. What always holds: the bytes are a function of the arguments and of [`WRITER_VERSION`] alone; whoever
//! changes one byte of them for any entry counts the version up and keeps the old form for old indexes.
//!
//! Rules of version 1:
//! * Names without `./`; directories end in `/`; whiteouts are empty files `.wh.name` of mode 0 and owner 0:0.
//! * User and group names are empty, unused fields zero. Only permission bits are in the mode.
//! * A PAX record where the ustar field cannot hold a value: a path or link target that is too long (paths are first
//!   split into prefix and name) or not ASCII, ids above 2097151, sizes from 8 GiB, times before 1970 or after 2242. The
//!   field is then zero or cut. Names that are not UTF-8 stay as they are in the field while they fit; in a PAX record they
//!   follow `hdrcharset=BINARY`.
//! * `security.capability` is the record `SCHILY.xattr.security.capability`, on hard links too: who applies them may
//!   change the owner, which drops it.
//! * Records are in byte order of their keys.

use super::write::WriteError;
use crate::layer::content::{WHITEOUT_PREFIX, tar_name};
use crate::layer::entry::file_name;
use crate::layer::entry_ref::{EntryRef, KindRef};
use std::borrow::Cow;
use tar::{EntryType, Header};

/// Version of the rules above, which an index remembers.
pub const WRITER_VERSION: u32 = 1;

/// Bytes of a tar block.
pub const BLOCK: usize = 512;

/// The name that a PAX extended header itself has; only programs that do not know PAX show it.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// Largest values of the octal fields.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// Appends the header of `entry`, with `mtime` as its time, to `out`.
pub fn encode(entry: &EntryRef<'_>, mtime: i64, out: &mut Vec<u8>) -> Result<(), WriteError> {
    check_name(entry)?;
    let mut name: Cow<'_, [u8]> = tar_name(entry);
    let mut header = Header::new_ustar();
    let mut size = 0;
    let mut target: &[u8] = b"";
    let mut device = (0, 0);
    let kind = match entry.kind {
        KindRef::File { size: bytes, .. } => {
            size = bytes;
            EntryType::Regular
        }
        KindRef::Whiteout => EntryType::Regular,
        KindRef::HardLink { target: to } => {
            target = to;
            EntryType::Link
        }
        KindRef::Symlink { target: to } => {
            target = to;
            EntryType::Symlink
        }
        KindRef::Directory => {
            name.to_mut().push(b'/');
            EntryType::Directory
        }
        KindRef::CharDevice { major, minor } => {
            device = (major, minor);
            EntryType::Char
        }
        KindRef::BlockDevice { major, minor } => {
            device = (major, minor);
            EntryType::Block
        }
        KindRef::Fifo => EntryType::Fifo,
        KindRef::Opaque => {
            return Err(WriteError::Entry { path: entry.path.to_vec(), why: "an opaque mark is not written" });
        }
    };
    if device.0 > MAX_ID || device.1 > MAX_ID {
        return Err(WriteError::Entry { path: entry.path.to_vec(), why: "its device number does not fit into a tar" });
    }
    let whiteout = matches!(entry.kind, KindRef::Whiteout);
    let (mode, uid, gid) = if whiteout { (0, 0, 0) } else { (entry.mode & 0o7777, entry.uid, entry.gid) };

    // Records in byte order of their keys.
    let mut records = Records(Vec::new());
    if let Some(capability) = entry.capability.filter(|_| !whiteout) {
        records.push("SCHILY.xattr.security.capability", capability);
    }
    if gid > MAX_ID {
        records.push("gid", gid.to_string().as_bytes());
    }
    let long_target = needs_record(target, target.len() <= 100);
    let place = split(&name);
    let long_name = needs_record(&name, place.is_some());
    if (long_target && !is_utf8(target)) || (long_name && !is_utf8(&name)) {
        records.push("hdrcharset", b"BINARY");
    }
    if long_target {
        records.push("linkpath", target);
    }
    if mtime < 0 || mtime as u64 > MAX_SIZE {
        records.push("mtime", mtime.to_string().as_bytes());
    }
    if long_name {
        records.push("path", &name);
    }
    if size > MAX_SIZE {
        records.push("size", size.to_string().as_bytes());
    }
    if uid > MAX_ID {
        records.push("uid", uid.to_string().as_bytes());
    }
    if !records.0.is_empty() {
        let mut pax = Header::new_ustar();
        pax.set_entry_type(EntryType::XHeader);
        if let Some(fields) = pax.as_ustar_mut() {
            put(&mut fields.name, PAX_NAME);
            octal(&mut fields.mode, 0o644);
            octal(&mut fields.uid, 0);
            octal(&mut fields.gid, 0);
            octal(&mut fields.size, records.0.len() as u64);
            octal(&mut fields.dev_major, 0);
            octal(&mut fields.dev_minor, 0);
        }
        seal(&mut pax);
        out.extend_from_slice(pax.as_bytes());
        out.extend_from_slice(&records.0);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }

    header.set_entry_type(kind);
    if let Some(fields) = header.as_ustar_mut() {
        match place.filter(|_| !long_name) {
            Some(slash) if slash > 0 => {
                put(&mut fields.prefix, &name[..slash]);
                put(&mut fields.name, &name[slash + 1..]);
            }
            Some(_) => put(&mut fields.name, &name),
            None => put(&mut fields.name, &cut(&name)),
        }
        if long_target {
            put(&mut fields.linkname, &cut(target));
        } else {
            put(&mut fields.linkname, target);
        }
        octal(&mut fields.mode, u64::from(mode));
        octal(&mut fields.uid, u64::from(if uid > MAX_ID { 0 } else { uid }));
        octal(&mut fields.gid, u64::from(if gid > MAX_ID { 0 } else { gid }));
        octal(&mut fields.size, if size > MAX_SIZE { 0 } else { size });
        octal(&mut fields.mtime, u64::try_from(mtime).ok().filter(|mtime| *mtime <= MAX_SIZE).unwrap_or(0));
        octal(&mut fields.dev_major, u64::from(device.0));
        octal(&mut fields.dev_minor, u64::from(device.1));
    }
    seal(&mut header);
    out.extend_from_slice(header.as_bytes());
    Ok(())
}

/// A real name that looks like a whiteout would hide something when the layer is applied.
fn check_name(entry: &EntryRef<'_>) -> Result<(), WriteError> {
    if file_name(entry.path).starts_with(WHITEOUT_PREFIX) {
        return Err(WriteError::Entry {
            path: entry.path.to_vec(),
            why: "names that begin with .wh. mean deletions in layers; rename it",
        });
    }
    Ok(())
}

/// Whether a name must go into a PAX record.
fn needs_record(name: &[u8], fits: bool) -> bool {
    !fits || (!name.is_ascii() && is_utf8(name))
}

fn is_utf8(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok()
}

/// Where to split a name into prefix and name: at this slash, 0 for not at all; `None` when it does not fit.
fn split(name: &[u8]) -> Option<usize> {
    if name.len() <= 100 {
        return Some(0);
    }
    // The last slash that leaves at most 155 bytes before it and something behind it.
    let head = &name[..(name.len() - 1).min(156)];
    let slash = head.iter().rposition(|byte| *byte == b'/')?;
    (slash > 0 && name.len() - slash - 1 <= 100).then_some(slash)
}

/// What of a long name the field shows: its ASCII bytes, as many as there is room for.
fn cut(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(u8::is_ascii).take(100).collect()
}

/// Copies `value`, which fits, to the start of a field.
fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Fills a field with octal digits, NUL at its end.
fn octal(field: &mut [u8], mut value: u64) {
    let (end, digits) = (field.len() - 1, field);
    digits[end] = 0;
    for digit in digits[..end].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Writes the checksum: six octal digits, NUL, space, over the block with spaces in their place.
fn seal(header: &mut Header) {
    let block = header.as_mut_bytes();
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    octal(&mut block[148..155], u64::from(sum));
}

/// PAX records: `length key=value\n`, the length counting itself.
struct Records(Vec<u8>);

impl Records {
    fn push(&mut self, key: &str, value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + decimal_digits(length) != length {
            length = rest + decimal_digits(length);
        }
        self.0.extend_from_slice(format!("{length} {key}=").as_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::sample;

    #[test]
    fn sizes_from_8_gib_take_a_record() {
        let blocks = |size| {
            let sample = sample::entry("file a");
            let kind = KindRef::File { size, sha256: Digest::of(b"") };
            let mut out = Vec::new();
            encode(&EntryRef { kind, ..EntryRef::from(&sample) }, 0, &mut out).unwrap();
            out
        };
        let small = blocks(MAX_SIZE);
        assert_eq!((small.len(), &small[124..136]), (BLOCK, b"77777777777\0" as &[u8]));
        let large = blocks(MAX_SIZE + 1);
        assert_eq!(large.len(), 3 * BLOCK);
        assert_eq!(&large[512..532], b"19 size=8589934592\n\0");
        assert_eq!(&large[1024 + 124..1024 + 136], b"00000000000\0");
    }

    #[test]
    fn records_count_their_own_length() {
        for (value, length) in [(1, 8), (2, 9), (3, 11), (91, 99), (92, 101), (990, 999), (991, 1001)] {
            let mut records = Records(Vec::new());
            records.push("key", &vec![b'x'; value]);
            let text = String::from_utf8(records.0).unwrap();
            assert_eq!((text.len(), text.split(' ').next()), (length, Some(&*length.to_string())), "{value}");
        }
    }
}
