//! Random projects for the comparison with another builder.
//!
//! In: a seed. Out: files, ignore patterns and a Dockerfile. What always holds: most of them can be built, and the hard
//! subjects (links at the destination, directories made anew, users and working directories, hard links) stand in most.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::context::File;
use crate::support::random::Random;

/// What a case is about, besides copying this and that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// COPY onto links.
    Links,
    /// Directories that are removed and made again.
    Opaque,
    /// USER and WORKDIR.
    Places,
    /// Hard links, made by RUN and in the context.
    HardLinks,
    /// ENV, LABEL and what else only the config holds.
    Config,
}

/// All of them.
pub const SUBJECTS: &[Subject] =
    &[Subject::Links, Subject::Opaque, Subject::Places, Subject::HardLinks, Subject::Config];

/// A project.
pub struct Case {
    /// What the Dockerfile says.
    pub dockerfile: String,
    /// The lines of `.dockerignore`.
    pub ignore: Vec<&'static str>,
    /// The context.
    pub files: BTreeMap<&'static str, File>,
    /// What it is about.
    pub subjects: BTreeSet<Subject>,
}

const LINES_OF_LINKS: &[&str] = &[
    "COPY d /to/dir",
    "COPY d /to/dir/",
    "COPY a /to/dir/",
    "COPY a /to/dir/new",
    "COPY a /to/up/",
    "COPY a /to/nowhere/",
    "COPY over /real/",
    "COPY over /to/",
    "COPY --chown=5:6 d/e /to/dir/e",
    "COPY --chown=5:6 --chmod=640 a b /to/dir/",
    "COPY x/link /followed",
    "COPY x /with-links",
    "ADD a /to/dir/added",
    "WORKDIR /to/dir/work",
    "RUN rm /to/dir && mkdir /to/dir && echo x > /to/dir/x",
];

const LINES_OF_OPAQUE: &[&str] = &[
    "RUN rm -rf /o && mkdir /o && echo new > /o/new",
    "RUN rm -rf /o && mkdir -p /o/sub && echo x > /o/sub/x",
    "RUN rm -r /o/sub && mkdir -m 700 /o/sub",
    "RUN rm -rf /o && echo file > /o && rm /o && mkdir -p /o/sub/deep",
    "RUN rm -rf /o/sub && echo file > /o/sub && rm /o/sub && mkdir -p /o/sub && cp /etc/motd /o/sub/b",
    "RUN rm -f /o/a && echo again > /o/a",
    "RUN rm -rf /o/a /o/sub/deep && mkdir -p /o/a /o/sub",
    "COPY d /o/",
    "COPY a /o/sub/b",
    "COPY d/e /o/sub/deep",
    "RUN cp -a /o /copied && rm -rf /o/sub",
    "RUN chown -R 7:8 /o && chmod 2750 /o",
    "RUN rm -rf /etc/motd /var/log && mkdir /etc/motd",
];

const LINES_OF_PLACES: &[&str] = &[
    "USER builder",
    "USER 77:88",
    "USER builder:wheel",
    "USER 1000",
    "USER root",
    "USER 0:33",
    "WORKDIR /w/one",
    "WORKDIR two",
    "WORKDIR ../three",
    "WORKDIR /home/builder",
    "WORKDIR /",
    "RUN id > /tmp/who-$(id -u)-$(id -g) && pwd >> /tmp/who-$(id -u)-$(id -g)",
    "RUN umask 027 && mkdir -p /tmp/of-$(id -u)/in && echo x > /tmp/of-$(id -u)/in/x",
    "COPY a ./",
    "COPY d sub/",
    "COPY --chown=builder d here",
    "COPY --chown=builder:wheel --chmod=710 a b ./pair/",
    "COPY --chown=www-data a ../beside",
    "ENV HOME=/tmp",
];

const LINES_OF_HARD_LINKS: &[&str] = &[
    "RUN mkdir -p /hl && rm -f /hl/a1 /hl/a2 /tmp/a3 && echo one > /hl/a1 && ln /hl/a1 /hl/a2 && ln /hl/a2 /tmp/a3 && chmod 4711 /hl/a1",
    "RUN rm -rf /hl/b && mkdir -p /hl/b && echo two > /hl/b/1 && ln /hl/b/1 /hl/b/2 && rm /hl/b/1 && ln /hl/b/2 /hl/b/3",
    "RUN mkdir -p /hl && ln -s nowhere /hl/s1 && ln /hl/s1 /hl/s2 2> /dev/null || true",
    "COPY same /hl/same",
    "COPY same/1 same/2 /hl/",
    "COPY --chown=9:9 same /hl/owned",
    "COPY a /hl/a1",
    "COPY b /hl/b/2",
    "RUN rm -f /hl/a1 /hl/b/3",
    "RUN rm -rf /hl/b && mkdir -p /hl/b && echo c > /hl/b/c && ln /hl/b/c /hl/b/d",
    "RUN cp -a /hl /hl2",
];

