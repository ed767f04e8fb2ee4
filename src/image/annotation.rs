//! Annotations that a user asks for: which key and value go onto which document.
//!
//! In: `manifest[linux/amd64],index:key=value` of `--annotation`, `annotation-index.key=value` of `-o`. Out:
//! [`Annotation`]s, and what of them belongs onto one document. What always holds: of two for the same key at the same
//! place the later one counts.

use std::collections::BTreeMap;

use crate::diagnostic::nearest;
use crate::image::platform::Platform;

/// What carries the annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// The manifest of each image.
    Manifest,
    /// The descriptor of that manifest.
    ManifestDescriptor,
    /// The index over several images.
    Index,
    /// The descriptor of that index.
    IndexDescriptor,
}

const CARRIERS: [(&str, Carrier); 4] = [
    ("manifest", Carrier::Manifest),
    ("manifest-descriptor", Carrier::ManifestDescriptor),
    ("index", Carrier::Index),
    ("index-descriptor", Carrier::IndexDescriptor),
];

impl Carrier {
    fn parse(text: &str) -> Result<Self, String> {
        let names = CARRIERS.map(|(name, _)| name);
        CARRIERS.iter().find(|(name, _)| *name == text).map(|(_, carrier)| *carrier).ok_or_else(|| {
            match nearest(text, names) {
                Some(meant) => format!("{text} carries no annotations; did you mean {meant}?"),
                None => format!("{text} carries no annotations; these do: {}", names.join(", ")),
            }
        })
    }

    /// The name that users write.
    pub fn name(self) -> &'static str {
        // Proof: every case is in the table.
        CARRIERS.iter().find(|(_, carrier)| *carrier == self).map_or("", |(name, _)| name)
    }
}

/// One key and value for one kind of document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// What it stands on.
    pub carrier: Carrier,
    /// For which platform alone; `None` is all.
    pub platform: Option<Platform>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Annotation {
    /// Reads what follows `--annotation`: `[CARRIER[PLATFORM],…:]KEY=VALUE`.
    pub fn parse_flag(text: &str, here: &Platform) -> Result<Vec<Self>, String> {
        let (key, value) = text.split_once('=').ok_or_else(expected)?;
        // A key may hold colons itself: a prefix is one only if it names carriers.
        let (carriers, key) = match key.split_once(':') {
            Some((prefix, rest)) if is_prefix(prefix) => (prefix, rest),
            _ => ("manifest", key),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(expected());
        }
        let one = |carrier: &str| {
            let (carrier, platform) = place(carrier, here)?;
            Ok(Self { carrier, platform, key: key.to_owned(), value: value.to_owned() })
        };
        carriers.split(',').map(one).collect()
    }

    /// Reads an option of `-o`: `annotation[-CARRIER][PLATFORM].KEY`. `None` where it is another option.
    pub fn parse_option(option: &str, value: &str, here: &Platform) -> Option<Result<Self, String>> {
        let rest = option.strip_prefix("annotation")?;
        let (place_text, key) = match rest.find(']').or(Some(0)).and_then(|from| Some(from + rest[from..].find('.')?)) {
            Some(dot) => (&rest[..dot], &rest[dot + 1..]),
            None => (rest, ""),
        };
        let place_text = match place_text.strip_prefix('-') {
            Some(carrier) => carrier.to_owned(),
            None if place_text.is_empty() || place_text.starts_with('[') => format!("manifest{place_text}"),
            None => return None,
        };
        if key.is_empty() {
            return Some(Err(format!("{option}: expected annotation.KEY=VALUE: the key is empty")));
        }
        Some(place(&place_text, here).map(|(carrier, platform)| Self {
            carrier,
            platform,
            key: key.to_owned(),
            value: value.to_owned(),
        }))
    }
}

fn expected() -> String {
    "expected KEY=VALUE, or what carries it before: manifest:KEY=VALUE, index:…, manifest[linux/amd64]:…".to_owned()
}

/// Whether what stands before a colon names carriers: none of them has a dot, which keys usually have.
fn is_prefix(text: &str) -> bool {
    let carrier = |part: &str| part.split('[').next().unwrap_or_default().to_owned();
    !text.is_empty()
        && text.split(',').all(|part| {
            let carrier = carrier(part);
            !carrier.is_empty() && carrier.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-')
        })
}

/// `manifest` or `manifest[linux/amd64]`.
fn place(text: &str, here: &Platform) -> Result<(Carrier, Option<Platform>), String> {
    let (carrier, platform) = match text.split_once('[') {
        None => (text, None),
        Some((carrier, rest)) => {
            let platform = rest.strip_suffix(']').ok_or_else(|| format!("{text}: the bracket is not closed"))?;
            (carrier, Some(Platform::parse(platform, here).map_err(|error| error.to_string())?))
        }
    };
    let carrier = Carrier::parse(carrier)?;
    if platform.is_some() && matches!(carrier, Carrier::Index | Carrier::IndexDescriptor) {
        return Err(format!("{text}: an index is for all platforms; leave the brackets out"));
    }
    Ok((carrier, platform))
}

