//! The planner against its own cases in `testdata/plans`, and against what docker made of the Dockerfiles of others.
//!
//! A file of cases holds `=== title`, then sections: `--- dockerfile`, `--- options` (one for each line), `--- base
//! NAME` (an image config as JSON; images that no section describes are small and ordinary), and what must come of it:
//! `--- plan`, `--- history`, `--- config`, `--- graph`, `--- needs`, `--- warnings`, `--- errors`. Warnings and errors
//! that no section expects are failures. `RBUILD_BLESS=1` writes what comes out into the files, to be read in a diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild::diagnostic::{Diagnostic, Source};
use rbuild::dockerfile::{Parsed, parse};
use rbuild::image::assemble::{NewLayer, Parts, assemble};
use rbuild::image::config::ImageConfig;
use rbuild::image::manifest::{Descriptor, Encoding, Family};
use rbuild::image::platform::Platform;
use rbuild::plan::limits::{Allowed, Ulimit};
use rbuild::plan::step::{CopyFrom, Network, Op, Plan, Stack, StepId};
use rbuild::plan::{self, BaseImage, BaseRequest, Bases, NoCache, Outcome, PlanOptions, Resolved, print};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a case gives, and what planning made of it.
struct Case {
    source: Source,
    options: PlanOptions,
    bases: BTreeMap<String, ImageConfig>,
}

/// Either everything, or the errors.
struct Made {
    plan: Plan,
    graph: plan::StageGraph,
    asked: Vec<BaseRequest>,
    warnings: Vec<Diagnostic>,
    bases: Bases,
}

impl Case {
    /// Parses, plans, and answers what the planner asks for.
    fn make(&self) -> Result<Made, Vec<Diagnostic>> {
        let parsed = parse(&self.source);
        if parsed.has_errors() {
            return Err(parsed.diagnostics.into_iter().filter(Diagnostic::is_error).collect());
        }
        self.make_parsed(&parsed)
    }

    fn make_parsed(&self, parsed: &Parsed) -> Result<Made, Vec<Diagnostic>> {
        let graph = plan::graph(&parsed.dockerfile, &self.options)?;
        let mut asked = plan::base_requests(&graph, &self.options);
        let mut bases = Bases::new();
        for request in &asked {
            self.answer(request, &mut bases);
        }
        loop {
            match plan::plan(&graph, &bases, &self.options)? {
                Outcome::Planned(plan, warnings) => return Ok(Made { plan, graph, asked, warnings, bases }),
                Outcome::NeedBases(requests) => {
                    assert!(!requests.is_empty(), "asks for nothing");
                    for request in requests {
                        self.answer(&request, &mut bases);
                        asked.push(request);
                    }
                }
            }
        }
    }

    fn answer(&self, request: &BaseRequest, bases: &mut Bases) {
        let config = self.bases.get(&request.name).cloned();
        let config = match (config, request.context) {
            (Some(config), _) => config,
            (None, true) => {
                bases.insert((request.name.clone(), request.platform.to_string()), Resolved::Context);
                return;
            }
            (None, false) => ordinary(&request.platform),
        };
        let image = BaseImage {
            name: request.name.clone(),
            image_id: config.image_id(),
            manifest: None,
            layers: config
                .rootfs
                .diff_ids
                .iter()
                .map(|id| Descriptor::new(Family::Oci.layer(Encoding::Gzip), id.0, 1))
                .collect(),
            platform: config.platform(),
            config,
        };
        bases.insert((request.name.clone(), request.platform.to_string()), Resolved::Image(Arc::new(image)));
    }

    fn show(&self, diagnostics: &[Diagnostic]) -> String {
        let mut out = String::new();
        for diagnostic in diagnostics {
            match diagnostic.span {
                Some(span) => {
                    assert!(span.start <= span.end && span.end <= self.source.text.len(), "{diagnostic:?}");
                    let line_start = self.source.text[..span.start].rfind('\n').map_or(0, |at| at + 1);
                    write!(out, "{}:{} ", self.source.line(span.start), span.start - line_start + 1).unwrap();
                }
                None => out.push_str("- "),
            }
            if let Some(rule) = diagnostic.rule {
                write!(out, "{rule}: ").unwrap();
            }
            writeln!(out, "{}", diagnostic.message).unwrap();
            for help in &diagnostic.help {
                writeln!(out, "  {help}").unwrap();
            }
        }
        out
    }
}

