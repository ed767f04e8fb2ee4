//! What the surroundings say, read once.
//!
//! In: the environment, the working directory, the user, the processors and the terminal of this process. Out: one
//! [`Settings`] that is handed down as a value. What always holds: nobody below asks the surroundings again, so a
//! command is a function of its arguments and its settings (and of the files that they name). It must be read before
//! the process enters a user namespace: afterwards everyone is uid 0.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::http::HttpOptions;

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The environment, names that are not UTF-8 left out.
    pub env: BTreeMap<String, OsString>,
    /// The working directory: absolute.
    pub cwd: PathBuf,
    /// The effective user.
    pub uid: u32,
    /// Processors that this process may use.
    pub cpus: NonZeroUsize,
    /// `--root`, which the command line puts here.
    pub root: Option<PathBuf>,
    /// Standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// The size of the terminal at standard error; `None` where that is none.
    pub terminal: Option<Terminal>,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// The size of the terminal at standard error, which can change while a build runs; `None` where that is none.
pub(crate) fn terminal_size() -> Option<Terminal> {
    let stderr = std::io::stderr();
    if !stderr.is_terminal() {
        return None;
    }
    // A terminal without a size (a serial line, a fresh pty) says 0×0: then the size of old.
    let size = rustix::termios::tcgetwinsize(&stderr).ok();
    let or = |size: Option<u16>, usual| size.filter(|size| *size > 0).map_or(usual, usize::from);
    Some(Terminal { columns: or(size.map(|size| size.ws_col), 80), rows: or(size.map(|size| size.ws_row), 24) })
}

/// The proxy variables that Docker knows, by their key in its `config.json`.
const PROXIES: [(&str, &str); 5] = [
    ("HTTP_PROXY", "httpProxy"),
    ("HTTPS_PROXY", "httpsProxy"),
    ("FTP_PROXY", "ftpProxy"),
    ("NO_PROXY", "noProxy"),
    ("ALL_PROXY", "allProxy"),
];

/// Why the surroundings do not do.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The working directory is gone or out of reach.
    #[error("cannot tell the working directory: {0}; change to a directory that is there")]
    WorkingDirectory(#[source] std::io::Error),
    /// Nothing says where the store is.
    #[error(
        "cannot tell where the image store is: neither HOME nor XDG_DATA_HOME is set to an absolute path; \
         set one of them, or give --root DIR or RBUILD_ROOT"
    )]
    NoHome,
    /// Docker's configuration cannot be read.
    #[error("cannot read {}: {source}; rbuild takes proxies from it", path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Docker's configuration is not what it should be.
    #[error("{} is not valid JSON: {source}; rbuild takes proxies from it", path.display())]
    DockerConfigSyntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A variable holds something other than text.
    #[error("the value of {0} in the environment is not UTF-8 text")]
    NotText(String),
}

impl Settings {
    /// Reads them.
    pub fn read() -> Result<Self, SettingsError> {
        let cwd = std::env::current_dir().map_err(SettingsError::WorkingDirectory)?;
        let env = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Ok(Self {
            env,
            cwd,
            uid: rustix::process::geteuid().as_raw(),
            cpus: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            root: None,
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            terminal: terminal_size(),
        })
    }

