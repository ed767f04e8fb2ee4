//! `RUN --mount`: what is mounted where.
//!
//! In: the flags of a RUN, and the stage so far. Out: [`RunMount`]s, and for files of a build context a step that makes a
//! layer of them. What always holds: targets are absolute and not `/`; numbers are numbers; a mount comes after the one
//! that it lies in.
//!
//! Files of a context are copied by a step of their own, as COPY would copy them onto nothing. So a mount always shows a
//! stack, the step is looked up and kept like any other, and the key of RUN depends on the content of these files alone.

use std::collections::BTreeSet;

use crate::diagnostic::{Diagnostic, Span};
use crate::dockerfile::ast::{Mount, MountKind, Word};

use super::config::{clean, destination};
use super::stage::{Place, Planner, State, Told};
use super::step::{
    ContextId, CopyFrom, CopyOp, CopySource, FileOwner, INTERNAL, MountOp, MountPath, Op, RunMount, Sharing, Stack,
    Step,
};

/// The argument that keeps the caches of different builds apart.
const NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// Where the layer made of a context's files has them.
const PLACE: &str = "/source";

impl Planner<'_> {
    /// The mounts of a RUN. What is wrong with them is told.
    pub(super) fn mounts(&mut self, place: Place<'_>, state: &State, mounts: &[Mount]) -> Vec<RunMount> {
        let mut planned = Vec::with_capacity(mounts.len());
        let mut sockets = 0;
        for mount in mounts {
            planned.extend(self.mount(place, state, mount, &mut sockets).ok());
        }
        // What lies deeper comes later; at the same place the last one is seen.
        planned.sort_by_key(|mount| mount.target.as_deref().map_or(0, |target| target.split('/').count()));
        planned
    }

    fn mount(&mut self, place: Place<'_>, state: &State, mount: &Mount, sockets: &mut usize) -> Result<RunMount, Told> {
        let mount = self.expand_mount(place, state, mount)?;
        let span = place.trigger.and_then(|trigger| trigger.from).map_or(mount.span, |(span, _)| span);
        let text = |word: &Option<Word>| word.as_ref().map(|word| word.text.clone()).filter(|text| !text.is_empty());
        let id = text(&mount.id);
        let mut default_target = None;
        let kind = match mount.kind {
            MountKind::Bind => MountOp::Bind(self.mount_source(place, state, &mount)?),
            MountKind::Cache => self.cache(place, state, &mount)?,
            MountKind::Tmpfs => {
                let size = match &mount.size {
                    None => None,
                    Some(word) => match bytes(&word.text) {
                        Ok(size) => Some(size),
                        Err(why) => return self.fail(place, word.span, format!("invalid size {:?}: {why}", word.text)),
                    },
                };
                MountOp::Tmpfs { size }
            }
            MountKind::Secret => {
                let named = id.or_else(|| text(&mount.source));
                let target = text(&mount.target);
                let base = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
                let id = match (&named, &target) {
                    (Some(id), _) => id.clone(),
                    (None, Some(target)) => base(target),
                    (None, None) => return self.fail(place, mount.span, "a secret mount needs an id"),
                };
                let env = text(&mount.env);
                if target.is_none() && env.is_none() {
                    default_target = Some(format!("/run/secrets/{}", base(&id)));
                }
                if let (Some(env), Some(word)) = (&env, &mount.env)
                    && env.contains(['=', '\0'])
                {
                    return self.fail(place, word.span, format!("{env:?} cannot be the name of a variable"));
                }
                MountOp::Secret { id, env, owner: self.owner(place, &mount, 0o400)?, required: mount.required }
            }
            MountKind::Ssh => {
                default_target = Some(format!("/run/buildkit/ssh_agent.{sockets}"));
                *sockets += 1;
                let id = id.unwrap_or_else(|| "default".to_owned());
                MountOp::Ssh { id, owner: self.owner(place, &mount, 0o600)?, required: mount.required }
            }
        };
        let target = match (&mount.target, default_target, &kind) {
            (Some(word), ..) => Some(self.target(place, state, word)?),
            (None, Some(target), _) => Some(target),
            (None, None, MountOp::Secret { .. }) => None,
            // Without a target it is the working directory.
            (None, None, _) if clean(state.folded.cwd()) != "/" => Some(clean(state.folded.cwd())),
            (None, None, _) => {
                let error = Diagnostic::error(mount.span, format!("a {} mount needs a target", kind.name()));
                self.tell(place, error.help("write target=PATH, the place in the image where the command finds it"));
                return Err(Told);
            }
        };
        let read_only = match kind {
            MountOp::Bind(_) => mount.read_only.unwrap_or(true),
            MountOp::Cache { .. } | MountOp::Tmpfs { .. } => mount.read_only.unwrap_or(false),
            MountOp::Secret { .. } | MountOp::Ssh { .. } => true,
        };
        Ok(RunMount { target, read_only, kind, span })
    }

    /// The mount with all its variables replaced.
    fn expand_mount(&mut self, place: Place<'_>, state: &State, mount: &Mount) -> Result<Mount, Told> {
        let (mut unset, mut size) = (Vec::new(), 0);
        let expanded = mount.expand(&mut |word| match state.variables.expand(&word.text, place.escape) {
            Ok(expanded) => {
                unset.push((word.span, expanded.unset));
                size += expanded.text.len();
                Ok(expanded.text)
            }
            Err(error) => Err(Diagnostic::error(word.span, error.message)),
        });
        for (span, names) in unset {
            self.spend(place, span, std::mem::take(&mut size))?;
            self.note_unset(place, state, span, &names);
        }
        expanded.map_err(|error| {
            self.tell(place, error);
            Told
        })
    }

    fn target(&mut self, place: Place<'_>, state: &State, word: &Word) -> Result<String, Told> {
        let target = clean(&destination(state.folded.cwd(), &word.text));
        if target == "/" {
            let error = Diagnostic::error(word.span, format!("invalid mount target {:?}", word.text));
            self.tell(place, error.help("nothing can be mounted over the root of the image: choose a folder in it"));
            return Err(Told);
        }
        if let Some(own) = KERNELS.iter().find(|own| within(&target, own)).or((target == "/dev").then_some(&"/dev")) {
            let error = Diagnostic::error(word.span, format!("invalid mount target {:?}", word.text));
            self.tell(place, error.help(format!("{own} is the kernel's while a command runs: choose another folder")));
            return Err(Told);
        }
        Ok(target)
    }

    fn cache(&mut self, place: Place<'_>, state: &State, mount: &Mount) -> Result<MountOp, Told> {
        let given = mount.id.as_ref().or(mount.target.as_ref()).map_or("", |word| word.text.as_str());
        let id = match given {
            "" => clean(state.folded.cwd()),
            _ if mount.id.is_some() => given.to_owned(),
            target => clean_relative(target),
        };
        let id = match self.options.argument(NAMESPACE).filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => format!("{namespace}/{}", id.trim_start_matches('/')),
            None => id,
        };
        let sharing = match mount.sharing.as_ref().map(|word| word.text.as_str()) {
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            // Others were refused when the flag was read.
            _ => Sharing::Shared,
        };
        let source = mount.source.as_ref().map_or("", |word| word.text.as_str());
        let seed = if mount.from.is_some() { Some(self.mount_source(place, state, mount)?) } else { None };
        Ok(MountOp::Cache {
            id,
            sharing,
            // What comes from a seed is all that the cache has: it stands at its root.
            path: if seed.is_some() { String::new() } else { clean(&format!("/{source}"))[1..].to_owned() },
            seed,
            mode: self.mode(place, mount)?,
            uid: self.id(place, mount.uid.as_ref(), "uid")?,
            gid: self.id(place, mount.gid.as_ref(), "gid")?,
        })
    }

    /// The files that `from` and `source` name.
    fn mount_source(&mut self, place: Place<'_>, state: &State, mount: &Mount) -> Result<MountPath, Told> {
        let written = mount.source.as_ref().map_or("", |word| word.text.as_str());
        let from = match &mount.from {
            None => CopyFrom::Context(ContextId(0)),
            Some(from) => match self.graph.resolve(from, place.stage, self.options) {
                Ok(origin) => self.copy_from(&origin),
                Err((_, error)) => {
                    self.tell(place, error);
                    return Err(Told);
                }
            },
        };
        let path = clean(&format!("/{written}"));
        Ok(match from {
            CopyFrom::Stack(stack) => MountPath { stack, path },
            CopyFrom::Context(context) => {
                let span = mount.source.as_ref().map_or(mount.span, |word| word.span);
                MountPath { stack: self.load(place, state, context, &path, span), path: PLACE.to_owned() }
            }
        })
    }

    /// A step that makes a layer of files of a context: one for all mounts of the same files.
    fn load(&mut self, place: Place<'_>, state: &State, context: ContextId, path: &str, span: Span) -> Stack {
        let op = Op::Copy(CopyOp {
            sources: vec![CopySource::Path(literal(path))],
            from: CopyFrom::Context(context),
            destination: PLACE.to_owned(),
            ..CopyOp::plain()
        });
        let what = match &self.plan.contexts[context.0].name {
            None => "the build context".to_owned(),
            Some(name) => format!("the context {name}"),
        };
        let name = match path {
            "/" => format!("{INTERNAL}load {what}"),
            path => format!("{INTERNAL}load {} of {what}", &path[1..]),
        };
        let same = |step: &Step| step.name == name && matches!((&step.op, &op), (Op::Copy(a), Op::Copy(b)) if a == b);
        if let Some(known) = self.plan.steps.iter().position(same) {
            return Stack::Step(super::step::StepId(known));
        }
        let span = place.trigger.and_then(|trigger| trigger.from).map_or(span, |(span, _)| span);
        Stack::Step(self.push(Step {
            parent: Stack::Scratch,
            op,
            platform: state.platform.clone(),
            span,
            lines: place.lines(),
            name,
            no_cache: self.no_cache(place.stage),
        }))
    }

    fn owner(&mut self, place: Place<'_>, mount: &Mount, mode: u32) -> Result<FileOwner, Told> {
        Ok(FileOwner {
            mode: self.mode(place, mount)?.unwrap_or(mode),
            uid: self.id(place, mount.uid.as_ref(), "uid")?.unwrap_or(0),
            gid: self.id(place, mount.gid.as_ref(), "gid")?.unwrap_or(0),
        })
    }

    fn mode(&mut self, place: Place<'_>, mount: &Mount) -> Result<Option<u32>, Told> {
        let Some(word) = &mount.mode else { return Ok(None) };
        match u32::from_str_radix(&word.text, 8).ok().filter(|mode| *mode <= 0o7777) {
            Some(mode) => Ok(Some(mode)),
            None => {
                let error = Diagnostic::error(word.span, format!("invalid value {} for mode", word.text));
                self.tell(place, error.help("a mode is an octal number from 0 to 7777, such as 0640"));
                Err(Told)
            }
        }
    }

    fn id(&mut self, place: Place<'_>, word: Option<&Word>, what: &str) -> Result<Option<u32>, Told> {
        let Some(word) = word else { return Ok(None) };
        // The largest number means "nobody" to the system calls that set owners.
        match word.text.parse::<u32>().ok().filter(|id| *id < u32::MAX) {
            Some(id) => Ok(Some(id)),
            None => {
                let error = Diagnostic::error(word.span, format!("invalid value {} for {what}", word.text));
                self.tell(place, error.help(format!("{what} is a number; names are not looked up for mounts")));
                Err(Told)
            }
        }
    }
}