/// A base with nothing of interest in it.
fn ordinary(platform: &Platform) -> ImageConfig {
    let mut config =
        ImageConfig { os: platform.os.clone(), architecture: platform.architecture.clone(), ..ImageConfig::default() };
    config.config.env.push(PATH.into());
    config.config.cmd.push("sh".into());
    config
        .rootfs
        .diff_ids
        .push("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap());
    config
}

fn option(options: &mut PlanOptions, line: &str) {
    let (name, value) = line.split_once(' ').unwrap_or((line, ""));
    let pair = || {
        let (name, value) = value.split_once('=').unwrap_or((value, ""));
        (name.to_owned(), value.to_owned())
    };
    match name {
        "build-arg" => options.build_args.push(pair()),
        "label" => options.labels.push(pair()),
        "proxy" => options.proxy_env.push(pair()),
        "target" => options.target = Some(value.to_owned()),
        "platform" => options.platforms.push(value.parse().unwrap()),
        "build-platform" => options.build_platform = value.parse().unwrap(),
        "no-cache" => options.no_cache = NoCache::All,
        "no-cache-filter" => options.no_cache = NoCache::Stages(value.split(',').map(str::to_owned).collect()),
        "epoch" => options.epoch = Some(value.parse().unwrap()),
        "network" => options.network = if value == "host" { Network::Host } else { Network::None },
        "hostname" => options.hostname = Some(value.to_owned()),
        "allow" if value == "network.host" => options.allowed.network_host = true,
        "allow" => options.allowed.security_insecure = true,
        "ulimit" => options.limits.ulimits.push(Ulimit::parse(value).unwrap()),
        "shm-size" => options.limits.shm_size = value.parse().unwrap(),
        "cgroup-parent" => options.limits.cgroup_parent = Some(value.to_owned()),
        "context" => drop(options.named_contexts.insert(value.to_owned())),
        other => panic!("unknown option {other}"),
    }
}

/// The sections of a case: name and text, in order.
type Sections = Vec<(String, String)>;

/// What comes out for each section that expects something.
fn outcome(sections: &Sections) -> Sections {
    let mut case = Case {
        source: Source { name: "Dockerfile".into(), text: String::new() },
        options: PlanOptions::default(),
        bases: BTreeMap::new(),
    };
    for (name, text) in sections {
        match name.split_once(' ') {
            Some(("base", image)) => {
                let config =
                    ImageConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("base {image}: {error}"));
                case.bases.insert(image.to_owned(), config);
            }
            _ if name == "dockerfile" => text.clone_into(&mut case.source.text),
            _ if name == "options" => text.lines().for_each(|line| option(&mut case.options, line)),
            _ => {}
        }
    }
    let inputs =
        sections.iter().filter(|(name, _)| name.starts_with("base ") || name == "dockerfile" || name == "options");
    let mut out: Sections = inputs.cloned().collect();
    let wanted = |name: &str| sections.iter().any(|(section, _)| section == name);
    match case.make() {
        Err(errors) => out.push(("errors".into(), case.show(&errors))),
        Ok(made) => {
            let config: String = print::text(&made.plan).lines().skip_while(|line| !line.starts_with("image ")).fold(
                String::new(),
                |text, line| if line.starts_with("  history") { text } else { text + line + "\n" },
            );
            let history =
                made.plan.images.iter().flat_map(|image| &image.history).fold(String::new(), |text, entry| {
                    let mark = if entry.step.is_some() { "+" } else { "-" };
                    text + mark + " " + &entry.created_by.replace('\n', "\\n").replace('\t', "\\t") + "\n"
                });
            let needs = made.asked.iter().fold(String::new(), |mut text, request| {
                let BaseRequest { name, platform, span, context, similar } = request;
                let kind = if *context { "context" } else { "image" };
                let line = case.source.line(span.start);
                writeln!(text, "{kind} {name} {platform} line {line} {}", similar.as_deref().unwrap_or("-")).unwrap();
                text
            });
            for (name, text) in [
                ("plan", print::text(&made.plan)),
                ("history", history),
                ("config", config),
                ("graph", print::dot(&made.graph)),
                ("needs", needs),
            ] {
                if wanted(name) {
                    out.push((name.into(), text));
                }
            }
            let warnings = case.show(&made.warnings);
            if wanted("warnings") || !warnings.is_empty() {
                out.push(("warnings".into(), warnings));
            }
        }
    }
    out
}

