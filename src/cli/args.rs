//! The command line.
//!
//! In: the words that the user typed, and the settings. Out: one [`Command`] with checked, typed arguments, or a text
//! that answers (help, version), or what is wrong with the words. What always holds: it looks at no file, and what
//! rbuild cannot do yet is refused by name, never ignored.

mod build;
mod check;
mod completion;
pub(crate) mod epoch;
mod later;
mod prune;
mod registry;
mod run;
mod secrets;
mod store;
pub(crate) mod values;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use build::{BuildArgs, BuildContext, DockerfilePath, Entitlement, Isolation, Print, Progress};
pub use check::{Call, Method, ReportForm};
pub use epoch::Epoch;
pub(crate) use prune::until;
pub use prune::{PruneArgs, PruneFilter, PruneOnly, Until};
pub use registry::{LoginArgs, LogoutArgs, Pull, PullArgs, PushArgs};
pub use run::RunArgs;
pub use secrets::{SecretArg, SecretFrom, SshArg};
pub use store::{
    ArchiveFormat, CompletionArgs, DfArgs, DiffArgs, DiffFormat, HistoryArgs, ImagesArgs, ImportArgs, InspectArgs,
    LoadArgs, RmiArgs, SaveArgs, Shell, TagArgs, VersionArgs,
};
pub use values::{NamedContext, Pick};

use self::words::Words;
use crate::cli::settings::Settings;
use crate::diagnostic::nearest;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `rbuild [build]`.
    Build(Box<BuildArgs>),
    /// `rbuild images`.
    Images(ImagesArgs),
    /// `rbuild history`.
    History(HistoryArgs),
    /// `rbuild inspect`.
    Inspect(InspectArgs),
    /// `rbuild tag`.
    Tag(TagArgs),
    /// `rbuild rmi`.
    Rmi(RmiArgs),
    /// `rbuild load`.
    Load(LoadArgs),
    /// `rbuild import`.
    Import(ImportArgs),
    /// `rbuild pull`.
    Pull(PullArgs),
    /// `rbuild push`.
    Push(PushArgs),
    /// `rbuild login`.
    Login(LoginArgs),
    /// `rbuild logout`.
    Logout(LogoutArgs),
    /// `rbuild save`.
    Save(SaveArgs),
    /// `rbuild diff`.
    Diff(DiffArgs),
    /// `rbuild prune`.
    Prune(PruneArgs),
    /// `rbuild df`.
    Df(DfArgs),
    /// `rbuild info`.
    Info,
    /// `rbuild version`.
    Version(VersionArgs),
    /// `rbuild completion`.
    Completion(CompletionArgs),
}

/// What the words come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A command to carry out.
    Run {
        /// `--root`, as written.
        root: Option<PathBuf>,
        /// The command.
        command: Command,
    },
    /// A text for standard output: help, or the version.
    Answer(String),
}

/// What `rbuild version` prints.
pub const VERSION: &str = concat!("rbuild ", env!("CARGO_PKG_VERSION"));

#[derive(Parser)]
#[command(
    name = "rbuild",
    about = "Builds container images from Dockerfiles: no daemon, no root, the same digest on every machine.",
    override_usage = "rbuild [build] [OPTIONS] CONTEXT\n       rbuild COMMAND ...",
    after_help = "The options of a build: rbuild build --help. Each yes/no flag takes =true or =false.\n\
                  A first word that is a command is that command; ./images names a directory.",
    version = env!("CARGO_PKG_VERSION"),
    disable_version_flag = true,
    subcommand_value_name = "COMMAND",
    subcommand_help_heading = "Commands",
    subcommand_required = true,
    args_override_self = true,
    max_term_width = 110
)]
struct Cli {
    /// The image store [default: $RBUILD_ROOT, /var/lib/rbuild for root, ~/.local/share/rbuild]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    root: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'V', short_alias = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand)]
enum CliCommand {
    Build(Box<build::BuildFlags>),
    #[command(alias = "ls")]
    Images(ImagesArgs),
    History(HistoryArgs),
    Inspect(InspectArgs),
    Tag(TagArgs),
    #[command(aliases = ["rm", "untag"])]
    Rmi(RmiArgs),
    Load(LoadArgs),
    Import(ImportArgs),
    Pull(PullArgs),
    Push(PushArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Save(SaveArgs),
    Diff(DiffArgs),
    Prune(PruneArgs),
    Df(DfArgs),
    /// Show where the store is and what this machine allows
    Info,
    Version(VersionArgs),
    Completion(CompletionArgs),
}

/// The commands with all that the parser knows; what is not supported yet is hidden.
fn commands() -> clap::Command {
    // One help text for -h and --help, not a short and a long one.
    let help = || clap::Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print help");
    later::augment(Cli::command().mut_subcommands(|command| command.disable_help_flag(true).arg(help())))
}

/// The same for parsing: each yes/no flag takes `=true|false`. (Help shows them without, as it would say so of each.)
fn parser() -> clap::Command {
    let yes_no = |arg: clap::Arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            return arg;
        }
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_parser(values::yes_no)
    };
    commands().mut_subcommands(|command| command.mut_args(yes_no))
}

