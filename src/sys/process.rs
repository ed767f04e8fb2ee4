//! Processes: fork where it is safe, exec, signals, capabilities.
//!
//! In: a process with one thread that is about to become, or to watch, a command. Out: nothing but what the calls do.
//! What always holds: [`fork`] refuses a process with more than one thread, so that everything a child does afterwards
//! is as safe as in any other program.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::process::Pid;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The capabilities that Docker gives to a container unless told otherwise.
pub const DEFAULT_CAPABILITIES: u64 = 0x0000_0000_a804_25fb;

/// Which side of [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The process that called; its child's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// What the kernel calls the processor that it offers to programs: `x86_64`, `aarch64`, `armv7l`…
pub fn machine() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

/// How many threads this process has.
pub fn thread_count() -> io::Result<u64> {
    // The kernel counts a folder per thread in the link count: one call, where reading the folder takes four.
    let folder = std::fs::metadata("/proc/self/task")?;
    Ok(folder.nlink().saturating_sub(2).max(1))
}

/// Makes a copy of this process, which must have one thread.
pub fn fork() -> io::Result<Forked> {
    let threads = thread_count()?;
    if threads != 1 {
        return Err(io::Error::other(format!("a process of {threads} threads cannot be forked safely")));
    }
    // SAFETY: there is no other thread whose locks the child could find taken.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
    }
}

/// Replaces this process by `program`; returns only if that fails.
pub fn exec(program: &CStr, args: &[&CStr], env: &[&CStr]) -> io::Error {
    let pointers = |words: &[&CStr]| {
        words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const libc::c_char>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: all strings end in NUL and both arrays in a null pointer; they outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process without running anything of the runtime, as a forked child should.
pub fn end(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// All signals do what they do by default and none is blocked, whatever was inherited.
pub fn reset_signals() -> io::Result<()> {
    // The kernel's own structure, of some 32 bytes that depend on the architecture; all zero it is `SIG_DFL`. libc's
    // functions leave out the two signals that it keeps for itself, and those can be inherited as ignored, too.
    let default = [0_u64; 8];
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the structure is large enough and lives through the call; no old one is asked for.
        let code = unsafe {
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>())
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    set_blocked(libc::SIG_SETMASK, &[])
}

/// A descriptor that is readable when a child has ended. SIGCHLD is blocked from then on.
pub fn child_events() -> io::Result<OwnedFd> {
    set_blocked(libc::SIG_BLOCK, &[libc::SIGCHLD])?;
    // SAFETY: the set is initialised by `sigemptyset`; the new descriptor is nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn set_blocked(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    // SAFETY: the set is initialised by `sigemptyset` and lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        match libc::sigprocmask(how, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Closes all descriptors from `first` on: whatever the caller's caller forgot to keep from us.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller owns none of them yet; this is the first thing that the process does.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0_u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `uname` say for this process and its children that the machine is one of 32 bits, as their images take it to be.
pub fn tell_32_bits() -> io::Result<()> {
    const PER_LINUX32: libc::c_ulong = 8;
    // SAFETY: it takes a number and changes nothing but what some calls say.
    match unsafe { libc::personality(PER_LINUX32) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives this process a keyring of its own, so that the command does not get at the keys of the user's session.
/// A kernel or a filter without keyrings has none to protect, and a full quota only means that the old one stays hidden
/// behind the namespaces: no error.
pub fn join_own_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Puts a seccomp filter, as bytes of `struct sock_filter`, before all system calls of this process and its children.
/// This process must have CAP_SYS_ADMIN in its user namespace.
pub fn filter_calls(program: &[u8]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    // Without it, kernels before 5.16 make every process with a filter slower (Spectre, variant 4).
    const SECCOMP_FILTER_FLAG_SPEC_ALLOW: libc::c_uint = 4;
    let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let filter: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: word(&bytes[4..]),
        })
        .collect();
    let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program points to that many instructions, which the kernel reads and checks; all live through the call.
    let code = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &raw const program)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes all capabilities but those of `mask` from the bounding set: nothing that is executed gets them back.
pub fn limit_bounding_set(mask: u64) -> io::Result<()> {
    for bit in 0..63 {
        if mask & (1 << bit) != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Beyond the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether this process has CAP_SYS_ADMIN in its user namespace.
pub fn is_administrator() -> io::Result<bool> {
    Ok(rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Leaves this process, which has the capabilities to do so, with those of `mask`, and nothing to inherit.
pub fn set_capabilities(mask: u64) -> io::Result<()> {
    let have = rustix::thread::capabilities(None)?;
    let keep = have.permitted & CapabilitySet::from_bits_retain(mask);
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Clears what `exec` would pass on, before a change of user: neither inheritable nor ambient capabilities remain.
pub fn clear_inheritable() -> io::Result<()> {
    let have = rustix::thread::capabilities(None)?;
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..have })?)
}
