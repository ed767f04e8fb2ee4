//! Command lines in, commands or messages out.

use super::*;
use crate::cli::output_spec::{Destination, OutputKind, OutputSpec};
use crate::exec::cgroup::{Resources, Swap};
use crate::image::annotation::Annotation;
use crate::image::platform::Platform;
use crate::plan::limits::Ulimit;
use crate::plan::step::Network;

/// Reads a command line; `'…'` keeps blanks together.
fn read_with(line: &str, settings: &Settings) -> Result<Request, String> {
    let mut words = Vec::new();
    for (i, part) in line.split('\'').enumerate() {
        if i % 2 == 1 {
            words.push(OsString::from(part));
        } else {
            words.extend(part.split_whitespace().map(OsString::from));
        }
    }
    parse(words, settings)
}

fn read(line: &str) -> Result<Request, String> {
    read_with(line, &Settings::for_test(&[("FROM_ENV", "here"), ("HOME", "/home/ann")]))
}

fn build_with(line: &str, settings: &Settings) -> BuildArgs {
    match read_with(line, settings) {
        Ok(Request::Run { command: Command::Build(args), .. }) => *args,
        other => panic!("{line}: {other:?}"),
    }
}

fn build(line: &str) -> BuildArgs {
    build_with(line, &Settings::for_test(&[("FROM_ENV", "here")]))
}

fn command(line: &str) -> Command {
    match read(line) {
        Ok(Request::Run { command, .. }) => command,
        other => panic!("{line}: {other:?}"),
    }
}

fn plain(dir: &str) -> BuildArgs {
    BuildArgs {
        context: Some(BuildContext::Directory(PathBuf::from(dir))),
        tags: vec![],
        file: None,
        target: None,
        build_args: vec![],
        labels: vec![],
        build_contexts: vec![],
        platforms: vec![],
        no_cache: false,
        no_cache_filter: vec![],
        cache_from: vec![],
        cache_to: vec![],
        offline: false,
        outputs: vec![],
        annotations: vec![],
        progress: Progress::Auto,
        quiet: false,
        iidfile: None,
        metadata_file: None,
        epoch: None,
        jobs: std::num::NonZeroUsize::new(4).unwrap(),
        explain: false,
        print: None,
        print_json: false,
        isolation: Isolation::Auto,
        network: Network::Default,
        private_network: false,
        add_hosts: vec![],
        shm_size: None,
        allow: vec![],
        run: RunArgs::default(),
        pull: Pull::Missing,
        secrets: Vec::new(),
        ssh: Vec::new(),
        verify_reproducible: false,
        call: None,
    }
}

fn checks(form: ReportForm) -> Call {
    Call { method: Method::Check, form, ignore_status: false }
}

