//! The flags of a build.
//!
//! In: what clap matched, and the settings (for build arguments without a value, and for defaults that the
//! environment gives). Out: [`BuildArgs`], in which every value is checked as far as it can be without a look at a
//! file. What always holds: a flag that rbuild cannot carry out has been refused by name.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::check::{self, Call, ReportForm};
use super::epoch::{self, Epoch};
use super::registry::Pull;
use super::run::{RunArgs, RunFlags};
use super::secrets::{self, SecretArg, SecretSpec, SshArg};
use super::values::{HostAddress, NamedContext, build_arg, build_context, bytes, count, host, label, some, yes_no};
use crate::cli::cache_spec::{self, CachePlace, CacheSpec, Side};
use crate::cli::find;
use crate::cli::output_spec::{self, Destination, OutputKind, OutputSpec};
use crate::cli::settings::Settings;
use crate::image::annotation::Annotation;
use crate::plan::remote::{self, Remote};
use crate::plan::step::Network;

/// What a build is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildArgs {
    /// What it is built from; `None` where `--print` or `--check` needs none and none is given.
    pub context: Option<BuildContext>,
    /// `-t`, as written.
    pub tags: Vec<String>,
    /// `-f`; `None` is the first of the usual names in the context.
    pub file: Option<DockerfilePath>,
    /// `--target`.
    pub target: Option<String>,
    /// `--build-arg`, in order; those without a value have that of the environment, or are left out.
    pub build_args: Vec<(String, String)>,
    /// `--label`, in order.
    pub labels: Vec<(String, String)>,
    /// `--build-context`, in order.
    pub build_contexts: Vec<(String, NamedContext)>,
    /// `--platform`, else `DOCKER_DEFAULT_PLATFORM`, as written.
    pub platforms: Vec<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`: stages, as written.
    pub no_cache_filter: Vec<String>,
    /// `--cache-from`, in order: the first that has a step's result gives it.
    pub cache_from: Vec<CacheSpec>,
    /// `--cache-to`, in order.
    pub cache_to: Vec<CacheSpec>,
    /// `--offline`: nothing is asked for on the network.
    pub offline: bool,
    /// `-o`, and `--load`, which is one of type docker without a destination; where it is empty, the image goes to the
    /// local store.
    pub outputs: Vec<OutputSpec>,
    /// `--annotation`, in order: for all outputs that have manifests.
    pub annotations: Vec<Annotation>,
    /// How progress is shown; `-q` is [`Progress::Quiet`].
    pub progress: Progress,
    /// `-q`: the image id alone goes to standard output.
    pub quiet: bool,
    /// `--iidfile`.
    pub iidfile: Option<PathBuf>,
    /// `--metadata-file`.
    pub metadata_file: Option<PathBuf>,
    /// The epoch that holds; `None` where nothing gives one.
    pub epoch: Option<Epoch>,
    /// `--jobs`.
    pub jobs: NonZeroUsize,
    /// `--explain`.
    pub explain: bool,
    /// `--print`: build nothing.
    pub print: Option<Print>,
    /// `--format json` (with `--print`).
    pub print_json: bool,
    /// `--isolation`.
    pub isolation: Isolation,
    /// `--network`; of [`Network::Default`], `private_network` says which it is.
    pub network: Network,
    /// `--network private`: what RUN has by default is a network of the build's own, not this machine's.
    pub private_network: bool,
    /// `--add-host`, in order.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--allow`.
    pub allow: Vec<Entitlement>,
    /// What RUN may use, and where shells are wanted.
    pub run: RunArgs,
    /// `--pull`.
    pub pull: Pull,
    /// `--secret`, in order.
    pub secrets: Vec<SecretArg>,
    /// `--ssh`, in order.
    pub ssh: Vec<SshArg>,
    /// `--verify-reproducible`: build twice and compare.
    pub verify_reproducible: bool,
    /// `--check` and `--call`: build nothing, and answer this.
    pub call: Option<Call>,
}

