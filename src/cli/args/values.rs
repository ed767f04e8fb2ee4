//! The small values that flags take.
//!
//! In: the text after a flag. Out: what it means, or a reason that fits after "invalid value 'X' for '--flag': ".

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::image::platform::Platform;
pub(crate) use crate::plan::bytes;
use crate::plan::remote::{self, Remote};

/// A yes or a no, as Docker's flags take it.
pub(crate) fn yes_no(text: &str) -> Result<bool, String> {
    crate::plan::scope::yes_no(text).ok_or_else(|| "expected true or false".to_owned())
}

/// A number of things that there must be.
pub(crate) fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a number of at least 1".to_owned())
}

/// A value that must hold something.
pub(crate) fn some(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// `K=V`; `K` alone is `K=`, as for Docker's labels.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err("expected KEY=VALUE: the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `K=V`, or `K` for the value that the environment has.
pub(crate) fn build_arg(text: &str) -> Result<(String, Option<String>), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err("expected NAME=VALUE or NAME: the name is empty".to_owned());
    }
    Ok((key.to_owned(), value))
}

/// The address of `--add-host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostAddress {
    /// As written.
    Ip(IpAddr),
    /// `host-gateway`: that of this machine, as RUN sees it.
    Gateway,
}

/// `HOST:IP` or `HOST=IP`; an IPv6 address may stand in brackets.
pub(crate) fn host(text: &str) -> Result<(String, HostAddress), String> {
    let expected = || "expected HOST:IP, such as db:10.0.0.7".to_owned();
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(expected)?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(expected());
    }
    if address == "host-gateway" {
        return Ok((name.to_owned(), HostAddress::Gateway));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = bare.parse().map_err(|_| format!("{address} is no IP address"))?;
    Ok((name.to_owned(), HostAddress::Ip(address)))
}

/// Where a named context comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory: relative to the working directory.
    Directory(PathBuf),
    /// `oci-layout://DIR[:TAG|@DIGEST]`.
    OciLayout {
        /// The directory, with all that was written after `oci-layout://` but the tag or digest.
        dir: PathBuf,
        /// Which of its images: `:TAG` or `@DIGEST`.
        pick: Option<Pick>,
    },
    /// `oci-archive://FILE`.
    OciArchive(PathBuf),
    /// `docker-image://REF`.
    Image(String),
    /// A git repository, or the URL of a tar.
    Remote(Remote),
}

/// One of several images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// By the name it has there.
    Tag(String),
    /// By its digest, as written.
    Digest(String),
}

/// `NAME=VALUE` of `--build-context`.
pub(crate) fn build_context(text: &str) -> Result<(String, NamedContext), String> {
    let expected = "expected NAME=VALUE, VALUE being a directory, oci-layout://DIR, oci-archive://FILE, \
                    docker-image://NAME, or the URL of a git repository or a tar";
    let (name, value) = text.split_once('=').ok_or(expected)?;
    if name.is_empty() || value.is_empty() {
        return Err(expected.to_owned());
    }
    if let Some((bare, platform)) = name.rsplit_once("::") {
        let platform: Result<Platform, _> = platform.parse();
        platform.map_err(|why| format!("{name}: what follows :: is a platform: {why}"))?;
        if bare.is_empty() {
            return Err(expected.to_owned());
        }
    }
    let context = if let Some(rest) = value.strip_prefix("oci-layout://") {
        let (dir, pick) = oci_layout(some_after(rest, "oci-layout://")?);
        NamedContext::OciLayout { dir: PathBuf::from(dir), pick }
    } else if let Some(file) = value.strip_prefix("oci-archive://") {
        NamedContext::OciArchive(PathBuf::from(some_after(file, "oci-archive://")?))
    } else if let Some(image) = value.strip_prefix("docker-image://") {
        NamedContext::Image(some_after(image, "docker-image://")?.to_owned())
    } else if let Some(remote) = remote::parse_context(value) {
        NamedContext::Remote(remote?)
    } else {
        NamedContext::Directory(PathBuf::from(value))
    };
    Ok((name.to_owned(), context))
}

