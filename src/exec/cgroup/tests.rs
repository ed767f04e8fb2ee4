use super::*;

const HYBRID: &str = "\
31 23 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:31 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:31 /docker/x /elsewhere rw - cgroup cgroup rw,memory
";
const GROUPS: &str = "5:memory:/docker/x/y\n4:cpu,cpuacct:/\n1:name=systemd:/init\n0::/a/b\n";

fn all() -> Resources {
    Resources {
        memory: Some(64 << 20),
        swap: Some(Swap::Limit(96 << 20)),
        cpu_time: Some((150_000, 100_000)),
        cpu_period: None,
        cpu_shares: Some(1024),
        cpus: Some("0-1".into()),
        mems: Some("0".into()),
    }
}

/// The files of one version as they are written, by controller.
fn written(resources: &Resources, version: Version) -> Vec<String> {
    let files = |setting: Setting| if version == Version::One { setting.one } else { setting.two };
    resources.settings().into_iter().flat_map(files).map(|(file, value)| format!("{file}={value}")).collect()
}

#[test]
fn both_versions_are_written() {
    assert_eq!(
        written(&all(), Version::One),
        [
            "memory.limit_in_bytes=67108864",
            "memory.memsw.limit_in_bytes=100663296",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=150000",
            "cpu.shares=1024",
            "cpuset.cpus=0-1",
            "cpuset.mems=0"
        ]
    );
    assert_eq!(
        written(&all(), Version::Two),
        [
            "memory.max=67108864",
            "memory.swap.max=33554432",
            "cpu.max=150000 100000",
            "cpu.weight=39",
            "cpuset.cpus=0-1",
            "cpuset.mems=0"
        ]
    );
    let unlimited = Resources { memory: Some(1), swap: Some(Swap::Unlimited), ..Resources::default() };
    assert_eq!(written(&unlimited, Version::One)[1], "memory.memsw.limit_in_bytes=-1");
    assert_eq!(written(&unlimited, Version::Two)[1], "memory.swap.max=max");
    let period = Resources { cpu_period: Some(5000), ..Resources::default() };
    assert_eq!(written(&period, Version::Two), ["cpu.max=max 5000"]);
    assert!(written(&Resources::default(), Version::Two).is_empty());
    for (shares, weight) in [(2, 1), (262_144, 10_000)] {
        let resources = Resources { cpu_shares: Some(shares), ..Resources::default() };
        assert_eq!(written(&resources, Version::Two), [format!("cpu.weight={weight}")]);
    }
}

#[test]
fn mounted_groups_are_found() {
    let found = hierarchies(HYBRID, GROUPS, |_| String::new());
    let shown: Vec<_> = found
        .iter()
        .map(|one| {
            format!("{:?} {} {} {}", one.version, one.controllers.join("+"), one.mounted.display(), one.own.display())
        })
        .collect();
    assert_eq!(
        shown,
        ["One cpu+cpuacct /sys/fs/cgroup/cpu,cpuacct ", "One memory /sys/fs/cgroup/memory y"],
        "the one of version 2 has no controllers"
    );
    let unified = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    let found = hierarchies(unified, "0::/user.slice/u.scope\n", |_| "cpuset cpu memory\n".into());
    assert_eq!(
        found,
        [Hierarchy {
            version: Version::Two,
            controllers: vec!["cpuset".into(), "cpu".into(), "memory".into()],
            mounted: "/sys/fs/cgroup".into(),
            own: "user.slice/u.scope".into()
        }]
    );
    assert!(hierarchies("", "", |_| String::new()).is_empty());
}

#[test]
fn a_machine_without_the_controller_says_so() {
    let mut cgroup = Cgroup { folders: Vec::new(), leaves: Vec::new() };
    let found = hierarchies(HYBRID, GROUPS, |_| String::new());
    let error = cgroup.fill(&found, &all().settings(), None).expect_err("there is no cpuset").to_string();
    assert!(error.starts_with("--cpuset-cpus cannot be enforced here: this machine has no"), "{error}");
    assert!(cgroup.fill(&[], &[], Some("x")).expect_err("nothing there").to_string().contains("--cgroup-parent"));
}

/// A folder that looks like a group, with the files that a kernel would have made.
fn fake(version: Version) -> (tempfile::TempDir, Hierarchy) {
    let folder = tempfile::tempdir().expect("a folder");
    let mounted = folder.path().to_owned();
    for (file, text) in [("cgroup.procs", ""), ("cgroup.subtree_control", "cpu\n"), ("cpuset.cpus.effective", "0-3\n")]
    {
        fs::write(mounted.join(file), text).expect("written");
    }
    let controllers = ["memory", "cpu", "cpuset"].map(str::to_owned).to_vec();
    (folder, Hierarchy { version, controllers, mounted, own: PathBuf::new() })
}

#[test]
fn what_the_kernel_does_not_have_is_not_made() {
    let (_folder, hierarchy) = fake(Version::Two);
    let mut cgroup = Cgroup { folders: Vec::new(), leaves: Vec::new() };
    let only = Resources { memory: Some(1 << 30), ..Resources::default() };
    let error = cgroup.fill(std::slice::from_ref(&hierarchy), &only.settings(), None).expect_err("no memory.max");
    assert!(error.to_string().contains("cannot write 1073741824 to"), "{error}");
    let leaf = cgroup.folders[0].clone();
    assert!(leaf.exists());
    drop(cgroup);
    assert!(!leaf.exists(), "it is removed whatever happened");
    let text = fs::read_to_string(hierarchy.mounted.join("cgroup.subtree_control")).expect("readable");
    assert_eq!(text, "+memory", "what is on already is not turned on");
}

#[test]
fn processors_that_are_not_there_are_told() {
    let (_folder, hierarchy) = fake(Version::Two);
    let leaf = hierarchy.mounted.join("x");
    let error = check_list(&leaf, "cpuset.cpus", "1,7", "--cpuset-cpus").expect_err("no 7").to_string();
    assert!(error.contains("there is no 7, but 0, 1, 2, 3"), "{error}");
    assert!(check_list(&leaf, "cpuset.cpus", "1-3", "--cpuset-cpus").is_ok());
}

#[test]
fn what_a_dead_process_left_is_swept() {
    let (_folder, hierarchy) = fake(Version::One);
    let at = &hierarchy.mounted;
    // No process has a number so high.
    let [dead, alive, other] = [name_of(4_194_304, 0), name_of(std::process::id(), 7), "rbuild-1-4194304-0".to_owned()]
        .map(|name| at.join(name));
    for folder in [&dead, &alive, &other] {
        fs::create_dir(folder).expect("a folder");
    }
    sweep(at);
    assert_eq!([dead.exists(), alive.exists(), other.exists()], [false, true, true]);
}

#[test]
fn slices_are_expanded() {
    for (name, expected) in [
        ("a/b", "a/b"),
        ("build.slice", "build.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("x-y", "x-y"),
    ] {
        assert_eq!(expand_slice(name).join("/"), expected);
    }
}
