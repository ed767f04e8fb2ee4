//! What dead commands left: swept by the next one.
//!
//! In: a [`Store`], and the id of the running boot. Out: [`Swept`]. What always holds: what a living command has is left alone;
//! what a dead one made is durable before its list goes, and what it made before the machine went down (another boot) is
//! checked before its list goes; so is what readers noted. No list goes that nobody read.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::layout::{SUSPECTS, Store, StoreError, is_younger, list};
use super::lease::{Lease, remove_tree};
use super::suspect::Suspect;

/// Beginning of the name that a list of what readers noted has among the leases: nobody locks it, so it is like one of a
/// dead command.
const NOTED: &str = "noted-";

/// Parts of a layer that are checked each by itself, and last the layer: a right tar says nothing of the tree beside it.
const PARTS: [&str; 5] = ["tar", "tree", "blobs", "epoch", ""];

/// What [`Store::sweep`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// What a dead command of an earlier boot made, or somebody found damaged: it needs to be checked.
    pub suspects: Vec<Suspected>,
    /// Unfinished files that could not be removed, since they belong to mapped ids.
    pub stuck: usize,
    /// The lists in which the suspects stand, which files those were, and how long.
    pub(super) lists: Vec<(PathBuf, Option<Identity>, u64)>,
}

/// A suspect as it was when it was swept: what another command put in its place since then is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Suspected {
    /// What it is.
    pub what: Suspect,
    /// Its parts that are there.
    pub(super) parts: Vec<(&'static str, Identity)>,
}

/// Which file or folder it is: device, inode, and when it was made, as a number is given again.
pub(super) type Identity = (u64, u64, Option<SystemTime>);

/// The identity of what is at a path, if there is something.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino(), found.created().ok()))
}

impl Store {
    /// Clears away what dead commands left in `tmp`. Leases of another boot, and what readers noted, are kept until
    /// [`Store::recover`] has checked the suspects.
    pub fn sweep(&self, boot: &str) -> Result<Swept, StoreError> {
        let (leases, tmp, noted) = (self.path("leases"), self.path("tmp"), self.path(SUSPECTS));
        let mut swept = Swept::default();
        let mut unsynced = Vec::new();
        if !list(&leases)?.is_empty() || !list(&tmp)?.is_empty() || noted.exists() {
            // Exclusive: nobody is between making a lease and locking it, or replacing a small file.
            let _exclusive = self.gc_lock(true)?;
            self.take_notes(&noted)?;
            let mut suspects = BTreeSet::new();
            for path in list(&leases)? {
                let Ok(file) = File::open(&path) else { continue };
                // What cannot be read is no more than empty: what was made since then is found all the same.
                let text = text_of(&file).unwrap_or_default();
                if !is_free(&file, &text) {
                    continue;
                }
                let name = path.file_name().unwrap_or_default();
                let is_note = name.as_encoded_bytes().starts_with(NOTED.as_bytes());
                let mut found: Vec<Suspect> = Vec::new();
                if is_note {
                    found.extend(text.lines().filter_map(Suspect::parse));
                } else if text.starts_with(&format!("boot {boot}\n")) {
                    self.discard(&tmp.join(name))?;
                    if made(&text).next().is_some() {
                        unsynced.push(path);
                        continue;
                    }
                } else {
                    self.discard(&tmp.join(name))?;
                    found.extend(made(&text).filter_map(Suspect::parse));
                    // The lease is no more durable than what it lists: its last lines may be lost, or all.
                    found.extend(self.made_since(&file)?);
                }
                if found.is_empty() {
                    self.discard(&path)?;
                } else {
                    suspects.extend(found);
                    let length = file.metadata().map_or(0, |found| found.len());
                    swept.lists.push((path.clone(), identity(&path), length));
                }
            }
            // What belongs to no lease: files that were to replace others.
            for path in list(&tmp)? {
                if !leases.join(path.file_name().unwrap_or_default()).exists() {
                    self.discard(&path)?;
                }
            }
            swept.suspects = suspects.into_iter().map(|what| self.suspected(what)).collect();
        }
        // Outside of the lock, as it may take long. What cannot be made durable stays listed.
        if !unsynced.is_empty() && self.sync().is_ok() {
            let _exclusive = self.gc_lock(true)?;
            unsynced.iter().try_for_each(|path| self.discard(path))?;
        }
        swept.stuck = self.empty_trash()?;
        Ok(swept)
    }