fn read_cases(text: &str) -> Vec<(String, Sections)> {
    let mut cases: Vec<(String, Sections)> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(title) = line.strip_prefix("=== ") {
            cases.push((title.trim_end().to_owned(), Vec::new()));
        } else if let Some((_, sections)) = cases.last_mut() {
            match (line.strip_prefix("--- "), sections.last_mut()) {
                (Some(name), _) => sections.push((name.trim_end().to_owned(), String::new())),
                (None, Some((_, section))) => section.push_str(line),
                (None, None) => assert!(line.trim().is_empty(), "text before the first section: {line}"),
            }
        }
    }
    for (_, section) in cases.iter_mut().flat_map(|(_, sections)| sections) {
        // The blank line before the next title belongs to the layout of the file.
        if section.ends_with("\n\n") {
            section.pop();
        }
    }
    cases
}

fn write_cases(cases: &[(String, Sections)]) -> String {
    let mut out = String::new();
    for (title, sections) in cases {
        writeln!(out, "=== {title}").unwrap();
        for (name, text) in sections {
            write!(out, "--- {name}\n{text}").unwrap();
        }
        out.push('\n');
    }
    out.truncate(out.trim_end_matches('\n').len() + 1);
    out
}

#[test]
fn dockerfiles_are_planned_as_the_cases_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plans");
    let bless = std::env::var_os("RBUILD_BLESS").is_some();
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut count, mut wrong) = (0, String::new());
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "txt")) {
        let cases = read_cases(&fs::read_to_string(file).unwrap());
        let found: Vec<(String, Sections)> =
            cases.iter().map(|(title, sections)| (title.clone(), outcome(sections))).collect();
        if bless {
            fs::write(file, write_cases(&found)).unwrap();
        }
        for ((title, expected), (_, found)) in cases.iter().zip(&found) {
            count += 1;
            let sections = |sections: &Sections| sections.iter().cloned().collect::<BTreeMap<_, _>>();
            let (mut expected, found) = (sections(expected), sections(found));
            for (name, text) in &found {
                let expected = expected.remove(name).unwrap_or_default();
                if expected.trim_end() != text.trim_end() {
                    let file = file.file_name().unwrap_or_default().display();
                    writeln!(wrong, "{file}: {title}: {name}:\nexpected:\n{expected}\nfound:\n{text}").unwrap();
                }
            }
            for (name, text) in expected.iter().filter(|(_, text)| !text.is_empty()) {
                writeln!(wrong, "{title}: no {name} came out; expected:\n{text}").unwrap();
            }
        }
    }
    assert!(count > 0, "no cases in {}", folder.display());
    assert!(bless || wrong.is_empty(), "{wrong}");
}

/// Lines of which random Dockerfiles are made. Some are wrong, most together make sense.
const LINES: [&str; 26] = [
    "FROM busybox AS a",
    "FROM scratch AS b",
    "FROM a",
    "FROM b AS a",
    "FROM ctx AS c",
    "FROM onb AS d",
    "FROM d",
    "COPY --from=a / /",
    "COPY --from=b / /",
    "COPY --from=d x y",
    "COPY --from=0 x y",
    "COPY --from=ctx x y",
    "COPY --from=nginx x y",
    "COPY . .",
    "ADD x.tar /",
    "RUN make",
    "WORKDIR sub",
    "WORKDIR /",
    "ARG A=1",
    "ENV A=2 B=$A",
    "LABEL a=$B",
    "CMD x",
    "ENTRYPOINT [\"x\"]",
    "ONBUILD RUN triggered",
    "ONBUILD COPY --from=a / /",
    "USER $A",
];

