//! Whether this machine runs programs of another architecture: by itself, or through an emulator that the kernel knows.
//!
//! In: a platform, the kernel's list of handlers (binfmt_misc). Out: nothing, or why not and what to do. What always
//! holds: a handler is known by the programs that it takes, not by its name; one that the kernel has not opened at its
//! registration (flag F) does not count, since it would be looked for in the image.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::image::platform::Platform;
use crate::sys::process;

/// Where the kernel lists its handlers.
pub(super) const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// Why commands for a platform cannot be run here. The message has what to do on its further lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("RUN for {platform} needs an emulator on a machine that is {here}: {why}{}", super::remedy::after(.help))]
pub struct NoEmulator {
    /// The platform of the commands.
    pub platform: Platform,
    /// That of this machine.
    pub here: Platform,
    /// What is missing.
    pub why: String,
    /// What to do.
    pub help: String,
}

/// How programs of an architecture begin, and the smallest one that ends well.
struct Format {
    /// By its name in images.
    architecture: &'static str,
    bits: u8,
    big: bool,
    /// `e_machine`.
    machine: u16,
    /// `e_flags`.
    flags: u32,
    /// Machine code that exits with 0; none where it was never tried.
    code: &'static [u8],
}

const FORMATS: [Format; 14] = [
    format("386", 32, false, 3, 0, b"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80"),
    format("amd64", 64, false, 62, 0, b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"),
    format("arm", 32, false, 40, 0x0500_0000, b"\x01\x70\xa0\xe3\x00\x00\xa0\xe3\x00\x00\x00\xef"),
    format("arm64", 64, false, 183, 0, b"\xa8\x0b\x80\xd2\x00\x00\x80\xd2\x01\x00\x00\xd4"),
    format("loong64", 64, false, 258, 0, b""),
    format("mips", 32, true, 8, 0, b""),
    format("mipsle", 32, false, 8, 0, b""),
    format("mips64", 64, true, 8, 0, b""),
    format("mips64le", 64, false, 8, 0, b""),
    format("ppc64", 64, true, 21, 0, b""),
    format("ppc64le", 64, false, 21, 2, b"\x01\x00\x00\x38\x00\x00\x60\x38\x02\x00\x00\x44"),
    format("riscv64", 64, false, 243, 0, b"\x93\x08\xd0\x05\x13\x05\x00\x00\x73\x00\x00\x00"),
    format("s390x", 64, true, 22, 0, b"\xa7\x29\x00\x00\x0a\x01"),
    format("sparc64", 64, true, 43, 0, b""),
];

const fn format(
    architecture: &'static str,
    bits: u8,
    big: bool,
    machine: u16,
    flags: u32,
    code: &'static [u8],
) -> Format {
    Format { architecture, bits, big, machine, flags, code }
}

impl Format {
    fn of(architecture: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.architecture == architecture)
    }

    /// A static program of one segment, which is the whole file.
    fn program(&self) -> Vec<u8> {
        const AT: u64 = 0x40_0000;
        let wide = self.bits == 64;
        let (header, segment): (u16, u16) = if wide { (64, 56) } else { (52, 32) };
        let size = u64::from(header) + u64::from(segment) + self.code.len() as u64;
        let mut elf = Elf { bytes: b"\x7fELF".to_vec(), big: self.big, wide };
        elf.bytes.extend([if wide { 2 } else { 1 }, if self.big { 2 } else { 1 }, 1, 0]);
        elf.bytes.extend([0; 8]);
        elf.half(2);
        elf.half(self.machine);
        elf.word(1);
        elf.address(AT + u64::from(header + segment));
        elf.address(u64::from(header));
        elf.address(0);
        elf.word(self.flags);
        for half in [header, segment, 1, 0, 0, 0] {
            elf.half(half);
        }
        // PT_LOAD, to be read and executed.
        elf.word(1);
        if wide {
            elf.word(5);
        }
        for address in [0, AT, AT, size, size] {
            elf.address(address);
        }
        if !wide {
            elf.word(5);
        }
        elf.address(0x1_0000);
        elf.bytes.extend(self.code);
        elf.bytes
    }
}

/// An ELF file being written.
struct Elf {
    bytes: Vec<u8>,
    big: bool,
    wide: bool,
}

