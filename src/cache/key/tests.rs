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
    CopyOp { sources: vec![CopySource::Path("a".into())], destination: "/d/".into(), ..CopyOp::plain() }
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
        |op| op.limits.host_names = vec!["a".into()],
        |op| op.limits.host_names = vec!["a".into(), "b".into()],
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
    assert_eq!(found, include_str!("../../../testdata/keys/golden.txt"));
}
