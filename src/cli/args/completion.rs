//! Completions of the command line for shells.
//!
//! In: the commands as the parser knows them. Out: a script. What always holds: it offers what the parser takes – Docker's
//! two-word forms and the flags of a build without `build` too – and nothing that help hides; bash also offers the names
//! of images, which it asks rbuild for.

use clap::{Arg, ArgAction, Command};

use super::store::Shell;
use super::words::GROUPS;

/// Commands whose arguments are images.
const OF_IMAGES: [&str; 9] = ["diff", "history", "images", "inspect", "ls", "push", "rmi", "save", "tag"];

/// The script for a shell.
pub(super) fn script(shell: Shell, commands: &Command) -> Vec<u8> {
    let mut tree = tree(commands);
    let mut out = Vec::new();
    match shell {
        Shell::Bash => {
            clap_complete::generate(clap_complete::Shell::Bash, &mut tree, "rbuild", &mut out);
            out.extend_from_slice(images_for_bash().as_bytes());
        }
        Shell::Zsh => clap_complete::generate(clap_complete::Shell::Zsh, &mut tree, "rbuild", &mut out),
        Shell::Fish => clap_complete::generate(clap_complete::Shell::Fish, &mut tree, "rbuild", &mut out),
    }
    out
}

/// The commands, the groups with theirs, and what a build takes at the top.
fn tree(commands: &Command) -> Command {
    let known: Vec<Command> =
        commands.get_subcommands().filter(|command| !command.is_hide_set()).map(visible).collect();
    let find = |name: &str| known.iter().find(|command| command.get_name() == name);
    let mut top = visible(commands);
    for arg in find("build").into_iter().flat_map(Command::get_arguments) {
        if !arg.is_positional() && top.get_arguments().all(|known| known.get_id() != arg.get_id()) {
            top = top.arg(arg.clone());
        }
    }
    let groups = GROUPS.iter().map(|(group, members)| {
        let of = |(name, command): &(&'static str, &str)| {
            let command = command.split(' ').next().and_then(find)?;
            Some(command.clone().name(*name))
        };
        Command::new(*group).subcommands(members.iter().filter_map(of))
    });
    let groups: Vec<Command> = groups.collect();
    top.subcommands(known).subcommands(groups)
}

/// A command without what help hides, and without its own commands.
fn visible(command: &Command) -> Command {
    let name = command.get_name().to_owned();
    let about = command.get_about().cloned().unwrap_or_default();
    // What prints a version is for the parser alone.
    let flag = |arg: &Arg| match arg.get_action() {
        ArgAction::Version => arg.clone().action(ArgAction::SetTrue),
        _ => arg.clone(),
    };
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).map(flag);
    Command::new(name)
        .about(about)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(args)
}

/// What follows the script for bash: placeholders such as `<IMAGE>` go, and where an image is meant their names come. A
/// name has a colon, at which bash splits words; so the word is taken from the line.
fn images_for_bash() -> String {
    let alternatives = OF_IMAGES.join("|");
    format!(
        r#"
_rbuild_names() {{
    _rbuild "$@"
    local line=${{COMP_LINE:0:COMP_POINT}} word kept=() command="" names i
    local current=${{line##*[[:blank:]]}}
    for word in "${{COMPREPLY[@]}}"; do
        case $word in "<"*|"["*|*"...") ;; *) kept+=("$word") ;; esac
    done
    COMPREPLY=("${{kept[@]}}")
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            image|-*) ;;
            {alternatives}|rm|untag) command=${{COMP_WORDS[i]}}; break ;;
            *) break ;;
        esac
    done
    if [[ -n $command && $current != -* ]]; then
        names=$("${{COMP_WORDS[0]}}" images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' 2>/dev/null)
        for word in $names; do
            if [[ $word == "$current"* && $word != *"<none>"* ]]; then
                [[ $COMP_WORDBREAKS == *:* ]] && word=${{word#"${{current%"${{current##*:}}"}}"}}
                COMPREPLY+=("$word")
            fi
        done
    fi
}}
complete -F _rbuild_names -o bashdefault -o default rbuild
"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use super::*;

    /// What bash offers for a line.
    fn offered(line: &str) -> Option<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, script(Shell::Bash, &super::super::commands())).unwrap();
        // A stand-in for rbuild, which knows two images.
        let drive = format!(
            "rbuild() {{ printf 'app:1\\nh.io/x/app:2\\n<none>:<none>\\n'; }}\nsource '{}'\n\
             COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDBREAKS=$' \\t\\n:='\n\
             spaced=${{COMP_LINE//:/ : }}; read -ra COMP_WORDS <<< \"$spaced\"\n\
             [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             current=${{COMP_WORDS[COMP_CWORD]}}; [[ $current == : ]] && current=\n\
             _rbuild_names rbuild \"$current\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            path.display()
        );
        let found = Process::new("bash").args(["-c", &drive]).output().ok()?;
        let text = String::from_utf8(found.stdout).unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stderr), "", "{line}");
        Some(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    #[test]
    fn bash_offers_what_the_parser_takes() {
        for (line, expected) in [
            ("rbuild sy", vec!["system"]),
            ("rbuild system ", vec!["df", "info", "prune"]),
            ("rbuild builder ", vec!["build", "prune"]),
            ("rbuild image pr", vec!["prune"]),
            ("rbuild --ta", vec!["--tag", "--target"]),
            ("rbuild -t x --ta", vec!["--tag", "--target"]),
            ("rbuild build --ta", vec!["--tag", "--target"]),
            ("rbuild image build --ta", vec!["--tag", "--target"]),
            ("rbuild prune --on", vec![]),
            ("rbuild builder prune --on", vec![]),
            ("rbuild image prune --fi", vec!["--filter"]),
            ("rbuild rmi ", vec!["app:1", "h.io/x/app:2"]),
            ("rbuild rmi a", vec!["app:1"]),
            ("rbuild rmi app:", vec!["1"]),
            ("rbuild image inspect h", vec!["h.io/x/app:2"]),
            ("rbuild tag app:1 h.i", vec!["h.io/x/app:2"]),
            ("rbuild inspect --ver", vec!["--verify"]),
        ] {
            // No bash, nothing to ask.
            let Some(mut found) = offered(line) else { return };
            found.retain(|word| !["--help", "-h", "--root"].contains(&word.as_str()));
            found.retain(|word| line.ends_with('-') || line.contains("--") || !word.starts_with('-'));
            found.sort();
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn every_shell_has_the_two_word_forms() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell, &super::super::commands())).unwrap();
            assert!(text.contains("builder") && text.contains("keep-storage"), "{shell:?}");
            assert!(!text.contains("squash"), "{shell:?}: what is hidden is not offered");
        }
    }
}
