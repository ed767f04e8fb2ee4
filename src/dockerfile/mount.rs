//! `RUN --mount=…`: its options, typed and checked.
//!
//! In: the value of the flag. Out: a [`Mount`]. What always holds: an option that does not exist, or that its type of
//! mount does not have, is an error with the nearest name; the order of options does not matter.

use super::ast::{Mount, MountKind, Word};
use super::flags::meant;
use super::parser;
use crate::diagnostic::{Diagnostic, Span};

const KEYS: [&str; 19] = [
    "type",
    "target",
    "dst",
    "destination",
    "source",
    "src",
    "from",
    "id",
    "sharing",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "env",
    "size",
    "mode",
    "uid",
    "gid",
];

const SHARING: [&str; 3] = ["shared", "private", "locked"];

impl MountKind {
    /// Every type of mount.
    pub const ALL: [Self; 5] = [Self::Bind, Self::Cache, Self::Tmpfs, Self::Secret, Self::Ssh];

    /// The value of `type=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }

    /// Whether mounts of this type have that option. `from`, `source` and `id` are read and mean nothing for some.
    fn takes(self, key: &str) -> bool {
        match key {
            "required" => matches!(self, Self::Secret | Self::Ssh),
            "size" => self == Self::Tmpfs,
            "sharing" => self == Self::Cache,
            "env" => self == Self::Secret,
            "mode" | "uid" | "gid" => matches!(self, Self::Secret | Self::Ssh | Self::Cache),
            "from" => self != Self::Secret,
            _ => true,
        }
    }
}

impl Mount {
    /// Reads the value of a `--mount` flag; `flag` is where the whole flag stands.
    pub(super) fn read(value: &Word, flag: Span) -> Result<Self, Diagnostic> {
        let Some(fields) = parser::options(&value.text).filter(|_| !value.text.is_empty()) else {
            return Err(Diagnostic::error(value.span, format!("cannot read the mount {:?}", value.text))
                .label("not key=value,key=value,…")
                .help("options are separated by commas; an option that holds a comma goes into double quotes"));
        };
        // Where the flag was written without quotes and continuations, offsets in its text are offsets in the source.
        let exact = value.span.end - value.span.start == value.text.len();
        let span = |start: usize, end: usize| {
            if exact { Span::new(value.span.start + start, value.span.start + end) } else { value.span }
        };
        let options = fields.into_iter().map(|field| match field.text.split_once('=') {
            Some((key, text)) => {
                let start = (field.at.start + key.len() + 1).min(field.at.end);
                (
                    Word { text: key.to_lowercase(), span: span(field.at.start, field.at.end) },
                    Some(Word { text: text.to_owned(), span: span(start, field.at.end) }),
                )
            }
            None => (Word { text: field.text.to_lowercase(), span: span(field.at.start, field.at.end) }, None),
        });
        Self::typed(options.collect(), flag)
    }

    /// The same mount with every value but `from` expanded by `expand`, and checked again.
    ///
    /// Needed where [`Mount::deferred`] is set; elsewhere the fields can be expanded one by one as well.
    pub fn expand(&self, expand: &mut dyn FnMut(&Word) -> Result<String, Diagnostic>) -> Result<Self, Diagnostic> {
        let mut options = Vec::with_capacity(self.options.len());
        for (key, value) in &self.options {
            let value = match value {
                Some(value) if key != "from" => Some(Word { text: expand(value)?, span: value.span }),
                other => other.clone(),
            };
            options
                .push((Word { text: key.clone(), span: value.as_ref().map_or(self.span, |value| value.span) }, value));
        }
        let mut mount = Self::typed(options, self.span)?;
        mount.deferred = false;
        Ok(mount)
    }

