//! What a step changed in a copy of the file system below it.
//!
//! In: a folder that holds the copy, as it was [noted](Noted) before the step, and as the step left it. Out: the same
//! folder as overlay's upper folder would be: [`super::diff`] makes the layer of it. What always holds: what was noted
//! and still is the same file, untouched, is gone; what is gone from the copy is a whiteout; what the step may have
//! touched stays, for the content to decide; a folder has the time that the step left.
//!
//! A file is untouched if its inode and its change time are those that were noted: a command can set every other time,
//! never this one.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::diff::{CommitError, failed};
use crate::layer::entry::parent;
use crate::sys::root_dir::{Identity, Node, Place, RootDir, Stat, StatKind};

/// The kernel's clock for files goes in steps of some milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a copy was before a step: for each path the inode and its change time.
#[derive(Debug)]
pub struct Noted(BTreeMap<Vec<u8>, Mark>);

type Mark = ((u64, u64), (i64, u32));

impl Noted {
    /// Notes the copy in `root`. What is changed from now on has a later change time than anything that was noted; `stamp`
    /// is a path beside it for a file to see that by.
    pub fn of(root: &Path, stamp: &Path) -> Result<Self, CommitError> {
        let root = RootDir::open(root).map_err(failed(b"", "open"))?;
        let mut noted = BTreeMap::new();
        walk(&root, &mut |path, stat| {
            noted.insert(path.to_vec(), (stat.inode, stat.ctime));
        })?;
        let latest = noted.values().map(|(_, changed)| *changed).max().unwrap_or_default();
        let began = Instant::now();
        while now(stamp).map_err(failed(b"", "see the time for"))? <= latest && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self(noted))
    }
}

/// The time by the file system's clock.
fn now(stamp: &Path) -> std::io::Result<(i64, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let _ = std::fs::remove_file(stamp);
    let meta = std::fs::File::create(stamp)?.metadata()?;
    // Proof: nanoseconds are below a thousand millions.
    Ok((meta.ctime(), meta.ctime_nsec() as u32))
}

