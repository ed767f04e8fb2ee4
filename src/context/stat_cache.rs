//! What a file's bytes digest to, remembered by its metadata: a rebuild costs a stat per file.
//!
//! In: [`Stamp`]s and what hashing gave. Out: the same again, in a later build. What always holds: an entry is kept
//! only if the file was last changed at least two seconds before it was read, since a change within the clock's step
//! would leave the stamp as it was; a file that cannot be read as a whole and verified is as good as none; it is
//! replaced by rename, so readers see the old or the new one.
//!
//! Format of a file: magic, generation, number of records; records of 104 bytes, sorted; a checksum. Numbers are little
//! endian. Records that no build asked for while the file was written sixteen times are dropped.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use crate::digest::Digest;

const MAGIC: &[u8; 16] = b"rbuild-files/1\n\0";
const RECORD: usize = 104;
const HEADER: usize = 16 + 4 + 4;
const SUM: usize = 8;
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

/// What this build learned of a file.
#[derive(Debug)]
struct Fresh {
    stamp: Stamp,
    facts: Facts,
    /// Known for this build only: too young when it was read.
    racy: bool,
}

/// The digests of one context's files.
#[derive(Debug)]
pub struct StatCache {
    file: Option<PathBuf>,
    known: Known,
    fresh: RwLock<HashMap<(u64, u64), Fresh>>,
    has_fresh: AtomicBool,
    changed: AtomicBool,
}

/// The records of a file, used as they lie in it: sorted by device and inode, found by bisection. Making a map of them
/// would take longer than all look-ups of a build.
#[derive(Debug, Default)]
struct Known {
    generation: u32,
    records: Vec<u8>,
    used: Vec<AtomicBool>,
}

impl StatCache {
    /// A cache that ends with the build.
    pub fn in_memory() -> Self {
        Self {
            file: None,
            known: Known::default(),
            fresh: RwLock::default(),
            has_fresh: AtomicBool::new(false),
            changed: AtomicBool::new(false),
        }
    }

    /// The cache kept in `file`; empty where that is not there or damaged.
    pub fn load(file: PathBuf) -> Self {
        let known = fs::read(&file).ok().and_then(Known::decode).unwrap_or_default();
        Self { file: Some(file), known, ..Self::in_memory() }
    }

    /// The name of the file that holds the digests of the context at `path`, which is canonical.
    pub fn file_name(path: &Path) -> String {
        Digest::of(path.as_os_str().as_encoded_bytes()).hex()
    }

    /// What is known of the file with this stamp.
    pub fn get(&self, stamp: &Stamp) -> Option<Facts> {
        if self.has_fresh.load(Ordering::Acquire) {
            let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(fresh) = fresh.get(&(stamp.dev, stamp.ino)) {
                return (fresh.stamp == *stamp).then(|| fresh.facts.clone());
            }
        }
        let at = self.known.position(stamp.dev, stamp.ino)?;
        let (known, facts, _) = self.known.record(at)?;
        if known != *stamp {
            return None;
        }
        self.known.used[at].store(true, Ordering::Relaxed);
        Some(facts)
    }

