//! `--load`: the result for `docker load` or `podman load`, whichever is there.
//!
//! In: whether an output asks for it. Out: a program that waits for an archive, and what it said. What always holds: it is
//! started before the build, so that it is missed early and runs as whoever started rbuild (a build may enter a user
//! namespace later); it gets nothing from a build that failed, and ends with rbuild, since its input then ends.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};

use super::Job;
use crate::cli::failure::Failure;
use crate::cli::output_spec::OutputSpec;
use crate::output::Stream;

/// The programs, the first that is there is taken.
const PROGRAMS: [&str; 2] = ["docker", "podman"];

/// The most of what such a program says that is shown: 64 KiB.
const MOST: u64 = 64 << 10;

/// A program that loads an image.
pub(super) struct Loader {
    name: &'static str,
    child: Child,
    input: Option<Arc<File>>,
    /// What it says: a file, so that it never waits for a reader.
    said: File,
}

impl Loader {
    /// Starts one, if an output wants it.
    pub(super) fn start(job: &Job<'_>) -> Result<Option<Self>, Failure> {
        if !job.args.outputs.iter().any(OutputSpec::is_load) {
            return Ok(None);
        }
        let path = job.settings.var("PATH")?.unwrap_or_default();
        let find = |name: &str| {
            let files = std::env::split_paths(&path).map(|folder| folder.join(name));
            files.into_iter().find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
        };
        let found = PROGRAMS.iter().find_map(|name| Some((*name, find(name)?)));
        let Some((name, program)) = found else {
            return Err(anyhow!(
                "--load and type=docker without dest hand the image to `docker load` or `podman load`, and neither \
                 docker nor podman is in PATH; install one, or write what they read: -o type=docker,dest=FILE"
            )
            .into());
        };
        let folder = job.lease.folder();
        let said =
            tempfile::tempfile_in(folder).with_context(|| format!("cannot make a file in {}", folder.display()))?;
        let copy = || said.try_clone().context("cannot open a file twice");
        let mut child = Command::new(&program)
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(copy()?)
            .stderr(copy()?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().map(|input| Arc::new(File::from(OwnedFd::from(input))));
        Ok(Some(Self { name, child, input, said }))
    }

    /// `docker load`.
    pub(super) fn name(&self) -> String {
        format!("`{} load`", self.name)
    }

    /// What the archive is written to.
    pub(super) fn stream(&self) -> Stream {
        // Proof: the input is taken by `finish` alone, which takes all of it.
        let file = Arc::clone(self.input.as_ref().expect("it has not been ended"));
        Stream { name: format!("the input of {}", self.name()), file }
    }

    /// Ends its input and waits for it: the lines that it said. `failed` is why the archive was not written.
    pub(super) fn finish(mut self, failed: Option<&anyhow::Error>) -> Result<Vec<String>, Failure> {
        if failed.is_some_and(|error| !is_closed(error)) {
            // A part of an archive must not be loaded. The error itself is told by the caller.
            self.end();
            return Ok(Vec::new());
        }
        self.input = None;
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name()))?;
        let mut said = Vec::new();
        let read = self.said.rewind().and_then(|()| (&self.said).take(MOST).read_to_end(&mut said));
        read.with_context(|| format!("cannot read what {} said", self.name()))?;
        let text = String::from_utf8_lossy(&said);
        if !status.success() {
            return Err(anyhow!("{} failed ({status}): {}", self.name(), text.trim()).into());
        }
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Ends it as it is.
    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.input = None;
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Of a build that failed it would load an empty archive, and complain.
        if self.input.is_some() {
            self.end();
        }
    }
}

/// Whether the program closed its input before all was written: it says best why.
fn is_closed(error: &anyhow::Error) -> bool {
    let causes = || error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes().any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
