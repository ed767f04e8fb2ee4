//! What this machine allows, found by trying.
//!
//! In: the machine, and the folder of the store. Out: a list of [`Fact`]s for `rbuild info`, each with what to do where
//! something is missing. What always holds: the trial happens in a process and a mount namespace of its own (a machine
//! may allow a user namespace and then refuse to mount in it); nothing is left of it.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::init::INIT_NAME;
use super::{Sandbox, cgroup, emulator, network, remedy, seccomp};
use crate::sys::idmap::{IdMap, user_name};
use crate::sys::mount::{Overlay, file_system, make_private, unmount};
use crate::sys::namespace::{enter_user_namespace, find_program, in_initial_user_namespace, unshare};
use crate::sys::process::close_from;

/// The first argument of rbuild-init for a trial.
pub(super) const ARGUMENT: &str = "probe";

/// The name of the fact that says whether `--isolation chroot` is possible; only where namespaces are not.
pub const COPIES: &str = "copies for RUN";

/// One thing about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What it is about: `overlay`.
    pub name: &'static str,
    /// Whether it is as rbuild would have it.
    pub ok: bool,
    /// What was found, on one line.
    pub value: String,
    /// What to do about it; only where it is not ok.
    pub remedy: Option<String>,
}

impl Fact {
    fn good(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, ok: true, value: value.into(), remedy: None }
    }

    fn bad(name: &'static str, value: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, ok: false, value: value.into(), remedy: Some(remedy.into()) }
    }

    /// An error whose message has what to do on its further lines.
    fn of_error(name: &'static str, error: &dyn Display) -> Self {
        let text = error.to_string();
        match text.split_once('\n') {
            Some((value, remedy)) => Self::bad(name, value, remedy),
            None => Self { name, ok: false, value: text, remedy: None },
        }
    }
}

/// All facts, in the order in which they are best read. `store` is where trees will be; without it (or while it does
/// not exist) overlay is tried on a file system in memory.
pub fn facts(sandbox: &Sandbox, store: Option<&Path>) -> Vec<Fact> {
    let root = rustix::process::geteuid().is_root();
    let mut facts = vec![kernel(), user(root)];
    if !root {
        facts.push(subordinate_ids());
        facts.push(mappers());
    }
    facts.extend(trial(sandbox, root, store));
    facts.push(limits());
    facts.push(filter());
    facts.push(emulators(Path::new(emulator::HANDLERS)));
    facts.push(network());
    facts
}

fn kernel() -> Fact {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release) >= (5, 12) {
        Fact::good("kernel", release)
    } else {
        Fact::bad("kernel", release, "sandboxes need Linux 5.12 or later")
    }
}

/// Major and minor number of a kernel release such as `6.18.44-fc`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn user(root: bool) -> Fact {
    let uid = rustix::process::geteuid().as_raw();
    let name = user_name(uid).unwrap_or_else(|| uid.to_string());
    match in_initial_user_namespace() {
        Ok(true) if root => Fact::good("user", "root"),
        Ok(false) if root => Fact::good("user", "root of a user namespace (device nodes of layers are left out)"),
        Ok(_) => Fact::good("user", format!("{name} (commands run in a user namespace)")),
        Err(error) => Fact::bad("user", format!("/proc/self/ns/user: {error}"), "mount /proc"),
    }
}

fn subordinate_ids() -> Fact {
    match IdMap::of_caller() {
        Ok(map) => {
            let (uid, gid) = map.last_ids();
            let enough = uid.min(gid) >= 65_535;
            let value = format!("users 0 to {uid}, groups 0 to {gid}");
            if enough {
                Fact::good("subordinate ids", value)
            } else {
                let remedy = "images use ids up to 65534 (nobody): give the user 65536 in /etc/subuid and /etc/subgid";
                Fact::bad("subordinate ids", value, remedy)
            }
        }
        Err(error) => Fact::of_error("subordinate ids", &error),
    }
}

