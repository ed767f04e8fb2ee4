//! Metadata instructions, folded into an image config and its history.
//!
//! In: instructions whose words are expanded. Out: the config that they lead to, and a line of history for each, in
//! the words that BuildKit uses. What always holds: nothing here makes a layer, and what an instruction does not
//! touch stays as the base has it.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::image::config::{ContainerConfig, Healthcheck, ImageConfig};
use crate::image::platform::Platform;

use super::scope::DEFAULT_PATH;
use super::step::{PlannedHistory, StepId};

/// Fields that described the container in which the classic builder ran a step, or the caches of another builder:
/// they mean nothing in an image built on top.
const STALE: [&str; 19] = [
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "throwaway",
    "Size",
    "checksum",
    "Hostname",
    "Domainname",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Image",
    "MacAddress",
    "PublishService",
];

/// A config on its way, and the history since the base.
#[derive(Debug, Clone, Default)]
pub(super) struct Folded {
    pub(super) config: ImageConfig,
    pub(super) history: Vec<PlannedHistory>,
    /// CMD was set in this stage: a later ENTRYPOINT keeps it.
    cmd_set: bool,
    /// Where each variable stands in the config; empty until ENV asks.
    places: HashMap<String, usize>,
}

impl Folded {
    /// What `FROM scratch` begins with.
    pub(super) fn scratch(platform: &Platform) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let config = ContainerConfig {
            env: vec![format!("PATH={DEFAULT_PATH}")],
            working_dir: "/".to_owned(),
            ..ContainerConfig::default()
        };
        let config = ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: some(&platform.variant),
            os_version: some(&platform.os_version),
            config,
            ..ImageConfig::default()
        };
        Self { config, ..Self::default() }
    }

    /// What FROM an image begins with. Triggers are taken out: they are run, not handed on.
    pub(super) fn from_base(base: &ImageConfig) -> Self {
        let mut config = base.clone();
        let stale = |name: &str| STALE.contains(&name) || name.starts_with("moby.buildkit.");
        config.extra.retain(|name, _| !stale(name));
        config.config.extra.retain(|name, _| !stale(name));
        config.config.on_build.clear();
        if config.config.variable("PATH").is_none() && config.os != "windows" {
            config.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        if !config.config.working_dir.is_empty() {
            config.config.working_dir = join_workdir("/", &config.config.working_dir);
        }
        Self { config, ..Self::default() }
    }

    /// What FROM an earlier stage begins with.
    pub(super) fn child(&self) -> Self {
        let mut child = Self { cmd_set: false, ..self.clone() };
        child.config.config.on_build.clear();
        child
    }

    /// Bytes of its longest parts, those that variables can make long.
    pub(super) fn size(&self) -> usize {
        let ContainerConfig { env, labels, .. } = &self.config.config;
        let history = self.history.iter().map(|entry| entry.created_by.len());
        let labels = labels.values().map(String::len);
        history.chain(labels).chain(env.iter().map(String::len)).sum()
    }

    /// Adds an entry that stands for the layer of `step`, or for none.
    pub(super) fn commit(&mut self, created_by: String, step: Option<StepId>) {
        self.history.push(PlannedHistory { created_by, step });
    }

    pub(super) fn env(&mut self, pairs: &[(String, String)]) {
        let env = &mut self.config.config.env;
        if self.places.is_empty() {
            for (at, entry) in env.iter().enumerate() {
                let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
                self.places.entry(name.to_owned()).or_insert(at);
            }
        }
        for (name, value) in pairs {
            let entry = format!("{name}={value}");
            match self.places.get(name) {
                Some(at) => env[*at] = entry,
                None => {
                    self.places.insert(name.clone(), env.len());
                    env.push(entry);
                }
            }
        }
        self.commit(format!("ENV{}", join_pairs(pairs)), None);
    }

    pub(super) fn label(&mut self, pairs: &[(String, String)]) {
        self.config.config.labels.extend(pairs.iter().cloned());
        self.commit(format!("LABEL{}", join_pairs(pairs)), None);
    }

    pub(super) fn arg(&mut self, declarations: &[(String, Option<String>)]) {
        let words = declarations.iter().map(|(name, value)| match value {
            Some(value) => format!(" {name}={value}"),
            None => format!(" {name}"),
        });
        self.commit(format!("ARG{}", words.collect::<String>()), None);
    }

    pub(super) fn maintainer(&mut self, name: &str) {
        self.config.author = (!name.is_empty()).then(|| name.to_owned());
        self.commit(format!("MAINTAINER {name}"), None);
    }

    pub(super) fn user(&mut self, user: &str) {
        user.clone_into(&mut self.config.config.user);
        self.commit(format!("USER {user}"), None);
    }

    pub(super) fn cmd(&mut self, words: Vec<String>) {
        self.commit(format!("CMD {}", quote_list(&words)), None);
        self.config.config.cmd = words;
        self.config.config.args_escaped = true;
        self.cmd_set = true;
    }

    pub(super) fn entrypoint(&mut self, words: Vec<String>) {
        self.commit(format!("ENTRYPOINT {}", quote_list(&words)), None);
        self.config.config.entrypoint = words;
        if !self.cmd_set {
            self.config.config.cmd.clear();
        }
    }

    pub(super) fn shell(&mut self, words: &[String]) {
        self.config.config.shell = words.to_vec();
        self.commit(format!("SHELL [{}]", words.join(" ")), None);
    }

    pub(super) fn stop_signal(&mut self, signal: &str) {
        signal.clone_into(&mut self.config.config.stop_signal);
        self.commit(format!("STOPSIGNAL {signal}"), None);
    }

    pub(super) fn volume(&mut self, paths: &[String]) {
        self.config.config.volumes.extend(paths.iter().cloned());
        self.commit(format!("VOLUME [{}]", paths.join(" ")), None);
    }

    pub(super) fn expose(&mut self, ports: &[String]) {
        self.config.config.exposed_ports.extend(ports.iter().cloned());
        self.commit(format!("EXPOSE [{}]", ports.join(" ")), None);
    }

    pub(super) fn on_build(&mut self, trigger: &str) {
        self.config.config.on_build.push(trigger.to_owned());
    }

    pub(super) fn healthcheck(&mut self, check: Healthcheck) {
        let Healthcheck { test, interval, timeout, start_period, start_interval, retries } = &check;
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{retries}}}",
            test.join(" "),
            duration(*interval),
            duration(*timeout),
            duration(*start_period),
            duration(*start_interval),
        );
        self.config.config.healthcheck = Some(check);
        self.commit(text, None);
    }

    /// The words that run `text` in the image's shell.
    pub(super) fn in_shell(&self, text: &str) -> Vec<String> {
        let shell = &self.config.config.shell;
        let mut words = if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
        words.push(text.to_owned());
        words
    }

    /// Sets WORKDIR and says where it is now; the history is the caller's, who knows whether there is a layer.
    pub(super) fn workdir(&mut self, path: &str) -> String {
        let path = join_workdir(self.cwd(), path);
        path.clone_into(&mut self.config.config.working_dir);
        path
    }

    /// The working directory as the config has it; `/` where it says nothing.
    pub(super) fn cwd(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" => "/",
            path => path,
        }
    }
}

