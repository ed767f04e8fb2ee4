//! Shells in a step that failed, and at a place in the file: on a real terminal.

use std::process::Command;

use crate::support::env::TestEnv;
use crate::support::machine::{Need, TestUser, needs, test_user};
use crate::support::pty::OnTerminal;

const FAILS: &str = "FROM busybox AS one
ENV GREETING=hello
WORKDIR /work
RUN echo before > a
USER builder
RUN --network=none --mount=type=cache,target=/cache,mode=0777 echo left > /tmp/b; touch /cache/kept; echo the command says this; exit 9
";

fn prepared(test: &str, dockerfile: &str, user: Option<&TestUser>) -> Option<TestEnv> {
    if !needs(test, &[Need::Busybox, Need::Run, Need::Program("setsid")]) {
        return None;
    }
    let mut env = user.map_or_else(TestEnv::new, TestEnv::as_user);
    env.set("TERM", "xterm-256color");
    env.import_busybox();
    env.write("ctx/Dockerfile", dockerfile);
    Some(env)
}

fn build(env: &TestEnv, words: &[&str]) -> Command {
    env.command(["build", "-t", "never"].iter().chain(words).chain(&["ctx"]))
}

/// What is to be seen in the shell of the step that failed.
fn look_around(env: &TestEnv, user: Option<&TestUser>) {
    let mut terminal = OnTerminal::start(&build(env, &["--shell-on-error"]), user);
    let before = terminal.modes();
    // The error comes first, then the shell.
    terminal.expect("exit code: 9").expect("the command says this").expect("a shell (/bin/sh) in");
    terminal.keys("ls /cache; echo; pwd; id -un; cat a /tmp/b; echo $GREETING $HOME $TERM.\r");
    terminal.expect("kept\r\n\r\n/work\r\nbuilder\r\nbefore\r\nleft\r\nhello /home/builder xterm-256color.");
    assert_ne!(terminal.modes().local_modes, before.local_modes, "keys go through as they are");
    // A terminal of its own, which has the size of the user's and follows it.
    terminal.keys("tty; stty size; ls /sys/class/net\r").expect("/dev/pts/0\r\n30 100\r\nlo\r\n");
    terminal.resize(40, 90).keys("sleep 0.6; stty size\r").expect("\n40 90\r");
    // Ctrl-C ends the shell's command and nothing else; jobs can be stopped and brought back.
    terminal.keys("sh -c 'echo begun; sleep 1000'\r").expect("\nbegun").keys("\x03").expect("^C");
    terminal.keys("echo still here $((40+2))\r").expect("still here 42");
    // It says when it goes on: by then it has the terminal, and Ctrl-C is for it.
    let job = "sh -c 'trap \"echo back\" CONT; echo again; while :; do sleep 0.1; done'\r";
    terminal.keys(job).expect("\nagain").keys("\x1a").expect("Stopped").keys("fg\r").expect("\nback");
    terminal.keys("\x03").expect("^C").keys("touch /tmp/in-the-shell; exit 0\r").expect("the build failed");
    let after = terminal.modes();
    let (code, rest) = terminal.end();
    assert_eq!(code, Some(1), "{rest}");
    assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes), "modes are back");
    // Nothing of it is in the cache: the step runs again, and again finds nothing of the shell.
    let run = env.build("-t never --progress plain").ends(1).says("exit code: 9");
    assert_eq!(run.cached(), 2, "{}", run.shown());
    assert_eq!(env.rbuild("images -q").ok().stdout.lines().count(), 1, "only the base has a name");
}

#[test]
fn a_shell_sees_what_the_failed_command_left() {
    let Some(env) = prepared("a_shell_sees_what_the_failed_command_left", FAILS, None) else { return };
    look_around(&env, None);
}

#[test]
fn a_user_gets_the_same_shell() {
    let test = "a_user_gets_the_same_shell";
    if !needs(test, &[Need::Root, Need::User]) {
        return;
    }
    let user = test_user().expect("looked up before");
    let Some(env) = prepared(test, FAILS, Some(&user)) else { return };
    look_around(&env, Some(&user));
}

