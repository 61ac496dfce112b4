//! What the program refuses, with which exit code and which words: 2 for configuration, 3 for
//! privilege and kernel, 1 for the rest. And its small commands, `check`, `alerts` and `schema`.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::MountFlags;
use tokentrail_tests::{Finished, Node, Sandbox, tokentrail};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Adds a set of working options of `run` and `check`, but for those given, and these.
fn options(command: &mut Command, sandbox: &Sandbox, given: &[(&str, &Path)]) {
    let at = |name: &str| sandbox.folder().join(name);
    let defaults: [(&str, PathBuf); 5] = [
        ("--audit-log", at("audit.log")),
        ("--alert-log", at("alerts.ndjson")),
        ("--state-dir", at("state")),
        ("--kubelet-root", sandbox.kubelet_root()),
        ("--admin-listen", "127.0.0.1:0".into()),
    ];
    let missing =
        defaults.iter().filter(|(option, _)| given.iter().all(|(other, _)| other != option));
    for (option, value) in missing.map(|(option, value)| (*option, value.as_path())) {
        command.arg(option).arg(value);
    }
    for (option, value) in given {
        command.arg(option).arg(value);
    }
    if given.iter().all(|(option, _)| *option != "--kubeconfig") {
        command.arg("--no-kube");
    }
}

/// Runs `tokentrail run` with these options, where it must end by itself.
fn run(sandbox: &Sandbox, given: &[(&str, &Path)]) -> Finished {
    let mut command = tokentrail();
    options(command.arg("run"), sandbox, given);
    sandbox.run(&mut command).unwrap()
}

fn assert_refused(finished: &Finished, code: i32, says: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    for text in says {
        assert!(finished.errors.contains(text), "{text:?} is not in {finished:?}");
    }
    assert!(!finished.errors.contains("panicked"), "{finished:?}");
    assert_eq!(finished.output, "", "errors go to standard error");
}

#[test]
fn an_unknown_option_is_named() {
    let sandbox = Sandbox::create().unwrap();
    assert_refused(&run(&sandbox, &[("--audit-lgo", Path::new("x"))]), 2, &["--audit-lgo"]);
    assert_refused(&run(&sandbox, &[("--route", Path::new("uprobe"))]), 2, &["--route", "uprobe"]);
}

#[test]
fn a_configuration_that_is_not_understood_is_refused_naming_file_and_key() {
    let sandbox = Sandbox::create().unwrap();
    let config = sandbox.folder().join("config.yaml");
    let file = config.display().to_string();
    let missing = sandbox.folder().join("no-such.yaml");
    let refused = run(&sandbox, &[("--config", &missing)]);
    assert_refused(&refused, 2, &["no-such.yaml", "No such file"]);
    for (yaml, says) in [
        ("audit-lgo: [/a]\n", "audit-lgo"),
        ("alert-log-keep: many\n", "alert-log-keep"),
        ("route: [\n", "line"),
        ("self-test-seconds: 0\n", "self-test-seconds"),
    ] {
        fs::write(&config, yaml).unwrap();
        let refused = run(&sandbox, &[("--config", &config)]);
        assert_refused(&refused, 2, &[says]);
        assert!(says == "self-test-seconds" || refused.errors.contains(&file), "{refused:?}");
    }
}

#[test]
fn a_webhook_that_is_not_safe_or_has_no_certificate_is_refused() {
    let sandbox = Sandbox::create().unwrap();
    let config = sandbox.folder().join("config.yaml");
    let given: [(&str, &Path); 1] = [("--config", &config)];
    let plain = "audit-webhook: 127.0.0.1:0\n";
    fs::write(&config, plain).unwrap();
    assert_refused(&run(&sandbox, &given), 2, &["audit-webhook", "TLS alone"]);
    let pair = "audit-webhook-cert-file: /no/tls.crt\naudit-webhook-key-file: /no/tls.key\n";
    fs::write(&config, format!("{plain}{pair}")).unwrap();
    assert_refused(&run(&sandbox, &given), 2, &["anybody", "audit-webhook-client-ca-file"]);
    let token = "audit-webhook-token-file: /no/tokens\n";
    fs::write(&config, format!("{plain}{pair}{token}")).unwrap();
    let mut command = tokentrail();
    options(command.arg("run").arg("--no-sensor"), &sandbox, &given);
    let refused = sandbox.run(&mut command).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.errors.contains("cannot read /no/tls.crt"), "{refused:?}");
    let mut command = tokentrail();
    options(command.arg("check"), &sandbox, &given);
    let checked = sandbox.run(&mut command).unwrap();
    let line = checked.output.lines().find(|line| line.contains("audit webhook")).unwrap();
    assert!(line.starts_with("MISSING") && line.contains("/no/tls.crt"), "{line}");
}

