//! Progress as JSON, one object per line: `--progress json`.
//!
//! In: events and when they happened. Out: lines that programs read. What always holds: every object has `event` and
//! (but for `error`) `time`, in seconds since the build began; fields are added over time, never renamed or removed.
//!
//! | `event` | further fields |
//! |---|---|
//! | `planned` | `steps`: of each its `step` (a number from 0 that later events repeat), `name`, `lines` (first and last of the Dockerfile) |
//! | `began`, `ended` | `name` of a part that is no step; `ended` has `seconds` |
//! | `cached` | `step`, `name`, `key` |
//! | `missed` | `step`, `name`, `reason`, and `why`: the reason in one word (`first_build`, `disabled`, `op_changed`, `parent_changed`, `landing_changed`, `files_changed`, `layer_gone`, `damaged`) |
//! | `started` | `step`, `name` |
//! | `output` | `step`, `stream` (`stdout`, `stderr`), `line` without its end; `bytes` in base64 where the line is not UTF-8 |
//! | `finished` | `step`, `name`, `layer` (diffID), `seconds` |
//! | `failed` | `step`, `name`, `error` |
//! | `canceled` | `step`, `name` |
//! | `warning` | `message`, `help` (lines), and where they are known `rule`, `file`, `line` |
//! | `note` | `message` |
//! | `built` | the last one of a build that went well: `image` (its id), `content` (its content digest, or null), `names` |
//! | `error` | the last one of a build that failed: `text`, what people would be shown |

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Built;
use super::output::Lines;
use crate::diagnostic::{Diagnostic, Source};
use crate::event::{Event, MissReason, Stream};
use crate::plan::step::StepId;

/// The state between events.
#[derive(Debug, Default)]
pub(crate) struct Json {
    steps: Vec<String>,
    lines: BTreeMap<(StepId, bool), Lines>,
}

impl Json {
    /// What `event`, `at` so long after the start, adds to `out`.
    pub(crate) fn event(&mut self, at: Duration, event: &Event<'_>, source: Option<&Source>, out: &mut Vec<u8>) {
        match event {
            Event::Planned(plan) => {
                self.steps = plan.steps.iter().map(|step| step.name.clone()).collect();
                let steps = plan
                    .steps
                    .iter()
                    .enumerate()
                    .map(|(i, step)| json!({"step": i, "name": step.name, "lines": [step.lines.0, step.lines.1]}));
                put(out, "planned", at, [("steps", steps.collect())]);
            }
            Event::Began(name) => put(out, "began", at, [("name", json!(name))]),
            Event::Ended(name, took) => put(out, "ended", at, [("name", json!(name)), ("seconds", seconds(*took))]),
            Event::Imported(step, cache) => {
                self.put_step(out, "imported", at, *step, vec![("cache", json!(cache))]);
            }
            Event::Cached(step, key) => self.put_step(out, "cached", at, *step, vec![("key", json!(key))]),
            Event::Missed(step, reason) => {
                let reasons = vec![("why", json!(word(reason))), ("reason", json!(reason.to_string()))];
                self.put_step(out, "missed", at, *step, reasons);
            }
            Event::Started(step) => self.put_step(out, "started", at, *step, vec![]),
            Event::Output(step, stream, bytes) => {
                let lines = self.lines.entry((*step, *stream == Stream::Stderr)).or_default();
                lines.push(bytes, |line| put_output(out, at, *step, *stream, line));
            }
            Event::Finished(step, layer, took) => {
                self.flush(*step, at, out);
                let fields = vec![("layer", json!(layer)), ("seconds", seconds(*took))];
                self.put_step(out, "finished", at, *step, fields);
            }
            Event::Failed(step, why) => {
                self.flush(*step, at, out);
                self.put_step(out, "failed", at, *step, vec![("error", json!(why))]);
            }
            Event::Canceled(step) => {
                self.flush(*step, at, out);
                self.put_step(out, "canceled", at, *step, vec![]);
            }
            Event::Warning(warning) => put(out, "warning", at, warning_fields(warning, source)),
            Event::Note(note) => put(out, "note", at, [("message", json!(note))]),
        }
    }

