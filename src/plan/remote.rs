//! What a word names that is not on this machine: a file or a tar by its URL, or a git repository.
//!
//! In: the text of a CONTEXT, of a named context or of a source of ADD. Out: a [`Remote`], or why it is none that can be
//! had. What always holds: what is given to git later cannot be taken for an option, and names one ref at most.
//!
//! ```text
//! https://host/repo.git#ref:subdir      git://host/repo.git      ssh://user@host/repo.git
//! https://host/repo.git?ref=…&tag=…&branch=…&subdir=…&checksum=…&keep-git-dir=…&submodules=…
//! user@host:repo.git#ref:subdir         github.com/owner/repo (a CONTEXT alone)
//! ```

use crate::digest::Digest;

/// Something that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// What a web server has.
    Url(String),
    /// Files of a git repository.
    Git(GitSource),
}

/// A source of ADD that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSource {
    /// As written, expanded.
    pub text: String,
    /// What it is.
    pub kind: RemoteKind,
}

/// What ADD takes from the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteKind {
    /// A file.
    File {
        /// Where it is.
        url: String,
        /// The name that it gets in a directory.
        name: String,
        /// The digest that it must have.
        checksum: Option<Digest>,
        /// `--unpack=true`: it is unpacked if it is an archive.
        unpack: bool,
    },
    /// The files of a commit.
    Git(GitSource),
}

/// A commit of a git repository, or a folder of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GitSource {
    /// What git calls the repository.
    pub repository: String,
    /// Branch, tag, full name of a ref, or full hash of a commit; `None` is what the repository has as HEAD.
    pub reference: Option<String>,
    /// The folder that is taken; `None` is the whole.
    pub subdir: Option<String>,
    /// How the hash of the commit, or of the annotated tag, must begin.
    pub checksum: Option<String>,
    /// Whether `.git` stays; `None` where nothing says so.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched; `None` where nothing says so, which means that they are.
    pub submodules: Option<bool>,
}

impl GitSource {
    /// The host that has it.
    pub fn host(&self) -> &str {
        let host = self.host_and_port();
        match host.rsplit_once(']') {
            // `[::1]:5000`
            Some((address, _)) => &host[..=address.len()],
            None => host.split(':').next().unwrap_or_default(),
        }
    }

    /// The same with the port, where the URL names one.
    pub fn host_and_port(&self) -> &str {
        let rest = self.repository.split_once("://").map_or(self.repository.as_str(), |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        authority.rsplit_once('@').map_or(authority, |(_, host)| host)
    }

    /// Whether it names its commit by the whole hash.
    pub fn names_hash(&self) -> bool {
        self.reference.as_deref().is_some_and(is_hash)
    }

    /// The repository without what only its owner should see.
    pub fn shown(&self) -> String {
        without_password(&self.repository)
    }
}

/// Whether it is a whole hash of git's.
pub fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A URL without user and password.
pub fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

/// Whether it is the URL of something on a web server, a git repository perhaps.
pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// What a source of ADD or COPY names; `None` where it is a path.
pub fn parse(text: &str) -> Option<Result<Remote, String>> {
    if is_git(text) {
        return Some(git(text).map(Remote::Git));
    }
    is_url(text).then(|| check_url(text).map(|()| Remote::Url(text.to_owned())))
}

/// What a CONTEXT names: as [`parse`], and the short form of GitHub; `None` where it is a path.
pub fn parse_context(text: &str) -> Option<Result<Remote, String>> {
    if text.starts_with("github.com/") {
        return Some(git(&format!("https://{text}")).map(Remote::Git));
    }
    if let Some((scheme, _)) = text.split_once("://")
        && !is_url(text)
        && !is_git(text)
    {
        return Some(Err(format!("{scheme}:// is nothing that rbuild can fetch; it knows https, http, git and ssh")));
    }
    parse(text)
}

fn is_git(text: &str) -> bool {
    let repository = text.split(['#', '?']).next().unwrap_or_default();
    text.starts_with("git://")
        || text.starts_with("ssh://")
        || is_scp(text)
        || is_url(text) && repository.ends_with(".git")
}

/// Whether it is written as scp(1) wants it: `user@host:path`.
fn is_scp(text: &str) -> bool {
    let word = |word: &str, more: &str| {
        !word.is_empty() && word.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
    };
    text.split_once(':').is_some_and(|(before, path)| {
        let (user, host) = before.split_once('@').unwrap_or_default();
        word(user, "-_") && word(host, "-.") && !path.starts_with("//") && !path.is_empty()
    })
}

/// A URL that can be asked for.
fn check_url(text: &str) -> Result<(), String> {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    if rest.is_empty() || rest.starts_with(['/', '?', '#', ':']) {
        return Err(format!("{text:?} names no host"));
    }
    match text.chars().find(|letter| letter.is_control() || letter.is_whitespace()) {
        Some(letter) => Err(format!("{text:?} has {letter:?} in it, which no URL can have; write it as a % escape")),
        None => Ok(()),
    }
}

fn git(text: &str) -> Result<GitSource, String> {
    let (text, fragment) = text.split_once('#').map_or((text, None), |(text, fragment)| (text, Some(fragment)));
    let (repository, query) = text.split_once('?').map_or((text, None), |(text, query)| (text, Some(query)));
    let mut source = GitSource {
        repository: repository.to_owned(),
        reference: None,
        subdir: None,
        checksum: None,
        keep_git_dir: None,
        submodules: None,
    };
    if let Some(fragment) = fragment {
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        source.reference = Some(reference.to_owned()).filter(|text| !text.is_empty());
        source.subdir = Some(subdir.to_owned()).filter(|text| !text.is_empty());
    }
    for part in query.into_iter().flat_map(|query| query.split('&')).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let value = decode(value).ok_or_else(|| format!("the value of {key} in the query is no text"))?;
        source.set(key, value)?;
    }
    source.check()?;
    Ok(source)
}

