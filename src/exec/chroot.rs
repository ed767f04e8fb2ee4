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
//! rbuild ──spawns──▶ rbuild-init ──forks──▶ the watcher ──forks──▶ the command: chroot, files of /etc, devices;
//!                     the same for the       takes in what the      user, capabilities, exec
//!                     watcher, if killed     command leaves, kills it
//! ```

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::UnshareFlags;

use super::init::{Woken, become_command, drain, report_of, wait_for};
use super::place::{self, Kind, only_mtime};
use super::root::{DEVICES, LINKS, failed, mask, write};
use super::wire::{Failure, Order, Report};
use crate::sys::mount::{Restrict, Tree, make_private};
use crate::sys::namespace::unshare;
use crate::sys::process::{self, Forked, end, fork};
use crate::sys::root_dir::Identity;

/// Where the machine's things are put: no layer has anything of what is there afterwards.
pub(super) const PLACES: [&str; 3] = ["proc", "sys", "dev"];

/// rbuild-init itself: has the command started and watched, and leaves nothing of it.
pub(super) fn supervise(order: &Order, control: &UnixStream) -> io::Result<Infallible> {
    // It must live long enough to kill the others: the end of rbuild is seen on the socket.
    rustix::process::set_parent_process_death_signal(None)?;
    let watched = subreaper().and_then(|()| match fork()? {
        Forked::Child => match watch(order, control) {
            Ok(never) => match never {},
            Err(error) => fail(control, error),
        },
        Forked::Parent(watcher) => rustix::io::retry_on_intr(|| wait_until_ended(watcher)).map_err(io::Error::from),
    });
    match watched {
        Ok(status) => {
            // It leaves something only if it was killed: by the command, or by the kernel for want of memory.
            kill_all()?;
            if let Some(signal) = status.terminating_signal() {
                Report::Lost(signal).send(control)?;
            }
            end(0)
        }
        Err(error) => fail(control, error),
    }
}

fn fail(control: &UnixStream, error: io::Error) -> ! {
    end(i32::from(Report::Failed(failed("start the command", "")(error)).send(control).is_err()) + 1)
}

/// From now on this process inherits what its descendants leave.
fn subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

fn wait_until_ended(process: Pid) -> Result<WaitStatus, Errno> {
    loop {
        if let Some((_, status)) = rustix::process::waitpid(Some(process), WaitOptions::empty())? {
            return Ok(status);
        }
    }
}