fn mappers() -> Fact {
    let found = ["newuidmap", "newgidmap"].map(|program| (program, find_program(program)));
    let paths: Vec<_> = found.iter().filter_map(|(_, path)| path.as_ref()).collect();
    let missing: Vec<_> = found.iter().filter(|(_, path)| path.is_none()).map(|(program, _)| *program).collect();
    if missing.is_empty() {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Fact::good("id mapping programs", shown.join(", "));
    }
    let remedy = "install the package uidmap (Debian, Ubuntu), shadow-utils (Fedora) or shadow-uidmap (Alpine)";
    Fact::bad("id mapping programs", format!("no {}", missing.join(", no ")), remedy)
}

/// Which limits of `--memory`, `--cpus` and their kind can be enforced.
fn limits() -> Fact {
    match cgroup::survey() {
        Ok(value) => Fact::good("cgroups", value),
        Err((value, remedy)) => Fact::bad("cgroups", value, remedy),
    }
}

/// Whether RUN meets a filter of system calls.
fn filter() -> Fact {
    const NAME: &str = "system calls";
    if seccomp::program().is_empty() {
        return Fact::good(NAME, "not filtered: there is no table for this architecture");
    }
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(_) => Fact::good(NAME, "filtered as Docker's usual profile does"),
        Err(_) => Fact::bad(
            NAME,
            "this kernel has no seccomp filters",
            "a kernel with CONFIG_SECCOMP_FILTER; or build with --security-opt seccomp=unconfined",
        ),
    }
}

/// Programs of other architectures run where the kernel knows an emulator.
fn emulators(at: &Path) -> Fact {
    const REMEDY: &str =
        "to build for other architectures: install qemu-user-static (and binfmt-support), which registers emulators";
    let known = emulator::emulated(at);
    if known.is_empty() { Fact::bad("emulators", "none", REMEDY) } else { Fact::good("emulators", known.join(", ")) }
}

fn network() -> Fact {
    const NAME: &str = "network of RUN";
    const OWN: &str = "this machine's own; none with --network none";
    match network::usable() {
        Ok(program) => {
            Fact::good(NAME, format!("{OWN}; one of the build's with --network private, through {}", program.display()))
        }
        Err((why, remedy)) => {
            Fact::bad(NAME, format!("{OWN}; not one of the build's (--network private): {why}"), remedy)
        }
    }
}

/// Tries, in a process of its own, to become root and to mount an overlay that can remove files.
fn trial(sandbox: &Sandbox, root: bool, store: Option<&Path>) -> Vec<Fact> {
    const SPACES: &str = "user namespaces";
    let mut command = Command::new(&sandbox.init);
    command.arg0(INIT_NAME).arg(ARGUMENT).stdin(Stdio::null());
    if let Some(store) = store.filter(|store| store.is_dir()) {
        command.arg(store);
    }
    let said = match command.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => return vec![Fact::of_error("sandbox", &format!("the trial failed: {}", output.status))],
        Err(error) => return vec![Fact::of_error("sandbox", &format!("{}: {error}", sandbox.init.display()))],
    };
    let mut words = said.split('\0');
    let [spaces, overlay, error, copies] = [(); 4].map(|()| words.next().unwrap_or(""));
    let mut facts = Vec::new();
    if !root {
        facts.push(if spaces.is_empty() { Fact::good(SPACES, "allowed") } else { Fact::of_error(SPACES, &spaces) });
    } else if !spaces.is_empty() {
        facts.push(Fact::of_error("namespaces", &spaces));
    }
    if !overlay.is_empty() {
        facts.push(Fact::good("overlay", overlay));
    } else if !error.is_empty() {
        facts.push(Fact::of_error("overlay", &error));
    }
    if root && overlay.is_empty() {
        facts.push(match copies {
            "" => Fact::good(COPIES, "possible"),
            why => Fact::of_error(COPIES, &why),
        });
    }
    facts
}