    /// Puts what readers noted among the leases, under a name that no other such list has: who notes something from now
    /// on begins another. It takes no room.
    fn take_notes(&self, noted: &Path) -> Result<(), StoreError> {
        if !noted.exists() {
            return Ok(());
        }
        let leases = self.path("leases");
        let names = (0u32..).map(|number| leases.join(format!("{NOTED}{}-{number}", std::process::id())));
        let mut free = names.skip_while(|name| name.symlink_metadata().is_ok());
        let place = free.next().unwrap_or(leases);
        fs::rename(noted, &place).map_err(StoreError::io("rename", noted))
    }

    /// A suspect as it is now.
    pub(super) fn suspected(&self, what: Suspect) -> Suspected {
        let place = self.path(&what.to_string());
        let parts = if matches!(what, Suspect::Layer(_)) { &PARTS[..] } else { &[""] };
        let there = parts.iter().filter_map(|part| Some((*part, identity(&part_of(&place, part))?)));
        Suspected { parts: there.collect(), what }
    }

    /// What appeared in the store since that file was made, as leases list it.
    fn made_since(&self, lease: &File) -> Result<Vec<Suspect>, StoreError> {
        // Where the file system does not say when that was, everything is suspect.
        let born = lease.metadata().and_then(|metadata| metadata.created()).unwrap_or(UNIX_EPOCH);
        let mut paths = Vec::new();
        for folder in ["layers", "trees", "blobs/sha256"] {
            paths.extend(list(&self.path(folder))?);
        }
        let cache = walkdir::WalkDir::new(self.path("cache")).into_iter().flatten();
        paths.extend(cache.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path));
        paths.retain(|path| is_younger(path, born));
        Ok(paths.iter().filter_map(|path| Suspect::around(path.strip_prefix(self.root()).ok()?)).collect())
    }

    /// Drops the lists whose suspects have been checked; those that are left are noted anew.
    pub(super) fn forget(&self, swept: &Swept, left: &BTreeSet<Suspect>) -> Result<(), StoreError> {
        let _exclusive = self.gc_lock(true)?;
        if !left.is_empty() {
            let lines: String = left.iter().map(|suspect| format!("{suspect}\n")).collect();
            let path = self.path(SUSPECTS);
            let noted = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| {
                file.write_all(lines.as_bytes())?;
                file.sync_all()
            });
            if noted.is_err() {
                // They stand in the lists that are there.
                return Ok(());
            }
        }
        for (path, seen, length) in &swept.lists {
            // Somebody may have noted more, in a file that was renamed before the line came; or another list has the name.
            if identity(path) == *seen && path.symlink_metadata().is_ok_and(|found| found.len() == *length) {
                self.discard(path)?;
            }
        }
        Ok(())
    }

    /// Whether a command other than that of `own` may have the tree mounted: that of a layer, or a layer on its parents.
    /// Under the exclusive lock only.
    pub(super) fn is_mounted(&self, tree: &Suspect, own: Option<&Lease>) -> Result<bool, StoreError> {
        let (line, own) = (format!("mounts {tree}"), own.map(Lease::path));
        for path in list(&self.path("leases"))?.iter().filter(|path| Some(path.as_path()) != own) {
            let Ok(file) = File::open(path) else { continue };
            // Of a list that cannot be read nobody can tell.
            if file.try_lock().is_err() && text_of(&file).map_or(true, |text| text.lines().any(|found| found == line)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether commands other than that of `own` list something that they made: it may not be durable yet.
    pub(super) fn others_made(&self, own: &Lease) -> Result<bool, StoreError> {
        let leases = list(&self.path("leases"))?;
        let others = leases.iter().filter(|path| path.as_path() != own.path());
        Ok(others.filter_map(|path| text_of(&File::open(path).ok()?).ok()).any(|text| made(&text).next().is_some()))
    }

    /// Renames `path` into the trash, from where [`Store::empty_trash`] removes it. Under the exclusive lock only. It takes
    /// no room: on a full disk this is how there comes to be some.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let trash = self.path("trash");
        loop {
            let place = trash.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let renamed = match renameat_with(CWD, path, CWD, &place, RenameFlags::NOREPLACE) {
                // A process of another container has the same number.
                Err(Errno::EXIST) => continue,
                // Some file systems do not know the flag.
                Err(Errno::INVAL) => fs::rename(path, &place),
                other => other.map_err(io::Error::from),
            };
            match renamed {
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                    return Ok(());
                }
                other => return other.map_err(StoreError::io("discard", path)),
            }
        }
    }

    /// Removes what lies in the trash. How many things could not be removed: an ordinary user must be inside the user
    /// namespace to remove files of mapped ids.
    pub fn empty_trash(&self) -> Result<usize, StoreError> {
        Ok(list(&self.path("trash"))?.iter().filter(|path| !remove_patiently(path)).count())
    }

    /// Makes everything that was made durable: one `syncfs`, however many files.
    fn sync(&self) -> Result<(), StoreError> {
        let root = File::open(self.root()).map_err(StoreError::io("open", self.root()))?;
        sync_file_system(&root).map_err(StoreError::io("sync the file system of", self.root()))
    }
}