/// What a build is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildContext {
    /// A directory: relative to the working directory.
    Directory(PathBuf),
    /// `-`: a Dockerfile or a tar on standard input.
    Stdin,
    /// A git repository, or the URL of a tar or a Dockerfile; as written, and what it means.
    Remote(String, Remote),
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfilePath {
    /// `-f -`.
    Stdin,
    /// A file: in a context that is fetched or unpacked, else relative to the working directory.
    Path(PathBuf),
    /// `-f https://…`.
    Url(String),
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Progress {
    /// `tty` where standard error is a terminal, else `plain`
    #[default]
    Auto,
    /// Live: a line for each step that runs
    Tty,
    /// Line by line, with all output
    Plain,
    /// One JSON object per line
    Json,
    /// The same, as BuildKit writes it
    Rawjson,
    /// Errors alone
    Quiet,
    /// Errors alone
    None,
}

/// What `--print` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Print {
    /// The instructions, as JSON
    Ast,
    /// What would be done, step by step
    Plan,
    /// The stages and what they need, as DOT
    Graph,
}

/// How RUN is contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Isolation {
    /// The strongest that this machine allows
    #[default]
    Auto,
    /// Namespaces of its own
    Namespace,
    /// A root directory of its own
    Chroot,
}

/// What RUN may do beyond the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Entitlement {
    /// `RUN --network=host`
    #[value(name = "network.host")]
    NetworkHost,
    /// `RUN --security=insecure`
    #[value(name = "security.insecure")]
    SecurityInsecure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetworkName {
    /// This machine's
    Default,
    /// None but a loopback
    None,
    /// This machine's, also for RUN --network=host
    Host,
    /// One of the build's own, joined to the world by pasta: this machine's loopback is out of reach
    Private,
}

/// So many steps run at once even on fewer processors, if nobody says otherwise: RUN waits for networks and disks as much as
/// it computes, and on the two processors of a CI machine stages that wait would wait for each other.
const FEWEST_JOBS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

const CONTEXT: &str = "Dockerfile and context";
const RESULT: &str = "Result";
const CACHE: &str = "Cache";
const RUN: &str = "RUN";
const SHOW: &str = "Progress and inspection";

/// The flags as clap sees them.
#[allow(rustdoc::broken_intra_doc_links)] // these comments are the help: `[…]` is what may be left out
#[derive(Debug, Args)]
#[command(
    about = "Build an image from a Dockerfile (the default command)",
    override_usage = "rbuild [build] [OPTIONS] CONTEXT"
)]
pub(super) struct BuildFlags {
    /// The directory to build from, - for a Dockerfile or a tar on standard input, or the URL of a git repository
    /// (https://host/repo.git#ref:subdir), a tar or a Dockerfile
    #[arg(value_name = "CONTEXT")]
    context: Option<OsString>,

    /// The Dockerfile: a path or a URL; - is standard input [default: CONTEXT/Dockerfile, dockerfile, Containerfile]
    #[arg(short, long, value_name = "PATH", help_heading = CONTEXT)]
    file: Option<OsString>,
    /// Build this stage, and what it needs
    #[arg(long, value_name = "STAGE", help_heading = CONTEXT)]
    target: Option<String>,
    /// Set an ARG; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = build_arg, help_heading = CONTEXT)]
    build_arg: Vec<(String, Option<String>)>,
    /// A further context: a directory, oci-layout://DIR[:TAG|@DIGEST], oci-archive://FILE, docker-image://NAME, or the
    /// URL of a git repository or a tar
    #[arg(long, value_name = "NAME=VALUE", value_parser = build_context, help_heading = CONTEXT)]
    build_context: Vec<(String, NamedContext)>,
    /// Build for these platforms, such as linux/amd64,linux/arm64 [default: $DOCKER_DEFAULT_PLATFORM, this machine's]
    #[arg(long, value_name = "PLATFORMS", value_delimiter = ',', value_parser = some, help_heading = CONTEXT)]
    platform: Vec<String>,

