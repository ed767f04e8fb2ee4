//! `rbuild version`: which rbuild this is.
//!
//! In: nothing. Out: a line, JSON, or text by a template. What always holds: no store and no file is looked at.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;

use super::args::{VERSION, VersionArgs};
use super::failure::Failure;
use super::rows::wrong;
use super::stdout::stdout;
use super::template::Template;
use super::template::value::Value;

/// Prints it.
pub(super) fn run(args: &VersionArgs) -> Result<ExitCode, Failure> {
    let facts = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Os": std::env::consts::OS,
        "Arch": super::find::machine().architecture,
    });
    let text = match args.format.as_deref() {
        None | Some("") => VERSION.to_owned(),
        Some("json") => facts.to_string(),
        Some(text) => {
            let template = Template::parse(text).map_err(wrong)?;
            template.render(&Value::structure(&facts)).map_err(wrong)?
        }
    };
    writeln!(stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
