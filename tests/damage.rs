//! Every kind of file of a store, damaged in every way: what the commands say, and that the store heals.
//!
//! A small store with something of everything is copied; in each copy one file is empty, cut in half, zeroed, has another bit,
//! or is gone. Then commands run in several orders. What always holds: none panics; what fails names the store; no build
//! gives another image than the right one; after at most three builds (and bringing a base again, where its bytes are
//! lost) all is right again, and `inspect --verify` says so. By default that is done with a random part of all cases;
//! `RBUILD_DAMAGE_CASES=all` does all and prints the table of what is said.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::env::{Run, TestEnv};
use crate::support::machine::{self, Need, needs};
use crate::support::random::Random;
use crate::support::registry::{Server, Taker};

const DOCKERFILE: &str = "FROM busybox AS one
COPY f /f
RUN cp /f /g && rm /etc/motd

FROM packed
WORKDIR /w
COPY --from=one /g /h
RUN cat /h /p > /all
";

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Empty,
    Half,
    Zeros,
    Bit,
    Gone,
}

const DAMAGES: [Damage; 5] = [Damage::Empty, Damage::Half, Damage::Zeros, Damage::Bit, Damage::Gone];

impl Damage {
    /// Whether it could be done: a user cannot write to files of mapped ids.
    fn inflict(self, path: &Path) -> bool {
        let Ok(mut bytes) = fs::read(path) else { return false };
        if bytes.is_empty() && self != Self::Gone {
            return false;
        }
        match self {
            Self::Empty => bytes.clear(),
            Self::Half => bytes.truncate(bytes.len() / 2),
            Self::Zeros => bytes.fill(0),
            Self::Bit => {
                let middle = bytes.len() * 2 / 3;
                bytes[middle] ^= 4;
            }
            Self::Gone => return fs::remove_file(path).is_ok(),
        }
        fs::write(path, bytes).is_ok()
    }
}

/// The commands that meet the damage first.
const ORDERS: [&[&str]; 5] = [
    &["images", "build -t x ctx", "build -t x ctx"],
    &["build --no-cache -t x ctx", "build -t x ctx"],
    &["inspect --verify x packed busybox", "images -a", "history x"],
    &["save -o saved.tar x", "df", "prune -f"],
    &["push HOST/x", "build -t x -t HOST/x ctx", "push HOST/x"],
];

struct Bench {
    env: TestEnv,
    image: String,
    content: String,
}

impl Bench {
    fn new() -> Self {
        let mut env = TestEnv::new();
        env.set("SOURCE_DATE_EPOCH", "0");
        env.import_busybox();
        env.write("packed/p", "packed ".repeat(3000));
        env.write("packed/Dockerfile", "FROM busybox\nCOPY p /p\n");
        env.run(["build", "-t", "packed", "-o", "type=oci,dest=packed.tar", "packed"]).ok();
        env.empty_store();
        env.write("ctx/f", "file ".repeat(3000));
        env.write("ctx/Dockerfile", DOCKERFILE);
        let bench = Self { env, image: String::new(), content: String::new() };
        bench.bring();
        let first = bench.env.build("-t x -t name:2").ok();
        machine::copy_tree(&bench.env.store(), &bench.env.path("whole"));
        Self { image: first.image(), content: first.content(), ..bench }
    }

    /// Brings the bases, as a user does who is told that they are gone.
    fn bring(&self) {
        self.env.import_busybox();
        self.env.rbuild("load -q -i packed.tar").ok();
    }