proptest::proptest! {
    /// Whatever the stages are: steps come after what they need, each of the image's layers is in its history once
    /// and in order, what is planned is what was asked for, and a second time gives the same.
    #[test]
    fn plans_hold_together(lines in proptest::collection::vec(proptest::sample::select(&LINES[..]), 1..25)) {
        let text = format!("FROM busybox AS first\n{}\n", lines.join("\n"));
        let mut case = Case {
            source: Source { name: "Dockerfile".into(), text },
            options: PlanOptions::default(),
            bases: BTreeMap::new(),
        };
        case.options.named_contexts.insert("ctx".into());
        let mut onb = ordinary(&Platform::new("linux", "amd64", ""));
        onb.config.on_build = vec!["RUN trigger".into(), "COPY --from=first / /".into()];
        case.bases.insert("docker.io/library/onb:latest".into(), onb);
        let again = |case: &Case| case.make().map(|made| print::text(&made.plan)).map_err(|errors| case.show(&errors));
        proptest::prop_assert_eq!(again(&case), again(&case));
        let Ok(Made { plan, bases, .. }) = case.make() else { return Ok(()) };
        let before = |stack: Stack, at: usize| match stack {
            Stack::Scratch => true,
            Stack::Base(base) => base.0 < plan.bases.len(),
            Stack::Step(step) => step.0 < at,
        };
        for (at, step) in plan.steps.iter().enumerate() {
            proptest::prop_assert!(before(step.parent, at));
            if let Op::Copy(op) = &step.op {
                let there = match op.from {
                    CopyFrom::Context(context) => context.0 < plan.contexts.len(),
                    CopyFrom::Stack(stack) => before(stack, at),
                };
                proptest::prop_assert!(there);
            }
        }
        let image = &plan.images[0];
        let mut chain = Vec::new();
        let mut stack = image.stack;
        while let Stack::Step(step) = stack {
            chain.push(step);
            stack = plan.steps[step.0].parent;
        }
        chain.reverse();
        let listed: Vec<StepId> = image.history.iter().filter_map(|entry| entry.step).collect();
        proptest::prop_assert_eq!(listed, chain);
        for base in &plan.bases {
            proptest::prop_assert!(bases.contains_key(&(base.name.clone(), base.platform.to_string())));
        }
    }
}

/// The folder with data of other projects, or `None` after saying that `test` was skipped.
fn corpus(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RBUILD_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/open"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "corpus"), "{test}: no corpus in {}", folder.display());
    eprintln!("skipped: {test}: corpus not found in {}", folder.display());
    None
}

/// What planning every stage of a file says: where which variables are undefined, and the errors.
fn plan_all_stages(source: Source) -> (Case, BTreeSet<(String, usize)>, Vec<Diagnostic>) {
    let allowed = Allowed { network_host: true, security_insecure: true };
    let options = PlanOptions { allowed, ..PlanOptions::default() };
    let mut case = Case { source, options, bases: BTreeMap::new() };
    let parsed = parse(&case.source);
    let mut said: Vec<Diagnostic> = Vec::new();
    if parsed.has_errors() {
        said.extend(parsed.diagnostics);
    } else {
        for target in 0..parsed.dockerfile.stages.len() {
            case.options.target = Some(target.to_string());
            match case.make_parsed(&parsed) {
                Ok(made) => said.extend(made.warnings),
                Err(list) => said.extend(list),
            }
        }
    }
    let (errors, warnings): (Vec<_>, Vec<_>) = said.into_iter().partition(Diagnostic::is_error);
    let undefined = warnings.iter().filter_map(|warning| {
        let rule = warning.rule.filter(|rule| rule.starts_with("Undefined"))?;
        Some((rule.to_owned(), case.source.line(warning.span?.start)))
    });
    let undefined = undefined.collect();
    (case, undefined, errors)
}

fn is_beyond(error: &Diagnostic) -> bool {
    error.message.starts_with("not supported yet")
}

/// Dockerfiles of real projects and of BuildKit's tests: what docker accepts can be planned, but for what is not
/// supported yet; what it refuses is refused; and the variables that it finds undefined are those that we find.
#[test]
fn dockerfiles_of_others_are_planned() {
    let Some(corpus) = corpus("dockerfiles_of_others_are_planned") else { return };
    let json = |path: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(corpus.join(path)).unwrap()).unwrap()
    };
    // Name, text, docker's error if it has one, docker's warnings.
    let mut files: Vec<(String, String, Option<String>, serde_json::Value)> = Vec::new();
    for file in json("real_expect.json")["files"].as_array().unwrap() {
        let name = file["file"].as_str().unwrap();
        let bytes = fs::read(corpus.join("real").join(name)).unwrap();
        let error =
            (file["expect"] != "accept").then(|| file["buildkit_error"].as_str().unwrap_or("refused").to_owned());
        files.push((name.to_owned(), String::from_utf8_lossy(&bytes).into_owned(), error, file["warnings"].clone()));
    }
    for snippet in json("snippets/buildkit_snippets.json").as_array().unwrap() {
        let said = &snippet["buildkit"];
        let error = ["parse_error", "instructions_error", "convert_error"].iter().find_map(|kind| said[kind].as_str());
        // Lints that are made fatal are not the planner's, and an epoch comes from outside alone (decisions 11).
        if error.is_some_and(|error| error.starts_with("lint violation") || error.contains("SOURCE_DATE_EPOCH")) {
            continue;
        }
        let text = snippet["dockerfile"].as_str().unwrap().to_owned();
        files.push((snippet["id"].to_string(), text, error.map(str::to_owned), said["warnings"].clone()));
    }
    let (mut planned, mut refused, mut wrong) = (0, 0, String::new());
    for (name, text, error, warnings) in files {
        let (case, found, errors) = plan_all_stages(Source { name: name.clone(), text });
        match error {
            Some(error) if errors.is_empty() => writeln!(wrong, "{name}: docker refuses it: {error}").unwrap(),
            None if !errors.iter().all(is_beyond) => {
                writeln!(wrong, "{name}: docker takes it:\n{}", case.show(&errors)).unwrap();
            }
            None if errors.is_empty() => {
                planned += 1;
                let expected: BTreeSet<&str> = warnings
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|warning| warning["rule"].as_str())
                    .filter(|rule| rule.starts_with("Undefined"))
                    .collect();
                let rules: BTreeSet<&str> = found.iter().map(|(rule, _)| rule.as_str()).collect();
                if rules != expected {
                    writeln!(wrong, "{name}: expected {expected:?} of {warnings}, found {found:?}").unwrap();
                }
            }
            _ => refused += 1,
        }
    }
    eprintln!("{planned} files are planned, {refused} are refused or need what is not supported yet");
    assert!(wrong.is_empty(), "{wrong}");
}

