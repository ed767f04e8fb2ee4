//! Control groups: how much memory and processor time a RUN may use.
//!
//! In: [`Resources`] and `--cgroup-parent`, and what this machine has mounted. Out: a `Cgroup`, which a sandbox's first
//! process joins before anything else. What always holds: version 1 and version 2 are both written; what was asked for
//! and cannot be enforced here is an error that names it; a group is removed when its command has ended, and what a
//! killed rbuild left is removed by the next one that makes groups in the same place.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Limits of each RUN.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// `--memory`, in bytes.
    pub memory: Option<u64>,
    /// `--memory-swap`.
    pub swap: Option<Swap>,
    /// `--cpus` or `--cpu-quota`: processor time, and the period in which it may be used, in microseconds.
    pub cpu_time: Option<(u64, u64)>,
    /// `--cpu-period`.
    pub cpu_period: Option<u64>,
    /// `--cpu-shares`.
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`.
    pub cpus: Option<String>,
    /// `--cpuset-mems`.
    pub mems: Option<String>,
}

/// `--memory-swap`: memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// As much as there is.
    Unlimited,
    /// So many bytes.
    Limit(u64),
}

/// Why a limit cannot be enforced.
#[derive(Debug, thiserror::Error)]
#[error("{flag} cannot be enforced here: {why}\n{remedy}")]
pub struct CgroupError {
    /// What was asked for.
    flag: String,
    why: String,
    remedy: &'static str,
}

const NO_CONTROLLER: &str = "mount the control groups of this machine with that controller (`rbuild info` shows which there are), or leave the limit out";
const NOT_OURS: &str = "run rbuild as root; an ordinary user needs control groups of version 2 that are delegated to it (with systemd: `systemd-run --user --scope -p Delegate=yes rbuild …`)";
const BAD_VALUE: &str = "the kernel does not take this value; see what the group above allows";

/// Which version of control groups a hierarchy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A mounted tree of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Of version 2 all that its root offers.
    controllers: Vec<String>,
    mounted: PathBuf,
    /// The group of this process, from `mounted` on.
    own: PathBuf,
}

/// One limit: the flag, the controller, and what is written into which file of either version.
struct Setting {
    flag: &'static str,
    controller: &'static str,
    one: Vec<(&'static str, String)>,
    two: Vec<(&'static str, String)>,
}

impl Resources {
    /// Whether there is any limit.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    fn settings(&self) -> Vec<Setting> {
        let mut all = Vec::new();
        let mut put = |flag, controller, one, two| all.push(Setting { flag, controller, one, two });
        if let Some(memory) = self.memory {
            let text = memory.to_string();
            put("--memory", "memory", vec![("memory.limit_in_bytes", text.clone())], vec![("memory.max", text)]);
            if let Some(swap) = self.swap {
                // Version 1 counts both together, version 2 swap alone.
                let (one, two) = match swap {
                    Swap::Unlimited => ("-1".to_owned(), "max".to_owned()),
                    Swap::Limit(both) => (both.to_string(), both.saturating_sub(memory).to_string()),
                };
                put(
                    "--memory-swap",
                    "memory",
                    vec![("memory.memsw.limit_in_bytes", one)],
                    vec![("memory.swap.max", two)],
                );
            }
        }
        if let Some((quota, period)) = self.cpu_time {
            put(
                "--cpus",
                "cpu",
                vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
                vec![("cpu.max", format!("{quota} {period}"))],
            );
        } else if let Some(period) = self.cpu_period {
            let one = vec![("cpu.cfs_period_us", period.to_string())];
            put("--cpu-period", "cpu", one, vec![("cpu.max", format!("max {period}"))]);
        }
        if let Some(shares) = self.cpu_shares {
            // 2 to 262144 on 1 to 10000, as runc maps them.
            let weight = 1 + (shares.max(2) - 2) * 9999 / 262_142;
            put(
                "--cpu-shares",
                "cpu",
                vec![("cpu.shares", shares.to_string())],
                vec![("cpu.weight", weight.to_string())],
            );
        }
        for (flag, file, list) in
            [("--cpuset-cpus", "cpuset.cpus", &self.cpus), ("--cpuset-mems", "cpuset.mems", &self.mems)]
        {
            if let Some(list) = list {
                put(flag, "cpuset", vec![(file, list.clone())], vec![(file, list.clone())]);
            }
        }
        all
    }
}

/// The groups of one command, one in each hierarchy that it takes. Dropping them removes them.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Made here, in that order.
    folders: Vec<PathBuf>,
    /// The groups that the command joins.
    leaves: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the groups of a command; `None` where it needs none.
    pub(super) fn make(resources: &Resources, parent: Option<&str>) -> Result<Option<Self>, CgroupError> {
        if !resources.any() && parent.is_none() {
            return Ok(None);
        }
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| fail("a limit", format!("{path}: {error}"), NO_CONTROLLER))
        };
        let hierarchies = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, |path| {
            fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        });
        let mut made = Self { folders: Vec::new(), leaves: Vec::new() };
        made.fill(&hierarchies, &resources.settings(), parent)?;
        Ok(Some(made))
    }

    fn fill(
        &mut self,
        hierarchies: &[Hierarchy],
        settings: &[Setting],
        parent: Option<&str>,
    ) -> Result<(), CgroupError> {
        for setting in settings {
            if !hierarchies.iter().any(|one| one.has(setting.controller)) {
                let why = format!("this machine has no control groups with the controller {}", setting.controller);
                return Err(fail(setting.flag, why, NO_CONTROLLER));
            }
        }
        if hierarchies.is_empty() {
            return Err(fail("--cgroup-parent", "this machine has no control groups", NO_CONTROLLER));
        }
        for hierarchy in hierarchies {
            let here: Vec<&Setting> = settings.iter().filter(|setting| hierarchy.has(setting.controller)).collect();
            if here.is_empty() && parent.is_none() {
                continue;
            }
            let flag = here.first().map_or("--cgroup-parent", |setting| setting.flag);
            let controllers: Vec<&str> = here.iter().map(|setting| setting.controller).collect();
            let leaf = self.make_leaf(hierarchy, parent, &controllers, flag)?;
            for setting in here {
                set(&leaf, hierarchy.version, setting)?;
            }
            self.leaves.push(leaf);
        }
        Ok(())
    }

    /// Makes a group in `hierarchy` in which `controllers` work.
    fn make_leaf(
        &mut self,
        hierarchy: &Hierarchy,
        parent: Option<&str>,
        controllers: &[&str],
        flag: &str,
    ) -> Result<PathBuf, CgroupError> {
        let at = match parent {
            Some(parent) => {
                let mut at = hierarchy.mounted.clone();
                for name in expand_slice(parent) {
                    enable(&at, controllers, hierarchy.version, flag)?;
                    at.push(name);
                    self.make_folder(&at, hierarchy.version, flag)?;
                }
                at
            }
            None => hierarchy.place(),
        };
        sweep(&at);
        enable(&at, controllers, hierarchy.version, flag)?;
        let leaf = at.join(name_of(std::process::id(), next_number()));
        self.make_folder(&leaf, hierarchy.version, flag)?;
        Ok(leaf)
    }

    fn make_folder(&mut self, path: &Path, version: Version, flag: &str) -> Result<(), CgroupError> {
        match fs::create_dir(path) {
            Ok(()) => self.folders.push(path.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(fail(flag, format!("cannot make {}: {error}", path.display()), remedy(&error))),
        }
        // In version 1, nothing runs in a group that has no processors and no memory yet.
        if version == Version::One {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = path.parent().map(|above| above.join(file));
                if let Some(Ok(inherited)) = above.map(fs::read_to_string) {
                    let file = path.join(file);
                    fs::write(&file, inherited.trim()).map_err(|error| {
                        fail(flag, format!("cannot write {}: {error}", file.display()), remedy(&error))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The files through which a process joins.
    pub(super) fn joins(&self) -> Vec<PathBuf> {
        self.leaves.iter().map(|leaf| leaf.join("cgroup.procs")).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            for _ in 0..50 {
                match fs::remove_dir(folder) {
                    // The last process has been waited for, but the kernel may still count it for a moment.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && self.leaves.contains(folder) => {
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    // A parent that somebody else uses stays; what cannot be removed is swept later.
                    Ok(()) | Err(_) => break,
                }
            }
        }
    }
}

fn fail(flag: &str, why: impl Display, remedy: &'static str) -> CgroupError {
    CgroupError { flag: flag.to_owned(), why: why.to_string(), remedy }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::EBUSY) => NOT_OURS,
        Some(libc::ENOENT) => NO_CONTROLLER,
        _ => BAD_VALUE,
    }
}

/// Writes one limit into a group.
fn set(leaf: &Path, version: Version, setting: &Setting) -> Result<(), CgroupError> {
    let files = if version == Version::One { &setting.one } else { &setting.two };
    for (name, value) in files {
        let file = leaf.join(name);
        if *name == "cpuset.cpus" || *name == "cpuset.mems" {
            check_list(leaf, name, value, setting.flag)?;
        }
        // Never made: where the kernel has no such file, nothing would hold.
        fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()))
            .map_err(|error| {
                let remedy = if error.raw_os_error() == Some(libc::ENOENT) && setting.flag == "--memory-swap" {
                    "this kernel does not count swap: boot with swapaccount=1, or leave --memory-swap out"
                } else {
                    remedy(&error)
                };
                fail(setting.flag, format!("cannot write {value} to {}: {error}", file.display()), remedy)
            })?;
    }
    Ok(())
}

/// Version 2 takes processors that are not there, and then uses all: that is no limit.
fn check_list(leaf: &Path, name: &str, wanted: &str, flag: &str) -> Result<(), CgroupError> {
    let Some(above) = leaf.parent() else { return Ok(()) };
    let there = [format!("{name}.effective"), format!("cpuset.effective_{}", &name[7..]), name.to_owned()];
    let Some(there) = there.iter().find_map(|file| fs::read_to_string(above.join(file)).ok()) else { return Ok(()) };
    let (there, wanted_set) = (numbers(there.trim()), numbers(wanted));
    match wanted_set.iter().find(|number| !there.contains(number)) {
        Some(missing) => {
            let all: Vec<String> = there.iter().map(u32::to_string).collect();
            Err(fail(
                flag,
                format!("there is no {missing}, but {}", all.join(", ")),
                "name some of those that are there",
            ))
        }
        None => Ok(()),
    }
}

/// The numbers of a list such as `0-2,4`.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) if last < 65_536 => first..=last,
            #[allow(clippy::reversed_empty_ranges)] // none
            _ => 1..=0,
        }
    };
    list.split(',').flat_map(range).collect()
}

/// Lets the groups below `at` have `controllers`: version 2 wants to be told.
fn enable(at: &Path, controllers: &[&str], version: Version, flag: &str) -> Result<(), CgroupError> {
    if version == Version::One || controllers.is_empty() {
        return Ok(());
    }
    let file = at.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file).unwrap_or_default();
    for controller in controllers.iter().filter(|wanted| !on.split_whitespace().any(|on| on == **wanted)) {
        fs::write(&file, format!("+{controller}")).map_err(|error| {
            fail(flag, format!("cannot turn on {controller} in {}: {error}", file.display()), remedy(&error))
        })?;
    }
    Ok(())
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// Where groups are made: at the root where that is ours, else in the nearest group above this process's that is.
    /// (A group of version 2 with processes in it can have none below it with controllers, the root excepted.)
    fn place(&self) -> PathBuf {
        let ours = |path: &Path| {
            let flags = rustix::fs::AtFlags::EACCESS;
            let write = rustix::fs::Access::WRITE_OK;
            [path.to_owned(), path.join("cgroup.procs")]
                .iter()
                .all(|path| rustix::fs::accessat(rustix::fs::CWD, path, write, flags).is_ok())
        };
        if ours(&self.mounted) {
            return self.mounted.clone();
        }
        let own = self.mounted.join(&self.own);
        let above = own.ancestors().skip(1).take_while(|at| *at != self.mounted);
        above.into_iter().find(|at| ours(at)).unwrap_or(&self.mounted).to_owned()
    }
}

/// What is mounted of control groups, from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mounts: &str, groups: &str, controllers_of: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let own = |wanted: Option<&str>| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let found = match wanted {
                Some(wanted) => controllers.split(',').any(|one| one == wanted),
                None => number == "0" && controllers.is_empty(),
            };
            found.then(|| PathBuf::from(path.trim_start_matches('/')))
        })
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (Some(root), Some(mounted), Some(kind)) = (left.next(), left.next(), right.next()) else { continue };
        let mounted = PathBuf::from(mounted);
        let hierarchy = match kind {
            "cgroup2" => {
                let controllers = controllers_of(&mounted).split_whitespace().map(str::to_owned).collect();
                let own = own(None).unwrap_or_default();
                Hierarchy { version: Version::Two, controllers, own: below(root, &own), mounted }
            }
            "cgroup" => {
                let options = right.nth(1).unwrap_or_default();
                let known = ["memory", "cpu", "cpuset", "cpuacct", "pids", "blkio"];
                let controllers: Vec<String> =
                    options.split(',').filter(|option| known.contains(option)).map(str::to_owned).collect();
                let Some(first) = controllers.first() else { continue };
                let own = own(Some(first)).unwrap_or_default();
                Hierarchy { version: Version::One, controllers, own: below(root, &own), mounted }
            }
            _ => continue,
        };
        // The same hierarchy can be mounted in several places.
        if !found.iter().any(|known| known.version == hierarchy.version && known.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    // Beside those of version 1, the one of version 2 may have nothing to give.
    found.retain(|one| !one.controllers.is_empty());
    found
}

/// A group's path from the group `root` on that is mounted.
fn below(root: &str, own: &Path) -> PathBuf {
    own.strip_prefix(root.trim_start_matches('/')).unwrap_or(Path::new("")).to_owned()
}

/// The path of `--cgroup-parent`: systemd's name of a slice, such as `a-b.slice`, stands for `a.slice/a-b.slice`.
fn expand_slice(parent: &str) -> Vec<String> {
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return parent.split('/').map(str::to_owned).collect();
    };
    let ends = name.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

/// The name of a group: of which PID namespace, which process, and which of its groups.
fn name_of(process: u32, number: u64) -> String {
    format!("rbuild-{}-{process}-{number}", pid_namespace())
}

fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes the groups that a killed rbuild left in `at`. Only empty ones can be.
fn sweep(at: &Path) {
    let prefix = format!("rbuild-{}-", pid_namespace());
    for entry in fs::read_dir(at).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|rest| rest.split('-').next());
        if let Some(process) = process
            && !Path::new("/proc").join(process).exists()
        {
            // It may just have been swept by another build; where it cannot be removed, nothing is worse than before.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// What there is to say about limits on this machine: which controllers there are, and whether groups can be made.
pub(super) fn survey() -> Result<String, (String, &'static str)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hierarchies = hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), |path| {
        fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
    });
    let mut able = Vec::new();
    let mut versions = Vec::new();
    let mut why = None;
    for controller in ["memory", "cpu", "cpuset"] {
        let Some(hierarchy) = hierarchies.iter().find(|one| one.has(controller)) else { continue };
        let mut trial = Cgroup { folders: Vec::new(), leaves: Vec::new() };
        match trial.make_leaf(hierarchy, None, &[controller], controller) {
            Ok(_) => {
                able.push(controller);
                versions.push(if hierarchy.version == Version::One { "1" } else { "2" });
            }
            Err(error) => why = Some((error.why, error.remedy)),
        }
    }
    versions.dedup();
    match (able.is_empty(), why) {
        (false, _) => Ok(format!("version {}: {}", versions.join(" and "), able.join(", "))),
        (true, Some((why, remedy))) => Err((format!("no limits of memory and processors: {why}"), remedy)),
        (true, None) => {
            Err(("none".to_owned(), "limits of memory and processors cannot be set: mount cgroup2 at /sys/fs/cgroup"))
        }
    }
}

#[cfg(test)]
mod tests;
