//! The store as commands open it, and images in it by what users call them.
//!
//! In: the settings, a name or an id as it was typed. Out: the store, a lease, an image. What always holds: what an
//! earlier command left unfinished is cleared away first; an id that fits several images is an error that lists them.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::{Context, anyhow};

use super::failure::Failure;
use super::settings::Settings;
use crate::diagnostic::nearest;
use crate::digest::{Digest, ImageId};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::plan::BaseImage;
use crate::store::images::{ImageRecord, Lookup};
use crate::store::lease::Lease;
use crate::store::origins::Origin;
use crate::store::sweep::Swept;
use crate::store::{Store, StoreError, base};
use crate::sys::idmap::IdMap;
use crate::sys::{namespace, process};

/// Characters of an id that tables show.
const SHORT: usize = 12;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Opens the store.
pub(crate) fn store(settings: &Settings) -> Result<Store, Failure> {
    Ok(Store::open(&settings.store_root()?).map_err(anyhow::Error::from)?)
}

/// Takes a lease, for a command that makes something.
pub(crate) fn lease(store: &Store, settings: &Settings) -> Result<Lease, Failure> {
    let boot = boot_id()?;
    let swept = store.sweep(&boot).map_err(anyhow::Error::from)?;
    let lease = store.lease(&boot).map_err(anyhow::Error::from)?;
    tell(recover(store, &lease, &swept, || enter_ids(settings).map(drop))?)?;
    Ok(lease)
}

/// Clears away what dead commands left and what is damaged, for a command that makes nothing: it takes no room on the disk.
pub(crate) fn clear(store: &Store, settings: &Settings) -> Result<(), Failure> {
    let boot = boot_id()?;
    let swept = store.sweep(&boot).map_err(anyhow::Error::from)?;
    if swept.suspects.is_empty() {
        return Ok(());
    }
    let lease = store.lease(&boot).map_err(anyhow::Error::from);
    let checked = lease.and_then(|lease| recover(store, &lease, &swept, || enter_ids(settings).map(drop)));
    tell(match checked {
        // What cannot be checked goes unseen: each of them can be made or brought again.
        Err(error) if is_full(&error) => {
            let count = store.discard_suspects(&swept).map_err(anyhow::Error::from)?.len();
            let note =
                format!("{count} of the store's files were removed unread, as the disk is full: they may be damaged");
            (count > 0).then_some(note)
        }
        other => other?,
    })
}

/// Checks what was swept, and removes what is damaged. `ids` lets the process read file trees; it is called if that must be.
/// What the user is told, if anything.
pub(crate) fn recover(
    store: &Store,
    lease: &Lease,
    swept: &Swept,
    ids: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<String>> {
    if swept.suspects.is_empty() {
        return Ok(None);
    }
    if store.recovering_takes_ids(swept) {
        ids()?;
    }
    Ok(removed_damage(&store.recover(lease, swept)?))
}

/// What the user is told when damage was removed.
fn removed_damage(gone: &[String]) -> Option<String> {
    let (files, were) = if gone.len() == 1 { ("file", "was") } else { ("files", "were") };
    let count = gone.len();
    let note = format!("{count} damaged {files} of the store {were} removed, after a power cut or a fault of the disk");
    (count > 0).then_some(note)
}

fn tell(note: Option<String>) -> Result<(), Failure> {
    if let Some(note) = note {
        writeln!(std::io::stderr().lock(), "{note}")?;
    }
    Ok(())
}

/// Whether the disk, or what the user may have of it, is full.
fn is_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    errors.map(std::io::Error::kind).any(|kind| matches!(kind, StorageFull | QuotaExceeded))
}

/// Takes a lease for a command that only reads: also where nothing can be written to the store.
pub(crate) fn reading_lease(store: &Store, settings: &Settings) -> Result<Lease, Failure> {
    match lease(store, settings) {
        Err(Failure::Error(error)) if matches!(error.downcast_ref(), Some(StoreError::ReadOnly { .. })) => {
            Ok(store.lease_without_writing(&std::env::temp_dir()).map_err(anyhow::Error::from)?)
        }
        other => other,
    }
}

/// Which start of the machine this is: what dead commands of another one left may have suffered from a power cut.
pub(crate) fn boot_id() -> anyhow::Result<String> {
    let id = std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(id.trim().to_owned())
}

/// Lets this process read file trees, whose files belong to mapped ids: root can, everyone else enters a user namespace,
/// for which the process must still have one thread. The ids of the namespace, if it was entered now.
pub(crate) fn enter_ids(settings: &Settings) -> anyhow::Result<Option<IdMap>> {
    if settings.uid == 0 || rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let map = IdMap::of_caller()?;
    namespace::enter_user_namespace(&map)?;
    Ok(Some(map))
}

