//! The face of rbuild: words in, results on standard output, everything else on standard error, an exit status.
//!
//! In: the command line and the surroundings. Out: an exit status. What always holds: the surroundings are read once,
//! here; each command is a function of its arguments and the settings, in a module of its own; nothing below prints.

mod absent;
pub mod age;
pub mod args;
pub mod build;
pub mod cache_spec;
pub mod check;
mod df;
mod diff;
pub mod failure;
mod find;
mod history;
mod images;
mod import;
mod info;
mod inspect;
mod load;
mod login;
mod network;
mod outline;
pub mod output_spec;
mod prune;
mod pull;
mod push;
pub mod render;
mod rmi;
mod rows;
mod save;
pub mod settings;
pub mod size;
pub mod stdout;
mod tag;
mod template;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use self::args::{BuildArgs, BuildContext, Command, Method, Progress, Request};
use self::failure::Failure;
use self::render::diagnostic::Look;
use self::settings::Settings;
use self::stdout::stdout;

/// Does what the words of the command line (the program's name is the first) ask for.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let plain = Look { color: false, width: 80 };
    let mut settings = match Settings::read() {
        Ok(settings) => settings,
        Err(error) => return fail(&error.into(), plain, false),
    };
    let look = Look { color: settings.color(), width: settings.width() };
    let words = words.into_iter().skip(1).collect();
    let (done, json) = match args::parse(words, &settings) {
        Err(message) => (Err(Failure::Usage(message)), false),
        Ok(Request::Answer(text)) => (print(&text), false),
        Ok(Request::Run { root, command }) => {
            settings.root = root;
            let json = matches!(&command, Command::Build(args) if args.progress == Progress::Json);
            (dispatch(&command, &settings), json)
        }
    };
    // What a command printed and did not flush goes out here, where a failure still counts.
    let done = done.and_then(|code| stdout().flush().map(|()| code).map_err(Failure::from));
    match done {
        Ok(code) => code,
        Err(Failure::Error(error)) if stdout::is_closed(&error) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, look, json),
    }
}

/// One arm per command.
fn dispatch(command: &Command, settings: &Settings) -> Result<ExitCode, Failure> {
    match command {
        Command::Build(args) => {
            check_context(args, settings)?;
            match args.call {
                Some(call) if call.method == Method::Check => check::run(args, call, settings),
                Some(call) => outline::run(args, call, settings),
                None => build::run(args, settings),
            }
        }
        Command::Images(args) => images::run(args, settings),
        Command::History(args) => history::run(args, settings),
        Command::Inspect(args) => inspect::run(args, settings),
        Command::Tag(args) => tag::run(args, settings),
        Command::Rmi(args) => rmi::run(args, settings),
        Command::Load(args) => load::run(args, settings),
        Command::Import(args) => import::run(args, settings),
        Command::Pull(args) => pull::run(args, settings),
        Command::Push(args) => push::run(args, settings),
        Command::Login(args) => login::login(args, settings),
        Command::Logout(args) => login::logout(args, settings),
        Command::Save(args) => save::run(args, settings),
        Command::Diff(args) => diff::run(args, settings),
        Command::Prune(args) => prune::run(args, settings),
        Command::Df(args) => df::run(args, settings),
        Command::Info => info::run(settings),
        Command::Version(args) => version::run(args),
        Command::Completion(args) => {
            stdout().write_all(&args::completion(args.shell))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Tells of `failure`. With `json`, standard error carries JSON objects, and this is the last one.
fn fail(failure: &Failure, look: Look, json: bool) -> ExitCode {
    let text = if json { render::error_line(&failure.text(Look { color: false, ..look })) } else { failure.text(look) };
    // Where standard error is gone as well, the exit status is all that is left to say it with.
    std::io::stderr().lock().write_all(text.as_bytes()).map_or(failure.exit_code(), |()| failure.exit_code())
}

/// A word that is no directory may be a command with a slip in it.
fn check_context(args: &BuildArgs, settings: &Settings) -> Result<(), Failure> {
    let Some(BuildContext::Directory(directory)) = &args.context else { return Ok(()) };
    if settings.cwd.join(directory).is_dir() {
        return Ok(());
    }
    let word = directory.to_str().filter(|_| directory.parent() == Some(Path::new("")));
    let command = word.and_then(args::similar_command).filter(|_| args.file.is_none() && args.tags.is_empty());
    let shown = directory.display();
    Err(match command {
        Some(command) => Failure::Usage(format!(
            "there is no directory {shown} to build from; did you mean the command `rbuild {command}`?"
        )),
        None if settings.cwd.join(directory).is_file() => Failure::Error(anyhow::anyhow!(
            "{shown} is a file; the CONTEXT is a directory, and -f names the Dockerfile: rbuild -f {shown} ."
        )),
        None => Failure::Error(anyhow::anyhow!("there is no directory {shown} to build from")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_is_not_there_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("imgaes")).unwrap();
        std::fs::write(dir.path().join("Dockerfile"), "").unwrap();
        let settings = Settings { cwd: dir.path().to_owned(), ..Settings::for_test(&[]) };
        for (words, expected) in [
            (vec!["."], None),
            (vec!["imgaes"], None),
            (
                vec!["histroy"],
                Some("there is no directory histroy to build from; did you mean the command `rbuild history`?"),
            ),
            (vec!["-t", "x", "histroy"], Some("there is no directory histroy to build from")),
            (vec!["./histroy"], Some("there is no directory ./histroy to build from")),
            (
                vec!["Dockerfile"],
                Some(
                    "Dockerfile is a file; the CONTEXT is a directory, and -f names the Dockerfile: rbuild -f Dockerfile .",
                ),
            ),
        ] {
            let request = args::parse(words.iter().map(OsString::from).collect(), &settings);
            let Ok(Request::Run { command: Command::Build(args), .. }) = request else {
                panic!("{words:?}: {request:?}")
            };
            let got = check_context(&args, &settings).err().map(|failure| {
                assert_eq!(failure.status(), if expected.is_some_and(|text| text.contains("mean")) { 2 } else { 1 });
                failure.text(Look { color: false, width: 80 })
            });
            assert_eq!(got, expected.map(|text| format!("error: {text}\n")), "{words:?}");
        }
    }
}