const LINES_OF_CONFIG: &[&str] = &[
    "ENV A=1 B=\"two words\" C=$A",
    "ENV A=${A:-none}x PATH=/opt/bin:$PATH",
    "ENV legacy value with blanks",
    "ARG G=given",
    "ARG LATE",
    "ENV FROM_ARG=${G:-unset}",
    "LABEL one=1 \"two words\"=\"a b\" three=$A",
    "LABEL one=again",
    "EXPOSE 80 443/tcp 53/udp",
    "VOLUME /vol",
    "VOLUME [\"/vol\", \"/vol2\"]",
    "CMD [\"a\", \"b c\"]",
    "CMD echo $HOME \"quoted\"",
    "ENTRYPOINT [\"/bin/env\"]",
    "ENTRYPOINT exec top -b",
    "STOPSIGNAL SIGUSR1",
    "STOPSIGNAL 9",
    "SHELL [\"/bin/sh\", \"-ec\"]",
    "HEALTHCHECK --interval=5m --timeout=3s --retries=4 CMD wget -q localhost || exit 1",
    "HEALTHCHECK --start-period=10s CMD [\"/bin/true\", \"x\"]",
    "HEALTHCHECK NONE",
    "ONBUILD RUN echo child > /child",
    "MAINTAINER somebody",
    "RUN env | grep -E '^(A|B|C|G|LATE|PATH|FROM_ARG|legacy)=' | sort > /env || true",
];

const LINES: &[&str] = &[
    "COPY a /t/",
    "COPY a b c.txt /t/",
    "COPY . /all",
    "COPY d /t/d",
    "COPY d/ /t/d/e",
    "COPY d/* /flat/",
    "COPY *.txt /t/",
    "COPY ? /t/q/",
    "COPY x/y/z /t/z",
    "COPY --chmod=600 d /t/moded",
    "COPY --chmod=4755 a /t/setuid",
    "COPY --chown=builder d /t/owned/deeper",
    "COPY --chown=33 a /t/by-number",
    "COPY --chown=3:4 . /home/builder/",
    "COPY empty /t/",
    "ADD b /t/added/",
    "COPY a /tmp/a",
    "COPY a /lib/in-lib",
    "COPY d /var/www",
    "RUN rm -rf /t && mkdir -p /t/u && echo q > /t/u/q",
    "RUN rm -rf /t/d /flat /all/x",
    "RUN mkdir -p /m/n && echo one > /m/n/one && chmod 1777 /m && chown 5:6 /m/n",
    "RUN chmod 750 /t /home/builder 2> /dev/null || true",
    "RUN chown -R 1000:1001 /t/d 2> /dev/null || true",
    "RUN mv /etc/motd /etc/moved && touch /etc/motd",
    "RUN mkdir -p /d && touch /d/made && rm /d/made",
    "RUN find /t /m /flat -type f 2> /dev/null | sort > /list || true",
    "RUN ln -sf /t /link && ln -sfn ../etc /t2 || true",
    "RUN mkfifo /fifo 2> /dev/null || true",
    "RUN mkdir -p '/odd name' && echo x > '/odd name/ä %41+' && printf '\\000\\377' > '/odd name/bytes'",
    "RUN rm -f /bin/ed /usr/bin/env && rm -rf /var/log",
    "RUN dd if=/dev/zero of=/zeros bs=1k count=40 2> /dev/null && echo end >> /zeros",
];