    /// A name for the result (can be repeated)
    #[arg(short, long, value_name = "NAME[:TAG]", value_parser = some, help_heading = RESULT)]
    tag: Vec<String>,
    /// Set a label of the image
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, help_heading = RESULT)]
    label: Vec<(String, String)>,
    /// Annotate the manifest, or index:KEY=VALUE, manifest[linux/amd64]:KEY=VALUE…
    #[arg(long, value_name = "KEY=VALUE", value_parser = some, help_heading = RESULT)]
    annotation: Vec<String>,
    /// Where the result goes: DIR, - or type=image|registry|oci|docker|tar|local|cacheonly[,dest=PATH][,…]
    /// [default: the local image store]
    #[arg(short, long, value_name = "SPEC", value_parser = some, help_heading = RESULT)]
    output: Vec<String>,
    /// Send the image to the registry of its name
    #[arg(long, help_heading = RESULT)]
    push: bool,
    /// Hand the result to `docker load` or `podman load`
    #[arg(long, help_heading = RESULT)]
    load: bool,
    /// Write the image id to this file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    iidfile: Option<PathBuf>,
    /// Write what was built to this file, as JSON
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    metadata_file: Option<PathBuf>,
    /// The time of everything new, in seconds since 1970: the image id is then the same on every machine
    /// [default: $SOURCE_DATE_EPOCH]
    #[arg(long, value_name = "EPOCH", help_heading = RESULT)]
    timestamp: Option<String>,

    /// Run every step, whatever the cache has
    #[arg(long, help_heading = CACHE)]
    no_cache: bool,
    /// Run every step of these stages
    #[arg(long, value_name = "STAGES", value_delimiter = ',', value_parser = some, help_heading = CACHE)]
    no_cache_filter: Vec<String>,
    /// Take what other machines built from there: NAME (a repository) or type=registry|local,ref=NAME|src=DIR
    /// [,mounts=ID]
    #[arg(long, value_name = "SPEC", help_heading = CACHE)]
    cache_from: Vec<String>,
    /// Keep what is built there for other machines: NAME or type=registry|local,ref=NAME|dest=DIR[,mode=min|max]
    /// [,mounts=ID][,ignore-error=true][,…]
    #[arg(long, value_name = "SPEC", help_heading = CACHE)]
    cache_to: Vec<String>,
    /// When base images are asked for in their registry: always, missing, never or newer [default: missing; --pull
    /// alone is always]
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always",
          help_heading = CACHE)]
    pull: Option<String>,
    /// Use no network
    #[arg(long, help_heading = CACHE)]
    offline: bool,
    /// Say of every step that was not in the cache, why
    #[arg(long, help_heading = CACHE)]
    explain: bool,

    /// The network of RUN
    #[arg(long, value_name = "MODE", value_enum, default_value = "default", help_heading = RUN)]
    network: NetworkName,
    /// A line for /etc/hosts during RUN; the address host-gateway is this machine's
    #[arg(long, value_name = "HOST:IP", value_parser = host, help_heading = RUN)]
    add_host: Vec<(String, HostAddress)>,
    /// The size of /dev/shm during RUN
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = RUN)]
    shm_size: Option<u64>,
    /// Allow what RUN may ask for beyond the usual
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',', help_heading = RUN)]
    allow: Vec<Entitlement>,
    #[command(flatten)]
    run: RunFlags,
    /// A secret for RUN --mount=type=secret: id=ID[,src=FILE|,env=NAME]
    #[arg(long, value_name = "SPEC", value_parser = secrets::secret, help_heading = RUN)]
    secret: Vec<SecretSpec>,
    /// An SSH agent for RUN --mount=type=ssh: default, ID=SOCKET or ID=KEY[,KEY]
    #[arg(long, value_name = "SPEC", value_parser = secrets::ssh, help_heading = RUN)]
    ssh: Vec<SshArg>,
    /// How RUN is contained
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto", help_heading = RUN)]
    isolation: Isolation,
    /// Steps that run at once [default: the number of processors, at least 4]
    #[arg(long, value_name = "N", value_parser = count, help_heading = RUN)]
    jobs: Option<NonZeroUsize>,
    /// Build twice with empty caches, compare, and say which step and which files differ
    #[arg(long, help_heading = RUN)]
    verify_reproducible: bool,

    /// How progress is shown [default: $RBUILD_PROGRESS, $BUILDKIT_PROGRESS, auto]
    #[arg(long, value_name = "HOW", value_enum, help_heading = SHOW)]
    progress: Option<Progress>,
    /// Print the image id alone
    #[arg(short, long, help_heading = SHOW)]
    quiet: bool,
    /// Build nothing; print what was read or planned
    #[arg(long, value_name = "WHAT", value_enum, help_heading = SHOW)]
    print: Option<Print>,
    /// Build nothing; say what the build checks find
    #[arg(long, help_heading = SHOW)]
    check: bool,
    /// The form of what --print, --check and --call print: text, json or (of --check) sarif
    #[arg(long, value_name = "FORMAT", value_enum, hide_possible_values = true, help_heading = SHOW)]
    format: Option<ReportForm>,

    /// Build nothing; answer a question: check, outline (what the target takes) or targets (the stages)
    #[arg(long, value_name = "METHOD[,format=json]", help_heading = SHOW)]
    call: Option<String>,

    // What scripts for docker pass, and what changes nothing here.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
    #[arg(long, hide = true)]
    attest: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "true", action = clap::ArgAction::Set, value_parser = yes_no)]
    rm: bool,
    #[arg(long, hide = true)]
    force_rm: bool,
    #[arg(long, hide = true)]
    compress: bool,
    #[arg(long, hide = true, default_value = "default")]
    builder: String,
}

