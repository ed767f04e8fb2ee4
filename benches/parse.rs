//! How long parsing takes, from 1 KB to 1 MB, the build checks, and planning with many variables: the time for each
//! byte, instruction and variable must stay the same.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rbuild::diagnostic::Source;
use rbuild::dockerfile::lint::{Checks, check_syntax};
use rbuild::dockerfile::parse;
use rbuild::plan::{self, Bases, PlanOptions};

/// What real files are made of.
const STAGE: &str = "\
# Build the program.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.90-bookworm AS build
ARG VERSION=1.2.3 FEATURES=\"one two\"
ENV CARGO_HOME=/cargo \\
    # comments may stand here
    RUSTFLAGS='-C target-cpu=x86-64-v2'
WORKDIR /src
RUN --mount=type=cache,target=/cargo,sharing=locked apt-get update \\
 && apt-get install -y --no-install-recommends \\
      build-essential pkg-config libssl-dev \\
 && rm -rf /var/lib/apt/lists/*
COPY --chown=1000:1000 --link Cargo.toml Cargo.lock src/ ./
COPY <<-EOF /etc/app.conf
\tversion = ${VERSION:-none}
\tEOF
RUN [\"cargo\", \"build\", \"--release\", \"--locked\"]
HEALTHCHECK --interval=30s --retries=3 CMD curl -f http://localhost/ || exit 1
LABEL org.opencontainers.image.title=\"app\" org.opencontainers.image.version=$VERSION
EXPOSE 80 443/tcp
CMD [\"/usr/local/bin/app\"]
";

fn sizes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.sample_size(10);
    for size in [1 << 10, 1 << 14, 1 << 17, 1 << 20] {
        let source = Source { name: "Dockerfile".to_owned(), text: STAGE.repeat(size / STAGE.len() + 1) };
        group.throughput(Throughput::Bytes(source.text.len() as u64));
        group.bench_with_input(BenchmarkId::new("stages", size), &source, |bencher, source| {
            bencher.iter(|| black_box(parse(source)));
        });
        let script = format!("FROM scratch\nRUN {}\n", "echo \"${HOME}\" && \\\n".repeat(size / 18 + 1));
        let source = Source { name: "Dockerfile".to_owned(), text: script };
        group.throughput(Throughput::Bytes(source.text.len() as u64));
        group.bench_with_input(BenchmarkId::new("one_instruction", size), &source, |bencher, source| {
            bencher.iter(|| black_box(parse(source)));
        });
    }
    group.finish();
}

fn checks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checks");
    group.sample_size(10);
    for stages in [1, 100] {
        let parsed = parse(&Source { name: "Dockerfile".to_owned(), text: STAGE.repeat(stages) });
        group.bench_with_input(BenchmarkId::new("stages", stages), &parsed, |bencher, parsed| {
            bencher.iter(|| {
                let (checks, mut found) = Checks::new(parsed, None);
                found.extend(check_syntax(&parsed.nodes));
                black_box(checks.settle(found, None))
            });
        });
    }
    group.finish();
}

fn variables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(10);
    for names in [100, 4_000] {
        let line = |number: usize| format!("ENV NAME_{number}=$NAME_{}\n", number.saturating_sub(1));
        let text = format!("FROM scratch\n{}", (0..names).map(line).collect::<String>());
        let parsed = parse(&Source { name: "Dockerfile".to_owned(), text });
        let options = PlanOptions::default();
        group.bench_with_input(BenchmarkId::new("variables", names), &parsed, |bencher, parsed| {
            bencher.iter(|| {
                let graph = plan::graph(&parsed.dockerfile, &options).expect("stages");
                black_box(plan::plan(&graph, &Bases::new(), &options).expect("a plan"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sizes, checks, variables);
criterion_main!(benches);
