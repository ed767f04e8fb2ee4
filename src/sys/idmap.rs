//! Which ids of this machine a user may use for the ids of an image.
//!
//! In: `/etc/subuid` and `/etc/subgid`, and who the caller is. Out: an [`IdMap`] for
//! [`super::namespace::enter_user_namespace`]. What always holds: id 0 inside is the caller; the ids from 1 on are the
//! caller's subordinate ranges in the order of the file, without a gap.

use std::ffi::CStr;
use std::io;
use std::path::Path;

/// A run of ids: `inside + n` is `outside + n` on the machine, for `n` below `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id in the user namespace.
    pub inside: u32,
    /// First id on the machine.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The users and the groups of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub uids: Vec<Extent>,
    /// Groups.
    pub gids: Vec<Extent>,
}

/// Why there is no map. The messages end in what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// `/etc/subuid` or `/etc/subgid`.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The caller has no subordinate ids.
    #[error(
        "user {user} has no subordinate ids in {path}, and an image holds files of more than one user\nask an administrator for: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}\n(a range that no other line of the file uses; package `uidmap` on Debian and Ubuntu)"
    )]
    NoRange {
        /// `/etc/subuid` or `/etc/subgid`.
        path: &'static str,
        /// The caller's name, or its number.
        user: String,
    },
}

impl IdMap {
    /// The map of the user who runs this process.
    pub fn of_caller() -> Result<Self, IdMapError> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let name = user_name(uid);
        let extents = |path, own| {
            let text = match std::fs::read_to_string(Path::new(path)) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                Err(source) => return Err(IdMapError::Read { path, source }),
            };
            let ranges = ranges(&text, name.as_deref(), uid);
            if ranges.is_empty() {
                let user = name.clone().unwrap_or_else(|| uid.to_string());
                return Err(IdMapError::NoRange { path, user });
            }
            Ok(chain(own, &ranges))
        };
        Ok(Self { uids: extents("/etc/subuid", uid)?, gids: extents("/etc/subgid", gid)? })
    }

    /// The highest id inside that the map has, of users and of groups.
    pub fn last_ids(&self) -> (u32, u32) {
        let last = |extents: &[Extent]| extents.iter().map(|extent| extent.inside + (extent.count - 1)).max();
        (last(&self.uids).unwrap_or(0), last(&self.gids).unwrap_or(0))
    }
}

/// The ranges (first id, count) that a file of the form `name-or-number:first:count` gives to a user, in its order.
/// Lines of another form mean nothing, as for the tools that own the file.
fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().splitn(3, ':');
        let (Some(owner), Some(first), Some(count)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if Some(owner) != name && owner.parse() != Ok(uid) {
            continue;
        }
        let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { continue };
        // A range that runs over the end of the ids is cut there; u32::MAX itself is no id.
        let count = count.min(u32::MAX - first);
        if count > 0 && !found.contains(&(first, count)) {
            found.push((first, count));
        }
    }
    found
}

/// `own` as 0, then the ranges one after the other. The kernel takes 340 lines.
fn chain(own: u32, ranges: &[(u32, u32)]) -> Vec<Extent> {
    let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
    let mut inside = 1_u32;
    for (outside, count) in ranges.iter().copied().take(339) {
        let count = count.min(u32::MAX - inside);
        if count == 0 {
            break;
        }
        extents.push(Extent { inside, outside, count });
        inside += count;
    }
    extents
}

/// The name of a user, from whatever the machine keeps its users in.
pub fn user_name(uid: u32) -> Option<String> {
    let mut buffer = vec![0; 16 * 1024];
    // SAFETY: the record and the buffer live through the call, and what `pw_name` points to is in the buffer.
    unsafe {
        let mut record: libc::passwd = std::mem::zeroed();
        let mut found = std::ptr::null_mut();
        let code = libc::getpwuid_r(uid, &raw mut record, buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found);
        if code != 0 || found.is_null() || record.pw_name.is_null() {
            return None;
        }
        CStr::from_ptr(record.pw_name).to_str().ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_user_are_found_by_name_and_by_number() {
        let file = "root:100000:65536\nann:165536:65536\n\n# a remark\nbob:1:\n1001:300000:1000\nann:500000:10\nann:500000:10\n";
        for (name, uid, expected) in [
            (Some("ann"), 7, vec![(165_536, 65_536), (500_000, 10)]),
            (Some("carl"), 1001, vec![(300_000, 1000)]),
            (None, 1001, vec![(300_000, 1000)]),
            (Some("ann"), 1001, vec![(165_536, 65_536), (300_000, 1000), (500_000, 10)]),
            (Some("bob"), 8, vec![]),
            (Some("an"), 9, vec![]),
        ] {
            assert_eq!(ranges(file, name, uid), expected, "{name:?} {uid}");
        }
    }

    #[test]
    fn odd_ranges_do_no_harm() {
        for (line, expected) in [
            ("a:1:0", vec![]),
            ("a:4294967295:9", vec![]),
            ("a:4294967290:100", vec![(4_294_967_290, 5)]),
            ("a:-1:5", vec![]),
            ("a:1:5:6", vec![]),
            (" a:1:5 ", vec![(1, 5)]),
        ] {
            assert_eq!(ranges(line, Some("a"), 1), expected, "{line}");
        }
    }

    #[test]
    fn ranges_follow_one_another_after_the_caller() {
        let extents = chain(1000, &[(100_000, 65_536), (300_000, 10)]);
        let numbers: Vec<_> = extents.iter().map(|extent| (extent.inside, extent.outside, extent.count)).collect();
        assert_eq!(numbers, [(0, 1000, 1), (1, 100_000, 65_536), (65_537, 300_000, 10)]);
        let map = IdMap { uids: extents, gids: chain(5, &[(7, u32::MAX - 7), (9, 9)]) };
        assert_eq!(map.last_ids(), (65_546, u32::MAX - 1));
    }
}