impl BuildFlags {
    /// Checks the flags against each other and settles what depends on the settings.
    pub(super) fn into_args(self, settings: &Settings) -> Result<BuildArgs, String> {
        self.check_no_ops()?;
        let pull = Pull::parse(self.pull.as_deref())?;
        if self.offline && matches!(pull, Pull::Always | Pull::Newer) {
            return Err("--offline and --pull, which asks registries, cannot both hold".to_owned());
        }
        let build_args = build_args(&self.build_arg, settings)?;
        let from_environment = settings.var("SOURCE_DATE_EPOCH").map_err(|error| error.to_string())?;
        let epoch = epoch::choose(self.timestamp.as_deref(), &build_args, from_environment.as_deref())?;
        let call = check::requested(self.check, self.call.as_deref(), self.format)?;
        let print_json = match (self.print, self.format) {
            (Some(_), _) if call.is_some() => return Err("--print and --check or --call cannot both hold".into()),
            (None, _) if call.is_some() => false,
            (None, Some(_)) => {
                return Err("--format says in what form --print, --check and --call print; give one of them too".into());
            }
            (_, Some(ReportForm::Sarif)) => return Err("--format sarif is a form of --check".into()),
            (Some(Print::Graph), Some(ReportForm::Json)) => {
                return Err("--print graph has the form DOT alone; --print plan --format json has the steps".into());
            }
            (Some(Print::Ast), Some(ReportForm::Text)) => {
                return Err("--print ast has the form JSON alone".into());
            }
            (_, format) => format == Some(ReportForm::Json),
        };
        let outputs = outputs(&self.output, self.push, self.load, self.quiet, settings)?;
        if self.offline && outputs.iter().any(|output| output.push) {
            return Err("--offline and --push, or an output that goes to a registry, cannot both hold".to_owned());
        }
        Ok(BuildArgs {
            context: context(self.context, self.print == Some(Print::Ast) || call.is_some())?,
            tags: self.tag,
            file: self.file.map(|file| match file {
                file if file == "-" => DockerfilePath::Stdin,
                file if file.to_str().is_some_and(remote::is_url) => {
                    DockerfilePath::Url(file.to_string_lossy().into_owned())
                }
                file => DockerfilePath::Path(PathBuf::from(file)),
            }),
            target: self.target,
            build_args,
            labels: self.label,
            build_contexts: self.build_context,
            platforms: platforms(self.platform, settings)?,
            no_cache: self.no_cache,
            no_cache_filter: self.no_cache_filter,
            cache_from: caches(Side::From, &self.cache_from, self.offline, self.verify_reproducible)?,
            cache_to: caches(Side::To, &self.cache_to, self.offline, self.verify_reproducible)?,
            offline: self.offline,
            outputs,
            annotations: annotations(&self.annotation)?,
            progress: progress(self.progress, self.quiet, settings)?,
            quiet: self.quiet,
            iidfile: self.iidfile,
            metadata_file: self.metadata_file,
            epoch,
            jobs: self.jobs.unwrap_or(settings.cpus.max(FEWEST_JOBS)),
            explain: self.explain,
            print: self.print,
            print_json,
            isolation: self.isolation,
            add_hosts: add_hosts(self.add_host, self.network)?,
            network: match self.network {
                NetworkName::Default | NetworkName::Private => Network::Default,
                NetworkName::None => Network::None,
                NetworkName::Host => Network::Host,
            },
            private_network: self.network == NetworkName::Private,
            shm_size: self.shm_size,
            allow: self.allow,
            run: self.run.into_args()?,
            pull,
            secrets: self.secret.into_iter().map(|secret| secret.settle(settings)).collect(),
            ssh: self.ssh,

            verify_reproducible: self.verify_reproducible,
            call,
        })
        .and_then(check_stdin)
    }

