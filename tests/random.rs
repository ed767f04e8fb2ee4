//! A warm store and an empty one never disagree: random projects, edited step by step, built in both.
//!
//! Each round edits the project (files, links, modes, the ignore file, instructions, stages), builds it in the store that
//! has seen all rounds before and in one that has only the base, and compares: exit status, content digest, tree, and
//! under an epoch the image id. `RBUILD_RANDOM_BUILDS` sets the number of rounds, `RBUILD_RANDOM_SEED` the seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::support::context::{self, File};
use crate::support::env::TestEnv;
use crate::support::machine::{self, Need, needs};
use crate::support::oci::{Image, Node};
use crate::support::random::Random;

/// Paths of files in the context: few, so that edits meet what is there.
const FILES: &[&str] = &["a", "b", "c.txt", "d/a", "d/b", "d/e/f", "d/e/g.txt", "x/y/z", "x/link", "empty"];
/// What COPY may name as its source.
const SOURCES: &[&str] = &["a", "b", "c.txt", "d", "d/", "d/e", "x", ".", "*.txt", "d/*", "?", "x/link", "x/y/z"];
/// What links of the context point at.
const LINKS: &[&str] = &["a", "../a", "/d/e", "nowhere", "y", "../../etc"];
/// Where things land.
const TARGETS: &[&str] =
    &["/", "/t", "/t/", "/t/u/", "/d", "/home/builder/", "/tmp/", "/lib/", "rel", "./", "/t/a", "/link/"];
/// Commands that leave the same bytes whenever they run in the same tree.
const COMMANDS: &[&str] = &[
    "true",
    "echo one > /r1",
    "echo two > /r1",
    "mkdir -p /t/u /m/n && echo q > /m/n/q",
    "rm -rf /t",
    "rm -rf /d /t/u",
    "rm -f /r1 /t/a /a",
    "cat /a /d/a /t/a > /all 2> /dev/null",
    "find /d /t /m | sort > /list 2> /dev/null",
    "ln -sf /t /link",
    "ln -f /r1 /r2 2> /dev/null",
    "echo more >> /r2",
    "chmod 700 /t 2> /dev/null",
    "chmod 4711 /r1 2> /dev/null",
    "chown -R 1000:1001 /d 2> /dev/null",
    "rm -rf /m && mkdir /m && echo new > /m/new",
    "mv /m /moved 2> /dev/null",
    "cp -a /d /copied 2> /dev/null",
    "mkdir -p /d && touch /d/made && rm /d/made",
    "env | sort | grep -v HOSTNAME > /env",
    "rm -rf /etc/motd && mkdir -p /etc/motd/x",
    "mkfifo /fifo 2> /dev/null",
    "id > /who 2> /dev/null",
];

/// A project as data: what the folder holds and what the Dockerfile says.
#[derive(Clone)]
struct Project {
    stages: Vec<Vec<String>>,
    ignore: Vec<&'static str>,
    files: BTreeMap<&'static str, File>,
}

impl Project {
    /// All files, and stages with a few commands: what comes next are edits.
    fn new(random: &mut Random) -> Self {
        let bytes = |name: &&'static str| (*name, File::Bytes { text: (*name).to_owned(), mode: 0o644 });
        let files = FILES.iter().map(bytes).collect();
        let mut stage = || (0..3).map(|_| format!("RUN {} || true", random.pick(COMMANDS))).collect();
        Self { stages: vec![stage(), stage()], ignore: Vec::new(), files }
    }