/// Reads `words`, the program's name left out.
pub fn parse(words: Vec<OsString>, settings: &Settings) -> Result<Request, String> {
    let commands = commands();
    let is_command = |word: &str| word == "help" || commands.find_subcommand(word).is_some();
    let words = match words::complete(words, is_command)? {
        Words::Help(text) => return Ok(Request::Answer(text)),
        Words::Command(words) => words,
    };
    let all = std::iter::once(OsString::from("rbuild")).chain(words.iter().cloned());
    let matches = match parser().try_get_matches_from(all) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(Request::Answer(help(commands, &words))),
        Err(error) if error.kind() == ErrorKind::DisplayVersion => return Ok(Request::Answer(format!("{VERSION}\n"))),
        Err(error) => return Err(reason(&error)),
    };
    later::reject(&matches)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| reason(&error))?;
    let command = match cli.command {
        CliCommand::Build(flags) => Command::Build(Box::new(flags.into_args(settings)?)),
        CliCommand::Images(args) => Command::Images(args),
        CliCommand::History(args) => Command::History(args),
        CliCommand::Inspect(args) => Command::Inspect(args),
        CliCommand::Tag(args) => Command::Tag(args),
        CliCommand::Rmi(args) => Command::Rmi(args),
        CliCommand::Load(args) => Command::Load(args),
        CliCommand::Import(args) => Command::Import(args),
        CliCommand::Pull(args) => Command::Pull(args),
        CliCommand::Push(args) => Command::Push(args),
        CliCommand::Login(args) => Command::Login(args),
        CliCommand::Logout(args) => Command::Logout(args),
        CliCommand::Save(args) => Command::Save(args),
        CliCommand::Diff(args) => Command::Diff(args),
        CliCommand::Prune(args) => Command::Prune(args),
        CliCommand::Df(args) => Command::Df(args),
        CliCommand::Info => Command::Info,
        CliCommand::Version(args) => Command::Version(args),
        CliCommand::Completion(args) => Command::Completion(args),
    };
    Ok(Request::Run { root: cli.root, command })
}

/// The completions of all commands for a shell.
pub(super) fn completion(shell: Shell) -> Vec<u8> {
    completion::script(shell, &commands())
}

/// The help that `words` ask for.
fn help(mut commands: clap::Command, words: &[OsString]) -> String {
    commands.build();
    let named: Vec<&str> = words.iter().filter_map(|word| word.to_str()).skip_while(|word| *word == "help").collect();
    let of = named.into_iter().find(|word| commands.find_subcommand(word).is_some());
    // Docker's groups are read as `prune` with what is pruned.
    let half = words.iter().find_map(|word| word.to_str()?.strip_prefix("--only="));
    match of.and_then(|name| commands.find_subcommand_mut(name)) {
        Some(command) if of == Some("prune") && half.is_some() => {
            prune::of_half(command.clone(), half == Some("cache")).render_help().to_string()
        }
        Some(command) => command.render_help().to_string(),
        None => commands.render_help().to_string(),
    }
}

/// What clap has against the words, without the `error: ` that it begins with.
fn reason(error: &clap::Error) -> String {
    let text = error.render().to_string();
    text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
}

/// The command that `word` may have been meant to be.
pub(crate) fn similar_command(word: &str) -> Option<String> {
    let commands = commands();
    let names = commands.get_subcommands().filter(|command| !command.is_hide_set());
    nearest(word, names.map(clap::Command::get_name)).map(str::to_owned)
}

#[cfg(test)]
mod tests;
