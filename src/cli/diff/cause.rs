//! Why two files that should be the same are not.
//!
//! In: a path and the first bytes of both files. Out: what the difference is, where that can be recognised, and how
//! others mend it. What always holds: nothing is guessed: where no pattern fits there is no answer.

use std::collections::BTreeSet;
use std::io::Read as _;

/// A recognised cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Cause {
    /// What the difference is.
    pub(in crate::cli) what: String,
    /// How others mend it.
    pub(in crate::cli) remedy: &'static str,
}

/// What is known about where the files were made.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Surroundings {
    /// Seconds since 1970.
    pub(in crate::cli) now: i64,
    /// Names that this machine goes by.
    pub(in crate::cli) hosts: Vec<String>,
}

impl Surroundings {
    /// Those of this process.
    pub(in crate::cli) fn read() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { now: crate::cli::find::now(), hosts: vec![name] }
    }
}

const EPOCH: &str = "set SOURCE_DATE_EPOCH, declare `ARG SOURCE_DATE_EPOCH` in the stage, and let the command use it \
                     (`date -d @$SOURCE_DATE_EPOCH`)";
const PYC: &str = "declare `ARG SOURCE_DATE_EPOCH` in the stage, or set PYTHONDONTWRITEBYTECODE=1, or compile with \
                   `python -m compileall --invalidation-mode unchecked-hash`";
const GZIP: &str = "gzip -n";
const TAR: &str = "tar --sort=name --mtime=@$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner";
const ZIP: &str = "touch the members with one time before, and zip -X; jar --date=";
const AR: &str = "ar D (deterministic mode), ARFLAGS=Drcs";
const ORDER: &str =
    "sort before writing, with LC_ALL=C; folders are listed in no order, and neither are the hashes of many languages";
const RANDOM: &str = "give it a fixed name or seed, or remove it in the same RUN";
const HOST: &str = "do not write the host's name; many tools take one by an option or a variable";
const CACHE: &str = "remove it in the same RUN (logs, caches, backups)";

/// How far around the difference a token reaches.
const AROUND: usize = 40;

/// The cause of a difference in content.
pub(in crate::cli) fn of_content(path: &[u8], a: &[u8], b: &[u8], about: &Surroundings) -> Option<Cause> {
    let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
    let found = |what: &str, remedy| Some(Cause { what: what.to_owned(), remedy });
    if path.ends_with(b".pyc") && a.len() >= 16 && b.len() >= 16 && a[4..8] == [0; 4] && b[4..8] == [0; 4] && at < 12 {
        return found("the time of its source, in a compiled Python file", PYC);
    }
    if a.starts_with(b"\x1f\x8b") && b.starts_with(b"\x1f\x8b") {
        if a[..a.len().min(8)] != b[..b.len().min(8)] && (4..8).contains(&at) {
            return found("the time in the header of a gzip file", GZIP);
        }
        let (a, b) = (inflate(a), inflate(b));
        if a != b {
            return of_content(path, &a, &b, about)
                .map(|inner| Cause { what: format!("{} (compressed)", inner.what), ..inner });
        }
    }
    if let Some(field) = tar_field(a, at).or_else(|| tar_field(b, at)) {
        return match field {
            136..148 => found("the times of the members of a tar", TAR),
            0..100 => found("the order or the names of the members of a tar", TAR),
            _ => found("the headers of the members of a tar", TAR),
        };
    }
    if is_ar_time(a, at) {
        return found("the times of the members of an ar archive (a static library or a .deb)", AR);
    }
    if is_zip_time(a, at) {
        return found("the times of the members of a zip or jar", ZIP);
    }
    if same_parts(a, b, |byte| *byte == b'\n') {
        return found("the same lines in another order", ORDER);
    }
    if same_parts(a, b, |byte| !byte.is_ascii_alphanumeric() && !b"-_./".contains(byte)) {
        return found("the same words in another order", ORDER);
    }
    let (x, y) = (token(a, at), token(b, at));
    if about.hosts.iter().any(|host| host.len() > 2 && (contains(x, host) || contains(y, host))) {
        return found("the name of the host", HOST);
    }
    if is_time(x, about.now) && is_time(y, about.now) {
        return found("a time", EPOCH);
    }
    if is_uuid(x) && is_uuid(y) {
        return found("a random identifier (UUID)", RANDOM);
    }
    if is_binary_time(a, at, about.now) && is_binary_time(b, at, about.now) {
        return found("a time, in binary", EPOCH);
    }
    is_transient(path).then(|| Cause { what: "a log or a cache".to_owned(), remedy: CACHE })
}

/// The cause of files that only one side has: names that differ in a random part.
pub(in crate::cli) fn of_name(path: &[u8], others: &BTreeSet<&[u8]>) -> Option<Cause> {
    let (folder, name) = split(path);
    let fits = |other: &&&[u8]| {
        let (other_folder, other) = split(other);
        let shared = name.iter().zip(other).take_while(|(x, y)| x == y).count();
        let tail = name.iter().rev().zip(other.iter().rev()).take_while(|(x, y)| x == y).count();
        folder == other_folder
            && name.len() == other.len()
            && (shared + tail > 0)
            && name.len() - shared.min(name.len()) >= 4
    };
    others.iter().find(fits).map(|_| Cause { what: "a random name".to_owned(), remedy: RANDOM })
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path.split_at(cut)
}

