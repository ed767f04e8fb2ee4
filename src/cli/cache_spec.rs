//! `--cache-from` and `--cache-to` specifications: where a shared cache is, and what is done with it.
//!
//! In: the text after the flag, as BuildKit reads it (`user/app:cache`, `type=registry,ref=…,mode=max`,
//! `type=local,dest=DIR`). Out: a [`CacheSpec`] in which every option is one that its type and flag know. What always
//! holds: an option that rbuild does not carry out is an error that names it.

use std::path::PathBuf;

use super::args::values::yes_no;
use super::output_spec::{self, OutputKind, OutputSpec};
use crate::diagnostic::nearest;
use crate::image::reference::Reference;

/// Which of the two flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `--cache-from`.
    From,
    /// `--cache-to`.
    To,
}

impl Side {
    const fn flag(self) -> &'static str {
        match self {
            Self::From => "--cache-from",
            Self::To => "--cache-to",
        }
    }
}

/// Where a shared cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// A repository of a registry; its tag begins the names of what is kept there.
    Registry(Reference),
    /// A folder; relative to the working directory.
    Local(PathBuf),
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// The layers of the result.
    #[default]
    Min,
    /// Every step of every stage that was needed.
    Max,
}

/// One shared cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Where.
    pub place: CachePlace,
    /// `mode=`.
    pub mode: CacheMode,
    /// `compression=`, `compression-level=`, `force-compression=` and `registry.insecure=`, as outputs have them.
    pub form: OutputSpec,
    /// `ignore-error=true`: a cache that cannot be written fails no build.
    pub ignore_error: bool,
    /// `mounts=`: ids of cache mounts that go with it.
    pub mounts: Vec<String>,
}

impl CacheSpec {
    /// What messages call it.
    pub fn name(&self) -> String {
        match &self.place {
            CachePlace::Registry(reference) => match reference.tag() {
                None | Some("latest") => reference.familiar_name(),
                Some(_) => reference.familiar(),
            },
            CachePlace::Local(folder) => folder.display().to_string(),
        }
    }
}

/// The options: of which flags, and of which types.
const OPTIONS: [(&str, &[Side], &[&str]); 12] = {
    use Side::{From, To};
    const ALL: &[&str] = &["registry", "local"];
    [
        ("ref", &[From, To], &["registry"]),
        ("src", &[From], &["local"]),
        ("dest", &[To], &["local"]),
        ("mode", &[To], ALL),
        ("mounts", &[From, To], ALL),
        ("compression", &[To], ALL),
        ("compression-level", &[To], ALL),
        ("force-compression", &[To], ALL),
        ("ignore-error", &[To], ALL),
        ("image-manifest", &[To], ALL),
        ("oci-mediatypes", &[To], ALL),
        ("registry.insecure", &[From, To], &["registry"]),
    ]
};

/// The options of a flag and a type.
fn options(side: Side, kind: &str) -> impl Iterator<Item = &'static str> + Clone {
    let takes = move |(_, sides, kinds): &(_, &[Side], &[&str])| sides.contains(&side) && kinds.contains(&kind);
    OPTIONS.into_iter().filter(takes).map(|(name, ..)| name)
}

/// Types of BuildKit that there are not here, and why.
const ELSEWHERE: [(&str, &str); 4] = [
    (
        "inline",
        "an image of rbuild holds no cache; type=registry keeps it beside the image, in the same repository if you like",
    ),
    ("gha", "use type=registry, or type=local with a folder that the workflow keeps"),
    ("s3", "use type=registry, or type=local with a folder that you keep there"),
    ("azblob", "use type=registry, or type=local with a folder that you keep there"),
];

/// The longest tag that begins names: a dash, `mount-` and 64 digits follow, and registries take 128 letters.
const MOST_TAG: usize = 57;

/// Reads one specification. Bare names may be several: `--cache-from a,b`.
pub fn parse(side: Side, text: &str) -> Result<Vec<CacheSpec>, String> {
    let told = |why: String| format!("{} {text}: {why}", side.flag());
    if text.is_empty() {
        return Err(format!("{} needs a value: the name of a repository, or type=…", side.flag()));
    }
    let fields = output_spec::fields(text).map_err(told)?;
    let (bare, options): (Vec<&String>, Vec<&String>) = fields.iter().partition(|field| !field.contains('='));
    let mut pairs: Vec<(String, &str)> = Vec::new();
    for (key, value) in options.iter().filter_map(|field| field.split_once('=')) {
        let key = key.trim().to_lowercase();
        if key != "mounts" && pairs.iter().any(|(known, _)| *known == key) {
            return Err(told(format!("{key} is given twice")));
        }
        pairs.push((key, value));
    }
    if pairs.is_empty() {
        return bare.iter().map(|name| registry(side, name, &[]).map_err(told)).collect();
    }
    match (bare.as_slice(), pairs.iter().find(|(key, _)| key == "type")) {
        ([], Some((_, kind))) => one(side, kind, &pairs),
        ([], None) => Err("type= is missing: registry or local".to_owned()),
        ([name], None) if fields[0] == **name => registry(side, name, &pairs),
        ([name, ..], _) => Err(format!("{name} is not key=value")),
    }
    .map(|spec| vec![spec])
    .map_err(told)
}

