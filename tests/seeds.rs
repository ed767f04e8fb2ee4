//! The fuzz targets as ordinary tests: over seeds, and over changes of them, the same in every run unless
//! `RBUILD_RANDOM_SEED` gives others.

use std::collections::BTreeMap;
use std::io::Write as _;

use rbuild::cache::record::CacheRecord;
use rbuild::digest::{ContentDigest, DiffId, Digest, StackId};
use rbuild::image::config::ImageConfig;
use rbuild::image::manifest::Document;
use rbuild::layer::compress::{Compression, Encoder};

use crate::support::base::RootTar;
use crate::support::machine::{say, source_dir};
use crate::support::random::Random;

#[path = "../fuzz/checks.rs"]
mod checks;

/// What changes put in: pieces that mean something somewhere.
const PIECES: &[&[u8]] = &[
    b"FROM ",
    b"\n",
    b"\r\n",
    b"\\\n",
    b"`\n",
    b"<<EOF\n",
    b"EOF\n",
    b"<<-'x'\n",
    b"--from=",
    b"--mount=type=cache",
    b"[\"",
    b"\"]",
    b"${",
    b":-",
    b"}",
    b"$x",
    b"'",
    b"\"",
    b"# escape=`\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"**/",
    b"!",
    b"[a-",
    b"]",
    b"../",
    b"/",
    b".wh.",
    b".wh..wh..opq",
    b"ustar\x0000",
    b"99999999999",
    b"\x80\0\0\0",
    b"30 path=",
    b"GNU.sparse.map=",
    b"ONBUILD ",
];

fn dockerfiles() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "# syntax=docker/dockerfile:1\n# escape=`\nFROM a AS b\nRUN <<EOF cat `\n x\nline\nEOF\nCOPY --chmod=u=rwX,go=rX <<-'x' <<y /\n\tx\nx\ny\n",
        "ARG a=${b:-'c d'} e\nFROM --platform=$a x@sha256:00\nENV a=\"b c\" d e\nENV f g h\nHEALTHCHECK --interval=1s CMD [\"a\", \"\\u0041\"]\n",
        "FROM scratch\nRUN a && \\\n  # comment\n\n  b\nONBUILD COPY --from=x [\"a b\", \"/c\"]\nEXPOSE 1-2/udp $p\nVOLUME [\"/v\"]\nUSER u:g\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    collect(&source_dir().join("testdata/dockerfiles"), &mut seeds);
    collect(&source_dir().join("testdata/scenarios"), &mut seeds);
    seeds
}

fn collect(folder: &std::path::Path, seeds: &mut Vec<Vec<u8>>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), seeds);
        } else if entry.metadata().is_ok_and(|found| found.len() < 10_000) {
            seeds.push(std::fs::read(entry.path()).expect("test data is readable"));
        }
    }
}

/// One that a layer can be made of.
fn whole_tar() -> Vec<u8> {
    let mut all = RootTar::new();
    all.directory(".", 0o755, (0, 0));
    all.directory("d", 0o755, (1, 2));
    all.file("d/f", 0o644, b"some bytes");
    all.link("d/l", "../d/f");
    all.push(tar::EntryType::Link, "d/same", 0o644, (0, 0), Some("d/f"), b"");
    all.push(tar::EntryType::Char, "d/null", 0o666, (0, 0), None, b"");
    all.file("d/.wh.gone", 0o644, b"");
    all.file("e/.wh..wh..opq", 0o644, b"");
    all.push(tar::EntryType::XHeader, "x", 0o644, (0, 0), None, b"15 path=a/long\n");
    all.file("short", 0o4755, b"x");
    all.push(tar::EntryType::GNULongName, "x", 0o644, (0, 0), None, b"a/very/long/name\0");
    all.file("cut", 0o644, b"y");
    all.finish()
}

fn tars() -> Vec<Vec<u8>> {
    let mut broken = RootTar::new();
    broken.push(tar::EntryType::XHeader, "x", 0o644, (0, 0), None, b"16 path=a/long\n20 size=99999999999\n");
    broken.file("short", 0o4755, b"x");
    broken.push(tar::EntryType::GNULongName, "x", 0o644, (0, 0), None, b"a/very/long/name\0");
    broken.file("cut", 0o644, b"y");
    let mut outside = RootTar::new();
    outside.file("../../etc/passwd", 0o644, b"x");
    outside.push(tar::EntryType::Link, "hard", 0o644, (0, 0), Some("/etc/shadow"), b"");
    outside.link("/absolute", "/");
    vec![whole_tar(), broken.finish(), outside.finish(), Vec::new(), vec![0; 1024]]
}

