//! The mounts of a sandbox: its root, /proc, /sys, /dev, the files of /etc.
//!
//! In: an [`Order`], in the sandbox's first process, which has left the machine's PID namespace and nothing else yet.
//! Out: a process whose root is the command's file system. What always holds: every mount is in a namespace that ends
//! with the sandbox; nothing of the machine's own root is reachable when [`enter`] returns; paths of the image are only
//! followed once its root is the root, so that no link in it leads out.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::RootFs;
use super::mounts::Mounts;
use super::place::{self, Kind};
use super::remedy::is_forbidden;
use super::wire::{Failure, Order, Stub};
use crate::plan::limits::Security;
use crate::plan::step::Network;
use crate::sys::mount::{MountError, Overlay, Restrict, Tree, file_system, make_private, pivot};
use crate::sys::namespace::{bring_up_loopback, unshare};

/// The devices that Docker gives to a container: name, major and minor number.
pub(super) const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

pub(super) const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// What tells of, or reaches into, the machine rather than the sandbox: hidden where it is there.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The size of `/dev/shm` unless something else is asked for.
pub const DEFAULT_SHM: u64 = 64 << 20;

/// A shorthand for errors: what was tried on what.
pub(super) fn failed(call: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failure {
    let path = path.as_ref().display().to_string();
    move |error| Failure { call: call.to_owned(), path, errno: error.raw_os_error().unwrap_or(0) }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        failed(error.call, &error.path)(error.source)
    }
}

/// Leaves the remaining namespaces of the machine and makes the order's file system the root.
pub(super) fn enter(order: &Order, announce: &mut dyn FnMut(Stub) -> io::Result<()>) -> Result<(), Failure> {
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if order.process.network == Network::None {
        namespaces |= UnshareFlags::NEWNET;
    }
    unshare(namespaces).map_err(failed("unshare", ""))?;
    rustix::system::sethostname(order.process.hostname.as_bytes())
        .map_err(|errno| failed("sethostname", &order.process.hostname)(errno.into()))?;
    if order.process.network == Network::None {
        bring_up_loopback().map_err(failed("bring up", "lo"))?;
    }
    make_private()?;
    // In this namespace alone the two folders of the overlay serve as places to mount on; the overlay itself holds on
    // to what is below.
    let RootFs { lower, upper, work, mounts, .. } = &order.rootfs;
    let mut overlay = Overlay::open(lower, upper, work)?;
    let (parts, more) = Parts::collect(work, order)?;
    if overlay.is_bottomless() {
        overlay.push_lower(&work.join("empty"))?;
    }
    let flags = match order.process.security {
        Security::Sandbox => MountFlags::NODEV,
        Security::Insecure => MountFlags::empty(),
    };
    overlay.mount(upper, flags, order.user_xattr)?;
    drop(overlay);
    pivot(upper)?;
    // From here on every path is one of the image's, links and all, and cannot lead out of it.
    parts.attach(order, announce)?;
    let cwd = &order.process.cwd;
    // A mount may bring the working directory; else it is the image's, whatever is mounted in it.
    if !mounts.iter().any(|mount| Path::new(cwd).starts_with(&mount.target)) {
        place::make_working_dir(&order.process)?;
    }
    if !mounts.is_empty() {
        more.attach(order, announce)?;
        place::make_working_dir(&order.process)?;
    }
    Ok(())
}

fn inert() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

