//! Hashing on a second thread.
//!
//! In: chunks of bytes that several sums may share. Out: digests. What always holds: at most a few chunks wait, so
//! memory is bounded; the thread is gone when its [`HashThread`] is, so a process can be single-threaded again.

use crate::digest::{Digest, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 1 << 20;

/// Chunks that wait for a thread before the sender does.
const WAITING: usize = 3;

/// A block of bytes that can be shared once it is full.
pub(crate) struct Chunk {
    /// `CHUNK` bytes.
    pub(crate) bytes: Box<[u8]>,
    /// How many of them count.
    pub(crate) length: usize,
}

/// Chunks that can be used again once nobody else reads them.
#[derive(Default)]
pub(crate) struct Pool(Vec<Arc<Chunk>>);

impl Pool {
    /// An empty chunk: one that is free again, else a new one.
    pub(crate) fn take(&mut self) -> Chunk {
        for at in 0..self.0.len() {
            if Arc::strong_count(&self.0[at]) == 1
                && let Ok(chunk) = Arc::try_unwrap(self.0.swap_remove(at))
            {
                return Chunk { length: 0, ..chunk };
            }
        }
        Chunk { bytes: vec![0; CHUNK].into_boxed_slice(), length: 0 }
    }

    /// Takes back a chunk that others may still read.
    pub(crate) fn give(&mut self, chunk: Arc<Chunk>) {
        self.0.push(chunk);
    }
}

enum Job {
    Data(Arc<Chunk>, Range<usize>),
    End,
}

/// A thread that hashes what it is sent, sum after sum.
pub(crate) struct HashThread {
    /// `None` only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    digests: Receiver<Digest>,
    thread: Option<JoinHandle<()>>,
}

impl HashThread {
    /// Starts the thread with `sum` as what was seen so far.
    pub(crate) fn start(sum: Hasher) -> std::io::Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(WAITING);
        let (done, digests) = channel();
        let thread = std::thread::Builder::new().name("sha256".to_owned()).spawn(move || {
            let mut sum = sum;
            for job in todo {
                match job {
                    Job::Data(chunk, range) => sum.update(&chunk.bytes[range]),
                    Job::End => {
                        // Nobody waits for the digest when the writer failed.
                        if done.send(std::mem::take(&mut sum).finish()).is_err() {
                            break;
                        }
                    }
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), digests, thread: Some(thread) })
    }

    /// Adds a part of a chunk to the sum.
    pub(crate) fn update(&self, chunk: &Arc<Chunk>, range: Range<usize>) {
        if !range.is_empty() {
            self.send(Job::Data(Arc::clone(chunk), range));
        }
    }

    /// Ends the sum and starts the next one.
    pub(crate) fn end(&self) -> Digest {
        self.send(Job::End);
        self.digests.recv().expect("the thread answers each End")
    }

    fn send(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("present until drop");
        jobs.send(job).expect("the thread runs until its channel closes");
    }
}

impl Drop for HashThread {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It only panics where hashing does, which it does not.
            drop(thread.join());
        }
    }
}