/// What of `all` stands on `carrier` for `platform`; an index has no platform.
pub fn annotations_of(all: &[Annotation], carrier: Carrier, platform: Option<&Platform>) -> BTreeMap<String, String> {
    let fits = |annotation: &&Annotation| {
        annotation.carrier == carrier
            && annotation.platform.as_ref().is_none_or(|wanted| platform.is_some_and(|own| own == wanted))
    };
    // What is for one platform says more than what is for all.
    let (general, special): (Vec<_>, Vec<_>) =
        all.iter().filter(fits).partition(|annotation| annotation.platform.is_none());
    let pair = |annotation: &Annotation| (annotation.key.clone(), annotation.value.clone());
    general.into_iter().chain(special).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(annotation: &Annotation) -> String {
        let platform = annotation.platform.as_ref().map_or_else(String::new, |platform| format!("[{platform}]"));
        format!("{}{platform} {}={}", annotation.carrier.name(), annotation.key, annotation.value)
    }

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        let here = Platform::new("linux", "amd64", "");
        for (text, expected) in [
            ("a=b", Ok("manifest a=b")),
            ("a=", Ok("manifest a=")),
            ("org.opencontainers.image.title=a=b:c", Ok("manifest org.opencontainers.image.title=a=b:c")),
            ("index:a=b", Ok("index a=b")),
            ("index,manifest:a=b", Ok("index a=b; manifest a=b")),
            ("manifest[linux/arm64/v8]:a=b", Ok("manifest[linux/arm64] a=b")),
            ("manifest[arm64],index-descriptor:a=b", Ok("manifest[linux/arm64] a=b; index-descriptor a=b")),
            ("manifest-descriptor:a=b", Ok("manifest-descriptor a=b")),
            ("com.example:a=b", Ok("manifest com.example:a=b")),
            ("a", Err("expected KEY=VALUE")),
            ("=b", Err("expected KEY=VALUE")),
            ("index:=b", Err("expected KEY=VALUE")),
            ("indx:a=b", Err("did you mean index?")),
            ("layer:a=b", Err("these do: manifest, manifest-descriptor, index, index-descriptor")),
            ("manifest[linux:a=b", Err("the bracket is not closed")),
            ("manifest[vax]:a=b", Err("\"vax\" is neither")),
            ("index[linux/amd64]:a=b", Err("leave the brackets out")),
        ] {
            let found = Annotation::parse_flag(text, &here);
            let found = found.map(|list| list.iter().map(show).collect::<Vec<_>>().join("; "));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn options_are_read_as_buildkit_reads_them() {
        let here = Platform::new("linux", "amd64", "");
        for (option, expected) in [
            ("annotation.a.b", Some(Ok("manifest a.b=v"))),
            ("annotation-manifest.a", Some(Ok("manifest a=v"))),
            ("annotation-index.a.b", Some(Ok("index a.b=v"))),
            ("annotation-manifest-descriptor.a", Some(Ok("manifest-descriptor a=v"))),
            ("annotation[linux/arm/v7].a", Some(Ok("manifest[linux/arm/v7] a=v"))),
            ("annotation-manifest[linux/amd64].a", Some(Ok("manifest[linux/amd64] a=v"))),
            ("annotation", Some(Err("the key is empty"))),
            ("annotation.", Some(Err("the key is empty"))),
            ("annotation-indx.a", Some(Err("did you mean index?"))),
            ("annotations.a", None),
            ("name", None),
        ] {
            match (Annotation::parse_option(option, "v", &here), expected) {
                (None, None) => {}
                (Some(Ok(found)), Some(Ok(expected))) => assert_eq!(show(&found), expected, "{option}"),
                (Some(Err(found)), Some(Err(expected))) => assert!(found.contains(expected), "{option}: {found}"),
                (found, _) => panic!("{option}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_later_and_the_nearer_count() {
        let here = Platform::new("linux", "amd64", "");
        let mut all = Vec::new();
        for text in ["manifest[linux/amd64]:a=1", "a=2", "b=3", "b=4", "index:c=5"] {
            all.extend(Annotation::parse_flag(text, &here).unwrap());
        }
        let arm = Platform::new("linux", "arm64", "");
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(annotations_of(&all, Carrier::Manifest, Some(&here)), map(&[("a", "1"), ("b", "4")]));
        assert_eq!(annotations_of(&all, Carrier::Manifest, Some(&arm)), map(&[("a", "2"), ("b", "4")]));
        assert_eq!(annotations_of(&all, Carrier::Index, None), map(&[("c", "5")]));
    }
}