    /// Writes what has no line end yet, and what was built.
    pub(crate) fn finish(&mut self, at: Duration, built: Option<&Built>, out: &mut Vec<u8>) {
        let steps: Vec<StepId> = self.lines.keys().map(|(step, _)| *step).collect();
        for step in steps {
            self.flush(step, at, out);
        }
        if let Some(Built { image, content, names }) = built {
            let fields = [("image", json!(image)), ("content", json!(content)), ("names", json!(names))];
            put(out, "built", at, fields);
        }
    }

    fn flush(&mut self, step: StepId, at: Duration, out: &mut Vec<u8>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(mut lines) = self.lines.remove(&(step, stream == Stream::Stderr)) {
                lines.finish(|line| put_output(out, at, step, stream, line));
            }
        }
    }

    fn put_step(&self, out: &mut Vec<u8>, event: &str, at: Duration, step: StepId, fields: Vec<(&str, Value)>) {
        let name = self.steps.get(step.0).map(String::as_str);
        put(out, event, at, [("step", json!(step.0)), ("name", json!(name))].into_iter().chain(fields));
    }
}

/// The object that ends a build that failed.
pub(crate) fn error_line(text: &str) -> String {
    format!("{}\n", json!({"event": "error", "text": text}))
}

fn put<'a>(out: &mut Vec<u8>, event: &str, at: Duration, fields: impl IntoIterator<Item = (&'a str, Value)>) {
    let mut object = Map::new();
    object.insert("event".to_owned(), json!(event));
    object.insert("time".to_owned(), seconds(at));
    object.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

fn put_output(out: &mut Vec<u8>, at: Duration, step: StepId, stream: Stream, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    let mut fields = vec![("step", json!(step.0)), ("stream", json!(stream_name(stream))), ("line", json!(text))];
    if text.as_bytes() != line {
        fields.push(("bytes", json!(base64(line))));
    }
    put(out, "output", at, fields);
}

fn warning_fields(warning: &Diagnostic, source: Option<&Source>) -> Vec<(&'static str, Value)> {
    let mut fields = vec![("message", json!(warning.message)), ("help", json!(warning.help))];
    fields.extend(warning.rule.map(|rule| ("rule", json!(rule))));
    if let Some(source) = source {
        fields.push(("file", json!(source.name)));
        fields.extend(warning.span.map(|span| ("line", json!(source.line(span.start)))));
    }
    fields
}

/// Seconds to the millisecond.
fn seconds(time: Duration) -> Value {
    json!(time.as_millis() as f64 / 1000.0)
}

const fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

const fn word(reason: &MissReason) -> &'static str {
    match reason {
        MissReason::FirstBuild => "first_build",
        MissReason::Disabled => "disabled",
        MissReason::OpChanged { .. } => "op_changed",
        MissReason::ParentChanged => "parent_changed",
        MissReason::LandingChanged => "landing_changed",
        MissReason::FilesChanged { .. } => "files_changed",
        MissReason::MountsChanged => "mounts_changed",
        MissReason::LayerGone => "layer_gone",
        MissReason::Damaged(_) => "damaged",
    }
}

