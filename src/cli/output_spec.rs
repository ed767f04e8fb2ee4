//! `-o` specifications: where a build's result goes, and in what form.
//!
//! In: the text after `-o`, as BuildKit reads it (`type=oci,dest=app.tar`, `"name=a,b"` quoted as in CSV, a bare
//! directory, `-`). Out: an [`OutputSpec`] in which every option is one that its kind knows. What always holds: an
//! option that rbuild does not carry out is an error that names it.

use std::path::PathBuf;

use crate::cli::find;
use crate::diagnostic::nearest;
use crate::image::annotation::Annotation;

/// Where one result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// What is written.
    pub kind: OutputKind,
    /// Where; `None` for kinds that go to the store or nowhere.
    pub dest: Option<Destination>,
    /// `name=`: further names for the image, as written.
    pub names: Vec<String>,
    /// `compression=`: `None` is the kind's default.
    pub compression: Option<CompressionName>,
    /// `compression-level=`, within the range of the compression.
    pub level: Option<i32>,
    /// `force-compression=`: layers of the base are compressed anew as well.
    pub force_compression: bool,
    /// `oci-mediatypes=`: `None` is the kind's default.
    pub oci_mediatypes: Option<bool>,
    /// `tar=`: one file (the default of `oci` and `docker`), not a directory.
    pub tar: bool,
    /// `rewrite-timestamp=true`: nothing to do under an epoch, a warning without one.
    pub rewrite_timestamp: bool,
    /// It goes to the registry of its name: `type=registry`, or `push=true`.
    pub push: bool,
    /// `push-by-digest=true`: it gets no tag there.
    pub by_digest: bool,
    /// `registry.insecure=true`.
    pub insecure: bool,
    /// `annotation.KEY=`, `annotation-index.KEY=`…: for this output alone.
    pub annotations: Vec<Annotation>,
    /// `platform-split=`: whether a root file system lies in a folder named after its platform; `None` is that it does
    /// where there are several.
    pub platform_split: Option<bool>,
}

impl OutputSpec {
    /// The output of that kind without options.
    pub fn new(kind: OutputKind) -> Self {
        empty(kind)
    }

    /// Whether it goes to `docker load`.
    pub fn is_load(&self) -> bool {
        self.kind == OutputKind::Docker && self.dest.is_none()
    }

    /// Whether it has a manifest.
    pub fn has_manifest(&self) -> bool {
        matches!(self.kind, OutputKind::Image | OutputKind::Registry | OutputKind::Oci | OutputKind::Docker)
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputKind {
    /// The image, to the local store.
    Image,
    /// The image, to a registry alone.
    Registry,
    /// An OCI image layout, as a tar or a directory.
    Oci,
    /// What `docker load` reads.
    Docker,
    /// The root file system, as a tar.
    Tar,
    /// The root file system, as files.
    Local,
    /// Nothing: the cache is filled.
    CacheOnly,
}

/// A place in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file or directory; relative to the working directory.
    Path(PathBuf),
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompressionName {
    /// Not at all.
    Uncompressed,
    /// gzip; levels 0 to 9.
    Gzip,
    /// Zstandard; levels 0 to 22.
    Zstd,
}

impl OutputKind {
    /// The name after `type=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Registry => "registry",
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Tar => "tar",
            Self::Local => "local",
            Self::CacheOnly => "cacheonly",
        }
    }

    /// The options that mean something to it.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Image | Self::Registry => &[
                "name",
                "compression",
                "compression-level",
                "force-compression",
                "oci-mediatypes",
                "push",
                "push-by-digest",
                "registry.insecure",
                EPOCH_KEY,
            ],
            Self::Oci | Self::Docker => &[
                "dest",
                "name",
                "tar",
                "compression",
                "compression-level",
                "force-compression",
                "oci-mediatypes",
                EPOCH_KEY,
            ],
            Self::Tar => &["dest", EPOCH_KEY],
            Self::Local => &["dest", "platform-split", EPOCH_KEY],
            Self::CacheOnly => &[],
        }
    }
}

/// The image gets its name with the digest: what goes to a registry by its digest alone has no other.
const CANONICAL: &str = "name-canonical";

const EPOCH_KEY: &str = "rewrite-timestamp";
const TYPES: [&str; 7] = ["image", "oci", "docker", "tar", "local", "cacheonly", "registry"];