/// The process of [`trial`]: writes what hindered the namespaces, the kind of overlay that works, what hindered that, and
/// what would hinder a command in a copy of its file system, each empty where it does not apply, with NUL bytes between
/// them.
pub(super) fn init(store: Option<&Path>, mut out: impl Write) -> io::Result<()> {
    close_from(3)?;
    let (mut spaces, mut overlay, mut error) = (String::new(), String::new(), String::new());
    match enter() {
        Err(why) => spaces = why,
        Ok(()) => match try_overlay(store) {
            Ok(kind) => kind.clone_into(&mut overlay),
            Err(why) => error = why,
        },
    }
    let copies = if overlay.is_empty() { try_copy(store).err().unwrap_or_default() } else { String::new() };
    out.write_all(format!("{spaces}\0{overlay}\0{error}\0{copies}\0").as_bytes())?;
    // This process ends without running what would do that.
    out.flush()
}

fn enter() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        unshare(UnshareFlags::NEWNS).map_err(|error| format!("unshare: {error}\n{}", remedy::NOT_ALLOWED))?;
        return make_private().map_err(|error| format!("{error}\n{}", remedy::NOT_ALLOWED));
    }
    let map = IdMap::of_caller().map_err(|error| error.to_string())?;
    enter_user_namespace(&map).map_err(|error| error.to_string())
}

fn try_overlay(store: Option<&Path>) -> Result<&'static str, String> {
    let at = store.unwrap_or(Path::new("/tmp"));
    if store.is_none() {
        file_system(("mount tmpfs", "tmpfs"), at, MountFlags::empty(), "").map_err(|error| error.to_string())?;
    }
    let place = |error: io::Error| format!("cannot write to {}: {error}", at.display());
    let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(at).map_err(place)?;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| folder.path().join(name));
    for path in [&lower, &upper, &work] {
        fs::create_dir(path).map_err(place)?;
    }
    fs::write(lower.join("file"), "").map_err(place)?;
    let user = !in_initial_user_namespace().map_err(|error| error.to_string())?;
    Overlay::open(&[lower], &upper, &work).and_then(|overlay| overlay.mount(&upper, MountFlags::empty(), user)).map_err(|error| {
        format!("{error}\nthe store needs a file system that overlay can write to (ext4, xfs, btrfs, tmpfs), and Linux 5.12")
    })?;
    let removed = fs::remove_file(upper.join("file"));
    unmount(&upper).map_err(|error| error.to_string())?;
    removed.map_err(|error| format!("cannot remove a file in an overlay: {error}"))?;
    let mark = fs::symlink_metadata(upper.join("file"))
        .map_err(|error| format!("an overlay left no mark of a removed file: {error}"))?;
    if !mark.file_type().is_char_device() || mark.rdev() != 0 {
        return Err("an overlay marks removed files in a way that rbuild does not know".to_owned());
    }
    folder.close().map_err(place)?;
    Ok(if user { "works (marks in user.overlay.*)" } else { "works (marks in trusted.overlay.*)" })
}

/// Tries what `--isolation chroot` takes: another root directory, and devices where the store is.
fn try_copy(store: Option<&Path>) -> Result<(), String> {
    let at = store.unwrap_or(Path::new("/tmp"));
    let place = |error: io::Error| format!("cannot write to {}: {error}", at.display());
    let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(at).map_err(place)?;
    let failed = |call: &'static str| {
        move |errno: Errno| {
            let help = remedy::for_copies(call, errno.raw_os_error()).unwrap_or_default();
            format!("{call}: {}{}", io::Error::from(errno), remedy::after(help))
        }
    };
    let node = folder.path().join("null");
    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3))
        .map_err(failed("mknod"))?;
    rustix::fs::open(&node, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open"))?;
    folder.close().map_err(place)?;
    rustix::process::chroot("/").map_err(failed("chroot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [("6.18.44-fc-v595", (6, 18)), ("5.4", (5, 4)), ("5.10-rc1", (5, 10)), ("x", (0, 0))]
        {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn the_lines_of_an_error_are_value_and_remedy() {
        assert_eq!(Fact::of_error("x", &"why\ndo this\nand that"), Fact::bad("x", "why", "do this\nand that"));
        assert_eq!(Fact::of_error("x", &"why").remedy, None);
    }
}
