//! Whole builds by the clock: what nothing to do costs, and what each further `RUN true` costs.
//!
//! Prints medians of ten runs, as root and as an ordinary user where the caller can be both, on a Debian root file system
//! (`RBUILD_BENCH_ROOTFS`, or the one that `examples/quickstart.sh` has made; else busybox, and it says so), in a store with
//! ten thousand cache records. Asserts nothing: figures are for people.
#![allow(clippy::print_stdout)]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

#[allow(dead_code, unreachable_pub)]
#[path = "../tests/support/base.rs"]
mod base;

const RUNS: usize = 10;
const RECORDS: usize = 10_000;
/// Stages of the build that fills the store, and directories that each makes.
const STAGES: usize = 100;

const TEN: &str = "FROM base
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

/// A store, a context, and who uses them.
struct Bench {
    folder: PathBuf,
    program: PathBuf,
    user: Option<(u32, u32)>,
}

impl Bench {
    fn rbuild<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command
            .args(args)
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
        let begin = Instant::now();
        let output = command.output()?;
        let took = begin.elapsed();
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(took)
    }

    fn dockerfile(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.join("ctx/Dockerfile"), text)?)
    }

    fn build(&self) -> Result<Duration> {
        self.rbuild(["-t", "x", "ctx"])
    }

    /// Lets the store hold as many records as that of somebody who has built for months.
    fn fill(&self) -> Result<()> {
        let mut text = String::new();
        for stage in 0..STAGES {
            writeln!(text, "FROM scratch AS s{stage}")?;
            for n in 0..RECORDS / STAGES {
                writeln!(text, "WORKDIR /{stage}/{n}")?;
            }
        }
        text += "FROM scratch\n";
        for stage in 0..STAGES {
            writeln!(text, "COPY --from=s{stage} /{stage}/0 /taken/{stage}")?;
        }
        self.dockerfile(&text)?;
        self.build().map(|_| ())
    }

    fn nothing_to_do(&self) -> Result<Duration> {
        self.dockerfile(TEN)?;
        self.build()?;
        median((0..RUNS).map(|_| self.build()))
    }

    /// What a build of twenty commands takes more than one of ten, a tenth of it.
    fn further_run(&self) -> Result<Duration> {
        // Names that no build before has used, or its commands would be cached.
        static NAME: AtomicUsize = AtomicUsize::new(0);
        let timed = |runs: usize| {
            let mut text = "FROM base\n".to_owned();
            for _ in 0..runs {
                let name = NAME.fetch_add(1, Ordering::Relaxed);
                writeln!(text, "RUN true # {name}")?;
            }
            self.dockerfile(&text)?;
            self.build()
        };
        timed(1)?;
        median((0..RUNS).map(|_| Ok((timed(20)?.saturating_sub(timed(10)?)) / 10)))
    }
}

fn median(times: impl Iterator<Item = Result<Duration>>) -> Result<Duration> {
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok((times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2)
}

/// A root file system tar, and what it is.
fn rootfs(folder: &Path) -> Result<(PathBuf, String)> {
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

fn user() -> Option<(u32, u32)> {
    let name = std::env::var("RBUILD_TEST_USER").unwrap_or_else(|_| "rbuild-test".to_owned());
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(&name))?;
    let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
    Some((ids.next()?, ids.next()?))
}

fn measure(who: &str, user: Option<(u32, u32)>, tar: &Path) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rbuild-bench-").tempdir_in("/var/tmp")?;
    // The user may not be able to read the checkout.
    let program = folder.path().join("rbuild");
    std::fs::copy(env!("CARGO_BIN_EXE_rbuild"), &program)?;
    let bench = Bench { folder: folder.path().join("work"), program, user };
    std::fs::create_dir_all(bench.folder.join("ctx/src"))?;
    for n in 0..100 {
        std::fs::write(bench.folder.join(format!("ctx/src/{n}.txt")), format!("file {n}\n"))?;
    }
    std::fs::copy(tar, bench.folder.join("base.tar"))?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(&bench.folder, Some(uid), Some(gid))?;
    }
    bench.rbuild(["import", "base.tar", "base"])?;
    let print = |what: &str, took: Duration, goal: u32| {
        println!("{who:<9} {what:<46} {:>7.1} ms   (goal: {goal} ms)", took.as_secs_f64() * 1000.0);
    };
    print("nothing to do, ten instructions", bench.nothing_to_do()?, 30);
    print("each further RUN true", bench.further_run()?, 20);
    bench.fill()?;
    print("nothing to do, 10,000 records in the store", bench.nothing_to_do()?, 30);
    print("each further RUN true, 10,000 records", bench.further_run()?, 20);
    if user.is_some() {
        // Files of subordinate ids are no problem for root, who is the one that becomes a user here.
        std::fs::remove_dir_all(&bench.folder)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (tar, what) = rootfs(folder.path())?;
    println!("{what}; medians of {RUNS}");
    let root = rustix::process::geteuid().is_root();
    measure(if root { "root" } else { "user" }, None, &tar)?;
    match user() {
        Some(ids) if root => measure("user", Some(ids), &tar)?,
        _ if root => println!("user      not measured: no user rbuild-test (tests/run.sh creates it)"),
        _ => {}
    }
    Ok(())
}
