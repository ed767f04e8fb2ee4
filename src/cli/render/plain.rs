//! Progress line by line, as BuildKit's plain mode has it.
//!
//! In: events and when they happened. Out: lines that begin with the number of the part that they are about:
//! `#5 [build 2/5] RUN make`, `#5 0.123 output`, `#5 DONE 1.2s`, `#6 CACHED`. What always holds: lines are whole and
//! appear as soon as they are, output bytes are passed on as they are, and a part's heading stands above its lines.
//!
//! BuildKit repeats the heading whenever it turns from one part to another, and holds lines back so that this is not
//! too often. Here lines of steps that run at once are mixed as they come: the number tells whose they are.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use super::diagnostic::{self, Look};
use super::output::{Lines, overwritten};
use crate::diagnostic::Source;
use crate::event::{Event, Stream};
use crate::plan::step::StepId;

/// The state between events.
#[derive(Debug)]
pub(crate) struct Plain {
    look: Look,
    /// Say why a step was not in the cache.
    explain: bool,
    steps: Vec<String>,
    parts: BTreeMap<Part, State>,
    /// The number of the part whose lines stand last.
    last: Option<usize>,
    /// Anything was written.
    begun: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Step(StepId),
    Named(String),
}

#[derive(Debug, Default)]
struct State {
    number: usize,
    started: Duration,
    ended: bool,
    stdout: Lines,
    stderr: Lines,
}

impl Plain {
    pub(crate) fn new(look: Look, explain: bool) -> Self {
        Self { look, explain, steps: Vec::new(), parts: BTreeMap::new(), last: None, begun: false }
    }

    /// What `event`, `at` so long after the start, adds to `out`.
    pub(crate) fn event(&mut self, at: Duration, event: &Event<'_>, source: Option<&Source>, out: &mut Vec<u8>) {
        match event {
            Event::Planned(plan) => self.steps = plan.steps.iter().map(|step| step.name.clone()).collect(),
            Event::Began(name) => {
                let part = Part::Named((*name).to_owned());
                self.announce(&part, at, out);
            }
            Event::Ended(name, took) => self.end(&Part::Named((*name).to_owned()), at, &done(*took), out),
            Event::Imported(step, cache) => {
                if self.explain {
                    let number = self.announce(&Part::Step(*step), at, out);
                    put(out, format_args!("#{number} from the cache {cache}"));
                }
            }
            Event::Cached(step, _) => self.end(&Part::Step(*step), at, "CACHED", out),
            Event::Missed(step, reason) => {
                if self.explain {
                    let part = Part::Step(*step);
                    let number = self.announce(&part, at, out);
                    put(out, format_args!("#{number} not cached: {reason}"));
                }
            }
            Event::Started(step) => {
                let part = Part::Step(*step);
                self.announce(&part, at, out);
                if let Some(state) = self.parts.get_mut(&part) {
                    state.started = at;
                }
            }
            Event::Output(step, stream, bytes) => self.output(&Part::Step(*step), *stream, bytes, at, out),
            Event::Finished(step, _, took) => self.end(&Part::Step(*step), at, &done(*took), out),
            Event::Failed(step, why) => {
                let part = Part::Step(*step);
                self.flush(&part, at, out);
                // What failed is said again, where its heading may stand far above.
                let last = self.last;
                let number = self.announce(&part, at, out);
                if last != Some(number) && last.is_some() {
                    self.heading(&part, number, out);
                }
                self.end(&part, at, &format!("ERROR: {why}"), out);
            }
            Event::Canceled(step) => self.end(&Part::Step(*step), at, "CANCELED", out),
            Event::Warning(warning) => {
                let nameless = Source { name: String::new(), text: String::new() };
                let text = diagnostic::diagnostic(source.unwrap_or(&nameless), warning, self.look);
                self.aside(&text, out);
            }
            Event::Note(note) => self.aside(&format!("{note}\n"), out),
        }
    }

    /// Writes what has no line end yet.
    pub(crate) fn finish(&mut self, at: Duration, out: &mut Vec<u8>) {
        let open: Vec<Part> =
            self.parts.iter().filter(|(_, state)| !state.ended).map(|(part, _)| part.clone()).collect();
        for part in open {
            self.flush(&part, at, out);
        }
    }

    /// A text of its own between the parts.
    fn aside(&mut self, text: &str, out: &mut Vec<u8>) {
        self.gap(out);
        out.extend_from_slice(text.as_bytes());
        self.last = None;
    }

    /// An empty line, but not at the very beginning.
    fn gap(&mut self, out: &mut Vec<u8>) {
        if self.begun {
            out.push(b'\n');
        }
        self.begun = true;
    }

