//! Shells for a person who wants to see what a step sees.
//!
//! In: `--shell-on-error`, `--shell-at`, a planned build. Out: a shell on the user's terminal. What always holds: it is
//! refused before anything is built where there is no terminal; the display of progress has ended before it begins;
//! nothing that is done in it is kept.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::Job;
use crate::cli::args::BuildArgs;
use crate::cli::failure::Failure;
use crate::cli::render::diagnostic::Look;
use crate::cli::settings::Settings;
use crate::diagnostic::nearest;
use crate::dockerfile::ast::Dockerfile;
use crate::exec::Terminal;
use crate::plan::ShellAt;
use crate::solve::Inside;
use crate::sys::cancel::{self, Cancel};

/// Refuses shells where nobody could use them.
pub(super) fn check_terminal(args: &BuildArgs, settings: &Settings) -> Result<(), Failure> {
    let flag = match &args.run {
        run if run.shell_at.is_some() => "--shell-at",
        run if run.shell_on_error => "--shell-on-error",
        _ => return Ok(()),
    };
    if args.verify_reproducible {
        return Err(Failure::Usage(format!("{flag} and --verify-reproducible cannot both hold: that builds twice")));
    }
    let missing = match (settings.stdin_is_terminal, settings.terminal.is_some()) {
        (true, true) => return Ok(()),
        (false, _) => "standard input is no terminal",
        (true, false) => "standard error is no terminal",
    };
    Err(Failure::Usage(format!("{flag} opens a shell for a person, and {missing}; run it from a terminal")))
}

/// Finds the place that `--shell-at` names: a stage, else a line.
pub(super) fn place(wanted: &str, dockerfile: &Dockerfile) -> Result<ShellAt, Failure> {
    let stages = &dockerfile.stages;
    let names = || stages.iter().filter_map(|stage| stage.name.as_ref().map(|name| name.text.as_str()));
    let named = |stage: &crate::dockerfile::ast::Stage| {
        stage.name.as_ref().is_some_and(|name| name.text.eq_ignore_ascii_case(wanted))
    };
    if let Some(stage) = stages.iter().rposition(named) {
        return Ok(ShellAt { stage, before: stages[stage].instructions.len() });
    }
    let Ok(line) = wanted.parse::<usize>() else {
        let near = nearest(&wanted.to_lowercase(), names());
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        return Err(Failure::Usage(format!(
            "--shell-at {wanted}: there is no such stage, and it is no number of a line{near}"
        )));
    };
    // The stage in which the file is when it comes to that line; at its FROM, that is the one before.
    let Some(stage) = stages.iter().rposition(|stage| stage.lines.0 < line) else {
        return Err(Failure::Usage(format!(
            "--shell-at {wanted}: before line {wanted} there is no stage; the first one begins in line {}",
            stages.first().map_or(1, |stage| stage.lines.0)
        )));
    };
    let instructions = &stages[stage].instructions;
    let before = instructions.iter().position(|one| one.lines.1 >= line).unwrap_or(instructions.len());
    Ok(ShellAt { stage, before })
}

