//! What the command line knows and rbuild cannot do yet.
//!
//! In: clap's commands and what it matched. Out: a refusal that names the first such thing. What always holds: a flag
//! or a command of `docker` that is listed here is accepted by the parser and refused by name, never ignored.

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::values::yes_no;

/// What follows a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Nothing, or `=true|false`; `false` asks for nothing.
    YesNo,
    /// A value.
    Value,
}

/// Flags: the command, the long and the short name, what follows, what it is about.
const FLAGS: [(&str, &str, Option<char>, Takes, &str); 7] = [
    ("build", "load", None, Takes::YesNo, "`docker load`; -o type=docker,dest=- writes what it reads"),
    ("build", "cache-from", None, Takes::Value, "a cache that is shared between machines"),
    ("build", "cache-to", None, Takes::Value, "a cache that is shared between machines"),
    ("build", "annotation", None, Takes::Value, "annotations of the manifest; --label sets labels of the image"),
    ("build", "squash", None, Takes::YesNo, "one layer out of all"),
    ("import", "message", Some('m'), Takes::Value, "a comment in the history"),
    ("import", "platform", None, Takes::Value, "images for another platform than this machine's"),
];

/// Adds all of it to `command`, out of the help's sight.
pub(super) fn augment(command: Command) -> Command {
    FLAGS.iter().fold(command, |command, (of, long, short, takes, _)| {
        let arg = Arg::new(*long).long(*long).hide(true).action(ArgAction::Append);
        let arg = match short {
            Some(short) => arg.short(*short),
            None => arg,
        };
        let arg = match takes {
            Takes::Value => arg,
            Takes::YesNo => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(yes_no),
        };
        command.mut_subcommand(*of, |command| command.arg(arg))
    })
}

/// The first thing in `matches` that cannot be done yet.
pub(super) fn reject(matches: &ArgMatches) -> Result<(), String> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    for (of, long, _, takes, about) in &FLAGS {
        if *of != name || matches.value_source(long) != Some(ValueSource::CommandLine) {
            continue;
        }
        let asked = match takes {
            Takes::Value => true,
            Takes::YesNo => matches.get_many::<bool>(long).is_some_and(|mut all| all.next_back() == Some(&true)),
        };
        if asked {
            return Err(format!("not supported yet: --{long} ({about})"));
        }
    }
    Ok(())
}
