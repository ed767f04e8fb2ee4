//! `rbuild --call=outline` and `--call=targets`: what a Dockerfile offers, and nothing is built.
//!
//! In: [`BuildArgs`], [`Settings`]. Out: on standard output, what BuildKit prints for the same question, as text or JSON.
//! What always holds: no network, nothing is written, not even an empty store; an image that is not in the store is no
//! error, but standard error tells that its triggers were not looked at.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::args::{BuildArgs, Call, Method, ReportForm};
use super::check::{self, report};
use super::failure::Failure;
use super::render::{base64, table};
use super::settings::Settings;
use super::stdout::stdout;
use super::{build, render::diagnostic::Look};
use crate::diagnostic::{Diagnostic, Source};
use crate::dockerfile::{self, Parsed};
use crate::plan::outline::{Outline, Wanted, outline};
use crate::plan::{self, PlanOptions};

/// BuildKit's tables: columns as narrow as can be, and so many blanks between.
const PARAMETERS: (usize, usize) = (0, 3);
const TARGETS: (usize, usize) = (0, 1);

/// Answers.
pub(super) fn run(args: &BuildArgs, call: Call, settings: &Settings) -> Result<ExitCode, Failure> {
    let answered = build::with_dockerfile(args, settings, |source, _| match call.method {
        Method::Targets => targets(call.form, source),
        _ => parameters(args, call.form, settings, source),
    });
    match answered {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure @ Failure::Diagnostics { .. }) if call.ignore_status => {
            let text = failure.text(Look { color: settings.color(), width: settings.width() });
            // Standard error that is gone changes nothing.
            let _ = io::stderr().lock().write_all(text.as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => Err(failure),
    }
}

fn parsed(source: &Source) -> Result<Parsed, Failure> {
    let parsed = dockerfile::parse(source);
    if parsed.has_errors() { Err(wrong(source, parsed.diagnostics)) } else { Ok(parsed) }
}

/// Errors alone: what else there is to say, the build checks say.
fn wrong(source: &Source, mut list: Vec<Diagnostic>) -> Failure {
    list.retain(Diagnostic::is_error);
    Failure::Diagnostics { source: source.clone(), list }
}

fn sources(source: &Source) -> Value {
    json!([base64(source.text.as_bytes())])
}

/// Puts in what there is.
fn put(object: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        object.insert(key.to_owned(), json!(text));
    }
}

fn print_json(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(stdout(), "{value:#}")?)
}

/// The stages.
fn targets(form: ReportForm, source: &Source) -> Result<(), Failure> {
    let stages = parsed(source)?.dockerfile.stages;
    let text = |word: &Option<dockerfile::ast::Word>| word.as_ref().map_or("", |word| word.text.as_str()).to_owned();
    let is_default = |number: usize| number + 1 == stages.len();
    if form == ReportForm::Json {
        let list: Vec<Value> = stages
            .iter()
            .enumerate()
            .map(|(number, stage)| {
                let mut object = Map::new();
                put(&mut object, "name", &text(&stage.name));
                if is_default(number) {
                    object.insert("default".to_owned(), json!(true));
                }
                put(&mut object, "description", stage.description.as_deref().unwrap_or_default());
                put(&mut object, "base", &stage.image.text);
                put(&mut object, "platform", &text(&stage.platform));
                object.insert("location".to_owned(), report::of_lines(stage.lines));
                Value::Object(object)
            })
            .collect();
        return print_json(&json!({"targets": list, "sources": sources(source)}));
    }
    let rows = stages.iter().enumerate().map(|(number, stage)| {
        let name = match (text(&stage.name), is_default(number)) {
            (name, false) => name,
            (name, true) if name.is_empty() => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
        };
        [name, stage.description.clone().unwrap_or_default()]
    });
    Ok(table::aligned(&mut stdout(), TARGETS, &["TARGET", "DESCRIPTION"], rows)?)
}