/// Options of BuildKit that rbuild does not carry out, with the value (if any) that asks for nothing.
const LATER: [(&str, Option<&str>); 10] = [
    ("unpack", Some("false")),
    ("store", Some("true")),
    ("dangling-name-prefix", None),
    ("prefer-nondist-layers", Some("false")),
    ("oci-artifact", Some("false")),
    ("oci-version", None),
    ("attestation-prefix", None),
    ("attestation-inline", Some("false")),
    ("mode", Some("copy")),
    ("buildinfo", Some("false")),
];

/// Reads one specification. `-o DIR` is `type=local,dest=DIR`, `-o -` is `type=tar,dest=-`.
pub fn parse(spec: &str) -> Result<OutputSpec, String> {
    let fields = fields(spec).map_err(|why| format!("--output {spec}: {why}"))?;
    if let [field] = fields.as_slice()
        && field == spec
        && !has_key(field)
    {
        return match field.as_str() {
            "" => Err("--output needs a value: a directory, - (a tar on standard output), or type=…".to_owned()),
            "-" => Ok(OutputSpec { dest: Some(Destination::Stdout), ..empty(OutputKind::Tar) }),
            directory => Ok(OutputSpec { dest: Some(path(directory)), ..empty(OutputKind::Local) }),
        };
    }
    pairs(&fields).and_then(|pairs| from_pairs(&pairs)).map_err(|why| format!("--output {spec}: {why}"))
}

/// Whether `field` begins with the name of an option: then it is none of the directories that may have a `=`.
fn has_key(field: &str) -> bool {
    let kinds = [OutputKind::Image, OutputKind::Oci];
    field.split_once('=').is_some_and(|(key, _)| {
        let key = key.trim().to_lowercase();
        key == "type" || kinds.iter().any(|kind| kind.keys().contains(&key.as_str()))
    })
}

fn empty(kind: OutputKind) -> OutputSpec {
    OutputSpec {
        kind,
        dest: None,
        names: Vec::new(),
        compression: None,
        level: None,
        force_compression: false,
        oci_mediatypes: None,
        tar: matches!(kind, OutputKind::Oci | OutputKind::Docker | OutputKind::Tar),
        rewrite_timestamp: false,
        push: kind == OutputKind::Registry,
        by_digest: false,
        insecure: false,
        annotations: Vec::new(),
        platform_split: None,
    }
}

/// `--push`: what goes to the store goes to the registry as well; without such an output there is one more.
pub fn push(outputs: &mut Vec<OutputSpec>) {
    let mut pushed = false;
    for output in outputs.iter_mut().filter(|output| matches!(output.kind, OutputKind::Image | OutputKind::Registry)) {
        output.push = true;
        pushed = true;
    }
    if !pushed {
        outputs.push(OutputSpec { push: true, ..empty(OutputKind::Image) });
    }
}

fn path(text: &str) -> Destination {
    if text == "-" { Destination::Stdout } else { Destination::Path(PathBuf::from(text)) }
}

/// Splits at commas; `"…"` around a whole field protects them, `""` within is one quote.
pub(super) fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    let field = &rest[..end];
                    return Err(format!("a quote in the middle of {field}; quote the whole field: \"name=a,b\""));
                }
                (rest[..end].to_owned(), &rest[end..])
            }
            Some(quoted) => quoted_field(quoted).ok_or("a quote is not closed")?,
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(format!("expected a comma before {after}")),
        }
    }
}

/// The field that `text`, after its opening quote, begins with, and what follows the closing quote.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, rest)),
        }
    }
}

/// Fields as `key=value`, each key once, in lower case.
pub(super) fn pairs(fields: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for field in fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(match field.as_str() {
                "" => "an empty field; write key=value,key=value".to_owned(),
                field => format!("{field} is not key=value"),
            });
        };
        // The keys of annotations are the user's own.
        let key = if key.trim().starts_with("annotation") { key.trim().to_owned() } else { key.trim().to_lowercase() };
        // Names add up, as -t does.
        if key != "name" && pairs.iter().any(|(known, _)| *known == key) {
            return Err(format!("{key} is given twice"));
        }
        pairs.push((key, value.to_owned()));
    }
    Ok(pairs)
}

