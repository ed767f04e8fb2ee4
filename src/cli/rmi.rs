//! `rbuild rmi`: takes names away, and with its last name the image.
//!
//! In: names and ids. Out: what became of each, in Docker's words. What always holds: an image goes only when nothing
//! names it any more; its layers stay for the cache until `prune`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;

use super::args::RmiArgs;
use super::failure::Failure;
use super::find;
use super::settings::Settings;
use super::stdout::stdout;
use crate::image::reference::Reference;
use crate::store::Store;

/// Removes them.
pub(super) fn run(args: &RmiArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    let store = find::store(settings)?;
    let mut failures = Vec::new();
    for name in &args.images {
        match remove(&store, name, args.force) {
            Ok(()) => {}
            Err(Failure::Error(error)) => failures.push(format!("{error:#}")),
            Err(other) => return Err(other),
        }
    }
    if failures.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::Error(anyhow!(failures.join("\n")))) }
}

fn remove(store: &Store, name: &str, force: bool) -> Result<(), Failure> {
    let image = match find::lookup(store, name)? {
        Some(image) => image,
        None if force => return Ok(()),
        None => find::image(store, name)?,
    };
    let named = Reference::parse(name).ok().map(|name| name.to_string());
    let going: Vec<String> = if let Some(named) = named.filter(|named| image.names.contains(named)) {
        vec![named]
    } else {
        if image.names.len() > 1 && !force {
            let names: Vec<String> = find::names(&image).iter().map(Reference::familiar).collect();
            let names = names.join(", ");
            return Err(Failure::Error(anyhow!(
                "{name} has several names ({names}); remove them one by one, or all with -f"
            )));
        }
        image.names.clone()
    };
    let mut out = stdout();
    let (gone, forgotten) = store.untag(&image.id, &going).map_err(anyhow::Error::from)?;
    for name in gone {
        let shown = Reference::parse(&name).map_or_else(|_| name.clone(), |name| name.familiar());
        writeln!(out, "Untagged: {shown}")?;
    }
    if forgotten {
        // Its layers are the cache's now.
        store.count_anew();
        writeln!(out, "Deleted: {}", image.id)?;
    }
    Ok(())
}