    /// One file of each kind: its path, and what it is.
    fn kinds(&self) -> BTreeMap<String, PathBuf> {
        let whole = self.env.path("whole");
        let mut kinds = BTreeMap::new();
        let mut entries: Vec<_> =
            walkdir::WalkDir::new(&whole).into_iter().flatten().filter(|entry| entry.file_type().is_file()).collect();
        entries.sort_by(|a, b| a.path().cmp(b.path()));
        for entry in entries {
            let relative = entry.path().strip_prefix(&whole).expect("it was found there").to_owned();
            let parts: Vec<&str> = relative.iter().map(|part| part.to_str().expect("names are ASCII")).collect();
            let kind = match parts.as_slice() {
                ["layers", name, file, rest @ ..] => {
                    let forms = fs::read_dir(whole.join("layers").join(name)).expect("a folder").flatten();
                    let mut forms: Vec<_> = forms.map(|form| form.file_name().to_string_lossy().into_owned()).collect();
                    forms.sort();
                    // No program that runs: what breaks when it has another bit nobody can tell.
                    if parts.contains(&"bin") {
                        continue;
                    }
                    let file = if rest.is_empty() { (*file).to_owned() } else { "tree/…".to_owned() };
                    format!("layer ({}): {file}", forms.join(" "))
                }
                ["blobs", ..] => {
                    let bytes = fs::read(entry.path()).expect("own files can be read");
                    let has = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
                    let what = if has("schemaVersion") {
                        "manifest"
                    } else if has("rootfs") {
                        "config"
                    } else {
                        "layer"
                    };
                    let of = if has("h /p") || has("/all") { " of x" } else { "" };
                    format!("blob: {what}{of}")
                }
                ["cache", kind, ..] => format!("cache/{kind}"),
                // A lease comes with the cases that have one.
                ["leases" | "tmp" | "trash", ..] => continue,
                _ => relative.display().to_string(),
            };
            kinds.entry(kind).or_insert(relative);
        }
        kinds
    }

    /// One case; what each command said in its first line.
    fn case(&self, kind: &str, file: &Path, damage: Damage, order: &[&str], lease: bool) -> Option<Vec<String>> {
        let env = &self.env;
        env.empty_store();
        machine::copy_tree(&env.path("whole"), &env.store());
        if !damage.inflict(&env.store().join(file)) {
            return None;
        }
        let shown = format!("{kind}: {damage:?} {}, {order:?}, with a lease: {lease}", file.display());
        if lease {
            let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
            let made = if parts[0] == "layers" { parts[..2].join("/") } else { parts.join("/") };
            // Its last line is cut short.
            env.write("store/leases/build-before", format!("boot another\nby 1\nmade {made}\nmade {}", parts[0]));
        }
        let mut said = Vec::new();
        let registry = empty_registry();
        for line in order {
            let line = line.replace("HOST", &registry.host());
            if let Some(image) = line.strip_prefix("push ") {
                drop(env.rbuild(&format!("tag x {image}")));
            }
            let run = env.rbuild(&line);
            self.check(&run, &line, &shown);
            let first = run.stderr.lines().find(|line| line.starts_with("error") || line.contains(" damaged"));
            said.push(format!("{}: {}", run.code.unwrap_or(-1), first.unwrap_or("")));
        }
        self.heals(&shown, is_unseen(kind));
        Some(said)
    }

    /// What is true of every command on a damaged store.
    fn check(&self, run: &Run, line: &str, shown: &str) {
        assert!(matches!(run.code, Some(0 | 1)), "{shown}\n{}", run.shown());
        assert!(!run.stderr.contains("panicked"), "{shown}\n{}", run.shown());
        if run.code == Some(1) {
            let names_it =
                ["/store", "such image", "never came to this machine"].iter().any(|text| run.stderr.contains(text));
            assert!(names_it, "{shown}: it does not say what is damaged\n{}", run.shown());
        } else if line.starts_with("build") {
            let found = (run.image(), run.content());
            assert_eq!(found, (self.image.clone(), self.content.clone()), "{shown}: another image\n{}", run.shown());
        }
    }

