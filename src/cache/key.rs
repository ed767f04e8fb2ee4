//! Cache keys: digests of everything that a step's result depends on.
//!
//! In: operations and digests. Out: [`CacheKey`], [`StackId`]. Pure. What always holds: fields are framed by their
//! lengths and lists by their counts; every field of an operation is taken apart by name, so that a new one does not
//! compile until somebody has decided whether it is part of the key.
//!
//! | input of a step | where it counts |
//! |---|---|
//! | argument vector, script, declared environment, directory, user, host name, network of RUN | [`op_digest`] |
//! | platform | [`op_digest`] of RUN; COPY, ADD and WORKDIR give the same on every platform |
//! | targets, types and options of the mounts of RUN; ids of caches, secrets and agents | [`op_digest`] |
//! | what is bound or seeds a cache | [`run_key`]: as [`MountId::Stack`] with its path, or as [`MountId::Content`] |
//! | what caches hold, values of secrets, keys of agents, where in the Dockerfile a mount stands | nowhere |
//! | undeclared proxy arguments | nowhere: where the network is reached is no input |
//! | `--security`, ulimits, size of `/dev/shm`, parent of the cgroup | [`op_digest`] of RUN, where they are not as usual |
//! | names of `--add-host` | the same |
//! | limits of memory and processors, seccomp off, `no-new-privileges`, addresses of `--add-host` | nowhere |
//! | destination, `--chown`, `--chmod`, `--link`, `--parents`, `--exclude`, unpacking | [`op_digest`] of COPY |
//! | sources of COPY as written | [`SourceId::Stack`] only; the content digest has their names where they matter |
//! | bytes, modes, links of what is copied | [`SourceId::Content`] |
//! | layers below | [`run_key`], [`quick_key`]: as [`StackId`]; [`landing_key`]: only what is found at the destination |
//! | names looked up in the destination's passwd and group | [`landing_key`], as numbers |
//! | epoch, history, labels, tags, times of files, uid of the invoker, path of the context | nowhere |

use crate::digest::{CacheKey, ChainId, ContentDigest, Digest, Hasher, StackId};
use crate::image::platform::Platform;
use crate::plan::limits::{RunLimits, Security, Ulimit};
use crate::plan::step::{
    Chmod, Chown, CopyOp, CopySource, FileOwner, MakeDirOp, ModeClause, MountOp, Network, Op, RunMount, RunOp,
};

/// Goes first into every digest of this module. A change of what is hashed is a change of this number.
const KEY_VERSION: u64 = 1;

/// A running key: tagged, framed fields.
struct KeyHasher(Hasher);

impl KeyHasher {
    fn new(tag: &str) -> Self {
        let mut hasher = Self(Hasher::new());
        hasher.number(KEY_VERSION);
        hasher.text(tag);
        hasher
    }

    fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.number(u64::from(value));
    }

    fn text(&mut self, value: &str) {
        self.0.field(value.as_bytes());
    }

    fn texts(&mut self, values: &[String]) {
        self.number(values.len() as u64);
        values.iter().for_each(|value| self.text(value));
    }

    fn option<T: ?Sized>(&mut self, value: Option<&T>, feed: impl FnOnce(&mut Self, &T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            feed(self, value);
        }
    }

    fn digest(&mut self, value: &Digest) {
        self.0.update(value.as_bytes());
    }

    fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// Feeds all of itself to a key.
trait Keyed {
    fn feed(&self, key: &mut KeyHasher);
}