/// All that the sandbox mounts in its root and that must be taken from outside: nothing is attached anywhere yet.
struct Parts {
    proc: Tree,
    sys: Tree,
    cgroups: Cgroups,
    dev: Tree,
    /// Device nodes that are mounted one by one.
    devices: Vec<(&'static str, Tree)>,
    /// `/dev/pipes`.
    pipes: Option<Tree>,
    /// Those of the order, in its order.
    files: Vec<Tree>,
    /// An empty folder.
    empty: Tree,
}

enum Cgroups {
    /// There are none, or `sys` has them already.
    Nothing,
    /// Of version 2: mount those of the cgroup namespace.
    Unified,
    /// What the machine has mounted.
    Copied(Tree),
}

impl Parts {
    /// Makes or copies them; a file system in memory, mounted over the folder `at`, holds what is made.
    fn collect(at: &Path, order: &Order) -> Result<(Self, Mounts), Failure> {
        file_system(("mount tmpfs", "tmpfs"), at, MountFlags::NOSUID, "mode=0755,size=65536k")?;
        let fail = |call, path: &str| {
            let path = path.to_owned();
            move |errno: Errno| failed(call, &path)(errno.into())
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(at, flags, Mode::empty()).map_err(fail("open", "the sandbox's tmpfs"))?;
        let make_folder =
            |name| rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)).map_err(fail("mkdir", name));
        for name in ["empty", "files", "dev", "dev/pts", "dev/shm", "dev/mqueue"] {
            make_folder(name)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &folder, Path::new("dev").join(name)).map_err(fail("symlink", name))?;
        }
        let (nodes, devices) = match order.process.security {
            Security::Sandbox => {
                make_folder("nodes")?;
                (Restrict::NO_DEVICES, make_devices(folder.as_fd(), Path::new("nodes"))?)
            }
            Security::Insecure => (Restrict::NOTHING, make_devices(folder.as_fd(), Path::new("dev"))?),
        };
        let copy = |name: &Path, restrict| Tree::copy(folder.as_fd(), name, false)?.restrict(restrict, false);
        let mut pipes = None;
        if let Some((name, text)) = &order.process.script {
            make_folder("dev/pipes")?;
            write(&at.join("dev/pipes").join(name), 0o755, text.as_bytes())?;
            pipes = Some(copy(Path::new("dev/pipes"), Restrict::READ_ONLY)?);
        }
        let mut files = Vec::with_capacity(order.files.len());
        for (number, (_, text)) in order.files.iter().enumerate() {
            let name = Path::new("files").join(number.to_string());
            write(&at.join(&name), 0o644, text.as_bytes())?;
            files.push(copy(&name, Restrict::DATA)?);
        }
        let (sys, cgroups) = sys(match order.process.security {
            Security::Sandbox => Restrict::DATA,
            Security::Insecure => Restrict::INERT,
        })?;
        let dev = copy(Path::new("dev"), Restrict::NO_SUID.and(nodes))?;
        let empty = copy(Path::new("empty"), Restrict::READ_ONLY)?;
        let more = Mounts::collect(at, folder.as_fd(), order, nodes)?;
        Ok((Self { proc: proc()?, sys, cgroups, dev, devices, pipes, files, empty }, more))
    }

    /// Mounts them, now that the image's file system is the root.
    fn attach(self, order: &Order, announce: &mut dyn FnMut(Stub) -> io::Result<()>) -> Result<(), Failure> {
        for (path, tree) in [("/proc", &self.proc), ("/sys", &self.sys), ("/dev", &self.dev)] {
            place::make(Path::new(path), Kind::Folder, announce)?;
            tree.attach(Path::new(path))?;
        }
        let cgroup = Path::new("/sys/fs/cgroup");
        match &self.cgroups {
            Cgroups::Nothing => {}
            // Programs find the limits that hold for them at its root.
            Cgroups::Unified => {
                let flags = match order.process.security {
                    Security::Sandbox => inert() | MountFlags::RDONLY,
                    Security::Insecure => inert(),
                };
                file_system(("mount cgroup2", "cgroup2"), cgroup, flags, "")?;
            }
            Cgroups::Copied(tree) => tree.attach(cgroup)?,
        }
        for (name, tree) in &self.devices {
            tree.attach(&Path::new("/dev").join(name))?;
        }
        if let Some(pipes) = &self.pipes {
            pipes.attach(Path::new("/dev/pipes"))?;
        }
        devpts()?;
        let size = if order.process.shm_size == 0 { DEFAULT_SHM } else { order.process.shm_size };
        file_system(("mount tmpfs", "tmpfs"), Path::new("/dev/shm"), inert(), &format!("mode=1777,size={size}"))?;
        match file_system(("mount mqueue", "mqueue"), Path::new("/dev/mqueue"), inert(), "") {
            // A kernel without POSIX message queues.
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => {}
            done => done?,
        }
        if order.process.security == Security::Sandbox {
            mask(&self.empty)?;
        }
        for ((path, _), tree) in order.files.iter().zip(&self.files) {
            place::make(Path::new(path), Kind::File, announce)?;
            tree.attach(Path::new(path))?;
        }
        Ok(())
    }
}

