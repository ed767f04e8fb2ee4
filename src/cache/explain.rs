//! Why a step was not in the cache: the nearest record against what is asked for now.
//!
//! In: the record that the same place of the Dockerfile had last, and the step's ingredients. Out: one [`MissReason`],
//! the one that a person can do something about first: the instruction, then the files, then what lies below.

use std::collections::BTreeMap;

use super::record::CacheRecord;
use crate::digest::{Digest, StackId};
use crate::event::MissReason;

/// The ingredients of a step, as far as they are known when it misses.
#[derive(Debug, Clone)]
pub struct Ingredients<'a> {
    /// The operation in words.
    pub parts: &'a BTreeMap<String, String>,
    /// The stack below.
    pub below: StackId,
    /// Digest of what is copied.
    pub source: Option<Digest>,
    /// Digest of what is found at the destination.
    pub landing: Option<Digest>,
}

/// Names the first ingredient that differs. `changed_files` compares the files of the step with those of the record's
/// layer; it is called only where the sources differ.
pub fn reason(
    last: Option<&CacheRecord>,
    now: &Ingredients<'_>,
    changed_files: impl FnOnce() -> (Vec<String>, usize),
) -> MissReason {
    let Some(last) = last else { return MissReason::FirstBuild };
    let empty = String::new();
    let names = last.parts.keys().chain(now.parts.keys());
    let mut differing: Vec<&String> =
        names.filter(|name| last.parts.get(*name) != now.parts.get(*name) && *name != "sources").collect();
    // "order of variables" changes with every variable that comes or goes: the variable itself says more.
    differing.sort_by_key(|name| *name == "order of variables");
    if let Some(what) = differing.first() {
        let value = |parts: &BTreeMap<String, String>| shorten(parts.get(*what).unwrap_or(&empty));
        return MissReason::OpChanged { what: (*what).clone(), old: value(&last.parts), new: value(now.parts) };
    }
    if now.source.is_some() && now.source != last.source {
        let (paths, more) = changed_files();
        return MissReason::FilesChanged { paths, more };
    }
    if now.landing.is_some() && now.landing != last.landing {
        return MissReason::LandingChanged;
    }
    if now.below != last.below {
        return MissReason::ParentChanged;
    }
    MissReason::LayerGone
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 120;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    let head: String = text.chars().take(LIMIT - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ContentDigest, DiffId};

    fn parts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_thing_to_act_on_is_named() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let last = CacheRecord {
            content: ContentDigest(digest("c")),
            layer: DiffId(digest("l")),
            op: digest("o"),
            below: StackId(digest("below")),
            source: Some(digest("files")),
            landing: Some(digest("landing")),
            parts: parts(&[("command", "make"), ("variable A", "1"), ("order of variables", "A")]),
        };
        let same = parts(&[("command", "make"), ("variable A", "1"), ("order of variables", "A")]);
        let env = parts(&[("command", "make"), ("variable A", "2"), ("order of variables", "A")]);
        let more =
            parts(&[("command", "make"), ("variable A", "1"), ("variable B", "2"), ("order of variables", "A B")]);
        let ask = |parts: &BTreeMap<String, String>, below: &str, source: &str, landing: &str| {
            let now = Ingredients {
                parts,
                below: StackId(digest(below)),
                source: Some(digest(source)),
                landing: Some(digest(landing)),
            };
            reason(Some(&last), &now, || (vec!["a.txt".to_owned()], 3)).to_string()
        };
        assert_eq!(ask(&env, "other", "other", "other"), "variable A changed from \"1\" to \"2\"");
        assert_eq!(ask(&more, "below", "files", "landing"), "variable B changed from \"\" to \"2\"");
        assert_eq!(ask(&same, "other", "other", "landing"), "files changed: a.txt and 3 more");
        assert_eq!(ask(&same, "other", "files", "other"), "what is there at the destination changed");
        assert_eq!(ask(&same, "other", "files", "landing"), "the file system it builds on changed");
        let now = Ingredients { parts: &same, below: last.below, source: None, landing: None };
        assert_eq!(reason(None, &now, || unreachable!()), MissReason::FirstBuild);
    }
}
