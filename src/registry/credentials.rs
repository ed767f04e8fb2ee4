//! Who the user is at a registry: Docker's `config.json` and its credential helpers.
//!
//! In: the path of `config.json`, the host of a registry. Out: [`Credentials`], or none; or a changed file. What always
//! holds: a helper that does not answer is given up; what else stands in the file is kept; the file is replaced at once,
//! readable by its owner alone; a secret is in no message.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::RegistryError;

/// What Docker calls its own registry in its file.
pub const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// How long a helper may take: it may ask the user for a password.
const HELPER: Duration = Duration::from_secs(120);

/// Bytes that a helper may say.
const SAID: u64 = 1 << 20;

/// The user name with which helpers return an identity token.
const TOKEN_USER: &str = "<token>";

/// Who the user is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password, or an access token.
        password: String,
    },
    /// A token with which the token server gives others.
    IdentityToken(String),
    /// A token that is shown to the registry as it is.
    RegistryToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// The value of `Authorization` for a name and a password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Docker's `config.json`, as far as it is about registries.
#[derive(Debug, Clone)]
pub struct CredentialFile {
    path: PathBuf,
    document: Map<String, Value>,
    /// Where helpers are looked for.
    search: Option<std::ffi::OsString>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl CredentialFile {
    /// Reads it; a file that is not there is an empty one. `search` is the PATH for helpers.
    pub fn read(path: &Path, search: Option<std::ffi::OsString>) -> Result<Self, RegistryError> {
        let fail = |why: String| RegistryError::Setup { path: path.to_owned(), why };
        let document = match fs::read(path) {
            Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Value::Object(document)) => document,
                Ok(_) => return Err(fail("it is no JSON object".to_owned())),
                Err(error) => return Err(fail(format!("it is not valid JSON: {error}"))),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Map::new(),
            Err(error) => return Err(fail(error.to_string())),
        };
        Ok(Self { path: path.to_owned(), document, search })
    }

    /// Who the user is at `host` (`docker.io`, `localhost:5000`).
    pub fn find(&self, host: &str) -> Result<Option<Credentials>, RegistryError> {
        if let Some(helper) = self.helper(host) {
            // What the helper does not have may still stand in the file.
            if let Some(found) = self.ask(&helper, host)? {
                return Ok(Some(found));
            }
        }
        let Some(auths) = self.document.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let entry = auths.get(server(host)).or_else(|| {
            let same = |(key, _): &(&String, &Value)| host_of(key) == host_of(server(host));
            auths.iter().find(same).map(|(_, entry)| entry)
        });
        entry.map_or(Ok(None), |entry| self.entry(host, entry))
    }

