//! The mounts of a RUN: what they are in its key, and what they are to its sandbox.
//!
//! In: the operation, and the stacks that its mounts show. Out: a key or two, and [`Prepared`] mounts. What always holds:
//! content counts and names do not, but a stack that is known by its name is not read; secrets and agents are in no key;
//! locks of caches are taken in one order by everybody, so that no two commands wait for each other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::agent::Forwarded;
use super::copy::{CopyError, SourceView, land, select};
use super::lookup::{Look, Missed};
use super::mask::Mask;
use super::run::{SSH_AUTH_SOCK, take_root_metadata};
use super::step::StackState;
use super::{Cause, Solver};
use crate::cache::key::{self, MountId};
use crate::diagnostic::nearest;
use crate::digest::{Digest, Hasher};
use crate::event::{Event, MissReason};
use crate::exec::{LeftStub, Mount, MountSource, holds_another, remove_stubs};
use crate::layer::apply;
use crate::layer::stack::LayerStack;
use crate::plan::step::{
    CopyFrom, CopyOp, CopySource, INTERNAL, MountOp, MountPath, RunMount, RunOp, Sharing, Stack, Step,
};
use crate::shared::{SharedError, unpack_mount};
use crate::store::StoreError;
use crate::store::cache_mounts::{CacheMount, CacheName};
use crate::store::layers::Form;

/// What `--secret` gives under one id.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The id.
    pub id: String,
    /// The value.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Mounts that are ready, and all that is held for them.
#[derive(Default)]
pub(super) struct Prepared {
    /// For the sandbox.
    pub(super) mounts: Vec<Mount>,
    /// Variables of secrets and agents.
    pub(super) env: Vec<(String, String)>,
    /// Hides the secrets.
    pub(super) mask: Mask,
    caches: Vec<CacheMount>,
    /// Which of `caches` a mount shows.
    cache_of: BTreeMap<usize, usize>,
    agents: Vec<Forwarded>,
}

