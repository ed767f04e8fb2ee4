//! Git repositories, through the `git` program.
//!
//! In: a [`GitSource`], and an empty folder. Out: the commit that it means, and its files in the folder. What always
//! holds: no configuration, hook, filter or credential of the user or the machine has a say, and none of the repository
//! is carried out; only https, http, git and ssh are spoken, by submodules too; nobody is asked for a password; modes do
//! not depend on the caller's umask; when the caller wishes to stop, git ends.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::plan::remote::{GitSource, is_hash};
use crate::sys::cancel::Cancel;

/// Variables of the caller that git gets: where it finds programs, the network, and the keys of ssh.
const PASSED_ON: [&str; 16] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "GIT_SSL_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "LD_LIBRARY_PATH",
];

/// Configuration that git gets instead of all others.
const CONFIG: [&str; 13] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.autocrlf=false",
    "core.symlinks=true",
    "credential.helper=",
    "submodule.recurse=false",
    "advice.detachedHead=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "safe.directory=*",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "init.defaultBranch=main",
];

/// Why there are no files of a repository.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("the program git is not there; install it: package `git` (Debian, Ubuntu, Fedora, Alpine)")]
    NoProgram,
    /// Git could not be started or its answer not be read.
    #[error("cannot run git: {0}")]
    Run(#[from] io::Error),
    /// Git failed.
    #[error("git cannot {what} {repository}: {said}")]
    Failed {
        /// `read the refs of`, `fetch from`…
        what: &'static str,
        /// The repository, without a password.
        repository: String,
        /// What git said.
        said: String,
    },
    /// No such ref.
    #[error("{repository} has no {reference}{hint}")]
    NoRef {
        /// The repository, without a password.
        repository: String,
        /// What was looked for.
        reference: String,
        /// What to do.
        hint: &'static str,
    },
    /// It is another commit than the one that was wanted.
    #[error("{repository}: expected the checksum {expected}, found commit {found}")]
    Checksum {
        /// The repository, without a password.
        repository: String,
        /// The checksum that was given.
        expected: String,
        /// The commit.
        found: String,
    },
    /// No such folder.
    #[error("{repository} has no folder {subdir} (a link to one does not count)")]
    NoFolder {
        /// The repository, without a password.
        repository: String,
        /// The folder.
        subdir: String,
    },
    /// The user wished it.
    #[error("stopped")]
    Canceled,
}

/// A commit, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its hash.
    pub hash: String,
    /// The full name of the ref that led to it; `None` where the hash itself was given.
    reference: Option<String>,
}

/// The files of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Where they are.
    pub folder: PathBuf,
    /// When the commit was made: seconds since 1970.
    pub time: i64,
}

/// How git is run.
#[derive(Debug)]
pub struct Git<'a> {
    /// The variables of the caller, of which some are passed on.
    pub env: &'a BTreeMap<String, OsString>,
    /// A folder for what git says.
    pub scratch: &'a Path,
    /// Tells when to stop.
    pub cancel: &'a Cancel,
    /// The value of an `Authorization` header for the host, if there is one.
    pub authorization: Option<String>,
}

