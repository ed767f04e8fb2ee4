//! Runs a scenario: files, commands and what they must print, in one text that reads like a terminal session.
//!
//! In: the text of a `.test` file. Out: nothing, or what differed. The form:
//!
//! ```text
//! # What this shows. Comments stand at the top, and after `##` between commands.
//! needs: run busybox
//! -- ctx/Dockerfile --
//! FROM busybox
//! $ rbuild -t a ctx
//! ? 1
//! a line of standard output
//! 2> a line of standard error, in this order, others may stand between
//! 2! what no line of standard error has
//! ```
//!
//! A file goes on to the next `-- PATH --` or command. Standard output must match line by line: `[..]` is anything in a
//! line, `...` alone any lines, `<digest>` any `sha256:` digest, `<id>` its first 12 digits; `<digest:x>` must be the
//! same wherever it stands, `<id:x>` its first 12 digits, `<digest!x>` another one. `? N` is the exit status (0 when it
//! is left out). A command may begin with `NAME=value`. Besides rbuild there are `base` (brings in busybox), `rm`,
//! `mkdir`, `chmod`, `touch TIME`, `ln`, `cat`, `ls`, and for an OCI archive `tree`, `config`, `history` and `layer`.

use std::collections::BTreeMap;
use std::path::Path;

use super::env::{Run, TestEnv};
use super::machine::{self, Need};
use super::oci::Image;

/// One part of a scenario.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    File { path: String, text: String },
    Command { number: usize, line: String, expected: Vec<String> },
}

/// Runs the scenario in `file`.
pub fn check(file: &Path) -> Result<(), String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
    let (needs, parts) = parse(&text).map_err(|error| format!("{name}: {error}"))?;
    if !machine::needs(&format!("scenario {name}"), &needs) {
        return Ok(());
    }
    let env = TestEnv::new();
    let mut names = BTreeMap::new();
    for part in parts {
        match part {
            Part::File { path, text } => env.write(&path, text),
            Part::Command { number, line, expected } => {
                let ran = run(&env, &line).map_err(|error| format!("{name}:{number}: {error}"))?;
                judge(&ran, &expected, &mut names)
                    .map_err(|error| format!("{name}:{number}: {error}\n{}", ran.shown()))?;
            }
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<(Vec<Need>, Vec<Part>), String> {
    let mut needs = Vec::new();
    let mut parts: Vec<Part> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(path) = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
            parts.push(Part::File { path: path.to_owned(), text: String::new() });
        } else if let Some(command) = line.strip_prefix("$ ") {
            parts.push(Part::Command { number: index + 1, line: command.to_owned(), expected: Vec::new() });
        } else {
            match parts.last_mut() {
                Some(Part::File { text, .. }) => {
                    text.push_str(line);
                    text.push('\n');
                }
                Some(Part::Command { expected, .. }) if !line.starts_with("##") => expected.push(line.to_owned()),
                Some(Part::Command { .. }) => {}
                None => {
                    if let Some(words) = line.strip_prefix("needs: ") {
                        for word in words.split_whitespace() {
                            needs.push(need(word).ok_or_else(|| format!("line {}: unknown need {word}", index + 1))?);
                        }
                    } else if !line.starts_with('#') && !line.is_empty() {
                        return Err(format!("line {}: neither a comment, a file nor a command", index + 1));
                    }
                }
            }
        }
    }
    if !parts.iter().any(|part| matches!(part, Part::Command { .. })) {
        return Err("no command".to_owned());
    }
    Ok((needs, parts))
}

fn need(word: &str) -> Option<Need> {
    Some(match word {
        "run" => Need::Run,
        "busybox" => Need::Busybox,
        "root" => Need::Root,
        "emulator" => Need::Emulator,
        _ => return None,
    })
}

/// Splits a command as a shell would: blanks, single and double quotes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote without end".to_owned()) } else { Ok(words) }
}