impl Job<'_> {
    /// Shows the failure, then a shell in what the failed command left.
    pub(super) fn shell_on_error(&self, inside: Inside, failure: &Failure) -> Result<ExitCode, Failure> {
        self.reporter.finish(None);
        say(&failure.text(Look { color: self.settings.color(), width: self.settings.width() }))?;
        self.open(inside, "in what the failed command left")?;
        say("the build failed (see above the shell)\n")?;
        Ok(failure.exit_code())
    }

    /// A shell where the user wants one.
    pub(super) fn shell_at(&self, inside: Inside, place: &str) -> Result<ExitCode, Failure> {
        self.reporter.finish(None);
        self.open(inside, place)?;
        say("the build ends here, as --shell-at asks: no image was made\n")?;
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self, mut inside: Inside, place: &str) -> Result<(), Failure> {
        let process = &mut inside.process;
        if !process.env.iter().any(|pair| pair.starts_with("TERM="))
            && let Ok(Some(term)) = self.settings.var("TERM")
        {
            process.env.push(format!("TERM={term}"));
        }
        let shell = process.args.join(" ");
        say(&format!("a shell ({shell}) {place}; `exit` ends it, and nothing of it is kept\n"))?;
        let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
        let terminal = Terminal { input: stdin.as_fd(), output: stderr.as_fd() };
        // The build's own wish to stop was made when the step failed.
        let cancel = Cancel::new().context("cannot prepare for signals")?;
        cancel::install_signal_handlers(&cancel).context("cannot prepare for signals")?;
        let ended = self.sandbox.shell(&inside.rootfs, &inside.process, terminal, &cancel);
        match (ended, cancel.signal()) {
            (_, Some(signal)) => Err(Failure::Interrupted(signal)),
            (Err(error), None) => Err(Failure::Error(anyhow::Error::new(error).context("there is no shell to open"))),
            (Ok((_, left)), None) => {
                Ok(inside.clear(&left).map_err(|error| anyhow::anyhow!("cannot tidy up after the shell: {error}"))?)
            }
        }
    }
}

fn say(text: &str) -> Result<(), Failure> {
    Ok(std::io::stderr().lock().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;

    #[test]
    fn stages_and_lines_are_found() {
        let text = "ARG A\n\nFROM x AS one\nENV B=1\nRUN a \\\n  b\n# nothing\nFROM one AS two\nRUN <<E\nc\nE\n# end\n";
        let source = Source { name: "Dockerfile".into(), text: text.into() };
        let dockerfile = crate::dockerfile::parse(&source).dockerfile;
        for (wanted, expected) in [
            ("one", Ok((0, 2))),
            ("TWO", Ok((1, 1))),
            ("4", Ok((0, 0))),
            ("5", Ok((0, 1))),
            ("6", Ok((0, 1))),
            ("7", Ok((0, 2))),
            ("8", Ok((0, 2))),
            ("9", Ok((1, 0))),
            ("10", Ok((1, 0))),
            ("12", Ok((1, 1))),
            ("99", Ok((1, 1))),
            ("3", Err("before line 3 there is no stage; the first one begins in line 3")),
            ("1", Err("before line 1 there is no stage")),
            ("tow", Err("there is no such stage, and it is no number of a line; did you mean two?")),
        ] {
            match (place(wanted, &dockerfile), expected) {
                (Ok(at), Ok(expected)) => assert_eq!((at.stage, at.before), expected, "{wanted}"),
                (Err(Failure::Usage(why)), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, _) => panic!("{wanted}: {got:?}"),
            }
        }
    }

    #[test]
    fn without_a_terminal_nothing_begins() {
        let args = |words: &[&str]| {
            let words = words.iter().map(std::ffi::OsString::from).collect();
            match crate::cli::args::parse(words, &Settings::for_test(&[])) {
                Ok(crate::cli::args::Request::Run { command: crate::cli::args::Command::Build(args), .. }) => args,
                other => panic!("{other:?}"),
            }
        };
        let terminal = Some(crate::cli::settings::Terminal { columns: 80, rows: 24 });
        for (words, stdin_is_terminal, terminal, expected) in [
            (&["."][..], false, None, None),
            (&["--shell-on-error", "."], true, terminal, None),
            (
                &["--shell-on-error", "."],
                false,
                terminal,
                Some("--shell-on-error opens a shell for a person, and standard input"),
            ),
            (&["--shell-at", "3", "."], true, None, Some("--shell-at opens a shell for a person, and standard error")),
        ] {
            let settings = Settings { stdin_is_terminal, terminal, ..Settings::for_test(&[]) };
            match (check_terminal(&args(words), &settings), expected) {
                (Ok(()), None) => {}
                (Err(Failure::Usage(why)), Some(part)) => assert!(why.starts_with(part), "{why}"),
                (got, _) => panic!("{words:?}: {got:?}"),
            }
        }
    }
}
