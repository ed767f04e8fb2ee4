//! WORKDIR: a directory that must be there.
//!
//! In: the operation and the layers below. Out: a [`Landing`], without entries where the directory is there. What always
//! holds: what exists is not changed; what is made belongs to USER, directories above it included.

use super::land::{Findings, account_file, make_directories, resolve_in};
use super::target::{At, Target};
use super::{CopyError, Landing};
use crate::image::accounts::{self, Owner};
use crate::layer::stack::LayerStack;
use crate::plan::step::MakeDirOp;

/// Makes the directory of `op` on the layers `below`.
pub fn make_dir(op: &MakeDirOp, below: &LayerStack) -> Result<Landing, CopyError> {
    let owner = owner(&op.user, below)?;
    let mut target = Target::new(below, 0);
    let mut findings = Findings::new(owner);
    let cleaned = crate::context::glob::clean(&format!("/{}", op.path));
    let path = resolve_in(&target, &cleaned.as_bytes()[1..])?;
    findings.destination(&target, &path);
    if target.at(&path) != At::Directory {
        make_directories(&mut target, &path, 0o755, owner, false)?;
    }
    Ok(Landing::new(target, findings))
}

/// Whose the directory is. A name that nobody has is 0:0, as in BuildKit; a group that nobody has is the user's.
fn owner(spec: &str, below: &LayerStack) -> Result<Owner, CopyError> {
    let (user, group) = spec.split_once(':').map_or((spec, None), |(user, group)| (user, Some(group)));
    let passwd = account_file(below, b"etc/passwd")?;
    let groups = account_file(below, b"etc/group")?;
    let owner = accounts::owner(user, group, passwd, groups);
    Ok(owner.or_else(|_| accounts::owner(user, None, passwd, None)).unwrap_or_default())
}