    fn typed(options: Vec<(Word, Option<Word>)>, flag: Span) -> Result<Self, Diagnostic> {
        let mut mount = Self { span: flag, ..Self::default() };
        for (key, value) in &options {
            mount.set(key, value.as_ref())?;
        }
        let name = mount.kind.name();
        for (key, _) in options.iter().filter(|_| !mount.deferred) {
            if !mount.kind.takes(&key.text) {
                return Err(Diagnostic::error(
                    key.span,
                    format!("unexpected key '{}' for mount type '{name}'", key.text),
                )
                .label(format!("{name} mounts have no such option")));
            }
        }
        if mount.kind == MountKind::Secret {
            if mount.source.is_some() && mount.id.is_some() {
                return Err(Diagnostic::error(flag, "a secret mount has either an id or a source")
                    .help("source is another name for id here: keep one of them"));
            }
            if mount.source.is_none() && mount.id.is_none() && mount.target.is_none() {
                return Err(Diagnostic::error(flag, "a secret mount needs an id")
                    .help("write --mount=type=secret,id=NAME, where NAME is the id of a --secret of the build"));
            }
        }
        mount.options = options.into_iter().map(|(key, value)| (key.text, value)).collect();
        Ok(mount)
    }

    fn set(&mut self, key: &Word, value: Option<&Word>) -> Result<(), Diagnostic> {
        let name = key.text.as_str();
        if !KEYS.contains(&name) {
            let error = Diagnostic::error(key.span, format!("unexpected key '{name}' in a mount"));
            return Err(match meant(name, KEYS.into_iter()) {
                Some(meant) => error.label(format!("did you mean {meant}?")),
                None => error.label("no such option"),
            }
            .help("options: type, target, source, from, id, sharing, ro, rw, required, env, size, mode, uid, gid"));
        }
        let Some(value) = value else {
            match name {
                "ro" | "readonly" => self.read_only = Some(true),
                "rw" | "readwrite" => self.read_only = Some(false),
                "required" => self.required = true,
                _ => {
                    return Err(Diagnostic::error(
                        key.span,
                        format!("invalid field '{name}' must be a key=value pair"),
                    )
                    .help(format!("write {name}=VALUE")));
                }
            }
            return Ok(());
        };
        if name == "from" {
            if value.text.char_indices().any(|(at, letter)| letter == '$' && at + 1 < value.text.len()) {
                return Err(Diagnostic::error(
                    value.span,
                    "'from' doesn't support variable expansion, define alias stage instead",
                )
                .help(format!("write a stage of its own, FROM {} AS name, and from=name here", value.text)));
            }
        } else if value.text.contains('$')
            && matches!(name, "type" | "sharing" | "ro" | "readonly" | "rw" | "readwrite" | "required")
        {
            self.deferred = true;
            return Ok(());
        }
        let word = Some(value.clone()).filter(|value| !value.text.is_empty());
        match name {
            "type" => {
                self.kind = choose(&value.text, MountKind::ALL, MountKind::name)
                    .map_err(|meant| wrong("mount type", value, meant, &MountKind::ALL.map(MountKind::name)))?;
            }
            "sharing" => {
                choose(&value.text, SHARING, |mode| mode)
                    .map_err(|meant| wrong("sharing value", value, meant, &SHARING))?;
                self.sharing = Some(Word { text: value.text.to_lowercase(), span: value.span });
            }
            "target" | "dst" | "destination" => self.target = word,
            "source" | "src" => self.source = word,
            "from" => self.from = word,
            "id" => self.id = word,
            "env" => self.env = word,
            "size" => self.size = word,
            "mode" => self.mode = word,
            "uid" => self.uid = word,
            "gid" => self.gid = word,
            "ro" | "readonly" => self.read_only = Some(boolean(name, value)?),
            "rw" | "readwrite" => self.read_only = Some(!boolean(name, value)?),
            _ => self.required = boolean(name, value)?,
        }
        Ok(())
    }
}

/// The choice of that name, letter case apart; else the name that is nearest.
fn choose<T: Copy, const N: usize>(
    text: &str,
    choices: [T; N],
    name: fn(T) -> &'static str,
) -> Result<T, Option<&'static str>> {
    let wanted = text.to_lowercase();
    choices.into_iter().find(|choice| name(*choice) == wanted).ok_or_else(|| meant(text, choices.into_iter().map(name)))
}

fn wrong(what: &str, value: &Word, meant: Option<&str>, choices: &[&str]) -> Diagnostic {
    let error = Diagnostic::error(value.span, format!("unsupported {what} {:?}", value.text));
    match meant {
        Some(meant) => error.label(format!("did you mean {meant}?")),
        None => error,
    }
    .help(format!("there are {}", choices.join(", ")))
}

