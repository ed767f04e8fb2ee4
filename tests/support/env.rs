//! A place of its own for each test: a store, a home, a folder for contexts, and rbuild run in it as a user runs it.
//!
//! In: arguments. Out: exit status and both streams, of which a test has to look at something. What always holds: the
//! program sees none of the developer's environment, and when a test ends no process, mount or temporary file of its
//! builds is left; that is looked up in `/proc`, not believed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::base;
use super::machine::{self, TestUser};

/// A test's own folder, store and home.
#[derive(Debug)]
pub struct TestEnv {
    folder: PathBuf,
    user: Option<TestUser>,
    variables: BTreeMap<String, String>,
}

impl TestEnv {
    /// A new one for whoever runs the tests.
    pub fn new() -> Self {
        Self::make(None)
    }

    /// A new one in which rbuild runs as `user`; for root only.
    pub fn as_user(user: &TestUser) -> Self {
        Self::make(Some(user.clone()))
    }

    fn make(user: Option<TestUser>) -> Self {
        let folder = tempfile::Builder::new().prefix("rb-").tempdir().expect("a temporary folder").keep();
        let env = Self { folder, user, variables: BTreeMap::new() };
        env.own(&env.folder);
        for part in ["ctx", "home", "tmp"] {
            std::fs::create_dir(env.path(part)).expect("a folder in a new folder");
            env.own(&env.path(part));
        }
        env
    }

    fn own(&self, path: &Path) {
        if let Some(user) = &self.user {
            std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)).expect("root gives files away");
        }
    }

    /// Gives a file to whom rbuild runs as.
    pub fn give(&self, name: &str) {
        self.own(&self.path(name));
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Throws the store away, so that the next build finds an empty one.
    pub fn empty_store(&self) {
        machine::remove_tree(&self.store());
        assert!(!self.store().exists(), "the store could not be removed");
    }

    /// Sets a variable for every later command.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Writes a file below the test's folder, parents too, with mode 0644 whatever the umask is.
    pub fn write(&self, name: &str, data: impl AsRef<[u8]>) {
        let path = self.path(name);
        let parent = path.parent().expect("a path inside the folder");
        self.directory(parent);
        if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            std::fs::remove_file(&path).expect("what stood there goes");
        }
        std::fs::write(&path, data).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.mode(name, 0o644);
        self.own(&path);
    }

    /// Makes a directory and its parents with mode 0755.
    pub fn directory(&self, path: &Path) {
        if path.is_dir() {
            return;
        }
        self.directory(path.parent().expect("a path inside the folder"));
        std::fs::create_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        set_mode(path, 0o755);
        self.own(path);
    }

    /// Changes a mode.
    pub fn mode(&self, name: &str, mode: u32) {
        set_mode(&self.path(name), mode);
    }

    /// Sets a file's or a directory's modification time.
    pub fn time(&self, name: &str, seconds: u64) {
        let file = std::fs::File::open(self.path(name)).expect("the file was written before");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).expect("own files take a time");
    }

    /// Makes a symbolic link.
    pub fn link(&self, name: &str, target: &str) {
        let path = self.path(name);
        self.directory(path.parent().expect("a path inside the folder"));
        std::os::unix::fs::symlink(target, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.own(&path);
    }

    /// Removes a file or a tree.
    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        let is_dir = path.symlink_metadata().unwrap_or_else(|error| panic!("{name}: {error}")).is_dir();
        if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// The program, ready to start in the test's folder with nothing of the developer's environment.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(machine::rbuild());
        command
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("RBUILD_ROOT", self.store())
            .env("NO_COLOR", "1")
            .env("TZ", "UTC")
            .envs(&self.variables)
            .stdin(Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Runs rbuild to its end.
    #[must_use = "look at what it said, or at least whether it succeeded"]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::of(&mut self.command(args))
    }

    /// Runs rbuild with arguments written as in a shell, without quotes.
    #[must_use = "look at what it said, or at least whether it succeeded"]
    pub fn rbuild(&self, line: &str) -> Run {
        self.run(line.split_whitespace())
    }

    /// Builds `ctx` with these further arguments.
    #[must_use = "look at what it said, or at least whether it succeeded"]
    pub fn build(&self, args: &str) -> Run {
        self.rbuild(&format!("build {args} ctx"))
    }

    /// Brings the busybox root file system in as `busybox`, with an epoch, so that its image id is always the same.
    pub fn import_busybox(&self) {
        if !self.path("busybox.tar").exists() {
            self.write("busybox.tar", base::root_tar());
        }
        Run::of(self.command(["import", "busybox.tar", "busybox"]).env("SOURCE_DATE_EPOCH", "0")).ok();
    }

    /// What builds have left behind: processes, mounts and temporary files. Waits a moment for processes that end.
    pub fn left_behind(&self) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mut found = self.processes();
            found.extend(self.mounts());
            found.extend(self.temporary_files());
            if found.is_empty() || Instant::now() > end {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn processes(&self) -> Vec<String> {
        let mark = self.folder.as_os_str().as_encoded_bytes();
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let names_folder = |bytes: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
            let mounted = || {
                // A command in the sandbox has neither our arguments nor our variables, but the overlay of this store.
                let table = String::from_utf8_lossy(&read("mountinfo")).into_owned();
                table.lines().any(|line| line.contains(" - overlay ") && names_folder(line.as_bytes()))
            };
            if names_folder(&read("cmdline")) || names_folder(&read("environ")) || mounted() {
                let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                found.push(format!("process {name}: {line}"));
            }
        }
        found
    }

    fn mounts(&self) -> Vec<String> {
        let mark = self.folder.to_string_lossy().into_owned();
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        table.lines().filter(|line| line.contains(&mark)).map(|line| format!("mount {line}")).collect()
    }

    fn temporary_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        // The program's own temporary files; then what a store holds only while something works on it.
        let store = self.store();
        for folder in [self.path("tmp"), store.join("tmp"), store.join("trash"), store.join("leases")] {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                found.push(format!("temporary file {}", entry.path().display()));
            }
        }
        found
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if std::env::var_os("RBUILD_TEST_KEEP").is_some() {
                machine::say(&format!("kept: {}", self.folder.display()));
                return;
            }
        } else {
            let left = self.left_behind();
            assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        }
        machine::remove_tree(&self.folder);
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// How a run of rbuild ended and what it said.
#[derive(Debug)]
pub struct Run {
    line: String,
    /// Exit status; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let line = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        let program = command.get_program().to_owned();
        let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self {
            line: format!("{} {line}", Path::new(&program).file_name().unwrap_or_default().display()),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What a command of a scenario that is no program said.
    pub fn of_text(line: &str, stdout: String) -> Self {
        Self { line: line.to_owned(), code: Some(0), stdout, stderr: String::new() }
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ends(0)
    }

    /// Asserts this exit status.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert!(self.code == Some(code), "exit status {:?} instead of {code}\n{}", self.code, self.shown());
        self
    }

