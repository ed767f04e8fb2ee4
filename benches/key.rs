//! What finding a step in the cache computes: keys, stack names, digests of operations.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rbuild::cache::key::{SourceId, op_digest, quick_key, run_key, stack_id};
use rbuild::digest::{ContentDigest, Digest};
use rbuild::image::platform::Platform;
use rbuild::plan::step::{ContextId, CopyFrom, CopyOp, CopySource, Network, Op, RunOp};

fn run(size: usize) -> Op {
    Op::Run(RunOp {
        args: vec!["/bin/sh".to_owned(), "-c".to_owned(), "x".repeat(size)],
        script: None,
        env: (0..20).map(|n| format!("VARIABLE_{n}=some value or other")).collect(),
        proxy_env: Vec::new(),
        cwd: "/srv/app".to_owned(),
        user: String::new(),
        network: Network::Default,
        hostname: None,
        security: rbuild::plan::limits::Security::Sandbox,
        limits: rbuild::plan::limits::RunLimits::default(),
        shell: Vec::new(),
        mounts: Vec::new(),
    })
}

fn copy() -> CopyOp {
    CopyOp {
        sources: vec![CopySource::Path("src".to_owned())],
        from: CopyFrom::Context(ContextId(0)),
        destination: "/srv/app/".to_owned(),
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: vec!["*.o".to_owned()],
        unpack: false,
    }
}

fn keys(criterion: &mut Criterion) {
    let platform = Platform::new("linux", "amd64", "");
    let mut group = criterion.benchmark_group("key");
    group.sample_size(20);
    for size in [100, 10_000] {
        let op = run(size);
        group.bench_with_input(BenchmarkId::new("run", size), &op, |bencher, op| {
            bencher.iter(|| {
                let digest = op_digest(op, &platform);
                black_box(run_key(&digest, &stack_id(None, &[ContentDigest(digest)]), &[]))
            });
        });
    }
    let op = copy();
    let source = SourceId::Content(Digest::of(b"source"));
    group.bench_function("copy", |bencher| {
        bencher.iter(|| {
            let digest = op_digest(&Op::Copy(op.clone()), &platform);
            black_box(quick_key(Some(&op), &digest, &source, &stack_id(None, &[])))
        });
    });
    // The deepest stack that the kernel mounts.
    let made: Vec<ContentDigest> = (0..450_u32).map(|n| ContentDigest(Digest::of(&n.to_le_bytes()))).collect();
    for depth in [1, 50, 450] {
        group.bench_with_input(BenchmarkId::new("stack", depth), &made[..depth], |bencher, made| {
            bencher.iter(|| black_box(stack_id(None, made)));
        });
    }
    group.finish();
}

criterion_group!(benches, keys);
criterion_main!(benches);
