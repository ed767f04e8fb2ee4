//! What this machine allows the tests to do, found out by trying, and what happens where it does not.
//!
//! In: a test's name and what it needs. Out: go on, or the line `skipped: NAME: WHY` on standard error. What always
//! holds: nothing is skipped silently, and under `RBUILD_TEST_REQUIRE` (a list of needs, or `all`) a skip is a failure.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Something a test wants from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Commands in a sandbox: as root, or as a user with subordinate ids; user and mount namespaces; overlay mounts.
    Run,
    /// Debian's static busybox.
    Busybox,
    /// The test runs as root.
    Root,
    /// An ordinary user with subordinate ids, whom root can become (`RBUILD_TEST_USER`).
    User,
    /// The conformance data from outside the project.
    Corpus,
    /// Debian's buildah, another builder to compare with.
    Buildah,
    /// An emulator of arm64 that the kernel has open; tests/run.sh registers Debian's.
    Emulator,
    /// A program of this name.
    Program(&'static str),
}

impl Need {
    /// As it is written in `RBUILD_TEST_REQUIRE` and `RBUILD_TEST_ELSEWHERE`.
    fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Busybox => "busybox",
            Self::Root => "root",
            Self::User => "user",
            Self::Corpus => "corpus",
            Self::Buildah => "buildah",
            Self::Emulator => "emulator",
            Self::Program(name) => name,
        }
    }

    /// Why the machine does not give it; `None` when it does.
    fn lacking(self) -> Option<String> {
        match self {
            Self::Run => static_answer(&RUN, run_lacking),
            Self::Busybox => static_answer(&BUSYBOX, || super::base::busybox().err()),
            Self::Root => (!is_root()).then(|| "this test has to be root".to_owned()),
            Self::User => test_user().err(),
            Self::Corpus => corpus()
                .is_none()
                .then(|| "no ../shared/corpus/open beside the project, and RBUILD_CORPUS does not name one".to_owned()),
            Self::Buildah => {
                find_program("buildah").is_none().then(|| "no program buildah (Debian package buildah)".to_owned())
            }
            Self::Emulator => emulator_lacking(),
            Self::Program(name) => find_program(name).is_none().then(|| format!("no program {name} in PATH")),
        }
    }
}

static RUN: OnceLock<Option<String>> = OnceLock::new();
static BUSYBOX: OnceLock<Option<String>> = OnceLock::new();

fn static_answer(cell: &OnceLock<Option<String>>, probe: impl FnOnce() -> Option<String>) -> Option<String> {
    cell.get_or_init(probe).clone()
}

/// True when the test can go on; otherwise says by name what was skipped and why.
#[must_use = "a test whose needs are not met has to return"]
pub fn needs(test: &str, needs: &[Need]) -> bool {
    for need in needs {
        let Some(why) = need.lacking() else { continue };
        if listed("RBUILD_TEST_ELSEWHERE", need.word()) {
            return false; // the same run of tests/run.sh makes this test as somebody who has it
        }
        assert!(
            !listed("RBUILD_TEST_REQUIRE", need.word()),
            "{test}: needs {}, and this run must have it: {why}",
            need.word()
        );
        say(&format!("skipped: {test}: {why}"));
        return false;
    }
    true
}

/// Why programs of arm64 do not run in a sandbox here.
fn emulator_lacking() -> Option<String> {
    if std::env::consts::ARCH == "aarch64" {
        return None; // it needs none
    }
    let path = "/proc/sys/fs/binfmt_misc/qemu-aarch64";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return Some(format!("{path}: {error} (Debian package qemu-user-static, and binfmt_misc mounted)"));
        }
    };
    let open = text.lines().any(|line| line.starts_with("flags:") && line.contains('F'));
    (!open || !text.starts_with("enabled")).then(|| format!("{path} is switched off, or lacks the flag F"))
}

/// One line on the real standard error: the test harness captures what `eprintln!` writes in a test that passes.
pub fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("standard error is open");
}

fn listed(variable: &str, word: &str) -> bool {
    std::env::var(variable).is_ok_and(|list| list.split(',').any(|item| item == word || item == "all"))
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The project's sources: where they were compiled, or a copy that this user can read.
pub fn source_dir() -> PathBuf {
    std::env::var_os("RBUILD_TEST_SOURCE").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// The program under test.
pub fn rbuild() -> PathBuf {
    std::env::var_os("RBUILD_TEST_BINARY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_rbuild")), PathBuf::from)
}

