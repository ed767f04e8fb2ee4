//! What `--secret` and `--ssh` name, brought in.
//!
//! In: the arguments. Out: values and agents. What always holds: a value is in memory alone, and in no message; a file
//! that is not there is an error before anything runs.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};

use crate::cli::args::{BuildArgs, SecretFrom};
use crate::cli::settings::Settings;
use crate::solve::{Agent, AgentKeys, Secret};

/// A larger file is no secret: BuildKit's limit.
const LIMIT: u64 = 500 << 10;

/// The secrets of a build.
pub(super) fn secrets(args: &BuildArgs, settings: &Settings) -> anyhow::Result<Vec<Secret>> {
    let mut secrets = Vec::with_capacity(args.secrets.len());
    for secret in &args.secrets {
        let id = &secret.id;
        let value = match &secret.from {
            // One that is not set is not given, as with docker: a RUN that requires it says so.
            SecretFrom::Variable(name) => match settings.env.get(name) {
                Some(value) => value.as_bytes().to_vec(),
                None => continue,
            },
            SecretFrom::File(path) => {
                let path = settings.cwd.join(path);
                let failed = || format!("--secret id={id}: cannot read {}", path.display());
                let file = File::open(&path).with_context(failed)?;
                if file.metadata().with_context(failed)?.is_dir() {
                    bail!("--secret id={id}: {} is a directory; name a file", path.display());
                }
                let mut value = Vec::new();
                file.take(LIMIT + 1).read_to_end(&mut value).with_context(failed)?;
                value
            }
        };
        if value.len() as u64 > LIMIT {
            bail!("--secret id={id}: it has more than {} KiB, which no secret has", LIMIT >> 10);
        }
        secrets.push(Secret { id: id.clone(), value });
    }
    Ok(secrets)
}

/// The agents of a build.
pub(super) fn agents(args: &BuildArgs, settings: &Settings) -> anyhow::Result<Vec<Agent>> {
    let mut agents = Vec::with_capacity(args.ssh.len());
    for ssh in &args.ssh {
        let id = &ssh.id;
        let mut paths: Vec<PathBuf> = ssh.paths.iter().map(|path| settings.cwd.join(path)).collect();
        if paths.is_empty() {
            let running = settings.env.get("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).ok_or_else(|| {
                anyhow!(
                    "--ssh {id}: SSH_AUTH_SOCK is not set; start an agent (`eval $(ssh-agent)`), or give --ssh {id}=KEY"
                )
            })?;
            paths.push(settings.cwd.join(running));
        }
        let mut sockets = 0;
        for path in &paths {
            let found =
                std::fs::metadata(path).with_context(|| format!("--ssh {id}: cannot use {}", path.display()))?;
            if found.is_dir() {
                bail!("--ssh {id}: {} is a directory; name a socket or a key", path.display());
            }
            sockets += usize::from(found.file_type().is_socket());
        }
        let keys = match (sockets, paths.as_slice()) {
            (0, _) => AgentKeys::Files(paths),
            (_, [_]) => AgentKeys::Socket(paths.remove(0)),
            _ => bail!("--ssh {id}: one socket, or key files"),
        };
        agents.push(Agent { id: id.clone(), keys });
    }
    Ok(agents)
}
