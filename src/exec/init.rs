//! The inside of a sandbox: rbuild-init, the first process, the command.
//!
//! In: an [`Order`] on standard input, which is one end of a socket; output goes to where the command's shall go.
//! Out: [`Report`]s on that socket. What always holds: when the other end of the socket is closed, for whatever
//! reason, everything in here dies; each of these processes has one thread.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::root::{self, failed};
use super::wire::{Failure, Order, Report};
use super::{MountSource, ProcessSpec, chroot, network, probe, shell};
use crate::plan::limits::{Security, Ulimit};
use crate::sys::namespace::unshare;
use crate::sys::process::{self, DEFAULT_CAPABILITIES, Forked, end, exec, fork};

/// The name (argument 0) under which rbuild starts itself as the init of a sandbox.
pub(super) const INIT_NAME: &str = "rbuild-init";

/// What failed when there is no shell to give to a person.
pub(super) const NO_SHELL: &str = "find a shell";

/// The PATH of a command whose environment has none: Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// To be called first thing in `main` of every program that runs sandboxes by itself as their init: does not return if
/// this process was started as one.
pub fn init_hook() {
    if std::env::args_os().next().is_some_and(|name| name == INIT_NAME) {
        init_main()
    }
}

/// The main function of rbuild-init.
pub fn init_main() -> ! {
    let mut arguments = std::env::args_os().skip(1);
    let said = match arguments.next() {
        Some(word) if word == probe::ARGUMENT => {
            probe::init(arguments.next().map(PathBuf::from).as_deref(), std::io::stdout().lock())
        }
        Some(word) if word == network::ARGUMENT => network::keep(arguments),
        _ => supervise().map(|never| match never {}),
    };
    end(i32::from(said.is_err()))
}

/// rbuild-init itself: starts the first process of the sandbox, and kills it when rbuild goes away.
fn supervise() -> Result<Infallible, std::io::Error> {
    process::close_from(3)?;
    let control: UnixStream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?.into();
    // The terminal's signals are for rbuild, which then says what happens here.
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let order = Order::receive(&control)?;
    if order.network_follows {
        let (_, network) = shell::receive(&control, &mut [0])?;
        let network = network.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let joined = rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
        if let Err(errno) = joined {
            Report::Failed(failed("setns", "the private network")(errno.into())).send(&control)?;
            end(1)
        }
    }
    process::join_own_keyring();
    if order.rootfs.copied {
        return chroot::supervise(&order, &control);
    }
    let first =
        unshare(UnshareFlags::NEWPID).map_err(failed("unshare", "")).and_then(|()| fork().map_err(failed("fork", "")));
    let first = match first {
        Ok(Forked::Child) => first_process(&order, &control),
        Ok(Forked::Parent(first)) => first,
        Err(failure) => {
            Report::Failed(failure).send(&control)?;
            end(1)
        }
    };
    drop(order);
    let ended = rustix::process::pidfd_open(first, PidfdFlags::empty())?;
    let mut killed = false;
    loop {
        if wait_for(&control, ended.as_fd())? == Woken::Closed {
            killed = true;
            rustix::process::kill_process(first, Signal::KILL)?;
        }
        let Some((_, status)) = rustix::process::waitpid(Some(first), wait_options(killed))? else { continue };
        if let Some(signal) = status.terminating_signal()
            && !killed
        {
            Report::Lost(signal).send(&control)?;
        }
        end(0)
    }
}

fn wait_options(block: bool) -> WaitOptions {
    if block { WaitOptions::empty() } else { WaitOptions::NOHANG }
}

#[derive(PartialEq, Eq)]
pub(super) enum Woken {
    /// The other end of the control socket is gone.
    Closed,
    /// The other descriptor is readable.
    Ready,
}

