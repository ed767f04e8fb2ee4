//! A step that failed, told at the word that is to blame.
//!
//! In: what the engine says, the step, the Dockerfile, and whether there is a context. Out: one diagnostic with what happened, where, why and what
//! to do. What always holds: a step that comes from no instruction of the file (a trigger of the base) is told at the
//! FROM that brought it.

use crate::diagnostic::{Diagnostic, Source, Span};
use crate::dockerfile::ast::{self, Dockerfile, Instruction, InstructionKind, Stage, Word};
use crate::exec::Exit;
use crate::exec::emulator::NoEmulator;
use crate::plan::remote::without_password;
use crate::plan::step::{ContextId, CopyFrom, CopyOp, CopySource, Op, RunOp, Stack, Step};
use crate::solve::copy::CopyError;
use crate::solve::{self, Cause};

/// What to tell of `error` in `step`. `tail` is the end of what the step's command wrote.
pub(super) fn diagnostic<'a>(
    error: &Cause,
    step: &Step,
    dockerfile: &Dockerfile,
    source: &Source,
    has_context: bool,
    tail: impl IntoIterator<Item = &'a str>,
) -> Diagnostic {
    let place = find(dockerfile, step.span);
    let diagnostic = match (error, &step.op) {
        (Cause::Command { exit, .. }, Op::Run(op)) => command(*exit, op, step, dockerfile, tail),
        (Cause::Copy(error), op) => {
            copy(error, op, step.span, place.map(|(_, instruction)| &instruction.kind), has_context)
        }
        (Cause::Remote { source_text, .. }, op) => {
            let words = place.and_then(|(_, instruction)| Words::of(&instruction.kind));
            let span = words.and_then(|words| words.source(source_text, op)).unwrap_or(step.span);
            Diagnostic::error(span, error.to_string()).label("cannot be fetched")
        }
        (Cause::Mount { span, why, help }, _) => {
            let diagnostic = Diagnostic::error(if place.is_some() { *span } else { step.span }, why.as_str());
            help.iter().fold(diagnostic, |diagnostic, help| diagnostic.help(help.as_str()))
        }
        (Cause::User(why), _) => user(why, step, place, source),
        (Cause::Emulator(error), _) => emulator(error, step.span),
        (other, _) => Diagnostic::error(step.span, other.to_string()),
    };
    let diagnostic = with_causes(diagnostic, error);
    match place {
        Some(_) => diagnostic,
        None => diagnostic.help(format!("the step is {}, which the base brings with it", step.name)),
    }
}

/// The instruction that `span` is or lies in, and its stage.
fn find(dockerfile: &Dockerfile, span: Span) -> Option<(&Stage, &Instruction)> {
    let with = |stage| move |instruction| (stage, instruction);
    let mut all = dockerfile.stages.iter().flat_map(|stage: &Stage| stage.instructions.iter().map(with(stage)));
    // A step that loads files for a mount is at that mount.
    all.find(|(_, instruction)| instruction.span.start <= span.start && span.end <= instruction.span.end)
}

/// The chain of causes below an error, each told once.
fn with_causes(mut diagnostic: Diagnostic, error: &Cause) -> Diagnostic {
    if matches!(error, Cause::Copy(CopyError::Chown { .. })) {
        return diagnostic; // told in full
    }
    let mut said = diagnostic.message.clone();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let text = next.to_string();
        if !said.contains(&text) {
            diagnostic = diagnostic.help(format!("caused by: {text}"));
            said = text;
        }
        cause = next.source();
    }
    diagnostic
}

/// A command for another architecture.
fn emulator(error: &NoEmulator, span: Span) -> Diagnostic {
    let NoEmulator { platform, here, why, help } = error;
    Diagnostic::error(span, format!("RUN for {platform} needs an emulator on a machine that is {here}: {why}"))
        .help(help)
        .help("the platform is that of the stage's FROM, of --platform or of DOCKER_DEFAULT_PLATFORM; a stage that begins with FROM --platform=$BUILDPLATFORM needs none")
}

/// A command that did not succeed.
fn command<'a>(
    exit: Exit,
    op: &RunOp,
    step: &Step,
    dockerfile: &Dockerfile,
    tail: impl IntoIterator<Item = &'a str>,
) -> Diagnostic {
    // BuildKit's sentence, which scripts look for; the excerpt below it has the whole of a long command.
    let (shown, how) = (shortened(&op.args.join(" ")), solve::describe_exit(&exit));
    let message = format!("process \"{shown}\" did not complete successfully: {how}");
    let mut diagnostic = Diagnostic::error(step.span, message);
    if exit == Exit::Signal(9) {
        diagnostic =
            diagnostic.help("if nobody did that, memory ran out: the kernel's log has a line about it (`dmesg`)");
    }
    let program = op.args.first().map_or("", String::as_str);
    let unknown = format!("exec: \"{program}\": no such file");
    if tail.into_iter().any(|line| line.starts_with(&unknown)) {
        diagnostic = diagnostic.help(if step.parent == Stack::Scratch {
            "scratch has no files at all: begin with a base that has a shell, or COPY a static program before".to_owned()
        } else {
            format!("the image has no {program} (or not the loader that it names): it takes another base, SHELL, or RUN [\"program\", \"argument\"]")
        });
    }
    for name in unseen(op, dockerfile) {
        diagnostic = diagnostic.help(format!(
            "{name} was declared before the first FROM, where only FROM sees it: write ARG {name} in this stage too"
        ));
    }
    diagnostic
}

