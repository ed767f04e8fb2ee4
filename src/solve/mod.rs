//! The engine: carries out a plan.
//!
//! In: a [`Plan`] and an [`Engine`] (store, contexts, bases, sandbox). Out: a [`Solution`]: for each step its layer,
//! from the cache or made now. What always holds: cached steps are found before anything runs, and a build in which
//! every step is cached in the store starts no thread and enters no namespace; after the first error nothing further begins.
//!
//! Two passes. The first follows keys as far as they hit, in the thread of the caller. If something is left that needs
//! a file tree, an ordinary user enters a user namespace now, which takes a process of one thread. The second pass runs
//! what is left, each step as soon as what it needs is there; a step may still hit then, when the steps below it ran
//! again and gave what they gave before.

mod agent;
pub mod copy;
mod layer;
mod lookup;
mod mask;
mod mounts;
mod reading;
mod remote;
mod run;
mod schedule;
mod share;
mod stacks;
mod step;
mod times;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

pub use self::agent::{Agent, AgentKeys};
pub use self::mounts::Secret;
pub use self::run::{LOST_IN_COPIES, needs_mounts};
use crate::context::local::LocalContext;
use crate::diagnostic::Span;
use crate::digest::{CacheKey, ContentDigest, DiffId, StackId};
use crate::event::{Event, EventSink};
use crate::exec::emulator::{self, NoEmulator};
use crate::exec::{ExecError, Exit, LeftStub, ProcessSpec, RootFs, Sandbox};
use crate::fetch::{Fetch, FetchError};
use crate::image::platform::Platform;
use crate::layer::apply::{ApplyError, TreeOptions};
use crate::layer::header::WRITER_VERSION;
use crate::layer::write::WriteError;
use crate::plan::BaseImage;
use crate::plan::step::{BaseId, CopyFrom, CopyOp, Op, Plan, ShellPoint, Stack, Step, StepId};
use crate::shared::SharedCache;
use crate::snapshot::diff::CommitError;
use crate::store::cache_mounts::CacheName;
use crate::store::lease::Lease;
use crate::store::{Store, StoreError};
use crate::sys::cancel::Cancel;

/// What a plan is carried out with.
pub struct Engine<'a> {
    /// Where layers and records are.
    pub store: &'a Store,
    /// The claim of this build on it.
    pub lease: &'a Lease,
    /// The build contexts, by `ContextId`.
    pub contexts: &'a [LocalContext],
    /// The images from outside, by `BaseId`; their layers are in the store, or `absent` brings them.
    pub bases: &'a [Arc<BaseImage>],
    /// How RUN is contained.
    pub sandbox: &'a Sandbox,
    /// Makes this process able to make trees: enters a user namespace where that takes one. Called at most once,
    /// while no other thread runs.
    pub prepare_trees: &'a (dyn Fn() -> Result<TreeOptions, String> + Sync),
    /// What is read of the layers after the build.
    pub exports: Exports,
    /// Steps at once.
    pub jobs: usize,
    /// Lines for `/etc/hosts`: name and address.
    pub extra_hosts: &'a [(String, String)],
    /// Which build this is, for `--explain`: the same from one build of a Dockerfile to the next.
    pub identity: &'a str,
    /// Whether anybody wants to know which files a miss is about: finding that out takes time.
    pub explain: bool,
    /// Receives what happens.
    pub events: &'a dyn EventSink,
    /// Tells when to stop.
    pub cancel: &'a Cancel,
    /// The clock.
    pub clock: fn() -> SystemTime,
    /// Brings a layer of a base that is not in the store, with the others of its image; `false` where nobody has it. Called
    /// from any thread; its own threads have ended when it returns.
    pub absent: &'a (dyn Fn(&DiffId) -> Result<bool, String> + Sync),
    /// The caches of other machines that the build names.
    pub shared: Option<&'a SharedCache<'a>>,
    /// Is told of each step whose layer stands, from any thread; of those of the cache only if anything is left to do, and
    /// then when further threads may run.
    pub committed: &'a (dyn Fn(StepId, &Solved) + Sync),
    /// What ADD fetches with; may be left out where no step fetches anything.
    pub fetch: Option<&'a Fetch<'a>>,
    /// What `--secret` gives; the last of one id counts.
    pub secrets: &'a [Secret],
    /// What `--ssh` gives; the last of one id counts.
    pub agents: &'a [Agent],
    /// Whether the file system of a RUN that fails stays, for a shell in it.
    pub keep_failed: bool,
}

