//! Threads that share a list of work.
//!
//! In: items, what is to be done with each, and how many threads may be at it. Out: what came of each, in order. What always
//! holds: the calling thread works too; the others are joined when a function returns; after an error nothing more begins.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` with each item, with at most so many at once. What came of them, in their order; of several errors the one of
/// the first item.
pub fn at_once<I: Sync, T: Send, E: Send>(
    most: usize,
    items: &[I],
    work: impl Fn(&I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return done };
            let result = work(item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.push((number, result));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let others = (1..most.min(items.len()))
            // One that does not start only costs time.
            .map_while(|_| std::thread::Builder::new().name("work".to_owned()).spawn_scoped(scope, some).ok());
        let others: Vec<_> = others.collect();
        let mut done = some();
        for other in others {
            // A panic there is a panic here.
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn all_is_done_in_order_and_no_more_than_so_many_at_once() {
        let items: Vec<usize> = (0..50).collect();
        for most in [0, 1, 4, 100] {
            let (now, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let done = at_once(most, &items, |item| {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(200));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, ()>(item * 2)
            });
            assert_eq!(done, Ok(items.iter().map(|item| item * 2).collect()));
            assert!(peak.into_inner() <= most.max(1), "{most}");
        }
        assert_eq!(at_once(4, &[], |(): &()| Err::<(), ()>(())), Ok(Vec::new()));
    }

    #[test]
    fn the_first_error_ends_it() {
        let items: Vec<usize> = (0..1000).collect();
        for most in [1, 3] {
            let begun = AtomicUsize::new(0);
            let failed = at_once(most, &items, |item| {
                begun.fetch_add(1, Ordering::SeqCst);
                if *item < 10 { Ok(()) } else { Err(*item) }
            });
            assert_eq!(failed, Err(10));
            assert!(begun.into_inner() <= 10 + most, "what had begun may end, no more");
        }
    }
}
