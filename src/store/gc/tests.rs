use std::collections::BTreeMap;

use super::*;
use crate::digest::{CacheKey, ContentDigest, StackId};
use crate::layer::scan::scan;
use crate::store::layers::Form;
use crate::store::lease::Lease;

/// A layer with one file.
fn layer(store: &Store, lease: &Lease, name: &str) -> DiffId {
    let mut header = tar::Header::new_gnu();
    header.set_size(5000);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, &[7; 5000][..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let index = scan(&tar[..]).unwrap();
    let path = lease.fresh_path();
    fs::write(&path, tar).unwrap();
    store.put_layer(lease, &index, Form::Tar(path)).unwrap();
    index.diff_id()
}

fn record(store: &Store, lease: &Lease, name: &str, layer: DiffId, hours: u64) {
    let digest = Digest::of(name.as_bytes());
    let record = CacheRecord {
        content: ContentDigest(digest),
        layer,
        op: digest,
        below: StackId(digest),
        source: None,
        landing: None,
        parts: BTreeMap::new(),
    };
    store.record(lease, &CacheKey(digest), &record).unwrap();
    let path = store.path("cache/records").join(&digest.hex()[..2]).join(digest.hex());
    let used = SystemTime::now() - Duration::from_secs(hours * 3600);
    File::open(path).unwrap().set_modified(used).unwrap();
}

/// What is older than a collection may go.
fn settle() {
    std::thread::sleep(CLOCK * 2);
}

#[test]
fn what_a_command_lists_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let maker = store.lease("boot").unwrap();
    let made = layer(&store, &maker, "made");
    settle();
    store.collect(None).unwrap();
    assert!(store.has_layer(&made), "its maker is at work");
    let user = store.lease("boot").unwrap();
    assert!(user.uses_layer(&store, &made).unwrap());
    drop(maker);
    store.collect(Some(&CachePolicy { all: true, ..CachePolicy::default() })).unwrap();
    assert!(store.has_layer(&made), "somebody uses it");
    assert!(store.is_busy().unwrap());
    drop(user);
    assert!(!store.is_busy().unwrap());
    let gone = store.collect(None).unwrap();
    assert_eq!(gone.layers, [made.to_string()]);
    assert!(gone.freed > 0 && gone.stuck == 0, "{gone:?}");
    assert!(!store.has_layer(&made));
    let lease = store.lease("boot").unwrap();
    assert!(!lease.uses_layer(&store, &made).unwrap());
    // What appears while a collection looks around is younger than it.
    let began = SystemTime::now();
    let young = store.path("layers").join(layer(&store, &lease, "young").0.hex());
    assert!(is_younger(&young, began - CLOCK));
    assert!(!is_younger(&young, SystemTime::now() + CLOCK));
}

#[test]
fn a_collection_waits_only_for_who_looks_something_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let lease = store.lease("boot").unwrap();
    let both = (lease.shared().unwrap(), lease.shared().unwrap());
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| store.collect(None).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        drop(both.0);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!collection.is_finished(), "one of two still looks");
        drop(both.1);
        collection.join().unwrap();
    });
}

#[test]
fn records_go_by_the_time_of_their_last_use() {
    let policy = |all, hours: Option<u64>, keep| CachePolicy {
        all,
        before: hours.map(|hours| SystemTime::now() - Duration::from_secs(hours * 3600)),
        keep,
    };
    for (policy, left) in [
        (None, vec!["old", "older", "oldest"]),
        (Some(policy(false, None, None)), vec![]),
        (Some(policy(false, Some(25), None)), vec!["old"]),
        (Some(policy(true, Some(45), None)), vec!["old", "older"]),
        (Some(policy(false, None, Some(u64::MAX))), vec!["old", "older", "oldest"]),
        (Some(policy(false, None, Some(0))), vec![]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let lease = store.lease("boot").unwrap();
        let mut layers = Vec::new();
        for (name, hours) in [("old", 20), ("older", 30), ("oldest", 50)] {
            layers.push((name, layer(&store, &lease, name)));
            record(&store, &lease, name, layers[layers.len() - 1].1, hours);
        }
        drop(lease);
        settle();
        let gone = store.collect(policy.as_ref()).unwrap();
        let stay: Vec<&str> =
            layers.iter().filter(|(_, layer)| store.has_layer(layer)).map(|(name, _)| *name).collect();
        assert_eq!(stay, left, "{policy:?}");
        assert_eq!(gone.records.len(), 3 - left.len());
        assert_eq!(store.cache_entries().unwrap().len(), left.len());
    }
}

#[test]
fn what_is_known_of_a_layer_stays_as_long_as_somebody_needs_the_layer() {
    use crate::store::origins::Origin;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let layer = DiffId(Digest::of(b"layer"));
    let user = store.lease("boot").unwrap();
    {
        let _shared = user.shared().unwrap();
        user.uses([format!("layers/{}", layer.0.hex())]).unwrap();
    }
    let origin = Origin { blob: layer.0, repository: "r.example/x".to_owned() };
    store.expect_layer(&layer, origin.clone()).unwrap();
    settle();
    store.collect(Some(&CachePolicy { all: true, ..CachePolicy::default() })).unwrap();
    assert_eq!(store.origins(&layer).unwrap(), [origin], "somebody is about to keep an image with it");
    drop(user);
    store.collect(None).unwrap();
    assert_eq!(store.origins(&layer).unwrap(), []);
}

#[test]
fn what_nothing_needs_counts_and_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let lease = store.lease("boot").unwrap();
    let orphan = layer(&store, &lease, "orphan");
    let cached = layer(&store, &lease, "cached");
    record(&store, &lease, "cached", cached, 50);
    let blob = store.put_blob(&lease, &vec![1; 20_000]).unwrap();
    drop(lease);
    settle();
    fs::write(store.path(COUNTED), "1 1\n").unwrap();
    let (usage, images) = (store.usage(), store.needed_by_images().unwrap());
    let (one, other) = (layer_size(&usage, &orphan), layer_size(&usage, &cached));
    let size = store.cache_size(&usage, &images);
    assert_eq!(size, one + other + blob_size(&usage, &blob) + usage.folders["cache"]);
    // As much as is left when what nothing needs is gone.
    let keep = size - one - blob_size(&usage, &blob);
    let gone = store.collect(Some(&CachePolicy { keep: Some(keep), ..CachePolicy::default() })).unwrap();
    assert_eq!((gone.layers.as_slice(), gone.records.len()), (&[orphan.to_string()][..], 0));
    assert!(store.has_layer(&cached) && !store.has_blob(&blob));
    assert!(!store.path(COUNTED).exists(), "the next build counts");
}

#[test]
fn who_opened_a_store_that_is_emptied_finds_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..4 {
                // They take a moment to remove.
                fs::create_dir_all(store.path("cache/records/ab")).unwrap();
                (0..200).for_each(|name| fs::write(store.path(&format!("cache/records/ab/{name}")), "").unwrap());
                store.empty().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let _shared = store.gc_lock(false).unwrap();
            for folder in ["layers", "trees", "blobs/sha256", "cache/files", "leases", "tmp"] {
                assert!(store.path(folder).is_dir(), "{folder}");
            }
        }
    });
    // What dead commands left goes, too, and nobody reads it.
    fs::write(store.path("leases/build-x"), b"boot boot-0\nmade \xff").unwrap();
    fs::create_dir(store.path("tmp/build-x")).unwrap();
    store.empty().unwrap();
    let left = ["leases", "tmp", "trash"].map(|folder| fs::read_dir(store.path(folder)).unwrap().count());
    assert_eq!(left, [0; 3]);
}
