//! What ADD fetches: found out, fetched once, beside all other steps.
//!
//! In: the sources of a plan that are fetched, and a [`Fetch`]. Out: for each first a digest that stands for it, then its
//! files. What always holds: a source that several steps name is fetched once; what has a digest by its checksum, by what the server says of it
//! or by its commit is not fetched as long as the cache has all that is made of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::copy::{Brought, Checkout};
use super::{Cause, Solver};
use crate::digest::{Digest, Hasher};
use crate::event::Event;
use crate::fetch::{Fetch, FetchError};
use crate::git::Commit;
use crate::plan::remote::{GitSource, RemoteKind, RemoteSource, is_hash, without_password};
use crate::plan::step::{Op, Plan, StepId};

/// All sources of a plan that are fetched.
pub(super) struct Remotes {
    all: Vec<One>,
    /// Those of each step, in order.
    of_step: Vec<Vec<usize>>,
}

/// One of them.
struct One {
    source: RemoteSource,
    /// The first step that wants it.
    step: StepId,
    state: Mutex<State>,
    /// Those of one URL share it: the second finds what the first brought.
    turn: Arc<Mutex<()>>,
}

/// What is known of it.
#[derive(Default)]
struct State {
    name: Option<Digest>,
    commit: Option<Commit>,
    brought: Option<Brought>,
}

impl Remotes {
    pub(super) fn of(plan: &Plan) -> Self {
        let mut all: Vec<One> = Vec::new();
        let mut of_step = Vec::with_capacity(plan.steps.len());
        for (index, step) in plan.steps.iter().enumerate() {
            let mut own = Vec::new();
            if let Op::Copy(copy) = &step.op {
                for source in copy.remotes() {
                    own.push(all.iter().position(|one| one.source == *source).unwrap_or_else(|| {
                        let turn = all.iter().find(|one| url(one) == url_of(source) && url(one).is_some());
                        let turn = turn.map(|one| Arc::clone(&one.turn)).unwrap_or_default();
                        let (source, step) = (source.clone(), StepId(index));
                        all.push(One { source, step, state: Mutex::default(), turn });
                        all.len() - 1
                    }));
                }
            }
            of_step.push(own);
        }
        Self { all, of_step }
    }

    /// Those of a step.
    pub(super) fn of_step(&self, step: StepId) -> &[usize] {
        &self.of_step[step.0]
    }

    /// The first step that wants it.
    pub(super) fn step(&self, remote: usize) -> StepId {
        self.all[remote].step
    }

    fn state(&self, remote: usize) -> MutexGuard<'_, State> {
        self.all[remote].state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands for the sources of a step; `None` where that is not known of all.
    pub(super) fn names(&self, step: StepId) -> Option<Vec<Brought>> {
        self.of_step[step.0].iter().map(|remote| self.state(*remote).name.map(Brought::Named)).collect()
    }
}

