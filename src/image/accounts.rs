//! Users and groups of an image: what USER and `--chown` mean there.
//!
//! In: a specification such as `app:www-data` and the bytes of the image's `/etc/passwd` and `/etc/group`. Out: numeric
//! ids. What always holds: a malformed line of these files never matches (so no typo makes a root), of several lines
//! that match the first one counts, and ids lie in 0 to 2147483647.

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups: the primary one first, each once.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the user is not in passwd.
    pub home: String,
}

/// Who a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why there is no such user or group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The image has no file to look the name up in.
    #[error("{kind} {name:?} cannot be looked up: the image has no /{file}")]
    NoFile {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// `etc/passwd` or `etc/group`.
        file: &'static str,
    },
    /// The file has no line for it.
    #[error("{kind} {name:?} is not in the image's /{file}{}", suggest(near.as_deref()))]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// `etc/passwd` or `etc/group`.
        file: &'static str,
        /// A name that is there and looks like it.
        near: Option<String>,
    },
    /// A number that is no id.
    #[error("{kind} id {text} is out of range: ids go from 0 to 2147483647")]
    Range {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        text: String,
    },
}

fn suggest(near: Option<&str>) -> String {
    near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default()
}

const MAX_ID: u32 = i32::MAX as u32;
const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn id(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id <= MAX_ID)
}

fn text_lines(bytes: Option<&[u8]>) -> impl Iterator<Item = &str> {
    bytes.unwrap_or_default().split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

fn passwd_lines(passwd: Option<&[u8]>) -> impl Iterator<Item = PasswdLine<'_>> {
    text_lines(passwd).filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        let home = rest.get(1).copied().unwrap_or_default();
        (!name.is_empty()).then_some(())?;
        Some(PasswdLine { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

fn group_lines(group: Option<&[u8]>) -> impl Iterator<Item = GroupLine<'_>> {
    text_lines(group).filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, rest @ ..] = fields.as_slice() else { return None };
        (!name.is_empty()).then_some(())?;
        Some(GroupLine { name, gid: id(gid)?, members: rest.first().copied().unwrap_or_default() })
    })
}

/// The id that `text` is if it is a number, else `None`.
fn number(kind: &'static str, text: &str) -> Result<Option<u32>, AccountError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    id(text).map(Some).ok_or_else(|| AccountError::Range { kind, text: text.to_owned() })
}

fn unknown<'a>(
    kind: &'static str,
    name: &str,
    file: &'static str,
    bytes: Option<&[u8]>,
    names: impl Iterator<Item = &'a str>,
) -> AccountError {
    match bytes {
        None => AccountError::NoFile { kind, name: name.to_owned(), file },
        Some(_) => AccountError::Unknown {
            kind,
            name: name.to_owned(),
            file,
            near: crate::diagnostic::nearest(name, names).map(str::to_owned),
        },
    }
}

fn unknown_user(name: &str, passwd: Option<&[u8]>) -> AccountError {
    unknown("user", name, PASSWD, passwd, passwd_lines(passwd).map(|line| line.name))
}

fn unknown_group(name: &str, group: Option<&[u8]>) -> AccountError {
    unknown("group", name, GROUP, group, group_lines(group).map(|line| line.name))
}

/// Who a RUN with `USER spec` is: `user`, `uid`, `user:group` in any mix of names and numbers; empty is root.
///
/// A number that passwd knows is that user, with its groups. An unknown number is taken as it is, with group 0. With an
/// explicit group, that is the only one.
pub fn user(spec: &str, passwd: Option<&[u8]>, group: Option<&[u8]>) -> Result<Identity, AccountError> {
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let uid = if user.is_empty() { Some(0) } else { number("user", user)? };
    let entry = passwd_lines(passwd).find(|line| (!user.is_empty() && line.name == user) || Some(line.uid) == uid);
    let mut identity = match (&entry, uid) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: if entry.home.is_empty() { "/".to_owned() } else { entry.home.to_owned() },
        },
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() },
        (None, None) if user == "root" => Identity { uid: 0, gid: 0, groups: Vec::new(), home: "/".to_owned() },
        (None, None) => return Err(unknown_user(user, passwd)),
    };
    if wanted_group.is_empty() {
        identity.groups.push(identity.gid);
        let name = entry.as_ref().map(|entry| entry.name);
        for line in group_lines(group) {
            let listed = name.is_some_and(|name| line.members.split(',').any(|member| member.trim() == name));
            if listed && !identity.groups.contains(&line.gid) {
                identity.groups.push(line.gid);
            }
        }
    } else {
        identity.gid = group_id(wanted_group, group)?;
        identity.groups.push(identity.gid);
    }
    Ok(identity)
}

fn group_id(spec: &str, group: Option<&[u8]>) -> Result<u32, AccountError> {
    let gid = number("group", spec)?;
    match group_lines(group).find(|line| line.name == spec || Some(line.gid) == gid) {
        Some(line) => Ok(line.gid),
        None => gid.ok_or_else(|| unknown_group(spec, group)),
    }
}

