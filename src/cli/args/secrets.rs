//! `--secret` and `--ssh`.
//!
//! In: the text after the flag. Out: an id, and where the secret or the keys are; no file is looked at, and no variable
//! but to see whether it is there. What always holds: an option that does not exist is an error with the nearest name.

use std::path::PathBuf;

use crate::cli::output_spec::{fields, pairs};
use crate::cli::settings::Settings;
use crate::diagnostic::nearest;

/// `--secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArg {
    /// The id that `RUN --mount=type=secret` names.
    pub id: String,
    /// Where the value is.
    pub from: SecretFrom,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// In a file: relative to the working directory.
    File(PathBuf),
    /// In a variable.
    Variable(String),
}

/// `--ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshArg {
    /// The id that `RUN --mount=type=ssh` names.
    pub id: String,
    /// A socket, or key files: relative to the working directory. Empty is the agent of `SSH_AUTH_SOCK`.
    pub paths: Vec<PathBuf>,
}

/// `id=ID[,type=file|env][,src=FILE|,source=FILE|,env=NAME]`. What is not said is settled by [`SecretSpec::settle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretSpec {
    id: String,
    kind: Option<Kind>,
    file: Option<String>,
    variable: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Variable,
}

const KEYS: [&str; 5] = ["id", "type", "src", "source", "env"];

/// Reads `--secret`.
pub(crate) fn secret(text: &str) -> Result<SecretSpec, String> {
    let mut spec = SecretSpec { id: String::new(), kind: None, file: None, variable: None };
    for (key, value) in pairs(&fields(text)?)? {
        match key.as_str() {
            "id" => spec.id = value,
            "type" => {
                spec.kind = Some(match value.as_str() {
                    "file" => Kind::File,
                    "env" => Kind::Variable,
                    _ => return Err(format!("unsupported secret type {value:?}; there are file and env")),
                });
            }
            "src" | "source" if spec.file.is_some() => return Err("src and source are one option".to_owned()),
            "src" | "source" => spec.file = Some(value),
            "env" => spec.variable = Some(value),
            other => {
                let near = nearest(other, KEYS).map(|near| format!(" (did you mean {near}?)"));
                return Err(format!("unexpected key '{other}'{}", near.unwrap_or_default()));
            }
        }
    }
    if spec.id.is_empty() {
        return Err("it has no id; write id=NAME,src=FILE or id=NAME,env=VARIABLE".to_owned());
    }
    match (spec.kind, &spec.file, &spec.variable) {
        (_, Some(_), Some(_)) => Err("a secret comes from a file or from a variable, not from both".to_owned()),
        (Some(Kind::File), None, Some(_)) => Err("type=file has no env; give src=FILE".to_owned()),
        _ => Ok(spec),
    }
}

impl SecretSpec {
    /// Settles where the value is: what is not said is the variable of that name, if there is one, else the file.
    pub(crate) fn settle(self, settings: &Settings) -> SecretArg {
        let Self { id, kind, file, variable } = self;
        let from = match (kind, file, variable) {
            (_, _, Some(name)) | (Some(Kind::Variable), Some(name), None) => SecretFrom::Variable(name),
            (_, Some(file), None) => SecretFrom::File(PathBuf::from(file)),
            (Some(Kind::Variable), None, None) => SecretFrom::Variable(id.clone()),
            (None, None, None) if settings.env.contains_key(&id) => SecretFrom::Variable(id.clone()),
            (_, None, None) => SecretFrom::File(PathBuf::from(&id)),
        };
        SecretArg { id, from }
    }
}

/// Reads `--ssh`: `default`, `ID` or `ID=SOCKET|KEY[,KEY]`.
pub(crate) fn ssh(text: &str) -> Result<SshArg, String> {
    let (id, paths) = text.split_once('=').map_or((text, None), |(id, paths)| (id, Some(paths)));
    if id.is_empty() {
        return Err("expected default, or ID=SOCKET or ID=KEY[,KEY]: the id is empty".to_owned());
    }
    let paths: Vec<PathBuf> = match paths {
        None => Vec::new(),
        Some(paths) => fields(paths)?.into_iter().map(PathBuf::from).collect(),
    };
    if paths.iter().any(|path| path.as_os_str().is_empty()) {
        return Err("expected ID=SOCKET or ID=KEY[,KEY]: a path is empty".to_owned());
    }
    Ok(SshArg { id: id.to_owned(), paths })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_docker_reads_them() {
        let settings = Settings::for_test(&[("TOKEN", "x"), ("EMPTY", "")]);
        let file = |path: &str| SecretFrom::File(path.into());
        let variable = |name: &str| SecretFrom::Variable(name.into());
        for (text, id, from) in [
            ("id=a,src=f", "a", file("f")),
            ("id=a,source=f", "a", file("f")),
            ("type=file,id=a,src=f", "a", file("f")),
            ("id=a,type=file", "a", file("a")),
            ("id=a", "a", file("a")),
            ("id=TOKEN", "TOKEN", variable("TOKEN")),
            ("id=EMPTY", "EMPTY", variable("EMPTY")),
            ("id=TOKEN,type=file", "TOKEN", file("TOKEN")),
            ("id=a,env=B", "a", variable("B")),
            ("id=a,type=env", "a", variable("a")),
            ("id=a,type=env,env=B", "a", variable("B")),
            ("id=a,type=env,src=B", "a", variable("B")),
            ("\"id=a,b\",src=f", "a,b", file("f")),
        ] {
            let spec = secret(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(spec.settle(&settings), SecretArg { id: id.into(), from }, "{text}");
        }
        for (text, error) in [
            ("", "an empty field; write key=value,key=value"),
            ("a", "a is not key=value"),
            ("src=f", "it has no id; write id=NAME,src=FILE or id=NAME,env=VARIABLE"),
            ("id=a,srx=f", "unexpected key 'srx' (did you mean src?)"),
            ("id=a,type=fifo", "unsupported secret type \"fifo\"; there are file and env"),
            ("id=a,src=f,env=B", "a secret comes from a file or from a variable, not from both"),
            ("id=a,type=file,env=B", "type=file has no env; give src=FILE"),
            ("id=a,id=b", "id is given twice"),
            ("id=a,src=f,source=g", "src and source are one option"),
        ] {
            assert_eq!(secret(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn agents_and_keys() {
        for (text, expected) in [
            ("default", Some(("default", vec![]))),
            ("a=/run/agent", Some(("a", vec!["/run/agent"]))),
            ("a=k1,k2", Some(("a", vec!["k1", "k2"]))),
            ("", None),
            ("=x", None),
            ("a=", None),
            ("a=k,", None),
        ] {
            let expected = expected
                .map(|(id, paths)| SshArg { id: id.into(), paths: paths.into_iter().map(PathBuf::from).collect() });
            assert_eq!(ssh(text).ok(), expected, "{text}");
        }
    }
}
