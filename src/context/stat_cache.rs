//! What a file's bytes digest to, remembered by its metadata: a rebuild costs a stat per file.
//!
//! In: [`Stamp`]s and what hashing gave. Out: the same again, in a later build. What always holds: an entry is kept
//! only if the file was last changed at least two seconds before it was read, since a change within the clock's step
//! would leave the stamp as it was; a file that cannot be read as a whole and verified is as good as none; it is
//! replaced by rename, so readers see the old or the new one.
//!
//! Format of a file: magic, generation, number of records; records of 104 bytes; SHA-256 of all that. Numbers are little
//! endian. Records that no build asked for while the file was written sixteen times are dropped.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use crate::digest::Digest;

const MAGIC: &[u8; 16] = b"rbuild-files/1\n\0";
const RECORD: usize = 104;
const HEADER: usize = 16 + 4 + 4;
/// How often a file is written until what nobody asked for is dropped.
const GENERATIONS: u32 = 16;
/// Files changed less than this before they were read are not trusted, in nanoseconds.
const RACY: i128 = 2_000_000_000;
/// Length of `security.capability` in version 2.
const CAPABILITY: usize = 20;

/// What the kernel says of a file. As long as it stays the same, so do the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Time of last modification, in nanoseconds since 1970.
    pub mtime: i64,
    /// Time of last change of data or metadata, in nanoseconds since 1970.
    pub ctime: i64,
    /// Type and permissions.
    pub mode: u32,
}

impl Stamp {
    /// The stamp in what `stat` says.
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        let nanoseconds =
            |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The types differ between machines.
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size: stat.st_size as u64,
            mtime: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            mode: stat.st_mode as u32,
        }
    }

    /// The time of last modification in whole seconds, as a layer has it.
    pub fn mtime_seconds(&self) -> i64 {
        self.mtime.div_euclid(1_000_000_000)
    }

    /// Whether a file read at `time` may change later and keep this stamp.
    fn is_racy(&self, time: SystemTime) -> bool {
        let time = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        time - i128::from(self.mtime.max(self.ctime)) < RACY
    }
}

/// What reading a file tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its `security.capability`, in version 2.
    pub capability: Option<[u8; CAPABILITY]>,
}

#[derive(Debug)]
struct Record {
    stamp: Stamp,
    facts: Facts,
    generation: u32,
    /// Known for this build only: too young when it was read.
    racy: bool,
    used: AtomicBool,
}

/// Inode numbers are spread well enough by one multiplication.
#[derive(Default)]
struct InodeHasher(u64);

impl Hasher for InodeHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

type Records = HashMap<(u64, u64), Record, BuildHasherDefault<InodeHasher>>;

/// The digests of one context's files.
#[derive(Debug)]
pub struct StatCache {
    file: Option<PathBuf>,
    generation: u32,
    records: RwLock<Records>,
    changed: AtomicBool,
}

impl StatCache {
    /// A cache that ends with the build.
    pub fn in_memory() -> Self {
        Self { file: None, generation: 0, records: RwLock::default(), changed: AtomicBool::new(false) }
    }

    /// The cache kept in `file`; empty where that is not there or damaged.
    pub fn load(file: PathBuf) -> Self {
        let (generation, records) =
            fs::read(&file).ok().and_then(|bytes| decode(&bytes)).unwrap_or_else(|| (0, Records::default()));
        Self { file: Some(file), generation, records: RwLock::new(records), changed: AtomicBool::new(false) }
    }

    /// The name of the file that holds the digests of the context at `path`, which is canonical.
    pub fn file_name(path: &Path) -> String {
        Digest::of(path.as_os_str().as_encoded_bytes()).hex()
    }

    /// What is known of the file with this stamp.
    pub fn get(&self, stamp: &Stamp) -> Option<Facts> {
        let records = self.records.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let record = records.get(&(stamp.dev, stamp.ino)).filter(|record| record.stamp == *stamp)?;
        if !record.used.load(Ordering::Relaxed) {
            record.used.store(true, Ordering::Relaxed);
        }
        Some(record.facts.clone())
    }