impl GitSource {
    /// Takes one part of the query.
    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        fn once<T: PartialEq>(field: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
            match field {
                Some(known) if *known != value => Err(format!("the repository's URL gives two different {what}")),
                _ => {
                    *field = Some(value);
                    Ok(())
                }
            }
        }
        let yes_no = || match value.as_str() {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(format!("{key}={value} in the repository's URL: expected true or false")),
        };
        match key {
            "ref" if !value.is_empty() => once(&mut self.reference, value, "refs"),
            "tag" if !value.is_empty() => once(&mut self.reference, format!("refs/tags/{value}"), "refs"),
            "branch" if !value.is_empty() => once(&mut self.reference, format!("refs/heads/{value}"), "refs"),
            "subdir" => once(&mut self.subdir, value, "folders"),
            "checksum" | "commit" => once(&mut self.checksum, value, "checksums"),
            "keep-git-dir" => yes_no().and_then(|value| once(&mut self.keep_git_dir, value, "keep-git-dir")),
            "submodules" => yes_no().and_then(|value| once(&mut self.submodules, value, "submodules")),
            "ref" | "tag" | "branch" => Err(format!("{key}= in the repository's URL is empty")),
            _ => Err(format!(
                "{key:?} in the repository's URL is not known; there are ref, tag, branch, subdir, checksum, keep-git-dir \
                 and submodules"
            )),
        }
    }

    /// `--checksum` of ADD.
    pub fn set_checksum(&mut self, checksum: &str) -> Result<(), String> {
        self.set("checksum", checksum.to_owned())?;
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        if self.repository.contains("://") {
            check_url(&self.repository)?;
        }
        if self.host().is_empty() || self.host().starts_with('-') {
            return Err(format!("{:?} names no host", self.repository));
        }
        if let Some(reference) = &self.reference {
            let odd = |letter: char| letter.is_control() || " ~^:?*[\\".contains(letter);
            if reference.starts_with('-') || reference.contains("..") || reference.contains(odd) {
                return Err(format!("{reference:?} cannot be the name of a branch, a tag or a commit"));
            }
        }
        if let Some(subdir) = &self.subdir
            && (subdir.split('/').any(|part| part == "..") || subdir.contains('\0'))
        {
            return Err(format!("{subdir:?} leads out of the repository"));
        }
        if let Some(checksum) = &self.checksum {
            let is_hash = (7..=64).contains(&checksum.len())
                && checksum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if !is_hash {
                return Err(format!(
                    "the checksum {checksum:?} is no hash of a commit; expected at least 7 of its hexadecimal digits"
                ));
            }
        }
        Ok(())
    }
}

/// `sha256:…` of `--checksum`.
pub fn checksum(text: &str) -> Result<Digest, String> {
    match text.split_once(':') {
        Some(("sha256", _)) => text.parse().map_err(|_| format!("{text:?} has no 64 hexadecimal digits after sha256:")),
        Some((algorithm, _)) => Err(format!("unsupported digest algorithm {algorithm:?}; expected sha256:…")),
        None => Err(format!("{text:?} names no digest algorithm; expected sha256:…")),
    }
}

