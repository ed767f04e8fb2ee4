//! The outside of a sandbox: starts it, passes on what the command writes, hears how it ended.
//!
//! In: [`RootFs`], [`ProcessSpec`], a receiver of output. Out: [`Exit`]. What always holds: the calling thread waits
//! here until the last process of the sandbox is gone, so it is also the one whose end would take the sandbox along.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::cgroup::{Cgroup, Resources};
use super::init::{INIT_NAME, NO_SHELL};
use super::wire::{Order, Report, Stub};
use super::{
    ExecError, Exit, Isolation, LeftStub, MountSource, PrivateNetwork, ProcessSpec, RootFs, etc, place, remedy,
    seccomp, shell,
};
use crate::event::Stream;
use crate::plan::limits::Security;
use crate::plan::step::Network;
use crate::sys::cancel::Cancel;
use crate::sys::mount::{Restrict, Tree};
use crate::sys::namespace::in_initial_user_namespace;
use crate::sys::root_dir::Identity;

/// Runs commands. The program at `init` must call [`super::init_hook`] first thing.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The program that becomes the sandbox's init.
    pub init: PathBuf,
    /// How commands are contained: whoever makes their file systems goes by it.
    pub isolation: Isolation,
    /// Limits of memory and processors.
    pub resources: Resources,
    /// Whether commands that are no insecure ones meet the filter of system calls.
    pub filter: bool,
    /// Whether set-user-id programs and file capabilities give commands nothing.
    pub no_new_privileges: bool,
    /// The network of commands that ask for no other; without one they have this machine's.
    pub network: Option<PrivateNetwork>,
}

impl Default for Sandbox {
    /// This very program.
    fn default() -> Self {
        let init = PathBuf::from("/proc/self/exe");
        Self {
            init,
            isolation: Isolation::default(),
            resources: Resources::default(),
            filter: true,
            no_new_privileges: false,
            network: None,
        }
    }
}

/// How a command ended, and what is left of what was made for it.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub exit: Exit,
    /// In mounted folders of this machine, for mounts inside of them.
    pub left: Vec<LeftStub>,
    /// In a [copy](RootFs::copied).
    pub put_in: Vec<Identity>,
}