/// What this machine runs.
pub(crate) fn machine() -> Platform {
    Platform::of_kernel(&process::machine())
}

/// The image of that name or id.
pub(crate) fn image(store: &Store, name: &str) -> Result<ImageRecord, Failure> {
    let none = || Failure::Error(no_such_image(store, name));
    lookup(store, name)?.ok_or_else(none)
}

/// The image of that name or id with all images that it stands for: they stay as long as the command runs.
pub(crate) fn pinned(store: &Store, lease: &Lease, name: &str) -> Result<(ImageRecord, Vec<BaseImage>), Failure> {
    let _shared = lease.shared().map_err(anyhow::Error::from)?;
    let record = image(store, name)?;
    let images = base::pin_record(store, lease, &record).map_err(anyhow::Error::from)?;
    Ok((record, images))
}

/// The one of the images that is for this platform: other than for a build, what merely runs there will not do.
pub(crate) fn for_platform(mut images: Vec<BaseImage>, wanted: &Platform, name: &str) -> anyhow::Result<BaseImage> {
    let fits: Vec<usize> = (0..images.len()).filter(|number| wanted.is(&images[*number].platform)).collect();
    match wanted.best(fits.iter().map(|number| &images[*number].platform)) {
        Some(best) => Ok(images.swap_remove(fits[best])),
        None => {
            let list = images.iter().map(|image| image.platform.to_string()).collect::<Vec<_>>().join(", ");
            Err(anyhow!("{name} has nothing for {wanted}; it is for {list}"))
        }
    }
}

/// The platform that a flag names.
pub(crate) fn platform(text: &str) -> Result<Platform, Failure> {
    Platform::parse(text, &machine()).map_err(|error| Failure::Usage(format!("--platform: {error}")))
}