    /// Takes note of what a file with this stamp holds; reading it began at `read_at`. A file changed shortly before
    /// is remembered for this build only.
    pub fn put(&self, stamp: Stamp, facts: Facts, read_at: SystemTime) {
        let racy = stamp.is_racy(read_at);
        let record = Record { stamp, facts, generation: self.generation, racy, used: AtomicBool::new(true) };
        let mut records = self.records.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = records.insert((stamp.dev, stamp.ino), record);
        if !racy || old.is_some_and(|old| !old.racy) {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the file if there is something new; says whether it did.
    pub fn save(&self) -> io::Result<bool> {
        let Some(file) = self.file.as_ref().filter(|_| self.changed.load(Ordering::Relaxed)) else { return Ok(false) };
        let bytes = self.encode();
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(&bytes)?;
        new.persist(file).map_err(|error| error.error)?;
        self.changed.store(false, Ordering::Relaxed);
        Ok(true)
    }

    fn encode(&self) -> Vec<u8> {
        let records = self.records.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let generation = self.generation.wrapping_add(1);
        let mut kept: Vec<(&Record, u32)> = records
            .values()
            .filter(|record| !record.racy)
            .map(|record| (record, if record.used.load(Ordering::Relaxed) { generation } else { record.generation }))
            .filter(|(_, used)| generation.wrapping_sub(*used) <= GENERATIONS)
            .collect();
        // The count is a u32; no context has that many files, but nothing must depend on it.
        kept.truncate(u32::MAX as usize);
        kept.sort_unstable_by_key(|(record, _)| (record.stamp.dev, record.stamp.ino));
        let mut bytes = Vec::with_capacity(HEADER + kept.len() * RECORD + 32);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&(kept.len() as u32).to_le_bytes());
        for (record, used) in kept {
            let Record { stamp, facts, .. } = record;
            bytes.extend_from_slice(&stamp.dev.to_le_bytes());
            bytes.extend_from_slice(&stamp.ino.to_le_bytes());
            bytes.extend_from_slice(&stamp.size.to_le_bytes());
            bytes.extend_from_slice(&stamp.mtime.to_le_bytes());
            bytes.extend_from_slice(&stamp.ctime.to_le_bytes());
            bytes.extend_from_slice(&stamp.mode.to_le_bytes());
            bytes.extend_from_slice(&used.to_le_bytes());
            bytes.extend_from_slice(&u32::from(facts.capability.is_some()).to_le_bytes());
            bytes.extend_from_slice(&facts.capability.unwrap_or_default());
            bytes.extend_from_slice(facts.sha256.as_bytes());
        }
        let sum = Digest::of(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }
}

/// Reads numbers and bytes off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

fn decode(bytes: &[u8]) -> Option<(u32, Records)> {
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    if !body.starts_with(MAGIC) || Digest::of(body).as_bytes() != sum {
        return None;
    }
    let mut fields = Fields(&body[MAGIC.len()..]);
    let (generation, count) = (fields.u32()?, fields.u32()? as usize);
    if fields.0.len() != count.checked_mul(RECORD)? {
        return None;
    }
    let mut records = Records::with_capacity_and_hasher(count, BuildHasherDefault::default());
    for _ in 0..count {
        let stamp = Stamp {
            dev: fields.u64()?,
            ino: fields.u64()?,
            size: fields.u64()?,
            mtime: fields.take().map(i64::from_le_bytes)?,
            ctime: fields.take().map(i64::from_le_bytes)?,
            mode: fields.u32()?,
        };
        let generation = fields.u32()?;
        let has_capability = fields.u32()? != 0;
        let capability = Some(fields.take()?).filter(|_| has_capability);
        let facts = Facts { sha256: Digest::from_bytes(fields.take()?), capability };
        let record = Record { stamp, facts, generation, racy: false, used: AtomicBool::new(false) };
        records.insert((stamp.dev, stamp.ino), record);
    }
    Some((generation, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn stamp(ino: u64) -> Stamp {
        Stamp { dev: 1, ino, size: 3, mtime: 5_000_000_000, ctime: 6_000_000_000, mode: 0o100_644 }
    }

    fn facts(text: &str) -> Facts {
        Facts { sha256: Digest::of(text.as_bytes()), capability: None }
    }

    fn at(milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn remembers_over_builds() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("cache/files/x");
        let cache = StatCache::load(file.clone());
        let capable = Facts { capability: Some([7; CAPABILITY]), ..facts("b") };
        cache.put(stamp(1), facts("a"), at(60_000));
        cache.put(stamp(2), capable.clone(), at(60_000));
        assert!(cache.save().expect("saves"));
        assert!(!cache.save().expect("nothing to save"), "written twice without a change");
        let again = StatCache::load(file);
        assert_eq!(again.get(&stamp(1)), Some(facts("a")));
        assert_eq!(again.get(&stamp(2)), Some(capable));
        assert!(!again.save().expect("nothing to save"), "looking up is no change");
    }

    #[test]
    fn any_other_stamp_is_another_file() {
        let cache = StatCache::in_memory();
        let known = stamp(1);
        cache.put(known, facts("a"), at(60_000));
        for other in [
            Stamp { dev: 2, ..known },
            Stamp { ino: 2, ..known },
            Stamp { size: 4, ..known },
            Stamp { mtime: known.mtime + 1, ..known },
            Stamp { ctime: known.ctime + 1, ..known },
            Stamp { mode: 0o100_600, ..known },
        ] {
            assert_eq!(cache.get(&other), None, "{other:?}");
        }
    }

    /// Changed at 5 s (data) or 6 s (metadata): what was read before 8 s may have changed since with the same times.
    #[test]
    fn young_files_are_not_trusted_by_later_builds() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (read_at, kept) in [(5_000, false), (7_999, false), (8_000, true), (9_000, true)] {
            let file = folder.path().join(read_at.to_string());
            let cache = StatCache::load(file.clone());
            cache.put(stamp(1), facts("a"), at(read_at));
            assert_eq!(cache.get(&stamp(1)), Some(facts("a")), "this build may use it");
            cache.save().expect("saves");
            assert_eq!(StatCache::load(file).get(&stamp(1)).is_some(), kept, "read at {read_at} ms");
        }
        let young = Stamp { mtime: 50_000_000_000, ..stamp(1) };
        assert!(young.is_racy(at(51_000)), "a young mtime is enough");
        assert!(young.is_racy(UNIX_EPOCH - Duration::from_secs(1)), "a clock before 1970");
    }

    #[test]
    fn a_young_file_drives_out_what_was_known() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("x");
        let cache = StatCache::load(file.clone());
        cache.put(stamp(1), facts("a"), at(60_000));
        cache.save().expect("saves");
        let cache = StatCache::load(file.clone());
        cache.put(stamp(1), facts("b"), at(6_000));
        cache.save().expect("saves");
        assert_eq!(StatCache::load(file).get(&stamp(1)), None);
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("x");
        let cache = StatCache::load(file.clone());
        cache.put(stamp(1), facts("a"), at(60_000));
        cache.save().expect("saves");
        let good = fs::read(&file).expect("reads");
        assert!(decode(&good).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_none(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_none(), "length {length}");
        }
        fs::write(&file, &good[..70]).expect("writes");
        let cache = StatCache::load(file.clone());
        assert_eq!(cache.get(&stamp(1)), None);
        cache.put(stamp(1), facts("a"), at(60_000));
        assert!(cache.save().expect("saves over the damaged file"));
        assert!(StatCache::load(file).get(&stamp(1)).is_some());
    }

    #[test]
    fn what_nobody_asks_for_goes_after_sixteen_writes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("x");
        for round in 0..20 {
            let cache = StatCache::load(file.clone());
            if round == 0 {
                cache.put(stamp(1), facts("old"), at(60_000));
            }
            assert!(
                round < 1 || round > 16 || cache.records.read().expect("no panic").contains_key(&(1, 1)),
                "{round}"
            );
            assert!(round < 18 || !cache.records.read().expect("no panic").contains_key(&(1, 1)), "{round}");
            cache.put(stamp(100), facts(&round.to_string()), at(60_000));
            cache.save().expect("saves");
        }
    }
}
