//! Nodes become typed instructions, checked one by one.
//!
//! In: a [`Node`]. Out: a [`Stage`] or an [`Instruction`], or diagnostics that say why not. What always holds: what is
//! accepted here is what Docker accepts before it knows images, variables and stages; nothing of a node is dropped.

use super::ast::{
    Add, ArgDeclaration, CommandLine, Copy, Escape, Healthcheck, Instruction, InstructionKind, Mount, Run, Source,
    Stage, Word,
};
use super::flags::{Flags, duration, meant};
use super::heredoc::Opener;
use super::node::{Keyword, Node};
use crate::diagnostic::{Diagnostic, Severity, Span, nearest};

/// What a node turns out to be.
#[derive(Debug)]
pub(super) enum Typed {
    Stage(Stage),
    Instruction(Instruction),
}

/// Reads one node. `None`, and at least one error, if it is wrong.
pub(super) fn typed(node: &Node, escape: Escape, diagnostics: &mut Vec<Diagnostic>) -> Option<Typed> {
    if !node.sound {
        return None;
    }
    if node.keyword == Keyword::From {
        return Checker { node, escape, diagnostics }.stage().map(Typed::Stage);
    }
    let kind = Checker { node, escape, diagnostics }.kind()?;
    Some(Typed::Instruction(Instruction { kind, span: node.span, lines: node.lines, text: node.text.clone() }))
}