/// The name of a file that comes from `url`: the last part of its path, `__unnamed__` where it has none.
pub fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let decoded = decode(path).unwrap_or_else(|| path.to_owned());
    match decoded.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !matches!(name, "" | "." | "..") && !name.contains('\0') => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

/// Text without its `%` escapes; `None` if one is broken, or it is no text then.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            bytes.push((digit()? * 16 + digit()?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> GitSource {
        match parse_context(text) {
            Some(Ok(Remote::Git(source))) => source,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_a_repository_a_url_or_a_path() {
        for (text, git) in [
            ("https://h/r.git", true),
            ("https://h/r.git#main", true),
            ("https://h/r.git?ref=a", true),
            ("https://h/r.tar.gz", false),
            ("http://h/r?x=.git", false),
            ("git://h/r", true),
            ("ssh://git@h/r", true),
            ("git@h.org:a/b", true),
            ("me_2@h:b.git#v1:sub", true),
        ] {
            assert_eq!(matches!(parse(text), Some(Ok(Remote::Git(_)))), git, "{text}");
            assert!(matches!(parse(text), Some(Ok(_))), "{text}");
        }
        for path in ["dir", "./a:b", "a/b.git", "me@home", "github.com/a/b", "me@home://x", "@h:x", "a b@h:x"] {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(of("github.com/a/b#v1").repository, "https://github.com/a/b");
        for bad in ["s3://bucket/x", "file:///r.git", "http://", "https:///x", "http://h/a b"] {
            assert!(matches!(parse_context(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn refs_folders_and_queries() {
        let plain = of("https://h/r.git");
        let parts = |source: &GitSource| {
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            (text(&source.reference), text(&source.subdir), text(&source.checksum))
        };
        for (end, expected) in [
            ("", ("", "", "")),
            ("#", ("", "", "")),
            ("#v1", ("v1", "", "")),
            ("#:sub/dir", ("", "sub/dir", "")),
            ("#v1:sub", ("v1", "sub", "")),
            ("?ref=v1&subdir=a%20b", ("v1", "a b", "")),
            ("?tag=v1", ("refs/tags/v1", "", "")),
            ("?branch=x/y&checksum=abcdef0", ("refs/heads/x/y", "", "abcdef0")),
            ("?commit=abcdef0#v1", ("v1", "", "abcdef0")),
            ("?ref=v1#v1", ("v1", "", "")),
        ] {
            let source = of(&format!("https://h/r.git{end}"));
            assert_eq!(parts(&source), (expected.0.into(), expected.1.into(), expected.2.into()), "{end}");
            assert_eq!(source.repository, plain.repository);
        }
        let source = of("git@h:r.git?keep-git-dir=1&submodules=false");
        assert_eq!((source.keep_git_dir, source.submodules, source.host()), (Some(true), Some(false), "h"));
        for bad in [
            "?ref=a#b",
            "?x=1",
            "?ref=",
            "?keep-git-dir=maybe",
            "?checksum=xyz",
            "?checksum=abc",
            "?subdir=../x",
            "#:a/../../b",
            "#-upload-pack=x",
            "#a..b",
            "#a b",
            "?ref=%zz",
            "?ref=%ff",
        ] {
            assert!(matches!(parse(&format!("https://h/r.git{bad}")), Some(Err(_))), "{bad}");
        }
        assert!(matches!(parse("ssh://-oProxyCommand=x/r.git"), Some(Err(_))));
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(of("https://me:secret@h:8443/r.git").shown(), "https://h:8443/r.git");
        assert_eq!(of("https://me:secret@h:8443/r.git").host(), "h");
        assert_eq!(without_password("http://a@b@h?x=@"), "http://h?x=@");
    }

    #[test]
    fn names_of_files() {
        for (url, name) in [
            ("http://h/foo", "foo"),
            ("http://h/a/foo.tar.gz?x=/y#z/w", "foo.tar.gz"),
            ("http://h/", "__unnamed__"),
            ("http://h", "__unnamed__"),
            ("http://h?a/b", "__unnamed__"),
            ("http://h/dir/", "dir"),
            ("http://h/a%20b", "a b"),
            ("http://h/a%2Fb", "b"),
            ("http://h/..", "__unnamed__"),
            ("http://h/%00", "__unnamed__"),
            ("http://h/50%", "50%"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }

    #[test]
    fn checksums() {
        let digest = Digest::of(b"x");
        assert_eq!(checksum(&digest.to_string()), Ok(digest));
        for bad in ["md5:7e55db001d319a94b0b713529a756623", "sha256", "sha256:", "sha256:abc", "abc", "unknown:x", ""] {
            assert!(checksum(bad).is_err(), "{bad}");
        }
    }
}