    /// Flags of docker that are accepted with the value that asks for nothing.
    fn check_no_ops(&self) -> Result<(), String> {
        for (flag, value) in [("provenance", &self.provenance), ("sbom", &self.sbom)] {
            if let Some(value) = value
                && yes_no(value) != Ok(false)
                && value != "disabled=true"
            {
                return Err(format!("not supported yet: --{flag}={value}; rbuild makes no attestations"));
            }
        }
        for value in &self.attest {
            let off = ["off", "false"].contains(&value.as_str())
                || value.split(',').any(|field| field.split_once('=').is_some_and(is_disabled));
            if !off {
                return Err(format!("not supported yet: --attest {value}; rbuild makes no attestations"));
            }
        }
        if !self.rm {
            return Err("not supported: --rm=false; rbuild makes no intermediate containers to keep".to_owned());
        }
        if self.builder != "default" {
            return Err(format!("not supported: --builder {}; rbuild has one builder, itself", self.builder));
        }
        Ok(())
    }
}

fn is_disabled((key, value): (&str, &str)) -> bool {
    key == "disabled" && yes_no(value) == Ok(true)
}

fn context(given: Option<OsString>, may_lack: bool) -> Result<Option<BuildContext>, String> {
    let Some(given) = given else {
        // The instructions are read from `-f`, or from what lies in the working directory.
        return if may_lack {
            Ok(None)
        } else {
            Err("a build needs a CONTEXT, the directory to build from; for this one: rbuild [OPTIONS] .".to_owned())
        };
    };
    match given.to_str() {
        Some("-") => Ok(Some(BuildContext::Stdin)),
        Some("") => Err("the CONTEXT is empty; for this directory write .".to_owned()),
        Some(text) => match remote::parse_context(text) {
            Some(remote) => Ok(Some(BuildContext::Remote(text.to_owned(), remote?))),
            None => Ok(Some(BuildContext::Directory(PathBuf::from(given)))),
        },
        _ => Ok(Some(BuildContext::Directory(PathBuf::from(given)))),
    }
}

fn build_args(given: &[(String, Option<String>)], settings: &Settings) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for (name, value) in given {
        let value = match value {
            Some(value) => Some(value.clone()),
            None => settings.var(name).map_err(|error| format!("--build-arg {name}: {error}"))?,
        };
        // One that is set nowhere is not passed, as with docker: the Dockerfile's default holds.
        all.extend(value.map(|value| (name.clone(), value)));
    }
    Ok(all)
}

fn platforms(given: Vec<String>, settings: &Settings) -> Result<Vec<String>, String> {
    if !given.is_empty() {
        return Ok(given);
    }
    let usual = settings.var("DOCKER_DEFAULT_PLATFORM").map_err(|error| error.to_string())?;
    Ok(usual.into_iter().filter(|platform| !platform.is_empty()).collect())
}

