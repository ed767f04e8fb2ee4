//! The network of RUN: one of the build's own, joined to the world by `pasta`.
//!
//! In: the program `pasta` of this machine (package passt). Out: a network namespace that the build's commands share.
//! What always holds: it is made for the first command that needs it, not before; nothing of this machine that listens on
//! its loopback can be reached from it; when rbuild ends, however it ends, the namespace and `pasta` are gone. Where it
//! cannot be had, commands have this machine's own network.
//!
//! ```text
//! rbuild ──spawns──▶ rbuild-init network ──forks──▶ process 1 of a PID namespace ──forks──▶ the maker: leaves the network
//!  keeps a socket     waits for the end of            its end is the end of all               ──executes──▶ pasta
//! ```

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::shell::{receive, send_with};
use super::{ProcessSpec, sandbox};
use crate::plan::step::Network;
use crate::sys::namespace::{bring_up_loopback, find_program, unshare};
use crate::sys::process::{self, Forked, end, exec, fork};

/// The first argument of rbuild-init for a network.
pub(super) const ARGUMENT: &str = "network";

/// How long `pasta` may take until there is a route. It takes some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The network of a build, made when it is needed. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct SharedNetwork(Arc<OnceLock<Option<Private>>>);

/// A network namespace, and the processes that join it to the world.
#[derive(Debug)]
struct Private {
    namespace: OwnedFd,
    /// When it is closed, everything ends.
    control: Option<UnixStream>,
    keeper: Child,
}

impl SharedNetwork {
    /// The namespace for a command, which `resolv_conf` tells its name servers; `None` where it has this machine's.
    pub(super) fn namespace(&self, init: &Path, process: &ProcessSpec, resolv_conf: &str) -> Option<&OwnedFd> {
        if process.network != Network::Default || needs_loopback(resolv_conf, &process.env) {
            return None;
        }
        let private = self.0.get_or_init(|| Private::start(init, &usable().ok()?));
        private.as_ref().map(|private| &private.namespace)
    }
}

/// Whether a name server or a proxy is on this machine's loopback, which a network of its own does not reach.
fn needs_loopback(resolv_conf: &str, env: &[String]) -> bool {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim().split('%').next()?.parse().ok()?;
        Some(matches!(address, IpAddr::V4(_) | IpAddr::V6(_)) && address.is_loopback())
    };
    let servers: Vec<bool> = resolv_conf.lines().filter_map(server).collect();
    let proxy = env.iter().filter_map(|pair| pair.split_once('=')).any(|(name, value)| {
        let name = name.to_ascii_lowercase();
        let host = value.split_once("://").map_or(value, |(_, rest)| rest);
        let host = host.rsplit_once('@').map_or(host, |(_, rest)| rest);
        name.ends_with("_proxy")
            && name != "no_proxy"
            && ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local))
    });
    proxy || servers.iter().all(|loopback| *loopback)
}

/// Where `pasta` is, if it can work; else why not, and what to do.
pub(super) fn usable() -> Result<PathBuf, (String, &'static str)> {
    let program = find_program("pasta")
        .ok_or(("there is no pasta".to_owned(), "install the package passt: RUN then has a network of its own"))?;
    let device = "/dev/net/tun";
    fs::OpenOptions::new().read(true).write(true).open(device).map_err(|error| {
        (format!("{device}: {error}"), "`modprobe tun`, and let this user open /dev/net/tun (mode 0666 is usual)")
    })?;
    Ok(program)
}

impl Private {
    fn start(init: &Path, pasta: &Path) -> Option<Self> {
        let (control, theirs) = UnixStream::pair().ok()?;
        let mut keeper = sandbox::spawn(init, theirs.into(), &[ARGUMENT.as_ref(), pasta.as_os_str()]).ok()?;
        // Nobody listens to what it says.
        drop((keeper.stdout.take(), keeper.stderr.take()));
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64 + 1, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&patience)));
        let namespace = match ready {
            Ok(1..) => receive(&control, &mut [0]).ok().and_then(|(_, namespace)| namespace),
            _ => None,
        };
        let Some(namespace) = namespace else {
            drop(control);
            // It ends when the socket does; whether it went well does not matter any more.
            let _ = keeper.wait();
            return None;
        };
        Some(Self { namespace, control: Some(control), keeper })
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.keeper.wait();
    }
}

