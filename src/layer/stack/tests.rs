use super::*;
use crate::layer::entry::{compare_paths, is_below, parent};
use crate::layer::index::Origin;
use crate::layer::sample;
use proptest::prelude::*;

const MADE: Origin = Origin::Made { writer: 1 };

fn stack(layers: &[&str]) -> LayerStack {
    LayerStack::new(layers.iter().map(|text| Arc::new(sample::index(Origin::Foreign, text)))).unwrap()
}

/// What the stack shows, as `kind path@layer`, by walking it from the root.
fn show(stack: &LayerStack) -> String {
    fn walk(stack: &LayerStack, dir: &[u8], lines: &mut Vec<String>) {
        for (name, found) in stack.read_dir(dir) {
            let path = if dir.is_empty() { name } else { [dir, b"/", &name].concat() };
            assert_eq!(found.entry.path, path);
            assert_eq!(stack.lookup(&path).as_ref(), Some(&found), "{}", String::from_utf8_lossy(&path));
            let text = String::from_utf8_lossy(&path);
            lines.push(format!("{text}@{}", found.layer));
            if found.entry.kind == crate::layer::entry::Kind::Directory {
                walk(stack, &path, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(stack, b"", &mut lines);
    lines.join(" ")
}

#[test]
fn merges() {
    for (what, layers, expected) in [
        ("nothing", &[] as &[&str], ""),
        ("one", &["dir a\nfile a/b\nfile c"], "a@0 a/b@0 c@0"),
        ("directories merge", &["dir a\nfile a/b", "dir a\nfile a/c"], "a@1 a/b@0 a/c@1"),
        ("the upper file wins", &["file a", "file a"], "a@1"),
        ("file over directory", &["dir a\nfile a/b", "file a"], "a@1"),
        ("directory over file", &["file a", "dir a\nfile a/b"], "a@1 a/b@1"),
        ("link over directory", &["dir a\nfile a/b\ndir c\nfile c/b", "symlink a 0777 0 0 c"], "a@1 c@0 c/b@0"),
        ("a file between two directories hides", &["dir a\nfile a/b", "file a", "dir a\nfile a/c"], "a@2 a/c@2"),
        ("whiteout", &["dir a\nfile a/b\nfile c", "dir a\nwhiteout a/b"], "a@1 c@0"),
        ("whiteout of a directory", &["dir a\nfile a/b\nfile c", "whiteout a"], "c@0"),
        ("whiteout and new", &["dir a\nfile a/b", "whiteout a", "dir a\nfile a/c"], "a@2 a/c@2"),
        ("opaque", &["dir a\ndir a/d\nfile a/d/x\nfile a/b", "dir a\nopaque a\ndir a/d\nfile a/c"], "a@1 a/c@1 a/d@1"),
        ("opaque below a plain one", &["dir a\nfile a/b", "dir a\nopaque a", "dir a\nfile a/c"], "a@2 a/c@2"),
        ("opaque root", &["file a", "opaque \"\"\nfile b"], "b@1"),
        ("hard links", &["file a 0644 0 0 x\nlink b 0644 0 0 a"], "a@0 b@0"),
        ("order", &["dir a\nfile a/b\nfile a-b", "file a.b"], "a@0 a/b@0 a-b@0 a.b@1"),
    ] {
        assert_eq!(show(&stack(layers)), expected, "{what}");
    }
}

#[test]
fn layers_that_count_on_what_is_below() {
    for (what, layers, expected) in [
        ("no headers", &["dir a 1777\nfile a/b", "file a/c/d"], "a@1 a/b@0 a/c@1 a/c/d@1"),
        (
            "through a link",
            &["symlink lib 0777 0 0 usr/lib\ndir usr\ndir usr/lib\nfile usr/lib/x", "file lib/y"],
            "lib@0 usr@1 usr/lib@1 usr/lib/x@0 usr/lib/y@1",
        ),
        (
            "its own header wins over the link",
            &["symlink lib 0777 0 0 /usr\ndir usr", "dir lib\nfile lib/y"],
            "lib@1 lib/y@1 usr@0",
        ),
        ("a whiteout of nothing", &["dir a", "whiteout a/b\nwhiteout x/y\nwhiteout z"], "a@0"),
        ("a link to a lower file", &["file a 0600 3 4 data", "link b 0644 0 0 a"], "a@0 b@0"),
        ("a link without an end", &["symlink l 0777 0 0 l", "file l/x"], "l@1 l/x@1"),
        ("a link out of the root", &["dir d\nsymlink l 0777 0 0 ../../d", "file l/x"], "d@1 d/x@1 l@0"),
        ("a whiteout through a link", &["dir d\nfile d/x\nsymlink l 0777 0 0 d", "whiteout l/x"], "d@1 l@0"),
        ("opaque without a header", &["dir d 0700\nfile d/x", "opaque d\nfile d/y"], "d@1 d/y@1"),
        ("whiteouts inside opaque", &["dir d\nfile d/x", "dir d\nopaque d\nwhiteout d/x\nfile d/y"], "d@1 d/y@1"),
    ] {
        let stack = stack(layers);
        assert_eq!(show(&stack), expected, "{what}");
        for layer in &stack.layers {
            assert!(LayerIndex::from_bytes(layer.as_bytes().to_vec()).is_ok(), "{what}");
            let headers = layer.entries().all(|entry| {
                parent(entry.path).is_none_or(|dir| layer.get_ref(dir).is_some_and(|dir| dir.kind.is_directory()))
            });
            assert!(headers, "{what}: {}", sample::list(layer));
        }
    }
    let below = stack(&["dir a 1777 5 6\nfile a/b", "file a/c"]);
    let dir = below.lookup(b"a").unwrap().entry;
    assert_eq!((dir.mode, dir.uid, dir.gid, dir.mtime), (0o1777, 5, 6, 7));
    let below = stack(&["file a 0600 3 4 data", "link b 0644 0 0 a"]);
    assert_eq!(below.lookup(b"b").unwrap().entry, Entry { path: b"b".to_vec(), ..below.lookup(b"a").unwrap().entry });
}

#[test]
fn which_layers_need_parents() {
    for (text, expected) in [
        ("", false),
        ("dir a\nfile a/b", false),
        ("file a/b", true),
        ("dir a\nfile a/b/c", true),
        ("file a\nlink b 0644 0 0 a", false),
        ("link b 0644 0 0 a", true),
        ("whiteout a", true),
        ("dir a\nopaque a", true),
        ("opaque \"\"", true),
    ] {
        assert_eq!(needs_parents(&sample::index(Origin::Foreign, text)), expected, "{text}");
        assert!(!needs_parents(&sample::index(MADE, text)), "{text}");
    }
}

#[test]
fn hard_links_show_their_file() {
    let stack = stack(&["file a 0640 1 2 data\nlink b 0640 1 2 a"]);
    let (a, b) = (stack.lookup(b"a").unwrap(), stack.lookup(b"b").unwrap());
    assert_eq!(b.entry, Entry { path: b"b".to_vec(), ..a.entry.clone() });
    assert_eq!((b.layer, b.position), (0, a.position));
}

#[test]
fn resolves_links() {
    let stack = stack(&["
        dir a
        dir a/b
        file a/b/file
        symlink a/up 0777 0 0 ..
        symlink abs 0777 0 0 /a/b
        symlink chain 0777 0 0 abs
        symlink dangling 0777 0 0 nowhere/x
        symlink escape 0777 0 0 ../../../a
        symlink loop 0777 0 0 loop
        symlink root 0777 0 0 /
        symlink self 0777 0 0 ."]);
    for (path, follow, expected) in [
        ("", true, ""),
        ("/", true, ""),
        ("a/b/file", true, "a/b/file"),
        ("/a/./b//file", true, "a/b/file"),
        ("..", true, ""),
        ("a/../../x", true, "x"),
        ("abs", true, "a/b"),
        ("abs", false, "abs"),
        ("abs/file", false, "a/b/file"),
        ("abs/..", true, "a"),
        ("chain/file", true, "a/b/file"),
        ("chain", true, "a/b"),
        ("dangling", true, "nowhere/x"),
        ("dangling/y", true, "nowhere/x/y"),
        ("dangling", false, "dangling"),
        ("escape/b", true, "a/b"),
        ("a/up/a/up/a", true, "a"),
        ("root", true, ""),
        ("root/a", true, "a"),
        ("self/self/a", true, "a"),
        ("loop", false, "loop"),
        ("new/dir", true, "new/dir"),
        ("new/../a", true, "a"),
    ] {
        let real = stack.resolve(path.as_bytes(), follow).unwrap();
        assert_eq!(String::from_utf8_lossy(&real), expected, "{path}");
    }
    let error = stack.resolve(b"loop/x", true).unwrap_err();
    assert_eq!(error.to_string(), "/loop/x leads through more than 40 symbolic links");
}

#[test]
fn the_root_and_accounts() {
    let empty = LayerStack::default();
    assert_eq!(empty.root_metadata(), RootMetadata::default());
    assert_eq!(empty.lookup(b"").unwrap().entry.mode, 0o755);
    let stack = stack(&["root 0700\nfile etc/passwd 0644 0 0 old", "root 1777", "file etc/group 0644 0 0 g"]);
    assert_eq!(stack.lookup(b"").unwrap().entry.mode, 0o1777);
    assert_eq!(stack.file_bytes(b"etc/passwd"), Some(b"old" as &[u8]));
    assert_eq!(stack.file_bytes(b"etc/group"), Some(b"g" as &[u8]));
    assert_eq!(
        super::tests::stack(&["file etc/passwd 0644 0 0 x", "dir etc\nwhiteout etc/passwd"]).file_bytes(b"etc/passwd"),
        None
    );
}

/// A layer: entries without duplicates, each below directories only.
fn layers() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof!["a", "b", "c"];
    let path = proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let kind = prop_oneof!["file", "dir", "whiteout", "opaque", "dir", "file"];
    let layer = proptest::collection::vec((path, kind), 0..8).prop_map(|entries| {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        for (path, kind) in entries {
            let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
            let blocked =
                ends.iter().any(|end| all.get(&path[..*end]).is_some_and(|kind| kind == "file" || kind == "whiteout"));
            let occupied = (kind == "file" || kind == "whiteout")
                && all.keys().any(|other| is_below(other.as_bytes(), path.as_bytes()));
            if blocked || occupied {
                continue;
            }
            for end in ends {
                all.entry(path[..end].to_owned()).or_insert_with(|| "dir".to_owned());
            }
            all.insert(path, kind);
        }
        let mut lines: Vec<(String, String)> = Vec::new();
        for (path, kind) in all {
            if kind == "opaque" {
                lines.push((path.clone(), format!("dir {path}")));
            }
            lines.push((path.clone(), format!("{kind} {path}")));
        }
        lines.sort_by(|(a, _), (b, _)| compare_paths(a.as_bytes(), b.as_bytes()));
        lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n")
    });
    proptest::collection::vec(layer, 0..4)
}

/// Applies layers one after the other to a plain map of paths, as an unpacking program would.
fn apply(layers: &[String]) -> BTreeMap<Vec<u8>, usize> {
    let mut tree: BTreeMap<Vec<u8>, (usize, bool)> = BTreeMap::new();
    for (number, layer) in layers.iter().enumerate() {
        let lines: Vec<(&str, &str)> = layer.lines().filter_map(|line| line.split_once(' ')).collect();
        for (kind, path) in &lines {
            let path = path.as_bytes();
            if *kind == "opaque" || *kind == "whiteout" {
                tree.retain(|other, _| !is_below(other, path) && (*kind == "opaque" || other != path));
            }
        }
        for (kind, path) in &lines {
            let path = path.as_bytes();
            if *kind == "file" || (*kind == "dir" && !tree.get(path).is_some_and(|(_, dir)| *dir)) {
                tree.retain(|other, _| !is_below(other, path));
            }
            if *kind == "file" || *kind == "dir" {
                tree.insert(path.to_vec(), (number, *kind == "dir"));
            }
        }
    }
    tree.into_iter().map(|(path, (number, _))| (path, number)).collect()
}

proptest! {
    #[test]
    fn the_view_is_that_of_applying(layers in layers()) {
        let texts: Vec<&str> = layers.iter().map(String::as_str).collect();
        let stack = stack(&texts);
        let mut expected: Vec<(Vec<u8>, usize)> = apply(&layers).into_iter().collect();
        expected.sort_by(|(a, _), (b, _)| compare_paths(a, b));
        let expected: Vec<String> =
            expected.into_iter().map(|(path, number)| format!("{}@{number}", String::from_utf8_lossy(&path))).collect();
        prop_assert_eq!(show(&stack), expected.join(" "));
        for a in ["a", "b", "c"] {
            for path in [a.to_owned(), format!("{a}/a"), format!("a/{a}/b"), format!("c/b/{a}")] {
                let there = expected.iter().any(|line| line.starts_with(&format!("{path}@")));
                prop_assert_eq!(stack.lookup(path.as_bytes()).is_some(), there, "{}", path);
            }
        }
    }
}
