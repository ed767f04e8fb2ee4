//! The mounts of a sandbox: its root, /proc, /sys, /dev, the files of /etc.
//!
//! In: an [`Order`], in the sandbox's first process, which has left the machine's PID namespace and nothing else yet.
//! Out: a process whose root is the command's file system. What always holds: every mount is in a namespace that ends
//! with the sandbox; nothing of the machine's own root is reachable when [`enter`] returns; paths of the image are only
//! followed once its root is the root, so that no link in it leads out.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::place::{self, Kind};
use super::wire::{Failure, Order, Stub};
use crate::plan::step::Network;
use crate::sys::mount::{MountError, OldRoot, Overlay, Restrict, Tree, file_system, make_private, pivot};
use crate::sys::namespace::{bring_up_loopback, unshare};

/// The devices that Docker gives to a container: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
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

const DEFAULT_SHM: u64 = 64 << 20;

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
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
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
    let mut overlay = Overlay::open(&order.rootfs.lower, &order.rootfs.upper, &order.rootfs.work)?;
    let staging = Staging::make(&order.rootfs.work, order)?;
    if overlay.is_bottomless() {
        overlay.push_lower(&order.rootfs.work.join("empty"))?;
    }
    overlay.mount(&order.rootfs.upper, order.user_xattr)?;
    drop(overlay);
    let old = pivot(&order.rootfs.upper)?;
    let mut place = |path: &str, kind| {
        place::make(Path::new(path), kind, announce).map_err(|(path, error)| failed("make a place to mount on", path)(error))
    };
    for folder in ["/proc", "/sys", "/dev"] {
        place(folder, Kind::Folder)?;
    }
    proc(&old)?;
    sys(&old)?;
    staging.attach_dev(&old, order)?;
    staging.mask()?;
    for path in READ_ONLY {
        if let Some(tree) = Tree::copy_if_there(CWD, Path::new(path), true)? {
            tree.restrict(Restrict::READ_ONLY, true)?.attach(Path::new(path))?;
        }
    }
    for (number, (path, _)) in order.files.iter().enumerate() {
        place(path, Kind::File)?;
        let file = Path::new("files").join(number.to_string());
        let tree = Tree::copy(staging.folder.as_fd(), &file, false)?.restrict(Restrict::DATA, false)?;
        tree.attach(Path::new(path))?;
    }
    drop(staging);
    old.detach()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&order.process.cwd)
        .map_err(failed("make the working directory", &order.process.cwd))
}

fn inert() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

