//! The files of a random build context, as values.
//!
//! In: names and what stands there, now and before. Out: the same in the folder `ctx`. What always holds: what did not
//! change is not touched; hard links are written anew, since what they name may have changed.

use std::collections::BTreeMap;

use super::env::TestEnv;

/// What a name of the context is.
#[derive(Debug, Clone, PartialEq)]
pub enum File {
    /// A file.
    Bytes {
        /// What it holds.
        text: String,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link(&'static str),
    /// A further name of another file.
    Same(&'static str),
}

/// Writes `files` into the environment's context, in which `before` stands.
pub fn lay_out(env: &TestEnv, files: &BTreeMap<&'static str, File>, before: &BTreeMap<&'static str, File>) {
    let plain = |name: &str| matches!(files.get(name), Some(File::Bytes { .. }));
    let same = |name: &&'static str, file: &File| before.get(name) == Some(file) && !matches!(file, File::Same(_));
    for (name, file) in before {
        if files.get(name).is_none_or(|now| !same(name, now))
            && env.path(&format!("ctx/{name}")).symlink_metadata().is_ok()
        {
            env.remove(&format!("ctx/{name}"));
        }
        debug_assert!(!matches!(file, File::Bytes { mode: 0, .. }));
    }
    // Plain files first: further names and links point at them.
    for (name, file) in files {
        let path = format!("ctx/{name}");
        if same(name, file) {
            continue;
        }
        match file {
            File::Bytes { text, mode } => {
                env.write(&path, text);
                env.mode(&path, *mode);
            }
            File::Link(target) => env.link(&path, target),
            File::Same(_) => {}
        }
    }
    for (name, file) in files {
        if let File::Same(other) = file
            && plain(other)
        {
            env.write(&format!("ctx/{name}"), "");
            env.remove(&format!("ctx/{name}"));
            std::fs::hard_link(env.path(&format!("ctx/{other}")), env.path(&format!("ctx/{name}")))
                .expect("links work here");
        }
    }
}
