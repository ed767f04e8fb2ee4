//! A network of RUN's own: a network namespace that the commands of a build share, joined to the world by `pasta`.
//!
//! In: the program `pasta` of this machine (package passt). Out: the namespace. What always holds: it is made for the
//! first command that needs it, not before; nothing that listens on this machine's loopback, and none of its abstract
//! sockets, can be reached from it; when rbuild ends, however it ends, the namespace and `pasta` are gone.
//!
//! ```text
//! rbuild ──spawns──▶ the keeper: forks, leaves the network ──▶ pasta, which stays in the machine's
//!  keeps a socket     waits for its end, then kills pasta       joins the keeper's namespace to it
//! ```

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::sandbox::spawn;
use super::shell::{receive, send_with};
use super::{ExecError, remedy};
use crate::sys::cancel::Cancel;
use crate::sys::namespace::{bring_up_loopback, find_program, unshare};
use crate::sys::process::{self, Forked, end, exec, fork};

/// The first argument of rbuild-init for a network.
pub(super) const ARGUMENT: &str = "network";

/// The second, behind the program: names are asked of this machine's own name server through `pasta`. (Told so, old versions
/// of it do not reach other servers any more.)
const FORWARD: &str = "forward";

/// How long `pasta` may take until there is a route. It takes some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// An address in the namespace that `pasta` answers at for this machine's name server.
const NAME_SERVER: &str = "169.254.1.1";

/// The network of a build, made when it is needed. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct PrivateNetwork(Arc<OnceLock<Result<Keeper, String>>>);

/// A network namespace, and the process that keeps it.
#[derive(Debug)]
struct Keeper {
    namespace: OwnedFd,
    /// When it is closed, everything ends.
    control: Option<UnixStream>,
    process: Child,
}

impl PrivateNetwork {
    /// The namespace; made now if this is the first time. `init` is the program that becomes its keeper; `servers` is the
    /// resolver's set-up of commands in it. Whoever wishes to stop gets an error.
    pub(super) fn namespace(&self, init: &Path, servers: &str, cancel: &Cancel) -> Result<BorrowedFd<'_>, ExecError> {
        let made = self.0.get_or_init(|| {
            let pasta = usable().map_err(|(why, help)| format!("{why}{}", remedy::after(help)))?;
            Keeper::start(init, &pasta, servers.contains(NAME_SERVER), cancel)
        });
        match made {
            Ok(keeper) => Ok(keeper.namespace.as_fd()),
            Err(why) => Err(ExecError::Network(why.clone())),
        }
    }
}

/// Where `pasta` is, if it can work; else why not, and what to do.
pub(super) fn usable() -> Result<PathBuf, (String, &'static str)> {
    let program = find_program("pasta").ok_or(("there is no program pasta".to_owned(), "install the package passt"))?;
    let device = "/dev/net/tun";
    fs::OpenOptions::new().read(true).write(true).open(device).map_err(|error| {
        (format!("{device}: {error}"), "`modprobe tun`, and let this user open /dev/net/tun (mode 0666 is usual)")
    })?;
    Ok(program)
}

/// A resolver's set-up for the namespace: servers on this machine's loopback are reached through `pasta`.
pub(super) fn resolv_conf(text: &str) -> String {
    let is_loopback = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        address.split('%').next()?.parse().ok().map(|address: IpAddr| address.is_loopback())
    };
    let forward = format!("nameserver {NAME_SERVER}");
    let (mut lines, mut servers): (Vec<&str>, usize) = (Vec::new(), 0);
    for line in text.lines() {
        let loopback = is_loopback(line);
        servers += usize::from(loopback.is_some());
        match loopback {
            Some(true) if lines.contains(&forward.as_str()) => {}
            Some(true) => lines.push(&forward),
            _ => lines.push(line),
        }
    }
    if servers == 0 {
        // Without any, programs ask this machine.
        lines.push(&forward);
    }
    lines.join("\n") + "\n"
}