fn refused(error: &MountError) -> bool {
    matches!(error.source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// A /proc of the sandbox's own processes. Where that of the machine is masked (in a container), the kernel does not
/// allow an unmasked one, and the machine's is used.
fn proc(old: &OldRoot) -> Result<(), Failure> {
    let target = Path::new("/proc");
    match file_system(("mount proc", "proc"), target, inert(), "") {
        Err(error) if refused(&error) => Ok(Tree::copy(old.as_fd(), Path::new("proc"), true)?.attach(target)?),
        done => Ok(done?),
    }
}

/// A read-only /sys. A fresh one shows the network namespace, and only its owner may mount it: with the machine's
/// network, an ordinary user gets a copy of what is mounted.
fn sys(old: &OldRoot) -> Result<(), Failure> {
    const CGROUPS: &str = "sys/fs/cgroup";
    const CGROUP2_MAGIC: i64 = 0x6367_7270;
    let (target, read_only) = (Path::new("/sys"), inert() | MountFlags::RDONLY);
    match file_system(("mount sysfs", "sysfs"), target, read_only, "") {
        Err(error) if refused(&error) => {
            let tree = Tree::copy(old.as_fd(), Path::new("sys"), true)?.restrict(Restrict::DATA, true)?;
            return Ok(tree.attach(target)?);
        }
        done => done?,
    }
    let target = Path::new("/sys/fs/cgroup");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let unified = rustix::fs::openat(old, CGROUPS, flags, Mode::empty())
        .and_then(|folder| rustix::fs::fstatfs(&folder))
        .is_ok_and(|system| system.f_type as i64 == CGROUP2_MAGIC);
    if rustix::fs::access(target, rustix::fs::Access::EXISTS).is_err() {
        return Ok(());
    }
    if unified {
        // Of the sandbox's cgroup namespace: programs find the limits that hold for them at its root.
        return Ok(file_system(("mount cgroup2", "cgroup2"), target, read_only, "")?);
    }
    if let Some(tree) = Tree::copy_if_there(old.as_fd(), Path::new(CGROUPS), true)? {
        tree.restrict(Restrict::DATA, true)?.attach(target)?;
    }
    Ok(())
}

/// A small file system in memory with all that the sandbox brings along: `dev`, `files` (of /etc), `empty`.
struct Staging {
    folder: OwnedFd,
    /// Device nodes cannot be made here (in a user namespace): `dev` has empty files to mount the machine's on.
    borrowed_devices: bool,
}

impl Staging {
    fn make(at: &Path, order: &Order) -> Result<Self, Failure> {
        file_system(("mount tmpfs", "tmpfs"), at, MountFlags::NOSUID, "mode=0755,size=65536k")?;
        let fail = |call, path: &str| {
            let path = path.to_owned();
            move |errno: Errno| failed(call, &path)(errno.into())
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(at, flags, Mode::empty()).map_err(fail("open", "the sandbox's tmpfs"))?;
        for name in ["empty", "files", "dev", "dev/pts", "dev/shm", "dev/mqueue"] {
            rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)).map_err(fail("mkdir", name))?;
        }
        for (number, (_, text)) in order.files.iter().enumerate() {
            write(&at.join("files").join(number.to_string()), 0o644, text)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &folder, Path::new("dev").join(name)).map_err(fail("symlink", name))?;
        }
        if let Some((name, text)) = &order.process.script {
            rustix::fs::mkdirat(&folder, "dev/pipes", Mode::from_raw_mode(0o755)).map_err(fail("mkdir", "dev/pipes"))?;
            write(&at.join("dev/pipes").join(name), 0o755, text)?;
        }
        let mut borrowed_devices = false;
        for (name, major, minor) in DEVICES {
            let node = Path::new("dev").join(name);
            let mode = Mode::from_raw_mode(0o666);
            if !borrowed_devices {
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(&folder, &node, FileType::CharacterDevice, mode, device) {
                    Ok(()) => continue,
                    Err(Errno::PERM) => borrowed_devices = true,
                    Err(errno) => return Err(fail("mknod", name)(errno)),
                }
            }
            rustix::fs::mknodat(&folder, &node, FileType::RegularFile, mode, 0).map_err(fail("mknod", name))?;
        }
        Ok(Self { folder, borrowed_devices })
    }

    fn copy(&self, path: &str) -> Result<Tree, MountError> {
        Tree::copy(self.folder.as_fd(), Path::new(path), false)
    }

    fn attach_dev(&self, old: &OldRoot, order: &Order) -> Result<(), Failure> {
        self.copy("dev")?.restrict(Restrict::NO_SUID, false)?.attach(Path::new("/dev"))?;
        if self.borrowed_devices {
            for (name, ..) in DEVICES {
                // A machine that is itself a container may lack one; then the command does, too.
                if let Some(tree) = Tree::copy_if_there(old.as_fd(), &Path::new("dev").join(name), false)? {
                    tree.attach(&Path::new("/dev").join(name))?;
                } else {
                    rustix::fs::unlinkat(&self.folder, Path::new("dev").join(name), AtFlags::empty())
                        .map_err(|errno| failed("unlink", name)(errno.into()))?;
                }
            }
        }
        if order.process.script.is_some() {
            self.copy("dev/pipes")?.restrict(Restrict::READ_ONLY, false)?.attach(Path::new("/dev/pipes"))?;
        }
        devpts()?;
        let size = if order.process.shm_size == 0 { DEFAULT_SHM } else { order.process.shm_size };
        file_system(("mount tmpfs", "tmpfs"), Path::new("/dev/shm"), inert(), &format!("mode=1777,size={size}"))?;
        match file_system(("mount mqueue", "mqueue"), Path::new("/dev/mqueue"), inert(), "") {
            // A kernel without POSIX message queues.
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => Ok(done?),
        }
    }

    fn mask(&self) -> Result<(), Failure> {
        for path in MASKED {
            let tree = match rustix::fs::stat(path) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    self.copy("empty")?.restrict(Restrict::READ_ONLY, false)?
                }
                Ok(_) => Tree::copy(CWD, Path::new("/dev/null"), false)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
                Err(errno) => return Err(failed("stat", path)(errno.into())),
            };
            tree.attach(Path::new(path))?;
        }
        Ok(())
    }
}

/// Terminals of the sandbox's own. Group 5 is `tty` everywhere; a namespace without it does without it.
fn devpts() -> Result<(), Failure> {
    let mount = |options| {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        file_system(("mount devpts", "devpts"), Path::new("/dev/pts"), flags, options)
    };
    match mount("newinstance,ptmxmode=0666,mode=0620,gid=5") {
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
            Ok(mount("newinstance,ptmxmode=0666,mode=0620")?)
        }
        done => Ok(done?),
    }
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(failed("write", path))
}
