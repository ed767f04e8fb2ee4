//! The engine on plans without RUN: what is looked up, written down and begun anew. Nothing here needs a sandbox.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::context::ignore::Patterns;
use crate::context::local::ContextError;
use crate::context::stat_cache::StatCache;
use crate::diagnostic::Source;
use crate::event::MissReason;
use crate::plan::{Bases, Outcome, PlanOptions, Resolved};

/// A store and a context, and what happened in them.
struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

/// Writes down what happens.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl EventSink for Log {
    fn event(&self, event: Event<'_>) {
        let line = match event {
            Event::Cached(step, _) => format!("{} cached", step.0),
            Event::Missed(step, reason) => format!("{} missed: {}", step.0, name(reason)),
            Event::Finished(step, ..) => format!("{} made", step.0),
            Event::Failed(step, _) => format!("{} failed", step.0),
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

fn name(reason: &MissReason) -> &'static str {
    match reason {
        MissReason::LandingChanged => "landing",
        MissReason::FilesChanged { .. } => "files",
        MissReason::ParentChanged => "parent",
        MissReason::OpChanged { .. } => "operation",
        MissReason::Disabled => "disabled",
        _ => "new",
    }
}

thread_local! {
    /// Done each time when the engine asks what time it is: it does so just before it reads what it copies.
    static MEANWHILE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

fn clock() -> SystemTime {
    MEANWHILE.with_borrow_mut(|act| act.iter_mut().for_each(|act| act()));
    SystemTime::now()
}

/// What a build came to, and what was said.
type Outcomes = (Result<Vec<Solved>, String>, Vec<String>);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let bench = Self { folder, store };
        fs::create_dir(bench.path("")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("context").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Builds a Dockerfile and exports the image; a build that asks for trees fails.
    fn build(&self, dockerfile: &str) -> Outcomes {
        self.build_with(dockerfile, Exports::Bytes)
    }

    fn plan(dockerfile: &str) -> Plan {
        let source = Source { name: "Dockerfile".to_owned(), text: dockerfile.to_owned() };
        let parsed = crate::dockerfile::parse(&source);
        let options = PlanOptions::default();
        let graph = crate::plan::graph(&parsed.dockerfile, &options).unwrap();
        let mut bases = Bases::new();
        for request in crate::plan::base_requests(&graph, &options) {
            assert!(request.context, "{} is not here", request.name);
            bases.insert((request.name.clone(), request.platform.to_string()), Resolved::Context);
        }
        let Outcome::Planned(plan, _) = crate::plan::plan(&graph, &bases, &options).unwrap() else {
            panic!("more bases are asked for")
        };
        plan
    }

    fn build_with(&self, dockerfile: &str, exports: Exports) -> Outcomes {
        let plan = Self::plan(dockerfile);
        let lease = self.store.lease("boot").unwrap();
        let open =
            || LocalContext::open(&self.path(""), Patterns::default(), StatCache::in_memory(), SystemTime::now());
        let contexts: Vec<_> = plan.contexts.iter().map(|_| open().unwrap()).collect();
        let log = Log::default();
        let engine = Engine {
            store: &self.store,
            lease: &lease,
            contexts: &contexts,
            bases: &[],
            sandbox: &Sandbox::default(),
            prepare_trees: &|| Err("it asks for trees".to_owned()),
            exports,
            jobs: 1,
            extra_hosts: &[],
            secrets: &[],
            agents: &[],
            identity: "test",
            explain: false,
            events: &log,
            cancel: &Cancel::new().unwrap(),
            clock,
            absent: &|_| Ok(false),
            shared: None,
            committed: &|_, _| {},
            fetch: None,
            keep_failed: false,
        };
        let solution = solve(&plan, &engine);
        (solution.map(|solution| solution.steps).map_err(|error| error.cause.to_string()), log.0.into_inner().unwrap())
    }

    /// Builds and lists what happened.
    fn events(&self, dockerfile: &str) -> Vec<String> {
        let (result, events) = self.build(dockerfile);
        result.unwrap();
        events
    }
}

/// The file changes `times` times between look and read; what the build came to.
fn changing(size: usize, times: usize) -> (Bench, Outcomes) {
    let bench = Bench::new();
    bench.write("f", &"x".repeat(size));
    let (path, mut left) = (bench.path("f"), times);
    MEANWHILE.set(Some(Box::new(move || {
        if left > 0 {
            left -= 1;
            fs::write(&path, format!("changed {left}")).unwrap();
        }
    })));
    let outcomes = bench.build("FROM scratch\nCOPY f /f\n");
    MEANWHILE.set(None);
    (bench, outcomes)
}

/// Decision 12. One file is hashed before it is written, one while it is.
#[test]
fn a_file_that_changes_once_begins_its_step_anew() {
    for size in [3, 3 << 20] {
        let (bench, (result, events)) = changing(size, 1);
        let steps = result.unwrap();
        assert_eq!(events.last().unwrap(), "0 made");
        // The key is that of what was copied: the same file is found again, its old content is not.
        assert_eq!(bench.events("FROM scratch\nCOPY f /f\n"), ["0 cached"], "{size}");
        let index = bench.store.layer_index(&steps[0].layer).unwrap().unwrap();
        assert_eq!(index.get(b"f").unwrap().kind, crate::layer::sample::entry("file f 0644 0 0 changed\\x200").kind);
        bench.write("f", &"x".repeat(size));
        assert_eq!(bench.events("FROM scratch\nCOPY f /f\n").last().unwrap(), "0 made", "{size}");
    }
}

#[test]
fn a_file_that_changes_twice_is_an_error_by_name() {
    for size in [3, 3 << 20] {
        let (bench, (result, _)) = changing(size, 2);
        let error = result.unwrap_err();
        assert!(error.starts_with("f changes while it is being copied"), "{error}");
        assert_eq!(bench.events("FROM scratch\nCOPY f /f\n").last().unwrap(), "0 made", "nothing wrong was recorded");
    }
}

#[test]
fn a_file_may_change_while_it_is_hashed_too() {
    let path = || "f".to_owned();
    for (cause, expected) in [
        (Cause::Unsteady(path().into()), true),
        (Cause::Copy(copy::CopyError::Changed { path: path() }), true),
        (Cause::Copy(copy::CopyError::Context(ContextError::Changed { path: path() })), true),
        (Cause::Copy(copy::CopyError::TooManyLinks { path: path() }), false),
        (Cause::Canceled, false),
    ] {
        assert_eq!(step::is_unsteady(&cause), expected, "{cause}");
    }
}

/// Decision 35: what RUN did not make is read from tars.
#[test]
fn copies_from_stages_ask_for_no_trees() {
    let bench = Bench::new();
    bench.write("f", "f");
    let dockerfile = "FROM scratch AS a\nCOPY f /a/f\nWORKDIR /b\nFROM scratch\nCOPY --from=a /a /c\n";
    assert_eq!(bench.events(dockerfile).iter().filter(|line| line.ends_with("made")).count(), 3);
    assert_eq!(bench.events(dockerfile).iter().filter(|line| line.ends_with("cached")).count(), 3);
}

/// Decision 4: the landing key, and a quick key for the next time.
#[test]
fn a_copy_is_found_again_on_another_ground() {
    let bench = Bench::new();
    bench.write("f", "f");
    bench.write("g", "g");
    let on = |ground: &str| bench.events(&format!("FROM scratch\n{ground}\nCOPY f /f\n"));
    let records = || {
        let found = walkdir::WalkDir::new(bench.store.path("cache/records")).into_iter().flatten();
        found.filter(|entry| entry.file_type().is_file()).count()
    };
    assert_eq!(on("COPY g /g"), ["0 missed: new", "0 made", "1 missed: new", "1 made"]);
    let before = records();
    assert_eq!(on("COPY --chmod=600 g /g")[2..], ["1 cached"]);
    assert_eq!(records(), before + 3, "both keys of the first COPY, and the quick one of the second on its new ground");
    // What it lands on counts.
    assert_eq!(on("COPY --chmod=600 g /f")[2..], ["1 missed: landing", "1 made"]);
}

/// Decision 4: a stage counts by its stack and path first, then by the content of what is copied.
#[test]
fn a_stage_counts_by_what_is_copied_of_it() {
    let bench = Bench::new();
    bench.write("f", "f");
    bench.write("g", "1");
    let dockerfile = "FROM scratch AS a\nCOPY f /f\nCOPY g /g\nFROM scratch\nCOPY --from=a /f /copy\n";
    assert_eq!(bench.events(dockerfile).len(), 6);
    bench.write("g", "2");
    assert_eq!(bench.events(dockerfile), ["0 cached", "1 missed: files", "1 made", "2 cached"]);
    bench.write("f", "2");
    assert_eq!(bench.events(dockerfile).last().unwrap(), "2 made");
}

/// Early cut-off: what gives the same as before changes nothing of what follows, and keeps nothing of the old name.
#[test]
fn what_gives_the_same_keeps_what_follows() {
    let bench = Bench::new();
    bench.write("f", "same");
    bench.write("g", "same");
    bench.write("h", "h");
    let dockerfile = |name: &str| format!("FROM scratch\nCOPY {name} /x\nWORKDIR /w\nCOPY h /h\n");
    let (first, _) = bench.build(&dockerfile("f"));
    let (second, events) = bench.build(&dockerfile("g"));
    assert_eq!(events, ["0 missed: files", "0 made", "1 cached", "2 cached"]);
    assert_eq!(first.unwrap()[2].stack, second.unwrap()[2].stack);
}

/// Decision 35: whatever made the layers, a build in which all is cached enters no namespace; one that reads them does.
#[test]
fn cached_commands_ask_for_no_trees() {
    let bench = Bench::new();
    bench.write("f", "f");
    // A layer as RUN leaves it, recorded for a command that never ran.
    let lease = bench.store.lease("boot").unwrap();
    let (_, index) = crate::layer::write::LayerWriter::new(Vec::new()).finish().unwrap();
    let tree = lease.fresh_path();
    fs::create_dir(&tree).unwrap();
    bench.store.put_layer(&lease, &index, crate::store::layers::Form::Tree(tree)).unwrap();
    let dockerfile = "FROM scratch AS a\nRUN [\"x\"]\nFROM scratch\nCOPY f /f\n";
    let all = format!("{dockerfile}COPY --from=a / /\n");
    let plan = Bench::plan("FROM scratch\nRUN [\"x\"]\n");
    let step = &plan.steps[0];
    let op = crate::cache::key::op_digest(&step.op, &step.platform);
    let below = crate::cache::key::stack_id(None, &[]);
    let record = crate::cache::record::CacheRecord {
        content: index.content(),
        layer: index.diff_id(),
        op,
        below,
        source: None,
        landing: None,
        parts: std::collections::BTreeMap::new(),
    };
    bench.store.record(&lease, &crate::cache::key::run_key(&op, &below, &[]), &record).unwrap();
    let run = |dockerfile: &str, exports| bench.build_with(dockerfile, exports).0.map(|steps| steps.len());
    assert_eq!(run("FROM scratch\nRUN [\"x\"]\n", Exports::Nothing), Ok(1));
    assert_eq!(run("FROM scratch\nRUN [\"x\"]\nCOPY f /f\n", Exports::Nothing), Ok(2));
    let asked = Err("it asks for trees".to_owned());
    assert_eq!(run("FROM scratch\nRUN [\"x\"]\n", Exports::Bytes), asked);
    assert_eq!(run("FROM scratch\nRUN [\"x\"]\n", Exports::Epoch(0)), asked);
    assert_eq!(run(&all, Exports::Nothing), asked);
    assert_eq!(run("FROM scratch\nRUN [\"y\"]\n", Exports::Nothing), asked);
}

/// Decision 8.
#[test]
fn a_stack_has_the_time_when_it_was_first_reached() {
    let bench = Bench::new();
    bench.write("f", "f");
    let first = bench.build("FROM scratch\nCOPY f /f\n").0.unwrap();
    std::thread::sleep(Duration::from_millis(5));
    // Another operation, the same stack.
    let second = bench.build("FROM scratch\nCOPY --chmod=644 f /f\n").0.unwrap();
    assert_eq!((first[0].stack, &first[0].created), (second[0].stack, &second[0].created));
    let other = bench.build("FROM scratch\nCOPY f /g\n").0.unwrap();
    assert_ne!(first[0].created, other[0].created);
}