/// Runs `check` over the seeds as they are and over `rounds` changed ones.
fn try_all(name: &str, seeds: &[Vec<u8>], rounds: usize, check: fn(&[u8])) {
    let seed = Random::given_seed().unwrap_or(1);
    let mut random = Random::new(seed);
    for (number, data) in seeds.iter().enumerate() {
        attempt(&format!("{name}: seed {number}"), data, check);
    }
    for round in 0..rounds {
        let mut data = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            let at = random.below(data.len() + 1);
            match random.below(6) {
                0 => data.truncate(at),
                1 if at < data.len() => data[at] = random.next() as u8,
                2 if at < data.len() => data[at] ^= 1 << random.below(8),
                3 => {
                    let end = (at + random.below(40)).min(data.len());
                    data.drain(at..end);
                }
                4 => {
                    let (start, other) = (random.below(data.len() + 1), &seeds[random.below(seeds.len())]);
                    let piece = other[start.min(other.len())
                        ..(start + random.below(60)).min(other.len()).max(start.min(other.len()))]
                        .to_vec();
                    data.splice(at..at, piece);
                }
                _ => {
                    let piece = random.pick(PIECES).to_vec();
                    data.splice(at..at, piece);
                }
            }
        }
        attempt(&format!("{name}: round {round} of RBUILD_RANDOM_SEED={seed}"), &data, check);
    }
}

fn attempt(what: &str, data: &[u8], check: fn(&[u8])) {
    if std::panic::catch_unwind(|| check(data)).is_err() {
        say(&format!("{what}: {:?}", String::from_utf8_lossy(data)));
        panic!("{what}: does not hold for {} bytes", data.len());
    }
}

#[test]
fn parse_holds_for_any_text() {
    try_all("parse", &dockerfiles(), 1_000, checks::parse);
}

#[test]
fn plan_holds_for_any_text() {
    let mut seeds: Vec<Vec<u8>> = dockerfiles();
    collect(&source_dir().join("testdata/plans"), &mut seeds);
    seeds.push(
        b"ARG v=1\nFROM a:$v AS b\nARG v\nENV x=${v:-y} PATH=$PATH:/z\nWORKDIR c\nUSER 1:2\nCOPY --from=b --chown=$x a b /d/\n\
          ADD --chmod=u=rwX *.t ./\nRUN --network=none [\"a\"]\nFROM b\nCOPY --link --from=0 / /r\nEXPOSE 1-3/udp\nCMD x\n"
            .to_vec(),
    );
    try_all("plan", &seeds, 1_000, checks::plan);
}

#[test]
fn word_holds_for_any_text() {
    let words =
        ["\0a", "\0${a:-${b}}", "\0'$a' \"$b\" \\$c", "\x01`$a", "\0${a//b/c} ${a##*x} ${a:?no}", "\0plain words"];
    let seeds: Vec<_> = words.iter().map(|text| text.as_bytes().to_vec()).collect();
    try_all("word", &seeds, 20_000, checks::word);
}

#[test]
fn ignore_holds_for_any_patterns() {
    let texts =
        ["*\n!src\n\0src/a/b", "**/x\n# c\n!d/**\n\0d/x/y", "a[b-d]?\\*\n\0abc", "/a/\n!a/b\na/b/c\n\0a/b/c/d", "\0x"];
    let seeds: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    try_all("ignore", &seeds, 20_000, checks::ignore);
}

#[test]
fn scan_holds_for_any_tar() {
    try_all("scan", &tars(), 10_000, checks::scan);
}

#[test]
fn apply_holds_for_any_tar() {
    let mut seeds = tars();
    let mut links = RootTar::new();
    links.link("d", "/tmp");
    links.file("d/../x", 0o644, b"x");
    links.link("e", "../outside");
    links.file("e/f", 0o644, b"x");
    links.push(tar::EntryType::Link, "g", 0o644, (0, 0), Some("../outside"), b"");
    links.file("h/.wh...", 0o644, b"");
    seeds.push(links.finish());
    let mut turned = RootTar::new();
    turned.file("z/data", 0o6755, b"data");
    turned.push(tar::EntryType::Link, "a/name", 0o600, (0, 0), Some("z/data"), b"");
    turned.directory("z", 0o000, (5, 6));
    turned.link("z/data", "../../outside");
    turned.file("a/.wh.name", 0o644, b"");
    seeds.push(turned.finish());
    try_all("apply", &seeds, 2_000, checks::apply);
}