/// What the target takes.
fn parameters(args: &BuildArgs, form: ReportForm, settings: &Settings, source: &Source) -> Result<(), Failure> {
    let parsed = parsed(source)?;
    let mut options = check::options(args, settings)?;
    // They take the same but for the values of automatic arguments: those of the first are shown, as with Docker.
    options.platforms.truncate(1);
    let (found, absent) = take_in(args, &parsed, &options, settings, source)?;
    if form == ReportForm::Json {
        print_json(&as_json(&found, source))?;
    } else {
        as_text(&found, &mut stdout())?;
    }
    if !absent.is_empty() {
        let verb = if absent.len() == 1 { "is" } else { "are" };
        let line = format!("not looked at: triggers of {}, which {verb} not in the local store\n", absent.join(", "));
        // Standard error that is gone does not change what was found.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
    Ok(())
}

/// The outline, and the images that were missing.
fn take_in(
    args: &BuildArgs,
    parsed: &Parsed,
    options: &PlanOptions,
    settings: &Settings,
    source: &Source,
) -> Result<(Outline, Vec<String>), Failure> {
    let wrong = |list| wrong(source, list);
    let graph = plan::graph(&parsed.dockerfile, options).map_err(wrong)?;
    let store = check::existing_store(settings)?;
    let mut absent = Vec::new();
    let mut resolve = |request: &plan::BaseRequest| check::resolve(request, args, store.as_ref());
    let (plan, _) = check::planned(&graph, options, &mut resolve, &mut absent).map_err(wrong)?;
    Ok((outline(&parsed.dockerfile, &graph, &plan, options), absent))
}

fn as_json(outline: &Outline, source: &Source) -> Value {
    let Outline { name, description, args, secrets, ssh } = outline;
    let mut object = Map::new();
    put(&mut object, "name", name.as_deref().unwrap_or_default());
    put(&mut object, "description", description.as_deref().unwrap_or_default());
    let args = args.iter().map(|argument| {
        let mut object = Map::new();
        put(&mut object, "name", &argument.name);
        put(&mut object, "description", argument.description.as_deref().unwrap_or_default());
        put(&mut object, "value", &argument.value);
        object.insert("location".to_owned(), report::of_lines(argument.lines));
        Value::Object(object)
    });
    let wanted = |list: &[Wanted]| {
        let one = |wanted: &Wanted| {
            let mut object = Map::new();
            put(&mut object, "name", &wanted.id);
            if wanted.required {
                object.insert("required".to_owned(), json!(true));
            }
            object.insert("location".to_owned(), report::of_lines(wanted.lines));
            Value::Object(object)
        };
        list.iter().map(one).collect::<Vec<_>>()
    };
    for (key, list) in [("args", args.collect()), ("secrets", wanted(secrets)), ("ssh", wanted(ssh))] {
        if !list.is_empty() {
            object.insert(key.to_owned(), Value::Array(list));
        }
    }
    object.insert("sources".to_owned(), sources(source));
    Value::Object(object)
}

fn as_text(outline: &Outline, out: &mut dyn Write) -> io::Result<()> {
    let Outline { name, description, args, secrets, ssh } = outline;
    let name = name.as_deref().unwrap_or("(default)");
    match description {
        Some(description) => {
            writeln!(out, "{:<13}{name}\n{:<13}{}\n", "TARGET:", "DESCRIPTION:", report::printable(description))?;
        }
        None if outline.name.is_some() => writeln!(out, "TARGET: {name}\n")?,
        None => {}
    }
    if !args.is_empty() {
        let rows = args.iter().map(|argument| {
            [argument.name.as_str(), argument.value.as_str(), argument.description.as_deref().unwrap_or_default()]
        });
        table::aligned(out, PARAMETERS, &["BUILD ARG", "VALUE", "DESCRIPTION"], rows)?;
        writeln!(out)?;
    }
    for (heading, list) in [("SECRET", secrets), ("SSH", ssh)] {
        if !list.is_empty() {
            let rows = list.iter().map(|wanted| [wanted.id.as_str(), if wanted.required { "true" } else { "" }]);
            table::aligned(out, PARAMETERS, &[heading, "REQUIRED"], rows)?;
            writeln!(out)?;
        }
    }
    Ok(())
}