impl Keeper {
    fn start(init: &Path, pasta: &Path, forwards: bool, cancel: &Cancel) -> Result<Self, String> {
        let (control, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let mut args: Vec<&OsStr> = vec![ARGUMENT.as_ref(), pasta.as_os_str()];
        args.extend(forwards.then_some(OsStr::new(FORWARD)));
        let mut process = spawn(init, theirs.into(), &args).map_err(|error| error.to_string())?;
        // It says what it has to say on the socket.
        drop((process.stdout.take(), process.stderr.take()));
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(cancel.fd(), PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut fds, None)).map_err(|errno| errno.to_string())?;
            if !fds[1].revents().is_empty() {
                // Its keeper sees the end of the socket, and ends at once.
                break;
            }
            match receive(&control, &mut buffer) {
                Ok((_, Some(namespace))) => return Ok(Self { namespace, control: Some(control), process }),
                Ok((0, None)) => break,
                Ok((length, None)) => said.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        drop(control);
        let ended = process.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(if said.is_empty() { format!("its keeper ended: {ended}") } else { said })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.control = None;
        // It ends when it sees that; how does not matter any more.
        let _ = self.process.wait();
    }
}

/// The process that rbuild spawns: makes the namespace, has `pasta` join it, and kills that when rbuild goes away.
pub(super) fn keep(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let pasta = arguments.next().map(PathBuf::from).unwrap_or_default();
    let forwards = arguments.next().is_some_and(|word| word == FORWARD);
    process::close_from(3)?;
    let mut control: UnixStream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?.into();
    // The terminal's signals are for rbuild.
    rustix::process::setsid()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let (go, gone) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, said) = pipe_with(PipeFlags::CLOEXEC)?;
    let keeper = std::process::id();
    let child = match fork()? {
        Forked::Child => {
            drop((gone, errors, control));
            become_pasta(&pasta, keeper, forwards, go, &said);
            end(1)
        }
        Forked::Parent(child) => child,
    };
    drop((go, said));
    let joined = leave(&gone).and_then(|()| wait_for_route(errors.as_fd(), &control));
    let told = match joined {
        Ok(()) => send_with(&control, &[0], File::open("/proc/self/ns/net")?.as_fd()).map_err(io::Error::from),
        Err(error) => {
            kill(child)?;
            let mut text = format!("{error}\n").into_bytes();
            text.extend(read_what_is_there(&errors)?);
            return control.write_all(&text);
        }
    };
    let ended = told.and_then(|()| wait_for_end(&control, errors));
    kill(child)?;
    ended
}

/// Enters the new namespace and lets the child go.
fn leave(gone: &OwnedFd) -> io::Result<()> {
    let failed = |call| {
        move |error: io::Error| {
            let help = if remedy::is_forbidden(&error) { remedy::NOT_ALLOWED } else { "" };
            io::Error::other(format!("{call}: {error}{}", remedy::after(help)))
        }
    };
    unshare(UnshareFlags::NEWNET).map_err(failed("unshare"))?;
    bring_up_loopback().map_err(failed("bring up lo"))?;
    // `pasta` gives up most of its own, and could then not look at a process that has more.
    process::set_capabilities(0).map_err(failed("capset"))?;
    rustix::io::write(gone, &[1])?;
    Ok(())
}

/// What `pasta` said. A child of it may have the other end of the pipe, and is not waited for.
fn read_what_is_there(errors: &OwnedFd) -> io::Result<Vec<u8>> {
    rustix::fs::fcntl_setfl(errors, OFlags::NONBLOCK)?;
    let mut said = vec![0; 4096];
    match rustix::io::read(errors, &mut said) {
        Ok(length) => said.truncate(length),
        Err(Errno::AGAIN) => said.clear(),
        Err(errno) => return Err(errno.into()),
    }
    Ok(said)
}

fn kill(child: Pid) -> io::Result<()> {
    match rustix::process::kill_process(child, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
    Ok(())
}

/// Waits until there is a way out of the namespace. `errors` is closed when `pasta` ends.
fn wait_for_route(errors: BorrowedFd<'_>, control: &UnixStream) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let glance = Timespec { tv_sec: 0, tv_nsec: 500_000 };
    while Instant::now() < until {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        if has_route(&read("/proc/self/net/route"), &read("/proc/self/net/ipv6_route")) {
            return Ok(());
        }
        let mut fds = [
            PollFd::from_borrowed_fd(errors, PollFlags::empty()),
            PollFd::from_borrowed_fd(control.as_fd(), PollFlags::RDHUP),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&glance)))?;
        if !fds[1].revents().is_empty() {
            return Err(io::Error::other("the build ended"));
        }
        if !fds[0].revents().is_empty() {
            return Err(io::Error::other("pasta failed:"));
        }
    }
    Err(io::Error::other(format!("pasta made no route within {} seconds", PATIENCE.as_secs())))
}