    /// Asserts that standard error has this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "standard error lacks {text:?}\n{}", self.shown());
        self
    }

    /// Asserts that standard error lacks this text.
    #[track_caller]
    pub fn says_nothing_of(self, text: &str) -> Self {
        assert!(!self.stderr.contains(text), "standard error has {text:?}\n{}", self.shown());
        self
    }

    /// The image id with which the build ended.
    #[track_caller]
    pub fn image(&self) -> String {
        self.closing("image")
    }

    /// The content digest with which the build ended.
    #[track_caller]
    pub fn content(&self) -> String {
        self.closing("content")
    }

    #[track_caller]
    fn closing(&self, word: &str) -> String {
        let prefix = format!("{word} sha256:");
        let mut lines = self.stdout.lines().chain(self.stderr.lines());
        let found = lines.find(|line| line.starts_with(&prefix) && line.len() == prefix.len() + 64);
        let found = found.unwrap_or_else(|| panic!("no line '{word} sha256:…'\n{}", self.shown()));
        found[word.len() + 1..].to_owned()
    }

    /// How many steps came from the cache, by what plain progress says.
    pub fn cached(&self) -> usize {
        self.stderr.lines().filter(|line| line.ends_with("CACHED")).count()
    }

    /// Everything, for a failure's message.
    pub fn shown(&self) -> String {
        let mut text = format!("$ {}\n", self.line);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            // Writing to a String cannot fail.
            writeln!(text, "--- {name}\n{stream}").expect("memory takes every write");
        }
        text
    }
}