    /// The value of `name` in the environment; `None` where it is not set.
    pub fn var(&self, name: &str) -> Result<Option<String>, SettingsError> {
        match self.env.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(SettingsError::NotText(name.to_owned())),
            },
        }
    }

    /// A variable that counts only when it holds something.
    fn path_var(&self, name: &str) -> Option<&Path> {
        self.env.get(name).filter(|value| !value.is_empty()).map(Path::new)
    }

    /// The home directory, as `HOME` has it.
    pub fn home(&self) -> Option<&Path> {
        self.path_var("HOME").filter(|home| home.is_absolute())
    }

    /// A base directory of the XDG specification, which says that relative ones do not count.
    fn xdg(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        self.path_var(name)
            .filter(|path| path.is_absolute())
            .map(Path::to_owned)
            .or_else(|| self.home().map(|home| home.join(below_home)))
    }

    /// Where Docker's `config.json` is looked for.
    pub fn docker_config_dir(&self) -> Option<PathBuf> {
        self.path_var("DOCKER_CONFIG").map(|dir| self.cwd.join(dir)).or_else(|| Some(self.home()?.join(".docker")))
    }

    /// Where this program's own settings of the user are.
    pub fn config_dir(&self) -> Option<PathBuf> {
        Some(self.xdg("XDG_CONFIG_HOME", ".config")?.join("rbuild"))
    }

    /// Where the image store is: `--root`, else `RBUILD_ROOT`, else `/var/lib/rbuild` for root and
    /// `$XDG_DATA_HOME/rbuild` (`~/.local/share/rbuild`) for everyone else. Absolute.
    pub fn store_root(&self) -> Result<PathBuf, SettingsError> {
        if let Some(root) = self.root.as_deref().or_else(|| self.path_var("RBUILD_ROOT")) {
            return Ok(self.cwd.join(root));
        }
        if self.uid == 0 {
            return Ok(PathBuf::from("/var/lib/rbuild"));
        }
        Ok(self.xdg("XDG_DATA_HOME", ".local/share").ok_or(SettingsError::NoHome)?.join("rbuild"))
    }

    /// Whether standard error takes colour: it is a terminal that can, and `NO_COLOR` is not set.
    pub fn color(&self) -> bool {
        self.terminal.is_some()
            && self.path_var("NO_COLOR").is_none()
            && self.env.get("TERM").is_none_or(|term| term != "dumb")
    }

    /// How wide messages on standard error may be.
    pub fn width(&self) -> usize {
        self.terminal.map_or(140, |terminal| terminal.columns)
    }

    /// The proxy variables for RUN, in both spellings as Docker gives them: from the environment, else from
    /// `proxies` of Docker's `config.json` (which is read here).
    pub fn proxies(&self) -> Result<Vec<(String, String)>, SettingsError> {
        let docker = self.docker_proxies()?;
        let mut found = Vec::new();
        for (name, key) in PROXIES {
            let lower = name.to_lowercase();
            let mut value = self.var(name)?;
            if value.is_none() {
                value = self.var(&lower)?;
            }
            if let Some(value) = value.or_else(|| docker.get(key).cloned()).filter(|value| !value.is_empty()) {
                found.push((name.to_owned(), value.clone()));
                found.push((lower, value));
            }
        }
        Ok(found)
    }

    /// How the network is used: the same proxies, and `SSL_CERT_FILE` instead of the system's certificates.
    pub fn http_options(&self) -> Result<HttpOptions, SettingsError> {
        let roots = self.path_var("SSL_CERT_FILE").map(|file| self.cwd.join(file));
        Ok(HttpOptions { proxies: self.proxies()?, roots, ..HttpOptions::default() })
    }

    /// `proxies.default` of Docker's `config.json`; empty where there is none.
    fn docker_proxies(&self) -> Result<BTreeMap<String, String>, SettingsError> {
        let Some(path) = self.docker_config_dir().map(|dir| dir.join("config.json")) else {
            return Ok(BTreeMap::new());
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // Not there, or the folder of another user: nothing was set up for this one.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(BTreeMap::new());
            }
            Err(source) => return Err(SettingsError::DockerConfig { path, source }),
        };
        let config: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|source| SettingsError::DockerConfigSyntax { path: path.clone(), source })?;
        let proxies = config.pointer("/proxies/default").and_then(serde_json::Value::as_object);
        let text = |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
        Ok(proxies.into_iter().flatten().filter_map(text).collect())
    }
}