#[test]
fn a_user_without_privilege_is_told_which_one_is_missing() {
    let sandbox = Sandbox::create().unwrap();
    let (program, state) = for_nobody(&sandbox);
    let alerts = state.join("alerts.ndjson");
    let given: [(&str, &Path); 2] = [("--state-dir", &state), ("--alert-log", &alerts)];
    let mut command = Command::new(&program);
    options(command.arg("run").uid(NOBODY).gid(NOBODY), &sandbox, &given);
    let refused = sandbox.run(&mut command).unwrap();
    assert_refused(&refused, 3, &["CAP_BPF", "CAP_PERFMON", "root"]);

    let mut command = Command::new(&program);
    options(command.arg("check").uid(NOBODY).gid(NOBODY), &sandbox, &given);
    let checked = sandbox.run(&mut command).unwrap();
    assert_eq!(checked.code, Some(3), "{checked:?}");
    let line = checked.output.lines().find(|line| line.contains("privilege")).unwrap();
    assert!(line.starts_with("MISSING") && line.contains("CAP_BPF"), "{line}");
}

#[test]
fn kernel_type_information_that_is_missing_or_damaged_is_refused_naming_it() {
    let sandbox = Sandbox::create().unwrap();
    let btf = sandbox.folder().join("btf");
    let config = sandbox.folder().join("config.yaml");
    fs::write(&config, format!("btf: {}\n", btf.display())).unwrap();
    let refuses = |what: &str| {
        let refused = run(&sandbox, &[("--config", &config)]);
        assert_refused(&refused, 3, &[&btf.display().to_string()]);
        assert!(refused.errors.len() < 2_000, "{what}: {refused:?}");
    };
    refuses("missing");
    let real = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let header_only = real.get(..24).unwrap();
    let half = real.get(..real.len() / 2).unwrap();
    let wild = [header_only, &[0xff; 4096]].concat();
    for (what, bytes) in [
        ("empty", &[][..]),
        ("text", b"not at all"),
        ("cut after the header", header_only),
        ("cut in half", half),
        ("wild after the header", &wild),
    ] {
        fs::write(&btf, bytes).unwrap();
        refuses(what);
    }
}

#[test]
fn a_second_agent_on_the_same_state_directory_is_refused() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let agent = node.agent.start().unwrap();
    let (status, log) = node.agent.spawn().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another tokentrail uses the state directory"), "{log}");
    assert!(log.contains(&node.agent.state_dir().display().to_string()), "{log}");
    assert_eq!(agent.get("/readyz").unwrap().status, 200, "the first one goes on");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused() {
    let sandbox = Sandbox::create().unwrap();
    let state = sandbox.tmpfs("state", MountFlags::RDONLY, c"size=64k").unwrap();
    let refused = run(&sandbox, &[]);
    let path = state.display().to_string();
    assert_refused(&refused, 1, &[&path, "Read-only file system", "--state-dir"]);
}

#[test]
fn an_alert_log_that_is_a_link_is_refused_and_what_it_points_to_is_left_alone() {
    let sandbox = Sandbox::create().unwrap();
    let target = sandbox.folder().join("precious");
    fs::write(&target, "as it was").unwrap();
    symlink(&target, sandbox.folder().join("alerts.ndjson")).unwrap();
    let refused = run(&sandbox, &[]);
    assert_refused(&refused, 1, &["alerts.ndjson", "not a link"]);
    assert_eq!(fs::read_to_string(target).unwrap(), "as it was");
}

#[test]
fn an_admin_address_that_is_taken_is_refused_naming_it() {
    let sandbox = Sandbox::create().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(&sandbox, &[("--admin-listen", Path::new(&address))]);
    assert_refused(&refused, 1, &[&address, "--admin-listen"]);
}

#[test]
fn a_recording_that_cannot_be_written_is_refused_naming_it() {
    let sandbox = Sandbox::create().unwrap();
    let path = sandbox.folder().join("no-such-folder/opens.ndjson");
    let refused = run(&sandbox, &[("--record", &path)]);
    assert_refused(&refused, 1, &[&path.display().to_string()]);
}

