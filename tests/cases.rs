//! Every numbered case of Dockerfile semantics has a test that bears its number: `testdata/cases.txt` says where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The last case of each section.
const SECTIONS: [(usize, usize); 7] = [(1, 29), (2, 36), (3, 45), (4, 59), (5, 63), (6, 73), (7, 82)];

/// Where numbers stand.
const FOLDERS: [&str; 3] = ["testdata", "tests", "src"];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// The numbers in a text: `5.1-3`, also with a letter behind them.
fn numbers(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("5.") {
        let rest = &text[at + 2..];
        let before = text[..at].chars().next_back();
        let Some((section, case)) = rest.split_once('-') else { continue };
        let digits = case.bytes().take_while(u8::is_ascii_digit).count();
        let one = section.len() == 1 && section.bytes().all(|byte| byte.is_ascii_digit());
        if one && digits > 0 && !before.is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '.') {
            found.insert(format!("5.{section}-{}", &case[..digits]));
        }
    }
    found
}

#[test]
fn every_numbered_case_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = root.join("testdata/cases.txt");
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut owed = BTreeSet::new();
    for line in fs::read_to_string(&list).expect("a list").lines().filter(|line| !line.starts_with('#')) {
        let (case, place) = line.split_once(' ').expect("a case and a file");
        match place.strip_prefix("owed ") {
            Some(_) => drop(owed.insert(case.to_owned())),
            None => drop(listed.entry(case.to_owned()).or_default().insert(place.to_owned())),
        }
    }
    let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut all = Vec::new();
    FOLDERS.iter().for_each(|folder| files(&root.join(folder), &mut all));
    for path in all.iter().filter(|path| **path != list && !path.ends_with("tests/cases.rs")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let place = path.strip_prefix(root).expect("below the root").display().to_string();
        for case in numbers(&text) {
            there.entry(case).or_default().insert(place.clone());
        }
    }
    let mut first = 1;
    for (section, last) in SECTIONS {
        for number in first..=last {
            let case = format!("5.{section}-{number}");
            let (listed, there) = (listed.remove(&case), there.remove(&case));
            if owed.remove(&case) {
                assert_eq!((listed, there), (None, None), "{case} is owed no more: list its file");
                continue;
            }
            let (listed, there) = (listed.unwrap_or_default(), there.unwrap_or_default());
            assert!(!listed.is_empty(), "{case} is in no test");
            assert!(listed.is_subset(&there), "{case} is listed in {listed:?} and found in {there:?}");
        }
        first = last + 1;
    }
    assert!(listed.is_empty() && owed.is_empty() && there.is_empty(), "no cases: {listed:?} {owed:?} {there:?}");
}

#[test]
fn numbers_are_found() {
    let found = numbers("== 5.1-3 a, (5.2-31, 5.2-32) 5.1-19b; 15.1-4 5.1- 5.12-1 v5.1-7");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["5.1-19", "5.1-3", "5.2-31", "5.2-32"]);
}
