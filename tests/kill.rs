//! A build that is killed at any moment leaves a store on which the next one succeeds, with the right digest, and
//! nothing else: no process, no mount, no temporary file.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::env::TestEnv;
use crate::support::machine::{self, Need, needs};
use crate::support::oci::Image;
use crate::support::random::Random;
use crate::support::registry::Registry;

/// Copies, deletions, several stages at once, a large file, a command that starts others: something of everything.
const DOCKERFILE: &str = "FROM busybox AS one
COPY files /files
RUN head -c 2000000 /dev/zero > /big && sh -c 'sleep 0.02 & wait' && rm /etc/motd
RUN ln /big /same && mkdir -p /d/e && echo 1 > /d/e/f

FROM busybox AS two
WORKDIR /w
RUN for i in 1 2 3 4 5 6 7 8 9; do echo $i > $i; done; sleep 0.02
COPY --from=one /d /w/d

FROM two
COPY --from=one /big /files /taken/
RUN rm -r /w/d && echo done > /w/done
CMD [\"/w/done\"]
";

#[test]
fn a_killed_build_leaves_a_store_that_works() {
    if !needs("a_killed_build_leaves_a_store_that_works", &[Need::Busybox, Need::Run]) {
        return;
    }
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.write("ctx/Dockerfile", DOCKERFILE);
    for n in 0..20 {
        env.write(&format!("ctx/files/{n}"), format!("file {n}\n").repeat(n + 1));
    }
    env.import_busybox();
    // The base alone, as it was brought in: what every second round starts from.
    machine::copy_tree(&env.store(), &env.path("fresh"));
    let args = ["build", "-t", "killed:one", "-t", "killed:two", "--iidfile", "id", "ctx"];
    let right = env.run(args).ok();
    let mut length = Duration::ZERO;
    for (round, part) in moments().into_iter().enumerate() {
        // In turn: a store with nothing but the base, and the store of the round before with every step done again.
        let again = round % 2 == 1;
        let mut command = env.command(args);
        if again {
            command.arg("--no-cache");
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut moment = Duration::ZERO;
        for attempt in 0.. {
            assert!(attempt < 20, "round {round}: no build could be killed at {part} of {length:?}");
            if !again {
                start_again(&env);
            }
            if length.is_zero() || (attempt == 0 && round % 10 == 0) {
                // Other programs make the machine slower and faster, so the length is taken now and then.
                let begin = Instant::now();
                assert!(command.status().expect("rbuild starts").success());
                length = begin.elapsed();
                if !again {
                    start_again(&env);
                }
            }
            moment = length.mul_f64(part);
            match killed_after(&mut command, moment, round % 4 >= 2) {
                None => break,
                Some(shorter) => length = shorter,
            }
        }
        let shown = format!("round {round}: killed after {moment:?} of {length:?}");
        let next = env.run(args);
        assert_eq!(next.code, Some(0), "{shown}: the next build failed\n{}", next.shown());
        assert_eq!((next.image(), next.content()), (right.image(), right.content()), "{shown}\n{}", next.shown());
        let left = env.left_behind();
        assert!(left.is_empty(), "{shown}: left behind\n{}", left.join("\n"));
        if round % 10 == 9 {
            env.run(["inspect", "--verify", "killed:one", "killed:two"]).ok();
        }
    }
    env.write("ctx/Dockerfile", "FROM killed:two\n");
    env.build("-o type=oci,dest=out.tar").ok();
    assert_eq!(Image::read(&env.path("out.tar")).file("w/done"), b"done\n");
}

/// Starts a build and kills it after so long, alone or with its process group; how long it took where it was done before.
fn killed_after(command: &mut Command, moment: Duration, group: bool) -> Option<Duration> {
    let begin = Instant::now();
    let mut child = command.process_group(0).spawn().expect("rbuild starts");
    while begin.elapsed() < moment {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            assert!(status.success(), "a build that nobody killed failed");
            return Some(begin.elapsed());
        }
        std::thread::sleep(Duration::from_micros(500).min(moment.saturating_sub(begin.elapsed())));
    }
    if group {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)
            .expect("its group is there until we wait");
    } else {
        child.kill().expect("a child can be killed");
    }
    let status = child.wait().expect("a child can be waited for");
    (status.signal() != Some(9)).then(|| begin.elapsed())
}

