//! Where a registry is really asked: mirrors, certificates, plain HTTP.
//!
//! In: the folders of `certs.d`, the host of a registry as names have it. Out: [`Host`]s in the order in which they are
//! tried, the registry itself last. What always holds: the first folder that has the host decides alone; an unknown
//! field of `hosts.toml` changes nothing, a known one with a wrong value is an error that names file and field.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::RegistryError;
use crate::http::{Identity, is_loopback};

/// One server that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// What paths such as `library/nginx/tags/list` are appended to: `https://registry-1.docker.io/v2`.
    pub(super) base: String,
    /// The server's name and port, by which credentials are found.
    pub(super) name: String,
    /// It may be asked for blobs and manifests by digest.
    pub(super) pull: bool,
    /// It may be asked what a tag means.
    pub(super) resolve: bool,
    /// It takes images.
    pub(super) push: bool,
    /// It is another than the one in the name.
    pub(super) mirror: bool,
    /// It is meant to stand for the registry itself: the user's credentials there may be shown to it.
    pub(super) stands_in: bool,
    /// Plain HTTP is spoken where it does not speak TLS.
    pub(super) plain_allowed: bool,
    /// Its certificate need not be trusted.
    pub(super) skip_verify: bool,
    pub(super) roots: Vec<PathBuf>,
    pub(super) identity: Option<Identity>,
    /// Sent with every request.
    pub(super) headers: Vec<(String, String)>,
}

impl Host {
    /// The registry `host` itself, as it is without any setting.
    fn own(host: &str, insecure: bool) -> Self {
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let bare =
            server.rsplit_once(':').map_or(server, |(bare, port)| if port.ends_with(']') { server } else { bare });
        Self {
            base: format!("https://{server}/v2"),
            name: host.to_owned(),
            pull: true,
            resolve: true,
            push: true,
            mirror: false,
            stands_in: true,
            plain_allowed: insecure || is_loopback(bare),
            skip_verify: insecure,
            roots: Vec::new(),
            identity: None,
            headers: Vec::new(),
        }
    }
}

/// The servers for `host`.
pub(super) fn hosts(folders: &[PathBuf], host: &str, insecure: bool) -> Result<Vec<Host>, RegistryError> {
    let own = Host::own(host, insecure);
    let found = [host, "_default"].iter().find_map(|name| {
        let places = folders.iter().map(|folder| folder.join(name));
        places.into_iter().find(|place| place.is_dir())
    });
    let Some(folder) = found else { return Ok(vec![own]) };
    let path = folder.join("hosts.toml");
    match fs::read_to_string(&path) {
        Ok(text) => from_toml(&text, &path, &own),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![from_certificates(&folder, own)?]),
        Err(error) => Err(RegistryError::Setup { path, why: error.to_string() }),
    }
}

/// Docker's form: each `.crt` is trusted; a `.cert` and the `.key` of its name are the client's.
fn from_certificates(folder: &Path, mut host: Host) -> Result<Host, RegistryError> {
    let fail = |error: io::Error| RegistryError::Setup { path: folder.to_owned(), why: error.to_string() };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        files.push(entry.map_err(fail)?.path());
    }
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.roots.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.is_file() {
                    let why = format!("there is no {} beside it", key.display());
                    return Err(RegistryError::Setup { path: file, why });
                }
                host.identity = Some(Identity { certificate: file, key: Some(key) });
            }
            _ => {}
        }
    }
    // Whoever set up certificates wants TLS.
    host.plain_allowed &= host.roots.is_empty() && host.identity.is_none();
    Ok(host)
}

