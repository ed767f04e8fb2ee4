//! What an image runs on: operating system, architecture, variant.
//!
//! In: a text such as `linux/arm64/v8` or `amd64`, or the fields of a document. Out: [`Platform`]. What always holds:
//! [`Platform::parse`] gives normalised values only (`x86_64` is `amd64`, `arm64/v8` is `arm64`), so two of them are
//! equal exactly when they mean the same.

use std::fmt;
use std::str::FromStr;

use crate::diagnostic::nearest;

/// Operating system, architecture, variant; fields that were not given are empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `386`, `ppc64le`, `s390x`, `riscv64`…
    pub architecture: String,
    /// `v7` of arm; empty where there is only one.
    pub variant: String,
    /// The version of Windows; empty elsewhere.
    pub os_version: String,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// Nothing, or an empty part.
    #[error("\"{0}\" is no platform: expected os/architecture[/variant], such as linux/amd64")]
    Malformed(String),
    /// A single word that is neither an operating system nor an architecture.
    #[error(
        "\"{0}\" is neither an operating system nor an architecture: expected os/architecture[/variant], such as linux/amd64"
    )]
    UnknownWord(String),
    /// An operating system or an architecture that nobody knows, a variant that the architecture does not have.
    #[error("\"{text}\" is no platform that is known: there is no {what} {part}{}", .meant.as_ref().map_or_else(String::new, |meant| format!("; did you mean {meant}?")))]
    Unknown {
        /// The platform.
        text: String,
        /// `architecture`…
        what: &'static str,
        /// The part that is not known.
        part: String,
        /// What may have been meant.
        meant: Option<String>,
    },
}

const SYSTEMS: [&str; 14] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
];

const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "armbe",
    "arm64be",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// The variants of architectures that have some; those of others are not looked at.
const VARIANTS: [(&str, &[&str]); 3] =
    [("amd64", &["v2", "v3", "v4"]), ("arm", &["v5", "v6", "v7", "v8"]), ("arm64", &["v8", "v9"])];

