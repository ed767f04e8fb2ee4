//! The flags of the commands that talk to registries, and the build's policy for bases.
//!
//! In: what clap matched. Out: plain values.

use clap::Args;

use super::values::{some, yes_no};

/// When a base image is looked for in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pull {
    /// Each time.
    Always,
    /// When the store does not have it.
    #[default]
    Missing,
    /// Not at all.
    Never,
    /// Each time; what the store has will do where that fails.
    Newer,
}

impl Pull {
    /// Reads the value of `--pull`.
    pub(super) fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("missing") => Ok(Self::Missing),
            Some("always") => Ok(Self::Always),
            Some("never") => Ok(Self::Never),
            Some("newer") => Ok(Self::Newer),
            Some(other) => match yes_no(other) {
                Ok(true) => Ok(Self::Always),
                Ok(false) => Ok(Self::Missing),
                Err(_) => Err(format!("--pull={other}: expected always, missing, never or newer")),
            },
        }
    }
}

/// `rbuild pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Fetch an image from a registry")]
pub struct PullArgs {
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]", value_parser = some)]
    pub name: String,
    /// Fetch all tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Print the name alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Fetch the image for this platform [default: $DOCKER_DEFAULT_PLATFORM, this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Allow plain HTTP, and certificates that nobody trusts
    #[arg(long)]
    pub insecure: bool,
}

/// `rbuild push`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Send an image to a registry")]
pub struct PushArgs {
    /// The image
    #[arg(value_name = "NAME[:TAG]", value_parser = some)]
    pub name: String,
    /// Send all tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Print the name alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Of an image for several platforms, send this one alone
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Allow plain HTTP, and certificates that nobody trusts
    #[arg(long)]
    pub insecure: bool,
}

/// `rbuild login`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Log in at a registry")]
pub struct LoginArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
    /// The user's name
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// The password; others can see it while the command runs: --password-stdin is better
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Allow plain HTTP, and certificates that nobody trusts
    #[arg(long)]
    pub insecure: bool,
}

/// `rbuild logout`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Forget the login at a registry")]
pub struct LogoutArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}