fn from_pairs(pairs: &[(String, String)]) -> Result<OutputSpec, String> {
    let Some((_, name)) = pairs.iter().find(|(key, _)| key == "type") else {
        return Err(format!("type= is missing: one of {}", TYPES.join(", ")));
    };
    let kind = kind(name)?;
    let mut spec = empty(kind);
    for (key, value) in pairs.iter().filter(|(key, _)| !["type", CANONICAL].contains(&key.as_str())) {
        set(&mut spec, key, value)?;
    }
    if let Some((key, value)) = pairs.iter().find(|(key, _)| key == CANONICAL)
        && yes_no(key, value)?
        && !spec.by_digest
    {
        return Err(format!("not supported yet: {key}={value} without push-by-digest=true"));
    }
    check_compression(&spec)?;
    if !spec.annotations.is_empty() && spec.oci_mediatypes == Some(false) {
        return Err("Docker's manifests have no annotations; leave oci-mediatypes=false out".to_owned());
    }
    match (kind, &spec.dest) {
        (OutputKind::Registry, _) if !spec.push => Err("type=registry pushes; push=false asks for nothing".to_owned()),
        (OutputKind::Local, None) => Err("type=local needs dest=DIR".to_owned()),
        (OutputKind::Local, Some(Destination::Stdout)) => {
            Err("a directory cannot be written to standard output; type=tar can".to_owned())
        }
        (OutputKind::Oci | OutputKind::Docker, None | Some(Destination::Stdout)) if !spec.tar => {
            Err("with tar=false the result is a directory: it needs dest=DIR".to_owned())
        }
        (OutputKind::Oci | OutputKind::Tar, None) => Ok(OutputSpec { dest: Some(Destination::Stdout), ..spec }),
        _ => Ok(spec),
    }
}

fn kind(name: &str) -> Result<OutputKind, String> {
    Ok(match name {
        "image" => OutputKind::Image,
        "oci" => OutputKind::Oci,
        "docker" => OutputKind::Docker,
        "tar" => OutputKind::Tar,
        "local" => OutputKind::Local,
        "cacheonly" => OutputKind::CacheOnly,
        "registry" => OutputKind::Registry,
        other => {
            let types = TYPES.join(", ");
            return Err(match nearest(other, TYPES) {
                Some(meant) => format!("unknown type {other}; did you mean {meant}?"),
                None => format!("unknown type {other}; the types are {types}"),
            });
        }
    })
}

pub(super) fn set(spec: &mut OutputSpec, key: &str, value: &str) -> Result<(), String> {
    if spec.has_manifest()
        && let Some(annotation) = Annotation::parse_option(key, value, &find::machine())
    {
        spec.annotations.push(annotation?);
        return Ok(());
    }
    if let Some((_, nothing)) = LATER.iter().find(|(known, _)| *known == key) {
        let asks_for_nothing = nothing.is_some_and(|nothing| match yes_no(key, value) {
            Ok(value) => nothing.parse() == Ok(value),
            Err(_) => nothing == value,
        });
        return if asks_for_nothing { Ok(()) } else { Err(format!("not supported yet: {key}={value}")) };
    }
    let keys = spec.kind.keys();
    if !keys.contains(&key) {
        let kind = spec.kind.name();
        let why = match nearest(key, keys.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None if keys.is_empty() => "it takes none".to_owned(),
            None => format!("it takes {}", keys.join(", ")),
        };
        return Err(format!("type={kind} has no option {key}; {why}"));
    }
    match key {
        "dest" if value.is_empty() => return Err("dest is empty".to_owned()),
        "dest" => spec.dest = Some(path(value)),
        "name" => spec.names.extend(value.split(',').filter(|name| !name.is_empty()).map(str::to_owned)),
        "platform-split" => spec.platform_split = Some(yes_no(key, value)?),
        "tar" => spec.tar = yes_no(key, value)?,
        "force-compression" => spec.force_compression = yes_no(key, value)?,
        "oci-mediatypes" => spec.oci_mediatypes = Some(yes_no(key, value)?),
        "push" => spec.push = yes_no(key, value)?,
        "push-by-digest" => spec.by_digest = yes_no(key, value)?,
        "registry.insecure" => spec.insecure = yes_no(key, value)?,
        EPOCH_KEY => spec.rewrite_timestamp = yes_no(key, value)?,
        "compression" => {
            spec.compression = Some(match value {
                "uncompressed" => CompressionName::Uncompressed,
                "gzip" => CompressionName::Gzip,
                "zstd" => CompressionName::Zstd,
                "estargz" => return Err("not supported yet: compression=estargz".to_owned()),
                other => {
                    let known = ["uncompressed", "gzip", "zstd"];
                    return Err(match nearest(other, known) {
                        Some(meant) => format!("unknown compression {other}; did you mean {meant}?"),
                        None => format!("unknown compression {other}; it is one of {}", known.join(", ")),
                    });
                }
            });
        }
        "compression-level" => {
            let level = value.parse().map_err(|_| format!("compression-level={value} is not a whole number"))?;
            spec.level = Some(level);
        }
        _ => unreachable!("{key} is in keys() of {:?} and has no arm", spec.kind),
    }
    Ok(())
}