/// Config, history and the number of layers of every image that docker built, as far as planning decides them.
#[test]
fn images_are_those_that_docker_built() {
    let Some(corpus) = corpus("images_are_those_that_docker_built") else { return };
    let folder = corpus.join("conformance");
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
            .unwrap()
    };
    let (mut equal, mut beyond, mut wrong) = (0, 0, String::new());
    for case in read(&folder.join("cases.json")).as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let golden = folder.join(name).join("golden.json");
        if !golden.is_file() {
            continue;
        }
        let golden = read(&golden);
        match check_golden(&folder.join(name), case, &golden) {
            Ok(true) => equal += 1,
            Ok(false) => beyond += 1,
            Err(why) => writeln!(wrong, "{name}: {why}").unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{equal} equal; not equal:\n{wrong}");
    assert!(equal > 0, "no golden was compared");
    eprintln!("{equal} images are equal to docker's, {beyond} are not decided by planning");
}

/// `Ok(false)`: what the golden shows is not the planner's to decide.
fn check_golden(folder: &Path, case: &serde_json::Value, golden: &serde_json::Value) -> Result<bool, String> {
    let text = fs::read_to_string(folder.join("Dockerfile")).map_err(|error| error.to_string())?;
    let mut made = Case {
        source: Source { name: "Dockerfile".into(), text },
        options: PlanOptions {
            allowed: Allowed { network_host: true, security_insecure: true },
            ..PlanOptions::default()
        },
        bases: BTreeMap::new(),
    };
    for (image, name, cmd) in
        [("busybox", "busybox", "sh"), ("alpine", "alpine", "/bin/sh"), ("centos:7", "centos", "/bin/bash")]
    {
        let mut config = ordinary(&Platform::new("linux", "amd64", ""));
        config.config.cmd = vec![cmd.to_owned()];
        config
            .history
            .push(rbuild::image::config::History { created_by: format!("local rootfs {name}"), ..Default::default() });
        made.bases.insert(image.to_owned(), config);
        made.options.named_contexts.insert(image.to_owned());
    }
    for (name, value) in case["build_args"].as_object().unwrap() {
        made.options.build_args.push((name.clone(), value.as_str().unwrap().to_owned()));
    }
    let plan = match made.make() {
        Ok(plan) => plan,
        Err(errors) if errors.iter().all(|error| error.message.starts_with("not supported yet")) => return Ok(false),
        Err(_) if golden["status"] == "fail" => return Ok(true),
        Err(errors) => return Err(made.show(&errors)),
    };
    if golden["status"] == "fail" {
        return Ok(false);
    }
    let image = &plan.plan.images[0];
    let layer = |step: usize| NewLayer {
        diff_id: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap(),
        content: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap(),
        descriptor: Descriptor::of(Family::Oci.layer(Encoding::Tar), b""),
        created: format!("2024-01-01T00:00:{:02}Z", step % 60),
    };
    let layers: BTreeMap<StepId, NewLayer> =
        (0..plan.plan.steps.len()).map(|step| (StepId(step), layer(step))).collect();
    let base = image.base.map(|base| &plan.plan.bases[base.0]).and_then(|base| {
        match plan.bases.get(&(base.name.clone(), base.platform.to_string())) {
            Some(Resolved::Image(image)) => Some(image.clone()),
            _ => None,
        }
    });
    let parts =
        Parts { image, base: base.as_deref(), base_contents: None, layers: &layers, epoch: None, family: Family::Oci };
    let made = assemble(&parts).map_err(|error| error.to_string())?;
    let config: serde_json::Value = serde_json::from_slice(&made.config_bytes).unwrap();
    for (name, expected) in golden["config"].as_object().unwrap() {
        let found = match &config["config"][name] {
            serde_json::Value::Object(map) if expected.is_array() => map.keys().cloned().collect::<Vec<_>>().into(),
            value => value.clone(),
        };
        let nothing = |value: &serde_json::Value| matches!(value.to_string().as_str(), "null" | "[]" | "{}" | "\"\"");
        if found != *expected && !(nothing(&found) && nothing(expected)) {
            // The summaries list the durations of health checks by other means.
            return Err(format!("config {name}: expected {expected}, found {found}"));
        }
    }
    let history = made.config.history.iter().map(|entry| (entry.created_by.as_str(), entry.empty_layer));
    let expected: Vec<(&str, bool)> = golden["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["created_by"].as_str().unwrap(), entry["empty_layer"].as_bool().unwrap()))
        .collect();
    let history: Vec<(&str, bool)> = history.collect();
    if history != expected {
        return Err(format!("history:\n expected {expected:?}\n found    {history:?}"));
    }
    if golden["layers"] != made.config.rootfs.diff_ids.len() || golden["os"] != made.config.os.as_str() {
        return Err(format!("{} layers, os {}", made.config.rootfs.diff_ids.len(), made.config.os));
    }
    if golden["architecture"] != made.config.architecture.as_str() {
        return Err(format!("architecture {}", made.config.architecture));
    }
    Ok(true)
}

/// Planning takes time in proportion to the names of variables. If each were looked for among all others, this would
/// take minutes.
#[test]
fn many_variables_are_planned_in_time() {
    const NAMES: usize = 20_000;
    let mut text = String::from("FROM busybox AS a\n");
    for number in 0..NAMES {
        writeln!(text, "ENV NAME_{number}=$NAME_{}", number.saturating_sub(1)).unwrap();
    }
    text.push_str("FROM a\nENV LAST=1\n");
    let source = Source { name: "Dockerfile".into(), text };
    let case = Case { source, options: PlanOptions::default(), bases: BTreeMap::new() };
    let parsed = parse(&case.source);
    let began = std::time::Instant::now();
    let made = case.make_parsed(&parsed).unwrap();
    assert_eq!(made.plan.images[0].config.config.env.len(), NAMES + 2);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
}

/// What doubles line by line ends as an error told once, before it takes the memory: in ENV, in LABEL, in the
/// environments of commands, in stages on stages, and in the ARGs before FROM.
#[test]
fn variables_cannot_make_gigabytes_of_a_few_lines() {
    let doubled =
        |instruction: &str| format!("{instruction} b=01234567\n{}", format!("{instruction} b=$b$b\n").repeat(16));
    let many = |line: &dyn Fn(usize) -> String| (0..150).map(line).collect::<String>();
    let env = format!("FROM scratch AS s0\n{}", doubled("ENV"));
    for (text, line) in [
        (format!("{env}{}", many(&|number| format!("ENV n{number}=$b\n"))), "ENV"),
        (format!("{env}{}", many(&|number| format!("LABEL n{number}=$b\n"))), "LABEL"),
        (format!("{env}{}", many(&|_| "RUN x\n".to_owned())), "RUN"),
        (format!("{env}{}", many(&|number| format!("FROM s{number} AS s{}\n", number + 1))), "FROM"),
        (format!("{}{}FROM scratch\n", doubled("ARG"), many(&|number| format!("ARG n{number}=$b\n"))), "ARG"),
    ] {
        let source = Source { name: "Dockerfile".into(), text };
        let case = Case { source, options: PlanOptions::default(), bases: BTreeMap::new() };
        let errors = case.make().err().expect("an error");
        let told = case.show(&errors[..1]);
        let number: usize = told.split(':').next().and_then(|number| number.parse().ok()).expect("a line");
        let place = case.source.text.lines().nth(number - 1).expect("a line of the file");
        assert!(told.contains(" MiB") && place.starts_with(line), "{place}: {told}");
        assert!(line == "ARG" || errors.len() == 1, "{} errors", errors.len());
    }
}
