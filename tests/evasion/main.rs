//! Every way to open a token that `opener` knows, in a real container: each route tells of all
//! that it can see, with the right process, grade, pod and container; and what it cannot see is in the
//! table below with the reason, so that a way which is unexpectedly missed or told is a failure.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by a panic, and what it skips it prints"
)]

mod opener;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Read as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    thread::{self, JoinHandle},
};

use libtest_mimic::{Arguments, ColorSetting, Completion, Trial};
use rustix::net::sockopt::socket_peercred;
use serde_json::{Value, json};
use tokentrail_tests::{Container, Node, Pod, Sandbox, Workload, api};

/// Who tells of a way, beside `fexit` and `kprobe`, which tell of all.
enum Exit {
    /// The exit route does.
    Tells,
    /// It does if `--compat-opens` asks for it.
    TellsIfAsked,
    /// It cannot, and why.
    Misses(&'static str),
}
use Exit::{Misses, Tells, TellsIfAsked};

const NO_RETURN: &str = "the call that brings the descriptor does not return it";
const OVERLAID: &str =
    "the descriptor is of the overlay's file; the kernel itself opens the token's";
const NO_EVENT: &str = "no completion is posted, so there is no event";
const CLOSED: &str = "the descriptor is closed before the open's completion is posted";

/// Way, grade of its open, and what the exit route makes of it.
const WAYS: [(&str, &str, Exit); 59] = [
    ("open", "exec", Tells),
    ("openat", "exec", Tells),
    ("openat2", "exec", Tells),
    ("openat2_in_root", "exec", Tells),
    ("openat2_beneath", "exec", Tells),
    ("int80", "exec", TellsIfAsked),
    ("handle", "exec", Tells),
    ("relative", "exec", Tells),
    ("dirfd", "exec", Tells),
    ("opath_dirfd", "exec", Tells),
    ("data_link", "exec", Tells),
    ("timestamped", "exec", Tells),
    ("slashes", "exec", Tells),
    ("symlink_file", "exec", Tells),
    ("symlink_folder", "exec", Tells),
    ("self_root", "exec", Tells),
    ("self_cwd", "exec", Tells),
    ("self_fd", "exec", Tells),
    ("pid_root", "exec", Tells),
    ("ca_crt", "exec", Tells),
    ("projected_name", "exec", Tells),
    ("projected_path", "exec", Tells),
    ("mmap", "exec", Tells),
    ("splice", "exec", Tells),
    ("sendfile", "exec", Tells),
    ("copy_range", "exec", Tells),
    ("scm_rights", "exec", Misses(NO_RETURN)),
    ("pidfd_getfd", "exec", Tells),
    ("fanotify", "exec", Misses(NO_RETURN)),
    ("bind_file", "exec", Tells),
    ("bind_folder", "exec", Tells),
    ("moved_mount", "exec", Tells),
    ("hard_link", "exec", Tells),
    ("open_tree", "exec", Tells),
    ("move_mount", "exec", Tells),
    ("chroot", "exec", Tells),
    ("overlay", "exec", Misses(OVERLAID)),
    ("userns", "exec", Tells),
    ("inherited", "exec", Tells),
    // Of a hundred opens at least one: each is a race between the close and the end of the call.
    ("closed_by_other", "exec", Tells),
    ("thread", "exec", Tells),
    ("vfork", "exec", Tells),
    ("ends_at_once", "exec", Tells),
    ("setuid", "exec", Tells),
    ("nested_cgroups", "exec", Tells),
    ("tiocsctty", "terminal", Tells),
    ("tty_on_0_and_2", "interactive", Tells),
    ("tty_on_0", "terminal", Tells),
    ("tty_on_2", "terminal", Tells),
    ("uring", "exec", Tells),
    ("uring_openat2", "exec", Tells),
    ("uring_async", "exec", Tells),
    ("uring_sqpoll", "exec", Tells),
    ("uring_slot", "exec", Tells),
    ("uring_slot_2", "exec", Tells),
    ("uring_any_slot", "exec", Tells),
    ("uring_skip", "exec", Misses(NO_EVENT)),
    ("uring_overflow", "exec", Misses(NO_EVENT)),
    ("uring_batch", "exec", Misses(CLOSED)),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [opener::OPEN, rest @ ..] = arguments.as_slice() {
        return opener::run(rest);
    }
    let with = |name, arguments: &'static [&str], expects: fn(&Exit) -> bool| {
        Trial::ignorable_test(name, move || Ok(every_way(arguments, expects)))
    };
    let tests = vec![
        with("the_fexit_route_tells_of_every_way_to_open_a_token", &["--route", "fexit"], |_| true),
        with("the_kprobe_route_tells_of_every_way_to_open_a_token", &["--route", "kprobe"], |_| {
            true
        }),
        with(
            "the_exit_route_tells_of_every_way_but_those_that_it_cannot_see",
            &["--route", "exit"],
            |exit| matches!(exit, Tells),
        ),
        with(
            "the_exit_route_tells_of_32_bit_calls_too_where_it_is_asked_to",
            &["--route", "exit", "--compat-opens"],
            |exit| matches!(exit, Tells | TellsIfAsked),
        ),
    ];
    // Colours would hide the result from those who look for its line.
    let arguments = Arguments { color: Some(ColorSetting::Never), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Goes every way beside an agent that was started like this, and holds what it recorded against the
/// table. A kernel without that route skips it, unless it must have it.
fn every_way(arguments: &[&str], expects: fn(&Exit) -> bool) -> Completion {
    let route = arguments[1];
    let sandbox = Sandbox::create().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let pod = Pod::create(&sandbox).unwrap();
    let described = project(&pod);
    let kubeconfig = api::serve(&sandbox, &[described]).unwrap();
    node.agent = node.agent.args(arguments).kubeconfig(kubeconfig);
    let agent = match node.agent.start() {
        Ok(agent) => agent,
        // The exit code for what the kernel does not offer.
        Err(error) if format!("{error:#}").contains("exit status: 3") => {
            let must_work = env::var("TOKENTRAIL_EXPECT_ROUTES").unwrap_or_default();
            assert!(!must_work.split(',').any(|it| it == route), "{error:#}");
            return Completion::ignored_with(format!("skipped: {error:#}"));
        }
        Err(error) => panic!("{error:#}"),
    };
    // What the route cannot see on this kernel it says itself: io_uring's opens before Linux 5.19.
    let status = agent.status().unwrap();
    let no_uring = status["degraded"].to_string().contains("opens by io_uring are not seen");
    // New volumes are looked for once a second; until then only files of the known names count.
    agent.wait_for_metric("tokentrail_attribution_volumes", &[], 1.0).unwrap();
    let typed = status["degraded"].to_string().contains("by typed reads is taken");
    let degraded: &[&str] = if typed { &["cgroup", "mount"] } else { &[] };
    let container = Container::start_privileged(&sandbox, &pod).unwrap();
    let workload = Workload { pod, container };
    let Workload { pod, container } = &workload;
    bring_in(&container.bundle().join("rootfs"));
    let listener = Listener::start(&container.bundle().join("workload/who"));
    let ended = container.exec(&["/open-every-way", opener::OPEN]).unwrap();
    assert!(ended.success(), "{ended:?}");
    let openers = listener.stop();
    node.wait_until_seen(&workload).unwrap();
    let opens = node.opens_of(pod).unwrap();

    let mut gone: BTreeMap<&str, &str> =
        ended.output.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut wrong = Vec::new();
    for (way, grade, exit) in &WAYS {
        match gone.remove(way) {
            Some("done") => {}
            Some(other) if other.starts_with("impossible") => {
                println!("skipped: {way}: {other}");
                continue;
            }
            None if cfg!(not(target_arch = "x86_64")) && ["open", "int80"].contains(way) => {
                continue;
            }
            other => {
                wrong.push(format!("{way} was not gone: {other:?}"));
                continue;
            }
        }
        let by_opener = |open: &&Value| open["process"]["pid"] == json!(openers.get(*way));
        let of_way: Vec<&Value> = opens.iter().filter(by_opener).collect();
        if no_uring && way.starts_with("uring") {
            println!("limit: {way}: told {} times, and this kernel shows none", of_way.len());
        } else if of_way.is_empty() == expects(exit) {
            let reason = if let Misses(reason) = exit { reason } else { "" };
            wrong.push(format!("{way}: told {} times {reason}", of_way.len()));
        }
        for open in of_way {
            let mut degraded = degraded.to_vec();
            // By types alone descriptors are read of nobody who has had more than 64, and of such a
            // process later as long as it lives.
            let late = json!([degraded.as_slice(), &["descriptors"]].concat());
            if typed && *way == "closed_by_other" && open["tokentrail"]["open"]["degraded"] == late
            {
                degraded.push("descriptors");
            }
            for (pointer, expected) in [
                ("/tokentrail/grade", json!(grade)),
                ("/tokentrail/open/route", json!(route)),
                ("/process/name", json!(way)),
                ("/container/id", json!(container.id())),
                ("/tokentrail/open/uid", json!(if *way == "setuid" { 1000 } else { 0 })),
                ("/tokentrail/open/degraded", json!(degraded)),
            ] {
                if open.pointer(pointer) != Some(&expected) {
                    wrong.push(format!("{way}: {pointer} is {:?}", open.pointer(pointer)));
                }
            }
        }
    }
    wrong.extend(gone.keys().map(|way| format!("{way} is not in the table")));
    assert!(wrong.is_empty(), "{route}: {wrong:#?}\n{}", ended.output);
    Completion::Completed
}

/// Adds tokens by other names to a pod's volume, and describes the pod as the API does.
fn project(pod: &Pod) -> Value {
    let data = pod.volume().join("..data");
    fs::create_dir_all(data.join("a/b")).unwrap();
    let mut sources = vec![json!({"configMap": {"name": "kube-root-ca.crt"}})];
    for path in ["token", "key", "a/b/tok"] {
        fs::write(data.join(path), &pod.token).unwrap();
        sources.push(json!({"serviceAccountToken": {"path": path}}));
    }
    for name in ["key", "a"] {
        symlink(Path::new("..data").join(name), pod.volume().join(name)).unwrap();
    }
    api::pod_with_volumes(pod, &[(&pod.volume_name(), json!(sources))])
}

/// Puts this program into a container, with the libraries that it has loaded: none where it is static.
fn bring_in(root: &Path) {
    fs::copy(env::current_exe().unwrap(), root.join("open-every-way")).unwrap();
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let Some(start) = line.find('/') else { continue };
        let library = Path::new(&line[start..]);
        let name = library.file_name().unwrap().to_string_lossy();
        if !name.contains(".so") {
            continue;
        }
        // Where the loader looks without a cache, and where programs name the loader.
        for folder in [library.parent().unwrap(), Path::new("/lib64"), Path::new("/lib")] {
            let folder = root.join(folder.strip_prefix("/").unwrap());
            fs::create_dir_all(&folder).unwrap();
            fs::copy(library, folder.join(&*name)).unwrap();
        }
    }
}

/// Learns who opens: each way's opener says its name, and the kernel says who that is on the host.
struct Listener {
    address: PathBuf,
    thread: JoinHandle<BTreeMap<String, i32>>,
}

impl Listener {
    fn start(address: &Path) -> Self {
        let listener = UnixListener::bind(address).unwrap();
        // Openers may be nobody.
        fs::set_permissions(address, fs::Permissions::from_mode(0o777)).unwrap();
        let thread = thread::spawn(move || {
            let mut openers = BTreeMap::new();
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let opener = socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get();
                let mut way = String::new();
                stream.read_to_string(&mut way).unwrap();
                if way.is_empty() {
                    return openers;
                }
                openers.insert(way, opener);
            }
        });
        Self { address: address.to_owned(), thread }
    }

    /// Who opened, by way.
    fn stop(self) -> BTreeMap<String, i32> {
        drop(UnixStream::connect(&self.address).unwrap());
        self.thread.join().unwrap()
    }
}