/// A file system and the surroundings of a shell in it. It lives as long as the engine's lease, and is never looked at
/// again by a build.
pub struct Inside {
    /// The file system.
    pub rootfs: RootFs,
    /// The shell.
    pub process: ProcessSpec,
    /// What is held for its mounts: caches, agents.
    held: mounts::Prepared,
}

impl Inside {
    /// To be called when the shell has ended, with what was `left` in mounted folders.
    pub fn clear(&self, left: &[LeftStub]) -> Result<(), Cause> {
        self.held.clear(left)
    }
}

/// What is read of the layers when a solution stands: bytes of layers that RUN made take file trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exports {
    /// Nothing: the image goes to the store.
    Nothing,
    /// The bytes of all layers.
    Bytes,
    /// The bytes of new layers whose form under this epoch is not known yet.
    Epoch(i64),
    /// The bytes of the layers of all steps: they go to a shared cache.
    Steps,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solved {
    /// What its layer holds.
    pub content: ContentDigest,
    /// Its layer, with true times.
    pub layer: DiffId,
    /// The stack that it is the top of.
    pub stack: StackId,
    /// When this store first reached that stack: RFC 3339.
    pub created: String,
    /// Whether the cache had it.
    pub cached: bool,
    /// How long making it took.
    pub took: Duration,
    /// The keys that lead to it, as far as they were found out here.
    pub keys: Vec<CacheKey>,
    /// The shared cache that had it.
    pub cache: Option<String>,
}

/// What a plan gave: one [`Solved`] for each step.
#[derive(Debug)]
pub struct Solution {
    /// By `StepId`.
    pub steps: Vec<Solved>,
    /// How trees are made here; `None` where none was needed.
    pub trees: Option<TreeOptions>,
    /// The cache mounts that commands used in this build.
    pub caches: BTreeSet<CacheName>,
}

/// Why a step failed.
pub struct StepError {
    /// Which one.
    pub step: StepId,
    /// Why.
    pub cause: Cause,
    /// What the command left, where the engine was to keep it.
    pub inside: Option<Box<Inside>>,
}

impl StepError {
    fn new(step: StepId, cause: Cause) -> Self {
        Self { step, cause, inside: None }
    }
}

/// Why there is no shell where one is wanted.
pub enum ShellError {
    /// A step before failed.
    Step(StepError),
    /// The place itself cannot be made ready.
    Place(Cause),
}