/// The addresses that names mean during RUN.
fn add_hosts(given: Vec<(String, HostAddress)>, network: NetworkName) -> Result<Vec<(String, IpAddr)>, String> {
    let address = |name: &str, address| match (address, network) {
        (HostAddress::Ip(address), _) => Ok(address),
        // RUN is on this machine's network: its services answer at the loopback too.
        (HostAddress::Gateway, NetworkName::Default | NetworkName::Host) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (HostAddress::Gateway, NetworkName::None | NetworkName::Private) => {
            let network = network.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let what = "nothing leads to this machine's loopback";
            Err(format!("--add-host {name}:host-gateway: with --network {network} {what}"))
        }
    };
    given.into_iter().map(|(name, given)| address(&name, given).map(|address| (name, address))).collect()
}

fn annotations(given: &[String]) -> Result<Vec<Annotation>, String> {
    let here = find::machine();
    let mut all = Vec::new();
    for text in given {
        all.extend(Annotation::parse_flag(text, &here).map_err(|why| format!("--annotation {text}: {why}"))?);
    }
    Ok(all)
}

fn progress(given: Option<Progress>, quiet: bool, settings: &Settings) -> Result<Progress, String> {
    match given {
        None | Some(Progress::Auto | Progress::Quiet | Progress::None) if quiet => return Ok(Progress::Quiet),
        Some(progress) if quiet => {
            let name = progress.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            return Err(format!("--quiet and --progress={name} cannot both hold"));
        }
        Some(progress) => return Ok(progress),
        None => {}
    }
    for name in ["RBUILD_PROGRESS", "BUILDKIT_PROGRESS"] {
        let value = settings.var(name).map_err(|error| error.to_string())?;
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            return Progress::from_str(&value, true)
                .map_err(|_| format!("{name}={value}: expected auto, tty, plain, json, rawjson, quiet or none"));
        }
    }
    Ok(Progress::Auto)
}

fn outputs(
    given: &[String],
    push: bool,
    load: bool,
    quiet: bool,
    settings: &Settings,
) -> Result<Vec<OutputSpec>, String> {
    let mut outputs = given.iter().map(|spec| output_spec::parse(spec)).collect::<Result<Vec<_>, _>>()?;
    if load {
        if outputs.is_empty() {
            outputs.push(OutputSpec::new(OutputKind::Image));
        }
        if !outputs.iter().any(OutputSpec::is_load) {
            outputs.push(OutputSpec::new(OutputKind::Docker));
        }
    }
    if push {
        output_spec::push(&mut outputs);
    }
    let mut to_stdout = outputs.iter().filter(|output| output.dest == Some(Destination::Stdout));
    if let Some(first) = to_stdout.next() {
        let kind = first.kind.name();
        if to_stdout.next().is_some() {
            return Err("only one output can go to standard output; give the others dest=FILE".to_owned());
        }
        if quiet {
            return Err(format!(
                "--quiet prints the image id on standard output, where the {kind} output goes too; \
                 give it dest=FILE, or use --iidfile"
            ));
        }
        if settings.stdout_is_terminal {
            return Err(format!("the {kind} output would go to the terminal; redirect it or give dest=FILE"));
        }
    }
    Ok(outputs)
}

fn caches(side: Side, given: &[String], offline: bool, verify: bool) -> Result<Vec<CacheSpec>, String> {
    let flag = if side == Side::From { "--cache-from" } else { "--cache-to" };
    let mut all = Vec::new();
    for text in given {
        all.extend(cache_spec::parse(side, text)?);
    }
    if verify && !all.is_empty() {
        return Err(format!("--verify-reproducible builds with empty caches, so {flag} cannot hold too"));
    }
    if offline && let Some(spec) = all.iter().find(|spec| matches!(spec.place, CachePlace::Registry(_))) {
        return Err(format!("--offline and {flag} {}, which is in a registry, cannot both hold", spec.name()));
    }
    Ok(all)
}

/// Only one thing can come from standard input.
fn check_stdin(args: BuildArgs) -> Result<BuildArgs, String> {
    if args.context == Some(BuildContext::Stdin) && args.file == Some(DockerfilePath::Stdin) {
        return Err("the CONTEXT and the Dockerfile cannot both come from standard input".to_owned());
    }
    Ok(args)
}
