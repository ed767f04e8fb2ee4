//! RUN: a command in a sandbox over the trees below it, and the layer of what it changed.
//!
//! In: the operation, the stack below. Out: a new layer as tree and index. What always holds: the command's output is
//! passed on as it comes, and its last part is kept for the error; after a failure nothing of the step stays.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::mask::Held;
use super::step::{NewLayer, StackState};
use super::{Cause, Inside, Solver};
use crate::event::{Event, Stream};
use crate::exec::{Ended, Exit, FILES_PUT_IN, FOLDERS_PUT_IN, Isolation, ProcessSpec, RootFs, emulator};
use crate::image::accounts;
use crate::image::platform::Platform;
use crate::layer::stack::LayerStack;
use crate::plan::limits::Security;
use crate::plan::step::{Network, Op, RunOp, StepId};
use crate::snapshot::copied::{self, Noted};
use crate::snapshot::diff;
use crate::store::StoreError;
use crate::store::layers::Form;
use crate::store::lease::remove_tree;

/// The name that a sandbox has unless `BUILDKIT_SANDBOX_HOSTNAME` says otherwise: scripts look for it.
const HOSTNAME: &str = "buildkitsandbox";

/// The variable that says where an agent's socket is.
pub(super) const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";

/// How much of a command's output is kept for the error.
const TAIL: usize = 16 << 10;

impl Solver<'_> {
    pub(super) fn run(&self, id: StepId, op: &RunOp, below: &StackState) -> Result<NewLayer, Cause> {
        let can_copy = needs_mounts(op).is_none() && !self.engine.keep_failed;
        let copied = match self.engine.sandbox.isolation {
            Isolation::Namespace => false,
            Isolation::Chroot => true,
            Isolation::Auto => can_copy && self.refused.get().is_some(),
        };
        match self.run_in(id, op, below, copied) {
            Err(Cause::Sandbox(error))
                if !copied && can_copy && self.engine.sandbox.isolation == Isolation::Auto && error.is_refusal() =>
            {
                if self.refused.set(()).is_ok() {
                    let mut note = format!(
                        "warning: RUN is contained by a root directory alone (--isolation chroot), since namespaces are refused: {error}"
                    );
                    let is_wanted =
                        |asks: AsksFor| self.plan.steps.iter().any(|step| matches!(&step.op, Op::Run(op) if asks(op)));
                    let lost: Vec<_> =
                        LOST_IN_COPIES.iter().filter(|(_, asks)| is_wanted(*asks)).map(|(what, _)| *what).collect();
                    if !lost.is_empty() {
                        note.push_str(&format!("\nthere it does not have what {} asks for", lost.join(" and ")));
                    }
                    self.engine.events.event(Event::Note(&note));
                }
                self.run_in(id, op, below, true)
            }
            done => done,
        }
    }

    /// Runs it in namespaces over the trees below, or in a copy of them.
    fn run_in(&self, id: StepId, op: &RunOp, below: &StackState, copied: bool) -> Result<NewLayer, Cause> {
        let engine = self.engine;
        let options = self.trees.get().expect("trees are prepared before a RUN is carried out");
        let view = self.checked_view(below)?;
        let step = &self.plan.steps[id.0];
        let Inside { rootfs, process, held: prepared } =
            self.prepare(op, &step.platform, below, &view, step.no_cache, copied)?;
        // The file system's own clock, which is coarser than the system's: files that the command writes are not older.
        let stamp = rootfs.work.with_file_name("began");
        let noted = if copied { Some(Noted::of(&rootfs.upper, &stamp)?) } else { None };
        let began = File::create(&stamp)
            .and_then(|file| file.metadata()?.modified())
            .map_err(StoreError::io("make", &stamp))?;

        let tail = Mutex::new(Vec::new());
        let held: [Mutex<Held>; 2] = Default::default();
        let pass = |stream, bytes: &[u8]| {
            keep_tail(&mut tail.lock().unwrap_or_else(PoisonError::into_inner), bytes);
            engine.events.event(Event::Output(id, stream, bytes));
        };
        let held_of = |stream| {
            let held = &held[usize::from(stream == Stream::Stderr)];
            held.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let ran = engine.sandbox.run_noting(
            &rootfs,
            &process,
            &|stream, bytes: &[u8]| {
                prepared.mask.pass(&mut held_of(stream), bytes, &mut |bytes| pass(stream, bytes));
            },
            engine.cancel,
        );
        for stream in [Stream::Stdout, Stream::Stderr] {
            prepared.mask.end(&mut held_of(stream), &mut |bytes| pass(stream, bytes));
        }
        let Ended { exit, left, put_in } = ran?;
        prepared.clear(&left)?;
        if engine.keep_failed && matches!(exit, Exit::Code(1..) | Exit::Signal(_)) {
            let process = ProcessSpec { args: op.interactive_shell(), ..process };
            let inside = Inside { rootfs, process, held: prepared };
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((id, inside));
            let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
            return Err(Cause::Command { exit, tail });
        }
        drop(prepared);
        if !op.mounts.is_empty() {
            // What was written to binds can be much. What cannot be removed now goes with the lease.
            drop(remove_tree(&rootfs.work.with_file_name("mounts")));
        }
        match exit {
            Exit::Code(0) => {}
            Exit::Canceled => return Err(Cause::Canceled),
            exit => {
                let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
                return Err(Cause::Command { exit, tail });
            }
        }
        if let Some(noted) = noted {
            copied::to_upper(&rootfs.upper, &noted, &hidden(&view), &put_in)?;
        }
        let index = diff::commit(&rootfs.upper, &view, began, options)?;
        Ok(NewLayer { index, form: Form::Tree(rootfs.upper) })
    }

    /// A shell where a stage stands.
    pub(super) fn shell(&self, op: &RunOp, platform: &Platform, below: &StackState) -> Result<Inside, Cause> {
        let inside = self.prepare(op, platform, below, &self.checked_view(below)?, false, false)?;
        Ok(Inside { process: ProcessSpec { args: op.interactive_shell(), ..inside.process }, ..inside })
    }

    /// The file system of a command, with nothing changed in it yet, its mounts, and its surroundings.
    fn prepare(
        &self,
        op: &RunOp,
        platform: &Platform,
        below: &StackState,
        view: &LayerStack,
        no_cache: bool,
        copied: bool,
    ) -> Result<Inside, Cause> {
        let options = self.trees.get().expect("trees are prepared before a RUN is carried out");
        let mut process = self.process(op, platform, view)?;
        let folder = self.engine.lease.fresh_path();
        fs::create_dir(&folder).map_err(StoreError::io("make", &folder))?;
        let (lower, upper) = if copied {
            (Vec::new(), self.stacks.flatten(&below.layers, options)?)
        } else {
            let upper = folder.join("upper");
            fs::create_dir(&upper).map_err(StoreError::io("make", &upper))?;
            (self.stacks.trees(&below.layers, options)?, upper)
        };
        let mut held = self.prepare_mounts(op, &folder.join("mounts"), no_cache)?;
        add_variables(&mut process.env, &held.env);
        let mounts = std::mem::take(&mut held.mounts);
        let rootfs = RootFs { lower, upper, work: folder.join("work"), mounts, copied };
        fs::create_dir(&rootfs.work).map_err(StoreError::io("make", &rootfs.work))?;
        take_root_metadata(&rootfs.upper, view).map_err(StoreError::io("make", &rootfs.upper))?;
        Ok(Inside { rootfs, process, held })
    }

    fn process(&self, op: &RunOp, platform: &Platform, view: &LayerStack) -> Result<ProcessSpec, Cause> {
        let identity = accounts::user(&op.user, view.linked_bytes(b"etc/passwd"), view.linked_bytes(b"etc/group"))
            .map_err(|error| Cause::User(error.to_string()))?;
        let mut env = op.env.clone();
        env.extend(op.proxy_env.iter().cloned());
        if !env.iter().any(|pair| pair.starts_with("HOME=")) {
            env.push(format!("HOME={}", identity.home));
        }
        Ok(ProcessSpec {
            args: op.args.clone(),
            env,
            cwd: op.cwd.clone(),
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            hostname: op.hostname.clone().unwrap_or_else(|| HOSTNAME.to_owned()),
            network: op.network,
            script: op.script.clone(),
            extra_hosts: self.engine.extra_hosts.to_vec(),
            shm_size: op.limits.shm_size,
            security: op.security,
            ulimits: op.limits.ulimits.clone(),
            linux32: emulator::is_32_bits_here(platform),
            cgroup_parent: op.limits.cgroup_parent.clone(),
        })
    }
}

