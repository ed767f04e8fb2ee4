//! Progress on a terminal: what the lines say.
//!
//! In: events and when they happened. Out: lines for what is over, which scroll away above, and a frame of lines for
//! what goes on now, which is drawn anew again and again. What always holds: no line is wider than the terminal, a frame
//! is never as high as the terminal, and no output of a step can move the cursor.

use std::collections::VecDeque;
use std::time::Duration;

use super::diagnostic::{self, Look, Style};
use super::output::{Lines, clip, overwritten, printable, width};
use crate::cli::settings::Terminal;
use crate::diagnostic::Source;
use crate::event::{Event, Stream};
use crate::plan::step::StepId;

/// The state between events.
#[derive(Debug)]
pub(crate) struct Tty {
    look: Look,
    /// Say why a step was not in the cache.
    explain: bool,
    steps: Vec<String>,
    /// The steps are known.
    planned: bool,
    /// Parts that are no steps.
    others: usize,
    done: usize,
    /// A step failed or was stopped.
    failed: bool,
    running: Vec<Running>,
}

/// A part that goes on.
#[derive(Debug)]
struct Running {
    part: Part,
    name: String,
    since: Duration,
    /// The last lines of its output.
    last: VecDeque<String>,
    stdout: Lines,
    stderr: Lines,
    /// The stream that wrote last.
    latest: Stream,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Step(StepId),
    Named(String),
}

/// Lines of output that are shown of one step.
const OUTPUT_LINES: usize = 6;

impl Tty {
    pub(crate) fn new(look: Look, explain: bool) -> Self {
        Self {
            look,
            explain,
            steps: Vec::new(),
            planned: false,
            others: 0,
            done: 0,
            failed: false,
            running: Vec::new(),
        }
    }

    /// Takes note of `event`: the lines that stay.
    pub(crate) fn event(
        &mut self,
        at: Duration,
        event: &Event<'_>,
        source: Option<&Source>,
        terminal: Terminal,
    ) -> Vec<String> {
        match event {
            Event::Planned(plan) => {
                self.steps = plan.steps.iter().map(|step| one_line(&step.name)).collect();
                self.planned = true;
                vec![]
            }
            Event::Began(name) => {
                self.others += 1;
                self.start(Part::Named((*name).to_owned()), one_line(name), at);
                vec![]
            }
            Event::Started(step) => {
                self.start(Part::Step(*step), self.name(*step), at);
                vec![]
            }
            Event::Output(step, stream, bytes) => {
                self.output(*step, *stream, bytes);
                vec![]
            }
            Event::Missed(step, reason) if self.explain => {
                let reason = printable(reason.to_string().as_bytes());
                // The reason was asked for, so it is not cut: rather two lines on the terminal.
                vec![format!(" => {}: {reason}", clip(&self.name(*step), columns(terminal) / 2))]
            }
            Event::Imported(step, cache) if self.explain => {
                let cache = printable(cache.as_bytes());
                vec![format!(" => {}: from the cache {cache}", clip(&self.name(*step), columns(terminal) / 2))]
            }
            Event::Missed(..) | Event::Imported(..) => vec![],
            Event::Ended(name, took) => {
                let took = Some(*took);
                vec![self.end(&Part::Named((*name).to_owned()), &one_line(name), None, took, terminal)]
            }
            Event::Cached(step, _) => {
                let cached = Some((Style::Cached, "CACHED"));
                vec![self.end(&Part::Step(*step), &self.name(*step), cached, None, terminal)]
            }
            Event::Finished(step, _, took) => {
                vec![self.end(&Part::Step(*step), &self.name(*step), None, Some(*took), terminal)]
            }
            Event::Failed(step, _) => self.fail(*step, (Style::Error, "ERROR"), at, terminal),
            Event::Canceled(step) => self.fail(*step, (Style::Warning, "CANCELED"), at, terminal),
            Event::Warning(warning) => {
                let nameless = Source { name: String::new(), text: String::new() };
                let look = Look { width: terminal.columns, ..self.look };
                let text = diagnostic::diagnostic(source.unwrap_or(&nameless), warning, look);
                text.lines().map(str::to_owned).collect()
            }
            Event::Note(note) => note.lines().map(|line| printable(line.as_bytes())).collect(),
        }
    }

