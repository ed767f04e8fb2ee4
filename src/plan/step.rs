//! The vocabulary of the engine: file-system operations with everything that they depend on.
//!
//! In: nothing; these are plain values that [`super::plan`] makes. Out: nothing. What always holds: all variables are
//! expanded, paths of the image are absolute, and a step's parent and inputs come before it in [`Plan::steps`].

use crate::diagnostic::Span;
use crate::image::config::ImageConfig;
use crate::image::platform::Platform;
use crate::plan::remote::RemoteSource;

use super::limits::{RunLimits, Security};

/// What must be done: the steps, in an order in which every step comes after what it needs, and the images they make.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// File-system operations, indexed by [`StepId`].
    pub steps: Vec<Step>,
    /// Images that FROM, `COPY --from` and mounts bring in, indexed by [`BaseId`].
    pub bases: Vec<PlannedBase>,
    /// Build contexts that steps read, indexed by [`ContextId`]; 0 is always the main one.
    pub contexts: Vec<PlannedContext>,
    /// The results: one per platform.
    pub images: Vec<PlannedImage>,
    /// Where `--shell-at` wants a shell.
    pub shell: Option<Box<ShellPoint>>,
    /// The result is an index, even if it is of one image.
    pub index: bool,
    /// The ARGs of the stages that were planned, in the order in which that happened; of several platforms, those of the
    /// first.
    pub arguments: Vec<PlannedArgument>,
}

/// An ARG of a stage.
#[derive(Debug, Clone)]
pub struct PlannedArgument {
    /// The stage, by its place in the file.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// What it comes to, if anything.
    pub value: Option<String>,
    /// It stands for the one of this name before the first FROM.
    pub global: bool,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Its first and last line, from 1.
    pub lines: (usize, usize),
}

/// A place in a stage where a shell can be had.
#[derive(Debug, Clone)]
pub struct ShellPoint {
    /// The file system.
    pub stack: Stack,
    /// The surroundings that a RUN would have here; its command is the shell.
    pub run: RunOp,
    /// The place in words: `before line 7`, `at the end of the stage build`.
    pub place: String,
}

/// How the names of steps begin that stand for no instruction: they load files for the mounts of a RUN.
pub const INTERNAL: &str = "[internal] ";

/// Index of a step in [`Plan::steps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub usize);

/// Index of a base in [`Plan::bases`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseId(pub usize);

/// Index of a build context in [`Plan::contexts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub usize);

/// An image from outside that the plan uses: the key under which [`super::Bases`] holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBase {
    /// The name as [`super::Bases`] knows it (normalised reference or name of a named context).
    pub name: String,
    /// The platform it was resolved for.
    pub platform: Platform,
}

/// A directory that steps copy from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedContext {
    /// `None` for the main context, else the name given to `--build-context`.
    pub name: Option<String>,
}

/// A stack of layers: what a step builds on or copies from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stack {
    /// No layers.
    Scratch,
    /// The layers of an image from outside.
    Base(BaseId),
    /// Those below that step, and its own.
    Step(StepId),
}

/// One file-system operation. Makes exactly one layer.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it builds on.
    pub parent: Stack,
    /// What is done.
    pub op: Op,
    /// The platform of the stage.
    pub platform: Platform,
    /// The instruction in the Dockerfile.
    pub span: Span,
    /// First and last line of the instruction, from 1.
    pub lines: (usize, usize),
    /// What progress shows: `[build 2/5] RUN make`.
    pub name: String,
    /// `--no-cache` holds for it: run, whatever the cache has.
    pub no_cache: bool,
}

impl Plan {
    /// The steps of a stack, topmost first.
    pub fn steps_of(&self, stack: Stack) -> impl Iterator<Item = StepId> + '_ {
        let step = |stack| match stack {
            Stack::Step(step) => Some(step),
            Stack::Base(_) | Stack::Scratch => None,
        };
        std::iter::successors(step(stack), move |id| step(self.steps[id.0].parent))
    }
}

/// What a step does to the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// RUN.
    Run(RunOp),
    /// COPY, ADD and heredocs of both.
    Copy(CopyOp),
    /// WORKDIR.
    MakeDir(MakeDirOp),
}