/// The cause of a failed step.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The command ended with a status other than 0.
    #[error("the command did not complete successfully: {}", describe_exit(exit))]
    Command {
        /// How it ended.
        exit: Exit,
        /// The last lines of its output, both streams.
        tail: Vec<u8>,
    },
    /// The sandbox could not be set up.
    #[error(transparent)]
    Sandbox(#[from] ExecError),
    /// What COPY or ADD asks for cannot be done.
    #[error(transparent)]
    Copy(#[from] copy::CopyError),
    /// What ADD names cannot be fetched.
    #[error("{why}")]
    Remote {
        /// The source as written.
        source_text: String,
        /// Why.
        why: FetchError,
    },
    /// A mount of RUN cannot be had.
    #[error("{why}")]
    Mount {
        /// The flag.
        span: Span,
        /// What is wrong.
        why: String,
        /// What to do.
        help: Option<String>,
    },
    /// USER names somebody who is not there.
    #[error("{0}")]
    User(String),
    /// What the command changed cannot be made a layer.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The layer cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A layer cannot be unpacked.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer of a base cannot be had.
    #[error("{0}")]
    Absent(String),
    /// A shared cache does not have what it said. Nobody is told this, as long as all can begin anew without that.
    #[error("a shared cache does not have what it said")]
    Untrue,
    /// A file of the context changed while it was read, twice.
    #[error("{} changes while it is being copied; try again when nothing writes to it", .0.display())]
    Unsteady(PathBuf),
    /// The commands are for another architecture.
    #[error(transparent)]
    Emulator(#[from] Box<NoEmulator>),
    /// Trees cannot be made on this machine by this user.
    #[error("{0}")]
    Trees(String),
    /// The user wished it, or another step failed.
    #[error("stopped")]
    Canceled,
}

/// In BuildKit's words: `exit code: 1`; `exit code: 137 (killed by signal 9)`.
pub fn describe_exit(exit: &Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code: {code}"),
        Exit::Signal(signal) => format!("exit code: {} (killed by signal {signal})", 128 + signal),
        Exit::Canceled => "stopped".to_owned(),
    }
}

/// Carries out all steps of `plan`.
pub fn solve(plan: &Plan, engine: &Engine<'_>) -> Result<Solution, StepError> {
    carry_out(plan, engine, &vec![true; plan.steps.len()], false).map(Solver::into_solution)
}

/// Solves the steps that are wanted. What a shared cache said and does not hold is found out when it is to be had: then all
/// is looked up once more, without it.
fn carry_out<'a>(
    plan: &'a Plan,
    engine: &'a Engine<'a>,
    wanted: &[bool],
    trees: bool,
) -> Result<Solver<'a>, StepError> {
    engine.events.event(Event::Planned(plan));
    let mut solver = Solver::new(plan, engine);
    let doubts = || engine.shared.map_or(0, SharedCache::doubts);
    let mut known_doubts = doubts();
    while !solver.carry_out_all(wanted, trees)? {
        // Each time something else is left alone, so there is an end to it.
        let (before, now) = (known_doubts, doubts());
        if now <= before {
            return Err(StepError::new(StepId(0), Cause::Untrue));
        }
        known_doubts = now;
        let known = solver.trees.into_inner();
        solver = Solver { trees: known.map_or_else(OnceLock::new, OnceLock::from), ..Solver::new(plan, engine) };
    }
    Ok(solver)
}

/// Carries out the steps that `plan.shell` needs, and makes ready what a shell there sees.
pub fn shell(plan: &Plan, engine: &Engine<'_>, point: &ShellPoint) -> Result<Inside, ShellError> {
    let mut wanted = vec![false; plan.steps.len()];
    let mut waiting: Vec<usize> = plan.steps_of(point.stack).map(|StepId(step)| step).collect();
    while let Some(step) = waiting.pop() {
        if !std::mem::replace(&mut wanted[step], true) {
            waiting.extend(needs(&plan.steps[step]));
        }
    }
    let solver = carry_out(plan, engine, &wanted, true).map_err(ShellError::Step)?;
    if solver.trees.get().is_none() {
        // Everything was in the cache: there is one thread still.
        solver.prepare_trees().map_err(ShellError::Place)?;
    }
    let platform = match point.stack {
        Stack::Step(StepId(step)) => Some(&plan.steps[step].platform),
        Stack::Base(BaseId(base)) => Some(&plan.bases[base].platform),
        Stack::Scratch => None,
    };
    let platform = platform.cloned().unwrap_or_default();
    solver.shell(&point.run, &platform, &solver.stack(point.stack)).map_err(ShellError::Place)
}