/// Where things of the machine are put in a copy: whatever is there then is no part of what a command changes.
fn hidden(view: &LayerStack) -> Vec<Vec<u8>> {
    let folders = FOLDERS_PUT_IN.iter().map(|name| name.as_bytes().to_vec());
    // A circle of links has no end, and no file was put there.
    let files = FILES_PUT_IN.iter().filter_map(|path| view.resolve(path.as_bytes(), true).ok());
    folders.chain(files).collect()
}

/// Whether a RUN asks for something.
type AsksFor = fn(&RunOp) -> bool;

/// What a command can do without, and does not have in a copy: what asks for it, and whether a RUN does.
pub const LOST_IN_COPIES: [(&str, AsksFor); 2] =
    [("--shm-size", |op| op.limits.shm_size != 0), ("BUILDKIT_SANDBOX_HOSTNAME", |op| op.hostname.is_some())];

/// What of a RUN takes namespaces or mounts: it cannot be had in a copy.
pub fn needs_mounts(op: &RunOp) -> Option<&'static str> {
    if !op.mounts.is_empty() {
        Some("RUN --mount")
    } else if op.network == Network::None {
        Some("RUN without a network")
    } else if op.security == Security::Insecure {
        Some("RUN --security=insecure")
    } else {
        None
    }
}

/// Gives the upper folder the mode and owner of the image's root: the overlay shows the upper's, and 0700 would lock
/// every USER out.
pub(super) fn take_root_metadata(upper: &Path, view: &LayerStack) -> io::Result<()> {
    let root = view.root_metadata();
    std::os::unix::fs::chown(upper, Some(root.uid), Some(root.gid))?;
    fs::set_permissions(upper, std::os::unix::fs::PermissionsExt::from_mode(root.mode))
}

/// Sets variables of mounts: that of a secret wins over one of the image, that of an agent does not.
fn add_variables(env: &mut Vec<String>, variables: &[(String, String)]) {
    for (name, value) in variables {
        let is_named = |entry: &String| entry.split_once('=').is_some_and(|(known, _)| known == name);
        if name == SSH_AUTH_SOCK && env.iter().any(is_named) {
            continue;
        }
        env.retain(|entry| !is_named(entry));
        env.push(format!("{name}={value}"));
    }
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    if tail.len() > 2 * TAIL {
        tail.drain(..tail.len() - TAIL);
    }
}
