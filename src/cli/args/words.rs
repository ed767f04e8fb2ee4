//! Which command a command line means, before clap reads it.
//!
//! In: the words after the program's name. Out: the same with the command's own name first: `build` put in where there
//! is none, Docker's two-word forms made one. What always holds: only the first word (after `--root DIR`) can be a
//! command, so `./images` and `-t x images` name a folder.

use std::ffi::OsString;

use crate::diagnostic::nearest;

/// What the words come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Words for clap, command first.
    Command(Vec<OsString>),
    /// A text that answers them.
    Help(String),
}

/// Docker's groups, and what the words in them are here.
pub(super) const GROUPS: [(&str, &[(&str, &str)]); 4] = [
    (
        "image",
        &[
            ("build", "build"),
            ("history", "history"),
            ("import", "import"),
            ("inspect", "inspect"),
            ("list", "images"),
            ("load", "load"),
            ("ls", "images"),
            ("prune", "prune --only=images"),
            ("pull", "pull"),
            ("push", "push"),
            ("remove", "rmi"),
            ("rm", "rmi"),
            ("save", "save"),
            ("tag", "tag"),
        ],
    ),
    ("builder", &[("build", "build"), ("prune", "prune --only=cache")]),
    ("buildx", &[("build", "build"), ("du", "df"), ("prune", "prune --only=cache")]),
    ("system", &[("df", "df"), ("info", "info"), ("prune", "prune")]),
];

/// Puts the command's own name first. `is_command` knows the names of commands.
pub(super) fn complete(words: Vec<OsString>, is_command: impl Fn(&str) -> bool) -> Result<Words, String> {
    let first = skip_root(&words);
    let Some(word) = words.get(first) else {
        return match words.last() {
            // Clap says best that its value is missing.
            Some(last) if last == "--root" => Ok(Words::Command(words)),
            _ => Err("there is nothing to do: give a directory to build from, such as `rbuild -t NAME .`, or a \
                      command; `rbuild --help` lists them"
                .to_owned()),
        };
    };
    let insert_build = |mut words: Vec<OsString>| {
        words.insert(first, "build".into());
        Words::Command(words)
    };
    let Some(word) = word.to_str() else { return Ok(insert_build(words)) };
    if matches!(word, "-h" | "--help" | "-V" | "-v" | "--version") || is_command(word) {
        return Ok(Words::Command(words));
    }
    let Some((group, members)) = GROUPS.iter().find(|(group, _)| *group == word) else {
        return Ok(insert_build(words));
    };
    let names = members.iter().map(|(name, _)| *name);
    let list = || names.clone().collect::<Vec<_>>().join(", ");
    match words.get(first + 1).map(|member| member.to_string_lossy()) {
        None => Err(format!("`rbuild {group}` needs a command: {} (./{group} names a folder)", list())),
        Some(help) if help == "-h" || help == "--help" => {
            Ok(Words::Help(format!("Usage: rbuild {group} COMMAND ...\n\nCommands: {}\n", list())))
        }
        Some(member) => match members.iter().find(|(name, _)| *name == member) {
            Some((_, command)) => {
                let mut words = words;
                words.splice(first..=first + 1, command.split(' ').map(OsString::from));
                Ok(Words::Command(words))
            }
            None => Err(match nearest(&member, names.clone()) {
                Some(meant) => format!("`rbuild {group}` has no command {member}; did you mean {meant}?"),
                None => format!("`rbuild {group}` has no command {member}; it has {}", list()),
            }),
        },
    }
}

/// The index of the first word that is not `--root DIR` or `--root=DIR`.
fn skip_root(words: &[OsString]) -> usize {
    let mut first = 0;
    while let Some(word) = words.get(first) {
        if word == "--root" {
            first += 2;
        } else if word.as_encoded_bytes().starts_with(b"--root=") {
            first += 1;
        } else {
            break;
        }
    }
    first.min(words.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_decides() {
        let is_command = |word: &str| ["build", "images", "rmi", "prune", "df", "info"].contains(&word);
        for (words, expected) in [
            (
                "",
                Err("there is nothing to do: give a directory to build from, such as `rbuild -t NAME .`, or a \
                     command; `rbuild --help` lists them"),
            ),
            (".", Ok("build .")),
            ("-t x .", Ok("build -t x .")),
            ("build .", Ok("build .")),
            ("images -a", Ok("images -a")),
            ("./images", Ok("build ./images")),
            ("-t images images", Ok("build -t images images")),
            ("--root r images", Ok("--root r images")),
            ("--root=r --root r2 .", Ok("--root=r --root r2 build .")),
            ("--root", Ok("--root")),
            ("--help", Ok("--help")),
            ("image ls -a", Ok("images -a")),
            ("image rm x", Ok("rmi x")),
            ("--root r image build .", Ok("--root r build .")),
            ("system df", Ok("df")),
            ("builder prune -f", Ok("prune --only=cache -f")),
            ("-- image", Ok("build -- image")),
            ("builder", Err("`rbuild builder` needs a command: build, prune (./builder names a folder)")),
            ("builder prine", Err("`rbuild builder` has no command prine; did you mean prune?")),
            ("system events", Err("`rbuild system` has no command events; it has df, info, prune")),
        ] {
            let split = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
            let expected = expected.map(|text| Words::Command(split(text))).map_err(str::to_owned);
            assert_eq!(complete(split(words), is_command), expected, "{words}");
        }
        let help = complete(vec!["builder".into(), "--help".into()], is_command);
        assert_eq!(help, Ok(Words::Help("Usage: rbuild builder COMMAND ...\n\nCommands: build, prune\n".into())));
    }
}