/// The process that rbuild spawns: starts the first process of a PID namespace, and kills it when rbuild goes away.
pub(super) fn keep(pasta: &Path) -> std::io::Result<()> {
    process::close_from(3)?;
    let control: UnixStream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?.into();
    rustix::process::setsid()?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    unshare(UnshareFlags::NEWPID)?;
    let first = match fork()? {
        Forked::Child => end(i32::from(first_process(&control, pasta).is_err())),
        Forked::Parent(first) => first,
    };
    let ended = rustix::process::pidfd_open(first, PidfdFlags::empty())?;
    let mut fds = [
        PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN | PollFlags::RDHUP),
        PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    rustix::process::kill_process(first, Signal::KILL)?;
    rustix::process::waitpid(Some(first), WaitOptions::empty())?;
    Ok(())
}

/// Has the namespace made and joined. Its end takes all others along.
fn first_process(control: &UnixStream, pasta: &Path) -> std::io::Result<()> {
    // Should the process that spawned this one be killed alone.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let (ours, theirs) = UnixStream::pair()?;
    if fork()? == Forked::Child {
        end(i32::from(make(&theirs, control).is_err()));
    }
    drop(theirs);
    let (_, namespace) = receive(&ours, &mut [0])?;
    let namespace = namespace.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    if fork()? == Forked::Child {
        // The one descriptor that it gets beside its streams.
        rustix::io::fcntl_setfd(&namespace, rustix::io::FdFlags::empty())?;
        become_pasta(pasta, &namespace);
        end(1);
    }
    loop {
        let (_, status) = rustix::process::wait(WaitOptions::empty())?.ok_or(std::io::ErrorKind::NotFound)?;
        // The maker is done when there is a route. Whatever else ends here, ends it all.
        if status.exit_status() != Some(0) {
            return Ok(());
        }
    }
}

/// Makes the namespace, passes it on, and tells rbuild when there is a route in it.
fn make(to_pasta: &UnixStream, control: &UnixStream) -> std::io::Result<()> {
    unshare(UnshareFlags::NEWNET)?;
    bring_up_loopback()?;
    let namespace = File::open("/proc/self/ns/net")?;
    send_with(to_pasta, &[0], namespace.as_fd())?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        if has_route(&read("/proc/self/net/route"), &read("/proc/self/net/ipv6_route")) {
            return Ok(send_with(control, &[0], namespace.as_fd())?);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Err(std::io::ErrorKind::TimedOut.into())
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

fn become_pasta(program: &Path, namespace: &OwnedFd) {
    let namespace = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    // No port of either side leads to the other, and the gateway's address is the gateway's, not this machine's.
    let words = [
        "pasta",
        "--foreground",
        "--quiet",
        "--runas",
        "0",
        "--netns-only",
        "--config-net",
        "-t",
        "none",
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
        "--no-map-gw",
        "--netns",
        &namespace,
    ];
    let words: Vec<CString> = words.iter().filter_map(|word| CString::new(*word).ok()).collect();
    let words: Vec<&CStr> = words.iter().map(CString::as_c_str).collect();
    if let Ok(program) = CString::new(program.as_os_str().as_bytes()) {
        // It returns only where it failed; this process's end then tells.
        let _ = exec(&program, &words, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_this_machines_loopback_is_seen() {
        let dns = "search x\nnameserver 10.0.0.1\n";
        for (resolv, env, expected) in [
            (dns, "A=1", false),
            ("nameserver 127.0.0.1\n", "A=1", true),
            ("nameserver ::1\nnameserver 127.0.0.11\n", "A=1", true),
            ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", "A=1", false),
            ("nameserver fe80::1%eth0\n", "A=1", false),
            // Without any, programs ask this machine.
            ("", "A=1", true),
            (dns, "http_proxy=http://127.0.0.1:3128", true),
            (dns, "HTTPS_PROXY=http://user:word@localhost:3128", true),
            (dns, "ALL_PROXY=[::1]:1080", true),
            (dns, "no_proxy=localhost", false),
            (dns, "http_proxy=http://proxy.example:3128", false),
            (dns, "URL=http://localhost", false),
        ] {
            assert_eq!(needs_loopback(resolv, &[env.to_owned()]), expected, "{resolv:?} {env}");
        }
    }

    #[test]
    fn a_default_route_is_seen() {
        let head = "Iface\tDestination\tGateway\n";
        let lo = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        assert!(!has_route(head, lo));
        assert!(!has_route(&format!("{head}eth0\t000200C0\t00000000\n"), lo));
        assert!(has_route(&format!("{head}eth0\t00000000\t010200C0\n"), ""));
        assert!(has_route(head, &lo.replace(" lo", " eth0")));
    }
}