/// Writes all that was written to a file system to the disk.
pub(super) fn sync_file_system(file: &File) -> io::Result<()> {
    #[cfg(test)]
    SYNCS.with(|count| count.set(count.get() + 1));
    Ok(rustix::fs::syncfs(file)?)
}

#[cfg(test)]
thread_local! {
    /// How often this thread did.
    pub(super) static SYNCS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The path of a part of a layer; of what has no parts its own.
pub(super) fn part_of(place: &Path, part: &str) -> PathBuf {
    if part.is_empty() { place.to_owned() } else { place.join(part) }
}

/// The text of a lease, by its open file: the command may end, and its lease with it. A byte that does not belong there
/// spoils no more than its line.
pub(super) fn text_of(mut lease: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    lease.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a lease lists as made.
fn made(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("made "))
}

/// Whether the lock of a lease can be had: its command is dead. A child that a killed command was about to make still
/// holds the lock for the moment in which it dies too, and that moment is waited for.
pub(super) fn is_free(file: &File, text: &str) -> bool {
    let owner = text.lines().find_map(|line| line.strip_prefix("by ")?.parse::<u32>().ok());
    let seems_dead = || owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists());
    for _ in 0..50 {
        if file.try_lock().is_ok() {
            return true;
        }
        // It may live in another container, where it has another number, so this is no proof.
        if !seems_dead() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Removes a folder in which the processes of a killed command may still be at work: they are on their way out.
fn remove_patiently(path: &Path) -> bool {
    const TRIES: u32 = 300;
    for _ in 0..TRIES {
        match remove_tree(path) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && has_foreign(path) => return false,
            // They make folders that nobody may enter, and remove what is just being looked at.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    false
}

/// Whether something in a folder belongs to somebody else: waiting does not help against that.
fn has_foreign(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let entries = walkdir::WalkDir::new(path).into_iter().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).any(|metadata| metadata.uid() != own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    /// A layer's place.
    fn layer(name: &str) -> String {
        format!("layers/{}", Digest::of(name.as_bytes()).hex())
    }

    /// What is suspect, as a sweep finds it in that boot.
    fn suspects(store: &Store, boot: &str) -> Vec<String> {
        store.sweep(boot).unwrap().suspects.iter().map(|suspect| suspect.what.to_string()).collect()
    }

    /// Checks what a sweep finds, as the next command does. What it discarded.
    fn recover(store: &Store, boot: &str) -> Vec<String> {
        let swept = store.sweep(boot).unwrap();
        store.recover(&store.lease(boot).unwrap(), &swept).unwrap()
    }

    #[test]
    fn what_a_killed_command_left_is_swept() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        fs::create_dir(lease.folder().join("locked")).unwrap();
        lease.will_make(&layer("x")).unwrap();
        lease.kill();
        let before = SYNCS.get();
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!((count(&store.path("leases")), count(&store.path("tmp"))), (0, 0));
        assert_eq!(SYNCS.get(), before + 1, "nobody lists it any more");
        store.lease("boot-a").unwrap().kill();
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!(SYNCS.get(), before + 1, "it had made nothing");
    }

    #[test]
    fn a_small_file_that_was_never_renamed_is_swept() {
        let (_folder, store) = store();
        fs::write(store.path("tmp/.tmpAbCdEf"), "half of images.j").unwrap();
        let lease = store.lease("boot-a").unwrap();
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!((count(&store.path("tmp")), count(&store.path("trash"))), (1, 0), "the lease's folder alone");
        assert!(lease.folder().exists());
    }

    #[test]
    fn a_lock_that_outlives_its_command_by_a_moment_is_waited_for() {
        let (_folder, store) = store();
        let path = store.path("leases/build-x");
        // No process has this number.
        fs::write(&path, "boot boot-a\nby 4294967295\n").unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                held.unlock().unwrap();
            });
            store.sweep("boot-a").unwrap();
        });
        assert_eq!(count(&store.path("leases")), 0);
        fs::write(&path, format!("boot boot-a\nby {}\n", std::process::id())).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        store.sweep("boot-a").unwrap();
        assert_eq!(count(&store.path("leases")), 1, "its command lives");
    }

    #[test]
    fn many_commands_sweep_at_once() {
        let (_folder, store) = store();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..50 {
                        let lease = store.lease("boot-a").unwrap();
                        fs::write(lease.fresh_path(), "x").unwrap();
                        store.replace(&store.path("small"), b"small").unwrap();
                        if round % 2 == 0 {
                            lease.kill();
                        }
                        assert_eq!(store.sweep("boot-a").unwrap().suspects, []);
                    }
                });
            }
        });
        store.sweep("boot-a").unwrap();
        let left = ["leases", "tmp", "trash"].map(|folder| count(&store.path(folder)));
        assert_eq!(left, [0; 3]);
    }

    #[test]
    fn after_another_boot_what_was_made_is_suspect_until_checked() {
        let (_folder, store) = store();
        let lease = store.lease("boot-a").unwrap();
        lease.will_make(&layer("x")).unwrap();
        lease.kill();
        assert_eq!(suspects(&store, "boot-b"), [layer("x")]);
        assert_eq!(suspects(&store, "boot-b"), [layer("x")], "a check that was cut off is made again");
        recover(&store, "boot-b");
        assert_eq!(count(&store.path("leases")), 0);
    }

    #[test]
    fn a_lease_of_another_boot_that_made_nothing_goes() {
        let (_folder, store) = store();
        for text in ["boot boot-a\n", "boot", ""] {
            fs::write(store.path("leases/build-x"), text).unwrap();
            assert_eq!(store.sweep("boot-b").unwrap(), Swept::default());
            assert_eq!(count(&store.path("leases")), 0, "{text:?}");
        }
    }

    #[test]
    fn what_a_lease_lost_is_found_by_its_time() {
        let (_folder, store) = store();
        let (old, new) = (store.path(&layer("old")), store.path(&layer("new")));
        let record = format!("cache/records/{0}/{0}{1}", "ab", "0".repeat(62));
        fs::create_dir(&old).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        for torn in [String::new(), "boo".to_owned(), format!("boot boot-a\nmade {}", &layer("gone")[..30])] {
            fs::write(store.path("leases/build-x"), &torn).unwrap();
            fs::create_dir_all(&new).unwrap();
            fs::create_dir_all(store.path("cache/records/ab")).unwrap();
            fs::write(store.path(&record), &torn).unwrap();
            assert_eq!(suspects(&store, "boot-b"), [layer("new"), record.clone()], "{torn:?}");
            assert_eq!(recover(&store, "boot-b"), [layer("new"), record.clone()], "{torn:?}");
            assert!(old.exists() && !new.exists(), "{torn:?}");
        }
    }

    #[test]
    fn a_lease_may_be_cut_short_anywhere() {
        let (_folder, store) = store();
        let right = store.put_blob(&store.lease("boot-a").unwrap(), b"right").unwrap();
        let hex = right.hex();
        let (two, mut lines) = (&hex[..2], "boot boot-0\nby 1\n".to_owned());
        fs::create_dir_all(store.path(&format!("cache/contents/{two}"))).unwrap();
        fs::write(store.path(&format!("cache/contents/{two}/{hex}")), "[]").unwrap();
        for place in ["layers", "blobs/sha256", "origins", "cache/files", &format!("cache/contents/{two}"), "trees"] {
            lines.push_str(&format!("made {place}/{hex}\n"));
        }
        for end in 0..=lines.len() {
            let text = &lines[..end];
            fs::write(store.path("leases/build-x"), text).unwrap();
            assert_eq!(recover(&store, "boot-a"), [""; 0], "{text}");
            assert!(store.has_blob(&right) && store.path(&format!("cache/contents/{two}/{hex}")).exists(), "{text}");
            let folders = ["layers", "trees", "blobs/sha256", "cache/files", "leases", "tmp", "trash"];
            assert!(folders.iter().all(|folder| store.path(folder).is_dir()), "{text}");
        }
        assert_eq!(count(&store.path("leases")), 0);
    }

    #[test]
    fn no_line_of_a_lease_leads_to_a_folder_of_many() {
        let (_folder, store) = store();
        let right = store.put_blob(&store.lease("boot-a").unwrap(), b"right").unwrap();
        let kept = ["layers", "trees", "blobs/sha256", "cache/files", "cache/records/ab"];
        for line in kept.into_iter().chain(["", ".", "layers/", "blobs", "cache", "cache/records", "layers/../blobs"]) {
            fs::create_dir_all(store.path("cache/records/ab")).unwrap();
            fs::write(store.path("leases/build-x"), format!("boot boot-0\nby 1\nmade {line}")).unwrap();
            fs::write(store.path(SUSPECTS), format!("{line}\n")).unwrap();
            recover(&store, "boot-a");
            assert!(kept.iter().all(|folder| store.path(folder).is_dir()), "{line}");
            assert!(store.has_blob(&right), "{line}");
            assert_eq!(count(&store.path("leases")), 0, "{line}");
        }
    }

    #[test]
    fn a_lease_that_cannot_be_read_stops_nobody() {
        let (_folder, store) = store();
        let mut text = format!("boot boot-a\nmade {}\nmade ", layer("x")).into_bytes();
        text.extend(b"\xff\xfe\n");
        fs::write(store.path("leases/build-x"), text).unwrap();
        fs::create_dir(store.path(&layer("x"))).unwrap();
        assert_eq!(recover(&store, "boot-b"), [layer("x")]);
        // As where the disk has a fault.
        std::os::unix::fs::symlink("/proc/self/mem", store.path("leases/build-y")).unwrap();
        fs::create_dir(store.path("leases/build-z")).unwrap();
        recover(&store, "boot-b");
        assert_eq!(count(&store.path("leases")), 0);
        let living = store.lease("boot-b").unwrap();
        OpenOptions::new().append(true).open(living.path()).unwrap().write_all(b"used \xff\n").unwrap();
        assert!(store.is_busy().unwrap());
    }

    #[test]
    fn what_readers_found_is_suspect_until_checked() {
        let (_folder, store) = store();
        let found = |name: &str| drop(store.damaged(&store.path(&layer(name)).join("tar"), "it is not what it was"));
        found("x");
        assert_eq!(suspects(&store, "boot-a"), [layer("x")]);
        let swept = store.sweep("boot-a").unwrap();
        assert_eq!(swept.suspects.len(), 1, "a check that was cut off is made again");
        // Meanwhile a reader finds more, once before and once after another command swept.
        found("y");
        let other = store.sweep("boot-a").unwrap();
        assert_eq!(other.suspects.len(), 2);
        found("z");
        store.recover(&store.lease("boot-a").unwrap(), &swept).unwrap();
        let both = BTreeSet::from([layer("y"), layer("z")]);
        assert_eq!(suspects(&store, "boot-a"), both.into_iter().collect::<Vec<_>>());
        store.recover(&store.lease("boot-a").unwrap(), &other).unwrap();
        assert_eq!(suspects(&store, "boot-a"), [layer("z")]);
        recover(&store, "boot-a");
        assert_eq!(store.sweep("boot-a").unwrap(), Swept::default());
        assert_eq!(count(&store.path("leases")), 0);
    }

    #[test]
    fn a_line_that_comes_late_is_kept() {
        let (_folder, store) = store();
        let mut reader = OpenOptions::new().create(true).append(true).open(store.path(SUSPECTS)).unwrap();
        writeln!(reader, "{}", layer("x")).unwrap();
        let swept = store.sweep("boot-a").unwrap();
        writeln!(reader, "{}", layer("y")).unwrap();
        store.recover(&store.lease("boot-a").unwrap(), &swept).unwrap();
        assert!(suspects(&store, "boot-a").contains(&layer("y")));
    }

    #[test]
    fn things_go_to_the_trash_one_beside_the_other() {
        let (_folder, store) = store();
        for _ in 0..3 {
            fs::write(store.path("layers/x"), "x").unwrap();
            store.discard(&store.path("layers/x")).unwrap();
        }
        store.discard(&store.path("layers/gone")).unwrap();
        assert_eq!(count(&store.path("trash")), 3);
        assert_eq!(store.empty_trash().unwrap(), 0);
        assert_eq!(count(&store.path("trash")), 0);
    }
}