impl Case {
    /// The case of this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let subjects: BTreeSet<Subject> = SUBJECTS.iter().copied().filter(|_| !random.one_in(4)).collect();
        let stages = random.pick(&[1, 2, 2, 3]);
        let mut dockerfile = String::new();
        for stage in 0..stages {
            let base =
                if stage > 0 && random.one_in(3) { format!("s{}", random.below(stage)) } else { "busybox".to_owned() };
            dockerfile.push_str(&format!("FROM {base} AS s{stage}\n"));
            for line in Self::stage(&mut random, &subjects, stage) {
                dockerfile.push_str(&line);
                dockerfile.push('\n');
            }
        }
        let ignore = [
            &[][..],
            &[][..],
            &["# comment", "d/e", "!d/e/f"],
            &["*.txt", "!c.txt", "x/*", "!x/y"],
            &["**/g.txt", "empty"],
            &["Dockerfile", ".dockerignore", "/nothing/"],
        ];
        let ignore = random.pick(&ignore).to_vec();
        Self { dockerfile, ignore, files: Self::files(&mut random), subjects }
    }

    fn files(random: &mut Random) -> BTreeMap<&'static str, File> {
        let mut files = BTreeMap::new();
        for name in ["a", "b", "c.txt", "d/a", "d/b", "d/e/f", "d/e/g.txt", "x/y/z", "same/1", "over/plain"] {
            let mode = random.pick(&[0o644, 0o644, 0o600, 0o755, 0o4755, 0o2710]);
            let text = random.pick(&["", "text\n", "the same", name]).to_owned();
            files.insert(name, File::Bytes { text, mode });
        }
        files.insert("empty", File::Bytes { text: String::new(), mode: 0o644 });
        files.insert("x/link", File::Link("y/z"));
        files.insert("x/lost", File::Link("nowhere"));
        files.insert("x/out", File::Link("../../../etc/passwd"));
        files.insert("d/up", File::Link("../a"));
        files.insert("same/2", File::Same("same/1"));
        files.insert("same/z/3", File::Same("same/1"));
        // These meet links at the destination.
        files.insert("over/in", File::Bytes { text: "over\n".to_owned(), mode: 0o644 });
        files.insert("over/file", File::Link("../a"));
        files
    }

    fn stage(random: &mut Random, subjects: &BTreeSet<Subject>, stage: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut some = |random: &mut Random, from: &[&str], least: usize, most: usize| {
            for _ in 0..least + random.below(most - least + 1) {
                let mut line = random.pick(from).to_owned();
                // A command that finds nothing to do leaves what it did before it noticed.
                if line.starts_with("RUN") && !line.ends_with("|| true") {
                    line.push_str(" || true");
                }
                lines.insert(random.below(lines.len() + 1), line);
            }
        };
        some(random, LINES, 1, 3);
        for subject in subjects {
            let from = match subject {
                Subject::Links => LINES_OF_LINKS,
                Subject::Opaque => LINES_OF_OPAQUE,
                Subject::Places => LINES_OF_PLACES,
                Subject::HardLinks => LINES_OF_HARD_LINKS,
                Subject::Config => LINES_OF_CONFIG,
            };
            // One stage in three goes without, the first never does.
            if stage == 0 || !random.one_in(3) {
                some(random, from, 1, 3);
            }
        }
        if stage > 0 {
            for _ in 0..1 + random.below(2) {
                let from = random.pick(&["/etc", "/home", "/t", "/o", "/hl", "/real", "/to", "/etc/passwd", "/m"]);
                let flags = random.pick(&["", "", "--chown=builder ", "--chown=5:6 ", "--chmod=640 "]);
                let to = random.pick(&["/f/", "/f/new", "/t", "/o/", "/to/dir", "rel/"]);
                let line = format!("COPY {flags}--from={} {from} {to}", random.below(stage));
                lines.insert(random.below(lines.len() + 1), line);
            }
        }
        // What the lines want to find.
        let mut first = vec!["mkdir -p /t /m /o /hl /real /to"];
        if subjects.contains(&Subject::Links) {
            first.push(
                "mkdir -p /real/deep /to && echo r > /real/f && ln -sfn /real /to/dir && ln -sf ../real/deep /to/up \
                 && ln -sf /real/f /to/file && ln -sf made/here /to/nowhere && ln -sf f /real/inner \
                 && ln -sf nowhere /real/plain && ln -sf f /real/in",
            );
        }
        if subjects.contains(&Subject::Opaque) {
            first.push("mkdir -p /o/sub/deep && echo a > /o/a && echo b > /o/sub/b && echo c > /o/sub/deep/c");
        }
        if subjects.contains(&Subject::HardLinks) {
            first.push("mkdir -p /hl/b");
        }
        lines.insert(0, format!("RUN {} || true", first.join(" && ")));
        lines
    }
}