impl Platform {
    /// A platform of these parts, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os_version: String::new(),
        }
        .normalised()
    }

    /// Reads `os/architecture[/variant]`, `os(version)/architecture`, or a single word of either kind: an operating
    /// system gets the architecture of `here`, an architecture its operating system.
    pub fn parse(text: &str, here: &Self) -> Result<Self, PlatformError> {
        let malformed = || PlatformError::Malformed(text.to_owned());
        let part = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            !part.is_empty() && part.chars().all(known)
        };
        let mut parts = text.split('/');
        // `split` gives at least one part.
        let first = parts.next().unwrap_or_default();
        let (os, os_version) = match first.split_once('(') {
            None => (first, ""),
            Some((os, rest)) => (os, rest.strip_suffix(')').filter(|version| part(version)).ok_or_else(malformed)?),
        };
        let (architecture, variant) = (parts.next(), parts.next());
        if parts.next().is_some() || !part(os) || ![architecture, variant].into_iter().flatten().all(part) {
            return Err(malformed());
        }
        let mut platform = if let Some(architecture) = architecture {
            Self::new(os, architecture, variant.unwrap_or_default())
        } else {
            let word = Self::new(os, os, "");
            if SYSTEMS.contains(&word.os.as_str()) {
                let variant = if word.os == here.os { here.variant.as_str() } else { "" };
                Self::new(os, &here.architecture, variant)
            } else if ARCHITECTURES.contains(&word.architecture.as_str()) && os_version.is_empty() {
                Self { os: here.os.clone(), ..word }
            } else {
                return Err(PlatformError::UnknownWord(text.to_owned()));
            }
        };
        os_version.clone_into(&mut platform.os_version);
        Ok(platform)
    }

    /// The list of platforms that a user wants, each once: parts of it may be lists with commas, and `local` is `here`. What
    /// nobody knows is refused.
    pub fn parse_list<'a>(parts: impl IntoIterator<Item = &'a str>, here: &Self) -> Result<Vec<Self>, PlatformError> {
        let mut list = Vec::new();
        for word in parts.into_iter().flat_map(|part| part.split(',')).map(str::trim) {
            let platform = if word == "local" { here.clone() } else { Self::parse(word, here)?.known(word)? };
            if !list.contains(&platform) {
                list.push(platform);
            }
        }
        Ok(list)
    }

    /// The platform, if there is such a one; `text` is what was written.
    fn known(self, text: &str) -> Result<Self, PlatformError> {
        let check = |what, part: &str, known: &[&str], ladder: bool| {
            let first = part.split('.').next().unwrap_or_default();
            if known.contains(&part) || ladder && known.contains(&first) {
                return Ok(());
            }
            let meant = nearest(part, known.iter().copied()).map(str::to_owned);
            Err(PlatformError::Unknown { text: text.to_owned(), what, part: part.to_owned(), meant })
        };
        if ARCHITECTURES.contains(&self.os.as_str()) {
            let (text, part, meant) = (text.to_owned(), self.os.clone(), Some(format!("linux/{text}")));
            return Err(PlatformError::Unknown { text, what: "operating system", part, meant });
        }
        check("operating system", &self.os, &SYSTEMS, false)?;
        check("architecture", &self.architecture, &ARCHITECTURES, false)?;
        let variants = VARIANTS.iter().find(|(architecture, _)| *architecture == self.architecture);
        if let Some((_, variants)) = variants.filter(|_| !self.variant.is_empty()) {
            check("variant", &self.variant, variants, true)?;
        }
        Ok(self)
    }

    /// Linux on a machine that its kernel calls `machine`: `x86_64`, `aarch64`, `armv7l`…
    pub fn of_kernel(machine: &str) -> Self {
        let (architecture, variant) = match machine {
            "armv5tel" | "armv5tejl" | "armv5te" => ("arm", "v5"),
            "armv6l" => ("arm", "v6"),
            // A 32-bit program on a 64-bit processor.
            "armv7l" | "armv7hl" | "armv8l" => ("arm", "v7"),
            "i486" | "i586" => ("386", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self::new("linux", architecture, variant)
    }

    /// The same by the names that Go and the OCI specification use, variants that say nothing left out.
    pub fn normalised(mut self) -> Self {
        self.os.make_ascii_lowercase();
        if self.os == "macos" {
            "darwin".clone_into(&mut self.os);
        }
        self.architecture.make_ascii_lowercase();
        self.variant.make_ascii_lowercase();
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("i386" | "i686" | "x86", _) => ("386", ""),
            ("386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            _ => return self,
        };
        Self { architecture: architecture.to_owned(), variant: variant.to_owned(), ..self }
    }

    /// How well an image for `offered` serves one who wants `self`: `None` when it does not run, else the smaller the
    /// better. An ARM or amd64 processor runs images for older variants of itself, and a 64-bit ARM one 32-bit images.
    pub fn fit(&self, offered: &Self) -> Option<u32> {
        let (wanted, offered) = (self.clone().normalised(), offered.clone().normalised());
        if wanted.os != offered.os
            || !wanted.os_version.is_empty() && !same_build(&wanted.os_version, &offered.os_version)
        {
            return None;
        }
        if wanted == offered {
            return Some(0);
        }
        let wanted_level = level(&wanted)?;
        let offered_level = level(&offered)?;
        match (wanted.architecture.as_str(), offered.architecture.as_str()) {
            (a, b) if a == b => match (wanted_level, offered_level) {
                (Some(wanted), Some(offered)) => wanted.checked_sub(offered),
                _ => (wanted.variant == offered.variant).then_some(0),
            },
            ("arm64", "arm") => Some(100 + 8u32.checked_sub(offered_level?)?),
            _ => None,
        }
    }

    /// Whether `offered` is this one: what merely runs on it too, such as arm on arm64, is another.
    pub fn is(&self, offered: &Self) -> bool {
        (&self.os, &self.architecture) == (&offered.os, &offered.architecture) && self.fit(offered).is_some()
    }

    /// The index of the best of `offered`, the first of equals.
    pub fn best<'a>(&self, offered: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        let fits = offered.into_iter().enumerate().filter_map(|(i, platform)| Some((self.fit(platform)?, i)));
        fits.min().map(|(_, i)| i)
    }
}

/// The number in the variant of a platform whose variants are a ladder; the outer `None` is a variant that is none.
#[allow(clippy::option_option)]
fn level(platform: &Platform) -> Option<Option<u32>> {
    let number = |default: u32| match platform.variant.strip_prefix('v') {
        None if platform.variant.is_empty() => Some(Some(default)),
        None => None,
        Some(number) => number.split('.').next().and_then(|number| number.parse().ok()).map(Some),
    };
    match platform.architecture.as_str() {
        "amd64" => number(1),
        "arm" => number(7),
        "arm64" => number(8),
        _ => Some(None),
    }
}

