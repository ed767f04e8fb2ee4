use super::*;
use std::os::unix::fs::symlink;
use std::time::{Duration, UNIX_EPOCH};

fn context(files: &[&str], ignore: &str) -> (tempfile::TempDir, LocalContext) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in files {
        let path = folder.path().join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).expect("makes a folder");
            continue;
        }
        fs::create_dir_all(path.parent().expect("it has a parent")).expect("makes a folder");
        fs::write(path, file).expect("writes");
    }
    let patterns = Patterns::parse(".dockerignore", ignore).expect("good patterns");
    let context = LocalContext::open(folder.path(), patterns, StatCache::in_memory(), UNIX_EPOCH).expect("opens");
    (folder, context)
}

fn refs(walk: &Subtree) -> Vec<&ContextEntry> {
    walk.iter().collect()
}

fn paths(entries: &[ContextEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[test]
fn a_walk_is_sorted_by_components() {
    let (_folder, context) = context(&["a-b", "a/b", "a/b-c", "a.b", "a/c/d", "B", "empty/"], "");
    let walk = context.walk(b"").expect("walks");
    assert_eq!(paths(&walk), ["B", "a", "a/b", "a/b-c", "a/c", "a/c/d", "a-b", "a.b", "empty"]);
    assert_eq!(walk[2].kind, ContextKind::File);
    assert_eq!(walk[2].stamp.size, 3);
}

#[test]
fn many_folders_on_many_threads() {
    let files: Vec<String> = (0..400).map(|number| format!("d{}/e{}/f{number}", number % 20, number % 7)).collect();
    let (_folder, context) = context(&files.iter().map(String::as_str).collect::<Vec<_>>(), "d3\nd4/*\n");
    let walk = context.walk(b"").expect("walks");
    let mut expected: Vec<String> = Vec::new();
    for file in files.iter().filter(|file| !file.starts_with("d3/") && !file.starts_with("d4/")) {
        let parts: Vec<&str> = file.split('/').collect();
        (1..=3).for_each(|length| expected.push(parts[..length].join("/")));
    }
    expected.push("d4".to_owned());
    expected.sort_by(|a, b| crate::layer::entry::compare_paths(a.as_bytes(), b.as_bytes()));
    expected.dedup();
    assert_eq!(paths(&walk), expected);
}

#[test]
fn excluded_folders_appear_only_around_what_stays() {
    let files = ["a/x", "b/x", "b/y", "c/d/e/x", "c/d/f/y", "z"];
    let (_folder, context) = context(&files, "**\n!b/x\n!c/d/e\n!a/none");
    assert_eq!(paths(&context.walk(b"").expect("walks")), ["b", "b/x", "c", "c/d", "c/d/e", "c/d/e/x"]);
    assert_eq!(paths(&context.walk(b"c/d").expect("walks")), ["c/d/e", "c/d/e/x"]);
    for (path, there) in [("a", false), ("b", true), ("b/x", true), ("b/y", false), ("c/d/f", false), ("z", false)] {
        assert_eq!(context.lookup(path.as_bytes()).expect("looks").is_some(), there, "{path}");
    }
}

#[test]
fn excluded_folders_are_not_entered() {
    let (folder, context) = context(&["node_modules/a/b", "src/x"], "node_modules");
    let secret = folder.path().join("node_modules");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmods");
    assert_eq!(paths(&context.walk(b"").expect("walks")), ["src", "src/x"]);
    let hidden = context.hidden_by(b"node_modules").expect("it is hidden");
    assert_eq!((hidden.line, hidden.text.as_str()), (1, "node_modules"));
    assert!(context.hidden_by(b"node_modulez").is_none(), "nothing is there");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmods");
}

#[test]
fn parts_of_walks_and_fresh_walks_agree() {
    let files = ["a/b/c", "a/b.d", "a/b/d/e", "ab", "b"];
    for ignore in ["", "a/b/d", "*\n!a/b"] {
        let (_one, fresh) = context(&files, ignore);
        let (_two, walked) = context(&files, ignore);
        walked.walk(b"").expect("walks");
        for dir in ["a", "a/b"] {
            let dir = dir.as_bytes();
            assert_eq!(paths(&walked.walk(dir).expect("walks")), paths(&fresh.walk(dir).expect("walks")));
            let (one, two) = (walked.read_dir(dir).expect("reads"), fresh.read_dir(dir).expect("reads"));
            assert_eq!(paths(&one), paths(&two), "{ignore:?} {dir:?}");
        }
    }
}

#[test]
fn each_name_is_raw_bytes() {
    let (folder, context) = context(&[], "");
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::write(folder.path().join(name), "x").expect("writes");
    symlink("\u{fc}/../x", folder.path().join("link")).expect("links");
    let walk = context.walk(b"").expect("walks");
    assert_eq!(walk[0].kind, ContextKind::Symlink("\u{fc}/../x".into()));
    assert_eq!(walk[1].path, b"\xff\xfe");
    let link = context.lookup(b"link").expect("looks").expect("it is there");
    assert_eq!(link.kind, walk[0].kind);
}

#[test]
fn digests_are_remembered_by_stamp() {
    let (folder, context) = context(&["a", "b", "c", "d", "e"], "");
    let before = context.walk(b"").expect("walks");
    assert!(before.iter().all(|entry| entry.sha256.is_none()));
    let digests = context.hash(&refs(&before)).expect("hashes");
    assert_eq!(digests[1], Digest::of(b"b"));
    context.forget();
    let after = context.walk(b"").expect("walks");
    assert_eq!(
        after.iter().map(|entry| entry.sha256).collect::<Vec<_>>(),
        digests.into_iter().map(Some).collect::<Vec<_>>()
    );
    fs::write(folder.path().join("b"), "longer").expect("writes");
    assert!(matches!(context.hash(&[&after[1]]), Err(ContextError::Changed { path }) if path == "b"));
    assert!(!context.is_unchanged(&after[1]));
    context.forget();
    assert_eq!(context.walk(b"").expect("walks")[1].sha256, None);
}

#[test]
fn hashing_ends_when_the_build_shall() {
    let (_folder, mut context) = context(&["a"], "");
    let walk = context.walk(b"").expect("walks");
    let cancel = Cancel::new().expect("a wish");
    context.heed(&cancel);
    context.hash(&refs(&walk)).expect("hashes");
    cancel.cancel();
    assert!(context.hash(&refs(&walk)).expect_err("stops").to_string().contains("stopped"));
}

#[test]
fn a_file_that_became_something_else_is_an_error() {
    let (folder, context) = context(&["a"], "");
    let walk = context.walk(b"").expect("walks");
    fs::remove_file(folder.path().join("a")).expect("removes");
    symlink("/etc/passwd", folder.path().join("a")).expect("links");
    assert!(context.open_file(&walk[0]).is_err());
}

#[test]
fn the_second_build_reads_nothing() {
    let (folder, _) = context(&["a"], "");
    let cache = tempfile::tempdir().expect("a temporary folder");
    let open = |now| {
        let cache = StatCache::load(cache.path().join("files"));
        LocalContext::open(folder.path(), Patterns::default(), cache, now).expect("opens")
    };
    let later = SystemTime::now() + Duration::from_secs(10);
    for (now, known) in [(UNIX_EPOCH, false), (later, false), (later, true)] {
        let context = open(now);
        let walk = context.walk(b"").expect("walks");
        assert_eq!(walk[0].sha256.is_some(), known);
        context.hash(&refs(&walk)).expect("hashes");
        context.save(cache.path()).expect("saves");
    }
}

#[test]
fn the_ignore_file_beside_the_dockerfile_replaces_the_other() {
    let (folder, _) = context(&["sub/"], "");
    let root = folder.path();
    let read = |dockerfile: &str| LocalContext::read_ignore_file(root, Some(&root.join(dockerfile))).expect("reads");
    assert_eq!(read("Dockerfile"), Patterns::default());
    fs::write(root.join(".dockerignore"), "general").expect("writes");
    fs::write(root.join("sub/Dockerfile2.dockerignore"), "special").expect("writes");
    let (general, special) = (read("Dockerfile"), read("sub/Dockerfile2"));
    assert!(general.matches(b"general") && !general.matches(b"special"));
    assert!(special.matches(b"special") && !special.matches(b"general"));
    assert_eq!((general.file.as_str(), special.file.as_str()), (".dockerignore", "sub/Dockerfile2.dockerignore"));
    assert_eq!(LocalContext::read_ignore_file(root, None).expect("reads"), general);
    fs::write(root.join(".dockerignore"), "a\n!\n").expect("writes");
    let error = LocalContext::read_ignore_file(root, None).expect_err("a lone bang").to_string();
    assert!(error.starts_with(".dockerignore:2: illegal exclusion pattern"), "5.5-62: {error}");
}