/// Where nothing of an image is while a command runs, and nothing can be put.
const KERNELS: [&str; 2] = ["/proc", "/sys"];

fn within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path cleaned as text, relative as it was written.
fn clean_relative(path: &str) -> String {
    if path.starts_with('/') {
        return clean(path);
    }
    let cleaned = clean(&format!("/{path}"));
    if cleaned == "/" { ".".to_owned() } else { cleaned[1..].to_owned() }
}

/// The pattern that matches this path and nothing else.
pub(crate) fn literal(path: &str) -> String {
    let special: BTreeSet<char> = ['*', '?', '[', '\\'].into();
    let escape = |letter: char| special.contains(&letter).then_some('\\').into_iter().chain([letter]);
    path.chars().flat_map(escape).collect()
}

/// The path that [`literal`] made a pattern of.
pub(crate) fn written(pattern: &str) -> String {
    let mut letters = pattern.chars();
    let next = || letters.next().and_then(|letter| if letter == '\\' { letters.next() } else { Some(letter) });
    std::iter::from_fn(next).collect()
}

/// A number of bytes: `64m`, `1g`, `512k`, `1024`, `1.5GB`; units are powers of 1024, as Docker's are.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a size in bytes, such as 67108864, 64m or 1g".to_owned();
    let lower = text.trim().to_lowercase();
    let digits = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    let size = number * (1_u64 << shift) as f64;
    // 2^53: up to here a float holds every whole number.
    if size.is_finite() && size < 9_007_199_254_740_992.0 { Ok(size as u64) } else { Err(expected()) }
}
