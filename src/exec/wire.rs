//! What the two sides of a sandbox say to each other, as bytes on a socket.
//!
//! In and out: [`Order`], which rbuild sends to the process that becomes the sandbox, and [`Report`]s, which come back.
//! What always holds: what was encoded decodes to the same value; bytes that nobody encoded are an error, never a
//! panic.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Mount, MountSource, ProcessSpec, RootFs};
use crate::plan::limits::{Security, Ulimit};
use crate::plan::step::Network;
use crate::sys::root_dir::Identity;

/// All that the sandbox has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// The file system.
    pub(super) rootfs: RootFs,
    /// The command.
    pub(super) process: ProcessSpec,
    /// What `/etc/resolv.conf` and `/etc/hosts` hold.
    pub(super) files: Vec<(String, String)>,
    /// Overlay's marks are `user.overlay.*`.
    pub(super) user_xattr: bool,
    /// The command gets a terminal of its own, whose other end is sent back: a shell for a person.
    pub(super) terminal: bool,
    /// The program of a seccomp filter; empty is none.
    pub(super) seccomp: Vec<u8>,
    /// The files of this machine that take the process into its cgroups.
    pub(super) cgroups: Vec<PathBuf>,
    /// A byte follows, and with it the network namespace of the command.
    pub(super) network_follows: bool,
    /// Nothing that is executed gives more rights.
    pub(super) no_new_privileges: bool,
}

/// What the sandbox has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// A place for a mount is about to be made in the file system of the command.
    Stub(Stub),
    /// The sandbox could not be set up.
    Failed(Failure),
    /// The command exited.
    Exited(i32),
    /// The command was ended by a signal.
    Signaled(i32),
    /// The first process of the sandbox was ended by a signal from outside.
    Lost(i32),
    /// The other end of the command's terminal comes with this.
    Terminal,
    /// What was put into a copy of the file system for the command.
    PutIn(Vec<Identity>),
}

/// A file or folder that is there only for something to be mounted on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stub {
    /// Its path from the root, without `/` at the front; no component is a link.
    pub(super) path: PathBuf,
    /// A folder, not a file.
    pub(super) folder: bool,
    /// It is in this mount of the order; its path is from the root of the folder that is mounted there.
    pub(super) mount: Option<usize>,
}

/// A step of the set-up that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The system call or what else was tried.
    pub(super) call: String,
    /// On what; may be empty.
    pub(super) path: String,
    /// The kernel's reason, 0 where there is none.
    pub(super) errno: i32,
}

impl Order {
    /// Writes it, with its length before it.
    pub(super) fn send(&self, mut to: impl Write) -> io::Result<()> {
        let Self { rootfs, process, files, user_xattr, terminal, seccomp, cgroups, network_follows, no_new_privileges } =
            self;
        let mut out = Encoder(vec![0; 8]);
        out.list(&rootfs.lower, |out, path| out.bytes(path.as_os_str().as_bytes()));
        out.bytes(rootfs.upper.as_os_str().as_bytes());
        out.bytes(rootfs.work.as_os_str().as_bytes());
        out.list(&rootfs.mounts, Encoder::mount);
        out.number(u64::from(rootfs.copied));
        let ProcessSpec {
            args,
            env,
            cwd,
            uid,
            gid,
            groups,
            hostname,
            network,
            script,
            extra_hosts,
            shm_size,
            security,
            ulimits,
            linux32,
            // For the outside.
            cgroup_parent: _,
        } = process;
        out.list(args, |out, word| out.text(word));
        out.list(env, |out, word| out.text(word));
        out.text(cwd);
        out.number(u64::from(*uid));
        out.number(u64::from(*gid));
        out.list(groups, |out, group| out.number(u64::from(*group)));
        out.text(hostname);
        out.number(match network {
            Network::Default => 0,
            Network::None => 1,
            Network::Host => 2,
        });
        out.list(script.as_slice(), Encoder::pair);
        out.list(extra_hosts, Encoder::pair);
        out.number(*shm_size);
        out.number(u64::from(*security == Security::Insecure));
        out.list(ulimits, |out, Ulimit { name, soft, hard }| {
            out.text(name);
            out.number(*soft);
            out.number(*hard);
        });
        out.number(u64::from(*linux32));
        out.list(files, Encoder::pair);
        out.number(u64::from(*user_xattr));
        out.number(u64::from(*terminal));
        out.bytes(seccomp);
        out.list(cgroups, |out, path| out.bytes(path.as_os_str().as_bytes()));
        out.number(u64::from(*network_follows));
        out.number(u64::from(*no_new_privileges));
        let length = (out.0.len() - 8) as u64;
        out.0[..8].copy_from_slice(&length.to_le_bytes());
        to.write_all(&out.0)
    }