    fn entry(&self, host: &str, entry: &Value) -> Result<Option<Credentials>, RegistryError> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|value| !value.is_empty());
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credentials::RegistryToken(token.to_owned())));
        }
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let broken = || RegistryError::Setup {
                path: self.path.clone(),
                why: format!("\"auth\" of {host} is not the base64 of NAME:PASSWORD; log in again"),
            };
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| broken())?;
            let pair = String::from_utf8(bytes).map_err(|_| broken())?;
            let (user, password) = pair.split_once(':').ok_or_else(broken)?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credentials::Password { user: user.to_owned(), password }));
        }
        Ok(text("username")
            .zip(text("password"))
            .map(|(user, password)| Credentials::Password { user: user.to_owned(), password: password.to_owned() }))
    }

    /// The helper that keeps the credentials of `host`.
    fn helper(&self, host: &str) -> Option<String> {
        let helpers = self.document.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| {
            let same = |(key, _): &(&String, &Value)| *key == host || *key == server(host) || host_of(key) == host;
            helpers.iter().find(same).and_then(|(_, helper)| helper.as_str())
        });
        let usual = || self.document.get("credsStore").and_then(Value::as_str);
        own.or_else(usual).filter(|helper| !helper.is_empty()).map(str::to_owned)
    }

    fn ask(&self, helper: &str, host: &str) -> Result<Option<Credentials>, RegistryError> {
        let fail = |why: String| RegistryError::Helper { name: format!("docker-credential-{helper}"), why };
        let (success, said) = self.run_helper(helper, "get", server(host).as_bytes())?;
        if !success {
            let words = String::from_utf8_lossy(&said).trim().to_owned();
            let none = words.contains("credentials not found") || words.contains("no credentials");
            return if none { Ok(None) } else { Err(fail(format!("it failed: {words}"))) };
        }
        let said: Said = serde_json::from_slice(&said)
            .map_err(|_| fail("what it says is not the JSON of credential helpers".to_owned()))?;
        Ok(Some(match said.username.as_str() {
            TOKEN_USER => Credentials::IdentityToken(said.secret),
            user => Credentials::Password { user: user.to_owned(), password: said.secret },
        }))
    }

    /// Runs a helper: whether it went well, and what it said.
    fn run_helper(&self, helper: &str, verb: &str, input: &[u8]) -> Result<(bool, Vec<u8>), RegistryError> {
        let name = format!("docker-credential-{helper}");
        let fail = |why: String| RegistryError::Helper { name: name.clone(), why };
        if helper.contains('/') {
            return Err(fail("its name is not that of a program".to_owned()));
        }
        let mut command = Command::new(&name);
        if let Some(search) = &self.search {
            command.env("PATH", search);
        }
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let cannot = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                fail(format!("there is no such program, which {} asks for", self.path.display()))
            }
            _ => fail(error.to_string()),
        };
        let mut child = command.spawn().map_err(cannot)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why on its own.
            drop(stdin.write_all(input));
        }
        let stdout = child.stdout.take();
        let said = std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut said = Vec::new();
                stdout.map_or(Ok(0), |stdout| stdout.take(SAID).read_to_end(&mut said)).map(|_| said)
            });
            let began = Instant::now();
            let mut pause = Duration::from_millis(1);
            let status = loop {
                match child.try_wait() {
                    Ok(Some(status)) => break Ok(status),
                    Ok(None) if began.elapsed() > HELPER => {
                        break child.kill().and_then(|()| child.wait()).and(Err(io::ErrorKind::TimedOut.into()));
                    }
                    Ok(None) => std::thread::sleep(pause),
                    Err(error) => break Err(error),
                }
                pause = (pause * 2).min(Duration::from_millis(50));
            };
            let said = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            status.and_then(|status| Ok((status.success(), said?)))
        });
        said.map_err(|error| fail(format!("it does not answer: {error}")))
    }

    /// Keeps credentials, in the helper where there is one, else in the file. Whether it was the file.
    pub fn keep(&mut self, host: &str, credentials: &Credentials) -> Result<bool, RegistryError> {
        if let Some(helper) = self.helper(host) {
            let (username, secret) = match credentials {
                Credentials::Password { user, password } => (user.clone(), password.clone()),
                Credentials::IdentityToken(token) => (TOKEN_USER.to_owned(), token.clone()),
                Credentials::RegistryToken(_) => {
                    let why = "it keeps no tokens of registries".to_owned();
                    return Err(RegistryError::Helper { name: format!("docker-credential-{helper}"), why });
                }
            };
            let said = Said { server_url: server(host).to_owned(), username, secret };
            let input = serde_json::to_vec(&said).unwrap_or_default();
            let (success, said) = self.run_helper(&helper, "store", &input)?;
            if !success {
                let why = format!("it does not keep them: {}", String::from_utf8_lossy(&said).trim());
                return Err(RegistryError::Helper { name: format!("docker-credential-{helper}"), why });
            }
            // What an earlier login left in the file is no longer right, and anybody could read it.
            self.forget_entry(host)?;
            return Ok(false);
        }
        let entry = match credentials {
            Credentials::Password { user, password } => {
                json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
            }
            Credentials::IdentityToken(token) => json!({"identitytoken": token}),
            Credentials::RegistryToken(token) => json!({"registrytoken": token}),
        };
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths[server(host)] = entry;
        self.write().map(|()| true)
    }

    /// Forgets credentials; whether there were any.
    pub fn forget(&mut self, host: &str) -> Result<bool, RegistryError> {
        let mut known = false;
        if let Some(helper) = self.helper(host) {
            known = self.ask(&helper, host)?.is_some();
            if known {
                self.run_helper(&helper, "erase", server(host).as_bytes())?;
            }
        }
        Ok(self.forget_entry(host)? || known)
    }

    /// Takes credentials out of the file; whether there were any.
    fn forget_entry(&mut self, host: &str) -> Result<bool, RegistryError> {
        let Some(auths) = self.document.get_mut("auths").and_then(Value::as_object_mut) else { return Ok(false) };
        let before = auths.len();
        auths.retain(|key, _| host_of(key) != host_of(server(host)));
        let known = auths.len() != before;
        if known {
            self.write()?;
        }
        Ok(known)
    }

    fn write(&self) -> Result<(), RegistryError> {
        let fail = |error: io::Error| RegistryError::Setup { path: self.path.clone(), why: error.to_string() };
        // A link stays one: many keep the file elsewhere.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(fail)?;
        let mut file = tempfile::Builder::new()
            .prefix(".config.json")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)
            .map_err(fail)?;
        let mut bytes = Vec::new();
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, indented);
        self.document.serialize(&mut serializer).map_err(|error| fail(error.into()))?;
        bytes.push(b'\n');
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(&path).map_err(|error| fail(error.error))?;
        Ok(())
    }
}

