//! What a Dockerfile says, as typed values: nothing is expanded, nothing is looked up.
//!
//! In: the parser's nodes. Out: [`Dockerfile`]. What always holds: every span lies inside the source, every word
//! is as the user wrote it (quotes and `$` included) so that [`super::word`] can expand it later, and there is a
//! variant for every instruction and a field for every flag: what rbuild cannot do yet is rejected by the planner,
//! by name, never dropped here.

use crate::diagnostic::Span;

/// A whole file.
#[derive(Debug, Clone, Default)]
pub struct Dockerfile {
    /// The escape character: `\` or a backtick.
    pub escape: Escape,
    /// The value of `# syntax=`.
    pub syntax: Option<Word>,
    /// The value of `# check=`.
    pub check: Option<Word>,
    /// The ARG instructions before the first FROM.
    pub global_args: Vec<Instruction>,
    /// One per FROM, in order.
    pub stages: Vec<Stage>,
}

/// The character that escapes and continues lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Escape {
    /// `\`, the default.
    #[default]
    Backslash,
    /// A backtick, by `# escape=`.
    Backtick,
}

impl Escape {
    /// The character itself.
    pub const fn char(self) -> char {
        match self {
            Self::Backslash => '\\',
            Self::Backtick => '`',
        }
    }
}

/// FROM and what follows it.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The image, unexpanded.
    pub image: Word,
    /// `--platform`, unexpanded.
    pub platform: Option<Word>,
    /// The name after AS, lower-cased, with the span of the name as written.
    pub name: Option<Word>,
    /// The FROM instruction.
    pub span: Span,
    /// First and last line of FROM, from 1.
    pub lines: (usize, usize),
    /// What a comment right above FROM says of it: `# NAME description`.
    pub description: Option<String>,
    /// The instructions up to the next FROM.
    pub instructions: Vec<Instruction>,
}

/// A text as the user wrote it, unexpanded, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text, quotes, escapes and `$` included.
    pub text: String,
    /// Where it stands. Covers the whole instruction where a word was glued together over continued lines.
    pub span: Span,
}

/// One instruction other than FROM.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// What it says.
    pub kind: InstructionKind,
    /// The whole instruction, heredocs included.
    pub span: Span,
    /// First and last line, from 1.
    pub lines: (usize, usize),
    /// The text on one line, as messages and progress show it: continuations joined, heredoc bodies left out.
    pub text: String,
}

/// Every instruction of the Dockerfile reference but FROM.
#[derive(Debug, Clone)]
pub enum InstructionKind {
    /// ARG, one or more.
    Arg(Vec<ArgDeclaration>),
    /// ENV pairs.
    Env(Vec<(Word, Word)>),
    /// LABEL pairs.
    Label(Vec<(Word, Word)>),
    /// RUN.
    Run(Run),
    /// COPY.
    Copy(Copy),
    /// ADD.
    Add(Add),
    /// WORKDIR.
    Workdir(Word),
    /// USER.
    User(Word),
    /// EXPOSE.
    Expose(Vec<Word>),
    /// VOLUME.
    Volume(Vec<Word>),
    /// CMD.
    Cmd(CommandLine),
    /// ENTRYPOINT.
    Entrypoint(CommandLine),
    /// SHELL: always the JSON form.
    Shell(Vec<String>),
    /// STOPSIGNAL.
    StopSignal(Word),
    /// HEALTHCHECK.
    Healthcheck(Healthcheck),
    /// ONBUILD: the trigger's text as the image config stores it, and the parsed trigger; `None` where the trigger is
    /// wrong, which is a warning: Docker takes it, and the builds that use the image fail.
    OnBuild(String, Option<Box<Instruction>>),
    /// MAINTAINER.
    Maintainer(Word),
}

/// `NAME` or `NAME=default` of an ARG.
#[derive(Debug, Clone)]
pub struct ArgDeclaration {
    /// The name, as written.
    pub name: Word,
    /// The default, unexpanded; `Some` of an empty text for `NAME=`.
    pub default: Option<Word>,
    /// What a comment right above says of it: `# NAME description`.
    pub description: Option<String>,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Text for the shell: continuations joined, comments removed, otherwise as written.
    Shell(String),
    /// A JSON array: the words as they are.
    Exec(Vec<String>),
}