/// The steps whose results a step needs.
fn needs(step: &Step) -> Vec<usize> {
    let mut needs = Vec::new();
    if let Stack::Step(StepId(parent)) = step.parent {
        needs.push(parent);
    }
    let mut add = |stack: Stack| {
        if let Stack::Step(StepId(source)) = stack
            && !needs.contains(&source)
        {
            needs.push(source);
        }
    };
    match &step.op {
        Op::Copy(CopyOp { from: CopyFrom::Stack(source), .. }) => add(*source),
        Op::Run(run) => run.mounts.iter().filter_map(|mount| mount.kind.input()).for_each(|input| add(input.stack)),
        Op::Copy(_) | Op::MakeDir(_) => {}
    }
    needs
}

/// A plan being carried out.
struct Solver<'a> {
    plan: &'a Plan,
    engine: &'a Engine<'a>,
    solved: Vec<OnceLock<Solved>>,
    /// What the first pass found out about steps that missed.
    missed: Vec<Mutex<Option<Box<lookup::Missed>>>>,
    /// Misses whose reason was already told, so that the second pass does not tell it again.
    told: Vec<OnceLock<()>>,
    /// Steps that began anew since a file changed under them.
    restarted: Vec<OnceLock<()>>,
    stacks: stacks::Stacks<'a>,
    trees: OnceLock<TreeOptions>,
    /// Set when namespaces were refused: commands then run in copies.
    refused: OnceLock<()>,
    /// What RUNs left that failed.
    failed: Mutex<Vec<(StepId, Inside)>>,
    /// The steps whose layers take the times that their sources have now.
    today: OnceLock<Vec<bool>>,
    /// Those layers, where they are others than the cache had.
    dated: Vec<OnceLock<DiffId>>,
    remotes: remote::Remotes,
    /// Steps may fetch what they need: not in the first pass.
    fetching: AtomicBool,
    /// Caches that were made anew, as --no-cache wants it.
    remade: Mutex<HashSet<CacheName>>,
    /// Caches that a command used.
    used_caches: Mutex<BTreeSet<CacheName>>,
    /// A shared cache did not have what it said.
    anew: AtomicBool,
}

impl<'a> Solver<'a> {
    fn new(plan: &'a Plan, engine: &'a Engine<'a>) -> Self {
        let count = plan.steps.len();
        Self {
            plan,
            engine,
            solved: (0..count).map(|_| OnceLock::new()).collect(),
            missed: (0..count).map(|_| Mutex::new(None)).collect(),
            told: (0..count).map(|_| OnceLock::new()).collect(),
            restarted: (0..count).map(|_| OnceLock::new()).collect(),
            stacks: stacks::Stacks::new(engine.store, engine.lease, engine.events, engine.absent, engine.shared),
            trees: OnceLock::new(),
            refused: OnceLock::new(),
            failed: Mutex::new(Vec::new()),
            today: OnceLock::new(),
            dated: (0..count).map(|_| OnceLock::new()).collect(),
            remotes: remote::Remotes::of(plan),
            fetching: AtomicBool::new(false),
            remade: Mutex::default(),
            used_caches: Mutex::default(),
            anew: AtomicBool::new(false),
        }
    }

