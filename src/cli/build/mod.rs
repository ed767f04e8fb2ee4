//! `rbuild build`: from arguments to an image.
//!
//! In: [`BuildArgs`], [`Settings`]. Out: an image in the store or in files, two lines about it, an exit status. What
//! always holds: everything that can be said against the Dockerfile is said before anything runs; names are given last,
//! when all that they lead to is durable.

mod bases;
mod blame;
mod bring;
mod checks;
mod finish;
mod hints;
mod input;
mod isolation;
mod limit;
mod load;
mod outputs;
mod push;
mod remote;
mod secrets;
mod share;
mod shell;
mod verify;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use self::bring::{Bringer, Brought, Network, Session};
pub(super) use self::checks::with_dockerfile;
use self::checks::{Told, ignored};
use self::input::{Dockerfile, Root};
use self::push::Pushes;
use self::remote::Remotes;
use super::args::{BuildArgs, Entitlement, NamedContext, Print, Progress};
use super::failure::Failure;
use super::find;
use super::output_spec::OutputSpec;
use super::render::Reporter;
use super::settings::Settings;
use super::stdout::stdout;
use crate::context::local::LocalContext;
use crate::diagnostic::Diagnostic;
use crate::dockerfile::{self, ast};
use crate::event::{Event, EventSink};
use crate::exec::{self, PrivateNetwork, Sandbox};
use crate::image::platform::Platform;
use crate::layer::apply::{Flavour, TreeOptions};
use crate::plan::limits::{Allowed, RunLimits};
use crate::plan::step::{self, Op, Plan};
use crate::plan::{self, BaseImage, Bases, NoCache, Outcome, PlanOptions, Resolved, StageGraph};
use crate::shared::SharedCache;
use crate::solve::{self, Engine, Exports};
use crate::store::Store;
use crate::store::lease::Lease;
use crate::store::sweep::Swept;
use crate::sys::cancel::Cancel;
use crate::sys::idmap::{Extent, IdMap};
use crate::sys::namespace;

/// Builds.
pub fn run(args: &BuildArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let now = SystemTime::now();
    isolation::chosen(args, settings)?;
    check_results(args, settings)?;
    shell::check_terminal(args, settings)?;
    // Each of the two builds that are compared has a display of its own, and is forked, which takes one thread.
    let progress = if args.verify_reproducible { Progress::Quiet } else { args.progress };
    let reporter = Reporter::new(progress, args.explain, settings);
    let network = Network::new(args, settings);
    let mut session = None;
    let result = build(args, settings, now, &network, &reporter, &mut session);
    if result.is_err() && session.is_some() {
        reporter.finish(None);
    }
    result
}

