//! A build to tell, for the tests of all renderers: something from the cache, two steps at once, output in parts and in
//! no encoding, a warning, a failure, a step that is stopped.

use std::time::Duration;

use crate::diagnostic::{Diagnostic, Source, Span};
use crate::digest::{CacheKey, DiffId, Digest};
use crate::event::{Event, MissReason, Stream};
use crate::image::platform::Platform;
use crate::plan::step::{MakeDirOp, Op, Plan, Stack, Step, StepId};

/// Tells it: the events, when each happened, and the Dockerfile.
pub(crate) fn tell(mut listener: impl FnMut(Duration, &Event<'_>, &Source)) {
    let source = Source { name: "Dockerfile".into(), text: "FROM a\nCMD x\n".into() };
    let plan = Plan {
        steps: ["[1/4] WORKDIR /app", "[2/4] RUN make", "[3/4] COPY . .", "[4/4] RUN false", "[other 1/1] RUN sleep 9"]
            .map(step)
            .into(),
        ..Plan::default()
    };
    let mut say = |at: u64, event: Event<'_>| listener(Duration::from_millis(at), &event, &source);
    let took = Duration::from_millis;
    let (make, copy) = (StepId(1), StepId(2));
    say(0, Event::Planned(&plan));
    say(0, Event::Began("[internal] load build context"));
    say(100, Event::Ended("[internal] load build context", took(100)));
    say(150, Event::Cached(StepId(0), CacheKey(Digest::of(b"key"))));
    let changed = MissReason::FilesChanged { paths: vec!["a.c".into()], more: 0 };
    say(200, Event::Missed(make, &changed));
    say(250, Event::Started(make));
    say(500, Event::Output(make, Stream::Stdout, b"cc a"));
    say(500, Event::Output(make, Stream::Stdout, b".c\n"));
    say(750, Event::Output(make, Stream::Stderr, b"warning: b\xffd\nno e"));
    say(800, Event::Started(copy));
    say(1200, Event::Finished(copy, DiffId(Digest::of(b"copy")), took(400)));
    say(1400, Event::Output(make, Stream::Stderr, b"nd"));
    say(1500, Event::Output(make, Stream::Stdout, b"10%\r100%\r\n"));
    say(1750, Event::Finished(make, DiffId(Digest::of(b"make")), took(2000)));
    let warning = Diagnostic::warning(Span::new(7, 13), "JSONArgsRecommended", "JSON arguments recommended for CMD");
    say(1800, Event::Warning(&warning));
    say(1800, Event::Note("something to know"));
    say(1900, Event::Started(StepId(3)));
    say(1950, Event::Started(StepId(4)));
    say(2000, Event::Failed(StepId(3), "exit status 1"));
    say(2100, Event::Canceled(StepId(4)));
    say(2200, Event::Began("exporting to image"));
    say(2210, Event::Ended("exporting to image", took(10)));
}

fn step(name: &str) -> Step {
    Step {
        parent: Stack::Scratch,
        op: Op::MakeDir(MakeDirOp { path: "/app".into(), user: String::new() }),
        platform: Platform::default(),
        span: Span::new(7, 12),
        lines: (2, 2),
        name: name.to_owned(),
        no_cache: false,
    }
}