impl Keyed for RunOp {
    fn feed(&self, key: &mut KeyHasher) {
        let Self { args, script, env, proxy_env: _, cwd, user, network, hostname, security, limits, shell: _, mounts } =
            self;
        key.texts(args);
        key.option(script.as_ref(), |key, (name, body)| {
            key.text(name);
            key.text(body);
        });
        key.texts(env);
        key.text(cwd);
        key.text(user);
        key.number(match network {
            Network::Default => 0,
            Network::None => 1,
            Network::Host => 2,
        });
        key.option(hostname.as_deref(), KeyHasher::text);
        // Only where they are not as usual, each after its name: keys of the usual RUN stay what they were.
        if *security == Security::Insecure {
            key.text("insecure");
        }
        let RunLimits { ulimits, shm_size, cgroup_parent, host_names } = limits;
        if !ulimits.is_empty() {
            key.text("ulimits");
            key.number(ulimits.len() as u64);
            for Ulimit { name, soft, hard } in ulimits {
                key.text(name);
                key.number(*soft);
                key.number(*hard);
            }
        }
        if *shm_size > 0 {
            key.text("shm size");
            key.number(*shm_size);
        }
        if let Some(parent) = cgroup_parent {
            key.text("cgroup parent");
            key.text(parent);
        }
        if !host_names.is_empty() {
            key.text("host names");
            key.texts(host_names);
        }
        if !mounts.is_empty() {
            key.text("mounts");
            key.number(mounts.len() as u64);
            mounts.iter().for_each(|mount| mount.feed(key));
        }
    }
}

impl Keyed for RunMount {
    fn feed(&self, key: &mut KeyHasher) {
        let Self { target, read_only, kind, span: _ } = self;
        key.option(target.as_deref(), KeyHasher::text);
        key.flag(*read_only);
        key.text(kind.name());
        let number = |key: &mut KeyHasher, number: &u32| key.number(u64::from(*number));
        match kind {
            // What it shows is an input: see `run_key`.
            MountOp::Bind(_) => {}
            MountOp::Cache { id, sharing, seed, path, mode, uid, gid } => {
                key.text(id);
                key.text(sharing.name());
                key.flag(seed.is_some());
                key.text(path);
                [mode, uid, gid].into_iter().for_each(|value| key.option(value.as_ref(), number));
            }
            MountOp::Tmpfs { size } => key.option(size.as_ref(), |key, size| key.number(*size)),
            MountOp::Secret { id, env, owner, required } => {
                key.text(id);
                key.option(env.as_deref(), KeyHasher::text);
                owner.feed(key);
                key.flag(*required);
            }
            MountOp::Ssh { id, owner, required } => {
                key.text(id);
                owner.feed(key);
                key.flag(*required);
            }
        }
    }
}

impl Keyed for FileOwner {
    fn feed(&self, key: &mut KeyHasher) {
        let Self { mode, uid, gid } = self;
        [mode, uid, gid].into_iter().for_each(|value| key.number(u64::from(*value)));
    }
}

impl Keyed for CopyOp {
    fn feed(&self, key: &mut KeyHasher) {
        let Self { sources: _, from: _, destination, chown, chmod, link, parents, exclude, unpack } = self;
        key.text(destination);
        key.option(chown.as_ref(), |key, Chown { user, group }| {
            key.text(user);
            key.option(group.as_deref(), KeyHasher::text);
        });
        key.option(chmod.as_ref(), |key, chmod| match chmod {
            Chmod::Octal(mode) => {
                key.flag(false);
                key.number(u64::from(*mode));
            }
            Chmod::Symbolic(clauses) => {
                key.flag(true);
                key.number(clauses.len() as u64);
                for ModeClause { who: (user, group, other), operator, permissions } in clauses {
                    [*user, *group, *other].into_iter().for_each(|class| key.flag(class));
                    key.number(u64::from(u32::from(*operator)));
                    key.text(permissions);
                }
            }
        });
        key.flag(*link);
        key.flag(*parents);
        key.texts(exclude);
        key.flag(*unpack);
    }
}

impl Keyed for MakeDirOp {
    fn feed(&self, key: &mut KeyHasher) {
        let Self { path, user } = self;
        key.text(path);
        key.text(user);
    }
}

/// The operation alone: no parent, no content of inputs. Two runs of one operation share it.
pub fn op_digest(op: &Op, platform: &Platform) -> Digest {
    let mut key;
    match op {
        Op::Run(run) => {
            key = KeyHasher::new("run");
            key.text(&platform.to_string());
            run.feed(&mut key);
        }
        Op::Copy(copy) => {
            key = KeyHasher::new("copy");
            copy.feed(&mut key);
        }
        Op::MakeDir(make) => {
            key = KeyHasher::new("make directory");
            make.feed(&mut key);
        }
    }
    key.finish()
}