/// The image of that name or id, if there is one.
pub(crate) fn lookup(store: &Store, name: &str) -> Result<Option<ImageRecord>, Failure> {
    let failed = |error: StoreError| Failure::Error(error.into());
    if let Ok(reference) = Reference::parse(name) {
        let found = match reference.digest() {
            None => store.image_by_name(&reference.to_string()).map_err(failed)?,
            Some(digest) => {
                let same = |known: &String| {
                    Reference::parse(known).is_ok_and(|known| known.familiar_name() == reference.familiar_name())
                };
                let repository = reference.full_name();
                let mut found = None;
                for image in store.images().map_err(failed)? {
                    // Its own, or the one that a registry knows it by, whatever names it has.
                    let named = image.names.iter().any(same);
                    let known = |origin: &Origin| origin.blob == digest && (named || origin.repository == repository);
                    if (named && image.manifest == digest)
                        || store.origins_of_image(&image.id).map_err(failed)?.iter().any(known)
                    {
                        found = Some(image);
                        break;
                    }
                }
                found
            }
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    match store.image_by_id(name).map_err(failed)? {
        Lookup::Found(image) => Ok(Some(image)),
        Lookup::None => Ok(None),
        Lookup::Ambiguous(ids) => {
            let mut candidates = String::new();
            for id in ids.iter().take(20) {
                candidates.push_str("\n  ");
                candidates.push_str(&id.to_string());
            }
            if ids.len() > 20 {
                candidates.push_str("\n  and more");
            }
            Err(Failure::Error(anyhow!("{name} fits several images; write more of the id:{candidates}")))
        }
    }
}

fn no_such_image(store: &Store, name: &str) -> anyhow::Error {
    let images = store.images().unwrap_or_default();
    let names: BTreeSet<String> = images.iter().flat_map(names).map(|name| name.familiar()).collect();
    let wanted = Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar());
    // Another tag of the same repository is nearer than any slip of the fingers.
    let repository = wanted.rsplit_once(':').map_or(wanted.as_str(), |(repository, _)| repository);
    let tags = names.iter().filter(|name| name.rsplit_once(':').is_some_and(|(known, _)| known == repository));
    let tags: Vec<&str> = tags.map(String::as_str).take(5).collect();
    match nearest(&wanted, names.iter().map(String::as_str)) {
        _ if !tags.is_empty() => anyhow!("No such image: {name}; there is {}", tags.join(", ")),
        Some(meant) => anyhow!("No such image: {name}; did you mean {meant}?"),
        None => anyhow!("No such image: {name}"),
    }
}

/// The names of an image.
pub(crate) fn names(image: &ImageRecord) -> Vec<Reference> {
    // What the store wrote can be read again; what somebody else wrote there is not shown.
    image.names.iter().filter_map(|name| Reference::parse(name).ok()).collect()
}

/// The repositories in which an image without a name is known by its digest.
pub(crate) fn repositories(store: &Store, image: &ImageRecord) -> Result<Vec<Reference>, Failure> {
    let known = if image.names.is_empty() { store.origins_of_image(&image.id) } else { Ok(Vec::new()) };
    let known = known.map_err(anyhow::Error::from)?;
    Ok(known.iter().filter_map(|origin| Some(Reference::parse(&origin.repository).ok()?.at(origin.blob))).collect())
}

/// The digest by which an image is known in a repository: that of what was pushed there or pulled from there last, else that
/// of its manifest here.
pub(crate) fn digest(store: &Store, image: &ImageRecord, repository: &Reference) -> Result<Digest, Failure> {
    let name = repository.full_name();
    let known = store.origins_of_image(&image.id).map_err(anyhow::Error::from)?;
    Ok(known.iter().find(|origin| origin.repository == name).map_or(image.manifest, |origin| origin.blob))
}

/// An id as tables show it.
pub(crate) fn short(id: &ImageId) -> String {
    id.0.hex()[..SHORT].to_owned()
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A time of a config, in seconds since 1970.
pub(crate) fn seconds(created: Option<&str>) -> Option<i64> {
    created?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, names: &[&str]) -> ImageRecord {
        ImageRecord {
            id: ImageId(Digest::of(name.as_bytes())),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            manifest: Digest::of(format!("manifest of {name}").as_bytes()),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest_size: 3,
            content: None,
            created: None,
            size: 0,
            platform: "linux/amd64".into(),
        }
    }

    #[test]
    fn images_are_found_by_what_users_call_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let nginx = record("nginx", &["docker.io/library/nginx:latest", "docker.io/library/nginx:1"]);
        let other = record("other", &["localhost:5000/team/app:2"]);
        for image in [&nginx, &other] {
            store.tag(image).unwrap();
        }
        // A name that is the beginning of another image's id.
        let clash = nginx.id.0.hex()[..7].to_owned();
        store.tag(&record("clash", &[&format!("docker.io/library/{clash}:latest")])).unwrap();
        let (id, manifest) = (&nginx.id, &nginx.manifest);
        for (name, expected) in [
            ("nginx", Ok("nginx")),
            ("nginx:1", Ok("nginx")),
            ("docker.io/library/nginx", Ok("nginx")),
            (&format!("nginx@{manifest}"), Ok("nginx")),
            (&format!("nginx:7@{manifest}"), Ok("nginx")),
            (&format!("app@{manifest}"), Err("No such image: app@sha256:")),
            (&id.to_string(), Ok("nginx")),
            (&id.0.hex()[..12], Ok("nginx")),
            (&id.to_string()[..20], Ok("nginx")),
            (&manifest.to_string(), Ok("nginx")),
            (&clash, Ok("clash")),
            ("localhost:5000/team/app:2", Ok("other")),
            (
                "localhost:5000/team/app",
                Err("No such image: localhost:5000/team/app; there is localhost:5000/team/app:2"),
            ),
            ("ngnix", Err("No such image: ngnix; did you mean nginx:latest?")),
            ("quite-different", Err("No such image: quite-different")),
            ("UPPER", Err("No such image: UPPER")),
        ] {
            match (image(&store, name), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.id, record(expected, &[]).id, "{name}"),
                (Err(Failure::Error(error)), Err(expected)) => {
                    let error = error.to_string();
                    assert!(error.starts_with(expected), "{name}: {error}");
                }
                (found, expected) => panic!("{name}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn an_ambiguous_id_lists_what_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let images: Vec<ImageRecord> = (0..17).map(|n| record(&n.to_string(), &[])).collect();
        for image in &images {
            store.tag(image).unwrap();
        }
        // 17 ids cannot begin with 17 of 16 digits.
        let first = |image: &ImageRecord| image.id.0.hex()[..1].to_owned();
        let prefix =
            images.iter().map(first).find(|digit| images.iter().filter(|image| first(image) == *digit).count() > 1);
        let prefix = prefix.unwrap();
        let Err(Failure::Error(error)) = image(&store, &prefix) else { panic!("{prefix} is not ambiguous") };
        let error = error.to_string();
        for image in &images {
            assert_eq!(error.contains(&image.id.to_string()), first(image) == prefix, "{error}");
        }
    }
}
