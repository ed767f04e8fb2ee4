//! The flags of a build about what RUN may use, and about shells.
//!
//! In: what clap matched. Out: [`RunArgs`]. What always holds: limits that contradict each other are refused here, before
//! anything is built; whether this machine can enforce them is found out where they are set.

use clap::Args;

use super::values::{bytes, some, yes_no};
use crate::exec::cgroup::{Resources, Swap};
use crate::plan::limits::Ulimit;

/// What a build's RUN may use, and where shells are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunArgs {
    /// `--ulimit`, the last of each name, in order of name.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--memory`, `--cpus` and their kind.
    pub resources: Resources,
    /// `--security-opt seccomp=unconfined`.
    pub unconfined: bool,
    /// `--security-opt no-new-privileges`.
    pub no_new_privileges: bool,
    /// `--shell-on-error`.
    pub shell_on_error: bool,
    /// `--shell-at`, as written.
    pub shell_at: Option<String>,
}

/// The smallest limit of memory that Docker takes: with less, not even a shell starts.
const LEAST_MEMORY: u64 = 6 << 20;

/// The usual period in which processor time is counted, in microseconds.
const USUAL_PERIOD: u64 = 100_000;

const RUN: &str = "RUN";

/// The flags as clap sees them.
#[derive(Debug, Args)]
pub(super) struct RunFlags {
    /// A limit as of ulimit(1), such as nofile=1024:2048 (can be repeated)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = Ulimit::parse, help_heading = RUN)]
    ulimit: Vec<Ulimit>,
    /// The most memory that each RUN may use
    #[arg(short, long, value_name = "SIZE", value_parser = bytes, help_heading = RUN)]
    memory: Option<u64>,
    /// The most of memory and swap together; -1 is no limit
    #[arg(long, value_name = "SIZE", value_parser = swap, allow_hyphen_values = true, help_heading = RUN)]
    memory_swap: Option<Swap>,
    /// How many processors' time each RUN may use, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = cpus, help_heading = RUN)]
    cpus: Option<u64>,
    /// Weight of each RUN among others that want processors [default: 1024]
    #[arg(short = 'c', long, value_name = "WEIGHT", value_parser = shares, help_heading = RUN)]
    cpu_shares: Option<u64>,
    /// The processors that RUN may use, such as 0-2,4
    #[arg(long, value_name = "LIST", value_parser = list, help_heading = RUN)]
    cpuset_cpus: Option<String>,
    /// The memory nodes that RUN may use
    #[arg(long, value_name = "LIST", value_parser = list, help_heading = RUN)]
    cpuset_mems: Option<String>,
    /// The period of --cpu-quota in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1000..=1_000_000),
          help_heading = RUN)]
    cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1000..), help_heading = RUN)]
    cpu_quota: Option<u64>,
    /// The control group below which those of RUN are made
    #[arg(long, value_name = "PATH", value_parser = parent, help_heading = RUN)]
    cgroup_parent: Option<String>,
    /// seccomp=unconfined: RUN may make every system call; no-new-privileges: set-user-id programs give it none
    #[arg(long, value_name = "OPTION", value_parser = security_opt, help_heading = RUN)]
    security_opt: Vec<SecurityOpt>,
    /// Open a shell in the step that failed, as its command left it
    #[arg(long, help_heading = RUN)]
    shell_on_error: bool,
    /// Open a shell at the end of a stage or before a line of the Dockerfile; make no image
    #[arg(long, value_name = "STAGE|LINE", value_parser = some, help_heading = RUN)]
    shell_at: Option<String>,
}

impl RunFlags {
    pub(super) fn into_args(self) -> Result<RunArgs, String> {
        if self.cpus.is_some() && (self.cpu_period.is_some() || self.cpu_quota.is_some()) {
            return Err("--cpus and --cpu-quota or --cpu-period say the same thing: give one of them".to_owned());
        }
        if self.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
            return Err("--memory: the smallest limit is 6m".to_owned());
        }
        match (self.memory, self.memory_swap) {
            (None, Some(_)) => return Err("--memory-swap is memory and swap together: give --memory too".to_owned()),
            (Some(memory), Some(Swap::Limit(both))) if both < memory => {
                return Err("--memory-swap is memory and swap together: it cannot be less than --memory".to_owned());
            }
            _ => {}
        }
        let mut ulimits: Vec<Ulimit> = Vec::new();
        for limit in self.ulimit {
            ulimits.retain(|known| known.name != limit.name);
            ulimits.push(limit);
        }
        ulimits.sort_by_key(|limit| limit.name);
        let quota = self.cpus.or(self.cpu_quota);
        let no_new_privileges =
            self.security_opt.iter().rfind(|option| matches!(option, SecurityOpt::NoNewPrivileges(_)));
        Ok(RunArgs {
            ulimits,
            cgroup_parent: self.cgroup_parent,
            resources: Resources {
                memory: self.memory,
                swap: self.memory_swap,
                cpu_time: quota.map(|quota| (quota, self.cpu_period.unwrap_or(USUAL_PERIOD))),
                cpu_period: self.cpu_period,
                cpu_shares: self.cpu_shares,
                cpus: self.cpuset_cpus,
                mems: self.cpuset_mems,
            },
            unconfined: self.security_opt.contains(&SecurityOpt::Unconfined),
            no_new_privileges: no_new_privileges == Some(&SecurityOpt::NoNewPrivileges(true)),
            shell_on_error: self.shell_on_error,
            shell_at: self.shell_at,
        })
    }
}

