//! `--check`, `--call` and `--format`: whether only something about the Dockerfile is asked for, and in what form.
//!
//! In: the values of the flags. Out: a [`Call`], or what is wrong with them. What always holds: what else
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

/// What is asked about a Dockerfile instead of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// What the build checks find.
    Check,
    /// What the target takes: build arguments, secrets, SSH agents.
    Outline,
    /// Which stages there are.
    Targets,
}

/// A question about a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What it is.
    pub method: Method,
    /// How the answer is printed.
    pub form: ReportForm,
    /// The exit status does not tell what was found.
    pub ignore_status: bool,
}

/// What `--check`, `--call` and `--format` come to: `None` is a build.
pub(super) fn requested(check: bool, call: Option<&str>, format: Option<ReportForm>) -> Result<Option<Call>, String> {
    let mut form = format;
    let mut ignore_status = false;
    let mut fields = call.unwrap_or("build").split(',');
    let first = fields.next().unwrap_or_default();
    let called = match first {
        "build" => None,
        "check" | "lint" => Some(Method::Check),
        "outline" => Some(Method::Outline),
        "targets" => Some(Method::Targets),
        "subrequests.describe" => {
            return Err(format!("not supported: --call={first}; there are build, check, outline and targets"));
        }
        other => return Err(format!("--call={other}: expected build, check, outline or targets")),
    };
    for field in fields {
        match field.split_once('=').unwrap_or((field, "true")) {
            ("format", value) => {
                let given = ReportForm::from_str(value, true)
                    .map_err(|_| format!("--call …,format={value}: expected text, json or sarif"))?;
                form = Some(given);
            }
            ("ignorestatus", value) => {
                ignore_status = yes_no(value).map_err(|why| format!("--call …,ignorestatus={value}: {why}"))?;
            }
            (key, _) => return Err(format!("--call …,{key}: expected format or ignorestatus")),
        }
    }
    let method = match (check, called) {
        (true, Some(Method::Outline | Method::Targets)) => {
            return Err(format!("--check and --call={first} cannot both hold"));
        }
        (true, _) => Method::Check,
        (false, Some(method)) => method,
        (false, None) => return Ok(None),
    };
    if method != Method::Check && form == Some(ReportForm::Sarif) {
        return Err(format!("--call={first} has the forms text and json"));
    }
    Ok(Some(Call { method, form: form.unwrap_or(ReportForm::Text), ignore_status }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        use Method::{Check, Outline, Targets};
        use ReportForm::{Json, Sarif, Text};
        let one = |method, form| Ok(Some(Call { method, form, ignore_status: false }));
        for (check, call, format, expected) in [
            (false, None, None, Ok(None)),
            (true, None, None, one(Check, Text)),
            (false, Some("check"), Some(Sarif), one(Check, Sarif)),
            (false, Some("lint,format=json"), None, one(Check, Json)),
            (false, Some("build"), None, Ok(None)),
            (false, Some("outline"), None, one(Outline, Text)),
            (false, Some("targets"), Some(Json), one(Targets, Json)),
            (false, Some("outline,format=json"), None, one(Outline, Json)),
            (
                false,
                Some("check,ignorestatus=true"),
                None,
                Ok(Some(Call { method: Check, form: Text, ignore_status: true })),
            ),
            (true, Some("outline"), None, Err("--check and --call=outline cannot both hold")),
            (false, Some("outline,format=sarif"), None, Err("has the forms text and json")),
            (false, Some("subrequests.describe"), None, Err("not supported: --call=subrequests.describe")),
            (false, Some("chekc"), None, Err("expected build, check, outline or targets")),
            (false, Some("check,format=xml"), None, Err("expected text, json or sarif")),
            (false, Some("check,ignorestatus=maybe"), None, Err("expected true or false")),
            (false, Some("check,what"), None, Err("expected format or ignorestatus")),
        ] {
            let got = requested(check, call, format);
            match expected {
                Ok(expected) => assert_eq!(got, Ok(expected), "{call:?}"),
                Err(part) => assert!(got.as_ref().is_err_and(|why| why.contains(part)), "{call:?}: {got:?}"),
            }
        }
    }
}