/// `bytes` in base64, padded (RFC 4648).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::story;
    use super::*;
    use crate::digest::{ContentDigest, Digest, ImageId};

    #[test]
    fn a_build_as_objects() {
        let mut json = Json::default();
        let mut out = Vec::new();
        story::tell(|at, event, source| json.event(at, event, Some(source), &mut out));
        let digest = Digest::of(b"built");
        let built = Built { image: ImageId(digest), content: Some(ContentDigest(digest)), names: vec!["a:b".into()] };
        json.finish(Duration::from_secs(9), Some(&built), &mut out);
        let (key, copy, make) = ("sha256:2c70e12b7a06", "sha256:6f5a6034e770", "sha256:d05aa2a15fb3");
        let built = &digest.to_string()[..19];
        let text = String::from_utf8(out).unwrap();
        // Digests are cut, so that the lines can be read.
        let got: Vec<String> = text.lines().map(cut_digests).collect();
        let expected = [
            r#"{"event":"planned","time":0.0,"steps":[{"step":0,"name":"[1/4] WORKDIR /app","lines":[2,2]},{"step":1,"name":"[2/4] RUN make","lines":[2,2]},{"step":2,"name":"[3/4] COPY . .","lines":[2,2]},{"step":3,"name":"[4/4] RUN false","lines":[2,2]},{"step":4,"name":"[other 1/1] RUN sleep 9","lines":[2,2]}]}"#.to_owned(),
            r#"{"event":"began","time":0.0,"name":"[internal] load build context"}"#.to_owned(),
            r#"{"event":"ended","time":0.1,"name":"[internal] load build context","seconds":0.1}"#.to_owned(),
            format!(r#"{{"event":"cached","time":0.15,"step":0,"name":"[1/4] WORKDIR /app","key":"{key}"}}"#),
            r#"{"event":"missed","time":0.2,"step":1,"name":"[2/4] RUN make","why":"files_changed","reason":"files changed: a.c"}"#.to_owned(),
            r#"{"event":"started","time":0.25,"step":1,"name":"[2/4] RUN make"}"#.to_owned(),
            r#"{"event":"output","time":0.5,"step":1,"stream":"stdout","line":"cc a.c"}"#.to_owned(),
            r#"{"event":"output","time":0.75,"step":1,"stream":"stderr","line":"warning: b�d","bytes":"d2FybmluZzogYv9k"}"#.to_owned(),
            r#"{"event":"started","time":0.8,"step":2,"name":"[3/4] COPY . ."}"#.to_owned(),
            format!(r#"{{"event":"finished","time":1.2,"step":2,"name":"[3/4] COPY . .","layer":"{copy}","seconds":0.4}}"#),
            r#"{"event":"output","time":1.5,"step":1,"stream":"stdout","line":"10%\r100%"}"#.to_owned(),
            r#"{"event":"output","time":1.75,"step":1,"stream":"stderr","line":"no end"}"#.to_owned(),
            format!(r#"{{"event":"finished","time":1.75,"step":1,"name":"[2/4] RUN make","layer":"{make}","seconds":2.0}}"#),
            r#"{"event":"warning","time":1.8,"message":"JSON arguments recommended for CMD","help":[],"rule":"JSONArgsRecommended","file":"Dockerfile","line":2}"#.to_owned(),
            r#"{"event":"note","time":1.8,"message":"something to know"}"#.to_owned(),
            r#"{"event":"started","time":1.9,"step":3,"name":"[4/4] RUN false"}"#.to_owned(),
            r#"{"event":"started","time":1.95,"step":4,"name":"[other 1/1] RUN sleep 9"}"#.to_owned(),
            r#"{"event":"failed","time":2.0,"step":3,"name":"[4/4] RUN false","error":"exit status 1"}"#.to_owned(),
            r#"{"event":"canceled","time":2.1,"step":4,"name":"[other 1/1] RUN sleep 9"}"#.to_owned(),
            r#"{"event":"began","time":2.2,"name":"exporting to image"}"#.to_owned(),
            r#"{"event":"ended","time":2.21,"name":"exporting to image","seconds":0.01}"#.to_owned(),
            format!(r#"{{"event":"built","time":9.0,"image":"{built}","content":"{built}","names":["a:b"]}}"#),
        ];
        assert_eq!(got, expected);
        for line in text.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
    }

    fn cut_digests(line: &str) -> String {
        let mut cut = String::new();
        let mut rest = line;
        while let Some(at) = rest.find("sha256:") {
            cut.push_str(&rest[..at + 19]);
            rest = &rest[at + 71..];
        }
        cut + rest
    }

    #[test]
    fn bytes_are_encoded() {
        for (bytes, expected) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"fooba", "Zm9vYmE="),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xfe\xfd\x00", "//79AA=="),
        ] {
            assert_eq!(base64(bytes), expected, "{bytes:?}");
        }
    }
}
