//! Debian's buildah, run so that it needs no network and nothing of the machine's settings.
//!
//! In: an environment whose `ctx` is a context. Out: the image that buildah makes of it, or what it said. What always
//! holds: its storage is a folder of the test and goes with it.

use std::path::PathBuf;
use std::process::Command;

use crate::support::env::{Run, TestEnv};
use crate::support::machine;
use crate::support::oci::Image;

/// A storage with the busybox base in it.
pub struct Buildah {
    /// Its folder; the environment removes it.
    folder: PathBuf,
}

impl Buildah {
    /// Brings the base in, as rbuild writes it.
    pub fn new(env: &TestEnv) -> Self {
        let buildah = Self { folder: env.path("buildah") };
        env.directory(&buildah.folder);
        env.write("buildah/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        env.write("buildah/registries.conf", "");
        env.write("buildah/context/Dockerfile", "FROM busybox\n");
        env.rbuild("build -o type=oci,dest=buildah/base.tar buildah/context").ok();
        let id = buildah.run(&["pull", "--quiet", "oci-archive:base.tar"]).ok().stdout;
        buildah.run(&["tag", id.trim(), "localhost/busybox"]).ok();
        buildah.copy("root", "base");
        buildah
    }

    fn copy(&self, from: &str, to: &str) {
        let mut command = Command::new("cp");
        Run::of(command.args(["-a", from, to]).current_dir(&self.folder)).ok();
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = Command::new("buildah");
        command
            .args(["--root", "root", "--runroot", "run", "--storage-driver", "vfs"])
            .args(["--registries-conf", "registries.conf"])
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.folder)
            .env("TMPDIR", &self.folder)
            .env("XDG_RUNTIME_DIR", &self.folder);
        Run::of(&mut command)
    }

    /// Builds the context, in a storage that holds the base and nothing else.
    pub fn build(&self, env: &TestEnv) -> Result<Image, String> {
        let context = env.path("ctx");
        for part in ["root", "run"] {
            machine::remove_tree(&self.folder.join(part));
        }
        self.copy("base", "root");
        let policy = ["--signature-policy", "policy.json"];
        let mut args = vec![
            "bud",
            "--quiet",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--pull-never",
            "--identity-label=false",
        ];
        args.extend(policy);
        args.extend(["--tag", "made", context.to_str().expect("the test's folder has a plain name")]);
        let built = self.run(&args);
        if built.code != Some(0) {
            return Err(built.shown());
        }
        self.run(&["push", "--quiet", policy[0], policy[1], "made", "docker-archive:made.tar"]).ok();
        let image = Image::read_foreign_docker(&self.folder.join("made.tar"));
        env.remove("buildah/made.tar");
        Ok(image)
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        machine::remove_tree(&self.folder);
    }
}
