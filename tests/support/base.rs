//! A base image without a download: a root file system made of Debian's static busybox.
//!
//! In: `/bin/busybox` (or `$BUSYBOX`). Out: the bytes of a tar, the same for the same busybox, ready for `rbuild import`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The time of every entry, and of the images that the tests write themselves.
pub const TIME: u64 = 1_485_449_953;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/sbin:/sbin/nologin\n\
    www-data:x:33:33:www-data:/var/www:/sbin/nologin\n\
    builder:x:1000:1001:builder:/home/builder:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n";
const GROUP: &str =
    "root:x:0:\ndaemon:x:1:\nwww-data:x:33:builder\nwheel:x:10:builder\nbuilder:x:1001:\nnogroup:x:65534:\n";

/// The bytes of the static busybox, or why there are none.
pub fn busybox() -> Result<(PathBuf, Vec<u8>), String> {
    let path = std::env::var_os("BUSYBOX").map_or_else(|| PathBuf::from("/bin/busybox"), PathBuf::from);
    let bytes =
        std::fs::read(&path).map_err(|error| format!("{}: {error} (Debian package busybox-static)", path.display()))?;
    if has_interpreter(&bytes) {
        return Err(format!("{} is not static (Debian package busybox-static)", path.display()));
    }
    Ok((path, bytes))
}

/// Whether a 64-bit little-endian ELF file wants a dynamic loader: a program header of type `PT_INTERP`.
fn has_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, len: usize| {
        elf.get(at..at + len)
            .map_or(0, |bytes| bytes.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|i| number(start + i * size, 4) == 3)
}

/// The root file system as a tar. Callers have asked for `Need::Busybox` before.
pub fn root_tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let (path, program) = busybox().expect("the test asked for busybox before");
        let listed = Command::new(&path).arg("--list").output().expect("busybox runs");
        let applets = String::from_utf8(listed.stdout).expect("names of applets are ASCII");
        let mut tar = RootTar::new();
        for (name, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("home", 0o755),
            ("home/builder", 0o755),
            ("proc", 0o555),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/lib", 0o755),
            ("var", 0o755),
            ("var/log", 0o755),
            ("var/www", 0o755),
        ] {
            tar.directory(name, mode, if name == "home/builder" { (1000, 1001) } else { (0, 0) });
        }
        tar.file("bin/busybox", 0o755, &program);
        for applet in applets.lines().filter(|name| *name != "busybox") {
            tar.link(&format!("bin/{applet}"), "busybox");
        }
        tar.link("usr/bin/env", "../../bin/env");
        tar.link("lib", "usr/lib");
        tar.file("etc/passwd", 0o644, PASSWD.as_bytes());
        tar.file("etc/group", 0o644, GROUP.as_bytes());
        tar.file("etc/motd", 0o644, b"a small root file system\n");
        tar.finish()
    })
}

/// Writes a tar entry by entry, every header spelt out.
pub struct RootTar {
    bytes: tar::Builder<Vec<u8>>,
}

impl RootTar {
    /// An empty one.
    pub fn new() -> Self {
        Self { bytes: tar::Builder::new(Vec::new()) }
    }

    /// A directory.
    pub fn directory(&mut self, name: &str, mode: u32, owner: (u64, u64)) {
        self.push(tar::EntryType::Directory, &format!("{name}/"), mode, owner, None, b"");
    }

    /// A regular file of root.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.push(tar::EntryType::Regular, name, mode, (0, 0), None, data);
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.push(tar::EntryType::Symlink, name, 0o777, (0, 0), Some(target), b"");
    }

    /// Any entry.
    pub fn push(
        &mut self,
        kind: tar::EntryType,
        name: &str,
        mode: u32,
        owner: (u64, u64),
        link: Option<&str>,
        data: &[u8],
    ) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(TIME);
        header.set_size(data.len() as u64);
        // As raw bytes: tests write names that a well-meaning library would refuse or clean.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = link {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        self.bytes.append(&header, data).expect("memory takes every write");
    }

    /// The whole tar, with its end mark.
    pub fn finish(self) -> Vec<u8> {
        self.bytes.into_inner().expect("memory takes every write")
    }
}