    fn edit(&mut self, random: &mut Random) {
        for _ in 0..=random.below(3) {
            match random.below(10) {
                0..=3 => self.edit_file(random),
                4..=7 => self.edit_instruction(random),
                8 => {
                    let patterns = ["d", "*.txt", "!c.txt", "**/f", "x/*", "!x/y", "a", "!d/e"];
                    if random.one_in(2) && !self.ignore.is_empty() {
                        self.ignore.remove(random.below(self.ignore.len()));
                    } else {
                        self.ignore.push(random.pick(&patterns));
                    }
                }
                _ => {
                    if self.stages.len() < 4 && random.one_in(2) {
                        self.stages.insert(random.below(self.stages.len() + 1), Vec::new());
                    } else if self.stages.len() > 1 {
                        self.stages.remove(random.below(self.stages.len()));
                    }
                }
            }
        }
    }

    fn edit_file(&mut self, random: &mut Random) {
        let name = random.pick(FILES);
        match random.below(8) {
            0 => {
                self.files.remove(name);
            }
            1 => {
                self.files.insert(name, File::Link(random.pick(LINKS)));
            }
            2 => {
                self.files.insert(name, File::Same(random.pick(FILES)));
            }
            3 => {
                if let Some(File::Bytes { mode, .. }) = self.files.get_mut(name) {
                    *mode = random.pick(&[0o644, 0o600, 0o755, 0o4755, 0o400]);
                }
            }
            _ => {
                let text = random.pick(&["", "1", "2", "the same", "long ", "\n"]).repeat(2);
                self.files.insert(name, File::Bytes { text, mode: 0o644 });
            }
        }
    }

    fn edit_instruction(&mut self, random: &mut Random) {
        let at = random.below(self.stages.len());
        let line = Self::instruction(random, at);
        let stage = &mut self.stages[at];
        match random.below(6) {
            0 if !stage.is_empty() => {
                stage.remove(random.below(stage.len()));
            }
            1 if stage.len() > 1 => {
                let (one, two) = (random.below(stage.len()), random.below(stage.len()));
                stage.swap(one, two);
            }
            2 | 3 if !stage.is_empty() => {
                let at = random.below(stage.len());
                stage[at] = line;
            }
            _ if stage.len() < 8 => stage.insert(random.below(stage.len() + 1), line),
            _ => {}
        }
    }

    fn instruction(random: &mut Random, stage: usize) -> String {
        let flags =
            ["", "", "", "--chown=builder ", "--chmod=640 ", "--chown=5:6 --chmod=go-r ", "--link ", "--exclude=**/f "];
        match random.below(10) {
            0..=2 => format!("RUN {} || true", random.pick(COMMANDS)),
            3..=5 => format!("COPY {}{} {}", random.pick(&flags), random.pick(SOURCES), random.pick(TARGETS)),
            6 if stage > 0 => {
                let from = ["/d", "/t", "/r1", "/etc/passwd", "/home", "/m"];
                format!(
                    "COPY {}--from={} {} {}",
                    random.pick(&flags),
                    random.below(stage),
                    random.pick(&from),
                    random.pick(TARGETS)
                )
            }
            6 | 7 => format!("WORKDIR {}", random.pick(&["/t", "/w/x", "/home/builder", "sub", "/link"])),
            8 => format!("USER {}", random.pick(&["0", "builder", "root", "77:88"])),
            _ => random
                .pick(&["ENV E=1", "ENV E=2", "ARG A=1", "LABEL l=1", "CMD [\"x\"]", "VOLUME /t", "# comment"])
                .to_owned(),
        }
    }

    fn dockerfile(&self) -> String {
        let mut text = String::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let base =
                if number > 0 && stage.len() % 3 == 2 { format!("s{}", number - 1) } else { "busybox".to_owned() };
            writeln!(text, "FROM {base} AS s{number}").expect("memory takes every write");
            for line in stage {
                writeln!(text, "{line}").expect("memory takes every write");
            }
        }
        text
    }

    /// Writes the project into the environment's context; what has not changed is not touched.
    fn lay_out(&self, env: &TestEnv, before: &BTreeMap<&'static str, File>) {
        context::lay_out(env, &self.files, before);
        env.write("ctx/.dockerignore", self.ignore.iter().fold(String::new(), |text, line| text + line + "\n"));
        env.write("ctx/Dockerfile", self.dockerfile());
    }
}

