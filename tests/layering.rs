//! Who may use what: the tiers of ARCHITECTURE.md, held against the text of every source file.
//!
//! In: `src/**/*.rs`, with comments, strings and test modules taken out. Out: each place where a module names something
//! that its tier may not. What always holds: parsing, planning, keys and image documents cannot reach a file, a clock,
//! a variable or a socket; all `unsafe` is in `src/sys`; only the command line prints.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::support::machine::source_dir;

/// Modules without any I/O: values in, values out.
const PURE: &[&str] = &[
    "digest",
    "diagnostic",
    "event",
    "dockerfile",
    "plan",
    "image",
    "cache::key",
    "context::glob",
    "context::ignore",
    "layer::entry",
    "layer::entry_ref",
    "layer::index",
    "layer::content",
    "layer::stack",
];

/// What pure modules may not name. `std::io` stays: its traits and errors are values.
const AMBIENT: &[&str] = &[
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "std::thread",
    "std::os",
    "std::time::SystemTime",
    "std::time::Instant",
    "SystemTime",
    "rustix::",
    "libc::",
    "tempfile::",
    "walkdir::",
    "ignore::",
    "rayon::",
    "indicatif::",
    "clap::",
];

/// For each tier above the pure one: its modules, the crate's modules it may not name, and what else it may not.
const TIERS: &[(&[&str], &[&str], &[&str])] = &[
    (
        &["sys"],
        &[
            "store", "cache", "snapshot", "layer", "context", "exec", "fetch", "git", "http", "registry", "solve",
            "output", "cli",
        ],
        &[],
    ),
    (
        &["store", "cache", "snapshot", "layer", "context"],
        &["exec", "fetch", "git", "http", "registry", "solve", "output", "cli"],
        &["std::env", "std::net", "std::process::Command", "indicatif::", "clap::"],
    ),
    // The first process of a sandbox and the trial of the sandbox are programs of their own: their arguments and streams
    // are their business.
    (&["exec::init", "exec::probe"], &["solve", "output", "cli"], &["indicatif::", "clap::"]),
    (
        &["exec", "http", "git", "fetch", "registry"],
        &["solve", "output", "cli"],
        &["std::env", "indicatif::", "clap::"],
    ),
    (&["output"], &["shared", "solve", "cli"], &["std::env", "indicatif::", "clap::"]),
    (&["shared"], &["solve", "cli"], &["std::env", "indicatif::", "clap::"]),
    (&["solve"], &["cli"], &["std::env", "indicatif::", "clap::"]),
    (&["cli", "main", "lib"], &[], &["libc::"]),
];

/// One source file, ready to be searched.
struct Source {
    file: PathBuf,
    /// `layer::index`.
    module: String,
    text: String,
    /// The text without comments, strings and test modules; as many lines.
    code: String,
}