/// RUN with its flags.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line itself, without heredoc bodies.
    pub command: CommandLine,
    /// The heredocs that the command line opens, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, repeatable.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--security`.
    pub security: Option<Word>,
    /// `--device`, repeatable.
    pub devices: Vec<Word>,
}

impl Run {
    /// What the shell or the kernel is given, heredocs taken in.
    pub fn script(&self) -> Script {
        super::flags::run_script(self)
    }
}

/// What a RUN executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// One argument for the shell.
    Shell(String),
    /// An argument vector, no shell.
    Exec(Vec<String>),
    /// `RUN <<NAME` whose body begins with `#!`: a file `/dev/pipes/NAME` of mode 0755 with this body, which is run.
    File {
        /// The heredoc's name.
        name: String,
        /// The bytes of the file.
        body: String,
    },
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The terminating word, quotes removed.
    pub name: String,
    /// The body, as the file or script gets it; every line ends in a newline.
    pub content: String,
    /// The body as it stands in the source, where `<<-` made a difference.
    pub raw: Option<String>,
    /// Whether variables are expanded: no part of the opening word was quoted.
    pub expand: bool,
    /// `<<-`: leading tabs were removed.
    pub chomp: bool,
    /// Where the body stands, terminator included.
    pub span: Span,
}

impl Heredoc {
    /// The body as it stands in the source, tabs included.
    pub fn raw(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.content)
    }
}

/// `--mount=…`, its options checked but not expanded.
#[derive(Debug, Clone, Default)]
pub struct Mount {
    /// `type`, `bind` by default.
    pub kind: MountKind,
    /// `target`, `dst`, `destination`.
    pub target: Option<Word>,
    /// `source`, `src`.
    pub source: Option<Word>,
    /// `from`.
    pub from: Option<Word>,
    /// `id`.
    pub id: Option<Word>,
    /// `sharing`: `shared`, `private` or `locked`.
    pub sharing: Option<Word>,
    /// `env` of a secret.
    pub env: Option<Word>,
    /// `size` of a tmpfs, as written.
    pub size: Option<Word>,
    /// `mode`.
    pub mode: Option<Word>,
    /// `uid`.
    pub uid: Option<Word>,
    /// `gid`.
    pub gid: Option<Word>,
    /// `ro`/`readonly` (true) or `rw`/`readwrite` (false); `None` is the type's default.
    pub read_only: Option<bool>,
    /// `required`.
    pub required: bool,
    /// All options in order, as written: key in lower case, and value. [`Mount::expand`] reads them again.
    pub options: Vec<(String, Option<Word>)>,
    /// Whether `type`, `sharing`, `ro`, `rw` or `required` hold a variable, so that their fields are known only after
    /// [`Mount::expand`].
    pub deferred: bool,
    /// The whole flag.
    pub span: Span,
}

/// `type=` of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// COPY with its flags.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Sources: paths, patterns and heredocs, in order.
    pub sources: Vec<Source>,
    /// The destination.
    pub destination: Word,
    /// `--from`.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, repeatable.
    pub exclude: Vec<Word>,
}

/// ADD with its flags.
#[derive(Debug, Clone)]
pub struct Add {
    /// Sources: paths, patterns, URLs, git repositories and heredocs, in order.
    pub sources: Vec<Source>,
    /// The destination.
    pub destination: Word,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--exclude`, repeatable.
    pub exclude: Vec<Word>,
    /// `--checksum`.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

/// A source of COPY or ADD.
#[derive(Debug, Clone)]
pub enum Source {
    /// A path, a pattern, or (ADD) a URL.
    Path(Word),
    /// A here-document: a file named after it.
    Heredoc(Heredoc),
}

/// HEALTHCHECK.
#[derive(Debug, Clone)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`.
    None,
    /// `HEALTHCHECK [flags] CMD …`.
    Cmd {
        /// The command.
        command: CommandLine,
        /// `--interval` in nanoseconds; 0 is the default of whoever runs the image.
        interval: i64,
        /// `--timeout` in nanoseconds.
        timeout: i64,
        /// `--start-period` in nanoseconds.
        start_period: i64,
        /// `--start-interval` in nanoseconds.
        start_interval: i64,
        /// `--retries`.
        retries: i64,
    },
}
