//! What the user sees while a build works.
//!
//! In: the engine's events, from any thread. Out: text on standard error in one of the forms of `--progress`. What
//! always holds: nothing goes to standard output; a standard error that cannot be written to does not stop a build;
//! events are shown in the order in which they come.

pub mod diagnostic;
mod json;
pub mod output;
mod plain;
mod rawjson;
mod screen;
#[cfg(test)]
mod story;
pub(crate) mod summary;
pub mod table;
mod tty;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressDrawTarget;
use jiff::Timestamp;

use self::diagnostic::Look;
use self::json::Json;
pub(crate) use self::json::{base64, error_line};
use self::output::{Lines, Tail};
use self::plain::Plain;
use self::rawjson::RawJson;
use self::screen::Screen;
use self::tty::Tty;
use super::args::Progress;
use super::settings::{Settings, Terminal, terminal_size};
use crate::diagnostic::{Diagnostic, Source};
use crate::digest::{ContentDigest, ImageId};
use crate::event::{Event, EventSink, Stream};
use crate::plan::step::StepId;

/// Shows a build's events. [`Reporter::finish`] it before anything else is written to standard error.
#[derive(Clone)]
pub struct Reporter {
    began: Instant,
    state: Arc<Mutex<State>>,
}

struct State {
    view: View,
    source: Option<Source>,
    tails: BTreeMap<StepId, Ending>,
    /// What the build checks say, for the end.
    checks: Vec<Diagnostic>,
    look: Look,
    /// Standard error is gone: nobody reads on.
    deaf: bool,
}

enum View {
    Tty(Screen),
    Plain(Plain),
    Json(Json),
    RawJson(RawJson),
    Silent,
}

/// What a build that went well came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The image's id.
    pub image: ImageId,
    /// Its content digest; `None` where layers of the base never came to this machine.
    pub content: Option<ContentDigest>,
    /// The names that it was given.
    pub names: Vec<String>,
}

impl Built {
    /// The two lines that a build ends with.
    fn lines(&self) -> String {
        match self.content {
            Some(content) => format!("image {}\ncontent {content}\n", self.image),
            None => format!("image {}\nno content digest: layers of the base never came to this machine\n", self.image),
        }
    }
}

/// The end of a step's output.
#[derive(Default)]
struct Ending {
    stdout: Lines,
    stderr: Lines,
    tail: Tail,
}

impl Reporter {
    /// A reporter that shows events as `progress` says; `explain` adds why a step was not in the cache.
    pub fn new(progress: Progress, explain: bool, settings: &Settings) -> Self {
        let look = Look { color: settings.color(), width: settings.width() };
        let began = Instant::now();
        let live = settings.terminal.is_some() && settings.env.get("TERM").is_none_or(|term| term != "dumb");
        let view = match progress {
            Progress::Auto | Progress::Tty if live => {
                let usual = || terminal_size().unwrap_or(Terminal { columns: 80, rows: 24 });
                View::Tty(Screen::new(Tty::new(look, explain), began, ProgressDrawTarget::stderr(), usual))
            }
            // Where there is no terminal, `--progress tty` has nothing to draw on.
            Progress::Auto | Progress::Tty | Progress::Plain => View::Plain(Plain::new(look, explain)),
            Progress::Json => View::Json(Json::default()),
            Progress::Rawjson => View::RawJson(RawJson::new(Timestamp::now())),
            Progress::Quiet | Progress::None => View::Silent,
        };
        Self {
            began,
            state: Arc::new(Mutex::new(State {
                view,
                source: None,
                tails: BTreeMap::new(),
                checks: Vec::new(),
                look,
                deaf: false,
            })),
        }
    }

    /// Lets warnings show excerpts of `source`, the Dockerfile.
    pub fn set_source(&self, source: Source) {
        self.lock().source = Some(source);
    }

    /// The last lines that `step` wrote. Known for steps that failed, and for those that have not ended.
    pub fn tail(&self, step: StepId) -> Tail {
        let mut state = self.lock();
        let Some(ending) = state.tails.get_mut(&step) else { return Tail::default() };
        ending.flush();
        ending.tail.clone()
    }