    /// The lines of what goes on, `at` so long after the start; none where nothing does.
    pub(crate) fn frame(&self, at: Duration, terminal: Terminal) -> Vec<String> {
        if self.running.is_empty() {
            return vec![];
        }
        // One line less than there are, so that the terminal never scrolls while it draws.
        let room = terminal.rows.saturating_sub(1).max(1);
        let mut lines = vec![self.heading(at, "", terminal)];
        let slots = room.saturating_sub(1);
        let shown = if self.running.len() <= slots { self.running.len() } else { slots.saturating_sub(1) };
        // What the parts themselves leave is for the output, in equal shares.
        let share = match slots.saturating_sub(self.running.len()).checked_div(shown) {
            Some(share) if shown == self.running.len() => share.min(OUTPUT_LINES),
            _ => 0,
        };
        for running in &self.running[..shown] {
            let elapsed = seconds(at.saturating_sub(running.since));
            lines.push(line(&format!(" => {}", running.name), &elapsed, terminal));
            for output in running.output(share) {
                let text = clip(&format!(" => => {output}"), columns(terminal));
                lines.push(self.look.paint(Style::Faint, &text));
            }
        }
        if shown < self.running.len() && slots > 0 {
            let more = self.running.len() - shown;
            lines.push(line(&format!(" => … and {more} more"), "", terminal));
        }
        lines
    }

    /// The last line of the build; none where nothing was begun.
    pub(crate) fn summary(&self, at: Duration, terminal: Terminal) -> Option<String> {
        let total = self.steps.len() + self.others;
        let finished = self.planned && !self.failed && self.done == total;
        (total > 0).then(|| self.heading(at, if finished { " FINISHED" } else { "" }, terminal))
    }

    fn heading(&self, at: Duration, end: &str, terminal: Terminal) -> String {
        let total = self.steps.len() + self.others;
        let text = format!("[+] Building {} ({}/{total}){end}", seconds(at), self.done);
        self.look.paint(Style::Bold, &clip(&text, columns(terminal)))
    }

    fn name(&self, step: StepId) -> String {
        self.steps.get(step.0).cloned().unwrap_or_else(|| format!("step {}", step.0))
    }