impl Git<'_> {
    /// Finds out which commit `source` means: asks the repository unless the hash itself is given.
    pub fn resolve(&self, source: &GitSource) -> Result<Commit, GitError> {
        if let Some(hash) = source.reference.as_deref().filter(|text| is_hash(text)) {
            let commit = Commit { hash: hash.to_owned(), reference: None };
            return check(source, &commit.hash, &[&commit.hash]).map(|()| commit);
        }
        let written = source.reference.as_deref().unwrap_or("HEAD");
        let short = written.strip_prefix("refs/").unwrap_or(written);
        // Both the object that a tag is and the commit that it leads to.
        let names: Vec<String> = if written == "HEAD" {
            vec!["HEAD".to_owned()]
        } else {
            let heads = [format!("refs/{short}"), format!("refs/heads/{short}"), format!("refs/tags/{short}")];
            heads.into_iter().flat_map(|name| [format!("{name}^{{}}"), name]).collect()
        };
        let mut args: Vec<&str> = vec!["ls-remote", "--quiet", "--", &source.repository];
        args.extend(names.iter().map(String::as_str));
        let listed = self.run(source, "read the refs of", None, &args)?;
        let refs: BTreeMap<&str, &str> =
            listed.lines().filter_map(|line| line.split_once('\t')).map(|(hash, name)| (name, hash)).collect();
        let found = names.iter().find_map(|name| Some((name, *refs.get(name.as_str())?)));
        let Some((name, hash)) = found.filter(|(_, hash)| is_hash(hash)) else {
            let looks_short = short.len() >= 4 && short.bytes().all(|byte| byte.is_ascii_hexdigit());
            let hint = match source.reference {
                None => "; it is empty",
                Some(_) if looks_short => ", no branch, tag or ref of that name; a commit takes all digits of its hash",
                Some(_) => ", no branch, tag or ref of that name",
            };
            return Err(GitError::NoRef { repository: source.shown(), reference: written.to_owned(), hint });
        };
        let reference = name.trim_end_matches("^{}").to_owned();
        let tag = refs.get(reference.as_str()).copied().unwrap_or(hash);
        check(source, hash, &[hash, tag])?;
        Ok(Commit { hash: hash.to_owned(), reference: Some(reference) })
    }

    /// Puts the files of `commit` into the empty folder `folder`. Those that `source` asks for are there, or in a folder of
    /// it.
    pub fn fetch(
        &self,
        source: &GitSource,
        commit: &Commit,
        keep_git_dir: bool,
        folder: &Path,
    ) -> Result<Files, GitError> {
        let git = |what, args: &[&str]| self.run(source, what, Some(folder), args);
        let format = if commit.hash.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        git("prepare for", &["init", "--quiet", "--template=", format])?;
        git("prepare for", &["remote", "add", "--", "origin", &source.repository])?;
        let wanted = commit.reference.as_deref().unwrap_or(&commit.hash);
        let options = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"];
        let fetch = |what: &str| git("fetch from", &[&options[..], &["--", "origin", what]].concat());
        let is_there = || git("read", &["rev-parse", "--quiet", "--verify", &format!("{}^{{commit}}", commit.hash)]);
        match fetch(wanted) {
            Ok(_) if is_there().is_ok() => {}
            Err(GitError::Canceled) => return Err(GitError::Canceled),
            // The ref moved since it was looked up, or the server gives no commit by its hash: then all that it has.
            Ok(_) | Err(_) => {
                if commit.reference.is_none() || fetch(&commit.hash).is_err() || is_there().is_err() {
                    let all = ["fetch", "--quiet", "--no-recurse-submodules", "--", "origin"];
                    let refs = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
                    git("fetch from", &[&all[..], &refs].concat())?;
                }
                is_there()?;
            }
        }
        git("check out a commit of", &["checkout", "--quiet", "--detach", &commit.hash, "--"])?;
        if source.submodules != Some(false) && folder.join(".gitmodules").symlink_metadata().is_ok() {
            let update = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
            git("fetch the submodules of", &update)?;
        }
        let time = git("read", &["show", "--no-patch", "--format=%ct", &commit.hash, "--"])?;
        if keep_git_dir {
            git("prepare for", &["remote", "set-url", "origin", &source.shown()])?;
            remove_if_there(&folder.join(".git/FETCH_HEAD"))?;
        } else {
            remove_git(folder)?;
        }
        Ok(Files { folder: inside(source, folder)?, time: time.trim().parse().unwrap_or(0) })
    }

    fn run(
        &self,
        source: &GitSource,
        what: &'static str,
        folder: Option<&Path>,
        args: &[&str],
    ) -> Result<String, GitError> {
        if self.cancel.is_canceled() {
            return Err(GitError::Canceled);
        }
        let path = self.env.get("PATH").map_or(OsStr::new("/usr/bin:/bin"), OsString::as_os_str);
        let is_program = |folder: &Path| folder.join("git").is_file();
        if !path.to_string_lossy().split(':').any(|folder| is_program(Path::new(folder))) {
            return Err(GitError::NoProgram);
        }
        let (mut out, mut said) = (tempfile::tempfile_in(self.scratch)?, tempfile::tempfile_in(self.scratch)?);
        // The shell sets the umask, which nothing else can without a change to this process.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 022 && exec git \"$@\"", "git"]);
        for line in CONFIG {
            command.args(["-c", line]);
        }
        command.args(args).env_clear();
        command.envs(PASSED_ON.iter().filter_map(|name| Some((name, self.env.get(*name)?))));
        command.envs([
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "https:http:git:ssh"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_LFS_SKIP_SMUDGE", "1"),
        ]);
        if !self.env.contains_key("GIT_SSH_COMMAND") {
            command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes");
        }
        if let Some(value) = &self.authorization {
            // In the environment, not among the arguments, which everybody can see.
            let scheme = source.repository.split("://").next().unwrap_or_default();
            let authority = source.repository.split('/').nth(2).unwrap_or_default();
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            command.env("GIT_CONFIG_COUNT", "1");
            command.env("GIT_CONFIG_KEY_0", format!("http.{scheme}://{host}/.extraHeader"));
            command.env("GIT_CONFIG_VALUE_0", format!("Authorization: {value}"));
        }
        if let Some(folder) = folder {
            command.current_dir(folder);
            // Not a repository around the store, whatever there is.
            command.env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder));
        }
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(said.try_clone()?).process_group(0);
        let mut child = command.spawn()?;
        let done = self.wait(child.id());
        let status = child.wait()?;
        done?;
        if status.success() {
            return Ok(text(&mut out, 1 << 20)?);
        }
        let said = text(&mut said, 1 << 14)?;
        let last = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
        let said = last[last.len().saturating_sub(4)..].join("; ");
        let closed = ["could not read Username", "Authentication failed", "terminal prompts disabled"];
        let said = if closed.iter().any(|text| said.contains(text)) {
            format!("{said}; if it needs a token, give one with --secret id=GIT_AUTH_TOKEN,…")
        } else {
            said
        };
        let said = if said.is_empty() { format!("it ended with {status}") } else { said };
        Err(GitError::Failed { what, repository: source.shown(), said: hide(&said, source) })
    }

    /// Waits for the process `id`, which leads a group, or for the wish to stop, which ends the group.
    fn wait(&self, id: u32) -> Result<(), GitError> {
        let Some(pid) = Pid::from_raw(id.cast_signed()) else { return Ok(()) };
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
        let cancel = self.cancel.fd();
        loop {
            let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&cancel, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            if self.cancel.is_canceled() {
                // It may have ended by itself meanwhile.
                let _ = kill_process_group(pid, Signal::KILL);
                return Err(GitError::Canceled);
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
        }
    }
}

