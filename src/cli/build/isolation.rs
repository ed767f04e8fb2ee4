//! `--isolation chroot`: what it cannot do is refused before anything runs.
//!
//! In: the arguments, and later the plan. Out: how the sandbox contains commands, or what is wrong. What always holds: what
//! takes namespaces or mounts is an error at its place in the Dockerfile, never left out.

use crate::cli::args::{BuildArgs, Isolation};
use crate::cli::failure::Failure;
use crate::cli::settings::Settings;
use crate::diagnostic::Diagnostic;
use crate::exec;
use crate::plan::step::{Network, Op, Plan};
use crate::solve::{LOST_IN_COPIES, needs_mounts};

/// How the sandbox is to contain commands. Flags that contradict it are an error.
pub(super) fn chosen(args: &BuildArgs, settings: &Settings) -> Result<exec::Isolation, Failure> {
    if args.isolation != Isolation::Chroot {
        return Ok(match args.isolation {
            // In the user namespace of an ordinary user nothing could be put into a copy: it hears what is refused.
            Isolation::Auto if settings.uid == 0 => exec::Isolation::Auto,
            _ => exec::Isolation::Namespace,
        });
    }
    let refused = |what: &str| Err(Failure::Usage(format!("not supported with --isolation chroot: {what}")));
    if settings.uid != 0 {
        return refused("building as an ordinary user; it takes root, such as that of a container");
    }
    match args.network {
        Network::None => return refused("--network none, which takes a namespace"),
        Network::Default if args.private_network => return refused("--network private, which takes a namespace"),
        Network::Default | Network::Host => {}
    }
    if args.shm_size.is_some_and(|size| size != exec::DEFAULT_SHM) {
        return refused("--shm-size, which takes a mount");
    }
    if args.run.shell_on_error || args.run.shell_at.is_some() {
        return refused("--shell-on-error and --shell-at, whose terminal takes a mount");
    }
    Ok(exec::Isolation::Chroot)
}

/// What RUNs of the plan ask for that a root directory alone cannot give.
pub(super) fn refusals(isolation: exec::Isolation, plan: &Plan) -> Vec<Diagnostic> {
    if isolation != exec::Isolation::Chroot {
        return Vec::new();
    }
    let refused = |step: &crate::plan::step::Step| {
        let Op::Run(run) = &step.op else { return None };
        let lost = || LOST_IN_COPIES.iter().find(|(_, asks)| asks(run)).map(|(what, _)| *what);
        let what = needs_mounts(run).or_else(lost)?;
        let span = run.mounts.first().map_or(step.span, |mount| mount.span);
        let error = Diagnostic::error(span, format!("not supported with --isolation chroot: {what}"));
        Some(
            error.help("it takes namespaces or mounts: build where they are allowed (`rbuild info`), without the flag"),
        )
    };
    plan.steps.iter().filter_map(refused).collect()
}