/// The key of a registry in the file.
pub fn server(host: &str) -> &str {
    if host == "docker.io" { HUB_SERVER } else { host }
}

/// The host that a key means: `https://host/v1/` is an old form of `host`.
fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = key.split('/').next().unwrap_or(key);
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, CredentialFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, text).unwrap();
        let search = Some(folder.path().as_os_str().to_owned());
        let file = CredentialFile::read(&path, search).unwrap();
        (folder, file)
    }

    fn shown(found: Option<Credentials>) -> String {
        match found {
            None => "none".into(),
            Some(Credentials::Password { user, password }) => format!("{user}:{password}"),
            Some(Credentials::IdentityToken(token)) => format!("token {token}"),
            Some(Credentials::RegistryToken(token)) => format!("registry's token {token}"),
        }
    }

    #[test]
    fn entries_are_found_in_all_their_forms() {
        // me:pw, you:p:w
        let (_folder, file) = file(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6cHc="}, "https://a.org/v2/": {"auth": "eW91OnA6dw=="},
                "b.org:5000": {"identitytoken": "t"}, "f.org": {"registrytoken": "r", "auth": "bWU6cHc="}, "c.org": {}, "d.org": {"auth": "%"}, "e.org": {"username": "u", "password": "p"}}}"#,
        );
        for (host, expected) in [
            ("docker.io", "me:pw"),
            ("a.org", "you:p:w"),
            ("b.org:5000", "token t"),
            ("b.org", "none"),
            ("c.org", "none"),
            ("e.org", "u:p"),
            ("f.org", "registry's token r"),
        ] {
            assert_eq!(shown(file.find(host).unwrap()), expected, "{host}");
        }
        assert!(file.find("d.org").unwrap_err().to_string().contains("base64"));
    }

    #[test]
    fn a_login_is_kept_and_forgotten_and_the_rest_stays() {
        let (folder, mut file) = file(r#"{"proxies": {"default": {"httpProxy": "x"}}, "detachKeys": "a"}"#);
        let credentials = Credentials::Password { user: "me".into(), password: "a:b".into() };
        assert!(file.keep("docker.io", &credentials).unwrap());
        assert!(file.keep("h:1", &Credentials::IdentityToken("t".into())).unwrap());
        let path = folder.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("httpProxy") && text.contains(HUB_SERVER) && text.contains("detachKeys"), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = CredentialFile::read(&path, None).unwrap();
        assert_eq!(shown(again.find("docker.io").unwrap()), "me:a:b");
        assert_eq!(shown(again.find("h:1").unwrap()), "token t");
        assert!(again.forget("docker.io").unwrap());
        assert!(!again.forget("docker.io").unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn helpers_are_asked() {
        let (folder, mut file) = file(
            r#"{"credsStore": "all", "credHelpers": {"own.org": "own", "gone.org": "gone"}, "auths": {"x": {}, "own.org": {"auth": "bWU6cHc="}}}"#,
        );
        let log = folder.path().join("log");
        for (name, answer) in [("all", "pw"), ("own", "tok")] {
            let user = if name == "own" { TOKEN_USER } else { "me" };
            let script = format!(
                "#!/bin/sh\nread host || true\necho \"{name} $1 $host\" >>{}\ncase $host in none*) echo 'credentials not found in native keychain'; exit 1;; \
                 bad*) echo oops; exit 1;; esac\necho '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"{answer}\"}}'\n",
                log.display()
            );
            let path = folder.path().join(format!("docker-credential-{name}"));
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        file.search = Some(format!("{}:/usr/bin:/bin", folder.path().display()).into());
        assert_eq!(shown(file.find("docker.io").unwrap()), "me:pw");
        assert_eq!(shown(file.find("own.org").unwrap()), "token tok");
        assert_eq!(shown(file.find("none.org").unwrap()), "none");
        assert!(file.find("bad.org").unwrap_err().to_string().contains("docker-credential-all: it failed: oops"));
        let gone = file.find("gone.org").unwrap_err().to_string();
        assert!(gone.contains("docker-credential-gone: there is no such program"), "{gone}");
        assert!(!file.keep("own.org", &Credentials::IdentityToken("t".into())).unwrap(), "not in the file");
        let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
        assert!(text.contains("\"x\"") && !text.contains("bWU6cHc="), "an old password stays: {text}");
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains("all get https://index.docker.io/v1/\nown get own.org\n"), "{log}");
        assert!(log.contains("own store {\"ServerURL\":\"own.org\""), "{log}");
    }
}