/// The first line of a command, and of that no more than fits into a line.
fn shortened(command: &str) -> String {
    const MOST: usize = 80;
    let line = command.lines().next().unwrap_or_default();
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < command.len() => format!("{line}…"),
        None => line.to_owned(),
    }
}

/// The ARGs from before the first FROM that a command uses and does not see.
fn unseen<'a>(op: &RunOp, dockerfile: &'a Dockerfile) -> Vec<&'a str> {
    let script = op.args.iter().chain(op.script.iter().map(|(_, content)| content));
    let used: Vec<&str> = script.flat_map(|text| text.split('$').skip(1)).map(variable).collect();
    let seen = |name: &str| {
        op.env.iter().chain(&op.proxy_env).any(|entry| entry.split_once('=').is_some_and(|(known, _)| known == name))
    };
    let mut names: Vec<&str> = Vec::new();
    for instruction in &dockerfile.global_args {
        let InstructionKind::Arg(declared) = &instruction.kind else { continue };
        for name in declared.iter().map(|declaration| declaration.name.text.as_str()) {
            if used.contains(&name) && !seen(name) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// The name that stands after a `$`, braces left out.
fn variable(after: &str) -> &str {
    let name = after.strip_prefix('{').unwrap_or(after);
    let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(name.len());
    &name[..end]
}

/// USER says somebody whom the image does not know: told at that USER.
fn user(why: &str, step: &Step, place: Option<(&Stage, &Instruction)>, source: &Source) -> Diagnostic {
    let before = |instruction: &&Instruction| instruction.span.start < step.span.start;
    let set = place.and_then(|(stage, _)| {
        stage.instructions.iter().filter(before).rev().find_map(|instruction| match &instruction.kind {
            InstructionKind::User(word) => Some(word.span),
            _ => None,
        })
    });
    let help = "use a number, or create the user with RUN before";
    match set {
        Some(span) => {
            let needed = format!("line {} needs it", source.line(step.span.start));
            Diagnostic::error(span, why).label(needed).help(help)
        }
        None => Diagnostic::error(step.span, why).help(format!("USER is set by the base; {help}")),
    }
}

/// The words of COPY and ADD.
struct Words<'a> {
    sources: Vec<&'a Word>,
    destination: &'a Word,
    chown: Option<&'a Word>,
    exclude: &'a [Word],
    from: Option<&'a Word>,
}

impl<'a> Words<'a> {
    fn of(kind: &'a InstructionKind) -> Option<Self> {
        let paths = |sources: &'a [ast::Source]| {
            let path = |source: &'a ast::Source| match source {
                ast::Source::Path(word) => Some(word),
                ast::Source::Heredoc(_) => None,
            };
            sources.iter().filter_map(path).collect()
        };
        match kind {
            InstructionKind::Copy(copy) => Some(Self {
                sources: paths(&copy.sources),
                destination: &copy.destination,
                chown: copy.chown.as_ref(),
                exclude: &copy.exclude,
                from: copy.from.as_ref(),
            }),
            InstructionKind::Add(add) => Some(Self {
                sources: paths(&add.sources),
                destination: &add.destination,
                chown: add.chown.as_ref(),
                exclude: &add.exclude,
                from: None,
            }),
            _ => None,
        }
    }

    /// The source that came to be `text` when its variables were expanded.
    fn source(&self, text: &str, op: &Op) -> Option<Span> {
        let Op::Copy(CopyOp { sources, .. }) = op else { return None };
        // The planner puts paths first, in their order.
        let at = sources.iter().position(|source| match source {
            CopySource::Path(path) => path == text,
            CopySource::Remote(remote) => remote.text == text || without_password(&remote.text) == text,
            CopySource::Inline { .. } => false,
        })?;
        self.sources.get(at).map(|word| word.span)
    }
}