impl Elf {
    fn half(&mut self, value: u16) {
        self.bytes.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn address(&mut self, value: u64) {
        match (self.wide, self.big) {
            // Proof: the addresses above have less than 32 bits.
            (false, _) => self.word(value as u32),
            (true, true) => self.bytes.extend(value.to_be_bytes()),
            (true, false) => self.bytes.extend(value.to_le_bytes()),
        }
    }
}

/// What the kernel says of one handler.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interpreter {
    name: String,
    enabled: bool,
    /// Flag F.
    open: bool,
    path: String,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Interpreter {
    fn parse(name: &str, text: &str) -> Option<Self> {
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let magic = unhex(field("magic ")?)?;
        Some(Self {
            name: name.to_owned(),
            enabled: text.lines().next() == Some("enabled"),
            open: field("flags:").is_some_and(|flags| flags.contains('F')),
            path: field("interpreter ").unwrap_or_default().to_owned(),
            offset: field("offset ").and_then(|offset| offset.parse().ok()).unwrap_or(0),
            mask: field("mask ").and_then(unhex).unwrap_or_else(|| vec![0xff; magic.len()]),
            magic,
        })
    }

    /// Whether it takes this program.
    fn takes(&self, program: &[u8]) -> bool {
        let Some(bytes) = program.get(self.offset..self.offset + self.magic.len()) else { return false };
        let mut all = bytes.iter().zip(&self.magic).zip(&self.mask);
        all.all(|((byte, magic), mask)| byte & mask == magic & mask)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// The kernel's handlers; `None` where its list cannot be seen.
fn handlers(at: &Path) -> Option<Vec<Interpreter>> {
    // It has this file exactly where it is mounted.
    fs::metadata(at.join("status")).ok()?;
    let entries = fs::read_dir(at).ok()?.filter_map(Result::ok);
    let mut handlers: Vec<Interpreter> = entries
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            Interpreter::parse(&entry.file_name().to_string_lossy(), &text)
        })
        .collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    Some(handlers)
}

/// The architectures that emulators are there for: of each its name in images.
pub(super) fn emulated(at: &Path) -> Vec<&'static str> {
    let handlers = handlers(at).unwrap_or_default();
    let usable = |format: &&Format| {
        let program = format.program();
        handlers.iter().any(|handler| handler.enabled && handler.open && handler.takes(&program))
    };
    FORMATS.iter().filter(usable).map(|format| format.architecture).collect()
}

/// Whether commands for `platform` can be run here. `folder` takes a file for a trial.
pub fn check(platform: &Platform, folder: &Path) -> Result<(), Box<NoEmulator>> {
    check_on(platform, &Platform::of_kernel(&process::machine()), Path::new(HANDLERS), folder)
}

/// Whether the platform is the one of 32 bits that this machine's own processor is the successor of.
pub fn is_32_bits_here(platform: &Platform) -> bool {
    let here = Platform::of_kernel(&process::machine());
    let pair = (platform.architecture.as_str(), here.architecture.as_str());
    platform.os == here.os && matches!(pair, ("386", "amd64") | ("arm", "arm64"))
}

fn check_on(platform: &Platform, here: &Platform, at: &Path, folder: &Path) -> Result<(), Box<NoEmulator>> {
    if (&platform.os, &platform.architecture) == (&here.os, &here.architecture) {
        return Ok(());
    }
    let failed = |why: String, help: String| {
        Err(Box::new(NoEmulator { platform: platform.clone(), here: here.clone(), why, help }))
    };
    if platform.os != here.os {
        let os = &platform.os;
        return failed(format!("there is none for {os}"), format!("commands of {os} run on {os} alone"));
    }
    let architecture = &platform.architecture;
    let Some(format) = Format::of(architecture) else {
        let known: Vec<&str> = FORMATS.iter().map(|format| format.architecture).collect();
        return failed(
            format!("rbuild knows no programs of {architecture}"),
            format!("it knows those of {}", known.join(", ")),
        );
    };
    let program = format.program();
    let list = handlers(at);
    let fitting: Vec<&Interpreter> = list.iter().flatten().filter(|handler| handler.takes(&program)).collect();
    if fitting.iter().any(|handler| handler.enabled && handler.open) {
        return Ok(());
    }
    // Without a handler the kernel itself may run it: 386 on amd64, arm on most of arm64. And in a container its list is
    // often not to be seen.
    if fitting.is_empty() && !format.code.is_empty() && runs(&program, folder).unwrap_or(false) {
        return Ok(());
    }
    const INSTALL: &str = "install the package qemu-user-static, which registers emulators with the kernel: `apt-get install \
        qemu-user-static`; from then on `rbuild info` lists them";
    match (fitting.first(), &list) {
        (Some(handler), _) if !handler.open => failed(
            format!(
                "{} ({}) is registered without the flag F, so that it would be looked for in the image",
                handler.name, handler.path
            ),
            format!("register it with that flag: its configuration in /etc/binfmt.d needs F at the end; or {INSTALL}"),
        ),
        (Some(handler), _) => failed(
            format!("{} is registered and switched off", handler.name),
            format!("switch it on as root: `echo 1 > {}/{}`", at.display(), handler.name),
        ),
        (None, Some(_)) => failed("none is registered for it".to_owned(), INSTALL.to_owned()),
        (None, None) => failed(
            format!("none is registered for it, or {} is not mounted", at.display()),
            format!("{INSTALL}; in a container: install it on the host"),
        ),
    }
}