    /// What no command can make sure of is told, and can be removed.
    fn remove_as_told(&self, run: &Run) {
        for file in ["trees.format", "format"] {
            if [format!("its file {file}"), format!("its file \"{file}\"")].iter().any(|text| run.stderr.contains(text))
            {
                self.env.remove(&format!("store/{file}"));
            }
        }
    }

    /// A user who does what the messages say has a whole store soon.
    fn heals(&self, shown: &str, unseen: bool) {
        let env = &self.env;
        let mut story = String::new();
        for _ in 0..4 {
            for line in ["build -t x -t name:2 ctx", "inspect --verify x name:2 packed busybox"] {
                let run = env.rbuild(line);
                self.check(&run, line, shown);
                story.push_str(&run.shown());
                let lost = ["not in the store", "never came", "No such image", "no image"]
                    .iter()
                    .any(|text| run.stderr.contains(text));
                if run.code == Some(1) && lost {
                    self.bring();
                }
                self.remove_as_told(&run);
                if run.code == Some(0) && line.starts_with("inspect") {
                    env.rbuild("save -o saved.tar x packed").ok();
                    // What no image has any more may be damaged, too: it is met once.
                    let mut run = env.build("--no-cache -t x");
                    if run.code == Some(1) {
                        self.remove_as_told(&run);
                        if unseen {
                            // Of a stage's tree nobody can tell that it is damaged; docs/store.md says what helps.
                            env.rbuild("builder prune -af").ok();
                        }
                        run = env.build("--no-cache -t x").ok();
                    }
                    // Layers of earlier stages are in no image, so that nobody has read what a RUN takes from them.
                    if !unseen {
                        self.check(&run, "build", shown);
                    }
                    let left = env.left_behind();
                    assert!(left.is_empty(), "{shown}: left behind\n{}", left.join("\n"));
                    return;
                }
            }
        }
        panic!("{shown}: it does not heal\n{story}");
    }
}

/// Takes what is pushed, and refuses what has another digest.
fn empty_registry() -> Server {
    let taker = Taker::default();
    Server::start(move |asked| taker.answer(asked))
}

/// Whether a RUN may read the file while nobody hashes it.
fn is_unseen(kind: &str) -> bool {
    kind.ends_with("tree/…") || kind.ends_with(": tar")
}

#[test]
fn damage_is_found_told_and_healed() {
    if !needs("damage_is_found_told_and_healed", &[Need::Busybox, Need::Run]) {
        return;
    }
    let bench = Bench::new();
    let kinds = bench.kinds();
    assert!(kinds.len() >= 20, "{:?}", kinds.keys());
    // The same cases in every run; others come with a seed.
    let seed = Random::given_seed().unwrap_or(1);
    let mut random = Random::new(seed);
    let wanted = std::env::var("RBUILD_DAMAGE_CASES").unwrap_or_default();
    let all = wanted == "all";
    let mut cases = Vec::new();
    for (kind, file) in &kinds {
        for damage in DAMAGES {
            // What a RUN reads of trees nobody hashes (docs/store.md): `inspect --verify` has to come first.
            let unseen = is_unseen(kind);
            for order in ORDERS.into_iter().filter(|order| !unseen || !order[0].contains("--no-cache")) {
                cases.extend([false, true].map(|lease| (kind, file, damage, order, lease)));
            }
        }
    }
    if !all {
        // Each kind is met once or twice.
        let count = wanted.parse().unwrap_or(40);
        while cases.len() > count {
            cases.swap_remove(random.below(cases.len()));
        }
        machine::say(&format!("note: damage: {} cases with RBUILD_RANDOM_SEED={seed}", cases.len()));
    }
    for (kind, file, damage, order, lease) in cases {
        let Some(said) = bench.case(kind, file, damage, order, lease) else { continue };
        if all {
            for (line, said) in order.iter().zip(said) {
                let said = said.replace(&bench.env.path("").display().to_string(), "");
                machine::say(&format!("| {kind} | {damage:?} | {line} | {} |", said.trim()));
            }
        }
    }
}