/// What a build gave: the digests and the tree without times, or that it failed and how.
#[derive(Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    content: Option<String>,
    image: Option<String>,
    tree: BTreeMap<String, Node>,
    times: Vec<u64>,
}

fn outcome(env: &TestEnv, epoch: bool) -> (Outcome, String) {
    let epoch_flag = if epoch { "--timestamp 1000000 " } else { "" };
    let run = env.build(&format!("--progress plain {epoch_flag}-o type=oci,dest=out.tar,compression=uncompressed"));
    let mut outcome = Outcome { code: run.code, content: None, image: None, tree: BTreeMap::new(), times: Vec::new() };
    if run.code == Some(0) {
        let image = Image::read(&env.path("out.tar"));
        outcome.content = Some(run.content());
        if epoch {
            outcome.image = Some(run.image());
        }
        for (path, node) in image.tree() {
            if epoch {
                outcome.times.push(node.mtime);
            }
            outcome.tree.insert(path, Node { mtime: 0, file: 0, ..node });
        }
        env.remove("out.tar");
    } else {
        assert_eq!(run.code, Some(1), "a build ends with 0 or 1\n{}", run.shown());
        run.says_nothing_of("panicked");
        return (outcome, String::new());
    }
    (outcome, run.shown())
}

#[test]
fn a_warm_store_and_an_empty_one_agree() {
    if !needs("a_warm_store_and_an_empty_one_agree", &[Need::Busybox, Need::Run]) {
        return;
    }
    let rounds = std::env::var("RBUILD_RANDOM_BUILDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let seed = Random::seed();
    machine::say(&format!("note: random builds: {rounds} with RBUILD_RANDOM_SEED={seed}"));
    let mut random = Random::new(seed);
    let (warm, cold) = (TestEnv::new(), TestEnv::new());
    for env in [&warm, &cold] {
        env.import_busybox();
    }
    let (mut project, mut before, mut built) = (Project::new(&mut random), BTreeMap::new(), 0);
    let mut good = project.clone();
    for round in 0..rounds {
        if random.one_in(25) {
            project = Project::new(&mut random);
        }
        project.edit(&mut random);
        // Both contexts are written alike: hard links and modes are inputs, times are not.
        for env in [&warm, &cold] {
            project.lay_out(env, &before);
        }
        before.clone_from(&project.files);
        let epoch = !random.one_in(4);
        cold.empty_store();
        cold.import_busybox();
        let ((one, said), (other, said_other)) = (outcome(&warm, epoch), outcome(&cold, epoch));
        // A project that cannot be built is mostly given up: what follows would tell little.
        let could_be_built = one.code == Some(0);
        built += usize::from(could_be_built);
        let said_of = project.dockerfile();
        if could_be_built {
            good = project.clone();
        } else if !random.one_in(4) {
            project = good.clone();
        }
        if one != other {
            let differing: Vec<_> = one
                .tree
                .iter()
                .filter(|(path, node)| other.tree.get(*path) != Some(*node))
                .map(|(path, _)| path)
                .collect();
            panic!(
                "round {round} of RBUILD_RANDOM_SEED={seed}: warm and empty store differ (epoch: {epoch})\n\
                 warm  {:?} {:?} {:?}\nempty {:?} {:?} {:?}\npaths {differing:?}\n{}\n--- warm\n{said}\n--- empty\n{said_other}",
                one.code, one.content, one.image, other.code, other.content, other.image, said_of
            );
        }
    }
    assert!(built * 2 > rounds, "only {built} of {rounds} random projects could be built");
    // A store that saw all of this is whole: each blob and layer is what its name says.
    warm.write("ctx/Dockerfile", "FROM busybox\nRUN cat /etc/motd\n");
    warm.build("-t last").ok();
    warm.run(["inspect", "--verify", "last"]).ok();
}
