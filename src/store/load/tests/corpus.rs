//! The layouts and archives of the corpus beside the project: all that should come in does, nothing else.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::*;

/// The corpus, or `None` after having said so.
fn corpus(test: &str, part: &str) -> Option<PathBuf> {
    let named = std::env::var_os("RBUILD_CORPUS").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|parent| parent.join("shared/corpus/open"));
    let root = named.or_else(beside).unwrap_or_default();
    let found = [root.join("open"), root].into_iter().map(|root| root.join(part)).find(|folder| folder.is_dir());
    if found.is_none() {
        let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "corpus" || word == "all"), "{test}: the corpus is not there");
        let why = "no ../shared/corpus/open beside the project, and RBUILD_CORPUS does not name one";
        // Not `eprintln`, which the test harness swallows where a test passes.
        std::io::stderr().write_all(format!("skipped: {test}: {why}\n").as_bytes()).unwrap();
    }
    found
}

#[test]
fn archives_of_the_corpus() {
    let Some(folder) = corpus("archives_of_the_corpus", "ggcr") else { return };
    for (name, expected) in [
        ("hello-world-v25.tar", Ok(&[""][..])),
        ("no_manifest.tar", Err("before 2016")),
        ("null_manifest.tar", Err("holds no image")),
        ("overwritten_file.tar", Ok(&["bazel/pkg/v1/mutate:overwritten_file"])),
        ("source_image.tar", Ok(&["bazel/pkg/v1/mutate:source_image"])),
        ("source_image_with_empty_layer_history.tar", Ok(&["bazel/pkg/v1/mutate:source_image"])),
        ("test_bundle.tar", Ok(&["test_image_2:latest", "test_image_1:latest"])),
        ("test_image_1.tar", Ok(&["bazel/v1/tarball:test_image_1"])),
        ("test_image_2.tar", Ok(&["bazel/v1/tarball:test_image_2"])),
        ("test_link.tar", Ok(&["bazel/v1/tarball:test_image_1", "bazel/v1/tarball:test_image_3"])),
        ("whiteout_dir.tar", Ok(&["localhost:5000/whiteout:latest"])),
        ("whiteout_image.tar", Ok(&["bazel/pkg/v1/mutate:whiteout_image"])),
    ] {
        let place = Place::new();
        let bytes = fs::read(folder.join(name)).unwrap();
        match (place.load(&bytes), expected) {
            (Ok(loaded), Ok(expected)) => {
                let names: Vec<String> = loaded
                    .iter()
                    .map(|image| image.names.first().map(Reference::familiar).unwrap_or_default())
                    .collect();
                assert_eq!(names, expected, "{name}");
                for image in &loaded {
                    let base = base::base_image(&place.store, &image.record).unwrap();
                    assert_eq!(base.layers.len(), base.config.rootfs.diff_ids.len());
                }
            }
            (Err(error), Err(expected)) => {
                let error = chain(&error);
                assert!(error.contains(expected), "{name}: {error}");
            }
            (found, expected) => panic!("{name}: {found:?}, expected {expected:?}"),
        }
        assert_eq!(place.count().2, 0, "{name}");
    }
    for (name, wanted, expected) in [
        ("test_index", Selector::Tag("1".into()), Ok(())),
        ("test_index", Selector::Tag("2".into()), Err("media type application/vnd.oci.descriptor.v1+json")),
        ("test_index", Selector::Any, Err("several images")),
        ("test_index_one_image", Selector::Any, Ok(())),
        ("test_gc_image_unknown_mediatype", Selector::Any, Err("does not have an image")),
    ] {
        let found = Place::new().bring(&LayoutSource::Folder(folder.join(name)), &wanted);
        match (found, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(chain(&error).contains(expected), "{name}: {}", chain(&error)),
            (found, expected) => panic!("{name} {wanted:?}: {found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn layers_of_the_corpus() {
    let Some(folder) = corpus("layers_of_the_corpus", "layers") else { return };
    for case in fs::read_dir(folder).unwrap() {
        let path = case.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let case: Value = serde_json::from_slice(&fs::read(path.join("case.json")).unwrap()).unwrap();
        let place = Place::new();
        let found = place.bring(&LayoutSource::Folder(path.join("image")), &Selector::Any);
        match (case["expect"].as_str().unwrap(), &found) {
            ("tree", Err(error)) => panic!("{name} should be taken: {}", chain(error)),
            ("reject", Ok(_)) => panic!("{name} should be refused: {}", case["note"]),
            _ => {}
        }
        assert_eq!(place.count().2, 0, "{name}");
    }
}