#[test]
fn check_says_whether_the_kubernetes_api_can_be_asked() {
    let sandbox = Sandbox::create().unwrap();
    fs::write(sandbox.folder().join("audit.log"), "").unwrap();
    let kubeconfig = sandbox.folder().join("kubeconfig");
    let check = |what: &str| {
        let mut command = tokentrail();
        options(command.arg("check"), &sandbox, &[("--kubeconfig", &kubeconfig)]);
        let checked = sandbox.run(&mut command).unwrap();
        let line = checked.output.lines().find(|line| line.contains(what)).map(str::to_owned);
        (checked.code, line.unwrap_or_else(|| panic!("{what}: {checked:?}")))
    };
    // `run` would not start.
    let (code, line) = check("Kubernetes API");
    assert_eq!(code, Some(1), "{line}");
    assert!(line.starts_with("MISSING") && line.contains("kubeconfig"), "{line}");

    // `run` would go on without.
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{unused}");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, clusters: [{{name: c, cluster: \
         {{server: \"{server}\"}}}}], users: [{{name: u, user: {{}}}}], contexts: \
         [{{name: x, context: {{cluster: c, user: u}}}}]}}"
    );
    fs::write(&kubeconfig, text).unwrap();
    let (code, line) = check("audit canary");
    assert_eq!(code, Some(0), "{line}");
    assert!(line.starts_with("WARNING") && line.contains("cannot be reached"), "{line}");
}

#[test]
fn check_says_line_by_line_whether_run_would_work_and_changes_nothing() {
    let sandbox = Sandbox::create().unwrap();
    let check = |given: &[(&str, &Path)]| {
        let mut command = tokentrail();
        options(command.arg("check"), &sandbox, given);
        sandbox.run(&mut command).unwrap()
    };
    fs::write(sandbox.folder().join("audit.log"), "").unwrap();
    let checked = check(&[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for what in [
        "privilege",
        "kernel type information (BTF)",
        "BPF ring buffer",
        "audit log",
        "state directory",
        "alert log",
    ] {
        let line = checked.output.lines().find(|line| line.contains(what));
        assert!(line.is_some_and(|line| line.starts_with("ok ")), "{what}: {}", checked.output);
    }
    let left = fs::read_dir(sandbox.folder()).unwrap().count();
    assert_eq!(left, 2, "the kubelet's directory and the audit log");

    let missing = sandbox.folder().join("missing.log");
    let checked = check(&[("--audit-log", &missing)]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let line = checked.output.lines().find(|line| line.contains("audit log")).unwrap();
    assert!(line.starts_with("MISSING") && line.contains("missing.log"), "{line}");

    let config = sandbox.folder().join("config.yaml");
    fs::write(&config, "audit-lgo: [/a]\n").unwrap();
    assert_refused(&check(&[("--config", &config)]), 2, &["audit-lgo"]);
}

#[test]
fn alerts_are_shown_as_people_read_them() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let _agent = node.agent.start().unwrap();
    let victim = node.workload().unwrap();
    victim.attack().unwrap();
    node.request_by(&victim.pod).unwrap();
    let alert = node.wait_for("alert", &victim.pod).unwrap();
    let show = |path: &Path| sandbox.run(tokentrail().arg("alerts").arg(path)).unwrap();
    let shown = show(node.agent.alerts().path());
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for text in [
        "MEDIUM 47",
        "token-access-then-api-request",
        "cat /var/run/secrets/kubernetes.io/serviceaccount/token",
        &victim.pod.uid,
        &format!("shop/{}", victim.pod.name),
        victim.container.id(),
        "interactive",
        "list pods shop",
        "system:serviceaccount:shop:cart",
        alert["tokentrail"]["incident"]["id"].as_str().unwrap(),
    ] {
        assert!(shown.output.contains(text), "{text:?} is not in\n{}", shown.output);
    }
    let missing = show(&sandbox.folder().join("no-such.ndjson"));
    assert_refused(&missing, 1, &["no-such.ndjson"]);
}

#[test]
fn the_schema_that_is_printed_is_the_one_that_is_shipped() {
    let sandbox = Sandbox::create().unwrap();
    let printed = sandbox.run(tokentrail().arg("schema")).unwrap();
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(printed.output.trim(), include_str!("../deploy/schema/alert.schema.json").trim());
}

/// The program and a folder of state, for a user who owns nothing else.
fn for_nobody(sandbox: &Sandbox) -> (PathBuf, PathBuf) {
    let (program, state) = (sandbox.folder().join("tokentrail"), sandbox.folder().join("state"));
    fs::copy(tokentrail().get_program(), &program).unwrap();
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::write(sandbox.folder().join("audit.log"), "").unwrap();
    fs::set_permissions(sandbox.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (program, state)
}