    fn start(&mut self, part: Part, name: String, since: Duration) {
        self.running.push(Running {
            part,
            name,
            since,
            last: VecDeque::new(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            latest: Stream::Stdout,
        });
    }

    fn output(&mut self, step: StepId, stream: Stream, bytes: &[u8]) {
        let Some(running) = self.running.iter_mut().find(|running| running.part == Part::Step(step)) else { return };
        let Running { last, stdout, stderr, latest, .. } = running;
        let lines = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        *latest = stream;
        lines.push(bytes, |line| {
            let text = printable(overwritten(line));
            if !text.trim().is_empty() {
                if last.len() == OUTPUT_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
        });
    }

    fn fail(&mut self, step: StepId, how: (Style, &str), at: Duration, terminal: Terminal) -> Vec<String> {
        self.failed = true;
        let part = Part::Step(step);
        let since = self.running.iter().find(|running| running.part == part).map(|running| running.since);
        let took = since.map(|since| at.saturating_sub(since));
        vec![self.end(&part, &self.name(step), Some(how), took, terminal)]
    }

    /// Ends a part: the line that stays of it.
    fn end(
        &mut self,
        part: &Part,
        name: &str,
        how: Option<(Style, &str)>,
        took: Option<Duration>,
        terminal: Terminal,
    ) -> String {
        self.running.retain(|running| running.part != *part);
        self.done += 1;
        let right = took.map_or_else(String::new, seconds);
        match how {
            None => line(&format!(" => {name}"), &right, terminal),
            Some((style, word)) => {
                let text = line(&format!(" => {word} {name}"), &right, terminal);
                // Cut text may have lost the word; then there is nothing to paint.
                text.replacen(word, &self.look.paint(style, word), 1)
            }
        }
    }
}

impl Running {
    /// Its last lines of output, at most `count`; the one that is being written is one.
    fn output(&self, count: usize) -> Vec<String> {
        let part = match self.latest {
            Stream::Stdout => self.stdout.part(),
            Stream::Stderr => self.stderr.part(),
        };
        let part = Some(printable(overwritten(part))).filter(|part| !part.trim().is_empty());
        let all: Vec<String> = self.last.iter().cloned().chain(part).collect();
        all[all.len().saturating_sub(count)..].to_vec()
    }
}

/// Columns to write in: the last one is left free, as some terminals go to the next line when it is written.
fn columns(terminal: Terminal) -> usize {
    terminal.columns.saturating_sub(1)
}

/// `left`, and `right` at the terminal's edge.
fn line(left: &str, right: &str, terminal: Terminal) -> String {
    let columns = columns(terminal);
    if right.is_empty() || columns < 20 {
        return clip(left, columns);
    }
    let left = clip(left, columns.saturating_sub(width(right) + 1));
    let blanks = columns.saturating_sub(width(&left) + width(right));
    format!("{left}{}{right}", " ".repeat(blanks))
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// The first line of a name, without what would move the cursor.
fn one_line(name: &str) -> String {
    printable(name.lines().next().unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::story;
    use super::*;
    use crate::plan::step::Plan;

    const LOOK: Look = Look { color: false, width: 50 };
    const TERMINAL: Terminal = Terminal { columns: 50, rows: 12 };

    #[test]
    fn lines_that_stay() {
        let mut tty = Tty::new(LOOK, true);
        let mut lines = Vec::new();
        story::tell(|at, event, source| lines.extend(tty.event(at, event, Some(source), TERMINAL)));
        lines.extend(tty.summary(Duration::from_millis(2210), TERMINAL));
        let expected = [
            " => [internal] load build context            0.1s",
            " => CACHED [1/4] WORKDIR /app",
            " => [2/4] RUN make: files changed: a.c",
            " => [3/4] COPY . .                           0.4s",
            " => [2/4] RUN make                           2.0s",
            "warning[JSONArgsRecommended]: JSON arguments recommended for CMD",
            " --> Dockerfile:2:1",
            "  |",
            "2 | CMD x",
            "  | ^^^^^",
            "something to know",
            " => ERROR [4/4] RUN false                    0.1s",
            " => CANCELED [other 1/1] RUN sleep 9         0.1s",
            " => exporting to image                       0.0s",
            "[+] Building 2.2s (7/7)",
        ];
        assert_eq!(lines, expected);
        assert!(tty.frame(Duration::ZERO, TERMINAL).is_empty(), "nothing goes on any more");
    }

    #[test]
    fn what_goes_on() {
        let mut tty = Tty::new(LOOK, false);
        let mut frames = Vec::new();
        story::tell(|at, event, source| {
            tty.event(at, event, Some(source), TERMINAL);
            if [800, 1400].contains(&at.as_millis()) {
                frames.push(tty.frame(at, TERMINAL));
            }
        });
        let expected = [
            vec![
                "[+] Building 0.8s (2/6)",
                " => [2/4] RUN make                           0.6s",
                " => => cc a.c",
                " => => warning: b\u{fffd}d",
                " => => no e",
                " => [3/4] COPY . .                           0.0s",
            ],
            vec![
                "[+] Building 1.4s (3/6)",
                " => [2/4] RUN make                           1.1s",
                " => => cc a.c",
                " => => warning: b\u{fffd}d",
                " => => no end",
            ],
        ];
        assert_eq!(frames, expected);
    }

    #[test]
    fn frames_fit_every_terminal() {
        let mut tty = Tty::new(LOOK, false);
        let at = Duration::from_secs;
        for i in 0..8 {
            tty.event(at(0), &Event::Started(StepId(i)), None, TERMINAL);
            let output = "日本語 \x1b[2J\x1b[H out\r\n".repeat(9);
            tty.event(at(0), &Event::Output(StepId(i), Stream::Stdout, output.as_bytes()), None, TERMINAL);
        }
        for rows in 1..30 {
            for columns in 0..60 {
                let frame = tty.frame(at(100), Terminal { columns, rows });
                assert!(frame.len() < rows.max(2), "{} lines in {rows} rows", frame.len());
                for line in &frame {
                    assert!(width(line) <= columns.saturating_sub(1), "{line:?} in {columns} columns");
                    assert!(!line.contains(char::is_control), "{line:?}");
                }
            }
        }
        let frame = tty.frame(at(100), Terminal { columns: 40, rows: 6 });
        let expected = [
            "[+] Building 100.0s (0/0)",
            " => step 0                       100.0s",
            " => step 1                       100.0s",
            " => step 2                       100.0s",
            " => … and 5 more",
        ];
        assert_eq!(frame, expected);
        // Two lines of output for each of eight steps is what 25 rows have room for.
        assert_eq!(tty.frame(at(100), Terminal { columns: 40, rows: 26 }).len(), 25);
    }

    #[test]
    fn only_a_build_that_did_all_is_finished() {
        let took = Duration::from_millis(100);
        let summary = |events: &[Event<'_>]| {
            let mut tty = Tty::new(LOOK, false);
            for event in events {
                tty.event(took, event, None, TERMINAL);
            }
            tty.summary(took, TERMINAL)
        };
        let plan = Plan::default();
        let (begin, end) = (Event::Began("x"), Event::Ended("x", took));
        for (events, expected) in [
            (&[][..], None),
            (&[begin, end][..], Some("[+] Building 0.1s (1/1)")),
            (
                &[Event::Planned(&plan), Event::Began("x"), Event::Ended("x", took)],
                Some("[+] Building 0.1s (1/1) FINISHED"),
            ),
            (&[Event::Planned(&plan), Event::Began("x")], Some("[+] Building 0.1s (0/1)")),
            (&[Event::Planned(&plan), Event::Failed(StepId(0), "")], None),
        ] {
            assert_eq!(summary(events).as_deref(), expected, "{events:?}");
        }
    }

    #[test]
    fn colour_is_only_paint() {
        let mut tty = Tty::new(Look { color: true, ..LOOK }, false);
        let lines = tty.event(
            Duration::ZERO,
            &Event::Cached(StepId(0), crate::digest::CacheKey(crate::digest::Digest::of(b""))),
            None,
            TERMINAL,
        );
        assert_eq!(lines, [" => \u{1b}[36mCACHED\u{1b}[0m step 0"]);
    }
}