    /// Makes sure that the heading of `part` has been written; its number.
    fn announce(&mut self, part: &Part, at: Duration, out: &mut Vec<u8>) -> usize {
        let next = self.parts.len() + 1;
        let known = self.parts.get(part).map(|state| state.number);
        let number = known.unwrap_or(next);
        if known.is_none() {
            self.parts.insert(part.clone(), State { number, started: at, ..State::default() });
            self.heading(part, number, out);
        }
        self.last = Some(number);
        number
    }

    fn heading(&mut self, part: &Part, number: usize, out: &mut Vec<u8>) {
        self.gap(out);
        let name = match part {
            Part::Step(step) => self.steps.get(step.0).map_or("(unknown step)", String::as_str),
            Part::Named(name) => name,
        };
        // A name is one line: the rest of a here-document would look like output.
        put(out, format_args!("#{number} {}", name.lines().next().unwrap_or_default()));
    }

    fn output(&mut self, part: &Part, stream: Stream, bytes: &[u8], at: Duration, out: &mut Vec<u8>) {
        let Some(state) = self.parts.get_mut(part) else { return };
        let lines = match stream {
            Stream::Stdout => &mut state.stdout,
            Stream::Stderr => &mut state.stderr,
        };
        let since = at.saturating_sub(state.started);
        let mut text = Vec::new();
        let number = state.number;
        lines.push(bytes, |line| put_output(&mut text, number, since, line));
        if !text.is_empty() {
            self.announce(part, at, out);
            out.extend_from_slice(&text);
        }
    }

    /// Writes the part's lines that have no end yet.
    fn flush(&mut self, part: &Part, at: Duration, out: &mut Vec<u8>) {
        let Some(state) = self.parts.get_mut(part) else { return };
        let (number, since) = (state.number, at.saturating_sub(state.started));
        let mut text = Vec::new();
        for lines in [&mut state.stdout, &mut state.stderr] {
            lines.finish(|line| put_output(&mut text, number, since, line));
        }
        if !text.is_empty() {
            self.announce(part, at, out);
            out.extend_from_slice(&text);
        }
    }

    fn end(&mut self, part: &Part, at: Duration, how: &str, out: &mut Vec<u8>) {
        self.flush(part, at, out);
        let number = self.announce(part, at, out);
        put(out, format_args!("#{number} {how}"));
        if let Some(state) = self.parts.get_mut(part) {
            state.ended = true;
        }
    }
}

fn done(took: Duration) -> String {
    format!("DONE {:.1}s", took.as_secs_f64())
}

fn put_output(out: &mut Vec<u8>, number: usize, since: Duration, line: &[u8]) {
    out.extend_from_slice(format!("#{number} {:.3} ", since.as_secs_f64()).as_bytes());
    out.extend_from_slice(overwritten(line));
    out.push(b'\n');
}

fn put(out: &mut Vec<u8>, line: std::fmt::Arguments<'_>) {
    // Writing to a vector cannot fail.
    writeln!(out, "{line}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::super::story;
    use super::*;

    #[test]
    fn a_build_line_by_line() {
        let mut plain = Plain::new(Look { color: false, width: 100 }, true);
        let mut out = Vec::new();
        story::tell(|at, event, source| plain.event(at, event, Some(source), &mut out));
        plain.finish(Duration::from_secs(9), &mut out);
        let expected = "\
#1 [internal] load build context
#1 DONE 0.1s

#2 [1/4] WORKDIR /app
#2 CACHED

#3 [2/4] RUN make
#3 not cached: files changed: a.c
#3 0.250 cc a.c
#3 0.500 warning: b\u{ff}d

#4 [3/4] COPY . .
#4 DONE 0.4s
#3 1.250 100%
#3 1.500 no end
#3 DONE 2.0s

warning[JSONArgsRecommended]: JSON arguments recommended for CMD
 --> Dockerfile:2:1
  |
2 | CMD x
  | ^^^^^

something to know

#5 [4/4] RUN false

#6 [other 1/1] RUN sleep 9

#5 [4/4] RUN false
#5 ERROR: exit status 1
#6 CANCELED

#7 exporting to image
#7 DONE 0.0s
";
        let expected: Vec<u8> = expected.chars().map(|letter| letter as u8).collect();
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
        assert_eq!(out, expected);
    }

    #[test]
    fn what_never_ended_is_not_lost() {
        let mut plain = Plain::new(Look { color: false, width: 100 }, false);
        let mut out = Vec::new();
        let at = Duration::from_secs;
        plain.event(at(0), &Event::Started(StepId(0)), None, &mut out);
        plain.event(at(1), &Event::Output(StepId(0), Stream::Stderr, b"half a li"), None, &mut out);
        plain.finish(at(2), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "#1 (unknown step)\n#1 2.000 half a li\n");
    }
}