    /// Solves the steps that are wanted; what they need is wanted too. With `trees`, trees are needed afterwards. `false`
    /// where a shared cache does not hold what it said, and all is to begin anew.
    fn carry_out_all(&self, wanted: &[bool], trees: bool) -> Result<bool, StepError> {
        let (plan, engine) = (self.plan, self.engine);
        let needs: Vec<Vec<usize>> = plan.steps.iter().map(needs).collect();
        // Of a step that is not wanted, nothing is left to do.
        let mut done: Vec<bool> = wanted.iter().map(|wanted| !wanted).collect();
        let mut looked_up = done.clone();
        self.name_remotes();
        if engine.shared.is_some() {
            match self.follow_at_once(&needs, &mut done, &mut looked_up) {
                Err(StepError { cause: Cause::Untrue, .. }) => return Ok(false),
                other => other?,
            }
        } else {
            for index in 0..plan.steps.len() {
                if wanted[index] && needs[index].iter().all(|need| done[*need]) {
                    looked_up[index] = true;
                    done[index] = self.follow(StepId(index)).map_err(|cause| StepError::new(StepId(index), cause))?;
                }
            }
        }
        let Some(first) = done.iter().position(|done| !done) else {
            if !self.bring_images()? {
                return Ok(false);
            }
            if !trees && self.needs_trees(&done) {
                self.prepare_trees().map_err(|cause| StepError::new(StepId(0), cause))?;
            }
            return Ok(true);
        };
        self.check_emulators(&done)?;
        if !self.bring_for_commands(&done, &needs)? {
            return Ok(false);
        }
        if trees || self.needs_trees(&done) {
            // The one to name when that fails: RUN is what most often wants a tree.
            let runs = |index: &usize| !done[*index] && matches!(plan.steps[*index].op, Op::Run(_));
            let first = (0..done.len()).find(runs).unwrap_or(first);
            self.prepare_trees().map_err(|cause| StepError::new(StepId(first), cause))?;
        }
        let today = self.today.get_or_init(|| self.below_caches(&done));
        for (index, done) in done.iter().enumerate() {
            if *done && wanted[index] && today[index] {
                match self.date(StepId(index)) {
                    Err(Cause::Untrue) => return Ok(false),
                    other => other.map_err(|cause| StepError::new(StepId(index), cause))?,
                }
            }
        }
        for index in (0..plan.steps.len()).filter(|index| done[*index] && wanted[*index]) {
            self.tell(StepId(index));
        }
        self.fetching.store(true, Ordering::Relaxed);
        // What is fetched are further jobs, which wait for nothing.
        let fetches: Vec<usize> = self.missing_remotes(&done, &looked_up).into_iter().collect();
        let mut needs = needs;
        for (number, remote) in fetches.iter().enumerate() {
            for step in (0..plan.steps.len()).filter(|step| self.remotes.of_step(StepId(*step)).contains(remote)) {
                needs[step].push(plan.steps.len() + number);
            }
        }
        needs.extend(fetches.iter().map(|_| Vec::new()));
        done.resize(needs.len(), false);
        let carry_out = |index: usize| {
            let fetch = index.checked_sub(plan.steps.len()).map(|number| fetches[number]);
            let id = fetch.map_or(StepId(index), |remote| self.remotes.step(remote));
            let result = match fetch {
                Some(remote) => self.bring(remote).map(drop),
                None => self.carry_out(id).map(|()| self.tell(id)),
            };
            result.map_err(|cause| {
                // Whatever a step says that was to stop: it says so because it was to stop.
                let cause = if engine.cancel.is_canceled() { Cause::Canceled } else { cause };
                match cause {
                    Cause::Untrue => self.anew.store(true, Ordering::SeqCst),
                    Cause::Canceled => engine.events.event(Event::Canceled(id)),
                    _ => engine.events.event(Event::Failed(id, &cause.to_string())),
                }
                StepError::new(id, cause)
            })
        };
        // After an error the other steps' commands end: their layers would belong to no image.
        let aside = plan.steps.len();
        let stop = || {
            // What runs then goes on, since all that begins anew finds it in the cache.
            if !self.anew.load(Ordering::SeqCst) {
                engine.cancel.cancel();
            }
        };
        match schedule::run(&needs, &done, engine.jobs, aside, &carry_out, &stop) {
            Ok(()) => self.bring_images(),
            Err(StepError { cause: Cause::Untrue, .. }) => Ok(false),
            Err(error) => Err(self.with_remains(error)),
        }
    }

    /// Says that the layer of a step stands.
    fn tell(&self, id: StepId) {
        if let Some((solved, layer)) = self.solved[id.0].get().zip(self.layer_of(id.0)) {
            (self.engine.committed)(id, &Solved { layer, ..solved.clone() });
        }
    }

