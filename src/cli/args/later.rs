//! What the command line knows and rbuild cannot do yet.
//!
//! In: clap's commands and what it matched. Out: a refusal that names the first such thing, and what to use. What always
//! holds: a flag of `docker` that is listed here is accepted by the parser and refused by name, never ignored.

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::values::yes_no;

/// A flag that is refused.
struct Refused {
    /// The command that it is of.
    of: &'static str,
    long: &'static str,
    /// It has a value; else it may be followed by `=true|false`, of which `false` asks for nothing.
    has_value: bool,
    /// What it is about, and what to do.
    about: &'static str,
}

const FLAGS: [Refused; 6] = [
    Refused { of: "build", long: "squash", has_value: false, about: "one layer out of all" },
    Refused {
        of: "prune",
        long: "volumes",
        has_value: false,
        about: "there are no volumes; leave it out, cache mounts go with the build cache",
    },
    Refused {
        of: "prune",
        long: "min-free-space",
        has_value: true,
        about: "to keep so much of the build cache use --keep-storage SIZE",
    },
    Refused {
        of: "rmi",
        long: "no-prune",
        has_value: false,
        about: "there are no parent images to keep; leave it out, layers stay for the cache until `rbuild prune`",
    },
    Refused {
        of: "rmi",
        long: "platform",
        has_value: true,
        about: "an image for several platforms goes as a whole; to have one of them, `rbuild pull --platform` or `rbuild load --platform` bring it alone",
    },
    Refused {
        of: "images",
        long: "tree",
        has_value: false,
        about: "`rbuild inspect NAME` lists the images of an index as Manifests",
    },
];

/// Adds all of it to `command`, out of the help's sight.
pub(super) fn augment(command: Command) -> Command {
    FLAGS.iter().fold(command, |command, flag| {
        let arg = Arg::new(flag.long).long(flag.long).hide(true).action(ArgAction::Append);
        let arg = if flag.has_value {
            arg.num_args(1).value_name("VALUE")
        } else {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(yes_no)
        };
        command.mut_subcommand(flag.of, |command| command.arg(arg))
    })
}

/// The first thing in `matches` that cannot be done yet.
pub(super) fn reject(matches: &ArgMatches) -> Result<(), String> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    for Refused { of, long, has_value, about } in &FLAGS {
        if *of != name || matches.value_source(long) != Some(ValueSource::CommandLine) {
            continue;
        }
        if *has_value || matches.get_many::<bool>(long).is_some_and(|mut all| all.next_back() == Some(&true)) {
            return Err(format!("not supported yet: --{long} ({about})"));
        }
    }
    Ok(())
}
