//! A plan as stable text, as JSON, and the stage graph as DOT: what `--print plan` and `--print graph` show.
//!
//! In: [`Plan`] and [`StageGraph`]. Out: texts. What always holds: the same plan gives the same text, and every field
//! of a step is in it; this text is also what the planner's tests look at.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::image::config::ImageConfig;

use super::graph::{Origin, StageGraph};
use super::limits::{RunLimits, Security, Ulimit};
use super::remote::{GitSource, RemoteKind, RemoteSource, without_password};
use super::step::{
    BaseId, Chmod, CopyFrom, CopyOp, CopySource, FileOwner, MakeDirOp, ModeClause, MountOp, MountPath, Network, Op,
    Plan, PlannedHistory, RunMount, RunOp, Stack, Step, StepId,
};

/// The plan as text: one block for each step, then the images.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let value = to_json(plan);
    for (title, list) in [("base", &value["bases"]), ("context", &value["contexts"])] {
        for (index, item) in list.as_array().into_iter().flatten().enumerate() {
            let words: Vec<&str> =
                item.as_object().into_iter().flat_map(|o| o.values()).filter_map(Value::as_str).collect();
            // Writing to a String does not fail, here and below.
            let _ = writeln!(out, "{title} {index}: {}", words.join(" "));
        }
    }
    for (index, step) in value["steps"].as_array().into_iter().flatten().enumerate() {
        let _ = writeln!(out, "\nstep {index}: {}", step["name"].as_str().unwrap_or_default());
        fields(&mut out, step, &["name"]);
    }
    if plan.index {
        out.push_str("\nindex of the images\n");
    }
    for image in value["images"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "\nimage {}", image["platform"].as_str().unwrap_or_default());
        fields(&mut out, image, &["platform", "config", "history"]);
        fields(&mut out, &image["config"], &[]);
        for entry in image["history"].as_array().into_iter().flatten() {
            let step = entry["step"].as_u64().map_or_else(|| "-".to_owned(), |step| step.to_string());
            let _ = writeln!(out, "  history {step:>2} {}", visible(entry["created_by"].as_str().unwrap_or_default()));
        }
    }
    out
}

/// The text on one line: control characters as escapes.
fn visible(text: &str) -> String {
    let show = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

/// One line for each field; strings without quotes where that is clear, lists and objects as JSON.
fn fields(out: &mut String, object: &Value, without: &[&str]) {
    for (name, value) in object.as_object().into_iter().flatten().filter(|(name, _)| !without.contains(&name.as_str()))
    {
        let _ = match value {
            Value::String(text) if !text.is_empty() && !text.contains(char::is_control) => {
                writeln!(out, "  {name} {text}")
            }
            Value::Array(items) if ["env", "sources", "mounts"].contains(&name.as_str()) => {
                items.iter().try_for_each(|item| writeln!(out, "  {name} {item}"))
            }
            value => writeln!(out, "  {name} {value}"),
        };
    }
}

/// The plan as JSON. Fields that say nothing are left out.
pub fn to_json(plan: &Plan) -> Value {
    let bases = plan.bases.iter().map(|base| json!({"name": base.name, "platform": base.platform.to_string()}));
    let contexts = plan.contexts.iter().map(|context| json!({"name": context.name.as_deref().unwrap_or("(main)")}));
    let images = plan.images.iter().map(|image| {
        let mut value = json!({"platform": image.platform.to_string(), "stack": stack(image.stack)});
        if let Some(BaseId(base)) = image.base {
            value["base"] = json!(base);
        }
        value["config"] = config(&image.config);
        value["history"] = image.history.iter().map(history).collect();
        value
    });
    let mut value = json!({
        "bases": bases.collect::<Vec<_>>(),
        "contexts": contexts.collect::<Vec<_>>(),
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "images": images.collect::<Vec<_>>(),
    });
    if plan.index {
        value["index"] = json!(true);
    }
    value
}

fn history(entry: &PlannedHistory) -> Value {
    json!({"created_by": entry.created_by, "step": entry.step.map(|StepId(step)| step)})
}

/// What is in the config but for what only the layers can tell.
fn config(config: &ImageConfig) -> Value {
    let mut bare = config.clone();
    bare.history.clear();
    bare.rootfs.diff_ids.clear();
    bare.created = None;
    let mut value = serde_json::from_slice(&bare.to_bytes()).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.shift_remove("rootfs");
        if let Some(Value::Object(inner)) = fields.shift_remove("config") {
            fields.extend(inner);
        }
    }
    value
}

fn stack(stack: Stack) -> String {
    match stack {
        Stack::Scratch => "scratch".to_owned(),
        Stack::Base(BaseId(base)) => format!("base {base}"),
        Stack::Step(StepId(step)) => format!("step {step}"),
    }
}