fn join_pairs(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        // Writing to a String does not fail.
        let _ = write!(text, " {name}={value}");
    }
    text
}

/// An absolute path stays as it is written, a relative one is joined and cleaned, nothing is where we are.
fn join_workdir(current: &str, path: &str) -> String {
    match path {
        "" => current.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => clean(&format!("{current}/{path}")),
    }
}

/// The shortest form of an absolute path: no `.`, no `..`, no doubled or trailing slash.
pub(super) fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Where COPY and ADD put things: absolute; that it is a directory stays visible in a trailing `/` or `/.`.
pub(super) fn destination(cwd: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let path = if matches!(path, "" | ".") { "./" } else { path };
    let mut joined = clean(&format!("{cwd}/{path}"));
    if path.ends_with('/') {
        if joined != "/" {
            joined.push('/');
        }
    } else if path.ends_with("/.") {
        joined.push_str(if joined == "/" { "." } else { "/." });
    }
    joined
}

/// Go's `%q` of a list: each word quoted, blanks between, in brackets.
fn quote_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Go's `%q` of a text.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            c if is_printable(c) => quoted.push(c),
            c => {
                let code = u32::from(c);
                // Writing to a String does not fail.
                let _ = match code {
                    0..=0x7f => write!(quoted, "\\x{code:02x}"),
                    0x80..=0xffff => write!(quoted, "\\u{code:04x}"),
                    _ => write!(quoted, "\\U{code:08x}"),
                };
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Letters, marks, numbers, punctuation, symbols and the ordinary blank, as Go has it.
fn is_printable(c: char) -> bool {
    // The standard library escapes what is not printable. A mark is escaped too where it is the first character, so
    // another one goes before it.
    c == '\'' || c == ' ' || format!("a{c}").escape_debug().count() == 2
}

/// Go's way to write a duration: `1m30s`, `1.5s`, `300ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let value = nanoseconds.unsigned_abs();
    let fraction = |whole: u64, unit: u64, name: &str| {
        let rest = whole % unit;
        let digits = unit.ilog10() as usize;
        let rest = if rest == 0 { String::new() } else { format!(".{rest:0digits$}") };
        format!("{}{}{name}", whole / unit, rest.trim_end_matches('0'))
    };
    let text = match value {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{value}ns"),
        1_000..1_000_000 => fraction(value, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(value, 1_000_000, "ms"),
        _ => {
            let minutes = value / 60_000_000_000;
            let seconds = fraction(value % 60_000_000_000, 1_000_000_000, "s");
            match minutes {
                0 => seconds,
                1..60 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    };
    format!("{sign}{text}")
}

/// The ports that words of EXPOSE mean, as `port/protocol`.
pub(super) fn ports(word: &str) -> Result<Vec<String>, String> {
    // `[host:[port:]]port`: what stands before the last colon means nothing in an image, but must make sense.
    let (host, port) = match word.rsplit_once(':') {
        None => (None, word),
        Some((host, port)) => (Some(host), port),
    };
    let (range, protocol) = port.split_once('/').unwrap_or((port, ""));
    if range.is_empty() {
        return Err(format!("no port specified: {word}<empty>"));
    }
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" => "tcp",
        "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        other => return Err(format!("invalid proto: {other}")),
    };
    let (first, last) = port_range(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if let Some(host) = host {
        let (address, host_port) = match host.rsplit_once(':') {
            Some((address, port)) => (address, port),
            None => ("", host),
        };
        let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
        if !bare.is_empty() && bare.parse::<core::net::IpAddr>().is_err() {
            return Err(format!("invalid IP address: {address}"));
        }
        if !host_port.is_empty() {
            let range = port_range(host_port).ok_or_else(|| format!("invalid hostPort: {host_port}"))?;
            if range.1 - range.0 != last - first && last != first {
                return Err(format!("invalid ranges specified for container and host Ports: {port} and {host_port}"));
            }
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok() } else { None }
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

const SIGNALS: [&str; 37] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", "UNUSED",
];

/// Whether STOPSIGNAL may have this value: a number above 0, or a name with or without `SIG`.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return number > 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).and_then(|number| number.parse().ok()).is_some_and(|n: u32| (1..=most).contains(&n))
    };
    SIGNALS.contains(&name) || offset("RTMIN+", 15) || offset("RTMAX-", 14)
}

/// The name in [`SIGNALS`] that is nearest to `text`.
pub(super) fn near_signal(text: &str) -> Option<String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    crate::diagnostic::nearest(name, SIGNALS).map(|near| format!("SIG{near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_set_in_place() {
        let mut folded = Folded::default();
        folded.config.config.env = vec!["A=1".into(), "B=2".into()];
        for (name, value) in [("A", "x=y"), ("C", ""), ("C", "3")] {
            folded.env(&[(name.to_owned(), value.to_owned())]);
        }
        let config = &folded.child().config.config;
        assert_eq!(config.env, ["A=x=y", "B=2", "C=3"]);
        assert_eq!([config.variable("A"), config.variable("C"), config.variable("D")], [Some("x=y"), Some("3"), None]);
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn lists_are_quoted_as_go_does() {
        for (list, expected) in [
            (&[][..], "[]"),
            (&["a", ""], r#"["a" ""]"#),
            (&["echo \"x\" 'y' \\z"], r#"["echo \"x\" 'y' \\z"]"#),
            (&["a\tb\nc\r\x07\x08\x0b\x0c"], r#"["a\tb\nc\r\a\b\v\f"]"#),
            (&["\x01\x7f\u{1b}"], r#"["\x01\x7f\x1b"]"#),
            (&["é\u{301}€日"], "[\"é\u{301}€日\"]"),
            (&["\u{a0}\u{200b}\u{e000}\u{feff}"], r#"["\u00a0\u200b\ue000\ufeff"]"#),
            (&["\u{1f600}\u{10ffff}"], "[\"\u{1f600}\\U0010ffff\"]"),
        ] {
            assert_eq!(quote_list(&words(list)), expected);
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (100_250_000, "100.25ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_001, "1m30.000000001s"),
            (3_600_000_000_000, "1h0m0s"),
            (90_061_000_000_000, "25h1m1s"),
            (-1_000_000_000, "-1s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
    }

    #[test]
    fn paths_are_joined() {
        for (cwd, path, expected) in [
            ("/", "a", "/a"),
            ("/w", "a/../b", "/w/b"),
            ("/w", "../../..", "/"),
            ("/w", "", "/w/"),
            ("/w", ".", "/w/"),
            ("/w", "./", "/w/"),
            ("/w", "a/.", "/w/a/."),
            ("/w", "a/", "/w/a/"),
            ("/", "", "/"),
            ("/", "./.", "/."),
            ("/w", "/x//y/../", "/x//y/../"),
            ("/w/", "../x", "/x"),
        ] {
            assert_eq!(destination(cwd, path), expected, "{cwd} {path}");
        }
        for (current, path, expected) in [
            ("/", "a", "/a"),
            ("/a", "b/", "/a/b"),
            ("/a", "..", "/"),
            ("/a", "/tmp/", "/tmp/"),
            ("/a", "", "/a"),
            ("/tmp/", "x", "/tmp/x"),
        ] {
            assert_eq!(join_workdir(current, path), expected, "{current} {path}");
        }
    }

    #[test]
    fn ports_are_read() {
        for (word, expected) in [
            ("80", Ok("80/tcp")),
            ("80/", Ok("80/tcp")),
            ("53/UDP", Ok("53/udp")),
            ("1/sctp", Ok("1/sctp")),
            ("8000-8002/udp", Ok("8000/udp 8001/udp 8002/udp")),
            ("65535", Ok("65535/tcp")),
            ("127.0.0.1:80:80", Ok("80/tcp")),
            ("[::1]:8080:8080", Ok("8080/tcp")),
            ("5000:5000", Ok("5000/tcp")),
            ("8000-9000:80", Ok("80/tcp")),
            ("", Err("no port")),
            ("/tcp", Err("no port")),
            ("65536", Err("invalid containerPort")),
            ("+80", Err("invalid containerPort")),
            ("a", Err("invalid containerPort")),
            ("9-8", Err("invalid containerPort")),
            ("1-2-3", Err("invalid containerPort")),
            ("80/icmp", Err("invalid proto: icmp")),
            ("x:80", Err("invalid hostPort")),
            ("1.2.3:80:80", Err("invalid IP")),
            ("1-3:1-2", Err("invalid ranges")),
        ] {
            match (ports(word), expected) {
                (Ok(ports), Ok(expected)) => assert_eq!(ports.join(" "), expected, "{word}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{word}: {error}"),
                (found, _) => panic!("{word}: {found:?}"),
            }
        }
    }

    #[test]
    fn signals_are_known() {
        for good in ["9", "SIGTERM", "term", "sigquit", "RTMIN", "SIGRTMIN+15", "RTMAX-14", "64", "99"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "-1", "SIGFOO", "RTMIN+16", "RTMAX-0", "SIGSIGTERM", "1.5"] {
            assert!(!is_signal(bad), "{bad}");
        }
        assert_eq!(near_signal("SIGTREM").as_deref(), Some("SIGTERM"));
    }

    #[test]
    fn what_described_a_container_is_not_handed_on() {
        let base = ImageConfig::parse(
            br#"{"docker_version":"1","container":"x","container_config":{},"moby.buildkit.cache.v0":"x","x.kept":1,
                "config":{"Hostname":"h","Tty":true,"StopTimeout":3,"OnBuild":["RUN x"],"WorkingDir":"w"}}"#,
        )
        .unwrap();
        let Folded { config, .. } = Folded::from_base(&base);
        assert_eq!(config.extra.keys().collect::<Vec<_>>(), ["x.kept"]);
        assert_eq!(config.config.extra.keys().collect::<Vec<_>>(), ["StopTimeout"]);
        assert_eq!(config.config.env, [format!("PATH={DEFAULT_PATH}")]);
        assert_eq!(config.config.working_dir, "/w");
        assert!(config.config.on_build.is_empty());
    }
}