/// Runs a command in a sandbox whose init is this very program. See [`Sandbox::run`].
pub fn run(
    rootfs: &RootFs,
    process: &ProcessSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<Exit, ExecError> {
    Sandbox::default().run(rootfs, process, output, cancel)
}

impl Sandbox {
    /// Runs a command and waits for it. `output` gets what it writes as it writes it, on the calling thread. This
    /// process must be root in its user namespace. Several threads may run commands at once.
    pub fn run(
        &self,
        rootfs: &RootFs,
        process: &ProcessSpec,
        output: &(dyn Fn(Stream, &[u8]) + Sync),
        cancel: &Cancel,
    ) -> Result<Exit, ExecError> {
        self.run_noting(rootfs, process, output, cancel).map(|ended| ended.exit)
    }

    /// The same; also tells what is left of what was made for the command.
    pub fn run_noting(
        &self,
        rootfs: &RootFs,
        process: &ProcessSpec,
        output: &(dyn Fn(Stream, &[u8]) + Sync),
        cancel: &Cancel,
    ) -> Result<Ended, ExecError> {
        let canceled = || Ended { exit: Exit::Canceled, left: Vec::new(), put_in: Vec::new() };
        if cancel.is_canceled() {
            return Ok(canceled());
        }
        let mut running = match self.start(rootfs, process, false, cancel) {
            Err(ExecError::Network(_)) if cancel.is_canceled() => return Ok(canceled()),
            started => started?,
        };
        let listened = running.heard.listen(&mut running.init, &running.control, output, cancel);
        running.end(rootfs, listened, cancel)
    }

    /// Starts the init and gives it its order.
    pub(super) fn start(
        &self,
        rootfs: &RootFs,
        process: &ProcessSpec,
        terminal: bool,
        cancel: &Cancel,
    ) -> Result<Running, ExecError> {
        check(process)?;
        if !rustix::process::geteuid().is_root() {
            return Err(ExecError::NotRoot);
        }
        let talk = |call| move |source| ExecError::Talk { call, source };
        let initial = in_initial_user_namespace()
            .map_err(|source| ExecError::Read { path: "/proc/self/ns/user".to_owned(), source })?;
        let private = self.network.as_ref().filter(|_| process.network == Network::Default);
        let files = etc::files(process, private.is_some());
        let files = files.map_err(|(path, source)| ExecError::Read { path: path.to_owned(), source })?;
        let servers = files.first().map_or("", |(_, text)| text.as_str());
        let network = private.map(|network| network.namespace(&self.init, servers, cancel)).transpose()?;
        let cgroup = Cgroup::make(&self.resources, process.cgroup_parent.as_deref())?;
        let confined = self.filter && process.security == Security::Sandbox;
        let order = Order {
            rootfs: rootfs.clone(),
            process: process.clone(),
            files,
            user_xattr: !initial,
            terminal,
            seccomp: if confined { seccomp::program().to_vec() } else { Vec::new() },
            cgroups: cgroup.as_ref().map(Cgroup::joins).unwrap_or_default(),
            network_follows: network.is_some(),
            no_new_privileges: self.no_new_privileges,
        };
        let (control, theirs) = UnixStream::pair().map_err(talk("socketpair"))?;
        let init = spawn(&self.init, theirs.into(), &[])?;
        let mut running = Running { init, control, order, heard: Heard::default(), cgroup };
        let sent = running.order.send(&running.control).and_then(|()| match network {
            Some(network) => Ok(shell::send_with(&running.control, &[0], network)?),
            None => Ok(()),
        });
        match sent {
            Ok(()) => Ok(running),
            // It died before it had read all: what it said, if anything, is still to be heard.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(running),
            Err(error) => {
                drop(running.control);
                running.init.wait().map_err(talk("wait for the sandbox"))?;
                Err(talk("send the order")(error))
            }
        }
    }
}

/// A sandbox at work.
pub(super) struct Running {
    init: Child,
    pub(super) control: UnixStream,
    order: Order,
    pub(super) heard: Heard,
    /// Removed when the sandbox has ended.
    cgroup: Option<Cgroup>,
}

impl Running {
    /// Ends it, tidies up, and says how the command ended.
    pub(super) fn end(
        mut self,
        rootfs: &RootFs,
        listened: Result<(), ExecError>,
        cancel: &Cancel,
    ) -> Result<Ended, ExecError> {
        // Whatever happened, nothing in there lives longer than this call.
        drop(self.control);
        let waited = self.init.wait();
        drop(self.cgroup);
        let status = waited.map_err(|source| ExecError::Talk { call: "wait for the sandbox", source })?;
        place::remove(&rootfs.upper, &self.heard.stubs)?;
        place::clear(&rootfs.work)?;
        for mount in &rootfs.mounts {
            if let MountSource::Stack { writes: Some((_, work)), .. } = &mount.source {
                place::clear(work)?;
            }
        }
        listened?;
        let exit = match self.heard.verdict {
            Some(Report::Exited(code)) => Ok(Exit::Code(code)),
            Some(Report::Signaled(signal)) => Ok(Exit::Signal(signal)),
            _ if cancel.is_canceled() => Ok(Exit::Canceled),
            Some(Report::Failed(failure)) if failure.call == NO_SHELL => {
                Err(ExecError::NoShell(self.order.process.args))
            }
            Some(Report::Failed(failure)) => Err(ExecError::SetUp {
                source: io::Error::from_raw_os_error(failure.errno),
                help: remedy::of(&failure, &self.order),
                call: failure.call,
                path: failure.path,
            }),
            Some(Report::Lost(signal)) => Err(ExecError::Lost(format!("signal {signal}"))),
            Some(Report::Stub(_) | Report::Terminal | Report::PutIn(_)) | None => {
                Err(ExecError::Lost(status.to_string()))
            }
        };
        exit.map(|exit| Ended { exit, left: self.heard.left, put_in: self.heard.put_in })
    }
}

/// What the system calls could not take.
fn check(process: &ProcessSpec) -> Result<(), ExecError> {
    let words = [("argument", &process.args), ("environment variable", &process.env)];
    let words = words.iter().flat_map(|(what, words)| words.iter().map(move |word| (*what, word)));
    for (what, value) in words.chain([("working directory", &process.cwd), ("host name", &process.hostname)]) {
        if value.contains('\0') {
            return Err(ExecError::Nul { what, value: value.clone() });
        }
    }
    match &process.script {
        Some((name, _)) if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) => {
            Err(ExecError::ScriptName(name.clone()))
        }
        _ => Ok(()),
    }
}

/// Starts the init with `control` as its standard input.
pub(super) fn spawn(init: &Path, control: OwnedFd, args: &[&OsStr]) -> Result<Child, ExecError> {
    let error = |source: io::Error| {
        let help = if remedy::is_forbidden(&source) { remedy::NOT_ALLOWED.to_owned() } else { String::new() };
        ExecError::Spawn { program: init.display().to_string(), source, help }
    };
    let program = unwritable(init).map_err(error)?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(INIT_NAME)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(error)
}