fn step(step: &Step) -> Value {
    let Step { parent, op, platform, span: _, lines: (first, last), name, no_cache } = step;
    let mut value = json!({
        "name": name,
        "on": stack(*parent),
        "platform": platform.to_string(),
        "lines": format!("{first}-{last}"),
    });
    if *no_cache {
        value["no_cache"] = json!(true);
    }
    let op = match op {
        Op::Run(op) => run(op),
        Op::Copy(op) => copy(op),
        Op::MakeDir(MakeDirOp { path, user }) => {
            let mut value = json!({"make_dir": path});
            if !user.is_empty() {
                value["user"] = json!(user);
            }
            value
        }
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, op) {
        fields.extend(more);
    }
    value
}

fn run(op: &RunOp) -> Value {
    let RunOp { args, script, env, proxy_env, cwd, user, network, hostname, security, limits, shell: _, mounts } = op;
    let mut value = json!({"run": args});
    if let Some((name, body)) = script {
        value["script"] = json!({"name": name, "body": body});
    }
    value["env"] = json!(env);
    if !proxy_env.is_empty() {
        value["proxy_env"] = json!(proxy_env);
    }
    value["cwd"] = json!(cwd);
    if !user.is_empty() {
        value["user"] = json!(user);
    }
    match network {
        Network::Default => {}
        Network::None => value["network"] = json!("none"),
        Network::Host => value["network"] = json!("host"),
    }
    if let Some(hostname) = hostname {
        value["hostname"] = json!(hostname);
    }
    if *security == Security::Insecure {
        value["security"] = json!("insecure");
    }
    let RunLimits { ulimits, shm_size, cgroup_parent, host_names } = limits;
    if !ulimits.is_empty() {
        let limit =
            |limit: &Ulimit| format!("{}={}:{}", limit.name, limit.soft.cast_signed(), limit.hard.cast_signed());
        value["ulimits"] = ulimits.iter().map(limit).collect();
    }
    if *shm_size > 0 {
        value["shm_size"] = json!(shm_size);
    }
    if let Some(parent) = cgroup_parent {
        value["cgroup_parent"] = json!(parent);
    }
    if !host_names.is_empty() {
        value["host_names"] = json!(host_names);
    }
    if !mounts.is_empty() {
        value["mounts"] = mounts.iter().map(mount).collect();
    }
    value
}

/// Where a mount is, and what counts of it, for `--explain`.
pub(crate) fn mount_in_words(mount: &RunMount) -> (&str, String) {
    let mut value = self::mount(mount);
    if let Value::Object(fields) = &mut value {
        // Numbers of steps say nothing from one build to the next; the content of the files is told otherwise.
        fields.shift_remove("from");
    }
    let words = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "target");
    let words = words.map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        value => format!("{name}={value}"),
    });
    let target = match (&mount.target, &mount.kind) {
        (Some(target), _) => target,
        (None, MountOp::Secret { env: Some(env), .. }) => env,
        (None, _) => "",
    };
    (target, words.collect::<Vec<_>>().join(","))
}

fn mount(mount: &RunMount) -> Value {
    let RunMount { target, read_only, kind, span: _ } = mount;
    let mut value = json!({"type": kind.name()});
    if let Some(target) = target {
        value["target"] = json!(target);
    }
    let path = |MountPath { stack: of, path }: &MountPath| json!({"stack": stack(*of), "path": path});
    let owner = |value: &mut Value, FileOwner { mode, uid, gid }: &FileOwner| {
        value["mode"] = json!(format!("{mode:04o}"));
        value["uid"] = json!(uid);
        value["gid"] = json!(gid);
    };
    match kind {
        MountOp::Bind(from) => {
            value["from"] = path(from);
            value["read_only"] = json!(read_only);
        }
        MountOp::Cache { id, sharing, seed, path: inside, mode, uid, gid } => {
            value["id"] = json!(id);
            value["sharing"] = json!(sharing.name());
            value["read_only"] = json!(read_only);
            if let Some(seed) = seed {
                value["from"] = path(seed);
            }
            if !inside.is_empty() {
                value["source"] = json!(inside);
            }
            if let Some(mode) = mode {
                value["mode"] = json!(format!("{mode:04o}"));
            }
            for (name, number) in [("uid", uid), ("gid", gid)] {
                if let Some(number) = number {
                    value[name] = json!(number);
                }
            }
        }
        MountOp::Tmpfs { size } => {
            value["read_only"] = json!(read_only);
            if let Some(size) = size {
                value["size"] = json!(size);
            }
        }
        MountOp::Secret { id, env, owner: of, required } => {
            value["id"] = json!(id);
            if let Some(env) = env {
                value["env"] = json!(env);
            }
            owner(&mut value, of);
            value["required"] = json!(required);
        }
        MountOp::Ssh { id, owner: of, required } => {
            value["id"] = json!(id);
            owner(&mut value, of);
            value["required"] = json!(required);
        }
    }
    value
}

