//! Progress as BuildKit's status objects, one per line: `--progress rawjson`.
//!
//! In: events and when they happened. Out: lines for programs that read what `docker build --progress=rawjson` writes:
//! `vertexes` (`digest`, `name`, `started`, `completed`, `cached`, `error`), `logs` (`vertex`, `stream` 1 or 2,
//! `data` in base64, `timestamp`) and `warnings` (`vertex`, `short`, `detail`, `url`, `range`). What always holds: a
//! vertex has one digest for the whole build; it names the vertex and is no digest of any content.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::base64;
use crate::diagnostic::{Diagnostic, Source};
use crate::digest::Digest;
use crate::dockerfile::lint::{Rule, rule};
use crate::event::{Event, Stream};
use crate::plan::step::StepId;

/// The state between events.
#[derive(Debug)]
pub(crate) struct RawJson {
    /// When the build began.
    began: Timestamp,
    steps: Vec<String>,
    started: BTreeMap<String, Duration>,
}

impl RawJson {
    pub(crate) fn new(began: Timestamp) -> Self {
        Self { began, steps: Vec::new(), started: BTreeMap::new() }
    }

    /// What `event`, `at` so long after the start, adds to `out`.
    pub(crate) fn event(&mut self, at: Duration, event: &Event<'_>, source: Option<&Source>, out: &mut Vec<u8>) {
        let object = match event {
            Event::Planned(plan) => {
                self.steps = plan.steps.iter().map(|step| step.name.clone()).collect();
                let steps = (0..self.steps.len()).map(StepId).map(|step| self.vertex(&step_name(step), None, []));
                json!({"vertexes": steps.collect::<Vec<_>>()})
            }
            Event::Began(name) => self.start(name, at),
            Event::Ended(name, _) => self.end(name, at, []),
            Event::Started(step) => self.start(&step_name(*step), at),
            Event::Cached(step, _) => self.end(&step_name(*step), at, [("cached", json!(true))]),
            Event::Finished(step, ..) => self.end(&step_name(*step), at, []),
            Event::Failed(step, why) => self.end(&step_name(*step), at, [("error", json!(why))]),
            Event::Canceled(step) => self.end(&step_name(*step), at, [("error", json!("context canceled"))]),
            Event::Output(step, stream, bytes) => {
                let stream = if *stream == Stream::Stdout { 1 } else { 2 };
                let (vertex, data) = (digest(&step_name(*step)), base64(bytes));
                json!({"logs": [{"vertex": vertex, "stream": stream, "data": data, "timestamp": self.time(at)}]})
            }
            Event::Warning(warning) => json!({"warnings": [warning_object(warning, source)]}),
            Event::Note(note) => json!({"warnings": [{"level": 1, "short": base64(note.as_bytes())}]}),
            // BuildKit has no word for why.
            Event::Missed(..) | Event::Imported(..) => return,
        };
        out.extend_from_slice(object.to_string().as_bytes());
        out.push(b'\n');
    }

    fn time(&self, at: Duration) -> String {
        // The build would have to take thousands of years to leave the range of timestamps.
        self.began.checked_add(at).unwrap_or(Timestamp::MAX).to_string()
    }

    fn start(&mut self, name: &str, at: Duration) -> Value {
        self.started.insert(name.to_owned(), at);
        json!({"vertexes": [self.vertex(name, Some(at), [])]})
    }

    fn end<const N: usize>(&mut self, name: &str, at: Duration, more: [(&str, Value); N]) -> Value {
        let started = self.started.get(name).copied().unwrap_or(at);
        let more = [("completed", json!(self.time(at)))].into_iter().chain(more);
        json!({"vertexes": [self.vertex(name, Some(started), more)]})
    }

    fn vertex<'a>(
        &self,
        name: &str,
        started: Option<Duration>,
        more: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Value {
        let shown = name.strip_prefix(STEP).and_then(|number| self.steps.get(number.parse::<usize>().ok()?));
        let mut vertex = json!({"digest": digest(name), "name": shown.map_or(name, String::as_str)});
        if let Some(object) = vertex.as_object_mut() {
            object.extend(started.map(|at| ("started".to_owned(), json!(self.time(at)))));
            object.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        vertex
    }
}

/// What the names of steps begin with here, so that two steps of one name are two vertexes.
const STEP: &str = "step ";

fn step_name(step: StepId) -> String {
    format!("{STEP}{}", step.0)
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn warning_object(warning: &Diagnostic, source: Option<&Source>) -> Value {
    let short = match (warning.rule, source.zip(warning.span)) {
        (Some(rule), Some((source, span))) => format!("{rule}: {} (line {})", warning.message, source.line(span.start)),
        (Some(rule), None) => format!("{rule}: {}", warning.message),
        (None, _) => warning.message.clone(),
    };
    let detail: Vec<String> = warning.help.iter().map(|line| base64(line.as_bytes())).collect();
    let mut object = json!({"level": 1, "short": base64(short.as_bytes()), "detail": detail});
    if let Some(url) = warning.rule.and_then(rule).and_then(Rule::url) {
        object["url"] = json!(url);
    }
    if let (Some(source), Some(span), Some(object)) = (source, warning.span, object.as_object_mut()) {
        let position = |offset| json!({"line": source.line(offset)});
        let last = span.end.saturating_sub(1).max(span.start);
        object.insert("range".to_owned(), json!([{"start": position(span.start), "end": position(last)}]));
        object.insert("sourceInfo".to_owned(), json!({"filename": source.name}));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::super::story;
    use super::*;

    #[test]
    fn a_build_in_buildkits_words() {
        let mut raw = RawJson::new(Timestamp::from_second(1_700_000_000).unwrap());
        let mut out = Vec::new();
        story::tell(|at, event, source| raw.event(at, event, Some(source), &mut out));
        let text = String::from_utf8(out).unwrap();
        let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let vertex = |i: usize| &objects[i]["vertexes"][0];
        assert_eq!(objects[0]["vertexes"].as_array().unwrap().len(), 5);
        assert_eq!(vertex(0)["name"], "[1/4] WORKDIR /app");
        assert_eq!(vertex(1)["name"], "[internal] load build context");
        assert_eq!(vertex(1)["started"], "2023-11-14T22:13:20Z");
        assert_eq!((&vertex(2)["started"], &vertex(2)["digest"]), (&vertex(1)["started"], &vertex(1)["digest"]));
        assert_eq!(vertex(2)["completed"], "2023-11-14T22:13:20.1Z");
        assert_eq!((&vertex(3)["cached"], &vertex(3)["name"]), (&json!(true), &vertex(0)["name"]));
        assert_eq!(vertex(4)["name"], "[2/4] RUN make");
        let log = &objects[7]["logs"][0];
        assert_eq!(log["vertex"], vertex(4)["digest"]);
        assert_eq!((&log["stream"], &log["data"]), (&json!(2), &json!("d2FybmluZzogYv9kCm5vIGU=")));
        let failed = objects.iter().find(|object| object["vertexes"][0]["error"] == "exit status 1").unwrap();
        assert_eq!(failed["vertexes"][0]["name"], "[4/4] RUN false");
        let warning = objects.iter().find(|object| object["warnings"][0]["range"].is_array()).unwrap();
        assert_eq!(warning["warnings"][0]["range"][0]["start"]["line"], 2);
        let digests: std::collections::BTreeSet<String> = objects
            .iter()
            .flat_map(|object| object["vertexes"].as_array().cloned().unwrap_or_default())
            .map(|vertex| vertex["digest"].to_string())
            .collect();
        assert_eq!(digests.len(), 7, "five steps and two parts");
    }
}