/// The spellings of yes and no that Go knows.
fn boolean(name: &str, value: &Word) -> Result<bool, Diagnostic> {
    match value.text.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        other => Err(Diagnostic::error(value.span, format!("invalid value for {name}: {other}"))
            .help(format!("write {name}, {name}=true or {name}=false"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mount, Diagnostic> {
        Mount::read(
            &Word { text: text.to_owned(), span: Span::new(100, 100 + text.len()) },
            Span::new(92, 100 + text.len()),
        )
    }

    #[test]
    fn options_become_fields() {
        let mount =
            read("Type=cache,target=/a,dst=/b,SHARING=Locked,id=x,ro,uid=1,gid=2,mode=0700,from=s,source=/z").unwrap();
        let text = |word: &Option<Word>| word.as_ref().map(|word| word.text.clone()).unwrap_or_default();
        assert_eq!(mount.kind, MountKind::Cache);
        assert_eq!(text(&mount.target), "/b");
        assert_eq!(mount.target.as_ref().unwrap().span, Span::new(125, 127));
        assert_eq!(
            (text(&mount.sharing), text(&mount.id), text(&mount.uid)),
            ("locked".into(), "x".into(), "1".into())
        );
        assert_eq!((text(&mount.gid), text(&mount.mode), text(&mount.from)), ("2".into(), "0700".into(), "s".into()));
        assert_eq!((text(&mount.source), mount.read_only, mount.required), ("/z".into(), Some(true), false));
        assert_eq!(read("\"target=/a,b\"").unwrap().target.unwrap().text, "/a,b");
        assert!(read("required,type=secret,id=a").unwrap().required);
        assert_eq!(read("rw=false,target=/x").unwrap().read_only, Some(true));
        assert_eq!(read("target=/x").unwrap().kind, MountKind::Bind);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message, label) in [
            ("", "cannot read the mount \"\"", None),
            ("a\"b", "cannot read the mount \"a\\\"b\"", None),
            ("typ=tmpfs", "unexpected key 'typ' in a mount", Some("did you mean type?")),
            ("type=tmp", "unsupported mount type \"tmp\"", Some("did you mean tmpfs?")),
            ("type=tmpf", "unsupported mount type \"tmpf\"", Some("did you mean tmpfs?")),
            ("type=cache,sharing=lock", "unsupported sharing value \"lock\"", None),
            ("target", "invalid field 'target' must be a key=value pair", None),
            ("from=$x,target=/a", "'from' doesn't support variable expansion, define alias stage instead", None),
            ("required,target=/a", "unexpected key 'required' for mount type 'bind'", None),
            ("size=1m,target=/a", "unexpected key 'size' for mount type 'bind'", None),
            ("sharing=shared,target=/a", "unexpected key 'sharing' for mount type 'bind'", None),
            ("type=tmpfs,mode=1,target=/a", "unexpected key 'mode' for mount type 'tmpfs'", None),
            ("type=secret,from=x", "unexpected key 'from' for mount type 'secret'", None),
            ("type=secret", "a secret mount needs an id", None),
            ("type=secret,id=a,src=b", "a secret mount has either an id or a source", None),
            ("ro=maybe", "invalid value for ro: maybe", None),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.message, message, "{text}");
            if label.is_some() {
                assert_eq!(error.label.as_deref(), label, "{text}");
            }
            let span = error.span.unwrap();
            assert!(span.start >= 92 && span.end <= 100 + text.len(), "{text}");
        }
    }

    #[test]
    fn variables_are_expanded_later() {
        let mount = read("type=$kind,target=/$x,required=$y").unwrap();
        assert!(mount.deferred);
        let mut expand =
            |word: &Word| Ok(word.text.replace("$kind", "secret").replace("$y", "true").replace("$x", "a"));
        let mount = mount.expand(&mut expand).unwrap();
        assert_eq!((mount.kind, mount.required, mount.deferred), (MountKind::Secret, true, false));
        assert_eq!(mount.target.unwrap().text, "/a");
        let mut wrong = |_: &Word| Ok("nonsense".to_owned());
        assert!(read("type=$kind").unwrap().expand(&mut wrong).is_err());
    }
}