/// Waits until rbuild goes away, or `pasta` does. What `pasta` says meanwhile is for nobody.
fn wait_for_end(control: &UnixStream, errors: OwnedFd) -> io::Result<()> {
    let mut errors = File::from(errors);
    let mut buffer = [0; 4096];
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN | PollFlags::RDHUP),
            PollFd::from_borrowed_fd(errors.as_fd(), PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let [gone, said] = fds.map(|fd| !fd.revents().is_empty());
        if gone || (said && errors.read(&mut buffer)? == 0) {
            return Ok(());
        }
    }
}

/// Whether there is a default route, by the texts of the kernel: `eth0 00000000 …`, and for IPv6 the device stands last.
fn has_route(v4: &str, v6: &str) -> bool {
    let is_v4 = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
    let is_v6 = |line: &str| {
        let mut words = line.split_whitespace();
        let destination = (words.next(), words.next());
        destination == (Some("00000000000000000000000000000000"), Some("00")) && words.next_back() != Some("lo")
    };
    v4.lines().any(is_v4) || v6.lines().any(is_v6)
}

/// Waits for the namespace of the process `keeper` and executes `pasta`, which joins it to the network that this process
/// is in. Returns if that is not to be.
fn become_pasta(program: &Path, keeper: u32, forwards: bool, go: OwnedFd, errors: &OwnedFd) {
    // Should the keeper be killed alone. (It has one thread, which does not end before it.)
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if File::from(go).read(&mut [0]).is_ok_and(|length| length == 1)
        && rustix::stdio::dup2_stderr(errors).is_ok()
        && process::reset_signals().is_ok()
    {
        // By the keeper's name: a descriptor of its own would be closed by newer versions before they look at it.
        let namespace = format!("/proc/{keeper}/ns/net");
        // No port of either side leads to the other, and the gateway's address is the gateway's, not this machine's.
        let forward = if forwards { format!("--dns-forward {NAME_SERVER}") } else { String::new() };
        let words = format!(
            "pasta --foreground --quiet --runas 0 --netns-only --config-net -t none -u none -T none -U none --no-map-gw \
             {forward} --netns {namespace}"
        );
        let words: Vec<CString> = words.split_whitespace().filter_map(|word| CString::new(word).ok()).collect();
        let words: Vec<&CStr> = words.iter().map(CString::as_c_str).collect();
        if let Ok(path) = CString::new(program.as_os_str().as_bytes()) {
            let error = exec(&path, &words, &[]);
            // There is nobody else to tell.
            let _ = rustix::io::write(errors, format!("{}: {error}\n", program.display()).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_the_loopback_are_reached_through_pasta() {
        let forward = "nameserver 169.254.1.1\n";
        for (text, expected) in [
            ("search x\nnameserver 10.0.0.1\n", "search x\nnameserver 10.0.0.1\n".to_owned()),
            ("nameserver 127.0.0.1\noptions edns0\n", format!("{forward}options edns0\n")),
            ("nameserver ::1\nnameserver 127.0.0.11\n", forward.to_owned()),
            ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", format!("{forward}nameserver 9.9.9.9\n")),
            ("nameserver fe80::1%eth0\n", "nameserver fe80::1%eth0\n".to_owned()),
            ("", forward.to_owned()),
        ] {
            assert_eq!(resolv_conf(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_default_route_is_seen() {
        let head = "Iface\tDestination\tGateway\n";
        let zero = "00000000000000000000000000000000";
        let lo = format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n");
        assert!(!has_route(head, &lo));
        assert!(!has_route(&format!("{head}eth0\t000200C0\t00000000\n"), &lo));
        assert!(has_route(&format!("{head}eth0\t00000000\t010200C0\n"), ""));
        assert!(has_route(head, &lo.replace(" lo", " eth0")));
    }
}