fn build(
    args: &BuildArgs,
    settings: &Settings,
    now: SystemTime,
    network: &Network<'_>,
    reporter: &Reporter,
    session: &mut Option<Session>,
) -> Result<ExitCode, Failure> {
    let (file, root) = input::read(args, settings, network, reporter, session)?;
    let parsed = dockerfile::parse(&file.source);
    if args.print == Some(Print::Ast) {
        writeln!(stdout(), "{:#}", dockerfile::print_ast(&parsed.nodes))?;
    }
    if args.print == Some(Print::Ast) && !parsed.has_errors() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = plan_options(args, settings)?;
    if let Some(wanted) = args.run.shell_at.as_ref().filter(|_| !parsed.has_errors()) {
        let at = shell::place(wanted, &parsed.dockerfile)?;
        options.target = Some(at.stage.to_string());
        options.shell_at = Some(at);
    }
    let told = Told::new(&parsed, &file.source, &options);
    if told.has_errors() {
        return Err(told.failure(Vec::new(), None));
    }
    let graph = plan::graph(&parsed.dockerfile, &options).map_err(|list| told.failure(list, None))?;
    let built = graph.needed();
    let refuse = |list: Vec<Diagnostic>| told.failure(list, Some(&built));
    if args.print == Some(Print::Graph) {
        write!(stdout(), "{}", plan::print::dot(&graph))?;
        return Ok(ExitCode::SUCCESS);
    }

    if session.is_none() {
        *session = Some(Session::open(settings)?);
    }
    let session: &Session = session.as_ref().expect("it was opened above");
    let Session { cancel, store, lease, swept } = session;
    let remotes = Remotes::new(args, settings, store, lease, cancel, reporter);
    let resolved = resolve(&graph, &options, args, settings, store, lease, &remotes);
    if let Some(signal) = cancel.signal() {
        return Err(Failure::Interrupted(signal));
    }
    let (plan, bases, more) = resolved.map_err(refuse)?;
    if args.print == Some(Print::Plan) {
        let text =
            if args.print_json { format!("{:#}\n", plan::print::to_json(&plan)) } else { plan::print::text(&plan) };
        write!(stdout(), "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }

    let isolation = isolation::chosen(args, settings)?;
    let refused = isolation::refusals(isolation, &plan);
    if !refused.is_empty() {
        return Err(told.failure(refused, Some(&built)));
    }
    outputs::check(args, &plan)?;
    let warnings = told.warnings(more, ignored(&plan, &root, &file)?, &built)?;

    reporter.set_source(file.source.clone());
    for warning in &warnings {
        reporter.event(Event::Warning(warning));
    }
    if args.outputs.iter().any(|output| output.rewrite_timestamp) && options.epoch.is_none() {
        reporter.event(Event::Note(
            "warning: rewrite-timestamp=true has no effect without SOURCE_DATE_EPOCH or --timestamp",
        ));
    }
    let dockerfile = &parsed.dockerfile;
    let shared = share::open(args, settings, session, &remotes, reporter, &plan)?;
    let job = Job {
        args,
        settings,
        file: &file,
        dockerfile,
        store,
        lease,
        reporter,
        plan: &plan,
        bases: &bases,
        cancel,
        root: &root,
        session,
        network,
        sandbox: &Sandbox {
            isolation,
            resources: args.run.resources.clone(),
            filter: !args.run.unconfined,
            no_new_privileges: args.run.no_new_privileges,
            network: args.private_network.then(PrivateNetwork::default),
            ..Sandbox::default()
        },
        remotes: &remotes,
        shared: shared.as_ref(),
    };
    if args.verify_reproducible {
        // The two builds take their bases from this store.
        for base in &bases {
            remotes.complete(base, reporter)?;
        }
        return verify::run(&job);
    }
    let result = job.carry_out(now, swept);
    let built = match &result {
        Ok(Ended::Built(report)) => {
            limit::check(&job, &report.made());
            Some(report.built())
        }
        _ => None,
    };
    reporter.finish(built.as_ref());
    match (result, cancel.signal()) {
        (Ok(Ended::Built(report)), _) => report.write(&job),
        (Ok(Ended::Shell(code)), _) => Ok(code),
        (Err(_), Some(signal)) => Err(Failure::Interrupted(signal)),
        (Err(failure), None) => Err(failure),
    }
}

/// What a build ended with.
enum Ended {
    /// An image.
    Built(Box<finish::Report>),
    /// A shell.
    Shell(ExitCode),
}

/// What the engine came to.
enum Solved {
    /// Every step is solved.
    All(solve::Solution),
    /// A place for a shell is ready.
    Place(Box<solve::Inside>),
}

/// A build that has been planned.
struct Job<'a> {
    args: &'a BuildArgs,
    settings: &'a Settings,
    file: &'a Dockerfile,
    dockerfile: &'a ast::Dockerfile,
    store: &'a Store,
    lease: &'a Lease,
    reporter: &'a Reporter,
    plan: &'a Plan,
    bases: &'a [Arc<BaseImage>],
    cancel: &'a Cancel,
    sandbox: &'a Sandbox,
    root: &'a Root,
    session: &'a Session,
    network: &'a Network<'a>,
    remotes: &'a Remotes<'a>,
    /// The caches of `--cache-from`.
    shared: Option<&'a SharedCache<'a>>,
}

impl Job<'_> {
    fn carry_out(&self, now: SystemTime, swept: &Swept) -> Result<Ended, Failure> {
        // After a power cut: what the builds of then had made.
        let ids = || self.prepare_trees().map(drop).map_err(anyhow::Error::msg);
        if let Some(note) = find::recover(self.store, self.lease, swept, ids)? {
            self.reporter.event(Event::Note(&note));
        }
        let contexts = self.contexts(now)?;
        // It starts as whoever started rbuild, not in the user namespace of the build.
        let loader = load::Loader::start(self)?;
        let secrets = secrets::secrets(self.args, self.settings)?;
        let agents = secrets::agents(self.args, self.settings)?;
        let hosts: Vec<(String, String)> =
            self.args.add_hosts.iter().map(|(name, address)| (name.clone(), address.to_string())).collect();
        let identity = format!("{}\n{}", self.file.source.name, self.settings.cwd.display());
        let fetches = self.plan.steps.iter().any(|step| match &step.op {
            Op::Copy(copy) => copy.remotes().next().is_some(),
            _ => false,
        });
        // Nothing of the network is set up for a build that fetches nothing.
        let fetch = if fetches { Some(self.network.fetch(self.store, self.lease, self.cancel)?) } else { None };
        let pushes = Pushes::new(self)?;
        thread::scope(|scope| {
            let engine = Engine {
                store: self.store,
                lease: self.lease,
                contexts: &contexts,
                bases: self.bases,
                sandbox: self.sandbox,
                prepare_trees: &|| self.prepare_trees(),
                exports: self.exports(),
                jobs: self.args.jobs.get(),
                extra_hosts: &hosts,
                identity: &identity,
                explain: self.args.explain || matches!(self.args.progress, Progress::Json),
                events: self.reporter,
                cancel: self.cancel,
                clock: SystemTime::now,
                absent: &|layer| self.remotes.bring(layer, self.reporter).map_err(|error| format!("{error:#}")),
                shared: self.shared,
                committed: &|step, solved| pushes.take(scope, step, solved),
                fetch: fetch.as_ref(),
                secrets: &secrets,
                agents: &agents,
                keep_failed: self.args.run.shell_on_error,
            };
            let going_ahead = pushes.going_ahead();
            let solved = match &self.plan.shell {
                Some(point) => solve::shell(self.plan, &engine, point).map(Box::new).map(Solved::Place),
                None => solve::solve(self.plan, &engine).map(Solved::All).map_err(solve::ShellError::Step),
            };
            drop(going_ahead);
            // Digests that were computed stay known, whether the build went well or not.
            for context in &contexts {
                if let Err(error) = context.save(self.lease.folder()) {
                    let note = format!("warning: what was learned of the context's files is not kept: {error}");
                    self.reporter.event(Event::Note(&note));
                }
            }
            match solved {
                Ok(Solved::All(solution)) => {
                    let report = finish::finish(self, &solution, loader, &pushes)?;
                    share::export(self, &solution)?;
                    Ok(Ended::Built(Box::new(report)))
                }
                Ok(Solved::Place(inside)) => {
                    let place = self.plan.shell.as_ref().map_or("", |point| point.place.as_str());
                    self.shell_at(*inside, place).map(Ended::Shell)
                }
                Err(solve::ShellError::Place(cause)) => {
                    Err(anyhow::anyhow!("there is no shell to open: {cause}").into())
                }
                Err(solve::ShellError::Step(error)) => {
                    // A shell is started by a process of one thread.
                    pushes.wait();
                    let failure = self.failure(&error);
                    match error.inside {
                        Some(inside) if self.cancel.signal().is_none() => {
                            self.shell_on_error(*inside, &failure).map(Ended::Shell)
                        }
                        _ => Err(failure),
                    }
                }
            }
        })
    }

    /// What is read after the solution: only bytes of layers take file trees.
    fn exports(&self) -> Exports {
        use crate::cli::output_spec::OutputKind::{CacheOnly, Image};
        if self.plan.shell.is_some() {
            return Exports::Nothing;
        }
        if !self.args.cache_to.is_empty() {
            return Exports::Steps;
        }
        let only_store = |output: &OutputSpec| match output.kind {
            CacheOnly => true,
            Image => !output.push && output.compression.is_none(),
            _ => false,
        };
        if !self.args.outputs.iter().all(only_store) {
            return Exports::Bytes;
        }
        self.epoch().map_or(Exports::Nothing, Exports::Epoch)
    }

    fn epoch(&self) -> Option<i64> {
        self.args.epoch.as_ref().and_then(|epoch| epoch.seconds)
    }

    /// Opens the contexts that steps read.
    fn contexts(&self, now: SystemTime) -> Result<Vec<LocalContext>, Failure> {
        let mut contexts = Vec::new();
        for planned in &self.plan.contexts {
            let dockerfile = self.file.path.as_deref();
            contexts.push(match (&planned.name, self.root) {
                (None, Root::Folder(folder)) => input::open_context(folder, dockerfile, self.store, now)?,
                (None, Root::Brought(folder)) => input::open_brought(folder, now)?,
                (None, Root::Nothing) => input::empty_context(&self.lease.fresh_path(), now)?,
                (Some(name), _) => self.named_context(name, now)?,
            });
        }
        contexts.iter_mut().for_each(|context| context.heed(self.cancel));
        Ok(contexts)
    }

    fn named_context(&self, name: &str, now: SystemTime) -> Result<LocalContext, Failure> {
        let named = self.args.build_contexts.iter().rev().find(|(known, _)| known == name);
        match named.map(|(_, context)| context) {
            Some(NamedContext::Directory(folder)) => {
                Ok(input::open_context(&self.settings.cwd.join(folder), None, self.store, now)?)
            }
            Some(NamedContext::Remote(remote)) => {
                let bringer = Bringer { session: self.session, network: self.network, events: self.reporter };
                match bringer.remote(remote)? {
                    Brought::Folder(folder) => Ok(input::open_brought(&folder, now)?),
                    Brought::Dockerfile(_) => Err(anyhow::anyhow!(
                        "the context {name} of --build-context is neither a git repository nor a tar"
                    )
                    .into()),
                }
            }
            _ => Err(anyhow::anyhow!("there is no context {name}").into()),
        }
    }

    /// Makes this process able to make file trees: root is, everyone else enters a user namespace.
    fn prepare_trees(&self) -> Result<TreeOptions, String> {
        let text = |error: anyhow::Error| format!("{error:#}");
        let claim = |who: &str| self.store.claim_trees(who).map_err(|error| text(error.into()));
        if self.settings.uid == 0 {
            if namespace::in_initial_user_namespace().map_err(|error| text(error.into()))? {
                claim("root, attributes trusted.overlay")?;
                return Ok(TreeOptions { flavour: Flavour::Trusted, devices: true });
            }
            // Root of a container: the kernel lets it have neither trusted attributes nor devices.
            claim("root of a user namespace, attributes user.overlay")?;
        } else if let Some(map) = find::enter_ids(self.settings).map_err(text)? {
            claim(&format!("{}, attributes user.overlay", describe(&map)))?;
            // What an earlier build left of mapped ids can be removed only from here.
            self.store.empty_trash().map_err(|error| text(error.into()))?;
        }
        Ok(TreeOptions { flavour: Flavour::User, devices: false })
    }

    /// What went wrong with a step, at the word that is to blame.
    fn failure(&self, error: &solve::StepError) -> Failure {
        let step = &self.plan.steps[error.step.0];
        let source = self.file.source.clone();
        let tail = self.reporter.tail(error.step);
        let lines = tail.lines.iter().map(String::as_str);
        let has_context = !matches!(self.root, Root::Nothing);
        let diagnostic = blame::diagnostic(&error.cause, step, self.dockerfile, &source, has_context, lines);
        match error.cause {
            solve::Cause::Command { .. } => Failure::Step { source, diagnostic: Box::new(diagnostic), tail },
            _ => Failure::Diagnostics { source, list: vec![diagnostic] },
        }
    }
}

