//! COPY and ADD: which files go where, as whom, from what.
//!
//! In: an instruction, and the stage so far. Out: a step, and a line of history. What always holds: what must be
//! fetched is for ADD alone; what its flags ask of it is checked before anything is fetched.

use std::fmt::Write as _;

use crate::diagnostic::Diagnostic;
use crate::dockerfile::ast::{Add, Copy, Escape, Heredoc, Source, Word};
use crate::dockerfile::word;

use super::Resolved;
use super::chmod::parse_mode;
use super::config::destination;
use super::graph::Origin;
use super::remote::{self, Remote, RemoteKind, RemoteSource};
use super::stage::{Place, Planner, State, Told};
use super::step::{Chown, ContextId, CopyFrom, CopyOp, CopySource, Op, Stack};

/// The parts that COPY and ADD share.
struct Files<'a> {
    keyword: &'static str,
    sources: &'a [Source],
    destination: &'a Word,
    chown: Option<&'a Word>,
    chmod: Option<&'a Word>,
    exclude: &'a [Word],
    /// Those of the sources that are fetched.
    remotes: Vec<RemoteSource>,
}

impl Planner<'_> {
    pub(super) fn copy(&mut self, place: Place<'_>, state: &mut State, copy: &Copy) -> Result<(), Told> {
        for word in copy.sources.iter().filter_map(path_of) {
            let path = Self::expand_quietly(place, state, word);
            if let Some(remote) = remote::parse(&path) {
                let what = if matches!(remote, Ok(Remote::Git(_))) { "git repository" } else { "URL" };
                let error = Diagnostic::error(word.span, format!("source can't be a {what} for COPY"));
                self.tell(place, error.help("use ADD"));
                return Err(Told);
            }
        }
        let from = match &copy.from {
            None => CopyFrom::Context(ContextId(0)),
            Some(from) => match self.graph.resolve(from, place.stage, self.options) {
                Ok(origin) => self.copy_from(&origin),
                Err((_, error)) => {
                    self.tell(place, error);
                    return Err(Told);
                }
            },
        };
        let files = Files {
            keyword: "COPY",
            sources: &copy.sources,
            destination: &copy.destination,
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            exclude: &copy.exclude,
            remotes: Vec::new(),
        };
        let op = CopyOp { from, link: copy.link, parents: copy.parents, ..CopyOp::plain() };
        self.files(place, state, &files, &op)
    }

    pub(super) fn add(&mut self, place: Place<'_>, state: &mut State, add: &Add) -> Result<(), Told> {
        let checksum = self.expand_option(place, state, add.checksum.as_ref())?;
        let mut remotes = Vec::new();
        for word in add.sources.iter().filter_map(path_of) {
            let path = Self::expand_quietly(place, state, word);
            match remote::parse(&path) {
                None => {}
                Some(Err(why)) => return self.fail(place, word.span, why),
                Some(Ok(found)) => {
                    let kind = self.remote_kind(place, add, &path, found, checksum.as_deref())?;
                    remotes.push(RemoteSource { text: path, kind });
                }
            }
        }
        if let Some(word) = add.checksum.as_ref().filter(|_| checksum.is_some()) {
            if add.sources.len() > 1 {
                return self.fail(place, word.span, "checksum can't be specified for multiple sources");
            }
            if remotes.is_empty() {
                return self.fail(place, word.span, "checksum requires HTTP(S) or Git sources");
            }
        }
        if add.keep_git_dir == Some(true) && !remotes.iter().any(|remote| matches!(remote.kind, RemoteKind::Git(_))) {
            return self.fail(place, place.instruction.span, "--keep-git-dir is for git repositories only");
        }
        let files = Files {
            keyword: "ADD",
            sources: &add.sources,
            destination: &add.destination,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            exclude: &add.exclude,
            remotes,
        };
        let op = CopyOp { link: add.link, unpack: add.unpack.unwrap_or(true), ..CopyOp::plain() };
        self.files(place, state, &files, &op)
    }

    /// What of ADD's flags holds for the source `text`.
    fn remote_kind(
        &mut self,
        place: Place<'_>,
        add: &Add,
        text: &str,
        found: Remote,
        checksum: Option<&str>,
    ) -> Result<RemoteKind, Told> {
        let span = add.checksum.as_ref().map_or(place.instruction.span, |word| word.span);
        match found {
            Remote::Url(url) => {
                let checksum = match checksum.map(remote::checksum).transpose() {
                    Ok(checksum) => checksum,
                    Err(why) => return self.fail(place, span, why),
                };
                let (name, unpack) = (remote::file_name(&url), add.unpack == Some(true));
                Ok(RemoteKind::File { url, name, checksum, unpack })
            }
            Remote::Git(mut source) => {
                if let Some(checksum) = checksum
                    && let Err(why) = source.set_checksum(checksum)
                {
                    return self.fail(place, span, why);
                }
                match (add.keep_git_dir, source.keep_git_dir) {
                    (Some(flag), Some(query)) if flag != query => {
                        let why = format!("--keep-git-dir={flag} and keep-git-dir={query} in {text} cannot both hold");
                        return self.fail(place, place.instruction.span, why);
                    }
                    (flag, query) => source.keep_git_dir = flag.or(query),
                }
                Ok(RemoteKind::Git(source))
            }
        }
    }

    /// The word expanded, for a first look; what is wrong with it is told when it is used.
    fn expand_quietly(place: Place<'_>, state: &State, word: &Word) -> String {
        state.variables.expand(&word.text, place.escape).map_or_else(|_| word.text.clone(), |expanded| expanded.text)
    }

    pub(super) fn copy_from(&mut self, origin: &Origin) -> CopyFrom {
        match origin {
            Origin::Scratch => CopyFrom::Stack(Stack::Scratch),
            Origin::Stage(stage) => {
                // Proof: stages are planned in order, and what a stage needs is reached and earlier.
                CopyFrom::Stack(self.done[*stage].as_ref().expect("an earlier stage is planned").stack)
            }
            Origin::Outside(outside) => {
                let platform = self.options.platform();
                match self.bases.get(&(outside.name.clone(), platform.to_string())) {
                    Some(Resolved::Image(_)) => CopyFrom::Stack(Stack::Base(self.base(outside, platform))),
                    _ => CopyFrom::Context(self.context(&outside.name)),
                }
            }
        }
    }

    /// What COPY and ADD have in common.
    fn files(&mut self, place: Place<'_>, state: &mut State, files: &Files<'_>, op: &CopyOp) -> Result<(), Told> {
        let (mut paths, mut inline) = (Vec::new(), Vec::new());
        for source in files.sources {
            match source {
                Source::Path(word) => paths.push(self.expand(place, state, word)?),
                Source::Heredoc(heredoc) => {
                    let content = self.heredoc(place, state, heredoc)?;
                    inline.push(CopySource::Inline { name: heredoc.name.clone(), content });
                }
            }
        }
        let written = self.expand(place, state, files.destination)?;
        let chown = self.expand_option(place, state, files.chown)?;
        let chmod = self.expand_option(place, state, files.chmod)?;
        let mode = match (&chmod, files.chmod) {
            (Some(text), Some(word)) => match parse_mode(text) {
                Ok(mode) => Some(mode),
                Err(why) => return self.fail(place, word.span, why),
            },
            _ => None,
        };
        let mut line = files.keyword.to_owned();
        if op.parents {
            line.push_str(" --parents");
        }
        for (name, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some(value) = value {
                // Writing to a String does not fail.
                let _ = write!(line, " --{name}={value}");
            }
        }
        for path in &paths {
            // The history goes wherever the image goes.
            let is_remote = files.remotes.iter().any(|remote| remote.text == *path);
            let shown = if is_remote { remote::without_password(path) } else { path.clone() };
            let _ = write!(line, " {shown}");
        }
        for source in &inline {
            if let CopySource::Inline { name, .. } = source {
                let _ = write!(line, " <<{name}");
            }
        }
        let _ = write!(line, " {written} # buildkit");
        let source = |path: String| match files.remotes.iter().find(|remote| remote.text == path) {
            Some(remote) => CopySource::Remote(remote.clone()),
            None => CopySource::Path(path),
        };
        let op = CopyOp {
            sources: paths.into_iter().map(source).chain(inline).collect(),
            destination: destination(state.folded.cwd(), &written),
            chown: chown.map(|chown| {
                let (user, group) = match chown.split_once(':') {
                    Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
                    None => (chown.as_str(), None),
                };
                // `:group` leaves the user at root.
                let user = if user.is_empty() { "0" } else { user };
                Chown { user: user.to_owned(), group: group.map(str::to_owned) }
            }),
            chmod: mode,
            exclude: files.exclude.iter().map(|word| word.text.clone()).collect(),
            ..op.clone()
        };
        let step = self.step(place, state, Op::Copy(op));
        state.folded.commit(line, Some(step));
        Ok(())
    }

    fn expand_option(&mut self, place: Place<'_>, state: &State, word: Option<&Word>) -> Result<Option<String>, Told> {
        match word {
            None => Ok(None),
            Some(word) => Ok(Some(self.expand(place, state, word)?).filter(|text| !text.is_empty())),
        }
    }

    fn heredoc(&mut self, place: Place<'_>, state: &State, heredoc: &Heredoc) -> Result<String, Told> {
        if !heredoc.expand {
            return Ok(heredoc.content.clone());
        }
        let lookup = |name: &str| state.variables.get(name).map(str::to_owned);
        // In here-documents it is always the backslash that escapes.
        match word::expand_heredoc(&heredoc.content, Escape::Backslash, &lookup) {
            Ok(expanded) => {
                self.note_unset(place, state, heredoc.span, &expanded.unset);
                Ok(expanded.text)
            }
            Err(error) => self.fail(place, heredoc.span, error.message),
        }
    }
}

fn path_of(source: &Source) -> Option<&Word> {
    match source {
        Source::Path(word) => Some(word),
        Source::Heredoc(_) => None,
    }
}