    /// Takes note of what a file with this stamp holds; reading it began at `read_at`. A file changed shortly before
    /// is remembered for this build only.
    pub fn put(&self, stamp: Stamp, facts: Facts, read_at: SystemTime) {
        let racy = stamp.is_racy(read_at);
        let mut fresh = self.fresh.write().unwrap_or_else(PoisonError::into_inner);
        let key = (stamp.dev, stamp.ino);
        let replaces = fresh.insert(key, Fresh { stamp, facts, racy }).is_some_and(|old| !old.racy)
            || self.known.position(stamp.dev, stamp.ino).is_some();
        self.has_fresh.store(true, Ordering::Release);
        if !racy || replaces {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the file if there is something new; says whether it did. `scratch` is a folder on the same file system for
    /// the unfinished file, which whoever is killed meanwhile leaves there.
    pub fn save(&self, scratch: &Path) -> io::Result<bool> {
        let Some(file) = self.file.as_ref().filter(|_| self.changed.load(Ordering::Relaxed)) else { return Ok(false) };
        let bytes = self.encode();
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        let mut new = tempfile::NamedTempFile::new_in(scratch)?;
        new.write_all(&bytes)?;
        new.persist(file).map_err(|error| error.error)?;
        self.changed.store(false, Ordering::Relaxed);
        Ok(true)
    }

    fn encode(&self) -> Vec<u8> {
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        let generation = self.known.generation.wrapping_add(1);
        let mut kept: Vec<(Stamp, Facts, u32)> = fresh
            .values()
            .filter(|fresh| !fresh.racy)
            .map(|fresh| (fresh.stamp, fresh.facts.clone(), generation))
            .collect();
        for (at, used) in self.known.used.iter().enumerate() {
            let Some((stamp, facts, last_used)) = self.known.record(at) else { continue };
            let last_used = if used.load(Ordering::Relaxed) { generation } else { last_used };
            let is_old = generation.wrapping_sub(last_used) > GENERATIONS;
            if !is_old && !fresh.contains_key(&(stamp.dev, stamp.ino)) {
                kept.push((stamp, facts, last_used));
            }
        }
        // The count is a u32; no context has that many files, but nothing must depend on it.
        kept.truncate(u32::MAX as usize);
        kept.sort_unstable_by_key(|(stamp, ..)| (stamp.dev, stamp.ino));
        let mut bytes = Vec::with_capacity(HEADER + kept.len() * RECORD + SUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&(kept.len() as u32).to_le_bytes());
        for (stamp, facts, last_used) in kept {
            bytes.extend_from_slice(&stamp.dev.to_le_bytes());
            bytes.extend_from_slice(&stamp.ino.to_le_bytes());
            bytes.extend_from_slice(&stamp.size.to_le_bytes());
            bytes.extend_from_slice(&stamp.mtime.to_le_bytes());
            bytes.extend_from_slice(&stamp.ctime.to_le_bytes());
            bytes.extend_from_slice(&stamp.mode.to_le_bytes());
            bytes.extend_from_slice(&last_used.to_le_bytes());
            bytes.extend_from_slice(&u32::from(facts.capability.is_some()).to_le_bytes());
            bytes.extend_from_slice(&facts.capability.unwrap_or_default());
            bytes.extend_from_slice(facts.sha256.as_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
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

impl Known {
    fn decode(mut bytes: Vec<u8>) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<SUM>()?;
        if !body.starts_with(MAGIC) || checksum(body).to_le_bytes() != *sum {
            return None;
        }
        let mut fields = Fields(&body[MAGIC.len()..]);
        let (generation, count) = (fields.u32()?, fields.u32()? as usize);
        if fields.0.len() != count.checked_mul(RECORD)? {
            return None;
        }
        bytes.truncate(bytes.len() - SUM);
        let used = std::iter::repeat_with(|| AtomicBool::new(false)).take(count).collect();
        Some(Self { generation, records: bytes, used })
    }

    fn key(&self, at: usize) -> Option<(u64, u64)> {
        let mut fields = Fields(self.records.get(HEADER + at * RECORD..)?);
        Some((fields.u64()?, fields.u64()?))
    }

    fn position(&self, dev: u64, ino: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.used.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle)?.cmp(&(dev, ino)) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// A record, and the generation in which it was last used.
    fn record(&self, at: usize) -> Option<(Stamp, Facts, u32)> {
        let mut fields = Fields(self.records.get(HEADER + at * RECORD..)?);
        let stamp = Stamp {
            dev: fields.u64()?,
            ino: fields.u64()?,
            size: fields.u64()?,
            mtime: fields.take().map(i64::from_le_bytes)?,
            ctime: fields.take().map(i64::from_le_bytes)?,
            mode: fields.u32()?,
        };
        let last_used = fields.u32()?;
        let has_capability = fields.u32()? != 0;
        let capability = Some(fields.take()?).filter(|_| has_capability);
        Some((stamp, Facts { sha256: Digest::from_bytes(fields.take()?), capability }, last_used))
    }
}

/// A checksum against damage, not against malice (the store belongs to the user): many times as fast as SHA-256, which
/// would take longer than all the rest. Each step is one-to-one, so no change of a single word goes unnoticed.
fn checksum(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [1u64, 2, 3, 4];
    let mix = |lane: u64, word: u64| (lane ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    for byte in rest {
        lanes[0] = mix(lanes[0], u64::from(*byte) + 1);
    }
    let sum = lanes.into_iter().fold(bytes.len() as u64, mix);
    sum ^ sum >> 32
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
        assert!(cache.save(folder.path()).expect("saves"));
        assert!(!cache.save(folder.path()).expect("nothing to save"), "written twice without a change");
        let again = StatCache::load(file);
        assert_eq!(again.get(&stamp(1)), Some(facts("a")));
        assert_eq!(again.get(&stamp(2)), Some(capable));
        assert!(!again.save(folder.path()).expect("nothing to save"), "looking up is no change");
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
            cache.save(folder.path()).expect("saves");
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
        cache.save(folder.path()).expect("saves");
        let cache = StatCache::load(file.clone());
        cache.put(stamp(1), facts("b"), at(6_000));
        cache.save(folder.path()).expect("saves");
        assert_eq!(StatCache::load(file).get(&stamp(1)), None);
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("x");
        let cache = StatCache::load(file.clone());
        cache.put(stamp(1), facts("a"), at(60_000));
        cache.save(folder.path()).expect("saves");
        let good = fs::read(&file).expect("reads");
        assert!(Known::decode(good.clone()).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Known::decode(bad).is_none(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(Known::decode(good[..length].to_vec()).is_none(), "length {length}");
        }
        fs::write(&file, &good[..70]).expect("writes");
        let cache = StatCache::load(file.clone());
        assert_eq!(cache.get(&stamp(1)), None);
        cache.put(stamp(1), facts("a"), at(60_000));
        assert!(cache.save(folder.path()).expect("saves over the damaged file"));
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
            assert!(!(1..=16).contains(&round) || cache.known.position(1, 1).is_some(), "{round}");
            assert!(round < 18 || cache.known.position(1, 1).is_none(), "{round}");
            cache.put(stamp(100), facts(&round.to_string()), at(60_000));
            cache.save(folder.path()).expect("saves");
        }
    }
}