/// What can be said against names and files of the result before the work, not after it.
fn check_results(args: &BuildArgs, settings: &Settings) -> Result<(), Failure> {
    if finish::names(args)?.is_empty() && args.outputs.iter().any(|output| output.push) {
        return Err(Failure::Usage("an image that is pushed needs a name: -t REGISTRY/NAME:TAG".to_owned()));
    }
    for output in args.outputs.iter().filter(|output| output.push && output.by_digest) {
        let has_tag = |name: &&String| name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if let Some(name) = args.tags.iter().chain(&output.names).find(has_tag) {
            return Err(Failure::Usage(format!(
                "the name {name:?} has a tag, which push-by-digest=true gives to nothing; leave it out"
            )));
        }
    }
    for (flag, file) in [("--iidfile", &args.iidfile), ("--metadata-file", &args.metadata_file)] {
        let Some(file) = file else { continue };
        let path = settings.cwd.join(file);
        if path.is_dir() {
            return Err(anyhow::anyhow!("{flag}: {} is a directory; name a file", file.display()).into());
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            return Err(anyhow::anyhow!("{flag}: there is no directory {}", folder.display()).into());
        }
    }
    Ok(())
}

pub(super) fn plan_options(args: &BuildArgs, settings: &Settings) -> Result<PlanOptions, Failure> {
    let build_platform = find::machine();
    let platforms = Platform::parse_list(args.platforms.iter().map(String::as_str), &build_platform)
        .map_err(|error| Failure::Usage(format!("--platform: {error}")))?;
    let mut build_args = args.build_args.clone();
    if let Some(epoch) = &args.epoch {
        // The one that won is what stages see, wherever it came from.
        build_args.retain(|(name, _)| name != plan::scope::SOURCE_DATE_EPOCH);
        build_args.push((plan::scope::SOURCE_DATE_EPOCH.to_owned(), epoch.text.clone()));
    }
    Ok(PlanOptions {
        build_args,
        target: args.target.clone(),
        labels: args.labels.clone(),
        platforms,
        build_platform,
        no_cache: match (args.no_cache, args.no_cache_filter.is_empty()) {
            (true, _) => NoCache::All,
            (false, false) => NoCache::Stages(args.no_cache_filter.clone()),
            (false, true) => NoCache::None,
        },
        epoch: args.epoch.as_ref().and_then(|epoch| epoch.seconds),
        network: args.network,
        proxy_env: settings.proxies().map_err(anyhow::Error::from)?,
        hostname: None,
        named_contexts: args.build_contexts.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(),
        allowed: Allowed {
            // Who gives RUN the host's network by default allows it.
            network_host: args.allow.contains(&Entitlement::NetworkHost) || args.network == step::Network::Host,
            security_insecure: args.allow.contains(&Entitlement::SecurityInsecure),
        },
        limits: RunLimits {
            ulimits: args.run.ulimits.clone(),
            // Saying what holds anyway does not make another step.
            shm_size: args.shm_size.filter(|size| *size != exec::DEFAULT_SHM).unwrap_or(0),
            cgroup_parent: args.run.cgroup_parent.clone(),
            host_names: args.add_hosts.iter().map(|(name, _)| name.clone()).collect(),
        },
        shell_at: None,
        all_stages: false,
    })
}