/// 70 moments over the whole build and 30 over its last tenth, where layers are committed and tags are set.
fn moments() -> Vec<f64> {
    let whole = (0..70).map(|n| f64::from(n) / 70.0);
    let end = (0..30).map(|n| 0.9 + f64::from(n) / 300.0);
    whole.chain(end).collect()
}

fn start_again(env: &TestEnv) {
    env.empty_store();
    machine::copy_tree(&env.path("fresh"), &env.store());
}

/// A command that is killed, what makes the store ready for it, and what must be right after it was done again.
struct Victim {
    line: String,
    before: Vec<String>,
    after: Vec<String>,
}

#[test]
fn a_killed_command_leaves_a_store_that_works() {
    let test = "a_killed_command_leaves_a_store_that_works";
    if !needs(test, &[Need::Busybox, Need::Run, Need::Program("docker-registry")]) {
        return;
    }
    let registry = Registry::start("", "");
    let host = registry.host();
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "0");
    env.import_busybox();
    env.write("ctx/f", "something ".repeat(100_000));
    env.write("ctx/Dockerfile", "FROM busybox\nCOPY f /f\nRUN cp /f /g && rm /etc/motd\n");
    env.build(&format!("-t {host}/team/app:1 -t app:1")).ok();
    env.rbuild(&format!("push {host}/team/app:1")).ok();
    env.rbuild("save -o right.tar app:1").ok();
    let right = std::fs::read(env.path("right.tar")).expect("written before");
    // The base alone: what brings or makes the rest starts from here.
    let away = ["rmi -f app:1 again:1", "prune -af", "import busybox.tar busybox"];
    let here = ["load -q -i right.tar"];
    let victim = |line: &str, before: &[&[&str]], after: &[&str]| Victim {
        line: line.to_owned(),
        before: before.concat().into_iter().map(str::to_owned).collect(),
        after: after.iter().map(|line| (*line).to_owned()).collect(),
    };
    let victims = [
        victim(&format!("pull {host}/team/app:1"), &[&away], &[&format!("inspect --verify {host}/team/app:1")]),
        victim("load -i right.tar", &[&away], &["inspect --verify app:1"]),
        victim(
            "import right.tar.root imported:1",
            &[&["rmi -f imported:1", "prune -af"]],
            &["inspect --verify imported:1"],
        ),
        victim("save -o saved.tar app:1", &[&here], &["inspect --verify app:1"]),
        victim("tag app:1 again:1", &[&here, &["rmi -f again:1"]], &["inspect --verify again:1 app:1"]),
        victim("rmi -f app:1", &[&here], &["image prune -f"]),
        victim(
            "prune -af",
            &[&away[2..], &here, &["build -t x ctx", "rmi x"]],
            &["import busybox.tar busybox", "build ctx"],
        ),
        victim("prune --everything -f", &[&away[2..], &here], &["import busybox.tar busybox", "build ctx"]),
    ];
    env.write("ctx2/f", "something else ".repeat(100_000));
    env.write("ctx2/Dockerfile", "FROM scratch\nCOPY f /f\n");
    env.run(["build", "-o", "type=tar,dest=right.tar.root", "ctx2"]).ok();
    let mut random = Random::new(Random::seed());
    for Victim { line, before, after } in victims {
        let prepare = || before.iter().for_each(|line| drop(env.rbuild(line).ok()));
        prepare();
        let begin = Instant::now();
        env.rbuild(&line).ok();
        let mut length = begin.elapsed();
        const ROUNDS: usize = 12;
        for round in 0..ROUNDS {
            prepare();
            env.write("saved.tar", "what was there");
            let mut command = env.command(line.split_whitespace());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let part = (round as f64 + random.below(1000) as f64 / 1000.0) / ROUNDS as f64;
            let moment = length.mul_f64(part);
            // One that was faster than expected was not killed: the store must be right all the same.
            length = killed_after(&mut command, moment, round % 2 == 0).unwrap_or(length);
            let shown = format!("{line}: killed after {moment:?} of {length:?}");
            let saved = std::fs::read(env.path("saved.tar")).expect("it is never away");
            assert!(saved == b"what was there" || saved == right, "{shown}: half a file");
            let hidden = std::fs::read_dir(env.path("")).expect("a folder").flatten();
            let hidden: Vec<_> = hidden.map(|entry| entry.file_name()).collect();
            let hidden = hidden.iter().filter(|name| name.to_string_lossy().starts_with(".rbuild")).count();
            assert_eq!(hidden, 0, "{shown}: an unfinished file stays");
            // Whatever the command came to, the store is one.
            env.rbuild("images").ok();
            let again = env.rbuild(&line);
            assert!(again.code == Some(0) || again.stderr.contains("No such image"), "{shown}\n{}", again.shown());
            for line in &after {
                let next = env.rbuild(line);
                assert_eq!(next.code, Some(0), "{shown}\n{}", next.shown());
                assert!(!next.stderr.contains("damaged"), "{shown}\n{}", next.shown());
            }
            if line.starts_with("save") {
                assert!(std::fs::read(env.path("saved.tar")).expect("written") == right, "{shown}: other bytes");
            }
            let left = env.left_behind();
            assert!(left.is_empty(), "{shown}: left behind\n{}", left.join("\n"));
        }
    }
}

