//! `rbuild info`: where the store is, and what this machine allows.
//!
//! In: the settings. Out: a text of `name: value` lines, each thing that is missing with what to do about it. What
//! always holds: nothing is made and nothing is changed (a store that is not there stays away), names and their order
//! are stable, and what the machine lacks is an answer, not a failure.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use super::args;
use super::failure::Failure;
use super::settings::Settings;
use super::size::human;
use super::stdout::stdout;
use crate::exec::Sandbox;
use crate::exec::probe::{self, Fact};
use crate::store::Store;

/// Prints it.
pub(super) fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let mut facts = vec![Fact { name: "version", ok: true, value: args::VERSION.to_owned(), remedy: None }];
    let root = settings.store_root();
    facts.extend(match &root {
        Ok(root) => store(root),
        Err(error) => vec![missing("store", error.to_string(), "name a folder with --root or RBUILD_ROOT")],
    });
    facts.extend(probe::facts(&Sandbox::default(), root.as_deref().ok()));
    facts.push(isolation(&facts));
    tell_once(&mut facts);
    stdout().write_all(text(&facts).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What `--isolation=auto` comes to.
fn isolation(facts: &[Fact]) -> Fact {
    let root = rustix::process::geteuid().is_root();
    if facts.iter().any(|fact| fact.name == "overlay" && fact.ok) {
        Fact { name: "isolation", ok: true, value: "namespace".to_owned(), remedy: None }
    } else if root && facts.iter().any(|fact| fact.name == probe::COPIES && fact.ok) {
        let value = "chroot: RUN has a root directory of its own in a copy of all files, and nothing else".to_owned();
        missing("isolation", value, "see what is missing above; namespaces contain RUN better and copy nothing")
    } else {
        missing("isolation", "none (RUN cannot be carried out here)".to_owned(), "see what is missing above")
    }
}

/// What is missing for the same reason as something above points there.
fn tell_once(facts: &mut [Fact]) {
    for i in 1..facts.len() {
        let (above, rest) = facts.split_at_mut(i);
        if let Some(same) = above.iter().find(|fact| !fact.ok && fact.value == rest[0].value) {
            (rest[0].value, rest[0].remedy) = (format!("not tried (see {})", same.name), None);
        }
    }
}

/// What there is to say about the store without reading all of it.
fn store(root: &Path) -> Vec<Fact> {
    let good = |name, value: String| Fact { name, ok: true, value, remedy: None };
    // Opening makes what is not there.
    if fs::symlink_metadata(root.join("format")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return vec![good("store", format!("{} (made by the first command that needs it)", root.display()))];
    }
    let mut facts = Vec::new();
    match Store::open(root).and_then(|store| store.images()) {
        Ok(images) => {
            facts.push(good("store", root.display().to_string()));
            facts.push(good("images", images.len().to_string()));
        }
        Err(error) => {
            let why = format!("{}: {:#}", root.display(), anyhow::Error::from(error));
            facts.push(missing("store", why, "name another folder with --root or RBUILD_ROOT"));
        }
    }
    if let Ok(disk) = rustix::fs::statvfs(root) {
        let bytes = |blocks: u64| human(blocks.saturating_mul(disk.f_frsize));
        facts.push(good("disk of the store", format!("{} free of {}", bytes(disk.f_bavail), bytes(disk.f_blocks))));
    }
    facts
}

fn missing(name: &'static str, value: String, remedy: &str) -> Fact {
    Fact { name, ok: false, value, remedy: Some(remedy.to_owned()) }
}

/// One line for each fact; below what is missing, what to do, further in.
fn text(facts: &[Fact]) -> String {
    let width = facts.iter().map(|fact| fact.name.len()).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for fact in facts {
        let name = format!("{}:", fact.name);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:width$}{}", one_line(&fact.value));
        for line in fact.remedy.iter().flat_map(|remedy| remedy.lines()) {
            let _ = writeln!(text, "{:width$}-> {}", "", line.trim());
        }
    }
    let lacking = facts.iter().filter(|fact| !fact.ok).count();
    if lacking > 0 {
        let things = if lacking == 1 { "thing is" } else { "things are" };
        let _ = writeln!(text, "{lacking} {things} not as rbuild would have it; -> says what to do");
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_has_its_remedy_below() {
        let facts = [
            Fact { name: "store", ok: true, value: "/s".into(), remedy: None },
            Fact { name: "overlay", ok: false, value: "none\nat all".into(), remedy: Some("do this\nand that".into()) },
            Fact { name: "x", ok: false, value: "y".into(), remedy: None },
        ];
        let expected = "\
store:   /s
overlay: none at all
         -> do this
         -> and that
x:       y
2 things are not as rbuild would have it; -> says what to do
";
        assert_eq!(text(&facts), expected);
        assert_eq!(text(&facts[..1]), "store: /s\n");
    }

    #[test]
    fn one_reason_is_told_once() {
        let bad = |name| missing(name, "no ids".to_owned(), "get some");
        let mut facts = [bad("subordinate ids"), bad("user namespaces"), missing("x", "y".into(), "z")];
        tell_once(&mut facts);
        assert_eq!(facts[0], bad("subordinate ids"));
        assert_eq!((facts[1].value.as_str(), &facts[1].remedy), ("not tried (see subordinate ids)", &None));
        assert_eq!(facts[2].value, "y");
    }

    #[test]
    fn a_store_that_is_not_there_stays_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("store");
        let facts = store(&root);
        assert!(facts.iter().all(|fact| fact.ok) && facts.len() == 1, "{facts:?}");
        assert!(!root.exists());
        fs::write(&root, "a file").expect("written");
        assert!(store(&root).iter().any(|fact| !fact.ok && fact.remedy.is_some()), "a file is no store");
    }
}