fn one(side: Side, kind: &str, pairs: &[(String, &str)]) -> Result<CacheSpec, String> {
    let value = |key: &str| pairs.iter().find(|(known, _)| known == key).map_or("", |(_, value)| *value);
    match kind {
        "registry" => match value("ref") {
            "" => check_options(side, "registry", pairs).and(Err("type=registry needs ref=NAME".to_owned())),
            name => registry(side, name, pairs),
        },
        "local" => {
            check_options(side, "local", pairs)?;
            let key = if side == Side::From { "src" } else { "dest" };
            match value(key) {
                "" => Err(format!("type=local needs {key}=DIR")),
                folder => settle(CachePlace::Local(PathBuf::from(folder)), pairs),
            }
        }
        other => Err(match ELSEWHERE.iter().find(|(name, _)| *name == other) {
            Some((_, instead)) => format!("not supported: type={other}; {instead}"),
            None => match nearest(other, ["registry", "local"].into_iter().chain(ELSEWHERE.map(|(name, _)| name))) {
                Some(meant) => format!("unknown type {other}; did you mean {meant}?"),
                None => format!("unknown type {other}; the types are registry and local"),
            },
        }),
    }
}

fn registry(side: Side, name: &str, pairs: &[(String, &str)]) -> Result<CacheSpec, String> {
    check_options(side, "registry", pairs)?;
    if name.starts_with(['.', '/']) {
        let key = if side == Side::From { "src" } else { "dest" };
        return Err(format!("{name} is no repository; a folder is written type=local,{key}={name}"));
    }
    let reference = Reference::parse(name).map_err(|error| error.to_string())?;
    if reference.digest().is_some() {
        return Err("a cache has no digest: it is many small things, each found by its own name".to_owned());
    }
    if reference.tag().is_some_and(|tag| tag.len() > MOST_TAG) {
        return Err(format!("the tag begins the name of all that is kept, and may have {MOST_TAG} letters"));
    }
    settle(CachePlace::Registry(reference), pairs)
}

/// Whether all options are known to the flag and the type.
fn check_options(side: Side, kind: &str, pairs: &[(String, &str)]) -> Result<(), String> {
    let known: Vec<&str> = options(side, kind).collect();
    for (key, value) in pairs.iter().filter(|(key, _)| key != "type") {
        let key = key.as_str();
        if known.contains(&key) {
            continue;
        }
        if kind == "local" && ["tag", "digest"].contains(&key) {
            return Err(format!("not supported: {key}={value}; a folder is one cache, with a file for each step"));
        }
        let why = if side == Side::From && options(Side::To, kind).any(|option| option == key) {
            format!("{key} is for --cache-to")
        } else {
            match nearest(key, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("it takes {}", known.join(", ")),
            }
        };
        return Err(format!("type={kind} has no option {key} in {}; {why}", side.flag()));
    }
    Ok(())
}