/// Whether the kernel runs a program.
fn runs(program: &[u8], folder: &Path) -> io::Result<bool> {
    let path = tempfile::Builder::new().prefix("trial-").tempdir_in(folder)?;
    let file = path.path().join("program");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&file)?.write_all(program)?;
    let silent = Stdio::null;
    let ended = Command::new(&file).stdin(silent()).stdout(silent()).stderr(silent()).status();
    path.close()?;
    Ok(ended?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's package registers them.
    const ARM64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
    const ARM: &str = "enabled\ninterpreter /usr/bin/qemu-arm\nflags: F\noffset 0\n\
        magic 7f454c4601010100000000000000000002002800\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn list(handlers: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in handlers.iter().chain(&[("status", "enabled\n"), ("register", "")]) {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn handlers_are_known_by_what_they_take() {
        let at = list(&[("whatever", ARM64), ("qemu-s390x", ARM), ("python", "enabled\nextension .py\n")]);
        assert_eq!(emulated(at.path()), ["arm", "arm64"]);
        assert_eq!(emulated(list(&[]).path()), [""; 0]);
        assert_eq!(emulated(Path::new("/nonexistent")), [""; 0]);
    }

    #[test]
    fn what_is_missing_is_said() {
        let here: Platform = "linux/s390x".parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (closed, off) = (ARM64.replace("POCF", "POC"), ARM64.replace("enabled", "disabled"));
        for (platform, handlers, expected) in [
            ("linux/s390x", &[][..], ""),
            ("linux/arm64", &[("a", ARM64)], ""),
            ("linux/arm64/v9", &[("a", ARM64)], ""),
            ("linux/mips64", &[("a", ARM64)], "none is registered for it\ninstall the package qemu-user-static"),
            ("linux/ppc64", &[], "`apt-get install qemu-user-static`"),
            (
                "linux/arm64",
                &[("a", &closed)],
                "a (/usr/libexec/qemu-binfmt/aarch64-binfmt-P) is registered without the flag F",
            ),
            ("linux/arm64", &[("a", &closed), ("b", ARM64)], ""),
            ("linux/arm64", &[("q", &off)], "q is registered and switched off\nswitch it on as root: `echo 1 > "),
            ("windows/amd64", &[], "there is none for windows"),
            ("linux/wasm", &[], "rbuild knows no programs of wasm"),
        ] {
            let at = list(handlers);
            let found = check_on(&platform.parse().unwrap(), &here, at.path(), folder.path());
            let found = found.map_or_else(|error| error.to_string(), |()| String::new());
            assert_eq!(found.is_empty(), expected.is_empty(), "{platform}: {found}");
            assert!(found.contains(expected), "{platform}: {found}");
        }
        let found = check_on(&"mips".parse().unwrap(), &here, Path::new("/nonexistent"), folder.path());
        assert!(found.unwrap_err().to_string().contains("/nonexistent is not mounted"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn the_smallest_program_runs_here() {
        let folder = tempfile::tempdir().unwrap();
        let here = Platform::of_kernel(&process::machine());
        // Of an architecture without code there is nothing to try.
        let Some(format) = Format::of(&here.architecture).filter(|format| !format.code.is_empty()) else { return };
        assert!(runs(&format.program(), folder.path()).unwrap());
        let mut broken = format.program();
        broken[18..20].copy_from_slice(&[0xff, 0xff]);
        assert!(!runs(&broken, folder.path()).unwrap_or(false), "an unknown machine");
    }
}