fn from_toml(text: &str, path: &Path, own: &Host) -> Result<Vec<Host>, RegistryError> {
    let fail = |why: String| RegistryError::Setup { path: path.to_owned(), why };
    let table: Table = toml::from_str(text).map_err(|error| fail(error.to_string().trim_end().replace('\n', " ")))?;
    let reader = Reader { path };
    let mut hosts = Vec::new();
    if let Some(mirrors) = table.get("host") {
        let mirrors = mirrors.as_table().ok_or_else(|| fail("host is no table".to_owned()))?;
        for (url, settings) in mirrors {
            let settings = settings.as_table().ok_or_else(|| fail(format!("host.\"{url}\" is no table")))?;
            hosts.push(reader.host(url, settings, own)?);
        }
    }
    let server = match table.get("server") {
        Some(Value::String(server)) if !server.is_empty() => Some(server.clone()),
        None | Some(Value::String(_)) => None,
        Some(_) => return Err(fail("server is no text".to_owned())),
    };
    // The server's own settings stand outside of the tables.
    let url = server.unwrap_or_else(|| own.base.trim_end_matches("/v2").to_owned());
    let mut last = reader.host(&url, &table, own)?;
    last.stands_in = true;
    if last.base == own.base {
        last.mirror = false;
        last.name.clone_from(&own.name);
        last.plain_allowed |= own.plain_allowed && last.roots.is_empty();
    }
    if !hosts.iter().any(|host| host.base == last.base) {
        hosts.push(last);
    }
    Ok(hosts)
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn fail(&self, why: String) -> RegistryError {
        RegistryError::Setup { path: self.path.to_owned(), why }
    }

    fn host(&self, url: &str, settings: &Table, own: &Host) -> Result<Host, RegistryError> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let trimmed = whole.trim_end_matches('/');
        let (scheme, rest) = trimmed.split_once("://").unwrap_or(("", trimmed));
        if !matches!(scheme, "http" | "https") || rest.is_empty() {
            return Err(self.fail(format!("host \"{url}\" is no http or https URL")));
        }
        let name = rest.split('/').next().unwrap_or(rest).to_owned();
        let override_path = self.flag(settings, "override_path")?;
        let base = if override_path || rest.ends_with("/v2") { trimmed.to_owned() } else { format!("{trimmed}/v2") };
        let capabilities = match settings.get("capabilities") {
            None => ["pull", "resolve", "push"].map(str::to_owned).to_vec(),
            Some(value) => self.texts(value, "capabilities")?,
        };
        if let Some(unknown) = capabilities.iter().find(|word| !["pull", "resolve", "push"].contains(&word.as_str())) {
            return Err(self.fail(format!("capabilities: \"{unknown}\" is none of pull, resolve, push")));
        }
        let has = |word: &str| capabilities.iter().any(|known| known == word);
        Ok(Host {
            mirror: base != own.base,
            base,
            name,
            pull: has("pull"),
            resolve: has("resolve"),
            push: has("push"),
            // Who lists `push` by name means it; without a list a mirror has all capabilities.
            stands_in: settings.contains_key("capabilities") && has("push"),
            plain_allowed: false,
            skip_verify: self.flag(settings, "skip_verify")? || own.skip_verify,
            roots: match settings.get("ca") {
                None => Vec::new(),
                Some(value) => self.texts(value, "ca")?.iter().map(|file| self.file(file)).collect(),
            },
            identity: self.identity(settings)?,
            headers: self.headers(settings)?,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(name)
    }

    fn flag(&self, settings: &Table, name: &str) -> Result<bool, RegistryError> {
        match settings.get(name) {
            None => Ok(false),
            Some(Value::Boolean(value)) => Ok(*value),
            Some(_) => Err(self.fail(format!("{name} is neither true nor false"))),
        }
    }

    /// One text or a list of texts.
    fn texts(&self, value: &Value, name: &str) -> Result<Vec<String>, RegistryError> {
        let one = |value: &Value| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| self.fail(format!("{name} is neither a text nor a list of texts")))
        };
        match value {
            Value::Array(list) => list.iter().map(one).collect(),
            value => Ok(vec![one(value)?]),
        }
    }

    /// `client = "both.pem"`, `["cert", "key"]`-pairs in a list, or a list of files with both: the first counts.
    fn identity(&self, settings: &Table) -> Result<Option<Identity>, RegistryError> {
        let pair = match settings.get("client") {
            None => return Ok(None),
            Some(Value::Array(list)) => match list.first() {
                None => return Ok(None),
                Some(first) => self.texts(first, "client")?,
            },
            Some(value) => self.texts(value, "client")?,
        };
        let key = pair.get(1).filter(|key| !key.is_empty()).map(|key| self.file(key));
        Ok(pair.first().map(|certificate| Identity { certificate: self.file(certificate), key }))
    }

    fn headers(&self, settings: &Table) -> Result<Vec<(String, String)>, RegistryError> {
        let Some(table) = settings.get("header") else { return Ok(Vec::new()) };
        let table = table.as_table().ok_or_else(|| self.fail("header is no table".to_owned()))?;
        let mut headers = Vec::new();
        for (name, value) in table {
            headers.extend(self.texts(value, name)?.into_iter().map(|value| (name.clone(), value)));
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hosts: &[Host]) -> String {
        let one = |host: &Host| {
            let flag = |on: bool, letter: &'static str| if on { letter } else { "" };
            format!(
                "{} {} {}{}{}{}{}{}",
                host.name,
                host.base,
                flag(host.pull, "p"),
                flag(host.resolve, "r"),
                flag(host.push, "w"),
                flag(host.mirror, "m"),
                flag(host.plain_allowed, "h"),
                flag(host.skip_verify, "s")
            )
        };
        hosts.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn hosts_are_those_of_the_file() {
        for (host, text, expected) in [
            ("docker.io", None, "docker.io https://registry-1.docker.io/v2 prw"),
            ("localhost:5000", None, "localhost:5000 https://localhost:5000/v2 prwh"),
            ("[::1]:5000", None, "[::1]:5000 https://[::1]:5000/v2 prwh"),
            ("a.org", None, "a.org https://a.org/v2 prw"),
            ("a.org", Some(""), "a.org https://a.org/v2 prw"),
            (
                "docker.io",
                Some(
                    "server = \"https://registry-1.docker.io\"\n[host.\"http://m:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
                ),
                "m:5000 http://m:5000/v2 prm; docker.io https://registry-1.docker.io/v2 prw",
            ),
            (
                "a.org",
                Some(
                    "[host.\"https://z/x/\"]\nskip_verify = true\n[host.\"https://b/v2\"]\n[host.\"https://c/y\"]\noverride_path = true\n",
                ),
                "z https://z/x/v2 prwms; b https://b/v2 prwm; c https://c/y prwm; a.org https://a.org/v2 prw",
            ),
            ("a.org", Some("server = \"http://b:1\"\ncapabilities = \"pull\"\n"), "b:1 http://b:1/v2 pm"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join(host);
            if let Some(text) = text {
                fs::create_dir(&place).unwrap();
                fs::write(place.join("hosts.toml"), text).unwrap();
            }
            let folders = [folder.path().join("none"), folder.path().to_owned()];
            assert_eq!(shown(&hosts(&folders, host, false).unwrap()), expected, "{host} {text:?}");
        }
        assert_eq!(shown(&hosts(&[], "a.org", true).unwrap()), "a.org https://a.org/v2 prwhs");
    }

    #[test]
    fn certificates_of_both_forms_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("localhost:1");
        fs::create_dir(&place).unwrap();
        for name in ["b.crt", "a.crt", "c.cert", "c.key", "README"] {
            fs::write(place.join(name), "").unwrap();
        }
        let docker = &hosts(&[folder.path().to_owned()], "localhost:1", false).unwrap()[0];
        assert_eq!(docker.roots, [place.join("a.crt"), place.join("b.crt")]);
        assert_eq!(docker.identity.as_ref().unwrap().key, Some(place.join("c.key")));
        assert!(!docker.plain_allowed);
        fs::write(
            place.join("hosts.toml"),
            "[host.\"https://localhost:1\"]\nca = \"a.crt\"\nclient = [[\"c.cert\", \"c.key\"]]\n[host.\"https://localhost:1\".header]\nx-a = [\"1\", \"2\"]\n",
        )
        .unwrap();
        let toml = &hosts(&[folder.path().to_owned()], "localhost:1", false).unwrap()[0];
        assert_eq!((&toml.roots[..], &toml.identity), (&[place.join("a.crt")][..], &docker.identity));
        assert_eq!(toml.headers.len(), 2);
        fs::remove_file(place.join("hosts.toml")).unwrap();
        fs::remove_file(place.join("c.key")).unwrap();
        assert!(hosts(&[folder.path().to_owned()], "localhost:1", false).is_err());
    }

    #[test]
    fn wrong_values_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        for (text, expected) in [
            ("server = ", "hosts.toml"),
            ("server = 1", "server is no text"),
            ("host = 1", "host is no table"),
            ("[host.\"ftp://x\"]", "no http or https URL"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "\"fly\" is none of"),
            ("[host.\"https://x\"]\nskip_verify = 1", "skip_verify is neither"),
            ("[host.\"https://x\"]\nca = 1", "ca is neither"),
        ] {
            fs::write(folder.path().join("a/hosts.toml"), text).unwrap();
            let error = hosts(&[folder.path().to_owned()], "a", false).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
