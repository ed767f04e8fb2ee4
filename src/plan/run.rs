//! RUN: the command, and what is around it.
//!
//! In: an instruction, and the stage so far. Out: a step, and a line of history. What always holds: what the sandbox
//! cannot do is an error by name.

use std::fmt::Write as _;

use crate::diagnostic::{Diagnostic, Span};
use crate::dockerfile::ast::{Run, Script};

use super::config::clean;
use super::limits::Security;
use super::scope::SOURCE_DATE_EPOCH;
use super::stage::{Place, Planner, State, Told};
use super::step::{Network, Op, RunOp};

impl Planner<'_> {
    pub(super) fn run(&mut self, place: Place<'_>, state: &mut State, run: &Run) -> Result<(), Told> {
        let before = self.diagnostics.len();
        let mounts = self.mounts(place, state, &run.mounts);
        for device in &run.devices {
            self.unsupported(place, device.span, "RUN --device");
        }
        let mut security = Security::Sandbox;
        if let Some(word) = &run.security {
            match word.text.as_str() {
                "sandbox" => {}
                "insecure" if self.options.allowed.security_insecure => security = Security::Insecure,
                "insecure" => self.not_allowed(place, word.span, "RUN --security=insecure", "security.insecure"),
                other => {
                    let message = format!("security {other} is not valid: it is sandbox or insecure");
                    self.tell(place, Diagnostic::error(word.span, message));
                }
            }
        }
        let mut network = self.options.network;
        if let Some(word) = &run.network {
            match word.text.as_str() {
                "default" => {}
                "none" => network = Network::None,
                "host" if self.options.allowed.network_host => network = Network::Host,
                "host" => self.not_allowed(place, word.span, "RUN --network=host", "network.host"),
                other => {
                    let message = format!("invalid network mode: \"{other}\": it is default, none or host");
                    self.tell(place, Diagnostic::error(word.span, message));
                }
            }
        }
        if self.diagnostics[before..].iter().any(Diagnostic::is_error) {
            return Err(Told);
        }
        let (args, script) = match run.script() {
            Script::Shell(text) => (state.folded.in_shell(&text), None),
            Script::Exec(args) => (args, None),
            Script::File { name, body } => (state.folded.in_shell(&format!("/dev/pipes/{name}")), Some((name, body))),
        };
        if args.is_empty() {
            return self.fail(place, place.instruction.span, "RUN has no command");
        }
        self.note_epoch(place, state);
        let mut line = String::from("RUN ");
        let arguments: Vec<&str> = state.arguments.names().collect();
        if !arguments.is_empty() {
            // Writing to a String does not fail.
            let _ = write!(line, "|{} ", arguments.len());
            for name in arguments {
                let value = state.variables.get(name).or_else(|| state.arguments.get(name)).unwrap_or_default();
                let _ = write!(line, "{name}={value} ");
            }
        }
        line.push_str(&args.join(" "));
        line.push_str(" # buildkit");
        let op = RunOp { security, mounts, ..self.run_op(state, args, script, network) };
        self.spend(place, place.span(), line.len() + op.env.iter().map(String::len).sum::<usize>())?;
        let step = self.step(place, state, Op::Run(op));
        state.folded.commit(line, Some(step));
        Ok(())
    }

    /// A command where the stage stands.
    fn run_op(&self, state: &State, args: Vec<String>, script: Option<(String, String)>, network: Network) -> RunOp {
        RunOp {
            args,
            script,
            env: state.variables.entries(),
            proxy_env: self.options.undeclared_proxies(&state.variables),
            cwd: clean(state.folded.cwd()),
            user: state.folded.config.config.user.clone(),
            network,
            hostname: self.options.sandbox_hostname(),
            mounts: Vec::new(),
            security: Security::Sandbox,
            limits: self.options.limits.clone(),
            shell: state.folded.config.config.shell.clone(),
        }
    }

    /// A RUN asks for what only the user can allow.
    fn not_allowed(&mut self, place: Place<'_>, span: Span, what: &str, entitlement: &str) {
        let error = Diagnostic::error(span, format!("{what} is not allowed"));
        self.tell(place, error.help(format!("if you trust this Dockerfile, allow it: --allow {entitlement}")));
    }

    /// A shell in the state of a stage.
    pub(super) fn shell_op(&self, state: &State) -> RunOp {
        self.run_op(state, Vec::new(), None, self.options.network)
    }

    /// Hints, once for each stage, that what RUN writes has times of its own.
    fn note_epoch(&mut self, place: Place<'_>, state: &mut State) {
        if self.options.epoch.is_some() && !state.epoch_told && state.variables.get(SOURCE_DATE_EPOCH).is_none() {
            state.epoch_told = true;
            let message = "SOURCE_DATE_EPOCH is given, but this RUN does not see it";
            let warning = Diagnostic::warning(place.instruction.span, "EpochNotDeclared", message);
            let help =
                "write ARG SOURCE_DATE_EPOCH in the stage, so that tools leave their own times out of what they make";
            self.tell(place, warning.help(help));
        }
    }
}