#[test]
fn a_shell_at_a_line_or_a_stage_ends_the_build() {
    let text = "FROM busybox AS one\nRUN echo 1 > /1\nENV A=x\nWORKDIR /w\nRUN echo 2 > /2\nFROM one AS two\nUSER builder\nRUN false\n";
    let Some(env) = prepared("a_shell_at_a_line_or_a_stage_ends_the_build", text, None) else { return };
    for (place, said, command, seen) in [
        ("2", "before line 2", "ls /1; pwd", "/1: No such file or directory\r\n/"),
        ("3", "before line 3", "cat /1; echo $A.", "\n1\r\n."),
        ("5", "before line 5", "ls /2; pwd; echo $A.", "No such file or directory\r\n/w\r\nx."),
        ("one", "at the end of the stage one", "cat /1 /2; id -u", "1\r\n2\r\n0"),
        ("8", "before line 8", "cat /2; id -un", "2\r\nbuilder"),
    ] {
        let mut terminal = OnTerminal::start(&build(&env, &["--shell-at", place]), None);
        terminal.expect(said).keys(&format!("{command}\r")).expect(seen).keys("touch /tmp/x; exit 3\r");
        terminal.expect("the build ends here").expect("no image was made");
        assert_eq!(terminal.end().0, Some(0), "{place}");
    }
    // A step before the place can fail; without --shell-on-error that is all.
    let mut terminal = OnTerminal::start(&build(&env, &["--shell-at", "two"]), None);
    terminal.expect("did not complete successfully");
    assert_eq!(terminal.end().0, Some(1));
    assert_eq!(env.rbuild("images -q").ok().stdout.lines().count(), 1, "only the base has a name");
}

#[test]
fn an_image_without_a_shell_is_told() {
    let text = "FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin/busybox /program\nRUN [\"/program\", \"false\"]\n";
    let Some(env) = prepared("an_image_without_a_shell_is_told", text, None) else { return };
    let mut terminal = OnTerminal::start(&build(&env, &["--shell-on-error"]), None);
    terminal
        .expect("did not complete successfully")
        .expect("there is no shell to open")
        .expect("neither /bin/sh nor /bin/sh");
    assert_eq!(terminal.end().0, Some(1));
    // Of SHELL, what stands before the options is the shell of a person.
    env.write("ctx/Dockerfile", "FROM busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-euc\"]\nRUN false\n");
    let mut terminal = OnTerminal::start(&build(&env, &["--shell-on-error"]), None);
    terminal.expect("a shell (/bin/busybox sh) in").keys("false; echo $unset still here\r").expect("\nstill here");
    terminal.keys("exit\r").expect("the build failed");
    assert_eq!(terminal.end().0, Some(1));
}

#[test]
fn a_build_that_ends_well_opens_no_shell() {
    let Some(env) = prepared("a_build_that_ends_well_opens_no_shell", "FROM busybox\nRUN true\n", None) else { return };
    let mut terminal = OnTerminal::start(&build(&env, &["--shell-on-error"]), None);
    terminal.expect("content sha256:");
    assert_eq!(terminal.end().0, Some(0));
    for flag in ["--shell-on-error", "--shell-at=1"] {
        env.build(flag).ends(2).says("standard input is no terminal");
    }
}

#[test]
fn a_shell_ends_with_rbuild() {
    let Some(env) = prepared("a_shell_ends_with_rbuild", "FROM busybox\nRUN false\n", None) else { return };
    let mut terminal = OnTerminal::start(&build(&env, &["--shell-on-error"]), None);
    let before = terminal.modes();
    terminal.expect("a shell (").keys("echo $((1+1)) up; trap '' TERM HUP; sleep 1000\r").expect("2 up");
    let pid = rustix::process::Pid::from_raw(terminal.pid().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    terminal.expect("interrupted");
    assert_eq!(terminal.modes().local_modes, before.local_modes, "modes are back");
    assert_eq!(terminal.end().0, Some(143));
}