type Planned = (Plan, Vec<Arc<BaseImage>>, Vec<Diagnostic>);

/// Resolves what the graph names, and what triggers of that name in turn, until the plan stands.
fn resolve(
    graph: &StageGraph,
    options: &PlanOptions,
    args: &BuildArgs,
    settings: &Settings,
    store: &Store,
    lease: &Lease,
    remotes: &Remotes<'_>,
) -> Result<Planned, Vec<Diagnostic>> {
    let mut bases = Bases::new();
    let mut requests = plan::base_requests(graph, options);
    loop {
        bases::resolve(&requests, &mut bases, args, settings, store, lease, remotes)
            .map_err(|errors| graph.warnings.iter().cloned().chain(errors).collect::<Vec<_>>())?;
        match plan::plan(graph, &bases, options)? {
            Outcome::Planned(plan, warnings) => {
                let image = |name: &str, platform: &Platform| match bases.get(&(name.to_owned(), platform.to_string()))
                {
                    Some(Resolved::Image(image)) => Arc::clone(image),
                    _ => unreachable!("a planned base was resolved as an image"),
                };
                let used = plan.bases.iter().map(|base| image(&base.name, &base.platform)).collect();
                return Ok((plan, used, warnings));
            }
            Outcome::NeedBases(more) => requests = more,
        }
    }
}

/// An id map as the store notes it: `users 0:1000:1 1:100000:65536, groups …`.
fn describe(map: &IdMap) -> String {
    let extents = |extents: &[Extent]| {
        let one = |extent: &Extent| format!(" {}:{}:{}", extent.inside, extent.outside, extent.count);
        extents.iter().map(one).collect::<String>()
    };
    format!("users{}, groups{}", extents(&map.uids), extents(&map.gids))
}
