//! What to do about a set-up that failed.
//!
//! In: the call, the kernel's reason, and the order. Out: one sentence, or nothing where the reason says it all.

use std::io;

use super::wire::{Failure, Order};

/// `text` on a line of its own, or nothing.
pub(super) fn after(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\n{text}") }
}

pub(super) const NOT_ALLOWED: &str = "rbuild may not make namespaces and mounts here: on a machine of its own it needs root or subordinate ids (`rbuild info` says which); in a container, start that with --privileged, or with --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined";

/// The calls that make namespaces and mounts.
const FOR_NAMESPACES: [&str; 8] = [
    "unshare",
    "make private the mounts below",
    "mount overlay",
    "mount tmpfs",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "pivot_root",
];

/// Whether it is the right that is missing.
pub(super) fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// Whether `call` failed since no namespaces or mounts may be made here.
pub(super) fn is_refusal(call: &str, error: &io::Error) -> bool {
    FOR_NAMESPACES.contains(&call) && is_forbidden(error)
}

/// What `--isolation chroot` takes.
pub(super) fn for_copies(call: &str, errno: i32) -> Option<&'static str> {
    match (call, errno) {
        ("chroot", libc::EPERM) => Some(
            "--isolation chroot takes the right to change the root directory: in a container, CAP_SYS_CHROOT, which Docker's have",
        ),
        ("mknod", libc::EPERM) => Some(
            "--isolation chroot takes the right to make device nodes: in a container, CAP_MKNOD, which Docker's have",
        ),
        ("open", libc::EACCES) => {
            Some("the store's file system allows no devices (nodev): put the store on another one with --root")
        }
        _ => None,
    }
}

/// What to do about `failure`.
pub(super) fn of(failure: &Failure, order: &Order) -> String {
    let process = &order.process;
    let (call, errno) = (failure.call.as_str(), failure.errno);
    if order.rootfs.copied
        && let Some(help) = for_copies(call, errno)
    {
        return help.to_owned();
    }
    let unmapped = |what, id| {
        format!(
            "{what} {id} is not among the ids of this user namespace: give the user more of them in /etc/subuid and /etc/subgid, or choose another USER"
        )
    };
    match (call, errno) {
        ("unshare", libc::ENOSPC | libc::EUSERS) => {
            "a limit on namespaces is reached: see `sysctl -a | grep '^user.max_'`".to_owned()
        }
        ("mount overlay", libc::ENODEV) => "this kernel has no overlay file system: `modprobe overlay`".to_owned(),
        ("mount overlay", libc::EPERM | libc::EACCES) if order.user_xattr => {
            "an ordinary user can mount an overlay from kernel 5.12 on, where AppArmor or a seccomp filter does not forbid it".to_owned()
        }
        ("mount overlay", libc::EINVAL) => {
            format!(
                "the file system of {} cannot be the upper one of an overlay (as overlay itself, NFS and FAT): put the store on ext4, xfs, btrfs or tmpfs with --root",
                order.rootfs.upper.display()
            )
        }
        ("mount overlay", libc::E2BIG | libc::ENAMETOOLONG | libc::ELOOP) => {
            format!("{} layers are more than this kernel stacks", order.rootfs.lower.len())
        }
        ("pivot_root", libc::EINVAL) => {
            "the root of this machine is an initramfs, which cannot be left: boot from a disk, or switch_root to a tmpfs first".to_owned()
        }
        ("sethostname", libc::EINVAL) => "a host name has at most 64 characters".to_owned(),
        ("set the limit", libc::EPERM) => {
            "the limit is above the hard one that rbuild itself has, and only root of the machine (CAP_SYS_RESOURCE) can raise that: give a smaller one, or run rbuild as root".to_owned()
        }
        ("seccomp", _) => {
            "this kernel has no filters of system calls (CONFIG_SECCOMP_FILTER): --security-opt seccomp=unconfined does without".to_owned()
        }
        ("join the control group", libc::EACCES | libc::EPERM) => {
            "limits take control groups that are this user's: run rbuild as root, or where they are delegated (with systemd: `systemd-run --user --scope -p Delegate=yes rbuild …`)".to_owned()
        }
        ("setgroups", libc::EINVAL) => unmapped("one of the groups", format!("{:?}", process.groups)),
        ("setgid", libc::EINVAL) => unmapped("group", process.gid.to_string()),
        ("give a file of a mount to its user", libc::EINVAL) => {
            "its uid or gid is not among the ids of this user namespace: give the user more of them in /etc/subuid and /etc/subgid, or choose others".to_owned()
        }
        ("setuid" | "fchown", libc::EINVAL) => unmapped("user", process.uid.to_string()),
        ("make a place to mount on", libc::EISDIR) => {
            format!("the image has a folder at {}, where a file must be", failure.path)
        }
        ("make a place to mount on", libc::ENOTDIR) => {
            format!("the image has something else than a folder at {}", failure.path)
        }
        (call, errno) if is_refusal(call, &io::Error::from_raw_os_error(errno)) => NOT_ALLOWED.to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::ExecError;

    #[test]
    fn only_what_is_forbidden_is_a_refusal() {
        for (call, errno, expected) in [
            ("unshare", libc::EPERM, true),
            ("mount overlay", libc::EACCES, true),
            ("pivot_root", libc::EPERM, true),
            // A limit, a store on an overlay, a kernel without.
            ("unshare", libc::ENOSPC, false),
            ("mount overlay", libc::EINVAL, false),
            ("mount overlay", libc::ENODEV, false),
            ("open_tree", libc::ENOENT, false),
            // Nothing of namespaces.
            ("join the control group", libc::EACCES, false),
            ("unshare the bread", libc::EPERM, false),
            ("mknod", libc::EPERM, false),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let (call, path, help) = (call.to_owned(), String::new(), String::new());
            let error = ExecError::SetUp { call, path, source, help };
            assert_eq!(error.is_refusal(), expected, "{error}");
        }
    }
}
