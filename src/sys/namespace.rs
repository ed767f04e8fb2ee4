//! Namespaces: leaving those of the machine, and becoming root in a user namespace.
//!
//! In: a process with one thread. Out: the same process in namespaces of its own. What always holds: a process of more
//! threads is refused before anything has changed; after [`enter_user_namespace`] this process is uid 0 and gid 0 with
//! every capability over the ids of its map, and its mounts are private.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::UnshareFlags;

use super::idmap::{Extent, IdMap};
use super::mount::{MountError, make_private};
use super::process::{Forked, end, fork, thread_count};

/// Why the user namespace could not be entered. The messages end in what to do.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The process has more than one thread: an error of rbuild.
    #[error("internal error: the user namespace must be entered by a process with one thread, and this one has {0}")]
    Threads(u64),
    /// The kernel refused it.
    #[error("cannot make a user namespace: {source}\n{}", unshare_remedy(source))]
    Unshare {
        /// The kernel's reason.
        source: io::Error,
    },
    /// The setuid program that writes the map is missing.
    #[error(
        "cannot find {program}, which maps subordinate ids\ninstall it: package `uidmap` (Debian, Ubuntu), `shadow-utils` (Fedora), `shadow-uidmap` (Alpine)"
    )]
    NoProgram {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
    },
    /// The setuid program failed.
    #[error(
        "{message}\nthe ranges must be this user's in /etc/subuid and /etc/subgid, and newuidmap and newgidmap must be set-user-id root (or have the file capabilities cap_setuid, cap_setgid); in a container they do nothing under no-new-privileges"
    )]
    Map {
        /// The command and what it said.
        message: String,
    },
    /// Mounting inside is refused though the namespace was allowed: AppArmor's rule of Ubuntu 23.10 and later.
    #[error(
        "a user namespace could be made, but mounting in it is refused: {source}\nthis is AppArmor's rule for unprivileged user namespaces: allow it for rbuild by a profile with the line `userns,` in /etc/apparmor.d, or for all with `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    )]
    Mount {
        /// The call that was refused.
        source: MountError,
    },
    /// Something that does not fail.
    #[error("cannot enter a user namespace: {call}: {source}")]
    Call {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn unshare_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => "raise the limit: `sysctl user.max_user_namespaces=65536`",
        Some(libc::EPERM) => {
            "allow them: `sysctl kernel.unprivileged_userns_clone=1` (Debian); in a container, its seccomp profile must allow unshare(2)"
        }
        Some(libc::EINVAL | libc::ENOSYS) => "this kernel was built without user namespaces (CONFIG_USER_NS)",
        _ => "run rbuild as root, or on a machine that allows user namespaces",
    }
}

/// Whether this process is in the user namespace that the machine started with: where overlay's marks are
/// `trusted.overlay.*` and device nodes can be made.
pub fn in_initial_user_namespace() -> io::Result<bool> {
    // A constant of the kernel's interface (PROC_USER_INIT_INO).
    const INITIAL: u64 = 0xEFFF_FFFD;
    Ok(rustix::fs::stat("/proc/self/ns/user")?.st_ino == INITIAL)
}

/// Leaves the namespaces of `flags` for new ones.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the one danger of unshare(2) is CLONE_FILES, which would close descriptors of other threads; it is not
    // used, and processes that come here have one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Moves this process into a user and a mount namespace of its own, where it is root over the ids of `map`.
pub fn enter_user_namespace(map: &IdMap) -> Result<(), NamespaceError> {
    let call = |call| move |source| NamespaceError::Call { call, source };
    let mut threads = thread_count().map_err(call("count threads"))?;
    // A thread that was joined may still be on its way out of the kernel.
    for _ in 0..200 {
        if threads == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        threads = thread_count().map_err(call("count threads"))?;
    }
    if threads != 1 {
        return Err(NamespaceError::Threads(threads));
    }
    let programs = [("newuidmap", &map.uids), ("newgidmap", &map.gids)];
    let mut found = Vec::new();
    for (program, extents) in programs {
        let path = find_program(program).ok_or(NamespaceError::NoProgram { program })?;
        found.push((path, extents));
    }
    let process = std::process::id().to_string();
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().map_err(call("socketpair"))?;
    // The programs must run outside the new namespace, and it must exist before they run: so a helper is forked first.
    match fork().map_err(call("fork"))? {
        Forked::Child => {
            drop(ours);
            let mut go = [0];
            // End of file without the byte: the namespace could not be made.
            if theirs.read_exact(&mut go).is_err() {
                end(0);
            }
            let said = found.iter().find_map(|(path, extents)| run_mapper(path, &process, extents).err());
            let told = theirs.write_all(said.unwrap_or_default().as_bytes());
            end(i32::from(told.is_err()));
        }
        Forked::Parent(helper) => {
            drop(theirs);
            let made = unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS);
            let mut said = String::new();
            let told = match &made {
                Ok(()) => ours.write_all(&[1]).and_then(|()| ours.read_to_string(&mut said).map(drop)),
                Err(_) => Ok(()),
            };
            drop(ours);
            let status = rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(helper), rustix::process::WaitOptions::empty())
            });
            made.map_err(|source| NamespaceError::Unshare { source })?;
            told.map_err(call("hear from the id mapping helper"))?;
            if !said.is_empty() {
                return Err(NamespaceError::Map { message: said });
            }
            match status.map_err(|errno| call("wait for the id mapping helper")(errno.into()))? {
                Some((_, status)) if status.exit_status() == Some(0) => {}
                status => {
                    let message = format!("the id mapping helper ended early: {status:?}");
                    return Err(NamespaceError::Map { message });
                }
            }
        }
    }
    make_private().map_err(|source| NamespaceError::Mount { source })
}

/// Runs `newuidmap` or `newgidmap`; the error is the command with what it said.
fn run_mapper(program: &Path, process: &str, extents: &[Extent]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(process);
    for extent in extents {
        command.args([extent.inside, extent.outside, extent.count].map(|number| number.to_string()));
    }
    let shown = || {
        let args: Vec<_> = command_words(program, process, extents);
        args.join(" ")
    };
    match command.output() {
        Err(error) => Err(format!("{}: {error}", shown())),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} failed ({}): {}", shown(), output.status, said.trim()))
        }
    }
}

fn command_words(program: &Path, process: &str, extents: &[Extent]) -> Vec<String> {
    let mut words = vec![program.display().to_string(), process.to_owned()];
    words
        .extend(extents.iter().flat_map(|extent| [extent.inside, extent.outside, extent.count]).map(|n| n.to_string()));
    words
}

/// Where `program` is: in PATH, or where distributions put such programs.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Brings up `lo`, the one interface that a new network namespace has.
pub fn bring_up_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket: OwnedFd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero `ifreq` is a valid value; the name is shorter than its field, and the flags are the member
    // of the union that the request reads.
    let code = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
