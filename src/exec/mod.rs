//! Runs a command over a stack of layer trees, in a sandbox of its own.
//!
//! In: a [`RootFs`] (trees, an upper and a work folder) and a [`ProcessSpec`]. Out: what the command wrote, live, and
//! how it ended ([`Exit`]); its changes are in the upper folder. What always holds: the command sees nothing of this
//! machine but its network (unless that is off or private); when [`run`] returns, or rbuild is killed, every process of the
//! command is gone and nothing is mounted; what the sandbox had to put into the file system for its own mounts is gone
//! from the upper folder.
//!
//! ```text
//! rbuild ──spawns──▶ rbuild-init ──forks──▶ process 1 of the sandbox ──forks──▶ the command
//!  sandbox.rs         init.rs: namespaces    root.rs: mounts, change of root    init.rs: user, capabilities, exec
//!  reads output       kills it when rbuild   reaps what the command leaves;
//!  and reports        goes away              its end is the end of all
//! ```
//!
//! Where namespaces are not allowed, a command can be run in a copy of its file system: see `chroot.rs`.
//!
//! rbuild-init is this program itself, started anew, since only a process with one thread may do what it does.

pub mod cgroup;
mod chroot;
pub mod emulator;
mod etc;
mod init;
mod mounts;
mod network;
mod place;
pub mod probe;
mod remedy;
mod root;
mod sandbox;
mod seccomp;
mod shell;
mod wire;

use std::io;
use std::path::PathBuf;

use crate::plan::limits::{Security, Ulimit};
use crate::plan::step::Network;

pub use init::{init_hook, init_main};
pub(crate) use mounts::holds_another;
pub use mounts::{LeftStub, Mount, MountSource, remove_stubs};
pub use network::PrivateNetwork;
pub use root::DEFAULT_SHM;
pub use sandbox::{Ended, Sandbox, run};
pub use shell::Terminal;

/// The file system of a command: an overlay, or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFs {
    /// Layer trees, topmost first.
    pub lower: Vec<PathBuf>,
    /// Takes what the command changes.
    pub upper: PathBuf,
    /// An empty folder on the same file system, for overlay's own use; empty again afterwards.
    pub work: PathBuf,
    /// What else is mounted in it, parents before what lies in them.
    pub mounts: Vec<Mount>,
    /// `upper` is a copy of all that there is, and becomes the root as it is: there are no lower trees and no mounts.
    pub copied: bool,
}

/// How commands are contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// By namespaces where they are allowed, else, for root, by a root directory.
    #[default]
    Auto,
    /// By namespaces.
    Namespace,
    /// By a root directory alone.
    Chroot,
}

/// The folders of the image in which a command in a [copy](RootFs::copied) finds the machine's things. Like
/// [`FILES_PUT_IN`] they are no part of what it leaves; nor is anything else that [`Ended::put_in`] tells of.
pub const FOLDERS_PUT_IN: [&str; 3] = chroot::PLACES;

/// The files that a command finds and no layer holds. As with BuildKit `/etc/hostname` is none of them: it is the image's.
pub const FILES_PUT_IN: [&str; 2] = ["etc/resolv.conf", "etc/hosts"];

/// A command and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program, looked up in the PATH of `env` if it holds no `/`, and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`: exactly what the command gets.
    pub env: Vec<String>,
    /// The working directory: absolute; made where it is missing.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The host's name.
    pub hostname: String,
    /// What it reaches.
    pub network: Network,
    /// A file to be found at `/dev/pipes/NAME`, mode 0755: name and content.
    pub script: Option<(String, String)>,
    /// Lines for `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Size of `/dev/shm` in bytes; 0 is 64 MiB.
    pub shm_size: u64,
    /// How it is confined.
    pub security: Security,
    /// Its limits for [`setrlimit(2)`](https://man7.org/linux/man-pages/man2/setrlimit.2.html).
    pub ulimits: Vec<Ulimit>,
    /// The kernel tells it that the machine has 32 bits: it is for the smaller sibling of this machine's architecture.
    pub linux32: bool,
    /// The control group below which its own is made, from the root of all on.
    pub cgroup_parent: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code. 127: the program was not found; 126: it could not be executed (why is in the output).
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// The build was canceled while it ran.
    Canceled,
}

/// Why a command could not be run. The messages end in what to do.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The process is not root in its user namespace: an error of rbuild.
    #[error("internal error: a sandbox needs root: the user namespace must be entered before (sys::namespace)")]
    NotRoot,
    /// A word of the command or its environment has a NUL byte.
    #[error("{what} {value:?} contains a NUL byte, which no program can be given")]
    Nul {
        /// `argument`, `environment variable`…
        what: &'static str,
        /// The word.
        value: String,
    },
    /// The script's name is no name of a file.
    #[error("the here-document's name {0:?} cannot be the name of a file in /dev/pipes")]
    ScriptName(String),
    /// A file of this machine that the sandbox needs cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The sandbox's first process cannot be started.
    #[error("cannot start {program} as the sandbox's init: {source}{}", remedy::after(.help))]
    Spawn {
        /// What was to be executed.
        program: String,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        help: String,
    },
    /// A step of the set-up failed.
    #[error("cannot set up the sandbox: {}: {source}{}", format!("{call} {path}").trim_end(), remedy::after(.help))]
    SetUp {
        /// The call.
        call: String,
        /// On what; may be empty.
        path: String,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        help: String,
    },
    /// The processes of the sandbox ended without a word.
    #[error(
        "the sandbox was killed from outside ({0}): if memory ran out, the kernel's log has a line about it (`dmesg`)"
    )]
    Lost(String),
    /// A limit cannot be enforced.
    #[error(transparent)]
    Limit(#[from] cgroup::CgroupError),
    /// The network that was asked for cannot be had.
    #[error("RUN cannot have a network of its own (--network private): {0}")]
    Network(String),
    /// There is no program to give to a person who asked for a shell.
    #[error("the image has no shell: there is neither {} nor /bin/sh in it", .0.join(" "))]
    NoShell(Vec<String>),
    /// Something that does not fail.
    #[error("cannot talk to the sandbox: {call}: {source}")]
    Talk {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What the sandbox needed in the upper or the work folder cannot be removed.
    #[error("cannot remove {}, which the sandbox needed while the command ran: {source}", path.display())]
    Place {
        /// The place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ExecError {
    /// Whether this machine forbids this process to make namespaces, or to mount what the command would see: with a copy
    /// of its file system it could be run. What fails for another reason is to be mended.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::SetUp { call, source, .. } => remedy::is_refusal(call, source),
            Self::Spawn { source, .. } => remedy::is_forbidden(source),
            _ => false,
        }
    }
}
