//! The flags of the commands that work on the image store.
//!
//! In: what clap matched. Out: plain values, one struct per command.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::values::{some, yes_no};

/// `rbuild images`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "List images (ls is the same)")]
pub struct ImagesArgs {
    /// Show images of this name only
    #[arg(value_name = "REFERENCE")]
    pub reference: Option<String>,
    /// Show all images
    #[arg(short, long)]
    pub all: bool,
    /// Show image ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Show whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Show manifest and content digests
    #[arg(long)]
    pub digests: bool,
    /// table, json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show what fits: dangling=, label=, label!=, before=, since=, until=, reference=
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = filter)]
    pub filters: Vec<(String, String)>,
}

fn filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_lowercase(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE, such as dangling=true".to_owned()),
    }
}

/// `rbuild history`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(about = "Show how an image was made")]
pub struct HistoryArgs {
    /// The image: a name or an id
    #[arg(value_name = "IMAGE", value_parser = some)]
    pub image: String,
    /// Ages and sizes as people write them
    #[arg(short = 'H', long, action = ArgAction::Set, default_value = "true", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_name = "BOOL", value_parser = yes_no)]
    pub human: bool,
    /// Show whole texts
    #[arg(long)]
    pub no_trunc: bool,
    /// Show image ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// table, json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Of an image for several platforms, show this one [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_parser = some)]
    pub platform: Option<String>,
}

/// `rbuild inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Show images as JSON")]
pub struct InspectArgs {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true, value_parser = some)]
    pub images: Vec<String>,
    /// json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Read and digest all that belongs to the images
    #[arg(long)]
    pub verify: bool,
    /// Of an image for several platforms, show this one alone
    #[arg(long, value_name = "PLATFORM", value_parser = some)]
    pub platform: Option<String>,
}

/// `rbuild tag`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Give an image one more name")]
pub struct TagArgs {
    /// The image: a name or an id
    #[arg(value_name = "SOURCE", value_parser = some)]
    pub source: String,
    /// The new name; one that is in use moves
    #[arg(value_name = "NAME[:TAG]", value_parser = some)]
    pub target: String,
}

/// `rbuild rmi`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Remove names of images, and images without a name (rm and untag are the same)")]
pub struct RmiArgs {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true, value_parser = some)]
    pub images: Vec<String>,
    /// Remove all names of an id; what is not there is no error
    #[arg(short, long)]
    pub force: bool,
}

/// `rbuild load`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Bring images in from an archive that `docker save`, skopeo or rbuild wrote")]
pub struct LoadArgs {
    /// The archive, compressed or not [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Leave progress out; there is none, and what was loaded is told all the same
    #[arg(short, long)]
    pub quiet: bool,
    /// Bring in what is for these platforms alone
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',', value_parser = some)]
    pub platforms: Vec<String>,
}

/// `rbuild save`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Write images to an archive, which `docker load`, skopeo and `rbuild load` read")]
pub struct SaveArgs {
    /// Names or ids; a name without a tag is all its tags
    #[arg(value_name = "IMAGE", required = true, value_parser = some)]
    pub images: Vec<String>,
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// docker: what `docker save` writes, layers unpacked; oci: an OCI layout, layers as they are in the store
    #[arg(long, value_name = "FORMAT", default_value = "docker", value_parser = archive_format)]
    pub format: ArchiveFormat,
    /// Write what is for these platforms alone
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',', value_parser = some)]
    pub platforms: Vec<String>,
}

/// What kind of archive `rbuild save` writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// `docker save`'s.
    #[default]
    Docker,
    /// An OCI image layout.
    Oci,
}

fn archive_format(text: &str) -> Result<ArchiveFormat, String> {
    match text {
        "docker" | "docker-archive" => Ok(ArchiveFormat::Docker),
        "oci" | "oci-archive" => Ok(ArchiveFormat::Oci),
        _ => Err("expected docker or oci".to_owned()),
    }
}

/// `rbuild diff`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Show where two images differ; exit status 0: nowhere, 1: somewhere, 2: trouble")]
pub struct DiffArgs {
    /// The first image: a name or an id
    #[arg(value_name = "A", value_parser = some)]
    pub a: String,
    /// The second image
    #[arg(value_name = "B", value_parser = some)]
    pub b: String,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = diff_format)]
    pub format: DiffFormat,
}

/// How `rbuild diff` tells what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiffFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

fn diff_format(text: &str) -> Result<DiffFormat, String> {
    match text {
        "text" => Ok(DiffFormat::Text),
        "json" => Ok(DiffFormat::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

/// `rbuild df`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Show what the store holds and how much of the disk it takes")]
pub struct DfArgs {
    /// Show each image, each layer and each part of the build cache
    #[arg(short, long)]
    pub verbose: bool,
    /// table, json, "table TEMPLATE" or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `rbuild version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Print the version")]
pub struct VersionArgs {
    /// json or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `rbuild completion`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(about = "Print completions for a shell; source them, or put them where the shell looks")]
pub struct CompletionArgs {
    /// bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = shell)]
    pub shell: Shell,
}

/// A shell that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

fn shell(text: &str) -> Result<Shell, String> {
    match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("expected bash, zsh or fish".to_owned()),
    }
}

/// `rbuild import`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(about = "Make an image of one layer from the tar of a root file system")]
pub struct ImportArgs {
    /// The tar, compressed or not, or the URL of one; - is standard input
    #[arg(value_name = "FILE|URL|-")]
    pub file: PathBuf,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]", value_parser = some)]
    pub reference: Option<String>,
    /// A Dockerfile instruction for the image's config, such as "CMD bash"
    #[arg(short, long = "change", value_name = "INSTRUCTION", value_parser = some)]
    pub changes: Vec<String>,
    /// A comment for the history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// What the image is for [default: this machine]
    #[arg(long, value_name = "PLATFORM", value_parser = some)]
    pub platform: Option<String>,
}
