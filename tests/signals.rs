//! A build that is interrupted says so, ends with the status that shells know, and takes everything with it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::env::TestEnv;
use crate::support::machine::{Need, needs};

/// Commands that would go on for long, in two stages, with children that ignore what can be ignored.
const DOCKERFILE: &str = "FROM busybox AS one
RUN trap '' INT TERM; (sleep 300 &) ; echo ready; sleep 300
FROM busybox
COPY f /f
RUN sleep 300
COPY --from=one /etc /etc
";

struct Running {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    /// A build whose first command is under way, in a process group of its own, as a shell would start it.
    fn start(env: &TestEnv) -> Self {
        Self::start_with(env, "-t=never")
    }

    fn start_with(env: &TestEnv, flag: &str) -> Self {
        let mut command = env.command(["build", "--progress", "plain", "--jobs", "2", flag, "ctx"]);
        let mut child =
            command.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("rbuild starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let mut line = String::new();
        while !line.ends_with(" ready\n") {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "the build ended before its command ran");
        }
        Self { child, stderr }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Exit status, the rest of what it said, and how long that took.
    fn end(mut self) -> (Option<i32>, String, Duration) {
        let began = Instant::now();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("text");
        let status = self.child.wait().expect("a child can be waited for");
        (status.code(), rest, began.elapsed())
    }
}

fn prepared() -> TestEnv {
    let env = TestEnv::new();
    env.import_busybox();
    env.write("ctx/Dockerfile", DOCKERFILE);
    env.write("ctx/f", "1");
    env
}

#[test]
fn an_interrupted_build_leaves_nothing() {
    if !needs("an_interrupted_build_leaves_nothing", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = prepared();
    for (signal, group, status) in
        [(Signal::INT, true, 130), (Signal::INT, false, 130), (Signal::TERM, true, 143), (Signal::TERM, false, 143)]
    {
        let running = Running::start(&env);
        let pid = running.pid();
        // A terminal signals the whole group, `kill` one process.
        if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) }.expect("it runs");
        let (code, said, took) = running.end();
        assert_eq!(code, Some(status), "{said}");
        assert_eq!(said.lines().last(), Some("interrupted"), "{said}");
        assert!(said.lines().any(|line| line.ends_with(" CANCELED")), "{said}");
        assert!(!said.contains("error"), "{said}");
        assert!(took < Duration::from_secs(20), "it took {took:?}");
        let left = env.left_behind();
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }
    assert!(env.rbuild("images -q").ok().stdout.lines().count() == 1, "only the base has a name");
}

#[test]
fn the_builds_of_verify_reproducible_are_interrupted_by_a_signal_to_rbuild_alone() {
    if !needs("the_builds_of_verify_reproducible_are_interrupted", &[Need::Run, Need::Busybox]) {
        return;
    }
    let env = prepared();
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo ready; sleep 300\n");
    let running = Running::start_with(&env, "--verify-reproducible");
    kill_process(running.pid(), Signal::INT).expect("it runs");
    let (status, rest, _) = running.end();
    assert_eq!(status, Some(130), "{rest}");
    assert!(rest.ends_with("interrupted\n") && !rest.contains("error:") && !rest.contains("killed"), "{rest}");
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    if !needs("a_second_interrupt_ends_it_at_once", &[Need::Busybox, Need::Run]) {
        return;
    }
    let env = prepared();
    let running = Running::start(&env);
    let pid = running.pid();
    for _ in 0..2 {
        kill_process(pid, Signal::INT).expect("it runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (code, said, _) = running.end();
    assert_eq!(code, Some(130), "{said}");
    // What it could not tidy up any more, the next build does that may: files of mapped ids take the user namespace.
    env.write("ctx/Dockerfile", "FROM busybox\nRUN echo after\n");
    env.build("-t after").ok();
}