impl Solver<'_> {
    /// Before the first pass: asks what can be told without fetching. What nobody can tell is fetched later; so are
    /// errors met.
    pub(super) fn name_remotes(&self) {
        let count = self.remotes.all.len();
        if count < 2 {
            (0..count).for_each(|remote| self.name_remote(remote));
            return;
        }
        std::thread::scope(|scope| {
            for remote in 0..count {
                let work = move || self.name_remote(remote);
                // One that does not start is fetched without being asked for.
                drop(std::thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, work));
            }
        });
    }

    fn name_remote(&self, remote: usize) {
        let one = &self.remotes.all[remote];
        let (mut commit, mut name) = (None, None);
        match &one.source.kind {
            RemoteKind::File { checksum: Some(checksum), .. } => name = Some(file_name(&one.source.kind, checksum)),
            RemoteKind::File { url, .. } => {
                let known = self.engine.fetch.map(|fetch| fetch.unchanged(url));
                if let Some(Ok(Some(known))) = known {
                    name = Some(file_name(&one.source.kind, &known.digest));
                }
            }
            RemoteKind::Git(source) => {
                // A whole hash says it all.
                if let Some(hash) = source.checksum.as_ref().filter(|hash| is_hash(hash)) {
                    name = Some(git_name(source, hash));
                } else if let Some(fetch) = self.engine.fetch
                    && let Ok(found) = resolve(fetch, source)
                {
                    name = Some(git_name(source, &found.hash));
                    commit = Some(found);
                }
            }
        }
        let mut state = self.remotes.state(remote);
        (state.name, state.commit) = (name, commit);
    }

    /// What must be fetched for steps that are not `done`: what nobody knows, and what those need whose look-up failed.
    pub(super) fn missing_remotes(&self, done: &[bool], looked_up: &[bool]) -> BTreeSet<usize> {
        let mut missing = BTreeSet::new();
        for (index, remotes) in self.remotes.of_step.iter().enumerate().filter(|(index, _)| !done[*index]) {
            let unknown = |remote: &usize| looked_up[index] || self.remotes.state(*remote).name.is_none();
            missing.extend(remotes.iter().copied().filter(unknown));
        }
        missing
    }

    /// The files of all sources of a step; fetches those that are not here.
    pub(super) fn bring_all(&self, step: StepId) -> Result<Vec<Brought>, Cause> {
        self.remotes.of_step(step).iter().map(|remote| self.bring(*remote)).collect()
    }

    /// The files of one; fetches them if they are not here. Whoever comes second waits.
    pub(super) fn bring(&self, remote: usize) -> Result<Brought, Cause> {
        let one = &self.remotes.all[remote];
        let mut state = self.remotes.state(remote);
        if let Some(brought) = &state.brought {
            return Ok(brought.clone());
        }
        let failed = |error: FetchError| match error {
            FetchError::Canceled => Cause::Canceled,
            error => Cause::Remote { source_text: one.source.text.clone(), why: error },
        };
        let Some(fetch) = self.engine.fetch else { return Err(failed(FetchError::Offline(one.source.text.clone()))) };
        let title = format!("[internal] load {}", without_password(&one.source.text));
        let began = Instant::now();
        self.engine.events.event(Event::Began(&title));
        let brought = match &one.source.kind {
            kind @ RemoteKind::File { url, checksum, .. } => {
                let _turn = one.turn.lock().unwrap_or_else(PoisonError::into_inner);
                let fetched = fetch.fetch(url, *checksum).map_err(failed)?;
                state.name = Some(file_name(kind, &fetched.digest));
                let path = self.engine.store.blob_path(&fetched.digest);
                Brought::File { path, size: fetched.size, sha256: fetched.digest, mtime: fetched.mtime }
            }
            RemoteKind::Git(source) => {
                let commit = match state.commit.take() {
                    Some(commit) => commit,
                    None => resolve(fetch, source).map_err(failed)?,
                };
                if state.name.is_none() {
                    state.name = Some(git_name(source, &commit.hash));
                }
                self.check_out(fetch, source, &commit)
                    .map_err(failed)
                    .and_then(|(folder, time)| Ok(Brought::Tree(Checkout::read(&folder, time)?)))?
            }
        };
        self.engine.events.event(Event::Ended(&title, began.elapsed()));
        state.brought = Some(brought.clone());
        Ok(brought)
    }

    fn check_out(
        &self,
        fetch: &Fetch<'_>,
        source: &GitSource,
        commit: &Commit,
    ) -> Result<(std::path::PathBuf, i64), FetchError> {
        if fetch.offline {
            return Err(FetchError::Offline(source.shown()));
        }
        let folder = self.engine.lease.fresh_path();
        std::fs::create_dir(&folder).map_err(|error| FetchError::Io { url: source.shown(), source: error })?;
        let files = fetch.git(source)?.fetch(source, commit, source.keep_git_dir == Some(true), &folder)?;
        Ok((files.folder, files.time))
    }
}

fn url(one: &One) -> Option<&str> {
    url_of(&one.source)
}

fn url_of(source: &RemoteSource) -> Option<&str> {
    match &source.kind {
        RemoteKind::File { url, .. } => Some(url),
        RemoteKind::Git(_) => None,
    }
}

/// The commit that `source` means; without the network only where its whole hash is given.
fn resolve(fetch: &Fetch<'_>, source: &GitSource) -> Result<Commit, FetchError> {
    if fetch.offline && !source.names_hash() {
        return Err(FetchError::Offline(source.shown()));
    }
    Ok(fetch.git(source)?.resolve(source)?)
}

/// What stands for a file: all that the files it becomes depend on.
fn file_name(kind: &RemoteKind, sha256: &Digest) -> Digest {
    let RemoteKind::File { name, unpack, url: _, checksum: _ } = kind else { return *sha256 };
    let mut hasher = Hasher::new();
    hasher.field(b"rbuild url 1");
    hasher.field(name.as_bytes());
    hasher.field(sha256.as_bytes());
    hasher.field(&[u8::from(*unpack)]);
    hasher.finish()
}

/// What stands for the files of a commit, which its hash is a digest of.
fn git_name(source: &GitSource, hash: &str) -> Digest {
    let GitSource { repository: _, reference: _, subdir, checksum: _, keep_git_dir, submodules } = source;
    let keeps = *keep_git_dir == Some(true);
    let mut hasher = Hasher::new();
    hasher.field(b"rbuild git 1");
    hasher.field(hash.as_bytes());
    hasher.field(subdir.as_deref().unwrap_or_default().trim_matches('/').as_bytes());
    hasher.field(&[u8::from(keeps), u8::from(*submodules != Some(false))]);
    if keeps {
        // Its own files name the repository.
        hasher.field(source.shown().as_bytes());
    }
    hasher.finish()
}