pub(super) fn check_compression(spec: &OutputSpec) -> Result<(), String> {
    let Some(level) = spec.level else { return Ok(()) };
    let (name, most) = match spec.compression {
        Some(CompressionName::Uncompressed) => {
            return Err("compression-level means nothing with compression=uncompressed".to_owned());
        }
        None | Some(CompressionName::Gzip) => ("gzip", 9),
        Some(CompressionName::Zstd) => ("zstd", 22),
    };
    if (0..=most).contains(&level) {
        Ok(())
    } else {
        Err(format!("compression-level={level} is out of range: {name} has 0 to {most}"))
    }
}

/// A yes or a no, in any of the spellings that Docker's commands take.
fn yes_no(key: &str, value: &str) -> Result<bool, String> {
    super::args::values::yes_no(value).map_err(|_| format!("{key}={value} is neither true nor false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: OutputKind, dest: &str) -> OutputSpec {
        OutputSpec { dest: Some(Destination::Path(PathBuf::from(dest))), ..empty(kind) }
    }

    #[test]
    fn specifications_are_read_as_buildkit_reads_them() {
        use OutputKind::{CacheOnly, Docker, Image, Local, Oci, Registry, Tar};
        let stdout = |kind| OutputSpec { dest: Some(Destination::Stdout), ..empty(kind) };
        for (text, expected) in [
            ("out", file(Local, "out")),
            ("./a b", file(Local, "./a b")),
            ("a=b", file(Local, "a=b")),
            ("-", stdout(Tar)),
            ("type=local,dest=out", file(Local, "out")),
            ("TYPE=local, DEST=out", file(Local, "out")),
            ("type=tar", stdout(Tar)),
            ("type=tar,dest=-", stdout(Tar)),
            ("dest=x.tar,type=tar", file(Tar, "x.tar")),
            ("type=oci", stdout(Oci)),
            ("type=oci,dest=a.tar", file(Oci, "a.tar")),
            ("type=oci,dest=dir,tar=false", OutputSpec { tar: false, ..file(Oci, "dir") }),
            ("type=docker,dest=a.tar", file(Docker, "a.tar")),
            ("type=image", empty(Image)),
            ("type=image,push=false,unpack=false,store=true", empty(Image)),
            ("type=cacheonly", empty(CacheOnly)),
            ("type=registry", empty(Registry)),
            ("type=docker", empty(Docker)),
            ("type=image,name=a,name=b", OutputSpec { names: vec!["a".into(), "b".into()], ..empty(Image) }),
            ("type=local,dest=x,platform-split=false", OutputSpec { platform_split: Some(false), ..file(Local, "x") }),
            (
                "type=oci,dest=x,annotation-index.A.b=c",
                OutputSpec {
                    annotations: vec![Annotation {
                        carrier: crate::image::annotation::Carrier::Index,
                        platform: None,
                        key: "A.b".into(),
                        value: "c".into(),
                    }],
                    ..file(Oci, "x")
                },
            ),
            (
                "type=image,push=true,push-by-digest=true,registry.insecure=true",
                OutputSpec { push: true, by_digest: true, insecure: true, ..empty(Image) },
            ),
            (
                "type=image,push-by-digest=true,name-canonical=true,push=true",
                OutputSpec { push: true, by_digest: true, ..empty(Image) },
            ),
            ("type=image,name-canonical=false,name=a", OutputSpec { names: vec!["a".into()], ..empty(Image) }),
            (
                r#"type=oci,"name=a:1,b:2",dest=x"#,
                OutputSpec { names: vec!["a:1".into(), "b:2".into()], ..file(Oci, "x") },
            ),
            (r#"type=local,"dest=a ""b"",c""#, file(Local, r#"a "b",c"#)),
            ("type=local,dest=a=b", file(Local, "a=b")),
            (
                "type=oci,dest=x,compression=zstd,compression-level=22,force-compression=1,oci-mediatypes=T",
                OutputSpec {
                    compression: Some(CompressionName::Zstd),
                    level: Some(22),
                    force_compression: true,
                    oci_mediatypes: Some(true),
                    ..file(Oci, "x")
                },
            ),
            ("type=oci,dest=x,compression-level=0", OutputSpec { level: Some(0), ..file(Oci, "x") }),
            (
                "type=docker,dest=x,compression=uncompressed,rewrite-timestamp=true",
                OutputSpec {
                    compression: Some(CompressionName::Uncompressed),
                    rewrite_timestamp: true,
                    ..file(Docker, "x")
                },
            ),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (text, expected) in [
            ("", "--output needs a value: a directory, - (a tar on standard output), or type=…"),
            ("dest=out", "type= is missing: one of image, oci, docker, tar, local, cacheonly, registry"),
            ("a,b", "a is not key=value"),
            ("type=oci,", "an empty field; write key=value,key=value"),
            ("type=oci,dest=a,dest=b", "dest is given twice"),
            ("type=ocii", "unknown type ocii; did you mean oci?"),
            ("type=zip", "unknown type zip; the types are image, oci, docker, tar, local, cacheonly, registry"),
            ("type=registry,push=false", "type=registry pushes; push=false asks for nothing"),
            (
                "type=registry,dest=x",
                "type=registry has no option dest; it takes name, compression, compression-level, force-compression, \
                 oci-mediatypes, push, push-by-digest, registry.insecure, rewrite-timestamp",
            ),
            ("type=image,push=maybe", "push=maybe is neither true nor false"),
            ("type=image,annotation-indx.a=b", "indx carries no annotations; did you mean index?"),
            ("type=oci,annotation=b", "annotation: expected annotation.KEY=VALUE: the key is empty"),
            (
                "type=oci,annotation.a=b,oci-mediatypes=false",
                "Docker's manifests have no annotations; leave oci-mediatypes=false out",
            ),
            ("type=tar,annotation.a=b", "type=tar has no option annotation.a; it takes dest, rewrite-timestamp"),
            ("type=local,dest=x,mode=delete", "not supported yet: mode=delete"),
            ("type=image,name-canonical=true", "not supported yet: name-canonical=true without push-by-digest=true"),
            ("type=local", "type=local needs dest=DIR"),
            ("type=local,dest=-", "a directory cannot be written to standard output; type=tar can"),
            ("type=local,dest=", "dest is empty"),
            ("type=oci,tar=false", "with tar=false the result is a directory: it needs dest=DIR"),
            ("type=oci,dst=x", "type=oci has no option dst; did you mean dest?"),
            ("type=tar,name=x", "type=tar has no option name; it takes dest, rewrite-timestamp"),
            ("type=cacheonly,dest=x", "type=cacheonly has no option dest; it takes none"),
            ("type=oci,compression=gzp", "unknown compression gzp; did you mean gzip?"),
            ("type=oci,compression=lz4", "unknown compression lz4; it is one of uncompressed, gzip, zstd"),
            ("type=oci,compression=estargz", "not supported yet: compression=estargz"),
            ("type=oci,compression-level=x", "compression-level=x is not a whole number"),
            ("type=oci,compression-level=10", "compression-level=10 is out of range: gzip has 0 to 9"),
            (
                "type=oci,compression-level=1,compression=uncompressed",
                "compression-level means nothing with compression=uncompressed",
            ),
            ("type=oci,tar=perhaps", "tar=perhaps is neither true nor false"),
            (r#"type=oci,"dest=x"#, "a quote is not closed"),
            (r#"type=oci,"dest=x"y"#, "expected a comma before y"),
            (r#"type=oci,dest="x""#, r#"a quote in the middle of dest="x"; quote the whole field: "name=a,b""#),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.strip_prefix(&format!("--output {text}: ")).unwrap_or(&error), expected, "{text}");
        }
    }

    #[test]
    fn every_option_of_a_kind_can_be_set() {
        use OutputKind::{CacheOnly, Docker, Image, Local, Oci, Registry, Tar};
        for kind in [Image, Registry, Oci, Docker, Tar, Local, CacheOnly] {
            for key in kind.keys() {
                // Some value or other of each must get through to its arm.
                let set_it = |value: &str| set(&mut empty(kind), key, value).is_ok();
                assert!(["false", "1", "gzip"].into_iter().any(set_it), "{kind:?} {key}");
            }
        }
    }
}