/// The values of options that are known.
fn settle(place: CachePlace, pairs: &[(String, &str)]) -> Result<CacheSpec, String> {
    let mut spec = CacheSpec {
        place,
        mode: CacheMode::Min,
        form: OutputSpec::new(OutputKind::Registry),
        ignore_error: false,
        mounts: Vec::new(),
    };
    let truth = |key: &str, value: &str| yes_no(value).map_err(|_| format!("{key}={value} is neither true nor false"));
    for (key, value) in pairs {
        match (key.as_str(), *value) {
            ("type" | "ref" | "src" | "dest", _) => {}
            ("mode", "min") => spec.mode = CacheMode::Min,
            ("mode", "max") => spec.mode = CacheMode::Max,
            ("mode", value) => return Err(format!("mode={value} is neither min nor max")),
            ("mounts", "") => return Err("mounts= needs the id of a cache mount".to_owned()),
            ("mounts", id) => spec.mounts.push(id.to_owned()),
            ("ignore-error", value) => spec.ignore_error = truth(key, value)?,
            ("image-manifest" | "oci-mediatypes", value) => {
                if !truth(key, value)? {
                    return Err(format!("not supported: {key}={value}; each step is an OCI manifest of its own"));
                }
            }
            (key, value) => output_spec::set(&mut spec.form, key, value)?,
        }
    }
    output_spec::check_compression(&spec.form)?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output_spec::CompressionName;

    fn spec(text: &str) -> CacheSpec {
        let place = match text.strip_prefix("dir:") {
            Some(folder) => CachePlace::Local(PathBuf::from(folder)),
            None => CachePlace::Registry(Reference::parse(text).unwrap()),
        };
        let form = OutputSpec::new(OutputKind::Registry);
        CacheSpec { place, mode: CacheMode::Min, form, ignore_error: false, mounts: Vec::new() }
    }

    #[test]
    fn specifications_are_read_as_buildkit_reads_them() {
        let form = || OutputSpec::new(OutputKind::Registry);
        for (side, text, expected) in [
            (Side::From, "user/app", vec![spec("user/app")]),
            (Side::From, "a,localhost:5000/b:c", vec![spec("a"), spec("localhost:5000/b:c")]),
            (Side::From, "type=registry,ref=user/app:x", vec![spec("user/app:x")]),
            (Side::From, "TYPE=registry, REF=user/app", vec![spec("user/app")]),
            (Side::From, "type=local,src=a b", vec![spec("dir:a b")]),
            (Side::To, "user/app,mode=max", vec![CacheSpec { mode: CacheMode::Max, ..spec("user/app") }]),
            (Side::To, "type=local,dest=/c,mode=min", vec![spec("dir:/c")]),
            (
                Side::To,
                "type=registry,ref=a,registry.insecure=true,compression=zstd,compression-level=9,force-compression=1",
                vec![CacheSpec {
                    form: OutputSpec {
                        insecure: true,
                        compression: Some(CompressionName::Zstd),
                        level: Some(9),
                        force_compression: true,
                        ..form()
                    },
                    ..spec("a")
                }],
            ),
            (
                Side::To,
                "type=registry,ref=a,image-manifest=true,oci-mediatypes=true,ignore-error=true",
                vec![CacheSpec { ignore_error: true, ..spec("a") }],
            ),
            (
                Side::From,
                r#"a,mounts=/root/.cache,"mounts=x,y""#,
                vec![CacheSpec { mounts: vec!["/root/.cache".into(), "x,y".into()], ..spec("a") }],
            ),
        ] {
            assert_eq!(parse(side, text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (side, text, said) in [
            (Side::From, "", "--cache-from needs a value"),
            (Side::From, "./cache", "a folder is written type=local,src=./cache"),
            (Side::To, "/cache,mode=max", "a folder is written type=local,dest=/cache"),
            (Side::From, "App", "did you mean \"app\"?"),
            (Side::From, "mode=max", "type= is missing"),
            (Side::From, "ref=a", "type= is missing: registry or local"),
            (Side::From, "type=registry", "type=registry needs ref=NAME"),
            (Side::From, "type=local", "type=local needs src=DIR"),
            (Side::To, "type=local", "type=local needs dest=DIR"),
            (Side::To, "type=inline", "not supported: type=inline"),
            (Side::To, "type=gha,scope=x", "not supported: type=gha"),
            (Side::From, "type=s3,bucket=b", "not supported: type=s3"),
            (Side::From, "type=azblob,name=b", "not supported: type=azblob"),
            (Side::From, "type=regsitry,ref=a", "did you mean registry?"),
            (Side::From, "type=tape", "unknown type tape; the types are registry and local"),
            (Side::To, "type=registry,ref=a,mod=max", "did you mean mode?"),
            (Side::To, "type=registry,ref=a,mode=mox", "mode=mox is neither min nor max"),
            (Side::To, "type=local,dest=a,ref=b", "type=local has no option ref in --cache-to"),
            (Side::From, "type=registry,ref=a,mode=max", "mode is for --cache-to"),
            (Side::From, "type=local,src=a,tag=b", "not supported: tag=b"),
            (Side::To, "type=registry,ref=a,image-manifest=false", "not supported: image-manifest=false"),
            (Side::To, "type=registry,ref=a,compression=estargz", "not supported yet: compression=estargz"),
            (Side::To, "type=registry,ref=a,compression=gzip,compression-level=10", "out of range: gzip has 0 to 9"),
            (Side::To, "type=registry,ref=a,ignore-error=perhaps", "ignore-error=perhaps is neither true nor false"),
            (Side::To, "type=registry,ref=a,ref=b", "ref is given twice"),
            (Side::To, "type=registry,b,ref=a", "b is not key=value"),
            (Side::To, "a,b,mode=max", "a is not key=value"),
            (Side::From, "a,mounts=", "mounts= needs the id"),
            (Side::From, &format!("a:{}", "x".repeat(58)), "may have 57 letters"),
            (
                Side::From,
                "a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "a cache has no digest",
            ),
        ] {
            let error = parse(side, text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
