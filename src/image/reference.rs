//! Names of images: `nginx`, `ghcr.io/a/b:1`, `localhost:5000/x@sha256:…`.
//!
//! In: what a user typed. Out: [`Reference`]. What always holds: registry and repository are there, in the form that
//! registries want (`docker.io/library/nginx`), and each part keeps to the grammar of the distribution specification.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

const HUB: &str = "docker.io";
const OLD_HUB: &str = "index.docker.io";
const OFFICIAL: &str = "library/";

/// The name of an image: registry, repository, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing.
    #[error("the name of an image is empty")]
    Empty,
    /// Upper case outside of the host name and the tag.
    #[error("\"{name}\" is no name of an image: upper case is not allowed in \"{part}\" (did you mean \"{lower}\"?)")]
    UpperCase {
        /// What was typed.
        name: String,
        /// The part that has it.
        part: String,
        /// What was typed, in lower case where it must be.
        lower: String,
    },
    /// A part of the path does not keep to the grammar.
    #[error(
        "\"{name}\" is no name of an image: \"{part}\" is not made of lower-case letters and digits with single separators (. _ __ -) between them"
    )]
    Component {
        /// What was typed.
        name: String,
        /// The part.
        part: String,
    },
    /// The host name does not keep to the grammar.
    #[error("\"{name}\" is no name of an image: \"{host}\" is no host name with an optional port")]
    Host {
        /// What was typed.
        name: String,
        /// The host.
        host: String,
    },
    /// The tag does not keep to the grammar.
    #[error(
        "\"{name}\" is no name of an image: the tag \"{tag}\" is not one to 128 letters, digits, \"_\", \".\" and \"-\" with neither \".\" nor \"-\" first"
    )]
    Tag {
        /// What was typed.
        name: String,
        /// The tag.
        tag: String,
    },
    /// The digest is none.
    #[error("\"{name}\" is no name of an image: \"{digest}\" is no digest (sha256: and 64 hexadecimal digits)")]
    Digest {
        /// What was typed.
        name: String,
        /// The digest.
        digest: String,
    },
    /// More than 255 characters.
    #[error("\"{0}\" is no name of an image: registries take at most 255 characters")]
    TooLong(String),
    /// 64 hexadecimal digits: an id would be taken for a name.
    #[error("\"{0}\" is the id of an image, not a name")]
    Id(String),
    /// `https://…`.
    #[error("\"{0}\" is a URL, not the name of an image: leave out what stands before the host name")]
    Url(String),
}