struct Checker<'a> {
    node: &'a Node,
    escape: Escape,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Checker<'_> {
    fn kind(&mut self) -> Option<InstructionKind> {
        Some(match self.node.keyword {
            Keyword::Unknown | Keyword::From => return self.fail(self.unknown()),
            Keyword::Arg => InstructionKind::Arg(self.declarations()?),
            Keyword::Env => InstructionKind::Env(self.pairs()?),
            Keyword::Label => InstructionKind::Label(self.pairs()?),
            Keyword::Run => InstructionKind::Run(self.run()?),
            Keyword::Copy => InstructionKind::Copy(self.copy()?),
            Keyword::Add => InstructionKind::Add(self.add()?),
            Keyword::Workdir => InstructionKind::Workdir(self.one_argument("WORKDIR /app")?),
            Keyword::User => InstructionKind::User(self.one_argument("USER app")?),
            Keyword::StopSignal => InstructionKind::StopSignal(self.one_argument("STOPSIGNAL SIGTERM")?),
            Keyword::Maintainer => {
                InstructionKind::Maintainer(self.one_argument("LABEL org.opencontainers.image.authors=\"…\"")?)
            }
            Keyword::Expose => {
                self.no_flags()?;
                InstructionKind::Expose(self.arguments("EXPOSE 80")?.to_vec())
            }
            Keyword::Volume => InstructionKind::Volume(self.volumes()?),
            Keyword::Cmd => {
                self.no_flags()?;
                InstructionKind::Cmd(command_line(self.node, &self.node.args))
            }
            Keyword::Entrypoint => {
                self.no_flags()?;
                InstructionKind::Entrypoint(command_line(self.node, &self.node.args))
            }
            Keyword::Shell => InstructionKind::Shell(self.shell()?),
            Keyword::Healthcheck => InstructionKind::Healthcheck(self.healthcheck()?),
            Keyword::OnBuild => self.on_build()?,
        })
    }

    fn fail<T>(&mut self, diagnostic: Diagnostic) -> Option<T> {
        self.diagnostics.push(diagnostic);
        None
    }

    fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.node.span, message)
    }

    fn flags(&mut self) -> Option<Flags> {
        Flags::read(self.node, self.diagnostics)
    }

    fn no_flags(&mut self) -> Option<()> {
        self.flags().map(drop)
    }

    fn unknown(&self) -> Diagnostic {
        let name = &self.node.name;
        // What is no text at all can be one word of any length.
        let shown = match name.text.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &name.text[..end]),
            None => name.text.clone(),
        };
        let error = Diagnostic::error(name.span, format!("unknown instruction: {shown}"));
        match meant(&name.text, Keyword::ALL.iter().map(|keyword| keyword.name())) {
            Some(meant) => error.label(format!("did you mean {meant}?")),
            None => error.label("no instruction has this name").help(
                "if this line belongs to the one above, that line must end with the escape character; a here-document \
                 (RUN <<EOF) keeps longer scripts together",
            ),
        }
    }

    fn arguments(&mut self, example: &str) -> Option<&[Word]> {
        if self.node.args.is_empty() {
            let name = self.node.keyword.name();
            let error = self.error(format!("{name} requires at least one argument"));
            return self.fail(error.help(format!("for instance: {example}")));
        }
        Some(&self.node.args)
    }

    fn one_argument(&mut self, example: &str) -> Option<Word> {
        let name = self.node.keyword.name();
        let flags = self.no_flags();
        if let [word] = self.node.args.as_slice() {
            flags.map(|()| word.clone())
        } else {
            let error = self.error(format!("{name} requires exactly one argument"));
            self.fail(error.help(format!("for instance: {example}")))
        }
    }

    fn stage(&mut self) -> Option<Stage> {
        let flags = self.flags();
        let name = match self.node.args.as_slice() {
            [_] => None,
            [_, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => {
                let lower = name.text.to_lowercase();
                if !is_stage_name(&lower) {
                    return self.fail(
                        Diagnostic::error(
                            name.span,
                            format!(
                                "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                                name.text
                            ),
                        )
                        .help("a letter, then letters, digits, '-', '_' and '.'"),
                    );
                }
                Some(Word { text: lower, span: name.span })
            }
            words => {
                let error = match words {
                    [_, keyword, ..] => Diagnostic::error(keyword.span, "FROM requires either one or three arguments"),
                    _ => self.error("FROM requires either one or three arguments"),
                };
                return self.fail(error.help("write FROM IMAGE, or FROM IMAGE AS NAME"));
            }
        };
        let [image, ..] = self.node.args.as_slice() else { return None };
        Some(Stage {
            image: image.clone(),
            platform: flags?.text("platform"),
            description: name.as_ref().and_then(|name| self.node.description(&name.text)),
            name,
            span: self.node.span,
            lines: self.node.lines,
            instructions: Vec::new(),
        })
    }

    fn declarations(&mut self) -> Option<Vec<ArgDeclaration>> {
        self.arguments("ARG VERSION=1.0")?;
        let mut declarations = Vec::with_capacity(self.node.args.len());
        for word in &self.node.args {
            let (name, default) = match word.text.split_once('=') {
                Some((name, default)) => (name, Some(default)),
                None => (word.text.as_str(), None),
            };
            if name.is_empty() {
                return self.fail(blank_name(self.node.keyword, word.span));
            }
            let exact = word.span.end - word.span.start == word.text.len();
            let part = |text: &str, start: usize| Word {
                text: text.to_owned(),
                span: if exact {
                    Span::new(word.span.start + start, word.span.start + start + text.len())
                } else {
                    word.span
                },
            };
            declarations.push(ArgDeclaration {
                name: part(name, 0),
                default: default.map(|default| part(default, name.len() + 1)),
                description: self.node.description(name),
            });
        }
        Some(declarations)
    }

    fn pairs(&mut self) -> Option<Vec<(Word, Word)>> {
        self.no_flags()?;
        let name = self.node.keyword.name();
        self.arguments(&format!("{name} KEY=value"))?;
        let mut pairs = Vec::with_capacity(self.node.args.len() / 3);
        for chunk in self.node.args.chunks(3) {
            let [key, value, ..] = chunk else { continue }; // nodes have three words for each pair
            if key.text.is_empty() {
                let span = Span::new(key.span.start, value.span.end);
                return self.fail(blank_name(self.node.keyword, span));
            }
            pairs.push((key.clone(), value.clone()));
        }
        Some(pairs)
    }

    fn run(&mut self) -> Option<Run> {
        let flags = self.flags()?;
        let mut mounts = Vec::new();
        let mut sound = true;
        for flag in self.node.flags.iter().filter(|flag| flag.name == "mount") {
            // Flags::read has refused a --mount without a value.
            let Some(value) = &flag.value else { continue };
            match Mount::read(value, flag.word.span) {
                Ok(mount) => mounts.push(mount),
                Err(error) => {
                    self.diagnostics.push(error);
                    sound = false;
                }
            }
        }
        let network = flags.given_text("network");
        let security = flags.given_text("security");
        for (what, word, choices) in [
            ("network mode", &network, &["default", "none", "host"] as &[&str]),
            ("security mode", &security, &["sandbox", "insecure"]),
        ] {
            let Some(word) = word.as_ref().filter(|word| !choices.contains(&word.text.as_str())) else { continue };
            let error = Diagnostic::error(word.span, format!("invalid {what} {:?}", word.text));
            self.diagnostics.push(
                match meant(&word.text, choices.iter().copied()) {
                    Some(meant) => error.label(format!("did you mean {meant}?")),
                    None => error,
                }
                .help(format!("there are {}", choices.join(", "))),
            );
            sound = false;
        }
        sound.then(|| Run {
            command: command_line(self.node, &self.node.args),
            heredocs: self.node.heredocs.clone(),
            mounts,
            network,
            security,
            devices: flags.list("device"),
        })
    }

    fn sources(&mut self) -> Option<(Vec<Source>, Word)> {
        let name = self.node.keyword.name();
        let [sources @ .., destination] = self.node.args.as_slice() else { return self.too_few() };
        if sources.is_empty() {
            return self.too_few();
        }
        let opener = |word: &Word| if self.node.json { None } else { Opener::of_word(&word.text).ok().flatten() };
        if opener(destination).is_some() {
            return self.fail(
                Diagnostic::error(destination.span, format!("{name} cannot accept a heredoc as a destination"))
                    .help("the destination is the last word of the line"),
            );
        }
        let mut read = Vec::with_capacity(sources.len());
        for word in sources {
            let Some(opener) = opener(word) else {
                read.push(Source::Path(word.clone()));
                continue;
            };
            // As with Docker, of several with one name the last counts.
            let Some(heredoc) = self.node.heredocs.iter().rfind(|heredoc| heredoc.name == opener.name) else {
                return self.fail(
                    Diagnostic::error(word.span, format!("the here-document {} has no body", opener.name))
                        .help("a line in which a quote or a brace is not closed opens no here-documents"),
                );
            };
            read.push(Source::Heredoc(heredoc.clone()));
        }
        Some((read, destination.clone()))
    }

    fn too_few<T>(&mut self) -> Option<T> {
        let name = self.node.keyword.name();
        let error = self.error(format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        ));
        self.fail(error.help(format!("write {name} SOURCE… DESTINATION")))
    }

    fn copy(&mut self) -> Option<Copy> {
        let flags = self.flags();
        let (sources, destination) = self.sources()?;
        let flags = flags?;
        Some(Copy {
            sources,
            destination,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.switch("link").unwrap_or(false),
            parents: flags.switch("parents").unwrap_or(false),
            exclude: flags.list("exclude"),
        })
    }

    fn add(&mut self) -> Option<Add> {
        let flags = self.flags();
        let (sources, destination) = self.sources()?;
        let flags = flags?;
        Some(Add {
            sources,
            destination,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.switch("link").unwrap_or(false),
            exclude: flags.list("exclude"),
            checksum: flags.text("checksum"),
            keep_git_dir: flags.switch("keep-git-dir"),
            unpack: flags.switch("unpack"),
        })
    }

    fn volumes(&mut self) -> Option<Vec<Word>> {
        self.no_flags()?;
        let words = self.arguments("VOLUME /data")?.to_vec();
        if let Some(empty) = words.iter().find(|word| word.text.trim().is_empty()) {
            return self.fail(
                Diagnostic::error(empty.span, "VOLUME specified can not be an empty string")
                    .help("every element is an absolute path of the image"),
            );
        }
        Some(words.into_iter().map(|word| Word { text: word.text.trim().to_owned(), ..word }).collect())
    }

    fn shell(&mut self) -> Option<Vec<String>> {
        self.no_flags()?;
        self.arguments("SHELL [\"/bin/bash\", \"-c\"]")?;
        if !self.node.json {
            let error = self.error("SHELL requires the arguments to be in JSON form");
            return self.fail(error.label("not a JSON array of strings").help(
                "for instance: SHELL [\"/bin/bash\", \"-c\"], with double quotes; in JSON a backslash is written \\\\",
            ));
        }
        Some(self.node.args.iter().map(|word| word.text.clone()).collect())
    }

    fn healthcheck(&mut self) -> Option<Healthcheck> {
        self.arguments("HEALTHCHECK CMD curl -f http://localhost/")?;
        let node = self.node;
        let [kind, command @ ..] = node.args.as_slice() else { return None };
        match kind.text.to_uppercase().as_str() {
            "NONE" if command.is_empty() => return Some(Healthcheck::None),
            "NONE" => {
                let error = self.error("HEALTHCHECK NONE takes no arguments");
                return self.fail(error.help("NONE turns off the check of the base image: nothing is run"));
            }
            "CMD" => {}
            other => {
                let error = Diagnostic::error(kind.span, format!("unknown type {other:?} in HEALTHCHECK (try CMD)"));
                let error = match nearest(other, ["CMD", "NONE"]) {
                    Some(near) => error.label(format!("did you mean {near}?")),
                    None => error,
                };
                return self.fail(error.help("write HEALTHCHECK CMD command, or HEALTHCHECK NONE"));
            }
        }
        let flags = self.flags()?;
        if command.is_empty() {
            let error = self.error("missing command after HEALTHCHECK CMD");
            return self.fail(error.help("for instance: HEALTHCHECK CMD curl -f http://localhost/"));
        }
        let interval = self.interval(&flags, "interval");
        let timeout = self.interval(&flags, "timeout");
        let start_period = self.interval(&flags, "start-period");
        let start_interval = self.interval(&flags, "start-interval");
        let retries = self.retries(&flags);
        Some(Healthcheck::Cmd {
            command: command_line(node, command),
            interval: interval?,
            timeout: timeout?,
            start_period: start_period?,
            start_interval: start_interval?,
            retries: retries?,
        })
    }

    fn interval(&mut self, flags: &Flags, name: &str) -> Option<i64> {
        let Some(word) = flags.text(name) else { return Some(0) };
        match duration(&word.text) {
            Some(0) => Some(0),
            Some(nanoseconds) if nanoseconds >= 1_000_000 => Some(nanoseconds),
            Some(_) => self.fail(
                Diagnostic::error(word.span, format!("--{name} cannot be less than 1ms"))
                    .help("0 means the default of whoever runs the image"),
            ),
            None => self.fail(
                Diagnostic::error(word.span, format!("--{name} is no duration: {:?}", word.text))
                    .help("for instance: 30s, 1m30s, 1.5h; units are ns, us, ms, s, m, h"),
            ),
        }
    }

    fn retries(&mut self, flags: &Flags) -> Option<i64> {
        let Some(word) = flags.text("retries") else { return Some(0) };
        match word.text.parse::<i32>() {
            Ok(retries) if retries >= 0 => Some(retries.into()),
            Ok(retries) => self.fail(
                Diagnostic::error(word.span, format!("--retries cannot be negative ({retries})"))
                    .help("0 means the default of whoever runs the image"),
            ),
            Err(_) => self.fail(
                Diagnostic::error(word.span, format!("--retries is no number: {:?}", word.text))
                    .help("for instance: --retries=3"),
            ),
        }
    }

    fn on_build(&mut self) -> Option<InstructionKind> {
        let Some(sub) = &self.node.sub else {
            self.arguments("ONBUILD RUN make")?;
            return None;
        };
        self.no_flags()?;
        match sub.keyword {
            Keyword::OnBuild => {
                return self.fail(
                    Diagnostic::error(sub.name.span, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
                        .help("triggers run in the build that uses the image, not in later ones"),
                );
            }
            Keyword::From | Keyword::Maintainer => {
                let name = sub.keyword.name();
                return self.fail(
                    Diagnostic::error(sub.name.span, format!("{name} isn't allowed as an ONBUILD trigger"))
                        .help("a trigger can be any instruction but FROM, MAINTAINER and ONBUILD"),
                );
            }
            _ => {}
        }
        if !sub.sound {
            return None;
        }
        let trigger = Node {
            heredocs: self.node.heredocs.clone(),
            lines: self.node.lines,
            span: Span::new(sub.span.start, self.node.span.end),
            ..(**sub).clone()
        };
        let mut found = Vec::new();
        let instruction = match typed(&trigger, self.escape, &mut found) {
            Some(Typed::Instruction(instruction)) => Some(Box::new(instruction)),
            _ => None,
        };
        self.diagnostics.extend(found.into_iter().map(|diagnostic| Diagnostic {
            severity: Severity::Warning,
            ..diagnostic.help("this trigger will make every build fail that uses the image")
        }));
        let mut text = sub.text.clone();
        for heredoc in &self.node.heredocs {
            text.push('\n');
            text.push_str(heredoc.raw());
            text.push_str(&heredoc.name);
        }
        Some(InstructionKind::OnBuild(text, instruction))
    }
}

fn command_line(node: &Node, args: &[Word]) -> CommandLine {
    if node.json {
        CommandLine::Exec(args.iter().map(|word| word.text.clone()).collect())
    } else {
        CommandLine::Shell(args.first().map(|word| word.text.clone()).unwrap_or_default())
    }
}

fn blank_name(keyword: Keyword, span: Span) -> Diagnostic {
    let name = keyword.name();
    Diagnostic::error(span, format!("{name} names can not be blank"))
        .label("no name before the =")
        .help(format!("write {name} NAME=value, without blanks around the ="))
}

/// `[a-z][a-z0-9-_.]*`
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter))
}
