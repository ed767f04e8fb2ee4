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
//! | limits of memory and processors, seccomp off | nowhere |
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
        let RunLimits { ulimits, shm_size, cgroup_parent } = limits;
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
mod tests {
    use super::*;
    use crate::plan::step::{CopyFrom, MountPath, Sharing, Stack};

    fn run() -> RunOp {
        RunOp {
            args: vec!["/bin/sh".into(), "-c".into(), "make".into()],
            script: None,
            env: vec!["PATH=/bin".into(), "A=1".into()],
            proxy_env: Vec::new(),
            cwd: "/".into(),
            user: String::new(),
            network: Network::Default,
            hostname: None,
            security: Security::Sandbox,
            limits: RunLimits::default(),
            shell: Vec::new(),
            mounts: Vec::new(),
        }
    }

    fn mount(kind: MountOp) -> RunMount {
        RunMount { target: Some("/m".into()), read_only: true, kind, span: crate::diagnostic::Span::default() }
    }

    fn bind() -> MountOp {
        MountOp::Bind(MountPath { stack: Stack::Scratch, path: "/".into() })
    }

    fn cache() -> MountOp {
        MountOp::Cache {
            id: "c".into(),
            sharing: Sharing::Shared,
            seed: None,
            path: String::new(),
            mode: None,
            uid: None,
            gid: None,
        }
    }

    const OWNER: FileOwner = FileOwner { mode: 0o400, uid: 0, gid: 0 };

    fn secret() -> MountOp {
        MountOp::Secret { id: "s".into(), env: None, owner: OWNER, required: false }
    }

    fn ssh() -> MountOp {
        MountOp::Ssh { id: "default".into(), owner: OWNER, required: false }
    }

    fn copy() -> CopyOp {
        CopyOp {
            sources: vec![CopySource::Path("a".into())],
            from: CopyFrom::Context(crate::plan::step::ContextId(0)),
            destination: "/d/".into(),
            chown: None,
            chmod: None,
            link: false,
            parents: false,
            exclude: Vec::new(),
            unpack: false,
        }
    }

    fn make() -> MakeDirOp {
        MakeDirOp { path: "/w".into(), user: String::new() }
    }

    fn platform(architecture: &str) -> Platform {
        Platform::new("linux", architecture, "")
    }

    fn digest(op: &Op) -> Digest {
        op_digest(op, &platform("amd64"))
    }

