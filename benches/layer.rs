//! What a layer costs without the file system: writing tar and index, reading the index, looking up, scanning a tar.

use std::hint::black_box;
use std::io;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rbuild::digest::Digest;
use rbuild::layer::entry::{Entry, Kind};
use rbuild::layer::index::LayerIndex;
use rbuild::layer::scan::scan;
use rbuild::layer::stack::LayerStack;
use rbuild::layer::write::{Body, LayerWriter};

const FOLDERS: usize = 100;
const FILES: usize = 20;

/// 2,000 files of 4 kB in 100 folders.
fn entries() -> Vec<Entry> {
    let entry = |path: String, kind| Entry {
        path: path.into_bytes(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        capability: None,
    };
    let mut entries = Vec::new();
    for folder in 0..FOLDERS {
        entries.push(entry(format!("folder-{folder:03}"), Kind::Directory));
        for file in 0..FILES {
            let kind = Kind::File { size: 4096, sha256: Digest::of(b"") };
            entries.push(entry(format!("folder-{folder:03}/file-{file:02}.txt"), kind));
        }
    }
    entries
}

fn write(entries: &[Entry], out: impl io::Write) -> LayerIndex {
    let data = [b'x'; 4096];
    let mut writer = LayerWriter::new(out);
    for entry in entries {
        let body = if matches!(entry.kind, Kind::File { .. }) { Body::Bytes(&data) } else { Body::None };
        writer.push(&mut entry.clone(), body).expect("entries come in order");
    }
    writer.finish().expect("memory takes all").1
}

fn layers(criterion: &mut Criterion) {
    let entries = entries();
    let mut tar = Vec::new();
    let index = write(&entries, &mut tar);
    let mut group = criterion.benchmark_group("layer");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(tar.len() as u64));
    group.bench_function("write", |bencher| bencher.iter(|| black_box(write(&entries, io::sink()))));
    group.bench_function("scan", |bencher| bencher.iter(|| black_box(scan(tar.as_slice()).expect("a good tar"))));
    group.throughput(Throughput::Elements(entries.len() as u64));
    group.bench_function("read_index", |bencher| {
        bencher.iter(|| black_box(LayerIndex::from_bytes(index.as_bytes().to_vec()).expect("a good index")));
    });
    let layers = std::iter::repeat_n(Arc::new(index.clone()), 20).collect::<Vec<_>>();
    let stack = LayerStack::new(layers).expect("few layers");
    group.bench_function("look_up", |bencher| {
        bencher.iter(|| entries.iter().filter(|entry| stack.lookup_ref(&entry.path).is_some()).count());
    });
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
