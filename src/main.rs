//! The rbuild command.

use std::process::ExitCode;

fn main() -> ExitCode {
    rbuild::exec::init_hook();
    rbuild::cli::run(std::env::args_os())
}