fn some_after<'a>(value: &'a str, scheme: &str) -> Result<&'a str, String> {
    if value.is_empty() { Err(format!("nothing follows {scheme}")) } else { Ok(value) }
}

/// Splits `DIR[:TAG|@DIGEST]`. A tag holds no slash, so `./a:b/c` is a directory.
fn oci_layout(text: &str) -> (&str, Option<Pick>) {
    if let Some((dir, digest)) = text.rsplit_once('@')
        && digest.contains(':')
        && !digest.contains('/')
    {
        // `DIR:TAG@DIGEST`: the digest says it all.
        let dir = dir.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(dir, |(dir, _)| dir);
        return (dir, Some(Pick::Digest(digest.to_owned())));
    }
    match text.rsplit_once(':') {
        Some((dir, tag)) if !tag.is_empty() && !tag.contains('/') && !dir.is_empty() => {
            (dir, Some(Pick::Tag(tag.to_owned())))
        }
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("db:10.0.0.7", Some(("db", "10.0.0.7"))),
            ("db=10.0.0.7", Some(("db", "10.0.0.7"))),
            ("db:::1", Some(("db", "::1"))),
            ("db=[fe80::1]", Some(("db", "fe80::1"))),
            ("db", None),
            (":1.2.3.4", None),
            ("db:", None),
            ("a b:1.2.3.4", None),
        ] {
            let expected = expected.map(|(name, address)| (name.to_owned(), HostAddress::Ip(address.parse().unwrap())));
            assert_eq!(host(text).ok(), expected, "{text}");
        }
        assert_eq!(host("db=host-gateway"), Ok(("db".to_owned(), HostAddress::Gateway)));
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("64m", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("1.5k", Some(1536)),
            ("1 g", Some(1 << 30)),
            ("5b", Some(5)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("-1", None),
            ("1.2.3", None),
            ("99999999t", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn named_contexts() {
        let layout = |dir: &str, pick| NamedContext::OciLayout { dir: PathBuf::from(dir), pick };
        let digest = "sha256:aa";
        for (value, expected) in [
            ("dir", NamedContext::Directory("dir".into())),
            ("../a:b", NamedContext::Directory("../a:b".into())),
            ("oci-layout:///bases/busybox", layout("/bases/busybox", None)),
            ("oci-layout://b:1.0", layout("b", Some(Pick::Tag("1.0".into())))),
            ("oci-layout://./a:b/c", layout("./a:b/c", None)),
            (&format!("oci-layout://b@{digest}"), layout("b", Some(Pick::Digest(digest.into())))),
            (&format!("oci-layout://b:t@{digest}"), layout("b", Some(Pick::Digest(digest.into())))),
            ("oci-layout://me@home", layout("me@home", None)),
            ("oci-archive://x.tar", NamedContext::OciArchive("x.tar".into())),
            ("docker-image://alpine:3", NamedContext::Image("alpine:3".into())),
        ] {
            assert_eq!(build_context(&format!("n={value}")), Ok(("n".to_owned(), expected)), "{value}");
        }
        for value in ["https://x/y.git#main:sub", "git@github.com:a/b", "github.com/a/b", "https://x/y.tar.gz"] {
            let remote = remote::parse_context(value).unwrap().unwrap();
            assert_eq!(build_context(&format!("n={value}")), Ok(("n".to_owned(), NamedContext::Remote(remote))));
        }
        let one = NamedContext::Directory("d".into());
        assert_eq!(build_context("n::linux/arm64=d"), Ok(("n::linux/arm64".to_owned(), one)));
        for bad in [
            "n::what ever=d",
            "::linux/arm64=d",
            "n",
            "=x",
            "n=",
            "n=s3://b/x",
            "n=https://x/y.git?what=1",
            "n=oci-layout://",
            "n=docker-image://",
        ] {
            assert!(build_context(bad).is_err(), "{bad}");
        }
    }
}
