//! `rbuild login` and `rbuild logout`: the user's credentials at a registry, in Docker's `config.json` or its helpers.
//!
//! In: a server, a name and a password. Out: they are kept, or forgotten. What always holds: nothing is kept that the
//! registry does not take; a password is neither echoed nor printed.

use std::io::{BufRead, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::args::{LoginArgs, LogoutArgs};
use super::failure::Failure;
use super::network::{self, Direction, Lines};
use super::settings::Settings;
use super::stdout::stdout;
use crate::registry::{CredentialFile, Credentials};

/// What Docker calls its own registry.
const HUB: &str = "docker.io";

/// The longest password.
const LONGEST: u64 = 64 << 10;

/// Logs in.
pub(super) fn login(args: &LoginArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let host = host(args.server.as_deref())?;
    let mut file = file(settings)?;
    let lines = Lines::new(Direction::Pull, false, settings);
    let registries =
        network::registries(settings, network::insecure(args.insecure, &host), false, None, lines.sayer())?;
    let given = args.username.is_some() || args.password.is_some() || args.password_stdin;
    let mut stderr = std::io::stderr();
    if !given && let Some(known) = file.find(&host).map_err(anyhow::Error::from)? {
        writeln!(stderr, "Authenticating with existing credentials...")?;
        match registries.check(&host, &known) {
            Ok(()) => {
                writeln!(stdout(), "Login Succeeded")?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => writeln!(stderr, "{error}")?,
        }
    }
    if args.password.is_some() {
        writeln!(stderr, "warning: others can see a password on the command line; use --password-stdin")?;
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin || args.password.is_some() => {
            return Err(Failure::Usage("a password needs the name that it is for: --username NAME".to_owned()));
        }
        None => ask("Username: ", true, settings)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().take(LONGEST).read_to_string(&mut text).context("cannot read the password")?;
            text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)).to_owned()
        }
        None => ask("Password: ", false, settings)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(Failure::Usage("neither the name nor the password may be empty".to_owned()));
    }
    if user.contains(':') {
        return Err(Failure::Usage("a name with a colon cannot be told from its password".to_owned()));
    }
    let credentials = Credentials::Password { user, password };
    registries.check(&host, &credentials).map_err(anyhow::Error::from)?;
    if file.keep(&host, &credentials).map_err(anyhow::Error::from)? {
        let path = settings.docker_config_dir().map(|folder| folder.join("config.json")).unwrap_or_default();
        writeln!(
            stderr,
            "warning: the password is kept unencrypted in {}; a credential helper (credsStore) keeps it better",
            path.display()
        )?;
    }
    writeln!(stdout(), "Login Succeeded")?;
    Ok(ExitCode::SUCCESS)
}

/// Logs out.
pub(super) fn logout(args: &LogoutArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let host = host(args.server.as_deref())?;
    let known = file(settings)?.forget(&host).map_err(anyhow::Error::from)?;
    if known {
        writeln!(stdout(), "Removing login credentials for {host}")?;
    } else {
        writeln!(stdout(), "Not logged in to {host}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn file(settings: &Settings) -> Result<CredentialFile, Failure> {
    let folder = settings.docker_config_dir();
    let folder = folder.ok_or_else(|| anyhow!("cannot tell where credentials are kept: set HOME or DOCKER_CONFIG"))?;
    let search = settings.env.get("PATH").cloned();
    Ok(CredentialFile::read(&folder.join("config.json"), search).map_err(anyhow::Error::from)?)
}

/// The host of a server, however it is written.
fn host(server: Option<&str>) -> Result<String, Failure> {
    let Some(server) = server else { return Ok(HUB.to_owned()) };
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = bare.split('/').next().unwrap_or(bare);
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
        return Err(Failure::Usage(format!("{server:?} is no server; give a host, such as ghcr.io or localhost:5000")));
    }
    Ok(match host {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    })
}

/// Asks at the terminal.
fn ask(prompt: &str, echo: bool, settings: &Settings) -> Result<String, Failure> {
    if !settings.stdin_is_terminal {
        return Err(Failure::Usage(
            "standard input is no terminal to ask at; give --username NAME and --password-stdin".to_owned(),
        ));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{prompt}")?;
    stderr.flush()?;
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(std::io::Error::from)?;
    if !echo {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(std::io::Error::from)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !echo {
        // First the terminal as it was, whatever became of the reading.
        tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(std::io::Error::from)?;
        writeln!(stderr)?;
    }
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts_however_they_are_written() {
        for (server, expected) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("docker.io"), "docker.io"),
            (Some("localhost:5000"), "localhost:5000"),
            (Some("https://ghcr.io/v2/"), "ghcr.io"),
            (Some("ghcr.io/me"), "ghcr.io"),
        ] {
            assert_eq!(host(server).unwrap(), expected, "{server:?}");
        }
        assert!(host(Some("")).is_err() && host(Some("https://")).is_err() && host(Some("a@b")).is_err());
    }
}