/// Hides what tells of the machine in /proc and /sys by an `empty` folder, and makes what changes it read-only.
pub(super) fn mask(empty: &Tree) -> Result<(), Failure> {
    let mut used = false;
    for path in MASKED.map(Path::new) {
        match rustix::fs::stat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                if used {
                    Tree::copy(empty.as_fd(), Path::new(""), false)?.attach(path)?;
                } else {
                    empty.attach(path)?;
                    used = true;
                }
            }
            Ok(_) => Tree::copy(CWD, Path::new("/dev/null"), false)?.attach(path)?,
            // EACCES: a copied /proc or /sys hides it from us already.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(errno) => return Err(failed("stat", path)(errno.into())),
        }
    }
    for path in READ_ONLY.map(Path::new) {
        if let Some(tree) = Tree::copy_if_there(CWD, path, true)? {
            tree.restrict(Restrict::READ_ONLY, true)?.attach(path)?;
        }
    }
    Ok(())
}

/// A /proc of the sandbox's own processes. Where that of the machine is masked (in a container), the kernel does not
/// allow an unmasked one, and the machine's is used.
fn proc() -> Result<Tree, MountError> {
    match Tree::of_file_system(("mount proc", "proc"), Restrict::INERT) {
        Err(error) if is_forbidden(&error.source) => Tree::copy(CWD, Path::new("/proc"), true),
        done => done,
    }
}

/// A /sys, read-only as a rule. A fresh one shows the network namespace, and only its owner may mount it: with the machine's
/// network, an ordinary user gets a copy of what is mounted.
fn sys(restrict: Restrict) -> Result<(Tree, Cgroups), MountError> {
    const CGROUP2_MAGIC: i128 = 0x6367_7270;
    let fresh = match Tree::of_file_system(("mount sysfs", "sysfs"), restrict) {
        Err(error) if is_forbidden(&error.source) => {
            let copy = Tree::copy(CWD, Path::new("/sys"), true)?.restrict(restrict, true)?;
            return Ok((copy, Cgroups::Nothing));
        }
        done => done?,
    };
    let folder = Path::new("/sys/fs/cgroup");
    let cgroups = match rustix::fs::statfs(folder) {
        Ok(system) if i128::from(system.f_type) == CGROUP2_MAGIC => Cgroups::Unified,
        Ok(_) => Cgroups::Copied(Tree::copy(CWD, folder, true)?.restrict(restrict, true)?),
        Err(_) => Cgroups::Nothing,
    };
    Ok((fresh, cgroups))
}

/// Makes the device nodes in the folder `at` of `folder`. Where that is not `dev`, in which no node can be opened, and where
/// none can be made (in a user namespace), makes empty files in `dev` to mount on, and returns what is to be mounted:
/// those nodes, or copies of the machine's.
fn make_devices(folder: BorrowedFd<'_>, at: &Path) -> Result<Vec<(&'static str, Tree)>, Failure> {
    let dev = Path::new("dev");
    let make = |node: &Path, kind, device| rustix::fs::mknodat(folder, node, kind, Mode::from_raw_mode(0o666), device);
    let mut mounted = Vec::new();
    for (name, major, minor) in DEVICES {
        let node = at.join(name);
        let tree = match make(&node, FileType::CharacterDevice, rustix::fs::makedev(major, minor)) {
            Ok(()) if at == dev => continue,
            Ok(()) => Some(Tree::copy(folder, &node, false)?),
            // A machine that is itself a container may lack one; then the command does, too.
            Err(Errno::PERM) => Tree::copy_if_there(CWD, &Path::new("/dev").join(name), false)?,
            Err(errno) => return Err(failed("mknod", name)(errno.into())),
        };
        if let Some(tree) = tree {
            make(&dev.join(name), FileType::RegularFile, 0).map_err(|errno| failed("mknod", name)(errno.into()))?;
            mounted.push((name, tree));
        }
    }
    Ok(mounted)
}

/// Terminals of the sandbox's own. Group 5 is `tty` everywhere; a namespace without it does without it.
fn devpts() -> Result<(), MountError> {
    let mount = |options| {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        file_system(("mount devpts", "devpts"), Path::new("/dev/pts"), flags, options)
    };
    match mount("newinstance,ptmxmode=0666,mode=0620,gid=5") {
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => mount("newinstance,ptmxmode=0666,mode=0620"),
        done => done,
    }
}

pub(super) fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(failed("write", path))
}
