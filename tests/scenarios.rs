//! Every file of `testdata/scenarios`, as a user would type it. `RBUILD_SCENARIO=PART` runs those whose name has PART.

use std::sync::Mutex;

use crate::support::machine::source_dir;
use crate::support::scenario;

#[test]
fn scenarios() {
    let wanted = std::env::var("RBUILD_SCENARIO").unwrap_or_default();
    let folder = source_dir().join("testdata/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the project has scenarios")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|end| end == "test") && path.to_string_lossy().contains(&wanted))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenario named {wanted}");
    let (queue, failures) = (Mutex::new(files.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(file) = queue.lock().expect("no scenario panics with the lock").next() else { break };
                    let outcome = std::panic::catch_unwind(|| scenario::check(file)).unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        Err(format!("{}: {text}", file.display()))
                    });
                    if let Err(failure) = outcome {
                        failures.lock().expect("no scenario panics with the lock").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no scenario panics with the lock");
    assert!(failures.is_empty(), "{} of {} scenarios failed\n\n{}", failures.len(), files.len(), failures.join("\n\n"));
}