    /// Ends the display: what was live is gone from the terminal, and other text may follow on standard error. Events
    /// that come later are not shown. What was `built` comes last.
    pub fn finish(&self, built: Option<&Built>) {
        let at = self.began.elapsed();
        let mut state = self.lock();
        let mut out = Vec::new();
        match &mut state.view {
            View::Tty(screen) => {
                if let Some(summary) = screen.finish(at) {
                    out.extend_from_slice(format!("{summary}\n").as_bytes());
                }
            }
            View::Plain(plain) => plain.finish(at, &mut out),
            View::Json(json) => json.finish(at, built, &mut out),
            View::RawJson(_) | View::Silent => {}
        }
        let live = matches!(state.view, View::Tty(_) | View::Plain(_));
        if let (true, Some(source)) = (live && !state.checks.is_empty(), &state.source) {
            out.extend_from_slice(summary::of(source, &state.checks, state.look).as_bytes());
        }
        if let (View::Tty(_) | View::Plain(_), Some(built)) = (&state.view, built) {
            out.extend_from_slice(built.lines().as_bytes());
        }
        state.write(&out);
        state.view = View::Silent;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is shown after a panic elsewhere may be incomplete; that is better than a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event_at(&self, at: Duration, event: &Event<'_>) {
        let mut state = self.lock();
        state.remember(event);
        if let (Event::Warning(warning), View::Tty(_) | View::Plain(_)) = (event, &state.view)
            && summary::is_check(warning)
        {
            // As docker does it: in few lines, and where they are not scrolled away.
            state.checks.push((*warning).clone());
            return;
        }
        let State { view, source, .. } = &mut *state;
        let source = source.as_ref();
        let mut out = Vec::new();
        match view {
            View::Tty(screen) => screen.event(at, event, source),
            View::Plain(plain) => plain.event(at, event, source, &mut out),
            View::Json(json) => json.event(at, event, source, &mut out),
            View::RawJson(raw) => raw.event(at, event, source, &mut out),
            View::Silent => {}
        }
        state.write(&out);
    }
}

impl EventSink for Reporter {
    fn event(&self, event: Event<'_>) {
        // The time is taken before the lock, so that waiting for another event does not count.
        self.event_at(self.began.elapsed(), &event);
    }
}

impl State {
    /// Keeps the end of what steps write, whatever is shown of it.
    fn remember(&mut self, event: &Event<'_>) {
        match event {
            Event::Output(step, stream, bytes) => {
                let Ending { stdout, stderr, tail } = self.tails.entry(*step).or_default();
                let lines = if *stream == Stream::Stdout { stdout } else { stderr };
                lines.push(bytes, |line| tail.push(line));
            }
            Event::Finished(step, ..) | Event::Canceled(step) => {
                self.tails.remove(step);
            }
            _ => {}
        }
    }

    fn write(&mut self, out: &[u8]) {
        if !out.is_empty() && !self.deaf {
            self.deaf = std::io::stderr().lock().write_all(out).is_err();
        }
    }
}

impl Ending {
    /// Lines without an end are lines too, once nothing more comes.
    fn flush(&mut self) {
        let Self { stdout, stderr, tail } = self;
        stdout.finish(|line| tail.push(line));
        stderr.finish(|line| tail.push(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_fits_the_terminal_and_the_wish() {
        let terminal = Some(Terminal { columns: 80, rows: 24 });
        for (progress, terminal, env, expected) in [
            (Progress::Auto, None, vec![], "plain"),
            (Progress::Auto, terminal, vec![], "tty"),
            (Progress::Auto, terminal, vec![("TERM", "dumb")], "plain"),
            (Progress::Tty, None, vec![], "plain"),
            (Progress::Tty, terminal, vec![], "tty"),
            (Progress::Plain, terminal, vec![], "plain"),
            (Progress::Json, terminal, vec![], "json"),
            (Progress::Rawjson, None, vec![], "rawjson"),
            (Progress::Quiet, terminal, vec![], "silent"),
            (Progress::None, terminal, vec![], "silent"),
        ] {
            let settings = Settings { terminal, ..Settings::for_test(&env) };
            let reporter = Reporter::new(progress, false, &settings);
            let got = match &reporter.lock().view {
                View::Tty(_) => "tty",
                View::Plain(_) => "plain",
                View::Json(_) => "json",
                View::RawJson(_) => "rawjson",
                View::Silent => "silent",
            };
            assert_eq!(got, expected, "{progress:?} {terminal:?} {env:?}");
        }
    }

    #[test]
    fn the_end_of_the_output_is_kept_even_in_silence() {
        let reporter = Reporter::new(Progress::Quiet, false, &Settings::for_test(&[]));
        let step = StepId(3);
        reporter.event(Event::Started(step));
        for i in 0..30 {
            reporter.event(Event::Output(step, Stream::Stdout, format!("line {i}\n").as_bytes()));
        }
        reporter.event(Event::Output(step, Stream::Stderr, b"\x1b[31mno end"));
        reporter.event(Event::Failed(step, "exit status 1"));
        let tail = reporter.tail(step);
        assert_eq!((tail.seen, tail.lines.len()), (31, Tail::KEPT));
        assert_eq!(tail.lines.back().map(String::as_str), Some("no end"));
        assert_eq!(reporter.tail(StepId(4)), Tail::default());
        reporter.finish(None);
    }
}