impl Reference {
    /// Reads a name; the tag is `latest` where neither a tag nor a digest is given.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let name = || text.to_owned();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains("://") {
            return Err(ReferenceError::Url(name()));
        }
        if Digest::from_hex(text).is_some() {
            return Err(ReferenceError::Id(name()));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => match digest.parse() {
                Ok(parsed) => (rest, Some(parsed)),
                Err(_) => return Err(ReferenceError::Digest { name: name(), digest: digest.to_owned() }),
            },
        };
        // The last colon begins a tag unless a slash follows it: then it begins a port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { name: name(), tag: tag.to_owned() });
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, repository)) if is_registry(host) => (host, repository),
            _ => (HUB, path),
        };
        if !is_host(registry) {
            return Err(ReferenceError::Host { name: name(), host: registry.to_owned() });
        }
        let registry = if registry == OLD_HUB { HUB } else { registry };
        if let Some(part) = repository.split('/').find(|part| !is_component(part)) {
            let lower = part.to_ascii_lowercase();
            return Err(if is_component(&lower) {
                let small = repository.to_ascii_lowercase();
                ReferenceError::UpperCase {
                    name: name(),
                    part: part.to_owned(),
                    lower: text.replacen(repository, &small, 1),
                }
            } else {
                ReferenceError::Component { name: name(), part: part.to_owned() }
            });
        }
        let official = if registry == HUB && !repository.contains('/') { OFFICIAL } else { "" };
        let repository = format!("{official}{repository}");
        if registry.len() + 1 + repository.len() > 255 {
            return Err(ReferenceError::TooLong(name()));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// The host of the registry, with its port: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository, whole: `docker.io/library/nginx`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same without its tag, at that digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Registry and repository as Docker shows them: `nginx`, `user/app`, `ghcr.io/a/b`.
    pub fn familiar_name(&self) -> String {
        match self.repository.strip_prefix(OFFICIAL) {
            _ if self.registry != HUB => format!("{}/{}", self.registry, self.repository),
            // `library/a/b` cannot lose its prefix: `a/b` is something else.
            Some(name) if !name.contains('/') => name.to_owned(),
            // `localhost/a` without its registry would be one of another registry.
            _ if self.repository.split_once('/').is_some_and(|(first, _)| is_registry(first)) => {
                format!("{HUB}/{}", self.repository)
            }
            _ => self.repository.clone(),
        }
    }

    /// The name as Docker shows it: without what every Docker user leaves out, `latest` kept.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// The full form: `docker.io/library/nginx:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.registry, self.repository)))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// What Docker takes for a host before the first slash; anything else is a part of the path.
fn is_registry(host: &str) -> bool {
    host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `name[:port]` or `[address]:port`.
fn is_host(host: &str) -> bool {
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
        && match address {
            Some(address) => {
                !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
            }
            None => host.split('.').all(label),
        }
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.first().is_some_and(word)
        && bytes.last().is_some_and(word)
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_normalised_and_shown_as_docker_shows_them() {
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/localhost/a", "docker.io/localhost/a:latest", "docker.io/localhost/a:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("index.docker.io/library/nginx:x", "docker.io/library/nginx:x", "nginx:x"),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1", "ghcr.io/a/b:1"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("Host/x", "Host/x:latest", "Host/x:latest"),
            ("a__b--c.d_e", "docker.io/library/a__b--c.d_e:latest", "a__b--c.d_e:latest"),
            (SUM, &format!("docker.io/library/{SUM}"), SUM),
            ("a/b/c:V_1.-x", "docker.io/a/b/c:V_1.-x", "a/b/c:V_1.-x"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(full.parse(), Ok(reference), "{text}");
        }
        let reference: Reference = format!("nginx@{SUM}").parse().unwrap();
        assert_eq!(reference.to_string(), format!("docker.io/library/nginx@{SUM}"));
        assert_eq!((reference.tag(), reference.digest()), (None, SUM.parse().ok()));
        let reference: Reference = format!("a.b/c:t@{SUM}").parse().unwrap();
        assert_eq!(reference.familiar(), format!("a.b/c:t@{SUM}"));
        assert_eq!(reference.at(SUM.parse().unwrap()).to_string(), format!("a.b/c@{SUM}"));
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is empty"),
            ("Nginx", "did you mean \"nginx\"?"),
            ("ghcr.io/Me/App:V1", "did you mean \"ghcr.io/me/app:V1\"?"),
            ("a//b", "\"\" is not made of"),
            ("/a", "\"\" is not made of"),
            ("a/", "\"\" is not made of"),
            ("a..b", "\"a..b\" is not made of"),
            ("-a", "\"-a\" is not made of"),
            ("a_", "\"a_\" is not made of"),
            ("a___b", "\"a___b\" is not made of"),
            ("a b", "\"a b\" is not made of"),
            ("nginx:", "the tag \"\""),
            ("nginx:.x", "the tag \".x\""),
            ("nginx:a+b", "the tag \"a+b\""),
            ("nginx@sha256:12", "\"sha256:12\" is no digest"),
            ("-x.y/a", "\"-x.y\" is no host name"),
            ("x:/a", "\"x:\" is no host name"),
            ("https://ghcr.io/a", "is a URL"),
            (&SUM[7..], "is the id"),
            (&"a".repeat(300), "at most 255"),
            (&format!("a:{}", "t".repeat(129)), "the tag"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    /// The grammar in oci-spec is a regular expression whose compilation takes longer than a cached build, so the one
    /// above is our own; they must agree where they mean the same.
    #[test]
    fn the_grammar_is_that_of_oci_spec() {
        for text in [
            "a",
            "a:b",
            "a/b",
            "a.b/c",
            "a.b:5/c",
            "localhost/a",
            "a__b",
            "a___b",
            "a--b",
            "a-_b",
            "A",
            "a/B",
            "a:B",
            "a:-b",
            "a.",
            ".a",
            "a@b",
            "x/y/z:1.2",
            "a:b:c",
            "a/b:c/d",
            "xn--a.b/c",
            "a-.b/c",
            "1/2",
            "a b",
            "é",
        ] {
            let other: Result<oci_spec::distribution::Reference, _> = text.parse();
            assert_eq!(Reference::parse(text).is_ok(), other.is_ok(), "{text}");
            if let (Ok(own), Ok(other)) = (Reference::parse(text), other) {
                assert_eq!(own.to_string(), other.whole(), "{text}");
            }
        }
    }
}