#[cfg(test)]
impl Settings {
    /// Settings that depend on nothing, for tests: uid 1000 in `/work` with this environment.
    pub(crate) fn for_test(env: &[(&str, &str)]) -> Self {
        Self {
            env: env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect(),
            cwd: PathBuf::from("/work"),
            uid: 1000,
            cpus: NonZeroUsize::new(4).expect("4 is not 0"),
            root: None,
            stdin_is_terminal: false,
            stdout_is_terminal: false,
            terminal: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_where_the_contract_says() {
        let home = ("HOME", "/home/ann");
        for (uid, root, env, expected) in [
            (0, None, vec![home], "/var/lib/rbuild"),
            (1000, None, vec![home], "/home/ann/.local/share/rbuild"),
            (1000, None, vec![home, ("XDG_DATA_HOME", "/data")], "/data/rbuild"),
            (1000, None, vec![home, ("XDG_DATA_HOME", "data")], "/home/ann/.local/share/rbuild"),
            (1000, None, vec![home, ("XDG_DATA_HOME", "")], "/home/ann/.local/share/rbuild"),
            (0, None, vec![("RBUILD_ROOT", "/r"), ("XDG_DATA_HOME", "/data")], "/r"),
            (1000, None, vec![("RBUILD_ROOT", "r")], "/work/r"),
            (1000, None, vec![home, ("RBUILD_ROOT", "")], "/home/ann/.local/share/rbuild"),
            (1000, Some("here"), vec![home, ("RBUILD_ROOT", "/r")], "/work/here"),
            (0, Some("/there"), vec![], "/there"),
        ] {
            let settings = Settings { uid, root: root.map(PathBuf::from), ..Settings::for_test(&env) };
            assert_eq!(settings.store_root().unwrap(), Path::new(expected), "{uid} {root:?} {env:?}");
        }
        assert!(matches!(Settings::for_test(&[]).store_root(), Err(SettingsError::NoHome)));
        assert!(matches!(Settings::for_test(&[("HOME", "relative")]).store_root(), Err(SettingsError::NoHome)));
    }

    #[test]
    fn colour_needs_a_terminal_and_no_veto() {
        let terminal = Some(Terminal { columns: 80, rows: 24 });
        for (terminal, env, expected) in [
            (terminal, vec![], true),
            (None, vec![], false),
            (terminal, vec![("NO_COLOR", "1")], false),
            (terminal, vec![("NO_COLOR", "")], true),
            (terminal, vec![("TERM", "dumb")], false),
            (terminal, vec![("TERM", "xterm")], true),
        ] {
            assert_eq!(Settings { terminal, ..Settings::for_test(&env) }.color(), expected, "{terminal:?} {env:?}");
        }
    }

    #[test]
    fn proxies_come_from_the_environment_and_then_from_docker() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().to_str().unwrap();
        let text = |pairs: Vec<(String, String)>| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        // No file at all.
        assert_eq!(text(Settings::for_test(&[("DOCKER_CONFIG", docker)]).proxies().unwrap()), "");
        let config = r#"{"auths":{},"proxies":{"default":{"httpProxy":"http://docker","noProxy":"a,b"},"tcp://x":{}}}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        for (env, expected) in [
            (vec![], "HTTP_PROXY=http://docker http_proxy=http://docker NO_PROXY=a,b no_proxy=a,b"),
            (
                vec![("http_proxy", "http://env")],
                "HTTP_PROXY=http://env http_proxy=http://env NO_PROXY=a,b no_proxy=a,b",
            ),
            (vec![("HTTP_PROXY", ""), ("no_proxy", "")], ""),
            (vec![("HTTP_PROXY", "u"), ("http_proxy", "l"), ("NO_PROXY", "")], "HTTP_PROXY=u http_proxy=u"),
        ] {
            let mut env = env;
            env.push(("DOCKER_CONFIG", docker));
            assert_eq!(text(Settings::for_test(&env).proxies().unwrap()), expected, "{env:?}");
        }
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = Settings::for_test(&[("DOCKER_CONFIG", docker)]).proxies().unwrap_err();
        assert!(error.to_string().contains("config.json is not valid JSON"), "{error}");
    }

    #[test]
    fn real_surroundings_can_be_read() {
        let settings = Settings::read().unwrap();
        assert!(settings.cwd.is_absolute());
    }
}