/// Visits all entries, folders before what is in them.
fn walk(root: &RootDir, visit: &mut dyn FnMut(&[u8], &Stat)) -> Result<(), CommitError> {
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(folder) = waiting.pop() {
        let dir = root.open_dir(&folder).map_err(failed(&folder, "open"))?;
        for name in dir.names().map_err(failed(&folder, "list"))? {
            let path = if folder.is_empty() { name.clone() } else { [folder.as_slice(), b"/", &name].concat() };
            let stat = dir.stat(&name).map_err(failed(&path, "examine"))?;
            visit(&path, &stat);
            if stat.kind == StatKind::Directory {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

/// Turns the copy in `root` into an upper folder over what it was a copy of. What is at the paths of `hidden`, and what was
/// `put_in` for the step, wherever it is by now, is no part of it; a folder that was put in stays where something is in it.
pub fn to_upper(root: &Path, noted: &Noted, hidden: &[Vec<u8>], put_in: &[Identity]) -> Result<(), CommitError> {
    let root = RootDir::open(root).map_err(failed(b"", "open"))?;
    let is_hidden =
        |path: &[u8]| hidden.iter().any(|place| path == place || crate::layer::entry::is_below(path, place));
    let mut folders: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let (mut untouched, mut out) = (Vec::new(), Vec::new());
    let mut foreign = Vec::new();
    walk(&root, &mut |path, stat| {
        seen.insert(path.to_vec());
        let directory = stat.kind == StatKind::Directory;
        if is_hidden(path) {
            out.push((path.to_vec(), directory));
            return;
        }
        if put_in.iter().any(|file| file.inode == stat.inode) {
            foreign.push((path.to_vec(), directory));
        }
        if directory {
            folders.insert(path.to_vec(), stat.mtime.0);
        } else if noted.0.get(path) == Some(&(stat.inode, stat.ctime)) {
            untouched.push(path.to_vec());
        }
    })?;
    let mut place = Place::new(&root);
    for path in &untouched {
        remove(&mut place, path, false)?;
    }
    // What is in a folder before the folder.
    out.sort();
    for (path, folder) in out.iter().rev() {
        remove(&mut place, path, *folder)?;
    }
    foreign.sort();
    for (path, folder) in foreign.iter().rev() {
        let (dir, name) = place.find(path).map_err(failed(path, "open the directory of"))?;
        if !put_in.contains(&dir.identity(name).map_err(failed(path, "examine"))?) {
            continue;
        }
        if !folder {
            remove(&mut place, path, false)?;
        } else if dir.remove_dir(name).is_ok() {
            folders.remove(path);
        }
    }
    for path in noted.0.keys().filter(|path| !seen.contains(*path) && !is_hidden(path)) {
        let above = parent(path).unwrap_or_default();
        // Else what stands in the folder's place, or its own whiteout, says it.
        if above.is_empty() || folders.contains_key(above) {
            let (dir, name) = place.find(path).map_err(failed(path, "open the directory of"))?;
            dir.make_node(name, Node::CharDevice(0, 0), 0).map_err(failed(path, "delete"))?;
        }
    }
    for (path, mtime) in folders.iter().rev() {
        let (dir, name) = place.find(path).map_err(failed(path, "open the directory of"))?;
        dir.set_time(name, *mtime).map_err(failed(path, "set the time of"))?;
    }
    Ok(())
}

fn remove(place: &mut Place<'_>, path: &[u8], folder: bool) -> Result<(), CommitError> {
    let (dir, name) = place.find(path).map_err(failed(path, "open the directory of"))?;
    let removed = if folder { dir.remove_dir(name) } else { dir.remove_file(name) };
    removed.map_err(failed(path, "remove"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

    #[test]
    fn what_was_touched_stays_and_what_is_gone_is_a_whiteout() {
        let temp = tempfile::tempdir().expect("a folder");
        let root = temp.path().join("root");
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("inside")).expect("folders");
            fs::write(path, text).expect("a file");
        };
        for name in
            ["same", "mode", "gone", "d/same", "d/gone", "all/a", "all/b/c", "new/x", "old/x", "etc/hosts", "dev/n"]
        {
            write(name, "1");
        }
        let noted = Noted::of(&root, &temp.path().join("stamp")).expect("noted");
        let mtime = fs::metadata(root.join("same")).expect("there").modified().expect("a time");
        fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o600)).expect("mode");
        for name in ["gone", "d/gone"] {
            fs::remove_file(root.join(name)).expect("removed");
        }
        fs::remove_dir_all(root.join("all")).expect("removed");
        // In another's place, alike in all but the inode.
        fs::remove_dir_all(root.join("new")).expect("removed");
        fs::rename(root.join("old"), root.join("new")).expect("renamed");
        // The same bytes at the same time.
        write("d/same", "2");
        fs::File::options()
            .write(true)
            .open(root.join("d/same"))
            .and_then(|file| file.set_modified(mtime))
            .expect("set");
        // What is put in for the command, which moves some of it.
        fs::remove_file(root.join("etc/hosts")).expect("removed");
        for name in ["etc/hosts", "dev/null", "run/deep/file", "dev/link", "full/x"] {
            write(name, "machine");
        }
        let put_in = ["etc/hosts", "dev", "dev/null", "dev/link", "run", "run/deep", "run/deep/file", "full", "full/x"]
            .map(|name| Identity::of(&root.join(name)).expect("there"));
        fs::rename(root.join("run"), root.join("ran")).expect("renamed");
        fs::rename(root.join("dev/link"), root.join("moved")).expect("renamed");
        write("full/own", "1");
        write("dev/own", "1");
        let kept = fs::metadata(root.join("d")).expect("there").mtime();
        // Some other file that got an inode that was put in.
        write("reused", "1");
        let reused = Identity { born: (1, 1), ..Identity::of(&root.join("reused")).expect("there") };
        let hidden = ["etc/hosts", "dev"].map(|name| name.as_bytes().to_vec());
        to_upper(&root, &noted, &hidden, &[&put_in[..], &[reused]].concat()).expect("turned");
        let mut found = Vec::new();
        let mut waiting = vec![root.clone()];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry")) {
                let (kind, path) = (entry.file_type().expect("a type"), entry.path());
                let mark = if kind.is_dir() { "/" } else { ["", " gone"][usize::from(kind.is_char_device())] };
                found.push(format!("{}{mark}", path.strip_prefix(&root).expect("inside").display()));
                waiting.extend(kind.is_dir().then_some(path));
            }
        }
        found.sort();
        let expected = [
            "all gone",
            "d/",
            "d/gone gone",
            "d/same",
            "etc/",
            "full/",
            "full/own",
            "gone gone",
            "mode",
            "new/",
            "new/x",
            "old gone",
            "reused",
        ];
        assert_eq!(found, expected);
        assert_eq!(fs::metadata(root.join("d")).expect("there").mtime(), kept);
    }
}