/// The value of an `Authorization` header for a token, as GitHub and the like take it.
pub fn basic_authorization(token: &str) -> String {
    format!("basic {}", base64(format!("x-access-token:{token}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

/// Whether one of `hashes` is what the checksum says.
fn check(source: &GitSource, commit: &str, hashes: &[&str]) -> Result<(), GitError> {
    match &source.checksum {
        Some(expected) if !hashes.iter().any(|hash| hash.starts_with(expected.as_str())) => {
            Err(GitError::Checksum { repository: source.shown(), expected: expected.clone(), found: commit.to_owned() })
        }
        _ => Ok(()),
    }
}

/// What git said, without a password that the URL had.
fn hide(said: &str, source: &GitSource) -> String {
    said.replace(&source.repository, &source.shown())
}

/// The last `most` bytes of what a program wrote.
fn text(file: &mut File, most: u64) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes what git keeps beside the files, of submodules too.
fn remove_git(folder: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(folder.join(".git"))?;
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry?;
        // Git lets no file of a commit have that name.
        if entry.file_name() == ".git" && entry.file_type().is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The folder that is asked for; no link is followed on the way.
fn inside(source: &GitSource, folder: &Path) -> Result<PathBuf, GitError> {
    let mut path = folder.to_owned();
    let parts = source.subdir.iter().flat_map(|subdir| subdir.split('/'));
    for part in parts.filter(|part| !part.is_empty() && *part != ".") {
        path.push(part);
        if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            let subdir = source.subdir.clone().unwrap_or_default();
            return Err(GitError::NoFolder { repository: source.shown(), subdir });
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_become_headers() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(basic_authorization("t"), "basic eC1hY2Nlc3MtdG9rZW46dA==");
    }
}