    /// Reads one.
    pub(super) fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let mut bytes = Vec::new();
        if from.take(length).read_to_end(&mut bytes)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input = Decoder(&bytes);
        let rootfs = RootFs {
            lower: input.list(Decoder::path)?,
            upper: input.path()?,
            work: input.path()?,
            mounts: input.list(Decoder::mount)?,
            copied: input.number()? != 0,
        };
        let process = ProcessSpec {
            args: input.list(Decoder::text)?,
            env: input.list(Decoder::text)?,
            cwd: input.text()?,
            uid: input.id()?,
            gid: input.id()?,
            groups: input.list(Decoder::id)?,
            hostname: input.text()?,
            network: match input.number()? {
                0 => Network::Default,
                1 => Network::None,
                2 => Network::Host,
                _ => return Err(malformed()),
            },
            script: input.list(Decoder::pair)?.into_iter().next(),
            extra_hosts: input.list(Decoder::pair)?,
            shm_size: input.number()?,
            security: if input.number()? == 0 { Security::Sandbox } else { Security::Insecure },
            ulimits: input.list(Decoder::ulimit)?,
            linux32: input.number()? != 0,
            cgroup_parent: None,
        };
        Ok(Self {
            rootfs,
            process,
            files: input.list(Decoder::pair)?,
            user_xattr: input.number()? != 0,
            terminal: input.number()? != 0,
            seccomp: input.bytes()?.to_vec(),
            cgroups: input.list(Decoder::path)?,
            network_follows: input.number()? != 0,
            no_new_privileges: input.number()? != 0,
        })
    }
}