pub(super) fn wait_for(control: &UnixStream, other: impl AsFd) -> Result<Woken, Errno> {
    let events = PollFlags::IN | PollFlags::RDHUP;
    let other = other.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(control.as_fd(), events), PollFd::from_borrowed_fd(other, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    // Nothing is sent after the order: whatever happens there is its end.
    Ok(if fds[0].revents().is_empty() { Woken::Ready } else { Woken::Closed })
}

/// Process 1 of the sandbox: sets it up, starts the command, reaps what loses its parent. Its end is the end of all.
fn first_process(order: &Order, control: &UnixStream) -> ! {
    let report = match sandbox(order, control) {
        Ok(report) => report,
        Err(failure) => Report::Failed(failure),
    };
    end(i32::from(report.send(control).is_err()))
}

fn sandbox(order: &Order, control: &UnixStream) -> Result<Report, Failure> {
    let errno = |call| move |errno: Errno| failed(call, "")(errno.into());
    // Should rbuild-init be killed alone.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(errno("prctl"))?;
    for join in &order.cgroups {
        // 0 is the process that writes.
        std::fs::write(join, "0").map_err(failed("join the control group", join))?;
    }
    rustix::process::umask(Mode::empty());
    let most = order.rootfs.mounts.iter().map(|mount| match &mount.source {
        MountSource::Stack { lower, .. } => lower.len(),
        _ => 0,
    });
    let trees = order.rootfs.lower.len() + most.max().unwrap_or(0) + order.rootfs.mounts.len();
    let limit = make_room_for(trees).map_err(errno("setrlimit"))?;
    root::enter(order, &mut |stub| Report::Stub(stub).send(control))?;
    let terminal = if order.terminal { Some(open_terminal(control)?) } else { None };
    let children = process::child_events().map_err(failed("signalfd", ""))?;
    let command = match fork().map_err(failed("fork", ""))? {
        Forked::Parent(command) => command,
        Forked::Child => match become_command(order, limit, terminal) {
            Ok(code) => end(code),
            Err(failure) => {
                let told = Report::Failed(failure).send(control);
                end(i32::from(told.is_ok()) + 1)
            }
        },
    };
    drop(terminal);
    supervise_command(control, children, command)
}

/// Makes the terminal of the command, and sends its other end to rbuild.
fn open_terminal(control: &UnixStream) -> Result<OwnedFd, Failure> {
    let errno = |call| move |errno: Errno| failed(call, "a terminal")(errno.into());
    let (ours, other) = shell::open_terminal().map_err(errno("open"))?;
    shell::send_with(control, &Report::Terminal.encode(), other.as_fd()).map_err(errno("send"))?;
    Ok(ours)
}

/// Waits for the command, and for whatever else ends.
fn supervise_command(control: &UnixStream, children: OwnedFd, command: Pid) -> Result<Report, Failure> {
    let errno = |call| move |errno: Errno| failed(call, "")(errno.into());
    let mut children = std::fs::File::from(children);
    loop {
        if wait_for(control, children.as_fd()).map_err(errno("poll"))? == Woken::Closed {
            end(1)
        }
        drain(&mut children).map_err(failed("read", "signalfd"))?;
        while let Some((process, status)) = rustix::process::wait(WaitOptions::NOHANG).map_err(errno("wait"))? {
            if process == command
                && let Some(report) = report_of(status)
            {
                return Ok(report);
            }
        }
    }
}

/// Takes what a signalfd has; what it says does not matter.
pub(super) fn drain(children: &mut std::fs::File) -> std::io::Result<()> {
    // Several records at once.
    match children.read(&mut [0; 1024]) {
        Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

pub(super) fn report_of(status: WaitStatus) -> Option<Report> {
    status.exit_status().map(Report::Exited).or_else(|| status.terminating_signal().map(Report::Signaled))
}

/// Sees to it that a descriptor for each tree can be open at once. Returns the limit to go back to.
fn make_room_for(trees: usize) -> Result<Option<Rlimit>, Errno> {
    const OTHERS: u64 = 64;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    match limit.current {
        Some(current) if current < trees as u64 + OTHERS => {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            rustix::process::setrlimit(Resource::Nofile, raised)?;
            Ok(Some(limit))
        }
        _ => Ok(None),
    }
}

/// Sets one of `--ulimit`.
fn set_limit(Ulimit { name, soft, hard }: &Ulimit) -> Result<(), Errno> {
    let resource = match *name {
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return Err(Errno::INVAL),
    };
    let limit = |value: u64| (value != Ulimit::UNLIMITED).then_some(value);
    rustix::process::setrlimit(resource, Rlimit { current: limit(*soft), maximum: limit(*hard) })
}

/// Makes this process the command. Returns the exit code where there is nothing to execute, having said why on the
/// command's standard error.
pub(super) fn become_command(order: &Order, limit: Option<Rlimit>, terminal: Option<OwnedFd>) -> Result<i32, Failure> {
    let ProcessSpec { args, env, cwd, uid, gid, groups, .. } = &order.process;
    let errno = |call| move |errno: Errno| failed(call, "")(errno.into());
    rustix::process::setsid().map_err(errno("setsid"))?;
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(&terminal).map_err(errno("take the terminal"))?;
        rustix::stdio::dup2_stdin(&terminal).map_err(errno("dup2"))?;
        rustix::stdio::dup2_stdout(&terminal).map_err(errno("dup2"))?;
        rustix::stdio::dup2_stderr(&terminal).map_err(errno("dup2"))?;
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed("open", "/dev/null")(errno.into()))?;
        rustix::stdio::dup2_stdin(&null).map_err(errno("dup2"))?;
    }
    // So that the command can open /dev/stdout and /dev/stderr by name, whoever it runs as.
    let user = rustix::fs::Uid::from_raw(*uid);
    for output in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::fs::fchown(output, Some(user), None).map_err(errno("fchown"))?;
    }
    if let Some(limit) = limit {
        rustix::process::setrlimit(Resource::Nofile, limit).map_err(errno("setrlimit"))?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::chdir(cwd.as_str()).map_err(|errno| failed("chdir", cwd)(errno.into()))?;
    for ulimit in &order.process.ulimits {
        set_limit(ulimit).map_err(|errno| failed("set the limit", ulimit.name)(errno.into()))?;
    }
    let capabilities = match order.process.security {
        Security::Sandbox => DEFAULT_CAPABILITIES,
        Security::Insecure => u64::MAX,
    };
    process::limit_bounding_set(capabilities).map_err(failed("drop capabilities", ""))?;
    process::clear_inheritable().map_err(failed("capset", ""))?;
    if order.process.linux32 {
        process::tell_32_bits().map_err(failed("personality", ""))?;
    }
    if order.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(errno("prctl"))?;
    }
    // In a copy this process may be one that must not; what contains it has a filter of its own then.
    let may_filter = !order.rootfs.copied || process::is_administrator().map_err(failed("capget", ""))?;
    if !order.seccomp.is_empty() && may_filter {
        // While this process may do so without giving up set-user-id programs.
        process::filter_calls(&order.seccomp).map_err(failed("seccomp", ""))?;
    }
    let groups: Vec<_> = groups.iter().map(|group| rustix::fs::Gid::from_raw(*group)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(errno("setgroups"))?;
    let group = rustix::fs::Gid::from_raw(*gid);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(errno("setgid"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(errno("setuid"))?;
    process::set_capabilities(capabilities).map_err(failed("capset", ""))?;
    process::reset_signals().map_err(failed("sigprocmask", ""))?;
    if order.rootfs.copied {
        // Last, since a change of user clears it. Elsewhere its namespace ends with its parent.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(errno("prctl"))?;
    }
    if order.terminal { Err(execute_shell(args, env)) } else { Ok(execute(args, env)) }
}

/// Executes the shell, or `/bin/sh`. Returns if neither can be.
fn execute_shell(args: &[String], env: &[String]) -> Failure {
    for args in [args, &["/bin/sh".to_owned()]] {
        attempt(args, env);
    }
    failed(NO_SHELL, "")(Errno::NOENT.into())
}

/// Executes the program. Returns if that failed: with the exit code that a shell would give.
fn execute(args: &[String], env: &[String]) -> i32 {
    let program = args.first().map_or("", String::as_str);
    let (code, why) = match attempt(args, env) {
        Missing::NotInPath => (127, "executable file not found in $PATH".to_owned()),
        Missing::Refused(Errno::NOENT) => (127, "no such file or directory".to_owned()),
        Missing::NoInterpreter => {
            (127, "no such file or directory: the file is there, its interpreter or loader is not".to_owned())
        }
        Missing::Refused(Errno::NOEXEC) => (
            126,
            "exec format error: no program for this machine (for another architecture an emulator must be set up: `rbuild info`), nor a script with a #! line".to_owned(),
        ),
        Missing::Refused(errno) => (126, std::io::Error::from(errno).to_string().to_lowercase()),
    };
    let message = format!("exec: {program:?}: {why}\n");
    match rustix::io::write(rustix::stdio::stderr(), message.as_bytes()) {
        // There is nobody else to tell.
        Ok(_) | Err(_) => code,
    }
}

/// Looks up and executes the program. Returns why that failed.
fn attempt(args: &[String], env: &[String]) -> Missing {
    // The other side has made sure that no word has a NUL byte.
    let words = |words: &[String]| -> Vec<CString> {
        words.iter().filter_map(|word| CString::new(word.as_bytes()).ok()).collect()
    };
    let (args_owned, env_owned) = (words(args), words(env));
    let pointers = |words: &[CString]| -> Vec<&'static CStr> {
        // The process ends or is replaced: leaking lends them for as long as it lives.
        words.iter().map(|word| &*Box::leak(word.clone().into_boxed_c_str())).collect()
    };
    let (arg_pointers, env_pointers) = (pointers(&args_owned), pointers(&env_owned));
    let program = args.first().map_or("", String::as_str);
    search(program, env, &mut |file| match CString::new(file) {
        Ok(file) => Errno::from_io_error(&exec(&file, &arg_pointers, &env_pointers)).unwrap_or(Errno::IO),
        Err(_) => Errno::INVAL,
    })
}

/// Why nothing was executed.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    /// No folder of PATH has it.
    NotInPath,
    /// It is there, and what shall run it is not.
    NoInterpreter,
    /// The kernel's reason.
    Refused(Errno),
}

/// Tries `program`, or each place in PATH where it may be.
fn search(program: &str, env: &[String], attempt: &mut dyn FnMut(&str) -> Errno) -> Missing {
    let there = |file: &str| rustix::fs::access(file, rustix::fs::Access::EXISTS).is_ok();
    if program.contains('/') {
        return match attempt(program) {
            Errno::NOENT if there(program) => Missing::NoInterpreter,
            errno => Missing::Refused(errno),
        };
    }
    if program.is_empty() {
        return Missing::NotInPath;
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut refused = None;
    for folder in path.split(':') {
        // An empty folder means the working directory to a shell, and to nobody who wants to know what is executed.
        if folder.is_empty() {
            continue;
        }
        let file = format!("{folder}/{program}");
        match attempt(&file) {
            Errno::NOENT if there(&file) => return Missing::NoInterpreter,
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => refused = Some(Errno::ACCESS),
            errno => return Missing::Refused(errno),
        }
    }
    refused.map_or(Missing::NotInPath, Missing::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_as_docker_does() {
        let tried = |program: &str, env: &[&str], answers: &[(&str, Errno)]| {
            let env: Vec<String> = env.iter().map(|variable| (*variable).to_owned()).collect();
            let mut files = Vec::new();
            let missing = search(program, &env, &mut |file| {
                files.push(file.to_owned());
                answers.iter().find(|(name, _)| *name == file).map_or(Errno::NOENT, |(_, errno)| *errno)
            });
            (files.join(" "), missing)
        };
        let no = "/no/such/folder";
        for (program, path, answers, files, missing) in [
            ("x", "PATH=/no/a::/no/b", vec![], "/no/a/x /no/b/x".to_owned(), Missing::NotInPath),
            (
                "x",
                "PATH=/no/a:/no/b",
                vec![("/no/a/x", Errno::ACCESS)],
                "/no/a/x /no/b/x".to_owned(),
                Missing::Refused(Errno::ACCESS),
            ),
            (
                "x",
                "PATH=/no/a:/no/b",
                vec![("/no/a/x", Errno::NOEXEC)],
                "/no/a/x".to_owned(),
                Missing::Refused(Errno::NOEXEC),
            ),
            ("/no/such/folder", "PATH=/a", vec![], no.to_owned(), Missing::Refused(Errno::NOENT)),
            ("/", "PATH=/a", vec![("/", Errno::ACCESS)], "/".to_owned(), Missing::Refused(Errno::ACCESS)),
            ("/", "PATH=/a", vec![("/", Errno::NOENT)], "/".to_owned(), Missing::NoInterpreter),
            ("", "PATH=/a", vec![], String::new(), Missing::NotInPath),
        ] {
            assert_eq!(tried(program, &[path], &answers), (files, missing), "{program} {path}");
        }
        assert_eq!(tried("x", &[], &[]).0.split(' ').count(), 6);
        assert_eq!(tried("x", &["PATH=/no/a", "PATH=/no/b"], &[]).0, "/no/b/x");
    }
}