    /// Every field of an operation that is part of the key alters it; no two alterations meet.
    #[test]
    fn any_change_of_an_operation_is_another_key() {
        let alter_run: &[fn(&mut RunOp)] = &[
            |_| {},
            |op| op.args[2] = "make all".into(),
            |op| op.args = vec!["/bin/sh".into(), "-c make".into()],
            |op| op.script = Some(("EOF".into(), "#!/bin/sh".into())),
            |op| op.script = Some(("EO".into(), "F#!/bin/sh".into())),
            |op| op.env[1] = "A=2".into(),
            |op| op.env.reverse(),
            |op| op.cwd = "/src".into(),
            |op| op.user = "nobody".into(),
            |op| op.network = Network::None,
            |op| op.network = Network::Host,
            |op| op.hostname = Some("h".into()),
            |op| op.security = Security::Insecure,
            |op| op.limits.shm_size = 1,
            |op| op.limits.cgroup_parent = Some("a".into()),
            |op| op.limits.ulimits = vec![Ulimit { name: "core", soft: 0, hard: 0 }],
            |op| op.limits.ulimits = vec![Ulimit { name: "core", soft: 0, hard: 1 }],
            |op| op.limits.ulimits = vec![Ulimit { name: "cpu", soft: 0, hard: 1 }],
        ];
        let alter_copy: &[fn(&mut CopyOp)] = &[
            |_| {},
            |op| op.destination = "/d".into(),
            |op| op.chown = Some(Chown { user: "1".into(), group: None }),
            |op| op.chown = Some(Chown { user: "1".into(), group: Some("1".into()) }),
            |op| op.chmod = Some(Chmod::Octal(0)),
            |op| op.chmod = Some(Chmod::Octal(0o644)),
            |op| op.chmod = Some(Chmod::Symbolic(Vec::new())),
            |op| op.link = true,
            |op| op.parents = true,
            |op| op.exclude = vec!["*.o".into()],
            |op| op.unpack = true,
        ];
        let alter_mount: &[fn(&mut Vec<RunMount>)] = &[
            |mounts| mounts.push(mount(bind())),
            |mounts| mounts.extend([mount(bind()), mount(bind())]),
            |mounts| mounts.push(RunMount { target: Some("/n".into()), ..mount(bind()) }),
            |mounts| mounts.push(RunMount { read_only: false, ..mount(bind()) }),
            |mounts| mounts.push(mount(MountOp::Tmpfs { size: None })),
            |mounts| mounts.push(mount(MountOp::Tmpfs { size: Some(0) })),
            |mounts| mounts.push(mount(cache())),
            |mounts| mounts.push(mount(with(cache(), |[id, ..]| *id = "d".into()))),
            |mounts| mounts.push(mount(with(cache(), |[_, path]| *path = "d".into()))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.sharing = Sharing::Locked))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.sharing = Sharing::Private))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.seeded = true))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.numbers[0] = Some(1)))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.numbers[1] = Some(1)))),
            |mounts| mounts.push(mount(numbered(cache(), |cache| cache.numbers[2] = Some(1)))),
            |mounts| mounts.push(mount(secret())),
            |mounts| mounts.push(RunMount { target: None, ..mount(secret()) }),
            |mounts| mounts.push(mount(with_owner(secret(), |owner, _| owner.mode = 0o444))),
            |mounts| mounts.push(mount(with_owner(secret(), |owner, _| owner.uid = 1))),
            |mounts| mounts.push(mount(with_owner(secret(), |owner, _| owner.gid = 1))),
            |mounts| mounts.push(mount(with_owner(secret(), |_, required| *required = true))),
            |mounts| mounts.push(mount(with(secret(), |[id, ..]| *id = "t".into()))),
            |mounts| mounts.push(mount(with(secret(), |[_, env]| *env = "E".into()))),
            |mounts| mounts.push(mount(ssh())),
            |mounts| mounts.push(mount(with(ssh(), |[id, ..]| *id = "t".into()))),
            |mounts| mounts.push(mount(with_owner(ssh(), |owner, _| owner.mode = 0o600))),
            |mounts| mounts.push(mount(with_owner(ssh(), |_, required| *required = true))),
        ];
        let mut seen = std::collections::HashSet::new();
        for alter in alter_mount {
            let mut op = run();
            alter(&mut op.mounts);
            assert!(seen.insert(digest(&Op::Run(op.clone()))), "{op:?}");
        }
        for alter in alter_run {
            let mut op = run();
            alter(&mut op);
            assert!(seen.insert(digest(&Op::Run(op.clone()))), "{op:?}");
        }
        for alter in alter_copy {
            let mut op = copy();
            alter(&mut op);
            assert!(seen.insert(digest(&Op::Copy(op.clone()))), "{op:?}");
        }
        for op in [make(), MakeDirOp { path: "/v".into(), ..make() }, MakeDirOp { user: "1".into(), ..make() }] {
            assert!(seen.insert(digest(&Op::MakeDir(op.clone()))), "{op:?}");
        }
    }

    /// Alters the texts of a mount: its id, and the other one.
    fn with(mut kind: MountOp, alter: fn([&mut String; 2])) -> MountOp {
        let mut other = String::new();
        match &mut kind {
            MountOp::Cache { id, path, .. } => alter([id, path]),
            MountOp::Secret { id, env, .. } => {
                alter([id, &mut other]);
                *env = Some(other).filter(|env| !env.is_empty());
            }
            MountOp::Ssh { id, .. } => alter([id, &mut other]),
            MountOp::Bind(_) | MountOp::Tmpfs { .. } => {}
        }
        kind
    }

    fn with_owner(mut kind: MountOp, alter: fn(&mut FileOwner, &mut bool)) -> MountOp {
        if let MountOp::Secret { owner, required, .. } | MountOp::Ssh { owner, required, .. } = &mut kind {
            alter(owner, required);
        }
        kind
    }

    /// The rest of a cache.
    struct Rest {
        sharing: Sharing,
        seeded: bool,
        numbers: [Option<u32>; 3],
    }

    fn numbered(mut kind: MountOp, alter: fn(&mut Rest)) -> MountOp {
        let mut rest = Rest { sharing: Sharing::Shared, seeded: false, numbers: [None; 3] };
        alter(&mut rest);
        if let MountOp::Cache { sharing, seed, mode, uid, gid, .. } = &mut kind {
            *sharing = rest.sharing;
            *seed = rest.seeded.then(|| MountPath { stack: Stack::Scratch, path: "/".into() });
            [*mode, *uid, *gid] = rest.numbers;
        }
        kind
    }

    #[test]
    fn what_is_no_input_is_not_in_the_key() {
        let at = |kind, start| RunOp {
            mounts: vec![RunMount { span: crate::diagnostic::Span::new(start, 9), ..mount(kind) }],
            ..run()
        };
        let elsewhere = MountOp::Bind(MountPath { stack: Stack::Scratch, path: "/elsewhere".into() });
        assert_eq!(digest(&Op::Run(at(bind(), 0))), digest(&Op::Run(at(elsewhere, 5))), "its content is the input");
        let proxied = RunOp { proxy_env: vec!["http_proxy=http://p".into()], ..run() };
        assert_eq!(digest(&Op::Run(proxied)), digest(&Op::Run(run())));
        let in_bash = RunOp { shell: vec!["/bin/bash".into()], ..run() };
        assert_eq!(digest(&Op::Run(in_bash)), digest(&Op::Run(run())), "SHELL counts in the words that it gives");
        let renamed = CopyOp { sources: vec![CopySource::Path("dir/a".into())], ..copy() };
        assert_eq!(digest(&Op::Copy(renamed)), digest(&Op::Copy(copy())));
        for op in [Op::Copy(copy()), Op::MakeDir(make())] {
            assert_eq!(op_digest(&op, &platform("arm64")), digest(&op), "COPY and WORKDIR have no platform");
        }
        assert_ne!(op_digest(&Op::Run(run()), &platform("arm64")), digest(&Op::Run(run())));
    }

    #[test]
    fn stacks_and_sources_are_told_apart() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let made = [ContentDigest(a), ContentDigest(b)];
        let mut stacks = std::collections::HashSet::new();
        for stack in [
            stack_id(None, &[]),
            stack_id(Some(&ChainId(a)), &[]),
            stack_id(None, &made[..1]),
            stack_id(None, &made),
            stack_id(None, &[made[1], made[0]]),
            stack_id(Some(&ChainId(a)), &made[1..]),
        ] {
            assert!(stacks.insert(stack));
        }
        let op = CopyOp { from: CopyFrom::Stack(crate::plan::step::Stack::Scratch), ..copy() };
        let key = |source| quick_key(Some(&op), &a, &source, &StackId(b));
        let keys = [
            key(SourceId::Nothing),
            key(SourceId::Content(a)),
            key(SourceId::Stack(StackId(a))),
            landing_key(Some(&op), &a, &SourceId::Nothing, &b),
            run_key(&a, &StackId(b), &[]),
            run_key(&a, &StackId(b), &[MountId::Content(a)]),
            run_key(&a, &StackId(b), &[MountId::Content(a), MountId::Content(a)]),
            run_key(&a, &StackId(b), &[MountId::Content(b)]),
            run_key(&a, &StackId(b), &[MountId::Stack(StackId(a), "/")]),
            run_key(&a, &StackId(b), &[MountId::Stack(StackId(a), "/a")]),
            run_key(&a, &StackId(b), &[MountId::Stack(StackId(b), "/a")]),
        ];
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), keys.len());
        let other = CopyOp { sources: vec![CopySource::Path("b".into())], ..copy() };
        assert_ne!(
            quick_key(Some(&other), &a, &SourceId::Stack(StackId(a)), &StackId(b)),
            key(SourceId::Stack(StackId(a))),
            "a stage counts with its path"
        );
    }

    /// A changed line here is a changed key: raise `KEY_VERSION` and say so in the commit.
    #[test]
    fn keys_are_what_they_were() {
        let below = stack_id(Some(&ChainId(Digest::of(b"base"))), &[ContentDigest(Digest::of(b"layer"))]);
        let lines = [
            ("run", run_key(&digest(&Op::Run(run())), &below, &[])),
            (
                "copy quick",
                quick_key(Some(&copy()), &digest(&Op::Copy(copy())), &SourceId::Content(Digest::of(b"files")), &below),
            ),
            (
                "copy landing",
                landing_key(
                    Some(&copy()),
                    &digest(&Op::Copy(copy())),
                    &SourceId::Content(Digest::of(b"files")),
                    &Digest::of(b"landing"),
                ),
            ),
            ("workdir", quick_key(None, &digest(&Op::MakeDir(make())), &SourceId::Nothing, &below)),
        ];
        let found = lines.map(|(name, key)| format!("{name} {key}\n")).concat();
        assert_eq!(found, include_str!("../../testdata/keys/golden.txt"));
    }
}