fn inflate(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // What cannot be read to its end may still show where it begins to differ.
    let _ = flate2::read::MultiGzDecoder::new(bytes).take(8 << 20).read_to_end(&mut out);
    out
}

/// The offset in its header block, if the byte is in one of a tar.
fn tar_field(bytes: &[u8], at: usize) -> Option<usize> {
    let start = at - at % 512;
    let header = bytes.get(start..start + 512)?;
    // The first block must be one too: any text may have this word somewhere.
    (bytes.get(257..262) == Some(b"ustar") && &header[257..262] == b"ustar").then_some(at - start)
}

fn is_ar_time(bytes: &[u8], at: usize) -> bool {
    if !bytes.starts_with(b"!<arch>\n") {
        return false;
    }
    let mut start = 8;
    while let Some(header) = bytes.get(start..start + 60) {
        if (start + 16..start + 28).contains(&at) {
            return true;
        }
        let size = std::str::from_utf8(&header[48..58]).ok().and_then(|text| text.trim().parse::<usize>().ok());
        let Some(size) = size else { return false };
        let Some(next) = start.checked_add(60 + size + size % 2) else { return false };
        start = next;
    }
    false
}

fn is_zip_time(bytes: &[u8], at: usize) -> bool {
    let number = |start: usize, length: usize| -> Option<usize> {
        bytes
            .get(start..start + length)
            .map(|part| part.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let mut start = 0usize;
    while bytes.get(start..start + 4) == Some(b"PK\x03\x04") {
        let (Some(size), Some(name), Some(extra)) =
            (number(start + 18, 4), number(start + 26, 2), number(start + 28, 2))
        else {
            return false;
        };
        let data = start + 30 + name + extra;
        // The time in the header, or the finer one in the extra fields.
        if (start + 10..start + 14).contains(&at) || (start + 30 + name..data).contains(&at) {
            return true;
        }
        start = data + size;
        if at < start {
            return false;
        }
    }
    false
}

/// Whether two texts have the same parts, whatever their order.
fn same_parts(a: &[u8], b: &[u8], between: fn(&u8) -> bool) -> bool {
    let parts = |bytes: &'_ [u8]| {
        let mut parts: Vec<Vec<u8>> = bytes.split(between).map(<[u8]>::to_vec).collect();
        parts.sort();
        parts
    };
    let is_text = std::str::from_utf8(a).is_ok_and(|text| !text.contains('\0'));
    is_text && a.len() == b.len() && a.iter().any(between) && parts(a) == parts(b)
}

/// The word around a place: letters, digits and what stands inside of times and names.
fn token(bytes: &[u8], at: usize) -> &[u8] {
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b":-_.+/ ,".contains(byte);
    let (before, after) = bytes.split_at(at.min(bytes.len()));
    let left = before.iter().rev().take(AROUND).take_while(|byte| in_word(byte)).count();
    let right = after.iter().take(AROUND).take_while(|byte| in_word(byte)).count();
    &bytes[before.len() - left..before.len() + right]
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Whether a word holds a time: a date, a time of day, or seconds since 1970 of about now.
fn is_time(word: &[u8], now: i64) -> bool {
    let shape: Vec<u8> = word.iter().map(|byte| if byte.is_ascii_digit() { b'9' } else { *byte }).collect();
    let has = |pattern: &[u8]| shape.windows(pattern.len()).any(|window| window == pattern);
    if has(b"9999-99-99") || has(b"99:99:99") || has(b"9999/99/99") {
        return true;
    }
    let numbers = word.split(|byte| !byte.is_ascii_digit()).filter_map(|digits| std::str::from_utf8(digits).ok());
    // Seconds, or the same with milli-, micro- or nanoseconds.
    numbers
        .filter(|digits| digits.len() >= 10)
        .filter_map(|digits| digits[..10].parse::<i64>().ok())
        .any(|number| is_recent(number, now))
        || {
            let today: String =
                jiff::Timestamp::from_second(now).map(|now| now.strftime("%Y%m%d").to_string()).unwrap_or_default();
            !today.is_empty() && contains(word, &today)
        }
}

/// Within two days of now.
fn is_recent(seconds: i64, now: i64) -> bool {
    (seconds - now).abs() < 2 * 86_400
}

fn is_uuid(word: &[u8]) -> bool {
    let shape = |window: &[u8]| {
        window.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    word.windows(36).any(shape)
}

/// Four bytes around a place that are seconds of about now, in either order.
fn is_binary_time(bytes: &[u8], at: usize, now: i64) -> bool {
    (at.saturating_sub(3)..=at).filter_map(|start| bytes.get(start..start + 4)).any(|word| {
        let word = [word[0], word[1], word[2], word[3]];
        is_recent(i64::from(u32::from_le_bytes(word)), now) || is_recent(i64::from(u32::from_be_bytes(word)), now)
    })
}

fn is_transient(path: &[u8]) -> bool {
    const PLACES: [&[u8]; 5] = [b"var/log/", b"var/cache/", b"tmp/", b"root/.cache/", b"var/lib/apt/lists/"];
    PLACES.iter().any(|place| path.starts_with(place)) || path.ends_with(b".log")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000;

    fn gzip(time: u32, data: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut out = flate2::GzBuilder::new().mtime(time).write(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn tar(time: u64) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mtime(time);
        tar.append_data(&mut header, "f", &b"x"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn pyc(time: u32) -> Vec<u8> {
        [&b"\xcb\x0d\x0d\x0a\0\0\0\0"[..], &time.to_le_bytes(), &[7; 20]].concat()
    }

    fn ar(time: &str) -> Vec<u8> {
        format!("!<arch>\n{:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\nx\n", "f.o/", 0, 0, 644, 2).into_bytes()
    }

    fn zip(time: u16) -> Vec<u8> {
        [
            &b"PK\x03\x04\x14\0\0\0\0\0"[..],
            &time.to_le_bytes(),
            &[1, 2],
            &[0; 4],
            &[1, 0, 0, 0, 1, 0, 0, 0],
            &[1, 0, 0, 0],
            b"fx",
        ]
        .concat()
    }

    #[test]
    fn causes_are_recognised() {
        let about = Surroundings { now: NOW, hosts: vec!["builder7".to_owned()] };
        let text = |text: &str| text.as_bytes().to_vec();
        for (path, a, b, expected) in [
            ("x.pyc", pyc(1), pyc(2), Some("the time of its source")),
            ("x.gz", gzip(1, b"same"), gzip(2, b"same"), Some("header of a gzip")),
            ("x.tgz", gzip(0, &tar(1)), gzip(0, &tar(2)), Some("members of a tar (compressed)")),
            ("x.tar", tar(1), tar(2), Some("times of the members of a tar")),
            ("x.a", ar("1"), ar("2"), Some("ar archive")),
            ("x.jar", zip(1), zip(2), Some("zip or jar")),
            ("x", text("b\na\n"), text("a\nb\n"), Some("another order")),
            ("x", text("{\"b\":1, \"a\":2}"), text("{\"a\":2, \"b\":1}"), Some("same words in another order")),
            ("x", text("on builder7"), text("on nothing-else"), Some("name of the host")),
            ("x", text("at 2026-09-21 10:00:01"), text("at 2026-09-21 10:00:03"), Some("a time")),
            ("x", text("t=1790000001;"), text("t=1790000003;"), Some("a time")),
            ("x", text("t=1790000001123456789"), text("t=1790000003123456789"), Some("a time")),
            (
                "x",
                [&[0xff; 4][..], &(NOW as u32).to_le_bytes()].concat(),
                [&[0xff; 4][..], &(NOW as u32 + 2).to_le_bytes()].concat(),
                Some("in binary"),
            ),
            (
                "x",
                text("id 01234567-89ab-cdef-0123-456789abcdef"),
                text("id 01234567-89ab-cdef-0123-456789abcde0"),
                Some("UUID"),
            ),
            ("var/log/dpkg.log", text("what"), text("who"), Some("a log")),
            ("x", text("what"), text("who"), None),
            ("x", text("v 12"), text("v 13"), None),
        ] {
            let found = of_content(path.as_bytes(), &a, &b, &about).map(|cause| cause.what);
            match expected {
                Some(expected) => assert!(
                    found.as_ref().is_some_and(|what| what.contains(expected)),
                    "{path}: {found:?}, not {expected}"
                ),
                None => assert_eq!(found, None, "{path}"),
            }
        }
    }

    #[test]
    fn random_names_are_recognised() {
        for (name, other, expected) in [
            ("tmp/tmp.Ab12Cd", "tmp/tmp.Xy98Zw", true),
            ("tmp/tmp.Ab12Cd", "var/tmp.Xy98Zw", false),
            ("tmp/one", "tmp/another", false),
            ("tmp/a1", "tmp/a2", false),
        ] {
            let others = BTreeSet::from([other.as_bytes()]);
            assert_eq!(of_name(name.as_bytes(), &others).is_some(), expected, "{name} {other}");
        }
    }

    #[test]
    fn hostile_bytes_are_no_trouble() {
        let about = Surroundings { now: NOW, hosts: vec![String::new()] };
        let starts: [&[u8]; 5] = [b"PK\x03\x04", b"!<arch>\n", b"\x1f\x8b", b"\xff\xff\xff\xff", b""];
        for start in starts {
            for length in 0..80 {
                let (mut a, mut b) = (start.to_vec(), start.to_vec());
                a.resize(start.len() + length, 0xff);
                b.resize(start.len() + length, 0xfe);
                of_content(b"x.pyc", &a, &b, &about);
                of_content(b"x", &a, &[], &about);
            }
        }
    }
}
