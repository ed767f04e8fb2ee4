//! What to do about a set-up that failed.
//!
//! In: the call, the kernel's reason, and the order. Out: one sentence, or nothing where the reason says it all.

use super::wire::{Failure, Order};

/// `text` on a line of its own, or nothing.
pub(super) fn after(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\n{text}") }
}

pub(super) const NOT_ALLOWED: &str = "rbuild may not make namespaces and mounts here: on a machine of its own it needs root or subordinate ids (`rbuild info` says which); in a container, start that with --privileged, or with --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined";

/// What to do about `failure`.
pub(super) fn of(failure: &Failure, order: &Order) -> String {
    let process = &order.process;
    let (call, errno) = (failure.call.as_str(), failure.errno);
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
            "an ordinary user can mount an overlay from kernel 5.11 on, where AppArmor or a seccomp filter does not forbid it".to_owned()
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
        ("chroot", libc::EPERM) => {
            "--isolation chroot takes the right to change the root directory: in a container, CAP_SYS_CHROOT, which Docker's have".to_owned()
        }
        ("mknod", libc::EPERM) if order.rootfs.copied => {
            "--isolation chroot takes the right to make device nodes: in a container, CAP_MKNOD, which Docker's have".to_owned()
        }
        ("open", libc::EACCES) if order.rootfs.copied => {
            "the store's file system allows no devices (nodev): put the store on another one with --root".to_owned()
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
        ("unshare" | "make private the mounts below" | "mount tmpfs" | "mount overlay", libc::EPERM | libc::EACCES) => {
            NOT_ALLOWED.to_owned()
        }
        _ => String::new(),
    }
}
