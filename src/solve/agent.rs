//! An SSH agent for a command: a socket of its own that leads to the user's agent, or to one that holds key files.
//!
//! In: an [`Agent`] of `--ssh`, and who may use the socket. Out: a [`Forwarded`]; its socket answers as long as it lives.
//! What always holds: the command can ask for the public keys and for signatures, and for nothing else: it adds, removes
//! and locks no key of the user; when a [`Forwarded`] is dropped, no thread, connection or process of it is left.
//!
//! Messages of the agent protocol are a length (4 bytes, big endian) and as many bytes, the first of which is the type.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::plan::step::FileOwner;

/// What a command may ask for: a list of the keys, and a signature.
const ALLOWED: [u8; 2] = [11, 13];
/// The answer to everything else.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
/// Longer messages are none.
const LONGEST: usize = 256 << 10;
/// How long an agent that was started may take to answer.
const START: Duration = Duration::from_secs(10);

/// What `--ssh` gives under one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The id.
    pub id: String,
    /// Where the keys are.
    pub keys: AgentKeys,
}

/// Where the keys of an agent are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentKeys {
    /// With an agent that runs.
    Socket(PathBuf),
    /// In files, which an agent is started for.
    Files(Vec<PathBuf>),
}

/// A socket that leads to an agent.
#[derive(Debug)]
pub(super) struct Forwarded {
    socket: PathBuf,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
    _started: Option<Started>,
}

impl Forwarded {
    /// Makes the socket in the new folder `folder`.
    pub(super) fn new(agent: &Agent, owner: &FileOwner, folder: &Path) -> Result<Self, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("cannot {what}: {error}")
        };
        fs::create_dir(folder).map_err(failed("make a folder for the agent's socket"))?;
        let (agent_socket, started) = match &agent.keys {
            AgentKeys::Socket(path) => (path.clone(), None),
            AgentKeys::Files(files) => {
                let started = Started::new(files, folder)?;
                (started.socket.clone(), Some(started))
            }
        };
        // Only to say so now: every connection gets one of its own.
        connect(&agent_socket)
            .map_err(|error| format!("cannot reach the agent at {}: {error}", agent_socket.display()))?;
        let socket = folder.join("forwarded");
        let listener =
            at_short_path(&socket, |path| UnixListener::bind(path)).map_err(failed("make a socket for the command"))?;
        chown(&socket, Some(owner.uid), Some(owner.gid))
            .and_then(|()| fs::set_permissions(&socket, fs::Permissions::from_mode(owner.mode)))
            .map_err(failed("give the socket to its user"))?;
        let (stop, stopped) = UnixStream::pair().map_err(failed("make a pair of sockets"))?;
        let thread = std::thread::Builder::new()
            .name("ssh agent".to_owned())
            .spawn(move || serve(&listener, &stopped, &agent_socket))
            .map_err(failed("start a thread for the agent"))?;
        Ok(Self { socket, stop, thread: Some(thread), _started: started })
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        // The thread sees the end of the pair, whether or not this succeeds: it is closed in a moment.
        drop(self.stop.shutdown(Shutdown::Both));
        if let Some(thread) = self.thread.take() {
            // It has said all that it had to say to the command.
            drop(thread.join());
        }
    }
}

/// Calls `act` with a path of `socket` that fits into a socket's address (108 bytes).
fn at_short_path<T>(socket: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else { return act(socket) };
    let folder = File::open(folder)?;
    act(&Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

fn connect(agent: &Path) -> io::Result<UnixStream> {
    at_short_path(agent, |path| UnixStream::connect(path))
}

/// Answers connections until `stopped` ends.
fn serve(listener: &UnixListener, stopped: &UnixStream, agent: &Path) {
    let open: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
    let mut threads = Vec::new();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        if rustix::io::retry_on_intr(|| poll(&mut fds, None)).is_err() || !fds[1].revents().is_empty() {
            break;
        }
        let Ok((client, _)) = listener.accept() else { continue };
        // Who cannot be served finds the connection closed.
        let Ok(upstream) = connect(agent) else { continue };
        let (Ok(one), Ok(other)) = (client.try_clone(), upstream.try_clone()) else { continue };
        open.lock().unwrap_or_else(PoisonError::into_inner).extend([one, other]);
        let answer = std::thread::Builder::new().name("ssh agent".to_owned());
        threads.extend(answer.spawn(move || forward(client, upstream)).ok());
    }
    for stream in open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // One that is closed already is no loss.
        drop(stream.shutdown(Shutdown::Both));
    }
    for thread in threads {
        drop(thread.join());
    }
}

/// Passes requests on and answers back until one side closes.
fn forward(mut client: impl Read + Write, mut agent: impl Read + Write) -> io::Result<()> {
    while let Some(request) = message(&mut client)? {
        match request.get(4) {
            Some(kind) if ALLOWED.contains(kind) => {
                agent.write_all(&request)?;
                let Some(answer) = message(&mut agent)? else { break };
                client.write_all(&answer)?;
            }
            _ => client.write_all(&FAILURE)?,
        }
    }
    Ok(())
}

/// The next message, its length before it; `None` at the end.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let size = u32::from_be_bytes(length) as usize;
    if size > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = length.to_vec();
    message.resize(4 + size, 0);
    from.read_exact(&mut message[4..])?;
    Ok(Some(message))
}