impl Solver<'_> {
    /// Looks a RUN up: by the names of the stacks that it mounts, then by what is in them.
    pub(super) fn look_up_run(
        &self,
        step: &Step,
        run: &RunOp,
        below: &StackState,
        missed: &mut Missed,
        why: &mut MissReason,
    ) -> Result<Option<Look>, Cause> {
        let op = missed.record.op;
        let inputs: Vec<(&RunMount, &MountPath)> =
            run.mounts.iter().filter_map(|mount| Some((mount, mount.kind.input()?))).collect();
        if inputs.is_empty() {
            let hit = self.try_key(step, key::run_key(&op, &below.id, &[]), missed, why)?;
            return if hit.is_some() { Ok(hit) } else { self.ask_shared(step, missed) };
        }
        let quick: Vec<MountId<'_>> = inputs.iter().map(|(_, input)| self.name_of(input)).collect();
        if let Some(hit) = self.try_key(step, key::run_key(&op, &below.id, &quick), missed, why)? {
            return Ok(Some(hit));
        }
        for (_, input) in &inputs {
            if let Some(hit) = self.ask_unless_here(step, &self.stack(input.stack), missed)? {
                return Ok(Some(hit));
            }
        }
        let mut contents = Vec::with_capacity(inputs.len());
        for ((mount, input), quick) in inputs.iter().zip(&quick) {
            contents.push(match quick {
                MountId::Content(digest) => *digest,
                MountId::Stack(..) => self.content_of(mount, input)?,
            });
        }
        let mut all = Hasher::new();
        contents.iter().for_each(|digest| all.field(digest.as_bytes()));
        missed.record.source = Some(all.finish());
        if quick.iter().all(|id| matches!(id, MountId::Content(_))) {
            return self.ask_shared(step, missed);
        }
        let contents: Vec<MountId<'_>> = contents.into_iter().map(MountId::Content).collect();
        match self.try_key(step, key::run_key(&op, &below.id, &contents), missed, why)? {
            Some(hit) => self.hit_also(&missed.keys, hit).map(Some),
            None => self.ask_shared(step, missed),
        }
    }

    fn name_of<'b>(&self, input: &'b MountPath) -> MountId<'b> {
        let stack = self.stack(input.stack).id;
        // The layer of such a step is the content, whatever else the context has.
        if self.is_loaded(input) { MountId::Content(stack.0) } else { MountId::Stack(stack, &input.path) }
    }

    /// Whether the stack is nothing but files of a context that a step loaded for mounts.
    fn is_loaded(&self, input: &MountPath) -> bool {
        matches!(input.stack, Stack::Step(step) if self.plan.steps[step.0].name.starts_with(INTERNAL))
    }

    /// Digest of what a mount shows of a stage or an image; the folder itself counts, too.
    fn content_of(&self, mount: &RunMount, input: &MountPath) -> Result<Digest, Cause> {
        let view = self.view(&self.stack(input.stack))?;
        let selection = select(&copy_of(input), &SourceView::Stack(&view)).map_err(|error| not_found(mount, error))?;
        let files = selection.digest().expect("a layer's index has the digests of all its files");
        let mut hasher = Hasher::new();
        hasher.field(files.as_bytes());
        // It was found, so there is no circle of links.
        let top = view.resolve(input.path.trim_start_matches('/').as_bytes(), true).unwrap_or_default();
        let (mode, uid, gid) = match view.lookup_ref(&top) {
            Some(found) => (found.entry.mode, found.entry.uid, found.entry.gid),
            None => {
                let root = view.root_metadata();
                (root.mode, root.uid, root.gid)
            }
        };
        for number in [mode, uid, gid] {
            hasher.update(&number.to_le_bytes());
        }
        Ok(hasher.finish())
    }

    /// Gets everything that the mounts of `op` show. `folder` is new and the step's own.
    pub(super) fn prepare_mounts(&self, op: &RunOp, folder: &Path, no_cache: bool) -> Result<Prepared, Cause> {
        let mut prepared = Prepared::default();
        if op.mounts.is_empty() {
            return Ok(prepared);
        }
        fs::create_dir(folder).map_err(StoreError::io("make", folder))?;
        let agents = op.mounts.iter().filter(|mount| matches!(mount.kind, MountOp::Ssh { .. }));
        // The first that is written, there or not, as with BuildKit.
        if let Some(target) = agents.min_by_key(|mount| mount.span.start).and_then(|mount| mount.target.clone()) {
            prepared.env.push((SSH_AUTH_SOCK.to_owned(), target));
        }
        // Caches come last: nobody shall wait for one while something else is got ready.
        let mut caches: BTreeMap<CacheName, Sharing> = BTreeMap::new();
        let mut wanted: Vec<(usize, &RunMount, CacheName)> = Vec::new();
        for (number, mount) in op.mounts.iter().enumerate() {
            let own = folder.join(number.to_string());
            let target = mount.target.as_ref().map(PathBuf::from);
            let source = match &mount.kind {
                MountOp::Bind(input) => self.bind(input)?,
                MountOp::Tmpfs { size } => MountSource::Memory { size: *size },
                MountOp::Secret { id, env, owner, required } => {
                    let Some(secret) = self.engine.secrets.iter().rfind(|secret| secret.id == *id) else {
                        if *required {
                            return Err(self.no_secret(mount, id));
                        }
                        continue;
                    };
                    prepared.mask.add(&secret.value);
                    if let Some(env) = env {
                        prepared.env.push((env.clone(), as_variable(mount, secret)?));
                    }
                    let content = secret.value.clone();
                    MountSource::File { content, mode: owner.mode, uid: owner.uid, gid: owner.gid }
                }
                MountOp::Ssh { id, owner, required } => {
                    let Some(agent) = self.engine.agents.iter().rfind(|agent| agent.id == *id) else {
                        if *required {
                            return Err(self.no_agent(mount, id));
                        }
                        continue;
                    };
                    let forwarded = Forwarded::new(agent, owner, &own).map_err(|why| failure(mount, why))?;
                    let socket = forwarded.socket().to_owned();
                    prepared.agents.push(forwarded);
                    MountSource::Socket(socket)
                }
                MountOp::Cache { id, sharing, seed, path, mode, uid, gid } => {
                    let seed = match seed {
                        None => None,
                        Some(input) if self.is_loaded(input) => Some(self.stack(input.stack).id.0),
                        Some(input) => Some(self.content_of(mount, input)?),
                    };
                    let owner = mode.or(*uid).or(*gid);
                    let owner = owner.map(|_| (mode.unwrap_or(0o755), uid.unwrap_or(0), gid.unwrap_or(0)));
                    let name = CacheName { id: id.clone(), seed, owner };
                    // One that a command mounts twice is one all the same.
                    let strictest = caches.entry(name.clone()).or_default();
                    *strictest = (*strictest).max(*sharing);
                    wanted.push((prepared.mounts.len(), mount, name));
                    MountSource::Folder { folder: PathBuf::new(), path: path.clone() }
                }
            };
            if let Some(target) = target {
                prepared.mounts.push(Mount { target, read_only: mount.read_only, source });
            }
        }
        self.give_room(&mut prepared.mounts, op, folder)?;
        self.take_caches(&mut prepared, &caches, &wanted, no_cache)?;
        Ok(prepared)
    }

    fn bind(&self, input: &MountPath) -> Result<MountSource, Cause> {
        let options = self.trees.get().expect("trees are prepared before a RUN is carried out");
        let lower = self.stacks.trees(&self.stack(input.stack).layers, options)?;
        Ok(MountSource::Stack { lower, path: input.path.clone(), writes: None })
    }

    /// Gives folders for changes to binds that can be written to, or in which other mounts need a place.
    fn give_room(&self, mounts: &mut [Mount], op: &RunOp, folder: &Path) -> Result<(), Cause> {
        for number in 0..mounts.len() {
            let needs_room = !mounts[number].read_only || holds_another(mounts, number);
            if !needs_room || !matches!(mounts[number].source, MountSource::Stack { .. }) {
                continue;
            }
            let own = folder.join(format!("writes-{number}"));
            let (upper, work) = (own.join("upper"), own.join("work"));
            for path in [&own, &upper, &work] {
                fs::create_dir(path).map_err(StoreError::io("make", path))?;
            }
            let target = mounts[number].target.to_str();
            let shown = op.mounts.iter().rfind(|mount| mount.target.as_deref() == target);
            if let Some(MountOp::Bind(input)) = shown.map(|mount| &mount.kind) {
                let view = self.view(&self.stack(input.stack))?;
                take_root_metadata(&upper, &view).map_err(StoreError::io("make", &upper))?;
            }
            if let MountSource::Stack { writes, .. } = &mut mounts[number].source {
                *writes = Some((upper, work));
            }
        }
        Ok(())
    }

    fn take_caches(
        &self,
        prepared: &mut Prepared,
        caches: &BTreeMap<CacheName, Sharing>,
        wanted: &[(usize, &RunMount, CacheName)],
        no_cache: bool,
    ) -> Result<(), Cause> {
        let engine = self.engine;
        for (number, (name, sharing)) in caches.iter().enumerate() {
            let mut waiting = || {
                engine.events.event(Event::Note(&format!("waiting for the cache {}, which another RUN uses", name.id)));
            };
            let cache = engine.store.cache_mount(engine.lease, name, *sharing, engine.cancel, &mut waiting)?;
            let cache = cache.ok_or(Cause::Canceled)?;
            let first = wanted.iter().find(|(_, _, other)| other == name).map(|(_, mount, _)| *mount);
            let mount = first.expect("a cache is wanted by a mount");
            let is_made = name.seed.is_some() || name.owner.is_some();
            // Once in a build: what its first RUN left there is for the next one.
            let is_new = || self.remade.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone());
            if no_cache && is_made && is_new() {
                cache.empty(engine.lease)?;
            }
            cache.fill(|| match self.imported_cache(name, no_cache)? {
                Some(folder) => Ok(folder),
                None => self.make_cache(mount),
            })?;
            self.used_caches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone());
            for (place, wanted, _) in wanted.iter().filter(|(_, _, other)| other == name) {
                if let MountSource::Folder { folder, path } = &mut prepared.mounts[*place].source {
                    cache.folder().clone_into(folder);
                    check_inside(wanted, folder, path)?;
                }
                prepared.cache_of.insert(*place, number);
            }
            prepared.caches.push(cache);
        }
        Ok(())
    }

    /// What a shared cache has for a cache mount that is empty here.
    fn imported_cache(&self, name: &CacheName, no_cache: bool) -> Result<Option<PathBuf>, Cause> {
        let Some(shared) = self.engine.shared.filter(|_| !no_cache) else { return Ok(None) };
        let options = self.trees.get().expect("trees are prepared before a RUN is carried out");
        let Some(packed) = shared.mount(&name.id, &name.digest()) else { return Ok(None) };
        match unpack_mount(&packed, self.engine.lease, options) {
            Ok(folder) => Ok(Some(folder)),
            Err(SharedError::Store(error)) => Err(error.into()),
            // The build goes as well without it.
            Err(error) => {
                let note = format!("warning: the cache mount {} begins empty: {error}", name.id);
                self.engine.events.event(Event::Note(&note));
                Ok(None)
            }
        }
    }

    /// The folder that a cache begins with.
    fn make_cache(&self, mount: &RunMount) -> Result<PathBuf, Cause> {
        let MountOp::Cache { seed, mode, uid, gid, .. } = &mount.kind else { return Err(Cause::Canceled) };
        let folder = match seed {
            Some(input) => self.seed(mount, input)?,
            None => {
                let folder = self.engine.lease.fresh_path();
                fs::create_dir(&folder).map_err(StoreError::io("make", &folder))?;
                folder
            }
        };
        if mode.is_some() || seed.is_none() {
            let mode = fs::Permissions::from_mode(mode.unwrap_or(0o755));
            fs::set_permissions(&folder, mode).map_err(StoreError::io("set the mode of", &folder))?;
        }
        chown(&folder, *uid, *gid)
            .map_err(|error| failure(mount, format!("the cache cannot be given to its uid and gid: {error}")))?;
        Ok(folder)
    }

    /// A copy of what a cache holds at first.
    fn seed(&self, mount: &RunMount, input: &MountPath) -> Result<PathBuf, Cause> {
        const PLACE: &str = "cache";
        let options = self.trees.get().expect("trees are prepared before a RUN is carried out");
        let copy = CopyOp { destination: format!("/{PLACE}"), ..copy_of(input) };
        let view = self.view(&self.stack(input.stack))?;
        let selection = select(&copy, &SourceView::Stack(&view)).map_err(|error| not_found(mount, error))?;
        let mut landing = land(&copy, &selection, &LayerStack::default())?;
        let made = self.write_layer(Stack::Scratch, Some(&copy), &mut landing, None, None)?;
        let Form::Tar(tar) = &made.form else { return Err(Cause::Canceled) };
        let tar = fs::File::open(tar).map_err(StoreError::io("open", tar))?;
        let tree = self.engine.lease.fresh_path();
        fs::create_dir(&tree).map_err(StoreError::io("make", &tree))?;
        apply::apply(&made.index, &tar, &tree, options)?;
        let top = tree.join(PLACE);
        if !top.is_dir() {
            return Err(failure(mount, format!("{} is no folder, and a cache is one", input.path)));
        }
        Ok(top)
    }

    fn no_secret(&self, mount: &RunMount, id: &str) -> Cause {
        let given = self.engine.secrets.iter().map(|secret| secret.id.as_str());
        let help = match nearest(id, given) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("give it to the build: --secret id={id},src=FILE or --secret id={id},env=NAME"),
        };
        Cause::Mount { span: mount.span, why: format!("secret {id}: not found"), help: Some(help) }
    }

    fn no_agent(&self, mount: &RunMount, id: &str) -> Cause {
        let given = self.engine.agents.iter().map(|agent| agent.id.as_str());
        let help = match nearest(id, given) {
            Some(near) => format!("did you mean {near}?"),
            None if id == "default" => "give it to the build: --ssh default, with SSH_AUTH_SOCK set".to_owned(),
            None => format!("give it to the build: --ssh {id}=SOCKET, or --ssh {id}=KEY"),
        };
        Cause::Mount { span: mount.span, why: format!("ssh agent {id}: not found"), help: Some(help) }
    }
}