fn run(env: &TestEnv, line: &str) -> Result<Run, String> {
    let mut words = words(line)?;
    let mut variables = Vec::new();
    while let Some((name, value)) = words.first().and_then(|word| word.split_once('=')) {
        variables.push((name.to_owned(), value.to_owned()));
        words.remove(0);
    }
    let [program, args @ ..] = words.as_slice() else { return Err("no command".to_owned()) };
    if program == "rbuild" {
        let mut command = env.command(args);
        return Ok(Run::of(command.envs(variables)));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Some(said) = look(env, program, &args)? {
        return Ok(Run::of_text(line, said));
    }
    match (program.as_str(), args.as_slice()) {
        ("base", []) => env.import_busybox(),
        ("rm", [path]) => env.remove(path),
        ("mkdir", [path]) => env.directory(&env.path(path)),
        ("chmod", [mode, path]) => {
            env.mode(path, u32::from_str_radix(mode, 8).map_err(|_| format!("mode {mode}"))?);
        }
        ("touch", [time, path]) => env.time(path, time.parse().map_err(|_| format!("time {time}"))?),
        ("ln", ["-s", target, path]) => env.link(path, target),
        ("ln", [old, new]) => {
            std::fs::hard_link(env.path(old), env.path(new)).map_err(|error| format!("ln: {error}"))?;
        }
        _ => return Err(format!("unknown command {line}")),
    }
    Ok(Run::of_text(line, String::new()))
}

/// What a command that looks at something prints; `None` when it is no such command.
fn look(env: &TestEnv, program: &str, args: &[&str]) -> Result<Option<String>, String> {
    let image = |archive: &str| Image::read(&env.path(archive));
    Ok(Some(match (program, args) {
        ("cat", [path]) => std::fs::read_to_string(env.path(path)).map_err(|error| format!("{path}: {error}"))?,
        ("ls", [path]) => {
            let entries = std::fs::read_dir(env.path(path)).map_err(|error| format!("{path}: {error}"))?;
            let mut names: Vec<String> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names.into_iter().map(|name| name + "\n").collect()
        }
        ("tree", [archive]) => image(archive).listing(""),
        ("tree", [archive, prefix]) => image(archive).listing(prefix),
        ("layer", [archive]) => image(archive).top_layer().join("\n"),
        ("config", [archive, key]) => format!("{}\n", image(archive).config["config"][*key]),
        ("history", [archive]) => {
            let lines = image(archive).history().into_iter();
            lines.map(|(by, empty)| [if empty { "- " } else { "+ " }, by.as_str(), "\n"].concat()).collect()
        }
        _ => return Ok(None),
    }))
}

/// What names of digests stand for so far.
type Names = BTreeMap<String, String>;

fn judge(ran: &Run, expected: &[String], names: &mut Names) -> Result<(), String> {
    let mut code = 0;
    let mut stdout: Vec<&str> = Vec::new();
    let mut stderr = ran.stderr.lines();
    for line in expected {
        if let Some(status) = line.strip_prefix("? ") {
            code = status.parse().map_err(|_| format!("exit status {status}"))?;
        } else if let Some(wanted) = line.strip_prefix("2> ") {
            if !stderr.by_ref().any(|found| matches(wanted, found, names)) {
                return Err(format!("standard error lacks, or lacks at this place: {wanted}"));
            }
        } else if let Some(unwanted) = line.strip_prefix("2! ") {
            if ran.stderr.contains(unwanted) {
                return Err(format!("standard error has: {unwanted}"));
            }
        } else {
            stdout.push(line);
        }
    }
    if ran.code != Some(code) {
        return Err(format!("exit status {:?} instead of {code}", ran.code));
    }
    while stdout.last().is_some_and(|line| line.is_empty()) {
        stdout.pop();
    }
    let found: Vec<&str> = ran.stdout.lines().collect();
    if lines_match(&stdout, &found, names) { Ok(()) } else { Err("standard output differs".to_owned()) }
}

fn lines_match(wanted: &[&str], found: &[&str], names: &mut Names) -> bool {
    match (wanted, found) {
        ([], _) => found.is_empty(),
        (["...", rest @ ..], _) => (0..=found.len()).any(|skip| {
            let mut tried = names.clone();
            let fits = lines_match(rest, &found[skip..], &mut tried);
            if fits {
                *names = tried;
            }
            fits
        }),
        ([first, rest @ ..], [line, others @ ..]) => matches(first, line, names) && lines_match(rest, others, names),
        _ => false,
    }
}

/// Whether a line is what a pattern says; remembers the digests that the pattern names.
fn matches(pattern: &str, line: &str, names: &mut Names) -> bool {
    if let Some(rest) = pattern.strip_prefix("[..]") {
        let ends = (0..=line.len()).filter(|end| line.is_char_boundary(*end));
        for end in ends {
            let mut tried = names.clone();
            if matches(rest, &line[end..], &mut tried) {
                *names = tried;
                return true;
            }
        }
        return false;
    }
    if let Some((token, rest)) = pattern.strip_prefix('<').and_then(|text| text.split_once('>')) {
        let (kind, name) = token.split_once([':', '!']).map_or((token, None), |(kind, name)| (kind, Some(name)));
        let (prefix, len) = match kind {
            "digest" => ("sha256:", 64),
            "id" => ("", 12),
            _ => return literal(pattern, line, names),
        };
        let Some(value) = line.strip_prefix(prefix).and_then(|text| text.get(..len)) else { return false };
        if !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return false;
        }
        let other = token.contains('!');
        match (name, name.and_then(|name| names.get(name))) {
            (Some(_), Some(known)) if known.starts_with(value) == other => return false,
            (Some(_), None) if other => return false,
            (Some(name), None) => {
                names.insert(name.to_owned(), value.to_owned());
            }
            _ => {}
        }
        return matches(rest, &line[prefix.len() + len..], names);
    }
    literal(pattern, line, names)
}

fn literal(pattern: &str, line: &str, names: &mut Names) -> bool {
    let Some(first) = pattern.chars().next() else { return line.is_empty() };
    line.strip_prefix(first).is_some_and(|rest| matches(&pattern[first.len_utf8()..], rest, names))
}

#[test]
fn patterns() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let other = format!("sha256:{}", "cd".repeat(32));
    let mut names = Names::new();
    for (pattern, line, fits) in [
        ("a[..]c", "abbc", true),
        ("a[..]c", "abb", false),
        ("[..]", "", true),
        ("é[..]", "éß", true),
        ("<digest>", digest.as_str(), true),
        ("<digest:x> !", &format!("{digest} !"), true),
        ("<digest:x>", &other, false),
        ("<digest!x>", &other, true),
        ("<digest!x>", &digest, false),
        ("<id:x> y", "abababababab y", true),
        ("<id:x>", "cdcdcdcdcdcd", false),
        ("<missing>", "<missing>", true),
        ("<none>  x", "<none>  x", true),
    ] {
        assert_eq!(matches(pattern, line, &mut names), fits, "{pattern} against {line}");
    }
    assert!(lines_match(&["a", "...", "d"], &["a", "b", "c", "d"], &mut names));
    assert!(lines_match(&["a", "..."], &["a"], &mut names));
    assert!(!lines_match(&["a", "...", "d"], &["a", "b"], &mut names));
    assert!(!lines_match(&["a"], &["a", "b"], &mut names));
}

#[test]
fn command_words() {
    assert_eq!(words("a  'b c' --x=\"d e\"f ''"), Ok(vec!["a".into(), "b c".into(), "--x=d ef".into(), String::new()]));
    assert!(words("a 'b").is_err());
}
