//! A command in a copy of its file system: `--isolation chroot`, for places that allow no namespaces and no mounts.
//!
//! In: an order whose upper folder is a whole root file system, nobody else's. Out: reports, as from a sandbox; what the
//! command changed is in the folder, with what was put in for it. What always holds: no path of the image is followed
//! before the folder is the root; when the other end of the socket is closed, or the command ends, every process that it
//! left is killed, whoever its parent is by then.
//!
//! This keeps a command from changing the machine by mistake. It is no wall against one that wants to: it sees the
//! machine's network, and as root it can send signals to the machine's processes.
//!
//! ```text
//! rbuild ──spawns──▶ rbuild-init ──forks──▶ the command: chroot, files of /etc, devices; user, capabilities, exec
//!                     takes in what the command leaves, kills it
//! ```

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::init::{Woken, become_command, drain, report_of, wait_for};
use super::place::{self, Kind, only_mtime};
use super::root::{DEVICES, LINKS, failed, write};
use super::wire::{Failure, Order, Report};
use crate::sys::mount::{Restrict, Tree, make_private};
use crate::sys::namespace::unshare;
use crate::sys::process::{self, Forked, end, fork};

/// Where the machine's things are put: no layer has anything of what is there afterwards.
pub(super) const PLACES: [&str; 3] = ["proc", "sys", "dev"];

/// rbuild-init itself: starts the command, reports how it ended, and leaves nothing of it.
pub(super) fn supervise(order: &Order, control: &UnixStream) -> io::Result<Infallible> {
    // It must live long enough to kill the others: the end of rbuild is seen on the socket.
    rustix::process::set_parent_process_death_signal(None)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut children = fs::File::from(process::child_events()?);
    let command = match fork()? {
        Forked::Child => match enter(order).and_then(|()| become_command(order, None, None)) {
            Ok(code) => end(code),
            Err(failure) => {
                let told = Report::Failed(failure).send(control);
                end(i32::from(told.is_ok()) + 1)
            }
        },
        Forked::Parent(command) => command,
    };
    loop {
        if wait_for(control, children.as_fd())? == Woken::Closed {
            kill_all()?;
            end(0)
        }
        drain(&mut children)?;
        while let Some((process, status)) = rustix::process::wait(WaitOptions::NOHANG)? {
            if process == command
                && let Some(report) = report_of(status)
            {
                kill_all()?;
                report.send(control)?;
                end(0)
            }
        }
    }
}

/// Kills all descendants. Those whose parents die become this process's children.
fn kill_all() -> io::Result<()> {
    loop {
        let own = own_children()?;
        for child in &own {
            match rustix::process::kill_process(*child, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The children of this process.
fn own_children() -> io::Result<Vec<Pid>> {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let is_own = |process: &Path| {
        // The name of the program, in parentheses, can hold anything; then comes the state, then the parent.
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
        (parent == own).then_some(())
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(number) = number
            && is_own(&entry.path()).is_some()
        {
            found.push(number);
        }
    }
    Ok(found)
}

/// Makes the order's folder the root of this process, and puts in what commands expect.
fn enter(order: &Order) -> Result<(), Failure> {
    for join in &order.cgroups {
        fs::write(join, "0").map_err(failed("join the control group", join))?;
    }
    rustix::process::umask(Mode::empty());
    let machine = machine();
    let root = &order.rootfs.upper;
    rustix::process::chroot(root).map_err(|errno| failed("chroot", root)(errno.into()))?;
    rustix::process::chdir("/").map_err(|errno| failed("chdir", "/")(errno.into()))?;
    for name in PLACES {
        folder(&Path::new("/").join(name))?;
    }
    for (path, tree) in machine {
        tree.attach(path)?;
    }
    devices()?;
    if let Some((name, text)) = &order.process.script {
        folder(Path::new("/dev/pipes"))?;
        write(&Path::new("/dev/pipes").join(name), 0o755, text.as_bytes())?;
    }
    for (path, text) in &order.files {
        replace(Path::new(path), text.as_bytes())?;
    }
    place::make_working_dir(&order.process).map_err(|(path, error)| failed("make the working directory", path)(error))
}

/// The machine's /proc and /sys, where it can be had that this process alone sees them below the new root. A place that
/// allows no mounts has none to give.
fn machine() -> Vec<(&'static Path, Tree)> {
    if unshare(UnshareFlags::NEWNS).is_err() || make_private().is_err() {
        return Vec::new();
    }
    let copy = |path: &'static str, restrict| {
        let tree = Tree::copy(CWD, Path::new(path), true).and_then(|tree| tree.restrict(restrict, true)).ok()?;
        Some((Path::new(path), tree))
    };
    [copy("/proc", Restrict::INERT), copy("/sys", Restrict::DATA)].into_iter().flatten().collect()
}

fn folder(path: &Path) -> Result<(), Failure> {
    place::make(path, Kind::Folder, &mut |_| Ok(()))
        .map_err(|(path, error)| failed("make a place to mount on", path)(error))
}

/// What stands at a path goes, if it is no folder.
fn clear(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Devices and links in /dev, and a folder for shared memory.
fn devices() -> Result<(), Failure> {
    let dev = Path::new("/dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        clear(&path)?;
        let (mode, device) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
            .map_err(|errno| failed("mknod", &path)(errno.into()))?;
    }
    for (name, target) in LINKS {
        let path = dev.join(name);
        clear(&path)?;
        std::os::unix::fs::symlink(target, &path).map_err(failed("symlink", &path))?;
    }
    let shared = dev.join("shm");
    folder(&shared)?;
    rustix::fs::chmod(&shared, Mode::from_raw_mode(0o1777)).map_err(|errno| failed("chmod", &shared)(errno.into()))
}

/// Puts a file of the machine's in the place of the image's, whose folder keeps its time.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let real = place::real_path(path).map_err(|(path, error)| failed("make a place to mount on", path)(error))?;
    let parent: PathBuf = real.parent().unwrap_or(Path::new("/")).to_owned();
    folder(&parent)?;
    let before = rustix::fs::stat(&parent).map_err(|errno| failed("stat", &parent)(errno.into()))?;
    // Not written into: it could be another file's second name.
    clear(&real)?;
    write(&real, 0o644, bytes)?;
    rustix::fs::utimensat(CWD, &parent, &only_mtime(&before), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("set the time of", &parent)(errno.into()))
}