#[test]
fn an_interrupt_ends_every_process_and_leaves_nothing() {
    if !needs("an_interrupt_ends_every_process_and_leaves_nothing", &[Need::Busybox, Need::Run]) {
        return;
    }
    for (signal, name, code) in
        [(rustix::process::Signal::INT, "SIGINT", 130), (rustix::process::Signal::TERM, "SIGTERM", 143)]
    {
        let env = TestEnv::new();
        env.import_busybox();
        // Two stages at once, grandchildren, one that does not mind signals.
        env.write(
            "ctx/Dockerfile",
            "FROM busybox AS one\nRUN echo one started; trap '' INT TERM; sleep 600 & sleep 600\n\
             FROM busybox AS two\nRUN echo two started; sh -c 'sleep 600 & exec sleep 600'\n\
             FROM scratch\nCOPY --from=one /a /\nCOPY --from=two /a /\n",
        );
        let log = std::fs::File::create(env.path("log")).expect("a new file");
        let mut command = env.command(["build", "--progress", "plain", "--jobs", "2", "ctx"]);
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().expect("rbuild starts");
        let said = || std::fs::read_to_string(env.path("log")).expect("the log is text");
        let end = Instant::now() + Duration::from_secs(60);
        // Waits for the output of both commands, not for a length of time.
        while ["one started", "two started"].iter().any(|text| said().matches(text).count() < 2) {
            assert!(Instant::now() < end, "{name}: the commands did not start\n{}", said());
            assert!(child.try_wait().expect("a child can be asked").is_none(), "{name}: ended early\n{}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal)
            .expect("a child takes a signal");
        let begin = Instant::now();
        let status = child.wait().expect("a child can be waited for");
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}: took {:?} to end", begin.elapsed());
        assert_eq!(status.code(), Some(code), "{name}\n{}", said());
        let left = env.left_behind();
        assert!(left.is_empty(), "{name}: left behind\n{}", left.join("\n"));
    }
}

#[test]
fn an_interrupt_ends_an_export() {
    let env = TestEnv::new();
    // What cannot be compressed keeps the export busy long after the step is done.
    let mut bytes = vec![0_u8; 32 << 20];
    let mut state = 1_u64;
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    env.write("ctx/f", bytes);
    env.write("ctx/Dockerfile", "FROM scratch\nCOPY f /f\n");
    env.build("").ok();
    let log = std::fs::File::create(env.path("log")).expect("a new file");
    let args = ["build", "--progress", "plain", "-o", "type=oci,dest=out.tar", "ctx"];
    let mut child = env.command(args).stdout(Stdio::null()).stderr(log).spawn().expect("rbuild starts");
    let said = || std::fs::read_to_string(env.path("log")).expect("the log is text");
    let end = Instant::now() + Duration::from_secs(60);
    while !said().contains("exporting") {
        assert!(Instant::now() < end, "the export did not start\n{}", said());
        assert!(child.try_wait().expect("a child can be asked").is_none(), "ended early\n{}", said());
        std::thread::sleep(Duration::from_millis(2));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .expect("a child takes a signal");
    let status = child.wait().expect("a child can be waited for");
    assert_eq!(status.code(), Some(130), "{}", said());
    let left: Vec<_> =
        std::fs::read_dir(env.path("")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name == "out.tar" || name.to_string_lossy().starts_with(".rbuild")), "{left:?}");
}