/// The stack of `made` layers, bottom first, on a base from outside.
pub fn stack_id(base: Option<&ChainId>, made: &[ContentDigest]) -> StackId {
    let mut key = KeyHasher::new("stack");
    key.option(base, |key, chain| key.digest(&chain.0));
    key.number(made.len() as u64);
    made.iter().for_each(|content| key.digest(&content.0));
    StackId(key.finish())
}

/// What a COPY takes, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceId {
    /// Paths of a stage or image, named by its stack: needs nothing of it but its name.
    Stack(StackId),
    /// The content of what is selected.
    Content(Digest),
    /// Nothing is copied: WORKDIR.
    Nothing,
}

fn feed_source(key: &mut KeyHasher, op: Option<&CopyOp>, source: &SourceId) {
    match source {
        SourceId::Stack(stack) => {
            key.text("stack");
            key.digest(&stack.0);
            if let Some(CopyOp { sources, .. }) = op {
                key.number(sources.len() as u64);
                for source in sources {
                    match source {
                        CopySource::Path(path) => {
                            key.flag(false);
                            key.text(path);
                        }
                        CopySource::Inline { name, content } => {
                            key.flag(true);
                            key.text(name);
                            key.text(content);
                        }
                        // COPY --from alone has a stack, and it fetches nothing: its sources never come here.
                        CopySource::Remote(remote) => key.text(&remote.text),
                    }
                }
            }
        }
        SourceId::Content(digest) => {
            key.text("content");
            key.digest(digest);
        }
        SourceId::Nothing => key.text("nothing"),
    }
}

/// What a mount of RUN shows, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountId<'a> {
    /// A path of a stack, named by it: needs nothing of it but its name.
    Stack(StackId, &'a str),
    /// The content of what is at the path.
    Content(Digest),
}

/// The key of RUN: the operation on the stack below it, with what its mounts show (in their order).
pub fn run_key(op: &Digest, below: &StackId, mounts: &[MountId<'_>]) -> CacheKey {
    let mut key = KeyHasher::new("key of run");
    key.digest(op);
    key.digest(&below.0);
    for mount in mounts {
        match mount {
            MountId::Stack(stack, path) => {
                key.text("stack");
                key.digest(&stack.0);
                key.text(path);
            }
            MountId::Content(digest) => {
                key.text("content");
                key.digest(digest);
            }
        }
    }
    CacheKey(key.finish())
}

/// The quick key of COPY, ADD and WORKDIR: needs nothing of the layers below but their name. `copy` is the operation
/// itself where it is a COPY or ADD.
pub fn quick_key(copy: Option<&CopyOp>, op: &Digest, source: &SourceId, below: &StackId) -> CacheKey {
    let mut key = KeyHasher::new("quick key");
    key.digest(op);
    feed_source(&mut key, copy, source);
    key.digest(&below.0);
    CacheKey(key.finish())
}

/// Both keys of COPY, ADD and WORKDIR, as far as it is known where they land.
pub fn both_keys(
    copy: Option<&CopyOp>,
    op: &Digest,
    source: &SourceId,
    below: &StackId,
    landing: Option<&Digest>,
) -> impl Iterator<Item = CacheKey> {
    let quick = quick_key(copy, op, source, below);
    std::iter::once(quick).chain(landing.map(|landing| landing_key(copy, op, source, landing)))
}

/// The landing key of COPY, ADD and WORKDIR: holds only what is found where it lands, so the layer survives a change
/// of anything else below. `landing` covers the owner ids that names were looked up to.
pub fn landing_key(copy: Option<&CopyOp>, op: &Digest, source: &SourceId, landing: &Digest) -> CacheKey {
    let mut key = KeyHasher::new("landing key");
    key.digest(op);
    feed_source(&mut key, copy, source);
    key.digest(landing);
    CacheKey(key.finish())
}

#[cfg(test)]
mod tests;
