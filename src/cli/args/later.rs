//! What the command line knows and rbuild cannot do yet.
//!
//! In: clap's commands and what it matched. Out: a refusal that names the first such thing. What always holds: a flag
//! or a command of `docker` that is listed here is accepted by the parser and refused by name, never ignored.

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::values::yes_no;

/// Flags that may be followed by `=true|false`, of which `false` asks for nothing: the command, the name, what it is about.
const FLAGS: [(&str, &str, &str); 1] = [("build", "squash", "one layer out of all")];

/// Adds all of it to `command`, out of the help's sight.
pub(super) fn augment(command: Command) -> Command {
    FLAGS.iter().fold(command, |command, (of, long, _)| {
        let arg = Arg::new(*long).long(*long).hide(true).action(ArgAction::Append);
        let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(yes_no);
        command.mut_subcommand(*of, |command| command.arg(arg))
    })
}

/// The first thing in `matches` that cannot be done yet.
pub(super) fn reject(matches: &ArgMatches) -> Result<(), String> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    for (of, long, about) in &FLAGS {
        if *of != name || matches.value_source(long) != Some(ValueSource::CommandLine) {
            continue;
        }
        if matches.get_many::<bool>(long).is_some_and(|mut all| all.next_back() == Some(&true)) {
            return Err(format!("not supported yet: --{long} ({about})"));
        }
    }
    Ok(())
}