impl Prepared {
    /// Takes out of the caches what was there only for mounts in them.
    pub(super) fn clear(&self, left: &[LeftStub]) -> Result<(), Cause> {
        let mut of: BTreeMap<usize, Vec<&LeftStub>> = BTreeMap::new();
        for stub in left {
            if let Some(cache) = self.cache_of.get(&stub.mount) {
                of.entry(*cache).or_default().push(stub);
            }
        }
        for (cache, stubs) in of {
            let cache = &self.caches[cache];
            // Another command may have something mounted on them.
            if cache.is_alone()? {
                remove_stubs(cache.folder(), &stubs)?;
                cache.share_again()?;
            }
        }
        Ok(())
    }
}

/// The COPY that would copy what a mount shows.
fn copy_of(input: &MountPath) -> CopyOp {
    let sources = vec![CopySource::Path(crate::plan::literal(&input.path))];
    CopyOp { sources, from: CopyFrom::Stack(input.stack), ..CopyOp::plain() }
}

fn failure(mount: &RunMount, why: String) -> Cause {
    Cause::Mount { span: mount.span, why, help: None }
}

fn not_found(mount: &RunMount, error: CopyError) -> Cause {
    match error {
        CopyError::NotFound { source_text, reason, near, .. } => {
            let help = match (&reason, near.first()) {
                (Some(reason), _) => Some(reason.clone()),
                (None, Some(near)) => Some(format!("did you mean /{near}?")),
                (None, None) => None,
            };
            let written = crate::plan::written(&source_text);
            let why = format!("\"{written}\" not found in the stage or image that from= names");
            Cause::Mount { span: mount.span, why, help }
        }
        other => other.into(),
    }
}

/// A folder of a cache that `source` names has to be there, and in the cache.
fn check_inside(mount: &RunMount, folder: &Path, path: &str) -> Result<(), Cause> {
    if path.is_empty() {
        return Ok(());
    }
    let root = crate::sys::root_dir::RootDir::open(folder).map_err(StoreError::io("open", folder))?;
    root.open_inside(path.as_bytes()).map(drop).map_err(|error| Cause::Mount {
        span: mount.span,
        why: format!("source {path:?} cannot be mounted from the cache: {error}"),
        help: Some("a source without from= is a folder in the cache itself; no link leads out of it".to_owned()),
    })
}

/// The value of a secret as that of a variable.
fn as_variable(mount: &RunMount, secret: &Secret) -> Result<String, Cause> {
    match String::from_utf8(secret.value.clone()) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(failure(mount, format!("secret {}: it is no text, so it cannot be a variable", secret.id))),
    }
}