impl Report {
    /// Writes it by one call.
    pub(super) fn send(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.encode())
    }

    /// Its bytes, with their number before them.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder(vec![0; 8]);
        match self {
            Self::Stub(Stub { path, folder, mount }) => {
                out.number(1);
                out.bytes(path.as_os_str().as_bytes());
                out.number(u64::from(*folder));
                out.list(mount.as_slice(), |out, mount| out.number(*mount as u64));
            }
            Self::Failed(Failure { call, path, errno }) => {
                out.number(2);
                out.text(call);
                out.text(path);
                out.number(u64::from(errno.cast_unsigned()));
            }
            Self::Exited(code) => out.tagged(3, *code),
            Self::Signaled(signal) => out.tagged(4, *signal),
            Self::Lost(signal) => out.tagged(5, *signal),
            Self::Terminal => out.number(6),
            Self::PutIn(files) => {
                out.number(7);
                out.list(files, |out, Identity { inode, born }| {
                    [inode.0, inode.1, born.0.cast_unsigned(), u64::from(born.1)]
                        .into_iter()
                        .for_each(|n| out.number(n));
                });
            }
        }
        let length = (out.0.len() - 8) as u64;
        out.0[..8].copy_from_slice(&length.to_le_bytes());
        out.0
    }

    /// Takes the first report from `bytes`, if it is there as a whole.
    pub(super) fn take(bytes: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length) as usize) else {
            return Ok(None);
        };
        let Some(body) = bytes.get(8..).and_then(|rest| rest.get(..length)) else { return Ok(None) };
        let mut input = Decoder(body);
        let report = match input.number()? {
            1 => Self::Stub(Stub {
                path: input.path()?,
                folder: input.number()? != 0,
                mount: input.list(Decoder::number)?.first().map(|mount| *mount as usize),
            }),
            2 => Self::Failed(Failure { call: input.text()?, path: input.text()?, errno: input.id()?.cast_signed() }),
            3 => Self::Exited(input.id()?.cast_signed()),
            4 => Self::Signaled(input.id()?.cast_signed()),
            5 => Self::Lost(input.id()?.cast_signed()),
            6 => Self::Terminal,
            7 => Self::PutIn(input.list(|input| {
                let inode = (input.number()?, input.number()?);
                Ok(Identity { inode, born: (input.number()?.cast_signed(), input.id()?) })
            })?),
            _ => return Err(malformed()),
        };
        bytes.drain(..8 + length);
        Ok(Some(report))
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed message between rbuild and its sandbox")
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn tagged(&mut self, tag: u64, value: i32) {
        self.number(tag);
        self.number(u64::from(value.cast_unsigned()));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn pair(&mut self, pair: &(String, String)) {
        self.text(&pair.0);
        self.text(&pair.1);
    }

    fn path(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_bytes());
    }

    fn mount(&mut self, mount: &Mount) {
        let Mount { target, read_only, source } = mount;
        self.path(target);
        self.number(u64::from(*read_only));
        match source {
            MountSource::Stack { lower, path, writes } => {
                self.number(1);
                self.list(lower, |out, path| out.path(path));
                self.text(path);
                self.list(writes.as_slice(), |out, (upper, work)| {
                    out.path(upper);
                    out.path(work);
                });
            }
            MountSource::Folder { folder, path } => {
                self.number(2);
                self.path(folder);
                self.text(path);
            }
            MountSource::Memory { size } => {
                self.number(3);
                self.list(size.as_slice(), |out, size| out.number(*size));
            }
            MountSource::File { content, mode, uid, gid } => {
                self.number(4);
                self.bytes(content);
                [mode, uid, gid].into_iter().for_each(|number| self.number(u64::from(*number)));
            }
            MountSource::Socket(path) => {
                self.number(5);
                self.path(path);
            }
        }
    }

    fn list<T>(&mut self, items: &[T], mut one: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            one(self, item);
        }
    }
}

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn number(&mut self) -> io::Result<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    fn id(&mut self) -> io::Result<u32> {
        u32::try_from(self.number()?).map_err(|_| malformed())
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).map_err(|_| malformed())?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| malformed())
    }

    fn path(&mut self) -> io::Result<PathBuf> {
        Ok(PathBuf::from(OsString::from_vec(self.bytes()?.to_vec())))
    }

    fn pair(&mut self) -> io::Result<(String, String)> {
        Ok((self.text()?, self.text()?))
    }

    fn ulimit(&mut self) -> io::Result<Ulimit> {
        let name = self.text()?;
        let name = Ulimit::NAMES.into_iter().find(|known| *known == name).ok_or_else(malformed)?;
        Ok(Ulimit { name, soft: self.number()?, hard: self.number()? })
    }

    fn mount(&mut self) -> io::Result<Mount> {
        let (target, read_only) = (self.path()?, self.number()? != 0);
        let source = match self.number()? {
            1 => MountSource::Stack {
                lower: self.list(Decoder::path)?,
                path: self.text()?,
                writes: self.list(|input| Ok((input.path()?, input.path()?)))?.into_iter().next(),
            },
            2 => MountSource::Folder { folder: self.path()?, path: self.text()? },
            3 => MountSource::Memory { size: self.list(Decoder::number)?.into_iter().next() },
            4 => MountSource::File {
                content: self.bytes()?.to_vec(),
                mode: self.id()?,
                uid: self.id()?,
                gid: self.id()?,
            },
            5 => MountSource::Socket(self.path()?),
            _ => return Err(malformed()),
        };
        Ok(Mount { target, read_only, source })
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> io::Result<T>) -> io::Result<Vec<T>> {
        let count = self.number()?;
        // Not with_capacity: the number is only believed as far as items follow.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(one(self)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            rootfs: RootFs {
                lower: vec!["/a b".into(), OsString::from_vec(b"/\xff:,".to_vec()).into()],
                upper: "/u".into(),
                work: "/w".into(),
                mounts: [
                    MountSource::Stack { lower: vec!["/l".into()], path: "/p".into(), writes: None },
                    MountSource::Stack { lower: vec![], path: String::new(), writes: Some(("/u".into(), "/w".into())) },
                    MountSource::Folder { folder: "/f".into(), path: "x".into() },
                    MountSource::Memory { size: None },
                    MountSource::Memory { size: Some(0) },
                    MountSource::File { content: vec![0, 255], mode: 0o400, uid: 1, gid: 2 },
                    MountSource::Socket("/s".into()),
                ]
                .map(|source| Mount { target: "/t".into(), read_only: true, source })
                .to_vec(),
                copied: true,
            },
            process: ProcessSpec {
                args: vec!["/bin/sh".into(), "-c".into(), "echo ü\n".into()],
                env: vec!["A=".into(), String::new()],
                cwd: "/".into(),
                uid: u32::MAX - 1,
                gid: 7,
                groups: vec![7, 8],
                hostname: "h".into(),
                network: Network::None,
                script: Some(("EOF".into(), "#!/bin/sh\n".into())),
                extra_hosts: vec![("a".into(), "1.2.3.4".into())],
                shm_size: 64 << 20,
                security: Security::Insecure,
                ulimits: vec![Ulimit { name: "core", soft: 1, hard: u64::MAX }],
                linux32: true,
                cgroup_parent: None,
            },
            files: vec![("/etc/hosts".into(), "x".repeat(300_000))],
            user_xattr: true,
            terminal: true,
            seccomp: vec![1, 2],
            cgroups: vec!["/c".into()],
            network_follows: true,
            no_new_privileges: true,
        }
    }

    #[test]
    fn an_order_arrives_as_it_was_sent() {
        let mut bytes = Vec::new();
        order().send(&mut bytes).expect("a vector takes all");
        assert_eq!(Order::receive(bytes.as_slice()).expect("a whole order"), order());
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(Order::receive(&bytes[..length]).is_err(), "{length}");
        }
        bytes[8] = 0xff;
        assert!(Order::receive(bytes.as_slice()).is_err());
    }

    #[test]
    fn reports_arrive_one_by_one() {
        let reports = [
            Report::Stub(Stub { path: "etc/hosts".into(), folder: false, mount: None }),
            Report::Stub(Stub { path: "x".into(), folder: true, mount: Some(3) }),
            Report::Failed(Failure { call: "mount".into(), path: "/x".into(), errno: -1 }),
            Report::Exited(255),
            Report::Signaled(9),
            Report::Lost(-3),
            Report::Terminal,
            Report::PutIn(vec![Identity { inode: (u64::MAX, 2), born: (-3, 4) }]),
        ];
        let mut bytes = Vec::new();
        for report in &reports {
            report.send(&mut bytes).expect("a vector takes all");
        }
        let mut arrived = Vec::new();
        let mut buffer = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            arrived.extend(Report::take(&mut buffer).expect("well formed"));
        }
        assert_eq!(arrived, reports);
        assert!(buffer.is_empty());
        let mut wrong = [8_u64.to_le_bytes(), 99_u64.to_le_bytes()].concat();
        assert!(Report::take(&mut wrong).is_err());
    }
}
