//! Whole builds by the clock: what nothing to do costs, and what each further `RUN true` costs.
//!
//! Prints medians of ten runs, as root and as an ordinary user where the caller can be both, on a Debian root file system
//! (`RBUILD_BENCH_ROOTFS`, or the one that `examples/quickstart.sh` has made; else busybox, and it says so), in a store with
//! ten thousand cache records. Asserts nothing: figures are for people.
#![allow(clippy::print_stdout)]

mod timing;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use timing::{Place, TEN, median};

const RUNS: usize = 10;
const RECORDS: usize = 10_000;
/// Stages of the build that fills the store, and directories that each makes.
const STAGES: usize = 100;

/// Lets the store hold as many records as that of somebody who has built for months.
fn fill(place: &Place) -> Result<()> {
    let mut text = String::new();
    for stage in 0..STAGES {
        writeln!(text, "FROM scratch AS s{stage}")?;
        for n in 0..RECORDS / STAGES {
            writeln!(text, "WORKDIR /{stage}/{n}")?;
        }
    }
    text += "FROM scratch\n";
    for stage in 0..STAGES {
        writeln!(text, "COPY --from=s{stage} /{stage}/0 /taken/{stage}")?;
    }
    place.dockerfile(&text)?;
    place.build().map(|_| ())
}

fn nothing_to_do(place: &Place) -> Result<Duration> {
    place.dockerfile(TEN)?;
    place.build()?;
    median((0..RUNS).map(|_| place.build()))
}

/// What a build of twenty commands takes more than one of ten, a tenth of it.
fn further_run(place: &Place) -> Result<Duration> {
    // Names that no build before has used, or its commands would be cached.
    static NAME: AtomicUsize = AtomicUsize::new(0);
    let timed = |runs: usize| {
        let mut text = "FROM base\n".to_owned();
        for _ in 0..runs {
            let name = NAME.fetch_add(1, Ordering::Relaxed);
            writeln!(text, "RUN true # {name}")?;
        }
        place.dockerfile(&text)?;
        place.build()
    };
    timed(1)?;
    median((0..RUNS).map(|_| Ok((timed(20)?.saturating_sub(timed(10)?)) / 10)))
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (tar, what) = timing::rootfs(folder.path())?;
    println!("{what}; medians of {RUNS}");
    timing::as_each(|who, user| {
        let place = Place::new(user, &tar)?;
        let print = |what: &str, took: Duration, goal: u32| {
            println!("{who:<9} {what:<46} {:>7.1} ms   (goal: {goal} ms)", took.as_secs_f64() * 1000.0);
        };
        print("nothing to do, ten instructions", nothing_to_do(&place)?, 30);
        print("each further RUN true", further_run(&place)?, 20);
        fill(&place)?;
        print("nothing to do, 10,000 records in the store", nothing_to_do(&place)?, 30);
        print("each further RUN true, 10,000 records", further_run(&place)?, 20);
        Ok(())
    })
}
