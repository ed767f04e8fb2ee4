//! A shell for a person, in a sandbox.
//!
//! In: a file system and surroundings as for a command, and the user's terminal. Out: how the shell ended. What always
//! holds: the shell has a terminal of its own, made inside (its job control and its Ctrl-C are its own, and nothing in
//! there can type into the user's terminal); between the two, bytes are passed on as they are; the user's terminal is as
//! it was when this returns, however it returns.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::sandbox::Heard;
use super::{ExecError, Exit, LeftStub, ProcessSpec, RootFs, Sandbox};
use crate::sys::cancel::Cancel;

/// The user's terminal: where it is read and where it is written.
#[derive(Debug, Clone, Copy)]
pub struct Terminal<'a> {
    /// What the user types.
    pub input: BorrowedFd<'a>,
    /// What the user sees.
    pub output: BorrowedFd<'a>,
}

/// How often the size of the user's terminal is looked at. (A handler for SIGWINCH in a process that may have threads is
/// more trouble than four calls in a second.)
const GLANCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// What the user typed and the shell has not read.
const MOST_PENDING: usize = 64 << 10;

impl Sandbox {
    /// Runs the program of `process`, or `/bin/sh` where the file system does not have it, on a terminal of its own
    /// that is joined to the user's. What it changes is in the upper folder, as with a command; what was made in mounted
    /// folders of this machine for mounts inside of them is told.
    pub fn shell(
        &self,
        rootfs: &RootFs,
        process: &ProcessSpec,
        terminal: Terminal<'_>,
        cancel: &Cancel,
    ) -> Result<(Exit, Vec<LeftStub>), ExecError> {
        let mut running = self.start(rootfs, process, true, cancel)?;
        let joined = join(&running.control, &mut running.heard, terminal, cancel);
        running.end(rootfs, joined, cancel).map(|ended| (ended.exit, ended.left))
    }
}

fn talk(call: &'static str) -> impl FnOnce(io::Error) -> ExecError {
    move |source| ExecError::Talk { call, source }
}

/// Passes on what is typed and what is shown until the sandbox ends.
fn join(control: &UnixStream, heard: &mut Heard, user: Terminal<'_>, cancel: &Cancel) -> Result<(), ExecError> {
    let mut buffer = vec![0; 16 << 10];
    while heard.terminal.is_none() {
        if !heard.hear(control, &mut buffer)? {
            return Ok(());
        }
    }
    let Some(master) = heard.terminal.take() else { return Ok(()) };
    let flags = rustix::fs::fcntl_getfl(&master).map_err(|errno| talk("fcntl")(errno.into()))?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK).map_err(|errno| talk("fcntl")(errno.into()))?;
    let raw = Raw::enter(user.input).map_err(talk("set up the terminal"))?;
    let mut relay = Relay { user, master: File::from(master), typed: VecDeque::new(), size: None, open: true };
    let relayed = relay.run(control, heard, cancel, &mut buffer);
    drop(raw);
    relayed
}

/// The user's terminal, in a mode in which every key goes through; it gets its own mode back when this is dropped.
struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn enter(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(self.terminal, OptionalActions::Drain, &self.before);
    }
}

struct Relay<'a> {
    user: Terminal<'a>,
    master: File,
    typed: VecDeque<u8>,
    size: Option<(u16, u16)>,
    /// Something holds the other end of the shell's terminal.
    open: bool,
}

impl Relay<'_> {
    fn run(
        &mut self,
        control: &UnixStream,
        heard: &mut Heard,
        cancel: &Cancel,
        buffer: &mut [u8],
    ) -> Result<(), ExecError> {
        let (mut listening, mut stopping) = (true, false);
        while listening {
            self.fit();
            let master = if self.typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let wanted = [
                (control.as_fd(), PollFlags::IN, true),
                (self.master.as_fd(), master, self.open),
                (self.user.input, PollFlags::IN, !stopping && self.typed.len() < MOST_PENDING),
                (cancel.fd(), PollFlags::IN, !stopping),
            ];
            let mut fds: Vec<_> = wanted
                .iter()
                .filter(|(_, _, wanted)| *wanted)
                .map(|(fd, flags, _)| PollFd::from_borrowed_fd(*fd, *flags))
                .collect();
            match poll(&mut fds, Some(&GLANCE)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(talk("poll")(errno.into())),
            }
            let mut events = fds.iter().map(PollFd::revents);
            let mut event = |wanted: bool| if wanted { events.next() } else { None }.unwrap_or(PollFlags::empty());
            let [told, shown, typed, stop] = wanted.map(|(_, _, wanted)| event(wanted));
            drop(fds);
            if !told.is_empty() {
                listening = heard.hear(control, buffer)?;
            }
            if !shown.is_empty() {
                self.show(buffer).map_err(talk("pass on what the shell shows"))?;
                self.pass().map_err(talk("pass on what is typed"))?;
            }
            let mut gone = false;
            if !typed.is_empty() {
                match rustix::io::read(self.user.input, &mut *buffer) {
                    // The user's terminal is gone.
                    Ok(0) | Err(Errno::IO) => gone = true,
                    Ok(length) => {
                        self.typed.extend(&buffer[..length]);
                        self.pass().map_err(talk("pass on what is typed"))?;
                    }
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(errno) => return Err(talk("read the terminal")(errno.into())),
                }
            }
            if !stopping && (gone || !stop.is_empty()) {
                stopping = true;
                // Both processes in there see this as the end of their socket.
                let _ = control.shutdown(Shutdown::Write);
            }
        }
        // What it wrote last.
        while self.open && self.show(buffer).map_err(talk("pass on what the shell shows"))? {}
        Ok(())
    }

    /// Gives the shell's terminal the size of the user's.
    fn fit(&mut self) {
        // A terminal that cannot tell its size has none to pass on.
        let Ok(size) = tcgetwinsize(self.user.output) else { return };
        if self.size != Some((size.ws_row, size.ws_col)) {
            self.size = Some((size.ws_row, size.ws_col));
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Passes on once what the shell shows. False when there is nothing more for now.
    fn show(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let length = match self.master.read(buffer) {
            Ok(length) => length,
            // How a terminal says that nobody has its other end open.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.open = length > 0;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match rustix::io::write(self.user.output, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::from_borrowed_fd(self.user.output, PollFlags::OUT)];
                    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
                }
                // The user's terminal is gone; reading it will tell.
                Err(Errno::IO) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(length > 0)
    }

    /// Passes on what was typed, as far as the shell's terminal takes it.
    fn pass(&mut self) -> io::Result<()> {
        while self.open && !self.typed.is_empty() {
            match self.master.write(self.typed.as_slices().0) {
                Ok(written) => drop(self.typed.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => self.open = false,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes a terminal in the sandbox whose root this process is in: the end for the command, and the other one.
pub(super) fn open_terminal() -> Result<(OwnedFd, OwnedFd), Errno> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((slave, master))
}

/// Sends `bytes` and a descriptor.
pub(super) fn send_with(control: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    message.push(SendAncillaryMessage::ScmRights(&fds));
    // Some twenty bytes into an empty socket: they go at once.
    let sent = sendmsg(control, &[io::IoSlice::new(bytes)], &mut message, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::AGAIN) }
}

/// Receives bytes, and a descriptor if one comes with them.
pub(super) fn receive(control: &UnixStream, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(control, &mut [io::IoSliceMut::new(buffer)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = part {
            fd = fds.next();
        }
    }
    Ok((received.bytes, fd))
}
