//! The build checks: what Docker warns of in a Dockerfile that can be built.
//!
//! In: the instructions as written, and what parser and planner found. Out: warnings, as `# check=` and
//! `BUILDKIT_DOCKERFILE_CHECK` want them. What always holds: names, descriptions and messages are Docker's, since
//! people skip rules by name and programs read the messages; a rule that needs more than the text lives where that is
//! known (`plan::lint`, the files of the context in `cli`), and only the table below knows of all.

pub mod settings;
mod syntax;

pub use settings::{Checks, Settings, Settled};
pub use syntax::check as check_syntax;

/// A build check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// What it asks for, in one sentence.
    pub description: &'static str,
    /// The last part of its page's address; none where Docker has no page.
    slug: &'static str,
    /// It is asked only where `experimental=` names it.
    pub experimental: bool,
    /// A build asks it only of the stages that it builds.
    built: bool,
}

impl Rule {
    /// Where Docker explains it.
    pub fn url(&self) -> Option<String> {
        (!self.slug.is_empty()).then(|| format!("https://docs.docker.com/go/dockerfile/rule/{}/", self.slug))
    }
}

const fn file(name: &'static str, slug: &'static str, description: &'static str) -> Rule {
    Rule { name, description, slug, experimental: false, built: false }
}

const fn built(name: &'static str, slug: &'static str, description: &'static str) -> Rule {
    Rule { built: true, ..file(name, slug, description) }
}

/// All checks.
pub const RULES: [Rule; 22] = [
    file("StageNameCasing", "stage-name-casing", "Stage names should be lowercase"),
    file("FromAsCasing", "from-as-casing", "The 'as' keyword should match the case of the 'from' keyword"),
    file(
        "NoEmptyContinuation",
        "no-empty-continuation",
        "Empty continuation lines will become errors in a future release",
    ),
    file(
        "ConsistentInstructionCasing",
        "consistent-instruction-casing",
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
    ),
    file("DuplicateStageName", "duplicate-stage-name", "Stage names should be unique"),
    file("ReservedStageName", "reserved-stage-name", "Reserved words should not be used as stage names"),
    built(
        "JSONArgsRecommended",
        "json-args-recommended",
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    ),
    file(
        "MaintainerDeprecated",
        "maintainer-deprecated",
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    ),
    file("UndefinedArgInFrom", "undefined-arg-in-from", "FROM command must use declared ARGs"),
    built(
        "WorkdirRelativePath",
        "workdir-relative-path",
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base \
         image changes",
    ),
    built("UndefinedVar", "undefined-var", "Variables should be defined before their use"),
    built(
        "MultipleInstructionsDisallowed",
        "multiple-instructions-disallowed",
        "Multiple instructions of the same type should not be used in the same stage",
    ),
    built(
        "LegacyKeyValueFormat",
        "legacy-key-value-format",
        "Legacy key/value format with whitespace separator should not be used",
    ),
    built("InvalidBaseImagePlatform", "", "Base image platform does not match expected target platform"),
    file(
        "RedundantTargetPlatform",
        "redundant-target-platform",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    ),
    built(
        "SecretsUsedInArgOrEnv",
        "secrets-used-in-arg-or-env",
        "Sensitive data should not be used in the ARG or ENV commands",
    ),
    file(
        "InvalidDefaultArgInFrom",
        "invalid-default-arg-in-from",
        "Default value for global ARG results in an empty or invalid base image name",
    ),
    file(
        "FromPlatformFlagConstDisallowed",
        "from-platform-flag-const-disallowed",
        "FROM --platform flag should not use a constant value",
    ),
    built("CopyIgnoredFile", "copy-ignored-file", "Attempting to Copy file that is excluded by .dockerignore"),
    Rule {
        experimental: true,
        ..file(
            "InvalidDefinitionDescription",
            "invalid-definition-description",
            "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this \
             is not intended to be a description comment, add an empty line or comment between the instruction and the \
             comment.",
        )
    },
    built("ExposeProtoCasing", "expose-proto-casing", "Protocol in EXPOSE instruction should be lowercase"),
    built(
        "ExposeInvalidFormat",
        "expose-invalid-format",
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a \
         future release",
    ),
];

/// The check of that name.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}