fn swap(text: &str) -> Result<Swap, String> {
    if text == "-1" { Ok(Swap::Unlimited) } else { bytes(text).map(Swap::Limit) }
}

/// Processors as their time in the usual period.
fn cpus(text: &str) -> Result<u64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of processors, such as 2 or 0.5".to_owned())?;
    let quota = number * USUAL_PERIOD as f64;
    if (1000.0..1e15).contains(&quota) { Ok(quota.round() as u64) } else { Err("the smallest is 0.01".to_owned()) }
}

/// What the kernel takes as a weight.
fn shares(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|weight| (2..=262_144).contains(weight))
        .ok_or_else(|| "expected a weight from 2 to 262144; the usual one is 1024".to_owned())
}

/// Numbers and ranges with commas between them.
fn list(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u16>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
        None => number(part).is_some(),
    };
    if text.split(',').all(range) { Ok(text.to_owned()) } else { Err("expected a list such as 0-2,4".to_owned()) }
}

fn parent(text: &str) -> Result<String, String> {
    let names = || text.split('/').filter(|name| !name.is_empty() && *name != ".");
    if names().any(|name| name == "..") || names().next().is_none() || text.contains('\0') {
        return Err("expected the path of a control group below the root of all, such as builds/mine".to_owned());
    }
    Ok(names().collect::<Vec<_>>().join("/"))
}

/// How RUN is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecurityOpt {
    /// By no filter of system calls.
    Unconfined,
    /// Nothing that is executed gives it more rights.
    NoNewPrivileges(bool),
    /// As it is anyway.
    Nothing,
}

fn security_opt(text: &str) -> Result<SecurityOpt, String> {
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (name, value) {
        ("seccomp", "unconfined") => Ok(SecurityOpt::Unconfined),
        ("seccomp", _) => Err("not supported yet: profiles of one's own; there is seccomp=unconfined".to_owned()),
        ("no-new-privileges", "") => Ok(SecurityOpt::NoNewPrivileges(true)),
        ("no-new-privileges", value) => yes_no(value).map(SecurityOpt::NoNewPrivileges),
        // RUN gets no profile of AppArmor's and no label of SELinux's own.
        ("apparmor", "unconfined") | ("label", "disable") => Ok(SecurityOpt::Nothing),
        _ => Err(format!("not supported yet: {text}; there are seccomp=unconfined and no-new-privileges")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        for (text, expected) in
            [("1.5", Some(150_000)), ("2", Some(200_000)), ("0.001", None), ("-1", None), ("x", None)]
        {
            assert_eq!(cpus(text).ok(), expected, "{text}");
        }
        for (text, good) in [("0", true), ("0-2,4", true), ("2-1", false), ("", false), ("1,", false), ("a", false)] {
            assert_eq!(list(text).is_ok(), good, "{text}");
        }
        for (text, expected) in
            [("a", Some("a")), ("/a//b/./c/", Some("a/b/c")), ("/", None), ("a/../b", None), ("", None)]
        {
            assert_eq!(parent(text).ok().as_deref(), expected, "{text}");
        }
        for (text, good) in [
            ("seccomp=unconfined", true),
            ("seccomp=p.json", false),
            ("apparmor=x", false),
            ("no-new-privileges", true),
            ("no-new-privileges=false", true),
            ("no-new-privileges=maybe", false),
            ("apparmor=unconfined", true),
            ("label=disable", true),
            ("label=type:x", false),
        ] {
            assert_eq!(security_opt(text).is_ok(), good, "{text}");
        }
        assert_eq!((swap("-1").ok(), swap("1k").ok()), (Some(Swap::Unlimited), Some(Swap::Limit(1024))));
        assert_eq!((shares("1").ok(), shares("2").ok()), (None, Some(2)));
    }
}
