//! Runs a graph of jobs, each as soon as what it needs is done.
//!
//! In: for each job the jobs it needs (all with smaller numbers), and a function that does one. Out: nothing, or the
//! first error. What always holds: a job runs once and only after what it needs; after an error no further job starts;
//! when this returns, no thread is left.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

struct Queue<E> {
    ready: BTreeSet<usize>,
    /// How many of its needs each job still waits for.
    waiting: Vec<usize>,
    unfinished: usize,
    error: Option<E>,
}

/// Jobs that wait for somebody else, such as a server, at most so many at once.
const ASIDE: usize = 8;

/// Does all jobs of `needs` but those in `done`, at most `threads` at once, the lowest number first. Those from number
/// `aside` on need nothing, take no processor, and have threads of their own. `stop` is called once
/// the first error is noted, so that what others then say for being stopped is never taken for it.
pub(crate) fn run<E: Send>(
    needs: &[Vec<usize>],
    done: &[bool],
    threads: usize,
    aside: usize,
    job: &(dyn Fn(usize) -> Result<(), E> + Sync),
    stop: &(dyn Fn() + Sync),
) -> Result<(), E> {
    let mut needed_by = vec![Vec::new(); needs.len()];
    let mut waiting = vec![0; needs.len()];
    for (index, needed) in needs.iter().enumerate() {
        for need in needed.iter().copied().filter(|need| !done[*need]) {
            needed_by[need].push(index);
            waiting[index] += 1;
        }
    }
    let ready: BTreeSet<_> = (0..aside).filter(|index| !done[*index] && waiting[*index] == 0).collect();
    let unfinished = done.iter().filter(|done| !**done).count();
    let waits: BTreeSet<usize> = (aside..needs.len()).filter(|index| !done[*index]).collect();
    let waiting_threads = waits.len().min(ASIDE);
    let waits = Mutex::new(waits);
    let queue = Mutex::new(Queue { ready, waiting, unfinished, error: None });
    let changed = Condvar::new();
    let finish = |index: usize, result: Result<(), E>| {
        let mut state = queue.lock().unwrap_or_else(PoisonError::into_inner);
        state.unfinished -= 1;
        match result {
            Ok(()) => {
                for next in &needed_by[index] {
                    state.waiting[*next] -= 1;
                    if state.waiting[*next] == 0 {
                        state.ready.insert(*next);
                    }
                }
            }
            Err(error) if state.error.is_none() => {
                state.error = Some(error);
                stop();
            }
            Err(_) => {}
        }
        changed.notify_all();
        state
    };
    let work = || {
        let mut state = queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.error.is_some() || state.unfinished == 0 {
                return;
            }
            let Some(index) = state.ready.pop_first() else {
                state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            state = finish(index, job(index));
        }
    };
    let work_aside = || {
        let next = || waits.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
        while let Some(index) = next() {
            if finish(index, job(index)).error.is_some() {
                return;
            }
        }
    };
    // The calling thread works too: one job at a time needs no further thread.
    let extra = threads.min(unfinished).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..extra {
            scope.spawn(work);
        }
        for _ in 0..waiting_threads {
            scope.spawn(work_aside);
        }
        work();
    });
    queue.into_inner().unwrap_or_else(PoisonError::into_inner).error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn needs_come_first_whatever_the_threads() {
        let needs = vec![vec![], vec![0], vec![0], vec![1, 2], vec![], vec![3, 4]];
        for threads in 1..4 {
            let order = Mutex::new(Vec::new());
            run::<()>(
                &needs,
                &[false; 6],
                threads,
                6,
                &|index| {
                    order.lock().unwrap().push(index);
                    Ok(())
                },
                &|| {},
            )
            .unwrap();
            let order = order.into_inner().unwrap();
            let place = |job: usize| order.iter().position(|done| *done == job).unwrap();
            for (job, needed) in needs.iter().enumerate() {
                assert!(needed.iter().all(|need| place(*need) < place(job)), "{order:?}");
            }
        }
    }

    #[test]
    fn independent_jobs_run_at_once() {
        // Both must be in the barrier at the same time, or this never ends.
        let barrier = Barrier::new(2);
        run::<()>(
            &[vec![], vec![]],
            &[false; 2],
            2,
            2,
            &|_| {
                barrier.wait();
                Ok(())
            },
            &|| {},
        )
        .unwrap();
    }

    #[test]
    fn who_waits_for_somebody_else_holds_up_nobody() {
        // Of one thread; both that wait, and the job that needs neither, must be in the barrier at the same time.
        let barrier = Barrier::new(3);
        let order = Mutex::new(Vec::new());
        run::<()>(
            &[vec![2, 3], vec![], vec![], vec![]],
            &[false; 4],
            1,
            2,
            &|index| {
                if index > 0 {
                    barrier.wait();
                }
                order.lock().unwrap().push(index);
                Ok(())
            },
            &|| {},
        )
        .unwrap();
        let order = order.into_inner().unwrap();
        let place = |job: usize| order.iter().position(|done| *done == job).unwrap();
        assert!(order.len() == 4 && place(0) > place(2) && place(0) > place(3), "{order:?}");
    }

    #[test]
    fn an_error_stops_what_has_not_begun() {
        let begun = AtomicUsize::new(0);
        let result = run(
            &[vec![], vec![0], vec![1]],
            &[false; 3],
            2,
            3,
            &|index| {
                begun.fetch_add(1, Ordering::Relaxed);
                if index == 1 { Err("one") } else { Ok(()) }
            },
            &|| {},
        );
        assert_eq!((result, begun.load(Ordering::Relaxed)), (Err("one"), 2));
    }

    #[test]
    fn what_is_stopped_is_not_the_error() {
        let stopped = AtomicUsize::new(0);
        for _ in 0..100 {
            stopped.store(0, Ordering::SeqCst);
            let job = |index| {
                while index == 1 && stopped.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                Err(if index == 0 { "the error" } else { "stopped" })
            };
            let stop = || stopped.store(1, Ordering::SeqCst);
            assert_eq!(run(&[vec![], vec![]], &[false; 2], 2, 2, &job, &stop), Err("the error"));
        }
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let ran = Mutex::new(Vec::new());
        run::<()>(
            &[vec![], vec![0], vec![1]],
            &[true, true, false],
            2,
            3,
            &|index| {
                ran.lock().unwrap().push(index);
                Ok(())
            },
            &|| {},
        )
        .unwrap();
        assert_eq!(ran.into_inner().unwrap(), [2]);
    }
}