impl Op {
    /// The same operation in another plan, where stacks and contexts have other numbers.
    pub(super) fn moved(self, stack: impl Fn(Stack) -> Stack, context: impl Fn(ContextId) -> ContextId) -> Self {
        match self {
            // All fields are named, so that one which holds such a number cannot be overlooked.
            Self::Run(RunOp {
                args,
                script,
                env,
                proxy_env,
                cwd,
                user,
                network,
                hostname,
                security,
                limits,
                shell,
                mut mounts,
            }) => {
                for path in mounts.iter_mut().filter_map(|mount| mount.kind.input_mut()) {
                    path.stack = stack(path.stack);
                }
                Self::Run(RunOp {
                    args,
                    script,
                    env,
                    proxy_env,
                    cwd,
                    user,
                    network,
                    hostname,
                    security,
                    limits,
                    shell,
                    mounts,
                })
            }
            Self::Copy(copy) => Self::Copy(CopyOp {
                from: match copy.from {
                    CopyFrom::Context(from) => CopyFrom::Context(context(from)),
                    CopyFrom::Stack(from) => CopyFrom::Stack(stack(from)),
                },
                ..copy
            }),
            Self::MakeDir(make) => Self::MakeDir(make),
        }
    }
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOp {
    /// The argument vector, shell included.
    pub args: Vec<String>,
    /// A file to be found at `/dev/pipes/NAME` while it runs: name and content (a heredoc that begins with `#!`).
    pub script: Option<(String, String)>,
    /// `NAME=value`, in order: the image's ENV, declared ARGs with a value, PATH.
    pub env: Vec<String>,
    /// As `env`, and not part of the key: the predefined proxy arguments that were not declared.
    pub proxy_env: Vec<String>,
    /// The working directory: absolute.
    pub cwd: String,
    /// USER as written: `name`, `uid`, `name:group`…; empty is root.
    pub user: String,
    /// The network of the command.
    pub network: Network,
    /// The host's name inside; `None` is `buildkitsandbox`.
    pub hostname: Option<String>,
    /// How it is confined.
    pub security: Security,
    /// What it may use, as far as that is part of the key.
    pub limits: RunLimits,
    /// The stage's SHELL, for a shell where the step failed; not part of the key.
    pub shell: Vec<String>,
    /// What is mounted while it runs: parents before what lies in them.
    pub mounts: Vec<RunMount>,
}

/// `RUN --mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMount {
    /// Where: absolute, cleaned, not `/`. `None` is a secret that is only a variable.
    pub target: Option<String>,
    /// What the command cannot write to.
    pub read_only: bool,
    /// What is mounted.
    pub kind: MountOp,
    /// The flag in the Dockerfile.
    pub span: Span,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountOp {
    /// Files of a stack. Those of a build context are a layer of their own, which a step before has made.
    Bind(MountPath),
    /// A folder that stays from one build to the next, in no layer.
    Cache {
        /// What it is called, the namespace of `BUILDKIT_CACHE_MOUNT_NS` before it.
        id: String,
        /// Who else may use it meanwhile.
        sharing: Sharing,
        /// What it holds at first.
        seed: Option<MountPath>,
        /// The folder inside it that is mounted, from its root: "" is all of it.
        path: String,
        /// Mode, user and group that it is made with, where the flag says so.
        mode: Option<u32>,
        /// User.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
    },
    /// A folder in memory.
    Tmpfs {
        /// Its size in bytes.
        size: Option<u64>,
    },
    /// A file, a variable or both, with what `--secret` gives.
    Secret {
        /// Which one.
        id: String,
        /// The variable.
        env: Option<String>,
        /// Who may read the file.
        owner: FileOwner,
        /// The step fails where it is not given.
        required: bool,
    },
    /// A socket that leads to the agent of `--ssh`.
    Ssh {
        /// Which one.
        id: String,
        /// Who may use the socket.
        owner: FileOwner,
        /// The step fails where it is not given.
        required: bool,
    },
}

/// A path in a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPath {
    /// The stack.
    pub stack: Stack,
    /// Absolute, cleaned.
    pub path: String,
}

/// Mode and owner of a file that is made for a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// Permissions.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What happens when two commands want the same cache at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Sharing {
    /// Both use it.
    #[default]
    Shared,
    /// The second gets another one.
    Private,
    /// The second waits.
    Locked,
}

impl Sharing {
    /// As it is written in a Dockerfile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
            Self::Locked => "locked",
        }
    }
}

impl MountOp {
    /// The paths of stacks that the mount reads.
    pub fn input(&self) -> Option<&MountPath> {
        match self {
            Self::Bind(path) => Some(path),
            Self::Cache { seed, .. } => seed.as_ref(),
            Self::Tmpfs { .. } | Self::Secret { .. } | Self::Ssh { .. } => None,
        }
    }