#[test]
fn modules_name_only_what_their_tier_may() {
    let mut problems = String::new();
    for source in sources() {
        let pure = within(&source.module, PURE);
        let tier = TIERS.iter().find(|(modules, ..)| within(&source.module, modules));
        if !pure && tier.is_none() {
            say(&mut problems, &source, 0, "belongs to no tier: add its module to tests/layering.rs");
            continue;
        }
        for (at, path) in paths(&source) {
            if let Some(inside) = path.strip_prefix("crate::") {
                let module = module_of(inside);
                let forbidden = if pure {
                    !module.is_empty() && !within(&module, PURE)
                } else {
                    tier.is_some_and(|(_, forbidden, _)| within(&module, forbidden))
                };
                if forbidden {
                    say(&mut problems, &source, at, &format!("names crate::{inside}, which is in a higher tier"));
                }
            } else {
                let forbidden = if pure { AMBIENT } else { tier.map_or(&[][..], |(.., forbidden)| *forbidden) };
                if within(&path, forbidden) {
                    say(&mut problems, &source, at, &format!("names {path}, which its tier may not use"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn unsafe_is_in_sys_alone() {
    let mut problems = String::new();
    for source in sources().iter().filter(|source| !within(&source.module, &["sys"])) {
        for (at, word) in identifiers(&source.code) {
            if word == "unsafe" || word == "unsafe_code" {
                say(&mut problems, source, at, "unsafe code belongs into src/sys");
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn only_the_command_line_prints() {
    let mut problems = String::new();
    for source in
        sources().iter().filter(|source| !within(&source.module, &["cli", "main", "exec::init", "exec::probe"]))
    {
        for (at, word) in identifiers(&source.code) {
            if word == "stdout" && within(&source.module, &["output"]) {
                continue; // `-o -` is a tar on standard output, not something printed
            }
            let rest = source.code[at + word.len()..].trim_start();
            let prints = matches!(word, "println" | "print" | "eprintln" | "eprint" | "dbg") && rest.starts_with('!');
            let takes =
                matches!(word, "stdout" | "stderr") && source.code[..at].ends_with("io::") && rest.starts_with('(');
            if prints || takes {
                say(&mut problems, source, at, &format!("{word}: only src/cli prints; emit an event"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn every_module_opens_with_its_purpose() {
    let mut problems = String::new();
    for source in sources() {
        let first = source.text.lines().find(|line| !line.starts_with("#![") && !line.is_empty());
        if !first.is_some_and(|line| line.starts_with("//! ")) {
            say(&mut problems, &source, 0, "does not open with a //! paragraph");
        }
        for (at, word) in identifiers(&source.code) {
            let defined = ["struct ", "enum ", "trait ", "mod "].iter().any(|kind| source.code[..at].ends_with(kind));
            let vague = ["Manager", "Helper", "Util", "Common", "Handler", "utils", "helpers"];
            if defined && vague.iter().any(|part| word.ends_with(part)) {
                say(&mut problems, &source, at, &format!("the name {word} says nothing"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

fn say(problems: &mut String, source: &Source, at: usize, what: &str) {
    let line = source.code[..at].matches('\n').count() + 1;
    writeln!(problems, "{}:{line}: {what}", source.file.display()).expect("memory takes every write");
}

/// Whether `path` is one of `roots` or lies below one; below only, for a root that ends in `::` (a crate's name alone may
/// be a variable).
fn within(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| {
        let rest = path.strip_prefix(root);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || root.ends_with("::"))
    })
}

/// The part of a path that names modules: they are written small, types large. A last small word may be a function.
fn module_of(path: &str) -> String {
    let words: Vec<&str> =
        path.split("::").take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    words.join("::")
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("the sources are readable") {
            let path = entry.expect("the sources are readable").path();
            if path.is_dir() {
                // A module `tests` may have modules of its own.
                if !path.ends_with("tests") {
                    walk(&path, files);
                }
            } else if path.extension().is_some_and(|end| end == "rs")
                && path.file_stem().is_some_and(|name| name != "tests")
            {
                files.push(path);
            }
        }
    }
    let root = source_dir().join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    assert!(files.len() > 20, "only {} source files found", files.len());
    let for_tests = |file: &Path| {
        // `#[cfg(test)] mod name;` stands in the file of the parent module.
        let (folder, name) =
            (file.parent().expect("found below the root"), file.file_stem().expect("a file has a name"));
        let wanted = format!("mod {};", name.display());
        [folder.join("mod.rs"), folder.with_extension("rs"), folder.join("lib.rs")].iter().any(|parent| {
            let text = std::fs::read_to_string(parent).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            lines.windows(2).any(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with(&wanted))
        })
    };
    files
        .into_iter()
        .filter(|file| !for_tests(file))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|file| {
            let inside = file.strip_prefix(&root).expect("found below the root").with_extension("");
            let module = inside.to_string_lossy().replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
            let code = without_tests(&bare(&text));
            Source { file, module, text, code }
        })
        .collect()
}

/// The text with comments, strings and characters blanked.
fn bare(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => at + find(&bytes[at..], b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => at + find(&bytes[at..], b"*/") + 2,
            b'r' if !(at > 0 && is_word(bytes[at - 1])) && raw_string(&bytes[at + 1..]).is_some() => {
                at + 1 + raw_string(&bytes[at + 1..]).unwrap_or_default()
            }
            b'"' => at + quoted(&bytes[at..], b'"'),
            // A character, not a lifetime.
            b'\'' if bytes.get(at + 1) == Some(&b'\\') => at + quoted(&bytes[at..], b'\''),
            b'\'' if text[at + 1..].chars().nth(1) == Some('\'') => at + quoted(&bytes[at..], b'\''),
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.min(bytes.len());
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were blanked, or none")
}

/// Where `wanted` begins, or the end.
fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap_or(bytes.len())
}

/// The length of a quoted text, both quotes included.
fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a raw string after its `r`.
fn raw_string(bytes: &[u8]) -> Option<usize> {
    let hashes = bytes.iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(hashes) == Some(&b'"')).then(|| {
        let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
        hashes + 1 + find(&bytes[hashes + 1..], &end) + end.len()
    })
}

/// The code with `#[cfg(test)] mod … { … }` blanked.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let rest = &out[start..];
        let open = rest.find('{').unwrap_or(rest.len());
        let semicolon = rest.find(';').unwrap_or(rest.len());
        let end = if semicolon < open {
            semicolon + 1
        } else {
            let mut depth = 0_usize;
            let close = rest[open..].char_indices().find(|(_, c)| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            close.map_or(rest.len(), |(at, _)| open + at + 1)
        };
        let blank: String = out[start..start + end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        // Blanking must not move what follows; characters of several bytes stand only in what `bare` has blanked.
        out.replace_range(start..start + end, &blank);
    }
    out
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

fn identifiers(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut rest = 0;
    for (at, c) in code.char_indices() {
        if at >= rest && (c == '_' || c.is_ascii_alphabetic()) {
            let len = code[at..].bytes().take_while(|byte| is_word(*byte)).count();
            found.push((at, &code[at..at + len]));
            rest = at + len;
        }
    }
    found
}

/// Every path that the code names, groups of `use` taken apart, `super` and `self` resolved to `crate::…`.
fn paths(source: &Source) -> Vec<(usize, String)> {
    let code = source.code.as_str();
    let mut found = Vec::new();
    let mut done = 0;
    for (at, _) in identifiers(code) {
        if at < done || code[..at].ends_with("::") || code[..at].ends_with('.') {
            continue;
        }
        let mut reader = PathReader { code, at };
        let mut names = Vec::new();
        reader.path("", &mut names);
        done = reader.at;
        names.retain(|name| !matches!(name.as_str(), "super" | "self" | "crate")); // `pub(super)`
        found.extend(names.into_iter().map(|name| (at, absolute(&name, source))));
    }
    found
}

fn absolute(path: &str, source: &Source) -> String {
    let mut base: Vec<&str> = source.module.split("::").filter(|word| !matches!(*word, "lib" | "main")).collect();
    let mut words = path.split("::").peekable();
    if !words.peek().is_some_and(|first| matches!(*first, "super" | "self")) {
        return path.replacen("rbuild::", "crate::", usize::from(path.starts_with("rbuild::")));
    }
    while let Some(word) = words.next_if(|word| matches!(*word, "super" | "self")) {
        if word == "super" {
            base.pop();
        }
    }
    std::iter::once("crate").chain(base).chain(words).collect::<Vec<_>>().join("::")
}

struct PathReader<'a> {
    code: &'a str,
    at: usize,
}

impl PathReader<'_> {
    fn blanks(&mut self) {
        self.at += self.code[self.at..].len() - self.code[self.at..].trim_start().len();
    }

    /// Reads `a::b`, and after `::{` every path of the group.
    fn path(&mut self, prefix: &str, names: &mut Vec<String>) {
        let len = self.code[self.at..].bytes().take_while(|byte| is_word(*byte)).count();
        let name = [prefix, &self.code[self.at..self.at + len]].concat();
        self.at += len;
        if !self.code[self.at..].starts_with("::") {
            names.push(name);
            return;
        }
        self.at += 2;
        if self.code[self.at..].starts_with('{') {
            self.at += 1;
            loop {
                self.blanks();
                match self.code[self.at..].chars().next() {
                    Some('}') => {
                        self.at += 1;
                        return;
                    }
                    Some(c) if c == '_' || c.is_ascii_alphabetic() => self.path(&format!("{name}::"), names),
                    Some(c) => self.at += c.len_utf8(),
                    None => return,
                }
            }
        } else if self.code[self.at..].starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()) {
            self.path(&format!("{name}::"), names);
        } else {
            names.push(name);
        }
    }
}

#[test]
fn the_reader_reads_rust() {
    let text = "use std::{fs::{self, File}, io};\nuse super::entry::Entry;\n// std::net\nlet a = \"std::env\"; let c = '\"';\n\
                let r = r#\"std::process\"#; fn f<'a>(x: &'a str) {}\n#[cfg(test)]\nmod tests { use std::thread; }\n\
                crate::store::Store::open(); x.std::y;";
    let source = Source {
        file: PathBuf::from("src/layer/index.rs"),
        module: "layer::index".to_owned(),
        text: text.to_owned(),
        code: without_tests(&bare(text)),
    };
    let found: Vec<String> = paths(&source).into_iter().map(|(_, path)| path).collect();
    for wanted in
        ["std::fs::self", "std::fs::File", "std::io", "crate::layer::entry::Entry", "crate::store::Store::open"]
    {
        assert!(found.iter().any(|path| path == wanted), "{wanted} not among {found:?}");
    }
    for unwanted in ["net", "env", "process", "thread"] {
        assert!(!found.iter().any(|path| path.contains(unwanted)), "{unwanted} among {found:?}");
    }
    assert!(within("std::fs::self", AMBIENT) && !within("std::fsx", AMBIENT) && within("cache::key", PURE));
    assert_eq!(module_of("layer::index::LayerIndex"), "layer::index");
}