fn copy(error: &CopyError, op: &Op, whole: Span, kind: Option<&InstructionKind>, has_context: bool) -> Diagnostic {
    let words = kind.and_then(Words::of);
    let source = |text: &str| words.as_ref().and_then(|words| words.source(text, op)).unwrap_or(whole);
    let destination = match kind {
        Some(InstructionKind::Workdir(word)) => word.span,
        _ => words.as_ref().map_or(whole, |words| words.destination.span),
    };
    match error {
        CopyError::NotFound { source_text, place, reason, near } => {
            let from = words.as_ref().and_then(|words| words.from);
            let place = from.map_or_else(|| place.clone(), |from| format!("the files of --from={}", from.text));
            let span = source(source_text);
            if from.is_none() && !has_context && op_reads_main_context(op) {
                return Diagnostic::error(span, format!("\"{source_text}\" not found: there is no build context"))
                    .help("with the Dockerfile on standard input, give the folder as well: rbuild -f - DIR");
            }
            // What RUN mounts was made a pattern.
            let mounted = if words.is_none() { crate::plan::written(source_text) } else { source_text.clone() };
            let diagnostic = Diagnostic::error(span, format!("\"{mounted}\" not found in {place}"));
            let diagnostic = match (near.as_slice(), reason) {
                (_, Some(reason)) => diagnostic.label(reason.as_str()),
                ([], None) => diagnostic.label("not found"),
                (near, None) => {
                    let slash = if source_text.starts_with('/') { "/" } else { "" };
                    let quoted = near.iter().map(|name| format!("\"{slash}{}\"", name.trim_start_matches('/')));
                    diagnostic.label(format!("did you mean {}?", quoted.collect::<Vec<_>>().join(" or ")))
                }
            };
            if from.is_none() && source_text.split('/').any(|part| part == "..") {
                return diagnostic.help(
                    "nothing outside of the context can be copied: build from a folder above, or give the other folder \
                     with --build-context NAME=DIR and write COPY --from=NAME",
                );
            }
            diagnostic
        }
        CopyError::NeedsDirectory { destination: text, count } => {
            Diagnostic::error(destination, format!("{count} sources, and {text:?} is no directory"))
                .label("must be a directory")
                .help(format!("end it with a slash: \"{text}/\""))
        }
        CopyError::Chown { value, why } => {
            let span = words.as_ref().and_then(|words| words.chown).map_or(whole, |word| word.span);
            Diagnostic::error(span, format!("--chown={value}: {why}"))
                .help("use a number, or create the user with RUN before")
        }
        CopyError::BadWildcard { source_text, .. } => Diagnostic::error(source(source_text), error.to_string()),
        CopyError::Archive { archive, .. } => Diagnostic::error(source(archive), error.to_string()),
        CopyError::Exclude(_) => {
            let first = words.as_ref().and_then(|words| words.exclude.first());
            Diagnostic::error(first.map_or(whole, |word| word.span), error.to_string())
        }
        CopyError::TooManyLinks { path } => {
            let sources = words.iter().flat_map(|words| &words.sources);
            let named = sources.into_iter().find(|word| word.text.trim_start_matches('/') == path);
            Diagnostic::error(named.map_or(destination, |word| word.span), error.to_string())
        }
        CopyError::DirectoryOntoOther { .. }
        | CopyError::OtherOntoDirectory { .. }
        | CopyError::NotADirectory { .. } => Diagnostic::error(destination, error.to_string()),
        other => Diagnostic::error(whole, other.to_string()),
    }
}

fn op_reads_main_context(op: &Op) -> bool {
    matches!(op, Op::Copy(CopyOp { from: CopyFrom::Context(ContextId(0)), .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_the_shell_ends_them() {
        for (after, expected) in [("A b", "A"), ("{A_1:-x}", "A_1"), ("\"", ""), ("A", "A"), ("$", ""), ("é", "")] {
            assert_eq!(variable(after), expected, "{after}");
        }
    }

    #[test]
    fn an_argument_from_before_from_is_found_where_it_is_not_seen() {
        let text = "ARG A=1 B=2 C\nFROM x\n";
        let source = Source { name: "Dockerfile".into(), text: text.into() };
        let dockerfile = crate::dockerfile::parse(&source).dockerfile;
        let op = |script: &str, env: &[&str]| RunOp {
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            script: None,
            env: env.iter().map(|entry| (*entry).to_owned()).collect(),
            proxy_env: Vec::new(),
            cwd: "/".into(),
            user: String::new(),
            network: crate::plan::step::Network::Default,
            hostname: None,
            security: crate::plan::limits::Security::Sandbox,
            limits: crate::plan::limits::RunLimits::default(),
            shell: Vec::new(),
            mounts: Vec::new(),
        };
        for (script, env, expected) in [
            ("echo $A ${B} $A", &[][..], vec!["A", "B"]),
            ("echo $A $AB B", &[], vec!["A"]),
            ("echo $A $C", &["A=", "CC=1"], vec!["C"]),
            ("echo A", &[], vec![]),
        ] {
            assert_eq!(unseen(&op(script, env), &dockerfile), expected, "{script}");
        }
    }
}