/// The folder `open` of the conformance data: `$RBUILD_CORPUS`, or beside the project.
pub fn corpus() -> Option<PathBuf> {
    let named = std::env::var_os("RBUILD_CORPUS").map(PathBuf::from);
    let beside = || source_dir().parent().map(|parent| parent.join("shared/corpus/open"));
    let folder = named.or_else(beside)?;
    [folder.join("open"), folder].into_iter().find(|folder| folder.join("conformance/cases.json").is_file())
}

/// The program of this name in PATH, or in the folders where Debian puts what only root uses.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The ordinary user whom root becomes in tests that compare the two.
#[derive(Debug, Clone)]
pub struct TestUser {
    /// The user's id.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
}

/// Finds the user that `RBUILD_TEST_USER` names.
pub fn test_user() -> Result<TestUser, String> {
    if !is_root() {
        return Err("only root can become another user".to_owned());
    }
    let name = std::env::var("RBUILD_TEST_USER").map_err(|_| "RBUILD_TEST_USER names no user".to_owned())?;
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    for line in passwd.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [user, _, uid, gid, ..] = fields[..]
            && user == name
        {
            let number = |text: &str| text.parse().map_err(|_| format!("/etc/passwd: {line}"));
            return Ok(TestUser { uid: number(uid)?, gid: number(gid)? });
        }
    }
    Err(format!("there is no user {name}"))
}

/// Why RUN cannot work here: tries what rbuild needs with util-linux, so that it does not ask rbuild itself.
fn run_lacking() -> Option<String> {
    if find_program("unshare").is_none() {
        return Some("no program unshare (util-linux) to try namespaces with".to_owned());
    }
    let folder = tempfile::Builder::new().prefix("probe").tempdir().expect("a temporary folder").keep();
    for part in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(folder.join(part)).expect("a folder in a new folder");
    }
    let options = if is_root() { "" } else { ",userxattr" };
    let script =
        format!("cd \"$1\" && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work{options} merged");
    let mut command = Command::new(find_program("unshare")?);
    if !is_root() {
        if find_program("newuidmap").is_none() {
            return Some("no newuidmap (Debian package uidmap)".to_owned());
        }
        if !has_subordinate_ids() {
            return Some("this user has no subordinate ids in /etc/subuid".to_owned());
        }
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(&folder).stdin(Stdio::null());
    let tried = command.output().expect("unshare starts");
    // Overlay leaves a folder of mode 0 in its work folder.
    remove_tree(&folder);
    (!tried.status.success())
        .then(|| format!("no namespace with an overlay mount here: {}", String::from_utf8_lossy(&tried.stderr).trim()))
}

fn has_subordinate_ids() -> bool {
    let uid = rustix::process::getuid().as_raw().to_string();
    let name =
        Command::new("id").arg("-un").output().ok().map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    std::fs::read_to_string("/etc/subuid").is_ok_and(|text| {
        text.lines().filter_map(|line| line.split(':').next()).any(|who| who == uid || Some(who) == name.as_deref())
    })
}

/// Copies a folder that may hold files of mapped ids.
pub fn copy_tree(from: &Path, to: &Path) {
    let mut command = Command::new("unshare");
    if is_root() {
        command = Command::new("cp");
    } else {
        command.args(["--user", "--map-root-user", "--map-auto", "cp"]);
    }
    let done = command.arg("-a").arg(from).arg(to).stdin(Stdio::null()).status().expect("cp starts");
    assert!(done.success(), "{} could not be copied", from.display());
}

/// Removes a folder that may hold files of mapped ids, which an ordinary user cannot remove outside a user namespace.
pub fn remove_tree(folder: &Path) {
    if !folder.exists() || std::fs::remove_dir_all(folder).is_ok() {
        return;
    }
    let removed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--map-auto", "rm", "-rf", "--"])
        .arg(folder)
        .stdin(Stdio::null())
        .status();
    if folder.exists() {
        say(&format!("warning: {} could not be removed: {removed:?}", folder.display()));
    }
}