fn remote_source(RemoteSource { text: _, kind }: &RemoteSource) -> Value {
    match kind {
        RemoteKind::File { url, name, checksum, unpack } => {
            let mut value = json!({"url": without_password(url), "name": name});
            if let Some(checksum) = checksum {
                value["checksum"] = json!(checksum.to_string());
            }
            if *unpack {
                value["unpack"] = json!(true);
            }
            value
        }
        RemoteKind::Git(source) => {
            let GitSource { repository: _, reference, subdir, checksum, keep_git_dir, submodules } = source;
            let mut value = json!({"git": source.shown()});
            for (name, text) in [("ref", reference), ("subdir", subdir), ("checksum", checksum)] {
                if let Some(text) = text {
                    value[name] = json!(text);
                }
            }
            for (name, flag) in [("keep_git_dir", keep_git_dir), ("submodules", submodules)] {
                if let Some(flag) = flag {
                    value[name] = json!(flag);
                }
            }
            value
        }
    }
}

fn copy(op: &CopyOp) -> Value {
    let CopyOp { sources, from, destination, chown, chmod, link, parents, exclude, unpack } = op;
    let source = |source: &CopySource| match source {
        CopySource::Path(path) => json!(path),
        CopySource::Inline { name, content } => json!({"name": name, "content": content}),
        CopySource::Remote(remote) => remote_source(remote),
    };
    let from = match from {
        CopyFrom::Context(context) => format!("context {}", context.0),
        CopyFrom::Stack(from) => stack(*from),
    };
    let mut value = json!({
        "copy": from,
        "sources": sources.iter().map(source).collect::<Vec<_>>(),
        "to": destination,
    });
    if let Some(chown) = chown {
        value["chown"] = match &chown.group {
            Some(group) => json!(format!("{}:{group}", chown.user)),
            None => json!(chown.user),
        };
    }
    match chmod {
        None => {}
        Some(Chmod::Octal(mode)) => value["chmod"] = json!(format!("{mode:04o}")),
        Some(Chmod::Symbolic(clauses)) => {
            let clause = |ModeClause { who, operator, permissions }: &ModeClause| {
                let classes: String =
                    [(who.0, 'u'), (who.1, 'g'), (who.2, 'o')].iter().filter(|(is, _)| *is).map(|(_, c)| *c).collect();
                format!("{classes}{operator}{permissions}")
            };
            value["chmod"] = json!(clauses.iter().map(clause).collect::<Vec<_>>().join(","));
        }
    }
    for (name, set) in [("link", *link), ("parents", *parents), ("unpack", *unpack)] {
        if set {
            value[name] = json!(true);
        }
    }
    if !exclude.is_empty() {
        value["exclude"] = json!(exclude);
    }
    value
}

/// The stage graph for Graphviz: stages are boxes (grey when the target does not need them), images ellipses, named
/// contexts folders; solid lines are FROM, dashed ones copies. Of several platforms it is the graph of the first.
pub fn dot(graph: &StageGraph) -> String {
    let mut out = String::from("digraph stages {\n  rankdir=LR\n  node [shape=box]\n");
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let needed = graph.needed();
    let mut outside: Vec<String> = Vec::new();
    let mut lines = String::new();
    for (index, stage) in graph.stages.iter().enumerate() {
        let label = match &stage.name {
            Some(name) => format!("{index}: {name}"),
            None => index.to_string(),
        };
        let style = match (index == graph.target, needed[index]) {
            (true, _) => " penwidth=2",
            (false, true) => "",
            (false, false) => " color=gray fontcolor=gray",
        };
        let _ = writeln!(out, "  stage{index} [label={}{style}]", quote(&label));
        let mut edges: Vec<(String, &str)> = Vec::new();
        let uses = stage.uses.iter().map(|(_, origin)| (origin, " [style=dashed]"));
        for (origin, style) in std::iter::once((&stage.from, "")).chain(uses) {
            let node = match origin {
                Origin::Stage(other) => format!("stage{other}"),
                Origin::Scratch => outside_node(&mut outside, "  {node} [label=scratch shape=plaintext]"),
                Origin::Outside(origin) => {
                    let shape = if origin.context { "folder" } else { "ellipse" };
                    outside_node(&mut outside, &format!("  {{node}} [label={} shape={shape}]", quote(&origin.name)))
                }
            };
            if !edges.contains(&(node.clone(), style)) {
                edges.push((node, style));
            }
        }
        for (node, style) in edges {
            let _ = writeln!(lines, "  {node} -> stage{index}{style}");
        }
    }
    for (index, line) in outside.iter().enumerate() {
        let _ = writeln!(out, "{}", line.replacen("{node}", &format!("outside{index}"), 1));
    }
    out + &lines + "}\n"
}

/// The name of the node that `line` declares, each declared once.
fn outside_node(outside: &mut Vec<String>, line: &str) -> String {
    let index = outside.iter().position(|known| known == line).unwrap_or_else(|| {
        outside.push(line.to_owned());
        outside.len() - 1
    });
    format!("outside{index}")
}
