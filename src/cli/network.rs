//! Registries as commands reach them, and how transfers are shown.
//!
//! In: the settings. Out: [`Registries`]; lines on standard error for layers on their way. What always holds: nothing is
//! opened or asked before it is needed.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::settings::{Settings, SettingsError};
use crate::digest::Digest;
use crate::registry::pull::{Transfer, Transfers};
use crate::registry::{Insecure, Registries, RegistryOptions, Say};
use crate::sys::cancel::Cancel;

/// Folders of `certs.d` beside the user's own.
const HOSTS: [&str; 3] = ["/etc/rbuild/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"];

/// `--insecure`, of a command that asks one registry.
pub(crate) fn insecure(given: bool, host: &str) -> Insecure {
    Insecure { hosts: given.then(|| host.to_owned()).into_iter().collect(), by: "--insecure" }
}

/// Nothing, of a command that has no flag for it.
pub(crate) fn secure() -> Insecure {
    Insecure { by: "skip_verify = true in its hosts.toml", ..Insecure::default() }
}

/// Registries by what the user and the machine have set up.
pub(crate) fn registries(
    settings: &Settings,
    insecure: Insecure,
    offline: bool,
    cancel: Option<&Cancel>,
    say: Say,
) -> Result<Registries, SettingsError> {
    let own = settings.config_dir().map(|folder| folder.join("certs.d"));
    let options = RegistryOptions {
        http: settings.http_options()?,
        credentials: settings.docker_config_dir().map(|folder| folder.join("config.json")),
        search: settings.env.get("PATH").cloned(),
        hosts: own.into_iter().chain(HOSTS.map(Into::into)).collect(),
        insecure,
        offline,
        say: Some(say),
    };
    Ok(Registries::new(options, cancel.cloned()))
}

/// Docker's words for what happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a registry.
    Pull,
    /// To a registry.
    Push,
}

/// Shows transfers as lines on standard error: what began, what ended.
pub(crate) struct Lines {
    direction: Direction,
    quiet: bool,
    /// A terminal gets bars as well.
    bars: Option<indicatif::MultiProgress>,
    running: Mutex<HashMap<Digest, indicatif::ProgressBar>>,
}

impl Lines {
    pub(crate) fn new(direction: Direction, quiet: bool, settings: &Settings) -> Arc<Self> {
        let live = settings.terminal.is_some() && settings.env.get("TERM").is_none_or(|term| term != "dumb");
        let bars = (live && !quiet).then(indicatif::MultiProgress::new);
        Arc::new(Self { direction, quiet, bars, running: Mutex::default() })
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// One line, above the bars.
    pub(crate) fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        // Where standard error is gone nobody misses it.
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// Who else is told something.
    pub(crate) fn sayer(self: &Arc<Self>) -> Say {
        let lines = Arc::clone(self);
        Say::new(move |line| lines.say(line))
    }

    fn bar(&self, blob: &Digest, size: u64) {
        let Some(bars) = &self.bars else { return };
        let style = indicatif::ProgressStyle::with_template("{prefix}: {msg} [{bar:30}] {bytes}/{total_bytes}");
        let bar = indicatif::ProgressBar::new(size).with_prefix(blob.hex()[..12].to_owned());
        let bar = match style {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        };
        bar.set_message(if self.direction == Direction::Pull { "Downloading" } else { "Pushing" });
        self.lock().insert(*blob, bars.add(bar));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, indicatif::ProgressBar>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfers for Lines {
    fn transfer(&self, blob: &Digest, event: Transfer<'_>) {
        let words = match (&event, self.direction) {
            (Transfer::Moved(bytes), _) => {
                if let Some(bar) = self.lock().get(blob) {
                    bar.inc(*bytes);
                }
                return;
            }
            (Transfer::Begins { size }, direction) => {
                self.bar(blob, *size);
                if direction == Direction::Push || self.bars.is_some() {
                    return;
                }
                "Pulling fs layer".to_owned()
            }
            (Transfer::Exists, Direction::Pull) => "Already exists".to_owned(),
            (Transfer::Exists, Direction::Push) => "Layer already exists".to_owned(),
            (Transfer::Done, Direction::Pull) => "Pull complete".to_owned(),
            (Transfer::Done, Direction::Push) => "Pushed".to_owned(),
            (Transfer::Mounted { from }, _) => format!("Mounted from {from}"),
        };
        if matches!(event, Transfer::Done)
            && let Some(bar) = self.lock().remove(blob)
        {
            bar.finish_and_clear();
        }
        self.say(&format!("{}: {words}", &blob.hex()[..12]));
    }
}
