//! Where buildah is known to do something else, and why rbuild is right.
//!
//! In: a difference. Out: whether it is known. What always holds: each row names its reason; instructions whose results
//! differ in ways that later instructions carry on stand in [`NOT_ASKED`], and no case has them.

use super::Difference;

/// A difference that is no news.
struct Known {
    /// Why rbuild's way is the right one.
    reason: &'static str,
    is: fn(&Difference) -> bool,
}

const KNOWN: &[Known] = &[
    Known {
        reason: "buildah leaves the files that it mounts for RUN in the image, and COPY --from takes them along",
        is: |one| {
            let name = one.place.rsplit('/').next().unwrap_or_default();
            one.field == "exists" && one.rbuild == "nothing" && matches!(name, "hostname" | "hosts" | "resolv.conf")
        },
    },
    Known {
        reason: "buildah gives a copied file its owner after its mode, which takes setuid and setgid away",
        is: |one| one.kind == '-' && one.bits().is_some_and(|(ours, theirs)| ours & !0o6000 == theirs),
    },
    Known {
        reason: "buildah makes the directories of VOLUME; Docker does when a container starts",
        is: |one| one.field == "exists" && matches!(&*one.place, "vol" | "vol2"),
    },
    Known {
        reason: "buildah copies source by source: two names of one file stay one in one COPY only below a directory",
        is: |one| one.field == "names" && one.place.ends_with(['1', '2']) && one.buildah.is_empty(),
    },
    Known {
        reason: "buildah moves a variable that is set again to the end; rbuild and BuildKit leave it in its place",
        is: |one| one.place == "Env" && sorted(&one.rbuild) == sorted(&one.buildah),
    },
    Known {
        reason: "a symbolic link that has two names is written as two links: nobody can tell them apart",
        is: |one| one.field == "names" && one.kind == 'l' && one.rbuild.is_empty(),
    },
    Known {
        reason: "a later RUN that changes a file by one of its names parts them, as in Docker; buildah runs all steps of a \
                 stage in one place",
        is: |one| {
            let ours: Vec<&str> = one.rbuild.split(' ').filter(|name| !name.is_empty()).collect();
            one.field == "names" && one.place.starts_with("o/") && ours.iter().all(|name| one.buildah.contains(name))
        },
    },
    Known {
        reason: "--chmod is for directories, too: those of the source and those that COPY makes",
        is: |one| one.kind == 'd' && matches!(one.bits(), Some((0o600 | 0o640 | 0o710, 0o755))),
    },
    Known {
        reason: "buildah does not hand SHELL on to a stage that builds on another",
        is: |one| {
            matches!(&*one.place, "Entrypoint" | "Cmd")
                && one.rbuild.contains("\"-ec\"")
                && one.rbuild.replace("-ec", "-c") == one.buildah
        },
    },
    Known {
        reason: "an ARG holds in the stages that build on its stage as well; buildah forgets it",
        is: |one| one.place == "Env" && one.rbuild.replace("=given", "=unset") == one.buildah,
    },
    Known {
        reason: "a directory that is left out but for a file in it is copied for that file, owner and all, as BuildKit \
                 does; buildah leaves one that is there already as it was",
        is: |one| one.kind == 'd' && one.field == "owner" && one.place.ends_with("/e") && one.rbuild == "0:0",
    },
];

/// Parts of instructions that both understand, but not alike, and what holds rbuild's way.
pub const NOT_ASKED: &[(&str, &str)] = &[
    (
        " /to/file\n",
        "a named destination that leads to a file: buildah puts a file in place of the link, rbuild and BuildKit write \
         where it leads (testdata/scenarios/copy_links.test)",
    ),
    ("EXPOSE 8000-", "buildah keeps the range as one word, which no reader of images knows (src/plan/config.rs)"),
];

/// What buildah cannot build: a part of its message, and why rbuild can.
pub const REFUSED_BY_BUILDAH: &[(&str, &str)] = &[];

/// What rbuild refuses: a part of its message, and why.
pub const REFUSED_BY_RBUILD: &[(&str, &str)] = &[
    (
        "a directory is there, and only a directory can be copied onto it",
        "buildah removes the directory with all that is in it; BuildKit refuses, as rbuild does (docs/decisions.md, 20)",
    ),
    (
        "and a directory replaces nothing else",
        "buildah removes what is there; BuildKit refuses, as rbuild does (docs/decisions.md, 20)",
    ),
];

/// The reason why a difference is no news.
pub fn reason(difference: &Difference) -> Option<&'static str> {
    KNOWN.iter().find(|known| (known.is)(difference)).map(|known| known.reason)
}

/// The strings of a JSON list, without their order.
fn sorted(list: &str) -> Vec<String> {
    let mut list: Vec<String> = serde_json::from_str(list).unwrap_or_default();
    list.sort();
    list
}