/// Whether two versions of Windows agree in their first three numbers.
fn same_build(a: &str, b: &str) -> bool {
    a.split('.').take(3).eq(b.split('.').take(3))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if !self.os_version.is_empty() {
            write!(f, "({})", self.os_version)?;
        }
        for part in [&self.architecture, &self.variant].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "/{part}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os/architecture[/variant]`; single words are taken for those of Linux on amd64.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, &Self::new("linux", "amd64", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_normalised() {
        let here = Platform::new("linux", "arm", "v6");
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/5", "linux/arm/v5"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("s390x", "linux/s390x"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("linux/unheard-of", "linux/unheard-of"),
        ] {
            let platform = Platform::parse(text, &here).unwrap();
            assert_eq!(platform.to_string(), expected, "{text}");
            assert_eq!(platform.clone().normalised(), platform, "{text}");
        }
        for text in ["", "/", "linux/", "linux//v7", "linux/arm/v7/x", "linux/a b", "win(", "win()/x", "linux,arm/x"] {
            assert_eq!(Platform::parse(text, &here), Err(PlatformError::Malformed(text.into())), "{text}");
        }
        assert_eq!(Platform::parse("vax", &here), Err(PlatformError::UnknownWord("vax".into())));
    }

    #[test]
    fn lists_hold_each_platform_once() {
        let here = Platform::new("linux", "arm64", "");
        for (parts, expected) in [
            (&["linux/amd64,linux/arm64/v8", "arm64"][..], Ok("linux/amd64 linux/arm64")),
            (&["linux/x86_64, amd64 ,linux/amd64/v1"], Ok("linux/amd64")),
            (&["local", "linux/arm/v7,linux/arm"], Ok("linux/arm64 linux/arm/v7")),
            (&["linux/amd64/v2,linux/amd64"], Ok("linux/amd64/v2 linux/amd64")),
            (&["linux/arm64/v8.2"], Ok("linux/arm64/v8.2")),
            (&["windows/amd64"], Ok("windows/amd64")),
            (&[""], Err("\"\" is no platform: expected")),
            (&["linux/amd64,"], Err("\"\" is no platform: expected")),
            (&["linux/amd46"], Err("there is no architecture amd46; did you mean amd64?")),
            (&["linuks/amd64"], Err("there is no operating system linuks; did you mean linux?")),
            (&["arm64/v8"], Err("there is no operating system arm64; did you mean linux/arm64/v8?")),
            (&["linux/vax"], Err("there is no architecture vax")),
            (&["linux/amd64/v7"], Err("there is no variant v7")),
            (&["vax"], Err("neither an operating system nor an architecture")),
        ] {
            let found = Platform::parse_list(parts.iter().copied(), &here);
            let found = found.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{parts:?}"),
                (Err(found), Err(expected)) => assert!(found.to_string().contains(expected), "{parts:?}: {found}"),
                (found, _) => panic!("{parts:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn kernels_have_names_of_their_own() {
        for (machine, expected) in [
            ("x86_64", "linux/amd64"),
            ("i686", "linux/386"),
            ("i586", "linux/386"),
            ("aarch64", "linux/arm64"),
            ("armv6l", "linux/arm/v6"),
            ("armv8l", "linux/arm/v7"),
            ("ppc64le", "linux/ppc64le"),
            ("riscv64", "linux/riscv64"),
        ] {
            assert_eq!(Platform::of_kernel(machine).to_string(), expected);
        }
    }

    #[test]
    fn the_nearest_platform_that_runs_is_taken() {
        for (wanted, offered, expected) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some(1)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], Some(1)),
            ("linux/arm/v5", &["linux/arm/v6", "linux/arm/v7"], None),
            ("linux/arm64", &["linux/arm/v6", "linux/arm/v7"], Some(1)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"], Some(1)),
            ("linux/s390x", &["linux/s390x/a", "linux/s390x"], Some(1)),
            ("linux/arm64/odd", &["linux/arm64", "linux/arm64/odd"], Some(1)),
            ("windows(10.0.17763.1)/amd64", &["windows(10.0.1.1)/amd64", "windows(10.0.17763.9)/amd64"], Some(1)),
            ("linux/amd64", &["windows/amd64", "linux/386"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64"], Some(0)),
        ] {
            let offered: Vec<Platform> = offered.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(wanted.parse::<Platform>().unwrap().best(&offered), expected, "{wanted} of {offered:?}");
        }
    }
}
