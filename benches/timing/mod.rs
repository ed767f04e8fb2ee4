//! What the benches share that time the real program: a folder to work in, the program run in it, medians, and who else
//! than root can be measured.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/support/base.rs"]
mod base;

/// An ordinary user: id and group.
pub(crate) type User = (u32, u32);

/// A store, a context, and who uses them.
pub(crate) struct Place {
    /// All of it; gone with the value.
    all: tempfile::TempDir,
    /// Where commands run.
    pub(crate) folder: PathBuf,
    program: PathBuf,
    user: Option<User>,
}

impl Place {
    /// A place with a context of a hundred files, and the base in the store as `base`.
    pub(crate) fn new(user: Option<User>, tar: &Path) -> Result<Self> {
        let folder = std::env::var_os("RBUILD_BENCH_FOLDER").unwrap_or_else(|| "/var/tmp".into());
        let all = tempfile::Builder::new().prefix("rbuild-bench-").tempdir_in(folder)?;
        // The user may not be able to read the checkout.
        let program = all.path().join("rbuild");
        std::fs::copy(env!("CARGO_BIN_EXE_rbuild"), &program)?;
        let place = Self { folder: all.path().join("work"), program, user, all };
        std::fs::create_dir_all(place.folder.join("ctx/src"))?;
        for n in 0..100 {
            std::fs::write(place.folder.join(format!("ctx/src/{n}.txt")), format!("file {n}\n"))?;
        }
        std::fs::copy(tar, place.folder.join("base.tar"))?;
        std::fs::set_permissions(place.all.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&place.folder, Some(uid), Some(gid))?;
        }
        place.rbuild(["import", "base.tar", "base"])?;
        Ok(place)
    }

    /// A program, ready to start as the user who is measured, with nothing of the caller's environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.folder)
            .env("TMPDIR", &self.folder)
            .env("RBUILD_ROOT", self.folder.join("store"))
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs rbuild; how long it took.
    pub(crate) fn rbuild<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Duration> {
        let mut command = self.command(&self.program);
        command.args(args);
        let begin = Instant::now();
        let output = command.output()?;
        let took = begin.elapsed();
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(took)
    }

    /// Writes the Dockerfile.
    pub(crate) fn dockerfile(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.join("ctx/Dockerfile"), text)?)
    }

    /// Builds it.
    pub(crate) fn build(&self) -> Result<Duration> {
        self.rbuild(["-t", "x", "ctx"])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Files of subordinate ids are no problem for root, who becomes a user here; a user has to ask for it.
        drop(self.rbuild(["prune", "--everything", "-f"]));
    }
}

/// A build of ten instructions on the base.
pub(crate) const TEN: &str = "FROM base
LABEL a=b
ENV A=1 B=2
WORKDIR /srv/app
COPY . .
RUN echo one > /one
RUN echo two > /two
EXPOSE 80
USER 1000
CMD [\"/bin/sh\"]
";

/// The median of some times.
pub(crate) fn median(times: impl Iterator<Item = Result<Duration>>) -> Result<Duration> {
    let mut times = times.collect::<Result<Vec<_>>>()?;
    ensure!(!times.is_empty(), "nothing was measured");
    times.sort();
    Ok((times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2)
}

/// A root file system tar, and what it is: `RBUILD_BENCH_ROOTFS`, the one that `examples/quickstart.sh` has made, or busybox.
pub(crate) fn rootfs(folder: &Path) -> Result<(PathBuf, String)> {
    let named = std::env::var_os("RBUILD_BENCH_ROOTFS").map(PathBuf::from);
    let made = || {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let mut found = std::fs::read_dir(target).ok()?.flatten().map(|entry| entry.path().join("debian.tar"));
        found.find(|tar| tar.is_file())
    };
    if let Some(tar) = named.or_else(made) {
        let megabytes = tar.metadata().with_context(|| tar.display().to_string())?.len() / 1_000_000;
        return Ok((tar, format!("Debian root file system, {megabytes} MB")));
    }
    if let Err(why) = base::busybox() {
        bail!(
            "no Debian root file system (run examples/quickstart.sh, or set RBUILD_BENCH_ROOTFS), and no busybox: {why}"
        );
    }
    let tar = folder.join("busybox.tar");
    std::fs::write(&tar, base::root_tar())?;
    Ok((tar, "busybox (for Debian run examples/quickstart.sh first)".to_owned()))
}

/// Measures as whoever runs the bench and, if that is root, as an ordinary user too (`RBUILD_TEST_USER`).
pub(crate) fn as_each(measure: impl Fn(&str, Option<User>) -> Result<()>) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    measure(if root { "root" } else { "user" }, None)?;
    match user() {
        Some(ids) if root => measure("user", Some(ids)),
        _ if root => {
            println!("user      not measured: no user rbuild-test (tests/run.sh creates it)");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn user() -> Option<User> {
    let name = std::env::var("RBUILD_TEST_USER").unwrap_or_else(|_| "rbuild-test".to_owned());
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(&name))?;
    let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
    Some((ids.next()?, ids.next()?))
}