/// An agent of the system that was started for key files. It ends with us, however we end: a shell waits for the end of
/// its standard input, which we hold, and then ends the agent.
#[derive(Debug)]
struct Started {
    shell: Child,
    socket: PathBuf,
}

const SHELL: &str = "ssh-agent -D -a \"$1\" >/dev/null 2>&1 & agent=$!; read -r end; kill $agent; wait $agent";

impl Started {
    fn new(files: &[PathBuf], folder: &Path) -> Result<Self, String> {
        const HELP: &str = "OpenSSH's ssh-agent and ssh-add are needed to use key files (Debian: apt-get install \
                            openssh-client); or start an agent yourself and give --ssh ID=$SSH_AUTH_SOCK";
        let socket = folder.join("agent");
        // The address of a socket is short: the agent makes it in its working directory.
        let shell = Command::new("/bin/sh")
            .args(["-c", SHELL, "sh", "agent"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start an agent for key files: {error}; {HELP}"))?;
        let started = Self { shell, socket };
        let end = Instant::now() + START;
        while connect(&started.socket).is_err() {
            if Instant::now() > end || crate::sys::namespace::find_program("ssh-agent").is_none() {
                return Err(format!("no agent for key files could be started; {HELP}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for file in files {
            let unusable = |why: &str| format!("cannot use the key {}: {why}", file.display());
            // From its standard input: who may read the file is not for us to judge, as for Docker.
            let key = File::open(file).map_err(|error| unusable(&error.to_string()))?;
            let added = Command::new("ssh-add")
                .args(["-q", "-"])
                .current_dir(folder)
                .env("SSH_AUTH_SOCK", "agent")
                // A passphrase cannot be asked for here.
                .env("SSH_ASKPASS_REQUIRE", "force")
                .env("SSH_ASKPASS", "/bin/false")
                .stdin(key)
                .output()
                .map_err(|error| format!("cannot start ssh-add: {error}; {HELP}"))?;
            if !added.status.success() {
                let said = String::from_utf8_lossy(&added.stderr);
                let said = said.lines().find(|line| !line.trim().is_empty());
                return Err(unusable(said.unwrap_or("it has a passphrase: add it to an agent before")));
            }
        }
        Ok(started)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Closing its standard input is what it waits for.
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_and_signatures_are_passed_on() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let (agent, mut theirs) = UnixStream::pair().unwrap();
        let forwarding = std::thread::spawn(move || forward(ours, agent));
        let say = |stream: &mut UnixStream, bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, bytes].concat()).unwrap();
        };
        // Add a key, remove all, lock, an extension, nothing at all.
        for refused in [&[17_u8, 1, 2][..], &[19], &[22], &[27], &[]] {
            say(&mut client, refused);
            assert_eq!(message(&mut client).unwrap().unwrap(), FAILURE, "{refused:?}");
        }
        for allowed in [&[11_u8][..], &[13, 1, 2, 3]] {
            say(&mut client, allowed);
            assert_eq!(&message(&mut theirs).unwrap().unwrap()[4..], allowed);
            say(&mut theirs, b"\x0cthe answer");
            assert_eq!(&message(&mut client).unwrap().unwrap()[4..], b"\x0cthe answer");
        }
        client.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(forwarding.join().unwrap().is_err(), "too long");
        assert_eq!(message(&mut client).unwrap(), None);
    }

    /// Case 5.6-71 of the semantics: the connections end with the step.
    #[test]
    fn a_socket_answers_as_long_as_it_is_forwarded() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than a socket's address.
        let deep = folder.path().join("x".repeat(200));
        fs::create_dir(&deep).unwrap();
        let agent = at_short_path(&deep.join("agent"), |path| UnixListener::bind(path)).unwrap();
        let answering = std::thread::spawn(move || {
            // The first connection is only a look.
            drop(agent.accept().unwrap());
            let (mut stream, _) = agent.accept().unwrap();
            assert_eq!(message(&mut stream).unwrap().unwrap(), [0, 0, 0, 1, 11]);
            stream.write_all(&[0, 0, 0, 1, 12]).unwrap();
            message(&mut stream).unwrap()
        });
        let given = Agent { id: "default".into(), keys: AgentKeys::Socket(deep.join("agent")) };
        let owner = FileOwner {
            mode: 0o640,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let forwarded = Forwarded::new(&given, &owner, &deep.join("new")).unwrap();
        assert_eq!(fs::metadata(forwarded.socket()).unwrap().permissions().mode() & 0o7777, 0o640);
        let mut client = connect(forwarded.socket()).unwrap();
        client.write_all(&[0, 0, 0, 1, 11]).unwrap();
        assert_eq!(message(&mut client).unwrap().unwrap(), [0, 0, 0, 1, 12]);
        drop(forwarded);
        assert_eq!(answering.join().unwrap(), None, "the connection is closed");
        assert_eq!(message(&mut client).unwrap(), None);
    }

    #[test]
    fn an_agent_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let given = Agent { id: "default".into(), keys: AgentKeys::Socket(folder.path().join("none")) };
        let owner = FileOwner { mode: 0o600, uid: 0, gid: 0 };
        assert!(Forwarded::new(&given, &owner, &folder.path().join("new")).unwrap_err().contains("cannot reach"));
    }
}