    /// Adds what the failed command left, where that was kept.
    fn with_remains(&self, error: StepError) -> StepError {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = failed.iter().position(|(step, _)| *step == error.step);
        StepError { inside: found.map(|found| Box::new(failed.swap_remove(found).1)), ..error }
    }

    /// Whether anything that is not done yet, or the export after it, must read or make file trees.
    fn needs_trees(&self, done: &[bool]) -> bool {
        let steps = || self.plan.steps.iter().zip(done);
        let runs = steps().any(|(step, done)| !done && matches!(step.op, Op::Run(_)));
        let copies = steps().any(|(step, done)| match &step.op {
            Op::Copy(copy) if !done => matches!(copy.from, CopyFrom::Stack(stack) if self.stack_needs_ids(stack)),
            _ => false,
        });
        let images = || self.plan.images.iter().any(|image| self.stack_needs_ids(image.stack));
        let exports = match self.engine.exports {
            Exports::Nothing => false,
            Exports::Bytes => images(),
            Exports::Epoch(epoch) => images() && !self.has_epoch_forms(epoch),
            Exports::Steps => {
                let mut layers = (0..self.plan.steps.len()).filter_map(|step| self.layer_of(step));
                images() || layers.any(|layer| self.layer_needs_ids(&layer))
            }
        };
        runs || copies || exports
    }

    /// Whether the files of a stack are read from trees. Of steps that are not done yet only RUN makes a tree, and that
    /// asks for the ids itself.
    fn stack_needs_ids(&self, mut stack: Stack) -> bool {
        while let Stack::Step(StepId(step)) = stack {
            if self.layer_of(step).is_some_and(|layer| self.layer_needs_ids(&layer)) {
                return true;
            }
            stack = self.plan.steps[step].parent;
        }
        matches!(stack, Stack::Base(base) if self.base_needs_ids(base))
    }

    /// Whether the forms of the images' layers under the epoch are in the store.
    fn has_epoch_forms(&self, epoch: i64) -> bool {
        let known = |solved: &Solved| {
            let form = self.engine.store.epoch_form(&solved.content, epoch, WRITER_VERSION);
            // What cannot be told is taken to be needed.
            form.is_ok_and(|form| form.is_some())
        };
        let mut steps = self.plan.images.iter().flat_map(|image| self.plan.steps_of(image.stack));
        steps.all(|StepId(step)| self.solved[step].get().is_some_and(known))
    }

    /// Whether the commands that are left can be run here: said before the first of them is run, and of those that the cache
    /// has not at all.
    fn check_emulators(&self, done: &[bool]) -> Result<(), StepError> {
        let mut seen: Vec<&Platform> = Vec::new();
        for (index, step) in self.plan.steps.iter().enumerate() {
            if done[index] || !matches!(step.op, Op::Run(_)) || seen.contains(&&step.platform) {
                continue;
            }
            emulator::check(&step.platform, self.engine.lease.folder())
                .map_err(|error| StepError::new(StepId(index), error.into()))?;
            seen.push(&step.platform);
        }
        Ok(())
    }

    fn prepare_trees(&self) -> Result<(), Cause> {
        if self.trees.get().is_some() {
            // All began anew, and it is done.
            return Ok(());
        }
        let options = (self.engine.prepare_trees)().map_err(Cause::Trees)?;
        // Set once: this is called once, before any thread.
        let _ = self.trees.set(options);
        Ok(())
    }

    fn into_solution(self) -> Solution {
        let steps = self.solved.into_iter().zip(self.dated).map(|(cell, dated)| {
            let solved = cell.into_inner().expect("every step ended without an error");
            Solved { layer: dated.into_inner().unwrap_or(solved.layer), ..solved }
        });
        let caches = self.used_caches.into_inner().unwrap_or_else(PoisonError::into_inner);
        Solution { steps: steps.collect(), trees: self.trees.into_inner(), caches }
    }
}

#[cfg(test)]
mod tests;