/// The program as something that nobody can write to: inside, `/proc/PID/exe` leads to what was executed, and a
/// command that runs as root could otherwise change this very program on the machine's disk (CVE-2019-5736).
fn unwritable(program: &Path) -> io::Result<OwnedFd> {
    let read_only_mount = |path: &Path| {
        let tree = Tree::copy(CWD, path, false).and_then(|tree| tree.restrict(Restrict::READ_ONLY, false));
        tree.map_err(|failed| failed.source)
    };
    match read_only_mount(program) {
        Ok(tree) => return Ok(tree.into()),
        // EPERM: no mounts are allowed here.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::EPERM)) => {}
        Err(error) => return Err(error),
    }
    // `/proc/self/exe` leads to a mount of the namespace in which this process began, and it has left that since. By
    // its name the program is found in this one, too, unless it was replaced on the disk meanwhile.
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let wanted = identity(rustix::fs::stat(program)?);
    if let Ok(name) = std::fs::read_link(program)
        && let Ok(tree) = read_only_mount(&name)
        && identity(rustix::fs::fstat(&tree)?) == wanted
    {
        return Ok(tree.into());
    }
    let copy = rustix::fs::memfd_create(INIT_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open(program)?, &mut copy)?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy.into())
}

/// What came out of a sandbox.
#[derive(Default)]
pub(super) struct Heard {
    stubs: Vec<Stub>,
    left: Vec<LeftStub>,
    put_in: Vec<Identity>,
    /// The last word, or the first failure.
    verdict: Option<Report>,
    /// The other end of the command's terminal.
    pub(super) terminal: Option<OwnedFd>,
    /// Bytes of a report that is not there as a whole.
    partly: Vec<u8>,
}

impl Heard {
    /// Passes on output until reports end and what was written is read.
    fn listen(
        &mut self,
        init: &mut Child,
        control: &UnixStream,
        output: &dyn Fn(Stream, &[u8]),
        cancel: &Cancel,
    ) -> Result<(), ExecError> {
        let talk = |call| move |source| ExecError::Talk { call, source };
        let (mut stdout, mut stderr) = (init.stdout.take(), init.stderr.take());
        let (mut open, mut asked_to_stop) = (true, false);
        let mut buffer = vec![0; 64 * 1024];
        while open || stdout.is_some() || stderr.is_some() {
            let channels = [
                stdout.as_ref().map(AsFd::as_fd),
                stderr.as_ref().map(AsFd::as_fd),
                open.then_some(control.as_fd()),
                (!asked_to_stop).then_some(cancel.fd()),
            ];
            let mut fds: Vec<_> =
                channels.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            // When all that watch over the command are gone, what it wrote is there. Who still has a pipe open, in a copy
            // and with both watchers killed, is not waited for.
            let wait = if open { None } else { Some(&Timespec { tv_sec: 0, tv_nsec: 0 }) };
            let ready =
                rustix::io::retry_on_intr(|| poll(&mut fds, wait)).map_err(|errno| talk("poll")(errno.into()))?;
            if ready == 0 {
                break;
            }
            let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
            let ready = channels.map(|channel| channel.is_some() && events.next() == Some(true));
            if ready[0] && !pass_on(stdout.as_mut(), Stream::Stdout, &mut buffer, output)? {
                stdout = None;
            }
            if ready[1] && !pass_on(stderr.as_mut(), Stream::Stderr, &mut buffer, output)? {
                stderr = None;
            }
            if ready[2] {
                open = self.hear(control, &mut buffer)?;
            }
            if ready[3] {
                asked_to_stop = true;
                // Both processes in there see this as the end of their socket; they can still report.
                match control.shutdown(Shutdown::Write) {
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                        return Err(talk("shut down the socket")(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Reads reports. False at the end of the socket.
    pub(super) fn hear(&mut self, control: &UnixStream, buffer: &mut [u8]) -> Result<bool, ExecError> {
        let talk = |source| ExecError::Talk { call: "read reports", source };
        let (length, terminal) = match shell::receive(control, buffer) {
            Ok(received) => received,
            Err(Errno::INTR) => return Ok(true),
            // It went away without having read the order.
            Err(Errno::CONNRESET) => (0, None),
            Err(errno) => return Err(talk(errno.into())),
        };
        if terminal.is_some() {
            self.terminal = terminal;
        }
        self.partly.extend_from_slice(&buffer[..length]);
        while let Some(report) = Report::take(&mut self.partly).map_err(talk)? {
            match report {
                Report::Stub(Stub { path, folder, mount: Some(mount) }) => {
                    self.left.push(LeftStub { mount, path, folder });
                }
                Report::Stub(stub) => self.stubs.push(stub),
                Report::Terminal => {}
                Report::PutIn(files) => self.put_in.extend(files),
                report => {
                    if !matches!(self.verdict, Some(Report::Failed(_))) {
                        self.verdict = Some(report);
                    }
                }
            }
        }
        Ok(length > 0)
    }
}

/// Reads once and passes it on. False at the end.
fn pass_on(
    from: Option<&mut impl Read>,
    stream: Stream,
    buffer: &mut [u8],
    output: &dyn Fn(Stream, &[u8]),
) -> Result<bool, ExecError> {
    let Some(from) = from else { return Ok(false) };
    match from.read(buffer) {
        Ok(0) => Ok(false),
        Ok(length) => {
            output(stream, &buffer[..length]);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(source) => Err(ExecError::Talk { call: "read the command's output", source }),
    }
}