fn remote(text: &str) -> BuildContext {
    let remote = crate::plan::remote::parse_context(text).expect("it is remote").expect("it is right");
    BuildContext::Remote(text.to_owned(), remote)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn builds() {
    let base = || plain(".");
    for (line, expected) in vec![
        (".", base()),
        ("build .", base()),
        ("image build .", base()),
        ("builder build .", base()),
        ("-- .", base()),
        ("./images", plain("./images")),
        ("build images", plain("images")),
        ("-t images images", BuildArgs { tags: texts(&["images"]), ..plain("images") }),
        (". -t a --tag=b -tc", BuildArgs { tags: texts(&["a", "b", "c"]), ..base() }),
        ("-f x/Dockerfile .", BuildArgs { file: Some(DockerfilePath::Path("x/Dockerfile".into())), ..base() }),
        ("-f - .", BuildArgs { file: Some(DockerfilePath::Stdin), ..base() }),
        ("-", BuildArgs { context: Some(BuildContext::Stdin), ..base() }),
        ("https://h/r.git#v1", BuildArgs { context: Some(remote("https://h/r.git#v1")), ..base() }),
        ("github.com/a/b", BuildArgs { context: Some(remote("github.com/a/b")), ..base() }),
        ("./github.com/a/b", plain("./github.com/a/b")),
        ("-f https://h/D .", BuildArgs { file: Some(DockerfilePath::Url("https://h/D".into())), ..base() }),
        ("--target t .", BuildArgs { target: Some("t".into()), ..base() }),
        (
            "--build-arg A=1 --build-arg FROM_ENV --build-arg NOWHERE --build-arg B=x=y --build-arg C= .",
            BuildArgs { build_args: pairs(&[("A", "1"), ("FROM_ENV", "here"), ("B", "x=y"), ("C", "")]), ..base() },
        ),
        ("--label a=b=c --label bare .", BuildArgs { labels: pairs(&[("a", "b=c"), ("bare", "")]), ..base() }),
        (
            "--build-context busybox=oci-layout://b --build-context src=../src .",
            BuildArgs {
                build_contexts: vec![
                    ("busybox".into(), NamedContext::OciLayout { dir: "b".into(), pick: None }),
                    ("src".into(), NamedContext::Directory("../src".into())),
                ],
                ..base()
            },
        ),
        ("--platform linux/arm64 .", BuildArgs { platforms: vec!["linux/arm64".into()], ..base() }),
        (
            "--annotation index:a=b --annotation c=d .",
            BuildArgs {
                annotations: ["index:a=b", "c=d"]
                    .iter()
                    .flat_map(|text| Annotation::parse_flag(text, &Platform::default()).unwrap())
                    .collect(),
                ..base()
            },
        ),
        (
            "--load .",
            BuildArgs {
                outputs: vec![OutputSpec::new(OutputKind::Image), OutputSpec::new(OutputKind::Docker)],
                ..base()
            },
        ),
        ("--load -o type=docker .", BuildArgs { outputs: vec![OutputSpec::new(OutputKind::Docker)], ..base() }),
        ("--platform a,b --platform c .", BuildArgs { platforms: vec!["a".into(), "b".into(), "c".into()], ..base() }),
        ("--no-cache .", BuildArgs { no_cache: true, ..base() }),
        ("--no-cache=true .", BuildArgs { no_cache: true, ..base() }),
        ("--no-cache --no-cache=false .", base()),
        (
            "--no-cache-filter a,b --no-cache-filter c .",
            BuildArgs { no_cache_filter: texts(&["a", "b", "c"]), ..base() },
        ),
        ("--pull=missing .", base()),
        ("--pull=false .", base()),
        ("--pull=never .", BuildArgs { pull: Pull::Never, ..base() }),
        ("--pull .", BuildArgs { pull: Pull::Always, ..base() }),
        ("--pull=true .", BuildArgs { pull: Pull::Always, ..base() }),
        ("--pull=newer .", BuildArgs { pull: Pull::Newer, ..base() }),
        ("--offline .", BuildArgs { offline: true, ..base() }),
        ("-q .", BuildArgs { quiet: true, progress: Progress::Quiet, ..base() }),
        ("-q=false .", base()),
        ("-qt x .", BuildArgs { quiet: true, progress: Progress::Quiet, tags: texts(&["x"]), ..base() }),
        ("--quiet --progress auto .", BuildArgs { quiet: true, progress: Progress::Quiet, ..base() }),
        ("--progress=plain .", BuildArgs { progress: Progress::Plain, ..base() }),
        ("--progress rawjson .", BuildArgs { progress: Progress::Rawjson, ..base() }),
        ("--iidfile i --metadata-file m .", {
            BuildArgs { iidfile: Some("i".into()), metadata_file: Some("m".into()), ..base() }
        }),
        ("--timestamp 5 .", BuildArgs { epoch: Some(Epoch { text: "5".into(), seconds: Some(5) }), ..base() }),
        ("--timestamp= .", BuildArgs { epoch: Some(Epoch { text: String::new(), seconds: None }), ..base() }),
        ("--jobs 2 .", BuildArgs { jobs: std::num::NonZeroUsize::new(2).unwrap(), ..base() }),
        ("--explain .", BuildArgs { explain: true, ..base() }),
        ("--print ast -f x", {
            BuildArgs { context: None, file: Some(DockerfilePath::Path("x".into())), print: Some(Print::Ast), ..base() }
        }),
        ("--print=plan --format=json .", BuildArgs { print: Some(Print::Plan), print_json: true, ..base() }),
        ("--check .", BuildArgs { call: Some(checks(ReportForm::Text)), ..base() }),
        ("--check=false .", base()),
        ("--check --format sarif .", BuildArgs { call: Some(checks(ReportForm::Sarif)), ..base() }),
        ("--call check,format=json .", BuildArgs { call: Some(checks(ReportForm::Json)), ..base() }),
        ("--call outline .", {
            let call = Call { method: Method::Outline, form: ReportForm::Text, ignore_status: false };
            BuildArgs { call: Some(call), ..base() }
        }),
        ("--check", BuildArgs { call: Some(checks(ReportForm::Text)), context: None, ..base() }),
        ("--print plan --format text .", BuildArgs { print: Some(Print::Plan), ..base() }),
        ("--isolation chroot .", BuildArgs { isolation: Isolation::Chroot, ..base() }),
        ("--network none .", BuildArgs { network: Network::None, ..base() }),
        ("--network private .", BuildArgs { private_network: true, ..base() }),
        ("--add-host me:host-gateway .", {
            BuildArgs { add_hosts: vec![("me".into(), "127.0.0.1".parse().unwrap())], ..base() }
        }),
        ("--add-host db:10.0.0.7 .", {
            BuildArgs { add_hosts: vec![("db".into(), "10.0.0.7".parse().unwrap())], ..base() }
        }),
        ("--verify-reproducible .", BuildArgs { verify_reproducible: true, ..base() }),
        ("--shm-size 64m .", BuildArgs { shm_size: Some(64 << 20), ..base() }),
        ("--allow network.host,security.insecure .", {
            BuildArgs { allow: vec![Entitlement::NetworkHost, Entitlement::SecurityInsecure], ..base() }
        }),
        ("--ulimit nofile=1:2 --ulimit core=0 --ulimit nofile=3 .", {
            let ulimits = ["core=0", "nofile=3"].map(|text| Ulimit::parse(text).unwrap()).to_vec();
            BuildArgs { run: RunArgs { ulimits, ..RunArgs::default() }, ..base() }
        }),
        ("-m 64m --memory-swap -1 -c 512 --cpus 1.5 --cpuset-cpus 0-1 --cpuset-mems 0 .", {
            let resources = Resources {
                memory: Some(64 << 20),
                swap: Some(Swap::Unlimited),
                cpu_time: Some((150_000, 100_000)),
                cpu_period: None,
                cpu_shares: Some(512),
                cpus: Some("0-1".into()),
                mems: Some("0".into()),
            };
            BuildArgs { run: RunArgs { resources, ..RunArgs::default() }, ..base() }
        }),
        ("--cpu-quota 5000 --cpu-period 10000 .", {
            let resources =
                Resources { cpu_time: Some((5000, 10_000)), cpu_period: Some(10_000), ..Resources::default() };
            BuildArgs { run: RunArgs { resources, ..RunArgs::default() }, ..base() }
        }),
        ("--cgroup-parent /a/b --security-opt seccomp=unconfined --shell-on-error --shell-at build .", {
            let run = RunArgs {
                cgroup_parent: Some("a/b".into()),
                unconfined: true,
                shell_on_error: true,
                shell_at: Some("build".into()),
                ..RunArgs::default()
            };
            BuildArgs { run, ..base() }
        }),
        // Nothing to do.
        (
            "--provenance=false --sbom=false --attest off --attest type=sbom,disabled=true --rm --rm=true --force-rm \
             --force-rm=false --compress --builder default --push=false --load=false --check=false .",
            base(),
        ),
    ] {
        assert_eq!(build(line), expected, "{line}");
    }
}

#[test]
fn outputs_are_read() {
    let args = build("-o type=oci,dest=a.tar --output out .");
    assert_eq!(args.outputs.iter().map(|output| output.kind).collect::<Vec<_>>(), [OutputKind::Oci, OutputKind::Local]);
    assert_eq!(build("-o - .").outputs[0].dest, Some(Destination::Stdout));
}

#[test]
fn the_environment_gives_defaults() {
    for (line, env, expected) in [
        (".", vec![("RBUILD_PROGRESS", "plain"), ("BUILDKIT_PROGRESS", "tty")], Progress::Plain),
        (".", vec![("RBUILD_PROGRESS", ""), ("BUILDKIT_PROGRESS", "tty")], Progress::Tty),
        ("--progress json .", vec![("RBUILD_PROGRESS", "plain")], Progress::Json),
        ("-q .", vec![("RBUILD_PROGRESS", "plain")], Progress::Quiet),
    ] {
        assert_eq!(build_with(line, &Settings::for_test(&env)).progress, expected, "{line} {env:?}");
    }
    let settings = Settings::for_test(&[("DOCKER_DEFAULT_PLATFORM", "linux/arm64"), ("SOURCE_DATE_EPOCH", "7")]);
    assert_eq!(build_with(".", &settings).platforms, ["linux/arm64"]);
    assert_eq!(build_with("--platform x .", &settings).platforms, ["x"]);
    let epoch = |line| build_with(line, &settings).epoch.and_then(|epoch| epoch.seconds);
    assert_eq!(epoch("."), Some(7));
    assert_eq!(epoch("--build-arg SOURCE_DATE_EPOCH=6 ."), Some(6));
    assert_eq!(epoch("--build-arg SOURCE_DATE_EPOCH=6 --timestamp 5 ."), Some(5));
    assert_eq!(epoch("--build-arg SOURCE_DATE_EPOCH= ."), None);
    for (env, expected) in [
        (("RBUILD_PROGRESS", "loud"), "RBUILD_PROGRESS=loud: expected auto, tty, plain, json, rawjson, quiet or none"),
        (
            ("SOURCE_DATE_EPOCH", "now"),
            "SOURCE_DATE_EPOCH in the environment: \"now\" is not a number of seconds since 1970, such as 1700000000",
        ),
    ] {
        assert_eq!(read_with(".", &Settings::for_test(&[env])), Err(expected.to_owned()), "{env:?}");
        // Only a build minds.
        assert!(read_with("images", &Settings::for_test(&[env])).is_ok(), "{env:?}");
    }
}

#[test]
fn store_commands() {
    let images = ImagesArgs::default;
    for (line, expected) in [
        ("images", Command::Images(images())),
        ("ls", Command::Images(images())),
        ("image ls", Command::Images(images())),
        ("image list", Command::Images(images())),
        (
            "images -aq --no-trunc --digests=true --format '{{.ID}}' --filter dangling=true -f 'Label = x' nginx",
            Command::Images(ImagesArgs {
                reference: Some("nginx".into()),
                all: true,
                quiet: true,
                no_trunc: true,
                digests: true,
                format: Some("{{.ID}}".into()),
                filters: pairs(&[("dangling", "true"), ("label", "x")]),
            }),
        ),
        (
            "history x",
            Command::History(HistoryArgs {
                image: "x".into(),
                human: true,
                no_trunc: false,
                quiet: false,
                format: None,
                platform: None,
            }),
        ),
        (
            "image history -H=false -q --platform linux/arm64 x",
            Command::History(HistoryArgs {
                image: "x".into(),
                human: false,
                no_trunc: false,
                quiet: true,
                format: None,
                platform: Some("linux/arm64".into()),
            }),
        ),
        ("inspect -f json a b --verify --platform=arm64", {
            let (format, platform) = (Some("json".into()), Some("arm64".into()));
            Command::Inspect(InspectArgs { images: texts(&["a", "b"]), format, verify: true, platform })
        }),
        ("tag a b", Command::Tag(TagArgs { source: "a".into(), target: "b".into() })),
        ("rmi a b", Command::Rmi(RmiArgs { images: texts(&["a", "b"]), force: false })),
        ("rm -f a", Command::Rmi(RmiArgs { images: texts(&["a"]), force: true })),
        ("untag a", Command::Rmi(RmiArgs { images: texts(&["a"]), force: false })),
        ("image remove a", Command::Rmi(RmiArgs { images: texts(&["a"]), force: false })),
        ("load", Command::Load(LoadArgs::default())),
        ("load -qi f --platform amd64,arm64", {
            let platforms = texts(&["amd64", "arm64"]);
            Command::Load(LoadArgs { input: Some("f".into()), quiet: true, platforms })
        }),
        ("import - x:1", {
            Command::Import(ImportArgs { file: "-".into(), reference: Some("x:1".into()), ..ImportArgs::default() })
        }),
        ("import -c 'CMD [\"sh\"]' --change 'ENV A=b' f", {
            let changes = texts(&["CMD [\"sh\"]", "ENV A=b"]);
            Command::Import(ImportArgs { file: "f".into(), changes, ..ImportArgs::default() })
        }),
        ("import -m text --platform p f", {
            let (message, platform) = (Some("text".into()), Some("p".into()));
            Command::Import(ImportArgs { file: "f".into(), message, platform, ..ImportArgs::default() })
        }),
        ("save a -o f b", {
            let format = ArchiveFormat::Docker;
            let images = texts(&["a", "b"]);
            Command::Save(SaveArgs { images, output: Some("f".into()), format, ..SaveArgs::default() })
        }),
        ("image save --format=oci --platform arm64 --platform amd64 a", {
            let platforms = texts(&["arm64", "amd64"]);
            let (images, format) = (texts(&["a"]), ArchiveFormat::Oci);
            Command::Save(SaveArgs { images, output: None, format, platforms })
        }),
        ("diff a b --format json", {
            Command::Diff(DiffArgs { a: "a".into(), b: "b".into(), format: DiffFormat::Json })
        }),
        ("prune", Command::Prune(PruneArgs::default())),
        ("system prune -af", Command::Prune(PruneArgs { all: true, force: true, ..PruneArgs::default() })),
        ("image prune", Command::Prune(PruneArgs { only: Some(PruneOnly::Images), ..PruneArgs::default() })),
        ("builder prune --keep-storage 1g --filter until=5", {
            let filters = vec![PruneFilter::Until(Until::At(5))];
            let only = Some(PruneOnly::Cache);
            Command::Prune(PruneArgs { keep_storage: Some(1 << 30), filters, only, ..PruneArgs::default() })
        }),
        ("buildx prune --all=true", {
            Command::Prune(PruneArgs { all: true, only: Some(PruneOnly::Cache), ..PruneArgs::default() })
        }),
        ("prune --everything", Command::Prune(PruneArgs { everything: true, ..PruneArgs::default() })),
        ("system df -v", Command::Df(DfArgs { verbose: true, format: None })),
        ("df --format json", Command::Df(DfArgs { verbose: false, format: Some("json".into()) })),
        ("completion zsh", Command::Completion(CompletionArgs { shell: Shell::Zsh })),
        ("version -f {{.Version}}", Command::Version(VersionArgs { format: Some("{{.Version}}".into()) })),
        ("info", Command::Info),
        ("system info", Command::Info),
        ("version", Command::Version(VersionArgs::default())),
    ] {
        assert_eq!(command(line), expected, "{line}");
    }
}

#[test]
fn the_root_may_stand_anywhere() {
    for line in ["--root r .", "--root=r .", "build --root r .", ". --root=r", "--root r -q ."] {
        match read(line) {
            Ok(Request::Run { root, command: Command::Build(_) }) => assert_eq!(root, Some("r".into()), "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    for line in ["--root r images", "images --root r", "--root r image ls"] {
        match read(line) {
            Ok(Request::Run { root, command: Command::Images(_) }) => assert_eq!(root, Some("r".into()), "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn what_comes_later_is_refused_by_name() {
    for (line, expected) in [
        ("--squash .", "--squash (one layer out of all)"),
        (
            "system prune --volumes",
            "--volumes (there are no volumes; leave it out, cache mounts go with the build cache)",
        ),
        (
            "rmi --no-prune x",
            "--no-prune (there are no parent images to keep; leave it out, layers stay for the cache until `rbuild prune`)",
        ),
        (
            "rmi --platform linux/amd64 x",
            "--platform (an image for several platforms goes as a whole; to have one of them, `rbuild pull --platform` or `rbuild load --platform` bring it alone)",
        ),
        ("images --tree", "--tree (`rbuild inspect NAME` lists the images of an index as Manifests)"),
        (
            "builder prune --min-free-space 1g",
            "--min-free-space (to keep so much of the build cache use --keep-storage SIZE)",
        ),
        ("--provenance .", "--provenance=true; rbuild makes no attestations"),
        ("--provenance=mode=max .", "--provenance=mode=max; rbuild makes no attestations"),
        ("--sbom=true .", "--sbom=true; rbuild makes no attestations"),
        ("--attest type=sbom .", "--attest type=sbom; rbuild makes no attestations"),
    ] {
        assert_eq!(read(line), Err(format!("not supported yet: {expected}")), "{line}");
    }
}

#[test]
fn wrong_words_are_explained() {
    for (line, expected) in [
        ("build", "a build needs a CONTEXT, the directory to build from; for this one: rbuild [OPTIONS] ."),
        ("-t x", "a build needs a CONTEXT, the directory to build from; for this one: rbuild [OPTIONS] ."),
        ("--print plan", "a build needs a CONTEXT, the directory to build from; for this one: rbuild [OPTIONS] ."),
        ("build ''", "the CONTEXT is empty; for this directory write ."),
        ("-f - -", "the CONTEXT and the Dockerfile cannot both come from standard input"),
        ("--rm=false .", "not supported: --rm=false; rbuild makes no intermediate containers to keep"),
        ("--builder b .", "not supported: --builder b; rbuild has one builder, itself"),
        ("--pull=perhaps .", "--pull=perhaps: expected always, missing, never or newer"),
        ("-q --progress=plain .", "--quiet and --progress=plain cannot both hold"),
        ("-o - -o type=oci .", "only one output can go to standard output; give the others dest=FILE"),
        (
            "-q -o - .",
            "--quiet prints the image id on standard output, where the tar output goes too; \
             give it dest=FILE, or use --iidfile",
        ),
        (
            "--network private --add-host me:host-gateway .",
            "--add-host me:host-gateway: with --network private nothing leads to this machine's loopback",
        ),
        ("--format json .", "--format says in what form --print, --check and --call print; give one of them too"),
        ("--format sarif --print plan .", "--format sarif is a form of --check"),
        ("--check --print plan .", "--print and --check or --call cannot both hold"),
        (
            "--print graph --format json .",
            "--print graph has the form DOT alone; --print plan --format json has the steps",
        ),
        ("--timestamp=-1 .", "--timestamp: \"-1\" is not a number of seconds since 1970, such as 1700000000"),
        ("-o type=ocii .", "--output type=ocii: unknown type ocii; did you mean oci?"),
        ("-m 5m .", "--memory: the smallest limit is 6m"),
        ("--memory-swap 1g .", "--memory-swap is memory and swap together: give --memory too"),
        ("-m 1g --memory-swap 1m .", "--memory-swap is memory and swap together: it cannot be less than --memory"),
        ("--cpus 1 --cpu-quota 1000 .", "--cpus and --cpu-quota or --cpu-period say the same thing: give one of them"),
        ("image rn x", "`rbuild image` has no command rn; did you mean rm?"),
    ] {
        assert_eq!(read(line), Err(expected.to_owned()), "{line}");
    }
    // Texts that clap writes: only what is ours to keep.
    for (line, parts) in [
        ("--no-cahe .", vec!["unexpected argument '--no-cahe'", "'--no-cache'"]),
        ("--progress plian .", vec!["invalid value 'plian' for '--progress <HOW>'", "'plain'", "rawjson"]),
        ("--no-cache=maybe .", vec!["invalid value 'maybe' for '--no-cache", "expected true or false"]),
        ("--label =x .", vec!["--label", "the key is empty"]),
        ("--build-arg =x .", vec!["--build-arg", "the name is empty"]),
        ("--add-host x .", vec!["--add-host", "expected HOST:IP, such as db:10.0.0.7"]),
        ("--build-context x .", vec!["--build-context", "expected NAME=VALUE"]),
        ("--jobs 0 .", vec!["--jobs"]),
        ("--network bridge .", vec!["--network", "default, none, host"]),
        ("--allow device .", vec!["--allow", "network.host"]),
        ("--ulimit nofiles=1 .", vec!["--ulimit", "there is no limit named \"nofiles\"; did you mean nofile?"]),
        ("--cpus 0 .", vec!["--cpus", "the smallest is 0.01"]),
        ("--cpu-period 1 .", vec!["--cpu-period", "1000..=1000000"]),
        ("--cpuset-cpus 2-1 .", vec!["--cpuset-cpus", "expected a list such as 0-2,4"]),
        ("--cgroup-parent ../x .", vec!["--cgroup-parent", "below the root of all"]),
        ("--security-opt apparmor=x .", vec!["--security-opt", "not supported yet: apparmor"]),
        ("--tag '' .", vec!["--tag", "it is empty"]),
        (". more", vec!["unexpected argument 'more'"]),
        ("--root '' .", vec!["--root <DIR>", "a value is required"]),
        ("--root", vec!["--root <DIR>", "a value is required"]),
        ("inspect", vec!["<IMAGE>"]),
        ("tag a", vec!["<NAME[:TAG]>"]),
        ("images --filter x", vec!["expected KEY=VALUE, such as dangling=true"]),
        ("images --digest", vec!["'--digests'"]),
    ] {
        let error = read(line).expect_err(line);
        for part in parts {
            assert!(error.contains(part), "{line}: no {part:?} in\n{error}");
        }
        assert!(!error.starts_with("error"), "{line}: {error}");
    }
}

#[test]
fn a_terminal_gets_no_tar() {
    let settings = Settings { stdout_is_terminal: true, ..Settings::for_test(&[]) };
    let error = read_with("-o type=oci .", &settings);
    assert_eq!(error, Err("the oci output would go to the terminal; redirect it or give dest=FILE".to_owned()));
    assert!(read_with("-o type=oci,dest=x .", &settings).is_ok());
}

#[test]
fn words_that_are_not_utf8_are_paths_or_refused() {
    use std::os::unix::ffi::OsStringExt;
    let odd = OsString::from_vec(b"a\xffb".to_vec());
    let settings = Settings::for_test(&[]);
    let expected = Ok(Request::Run {
        root: None,
        command: Command::Build(Box::new(BuildArgs {
            context: Some(BuildContext::Directory(PathBuf::from(odd.clone()))),
            ..plain(".")
        })),
    });
    assert_eq!(parse(vec![odd.clone()], &settings), expected);
    assert!(parse(vec!["-t".into(), odd, ".".into()], &settings).is_err());
}

#[test]
fn help_answers() {
    for (line, parts, not) in [
        (
            "--help",
            vec!["rbuild [build] [OPTIONS] CONTEXT", "images", "history", "pull", "prune", "rbuild build --help"],
            "--squash",
        ),
        (
            "build --help",
            vec!["Usage: rbuild [build] [OPTIONS] CONTEXT", "--no-cache-filter", "Cache:", "RUN:"],
            "--squash",
        ),
        ("-t x --help", vec!["--no-cache-filter"], "--squash"),
        ("help rmi", vec!["rbuild rmi", "--force", "untag"], "--build-arg"),
        ("build -h", vec!["-h, --help  Print help\n"], "see more"),
        ("--root r images -h", vec!["rbuild images", "--digests"], "--build-arg"),
        ("image ls --help", vec!["rbuild images", "--digests"], "--build-arg"),
        ("image --help", vec!["Usage: rbuild image COMMAND", "history"], "--root"),
        ("image prune --help", vec!["Usage: rbuild image prune", "Remove images without a name\n"], "--keep-storage"),
        (
            "builder prune -h",
            vec!["Usage: rbuild builder prune", "--keep-storage", "Remove all build cache\n"],
            "images",
        ),
        ("system prune --help", vec!["Usage: rbuild prune", "and build cache"], "--volumes"),
        ("-V", vec![VERSION], "Usage"),
        ("-v", vec![VERSION], "Usage"),
        ("--version", vec![VERSION], "Usage"),
    ] {
        let Ok(Request::Answer(text)) = read(line) else { panic!("{line}: {:?}", read(line)) };
        for part in parts {
            assert!(text.contains(part), "{line}: no {part:?} in\n{text}");
        }
        assert!(!text.contains(not), "{line}: {not:?} in\n{text}");
    }
}

#[test]
fn the_parser_is_sound() {
    parser().debug_assert();
    commands().debug_assert();
}

#[test]
fn commands_that_were_nearly_typed_are_found() {
    for (word, expected) in
        [("imgaes", Some("images")), ("inspct", Some("inspect")), ("histroy", Some("history")), ("src", None)]
    {
        assert_eq!(similar_command(word).as_deref(), expected, "{word}");
    }
}
