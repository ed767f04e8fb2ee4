//! `--check`, `--call` and `--format`: whether the build checks alone are asked for, and in what form.
//!
//! In: the values of the flags. Out: a [`ReportForm`], or what is wrong with them. What always holds: what else
//! `docker build --call` can do is refused by name.

use clap::ValueEnum;

use super::values::yes_no;

/// The form of what `--print` and `--check` print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportForm {
    /// For people
    Text,
    /// For programs
    Json,
    /// For code scanning
    Sarif,
}

/// What `--check`, `--call` and `--format` come to: `None` is a build.
pub(super) fn requested(
    check: bool,
    call: Option<&str>,
    format: Option<ReportForm>,
) -> Result<Option<ReportForm>, String> {
    let mut form = format;
    let mut fields = call.unwrap_or("build").split(',');
    let called = match fields.next().unwrap_or_default() {
        "build" => false,
        "check" | "lint" => true,
        other @ ("outline" | "targets" | "subrequests.describe") => {
            return Err(format!(
                "not supported yet: --call={other}; --print graph shows the stages, --print ast the instructions"
            ));
        }
        other => return Err(format!("--call={other}: expected build or check")),
    };
    for field in fields {
        match field.split_once('=').unwrap_or((field, "true")) {
            ("format", value) => {
                let given = ReportForm::from_str(value, true)
                    .map_err(|_| format!("--call …,format={value}: expected text, json or sarif"))?;
                form = Some(given);
            }
            ("ignorestatus", value) if yes_no(value) == Ok(false) => {}
            (key, _) => return Err(format!("not supported yet: --call …,{key}; the exit status tells what was found")),
        }
    }
    Ok((check || called).then_some(form.unwrap_or(ReportForm::Text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        use ReportForm::{Json, Sarif, Text};
        for (check, call, format, expected) in [
            (false, None, None, Ok(None)),
            (true, None, None, Ok(Some(Text))),
            (false, Some("check"), Some(Sarif), Ok(Some(Sarif))),
            (false, Some("lint,format=json"), None, Ok(Some(Json))),
            (false, Some("build"), None, Ok(None)),
            (false, Some("outline"), None, Err("not supported yet: --call=outline")),
            (false, Some("chekc"), None, Err("expected build or check")),
            (false, Some("check,format=xml"), None, Err("expected text, json or sarif")),
            (false, Some("check,ignorestatus=true"), None, Err("not supported yet")),
        ] {
            let got = requested(check, call, format);
            match expected {
                Ok(expected) => assert_eq!(got, Ok(expected), "{call:?}"),
                Err(part) => assert!(got.as_ref().is_err_and(|why| why.contains(part)), "{call:?}: {got:?}"),
            }
        }
    }
}