#[test]
fn archive_holds_for_any_bytes() {
    let text: Vec<u8> = whole_tar();
    let mut seeds = vec![Vec::new(), vec![4], [&[4][..], &text].concat(), [&[0x85][..], &text[..3000]].concat()];
    for compression in [Compression::GZIP, Compression::Gzip(0), Compression::ZSTD] {
        let mut encoder = Encoder::new(Vec::new(), compression);
        encoder.write_all(&text).expect("memory takes every write");
        seeds.push(encoder.finish().expect("memory takes every write"));
    }
    seeds.push(b"BZh91AY&SY".to_vec());
    collect(&source_dir().join("testdata/copy"), &mut seeds);
    try_all("archive", &seeds, 1_000, checks::archive);
}

#[test]
fn users_hold_for_any_bytes() {
    let passwd = "root:x:0:0:root:/root:/bin/sh\n+::::::\nshort\n:x:1:1:::\napp:x:1001:1002::/srv/app:\r\n";
    let group = "root:x:0:\nstaff:x:50:app,root\nagain:x:50:app\n";
    let seeds: Vec<_> = ["", "app", "app:staff", "1001", "0:0", "4294967295", ":", "root:", "-1", "nobody:again"]
        .iter()
        .flat_map(|who| [format!("{who}\0{passwd}\0{group}"), (*who).to_owned()])
        .map(String::into_bytes)
        .collect();
    try_all("users", &seeds, 20_000, checks::users);
}

#[test]
fn index_holds_for_any_bytes() {
    let good = rbuild::layer::scan::scan(whole_tar().as_slice()).expect("it can be indexed");
    assert!(good.len() > 5);
    let mut seeds = vec![good.as_bytes().to_vec()];
    seeds.push(Vec::new());
    try_all("index", &seeds, 10_000, checks::index);
}

#[test]
fn documents_hold_for_any_bytes() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let record = CacheRecord {
        content: ContentDigest(Digest::of(b"content")),
        layer: DiffId(Digest::of(b"layer")),
        op: Digest::of(b"op"),
        below: StackId(Digest::of(b"below")),
        source: None,
        landing: None,
        parts: BTreeMap::from([("command".to_owned(), "true".to_owned())]),
    };
    let blob =
        |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7,"urls":["x"],"other":[1]}}"#);
    let config = blob("application/vnd.oci.image.config.v1+json");
    let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip");
    let mut seeds: Vec<Vec<u8>> = [
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}],"annotations":{{"a":"b"}},"x":null}}"#),
        format!(r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{config}]}}"#),
        format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","created":"2020-01-01T00:00:00.5Z","config":{{"Env":["a=b"],
            "Cmd":null,"Entrypoint":["/x"],"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":null,"Labels":{{"a":"\u00e9"}},
            "Healthcheck":{{"Test":["CMD","a"],"Interval":1000000000}},"OnBuild":["RUN x"],"Unknown":{{"y":1.5e300}}}},
            "rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x","empty_layer":true}}],"z":0}}"#
        ),
    ]
    .map(String::into_bytes)
    .into();
    for seed in &seeds {
        assert!(Document::parse(seed).is_ok() || ImageConfig::parse(seed).is_ok(), "a seed that nothing reads");
    }
    seeds.push(record.to_bytes());
    try_all("documents", &seeds, 20_000, checks::documents);
}

#[test]
fn names_hold_for_any_text() {
    let digest = format!("a@sha256:{}", "0123456789abcdef".repeat(4));
    let names = [
        "debian",
        "docker.io/library/a:1",
        "localhost:5000/team/app:2",
        "[::1]:80/a/b__c.d-e",
        "index.docker.io/x/y:Z_1.2-3",
        "linux/arm64/v8",
        "windows(10.0.17763)/amd64",
        "amd64",
        "linux/arm/v6",
        "u=rwX,go=rX",
        "0755",
        "a+x,g-s",
        &digest,
    ];
    let seeds: Vec<_> = names.iter().map(|text| text.as_bytes().to_vec()).collect();
    try_all("names", &seeds, 30_000, checks::names);
}