/// Whose files are with `--chown=user[:group]`, or what WORKDIR makes under `USER user[:group]`.
///
/// Numbers are taken as they are and never looked up; a number alone is the group, too. A name alone brings its primary
/// group. `root` is 0 everywhere.
pub fn owner(
    user: &str,
    group: Option<&str>,
    passwd_file: Option<&[u8]>,
    group_file: Option<&[u8]>,
) -> Result<Owner, AccountError> {
    let mut owner = match number("user", user)? {
        Some(uid) => Owner { uid, gid: uid },
        None if user.is_empty() || user == "root" => Owner::default(),
        None => {
            let line = passwd_lines(passwd_file).find(|line| line.name == user);
            let line = line.ok_or_else(|| unknown_user(user, passwd_file))?;
            Owner { uid: line.uid, gid: line.gid }
        }
    };
    if let Some(name) = group.filter(|group| !group.is_empty()) {
        owner.gid = match number("group", name)? {
            Some(gid) => gid,
            None if name == "root" => 0,
            None => {
                let line = group_lines(group_file).find(|line| line.name == name);
                line.ok_or_else(|| unknown_group(name, group_file))?.gid
            }
        };
    }
    Ok(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        broken:x:zero:0::/:\n\
        :x:0:0::/:\n\
        +::::::\n\
        short:x\n\
        app:x:1001:1002:App,,,:/srv/app:/bin/sh\n\
        bare:x:7:8\n\
        app:x:5:5::/second:\n\
        www-data:x:33:33::/var/www:/usr/sbin/nologin\r\n";
    const GROUP: &[u8] = b"root:x:0:\n\
        broken:x:none:app\n\
        app:x:1002:\n\
        adm:x:4:app,www-data\n\
        1234:x:77:\n\
        staff:x:50:app\n\
        again:x:50:app\n\
        lone:x:60";

    #[test]
    fn run_as() {
        for (spec, expected) in [
            ("", (0, 0, vec![0], "/root")),
            ("root", (0, 0, vec![0], "/root")),
            ("0", (0, 0, vec![0], "/root")),
            ("app", (1001, 1002, vec![1002, 4, 50], "/srv/app")),
            ("1001", (1001, 1002, vec![1002, 4, 50], "/srv/app")),
            ("app:adm", (1001, 4, vec![4], "/srv/app")),
            ("app:4242", (1001, 4242, vec![4242], "/srv/app")),
            ("app:lone", (1001, 60, vec![60], "/srv/app")),
            ("1042:1043", (1042, 1043, vec![1043], "/")),
            ("1042", (1042, 0, vec![0], "/")),
            (":adm", (0, 4, vec![4], "/root")),
            ("app:", (1001, 1002, vec![1002, 4, 50], "/srv/app")),
            ("bare", (7, 8, vec![8], "/")),
            ("www-data", (33, 33, vec![33, 4], "/var/www")),
            ("1042:1234", (1042, 77, vec![77], "/")),
        ] {
            let found = user(spec, Some(PASSWD), Some(GROUP)).unwrap_or_else(|error| panic!("{spec}: {error}"));
            assert_eq!((found.uid, found.gid, found.groups, found.home.as_str()), expected, "{spec}");
        }
    }

    #[test]
    fn run_as_nobody_known() {
        for (spec, message) in [
            ("apq", "user \"apq\" is not in the image's /etc/passwd (did you mean \"app\"?)"),
            ("broken", "user \"broken\" is not in the image's /etc/passwd"),
            ("app:nogroup", "group \"nogroup\" is not in the image's /etc/group"),
            ("4294967295", "user id 4294967295 is out of range: ids go from 0 to 2147483647"),
            ("99999999999999999999", "user id 99999999999999999999 is out of range: ids go from 0 to 2147483647"),
        ] {
            let error = user(spec, Some(PASSWD), Some(GROUP)).expect_err(spec).to_string();
            assert!(error.starts_with(message), "{spec}: {error}");
        }
        let error = user("app", None, None).expect_err("no passwd").to_string();
        assert_eq!(error, "user \"app\" cannot be looked up: the image has no /etc/passwd");
        assert_eq!(user("root", None, None).map(|identity| identity.uid), Ok(0));
        assert_eq!(user("12:13", None, None).map(|identity| identity.gid), Ok(13));
    }

    #[test]
    fn chown() {
        for (who, group, expected) in [
            ("0", None, (0, 0)),
            ("99", None, (99, 99)),
            ("1001", None, (1001, 1001)),
            ("1001", Some("app"), (1001, 1002)),
            ("app", None, (1001, 1002)),
            ("app", Some("99"), (1001, 99)),
            ("app", Some("root"), (1001, 0)),
            ("root", None, (0, 0)),
            ("root", Some("1234"), (0, 1234)),
            ("", Some("adm"), (0, 4)),
            ("www-data", Some(""), (33, 33)),
        ] {
            let found = owner(who, group, Some(PASSWD), Some(GROUP)).unwrap_or_else(|error| panic!("{who}: {error}"));
            assert_eq!((found.uid, found.gid), expected, "{who} {group:?}");
        }
        assert_eq!(owner("root", Some("root"), None, None), Ok(Owner::default()));
        assert!(owner("app", None, None, None).is_err());
        assert!(owner("0", Some("adm"), Some(PASSWD), None).is_err());
        assert!(owner("nosuch", None, Some(PASSWD), Some(GROUP)).is_err());
    }
}