/// Starts the command, reports how it ended, and leaves nothing of it.
fn watch(order: &Order, control: &UnixStream) -> io::Result<Infallible> {
    subreaper()?;
    let mut children = fs::File::from(process::child_events()?);
    let command = match fork()? {
        Forked::Child => match enter(order, control).and_then(|()| become_command(order, None, None)) {
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
    let mut options = WaitOptions::NOHANG;
    loop {
        match rustix::process::wait(options) {
            // All that ended are reaped.
            Ok(None) => {}
            Ok(Some(_)) | Err(Errno::INTR) => {
                options = WaitOptions::NOHANG;
                continue;
            }
            Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        for child in &own_children()? {
            match rustix::process::kill_process(*child, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        options = WaitOptions::empty();
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
fn enter(order: &Order, control: &UnixStream) -> Result<(), Failure> {
    for join in &order.cgroups {
        fs::write(join, "0").map_err(failed("join the control group", join))?;
    }
    rustix::process::umask(Mode::empty());
    let root = &order.rootfs.upper;
    let mounts = Mounts::collect(order);
    if let Some(mounts) = &mounts {
        mounts.root.attach(root)?;
    }
    rustix::process::chroot(root).map_err(|errno| failed("chroot", root)(errno.into()))?;
    rustix::process::chdir("/").map_err(|errno| failed("chdir", "/")(errno.into()))?;
    let mut put_in = Vec::new();
    for name in PLACES {
        // In the layer it stays as it is: whether a folder, a link to one, or full of things.
        let path = Path::new("/").join(name);
        remove_all(&path).map_err(failed("remove", &path))?;
        folder(&path, &mut put_in)?;
    }
    devices(&mut put_in)?;
    if let Some((name, text)) = &order.process.script {
        folder(Path::new("/dev/pipes"), &mut put_in)?;
        write(&Path::new("/dev/pipes").join(name), 0o755, text.as_bytes())?;
    }
    for (path, text) in &order.files {
        replace(Path::new(path), text.as_bytes(), &mut put_in)?;
    }
    let files: Result<Vec<_>, _> =
        put_in.iter().map(|path| Identity::of(path).map_err(failed("statx", path))).collect();
    Report::PutIn(files?).send(control).map_err(failed("send", ""))?;
    if let Some(mounts) = mounts {
        mounts.attach()?;
    }
    place::make_working_dir(&order.process)
}

/// What this process alone sees mounted, where that is allowed.
struct Mounts {
    /// The order's folder.
    root: Tree,
    proc: Tree,
    sys: Tree,
    /// An empty folder.
    empty: Tree,
}

impl Mounts {
    /// A place that allows no mounts has none to give.
    fn collect(order: &Order) -> Option<Self> {
        unshare(UnshareFlags::NEWNS).ok()?;
        make_private().ok()?;
        if unshare(UnshareFlags::NEWUTS).is_ok() {
            // Else it has the machine's name, as where that cannot be hidden.
            let _ = rustix::system::sethostname(order.process.hostname.as_bytes());
        }
        let copy = |path: &str, restrict| {
            Tree::copy(CWD, Path::new(path), true).and_then(|tree| tree.restrict(restrict, true)).ok()
        };
        Some(Self {
            root: Tree::copy(CWD, &order.rootfs.upper, false).ok()?,
            proc: copy("/proc", Restrict::INERT)?,
            sys: copy("/sys", Restrict::DATA)?,
            empty: Tree::of_file_system(("mount tmpfs", "tmpfs"), Restrict::READ_ONLY).ok()?,
        })
    }

    /// Mounts them, now that the folder is the root. No device but those of /dev can be opened from here on.
    fn attach(self) -> Result<(), Failure> {
        let paths = DEVICES.map(|(name, ..)| Path::new("/dev").join(name));
        let nodes: Result<Vec<_>, _> = paths.iter().map(|path| Tree::copy(CWD, path, false)).collect();
        self.root.restrict(Restrict::NO_DEVICES, false)?;
        for (path, node) in paths.iter().zip(nodes?) {
            node.attach(path)?;
        }
        self.proc.attach(Path::new("/proc"))?;
        self.sys.attach(Path::new("/sys"))?;
        mask(&self.empty)
    }
}

/// Sees to it that a folder is there. What is made for that is added to the list.
fn folder(path: &Path, put_in: &mut Vec<PathBuf>) -> Result<(), Failure> {
    place::make(path, Kind::Folder, &mut |stub| {
        put_in.push(Path::new("/").join(stub.path));
        Ok(())
    })
}

/// Removes what stands at a path, if anything does, and follows no link.
fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Devices and links in /dev, and a folder for shared memory.
fn devices(put_in: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let dev = Path::new("/dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        let (mode, device) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
            .map_err(|errno| failed("mknod", &path)(errno.into()))?;
        put_in.push(path);
    }
    for (name, target) in LINKS {
        let path = dev.join(name);
        std::os::unix::fs::symlink(target, &path).map_err(failed("symlink", &path))?;
        put_in.push(path);
    }
    let shared = dev.join("shm");
    folder(&shared, put_in)?;
    rustix::fs::chmod(&shared, Mode::from_raw_mode(0o1777)).map_err(|errno| failed("chmod", &shared)(errno.into()))
}

/// Puts a file of the machine's in the place of the image's, whose folder keeps its time.
fn replace(path: &Path, bytes: &[u8], put_in: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let real = place::real_path(path)?;
    let parent: PathBuf = real.parent().unwrap_or(Path::new("/")).to_owned();
    folder(&parent, put_in)?;
    let before = rustix::fs::stat(&parent).map_err(|errno| failed("stat", &parent)(errno.into()))?;
    // Not written into: it could be another file's second name.
    match fs::remove_file(&real) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &real)(error)),
        _ => {}
    }
    write(&real, 0o644, bytes)?;
    rustix::fs::utimensat(CWD, &parent, &only_mtime(&before), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("set the time of", &parent)(errno.into()))?;
    put_in.push(real);
    Ok(())
}
