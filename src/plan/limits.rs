//! What a RUN may do beyond the usual, and what it may use.
//!
//! In: the values of `--ulimit`, `--allow` and the flags of RUN. Out: plain values. What always holds: of what stands
//! here all but [`Allowed`] is part of a step's key; limits of memory and processors, which change nothing that a
//! command writes, are elsewhere (`exec::cgroup`).

use crate::diagnostic::nearest;

/// How a RUN is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Security {
    /// Docker's usual capabilities, system calls and hidden paths.
    #[default]
    Sandbox,
    /// Every capability and system call, nothing hidden or read-only.
    Insecure,
}

/// What the user allows RUN to ask for: `--allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowed {
    /// `network.host`: `RUN --network=host`.
    pub network_host: bool,
    /// `security.insecure`: `RUN --security=insecure`.
    pub security_insecure: bool,
}

/// What the command line says for every RUN of a build, as far as it may change what is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunLimits {
    /// `--ulimit`, one for each name.
    pub ulimits: Vec<Ulimit>,
    /// `--shm-size`: the size of `/dev/shm` in bytes; 0 is the usual one.
    pub shm_size: u64,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// The names that `--add-host` gives an address, in their order. A command can see which there are; at which address
    /// is no part of a step, as with BuildKit.
    pub host_names: Vec<String>,
}

/// `--ulimit name=soft[:hard]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// One of [`Ulimit::NAMES`].
    pub name: &'static str,
    /// The limit that holds; [`Ulimit::UNLIMITED`] is none.
    pub soft: u64,
    /// How far the command can raise it.
    pub hard: u64,
}

impl Ulimit {
    /// No limit.
    pub const UNLIMITED: u64 = u64::MAX;

    /// The names that Docker knows.
    pub const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];

    /// Reads `name=soft[:hard]`; -1 is no limit.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "expected NAME=SOFT[:HARD], such as nofile=1024:2048; -1 is no limit".to_owned();
        let (name, values) = text.split_once('=').ok_or_else(expected)?;
        let Some(name) = Self::NAMES.into_iter().find(|known| *known == name) else {
            let near = match nearest(&name.to_lowercase(), Self::NAMES) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", Self::NAMES.join(", ")),
            };
            return Err(format!("there is no limit named {name:?}; {near}"));
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let number = |text: &str| match text {
            "-1" => Ok(Self::UNLIMITED),
            text => text.parse().map_err(|_| expected()),
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err("the soft limit is above the hard one; write SOFT:HARD, the smaller number first".to_owned());
        }
        Ok(Self { name, soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_are_read_as_docker_does() {
        for (text, expected) in [
            ("nofile=1024:2048", Ok((1024, 2048))),
            ("nofile=1024", Ok((1024, 1024))),
            ("core=0", Ok((0, 0))),
            ("memlock=-1", Ok((u64::MAX, u64::MAX))),
            ("stack=8388608:-1", Ok((8_388_608, u64::MAX))),
            ("stack=-1:5", Err("the soft limit is above")),
            ("nofile=2:1", Err("the soft limit is above")),
            ("nofiles=1", Err("there is no limit named \"nofiles\"; did you mean nofile?")),
            ("NPROC=1", Err("did you mean nproc?")),
            ("as=1", Err("there is no limit named \"as\"; there are core")),
            ("quite-another=1", Err("there are core, cpu, data")),
            ("nofile", Err("expected NAME=SOFT[:HARD]")),
            ("nofile=", Err("expected NAME=SOFT[:HARD]")),
            ("nofile=1:2:3", Err("expected NAME=SOFT[:HARD]")),
            ("nofile=-2", Err("expected NAME=SOFT[:HARD]")),
        ] {
            match (Ulimit::parse(text), expected) {
                (Ok(limit), Ok(numbers)) => assert_eq!((limit.soft, limit.hard), numbers, "{text}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