    /// The same, to be changed.
    fn input_mut(&mut self) -> Option<&mut MountPath> {
        match self {
            Self::Bind(path) => Some(path),
            Self::Cache { seed, .. } => seed.as_mut(),
            Self::Tmpfs { .. } | Self::Secret { .. } | Self::Ssh { .. } => None,
        }
    }

    /// The value of `type=`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bind(_) => "bind",
            Self::Cache { .. } => "cache",
            Self::Tmpfs { .. } => "tmpfs",
            Self::Secret { .. } => "secret",
            Self::Ssh { .. } => "ssh",
        }
    }
}

impl RunOp {
    /// The program of the stage's SHELL, with what comes before its options: a shell for a person.
    pub fn interactive_shell(&self) -> Vec<String> {
        let words: Vec<String> = self.shell.iter().take_while(|word| !word.starts_with('-')).cloned().collect();
        if words.is_empty() { vec!["/bin/sh".to_owned()] } else { words }
    }

    /// Whether what it writes stays in a cache for later commands.
    pub fn writes_cache(&self) -> bool {
        self.mounts.iter().any(|mount| !mount.read_only && matches!(mount.kind, MountOp::Cache { .. }))
    }
}

/// What a RUN reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Network {
    /// What this machine offers for builds.
    #[default]
    Default,
    /// Nothing but its own loopback.
    None,
    /// The host's.
    Host,
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOp {
    /// What is copied, in order.
    pub sources: Vec<CopySource>,
    /// Where `Path` sources are looked for.
    pub from: CopyFrom,
    /// Absolute; joined to WORKDIR, not cleaned further. A trailing `/` (or `/.`) says that it is a directory.
    pub destination: String,
    /// `--chown`, expanded: `user` and `group` as written.
    pub chown: Option<Chown>,
    /// `--chmod`, expanded and checked.
    pub chmod: Option<Chmod>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// ADD: archives are unpacked.
    pub unpack: bool,
}

impl CopyOp {
    /// Nothing of the main context to `/`: to be filled in.
    pub fn plain() -> Self {
        Self {
            sources: Vec::new(),
            from: CopyFrom::Context(ContextId(0)),
            destination: "/".to_owned(),
            chown: None,
            chmod: None,
            link: false,
            parents: false,
            exclude: Vec::new(),
            unpack: false,
        }
    }

    /// The sources that are fetched, in order.
    pub fn remotes(&self) -> impl Iterator<Item = &RemoteSource> {
        self.sources.iter().filter_map(|source| match source {
            CopySource::Remote(remote) => Some(remote),
            _ => None,
        })
    }
}

/// Where COPY takes its paths from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFrom {
    /// A build context.
    Context(ContextId),
    /// A stage or an image.
    Stack(Stack),
}

/// One source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path or a pattern in the source, as written.
    Path(String),
    /// A here-document: a file of this name with these bytes, mode 0644.
    Inline {
        /// File name.
        name: String,
        /// Content, expanded.
        content: String,
    },
    /// ADD: what is fetched.
    Remote(RemoteSource),
}

/// `--chown=user[:group]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chown {
    /// Name or number.
    pub user: String,
    /// Name or number.
    pub group: Option<String>,
}

/// `--chmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// 0 to 07777.
    Octal(u32),
    /// Clauses of chmod(1), such as `u=rwX,go=rX`.
    Symbolic(Vec<ModeClause>),
}

/// One `[ugoa]*[-+=][rwxXst]*` of a symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeClause {
    /// Any of `u`, `g`, `o`; all three where nothing or `a` was written.
    pub who: (bool, bool, bool),
    /// `+`, `-` or `=`.
    pub operator: char,
    /// Any of `rwxXst` and, for copies of another class, `ugo`.
    pub permissions: String,
}

/// WORKDIR: a directory that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MakeDirOp {
    /// Absolute, cleaned.
    pub path: String,
    /// USER as written; the owner of what has to be made. Empty is root.
    pub user: String,
}

/// A result: config and history are finished but for what only the steps' layers can tell.
#[derive(Debug, Clone)]
pub struct PlannedImage {
    /// The platform it is for.
    pub platform: Platform,
    /// Its layers.
    pub stack: Stack,
    /// The image under all of them, for its history and descriptors; `None` is scratch.
    pub base: Option<BaseId>,
    /// The config with the Dockerfile's metadata folded in; `created`, `rootfs` and `history` are still the base's.
    pub config: ImageConfig,
    /// New history, oldest first.
    pub history: Vec<PlannedHistory>,
}

/// A history entry to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedHistory {
    /// `created_by`, as BuildKit writes it.
    pub created_by: String,
    /// The step whose layer it stands for; `None` is an empty layer.
    pub step: Option<StepId>,
}
