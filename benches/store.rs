//! Commands on a large store by the clock: a thousand images, a hundred thousand cache records.
//!
//! The store is written by the library's own functions, in a process of the user who is measured; then the real program is
//! timed in it. Prints medians, as root and as an ordinary user where the caller can be both. Asserts nothing: figures
//! are for people.
#![allow(clippy::print_stdout)]

mod timing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use rbuild::cache::record::CacheRecord;
use rbuild::digest::{CacheKey, ContentDigest, DiffId, Digest, StackId};
use rbuild::image::platform::Platform;
use rbuild::layer::entry::{Entry, Kind};
use rbuild::layer::write::{Body, LayerWriter};
use rbuild::store::Store;
use rbuild::store::import::{ImportOptions, import};
use rbuild::store::layers::Form;
use rbuild::store::lease::Lease;

use timing::{Place, TEN, User, median};

const IMAGES: usize = 1_000;
const RECORDS: usize = 100_000;
/// Layers that the records lead to, besides those of images: a step is found by several keys.
const LAYERS: usize = 20_000;
const RUNS: usize = 21;
/// What has to look through all of the store is timed less often.
const SLOW_RUNS: usize = 5;

/// The word by which this program knows that it is to fill a store.
const FILL: &str = "fill-store";

/// A layer of one small file.
fn layer(number: usize) -> Result<(Vec<u8>, rbuild::layer::index::LayerIndex)> {
    let text = format!("file {number}\n");
    let path = format!("srv/{number}").into_bytes();
    let kind = Kind::File { size: text.len() as u64, sha256: Digest::of(text.as_bytes()) };
    let mut entry = Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: number as i64, capability: None };
    let mut writer = LayerWriter::new(Vec::new());
    writer.push(&mut entry, Body::Bytes(text.as_bytes()))?;
    Ok(writer.finish()?)
}

fn record(store: &Store, lease: &Lease, number: usize, layer: DiffId) -> Result<()> {
    let digest = Digest::of(format!("record {number}").as_bytes());
    let parts = [("command", format!("/bin/sh -c make target-{number}")), ("directory", "/srv/app".to_owned())];
    let record = CacheRecord {
        content: ContentDigest(digest),
        layer,
        op: digest,
        below: StackId(digest),
        source: None,
        landing: None,
        parts: parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    };
    Ok(store.record(lease, &CacheKey(digest), &record)?)
}

/// Lets the store hold what a team leaves that has built for years.
fn fill(root: &Path) -> Result<()> {
    let store = Store::open(root)?;
    let lease = store.lease("bench")?;
    let mut layers = Vec::with_capacity(LAYERS + IMAGES);
    for number in 0..LAYERS {
        let (tar, index) = layer(number)?;
        let path = lease.fresh_path();
        std::fs::write(&path, tar)?;
        store.put_layer(&lease, &index, Form::Tar(path))?;
        layers.push(index.diff_id());
    }
    for number in 0..IMAGES {
        let (tar, index) = layer(LAYERS + number)?;
        let options = ImportOptions {
            changes: Vec::new(),
            message: Some(format!("image {number}")),
            platform: Platform::new("linux", "amd64", ""),
            created: format!("2026-01-01T00:{:02}:{:02}Z", number / 60 % 60, number % 60),
        };
        let mut record = import(&store, &lease, Box::new(tar.as_slice()), "bench", &options)?;
        record.names.push(format!("registry.example.com/team/app-{number}:1.{number}"));
        store.tag(&record)?;
        layers.push(index.diff_id());
    }
    for number in 0..RECORDS {
        record(&store, &lease, number, layers[number % layers.len()])?;
    }
    lease.sync()?;
    Ok(())
}

fn measure(who: &str, user: Option<User>, tar: &Path) -> Result<()> {
    let (small, large) = (Place::new(user, tar)?, Place::new(user, tar)?);
    let program = large.folder.with_file_name("fill");
    std::fs::copy(std::env::current_exe()?, &program)?;
    let filled = large.command(&program).args([FILL, "store"]).status()?;
    ensure!(filled.success(), "the store could not be filled");
    let print = |what: &str, took: Duration, limit: &str| {
        println!("{who:<9} {what:<46} {:>8.1} ms   {limit}", took.as_secs_f64() * 1000.0);
    };
    for place in [&small, &large] {
        place.dockerfile(TEN)?;
        place.build()?;
        place.build()?;
    }
    // In turn, so that what else goes on here slows both alike.
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..2 * RUNS {
        times[0].push(small.build());
        times[1].push(large.build());
    }
    let [few, many] = times.map(|times| median(times.into_iter()));
    let (few, many) = (few?, many?);
    let more = (many.as_secs_f64() / few.as_secs_f64() - 1.0) * 100.0;
    print("cached build, small store", few, "");
    print("cached build, large store", many, &format!("{more:+.0} %   (limit: +10 %)"));
    let timed = |args: &[&str], runs| median((0..runs).map(|_| large.rbuild(args)));
    print("images", timed(&["images"], RUNS)?, "(limit: 50 ms)");
    print("images -q", timed(&["images", "-q"], RUNS)?, "");
    let mut number = 0;
    let mut numbered = |word: &str, fixed: &[&str]| {
        median((0..RUNS).map(|_| {
            number += 1;
            let name = format!("registry.example.com/team/app-{number}:1.{number}");
            let mut args = vec![word, &name];
            args.extend(fixed);
            large.rbuild(args)
        }))
    };
    print("tag", numbered("tag", &["moving:tag"])?, "");
    print("rmi of one image", numbered("rmi", &[])?, "");
    print("df", timed(&["df"], SLOW_RUNS)?, "");
    print("prune, nothing to do", timed(&["prune", "-f", "--filter", "until=240h"], SLOW_RUNS)?, "");
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if let [word, root] = words.as_slice()
        && word == Path::new(FILL)
    {
        return fill(root);
    }
    let folder = tempfile::tempdir()?;
    let (tar, what) = timing::rootfs(folder.path())?;
    println!("{what}; {IMAGES} images, {RECORDS} records that lead to {} layers; medians", LAYERS + IMAGES);
    timing::as_each(|who, user| measure(who, user, &tar))
}
