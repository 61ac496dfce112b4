//! A real container: Debian's runc, a root file system of static busybox, the cgroup that a
//! kubelet with the cgroupfs driver would give it, and the pod's token volume in its place.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, FileType, Mode, OFlags, mknodat},
};
use serde_json::{Value, json};

use crate::{
    cgroups,
    command::{Console, Finished, run_with_pipes, run_with_terminal, spawn_with_terminal},
    machine::{find_program, random_container_id},
    pod::{Pod, SERVICE_ACCOUNT_FOLDER},
    sandbox::{Ledger, Sandbox, Undo},
    wait::{PATIENCE, wait_until},
};

/// What the main process does: reads commands from a pipe and runs them in its own tree, as the
/// workload's own deeds. Their output and exit code go to a second pipe.
const MAIN: &str = r#"while true; do
    read -r command < /workload/commands || continue
    { eval "$command"; echo "exit $?"; } > /workload/output 2>&1
done"#;

/// How a container differs from an ordinary pod's.
#[derive(Clone, Copy, Default)]
pub struct ContainerSetup<'a> {
    /// This folder of the node is mounted at `/host`, as a `hostPath` volume does it.
    pub host_path: Option<&'a Path>,
    /// Whose processes it sees.
    pub processes: Processes<'a>,
    /// Its main process has a terminal (`tty: true`).
    pub terminal: bool,
    /// It has some capabilities of a privileged one.
    pub privileged: bool,
}

/// To mount, to open by handle, to look into other processes.
const PRIVILEGED: [&str; 3] = ["CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"];

/// Whose processes a container sees.
#[derive(Clone, Copy, Default)]
pub enum Processes<'a> {
    /// Its own.
    #[default]
    Own,
    /// Another container's as well (`shareProcessNamespace`, where that is the pause container).
    SharedWith(&'a Container),
    /// All of the node (`hostPID`).
    Host,
}

/// A running container of one pod. Lives as long as its sandbox.
pub struct Container {
    /// Keeps the main process's terminal.
    _console: Option<Console>,
    ledger: Arc<Ledger>,
    id: String,
    runc: PathBuf,
    runc_root: PathBuf,
    bundle: PathBuf,
    cgroup: PathBuf,
    main_pid: u32,
}

impl Container {
    /// Starts one in this pod, in cgroup `/kubepods/burstable/pod<uid>/<id>`.
    ///
    /// # Errors
    /// If runc or busybox are missing, or the container does not start (needs root).
    pub fn start(sandbox: &Sandbox, pod: &Pod) -> Result<Self> {
        Self::start_as(sandbox, pod, ContainerSetup::default())
    }

    /// As [`Container::start`], with some capabilities of a privileged one: to mount, to open by
    /// handle, to look into other processes.
    ///
    /// # Errors
    /// As [`Container::start`].
    pub fn start_privileged(sandbox: &Sandbox, pod: &Pod) -> Result<Self> {
        let setup = ContainerSetup { privileged: true, ..ContainerSetup::default() };
        Self::start_as(sandbox, pod, setup)
    }

    /// As [`Container::start`], with this folder of the node mounted at `/host`, as a `hostPath`
    /// volume does it.
    ///
    /// # Errors
    /// As [`Container::start`].
    pub fn start_with_host_path(sandbox: &Sandbox, pod: &Pod, folder: &Path) -> Result<Self> {
        let setup = ContainerSetup { host_path: Some(folder), ..ContainerSetup::default() };
        Self::start_as(sandbox, pod, setup)
    }

    /// As [`Container::start`], set up otherwise.
    ///
    /// # Errors
    /// As [`Container::start`].
    pub fn start_as(sandbox: &Sandbox, pod: &Pod, setup: ContainerSetup<'_>) -> Result<Self> {
        let runc = find_program("runc").context("runc is not installed")?;
        let runc_root = sandbox.folder().join("runc");
        let id = random_container_id()?;
        let bundle = sandbox.folder().join(&id);
        let pod_cgroup = Path::new("kubepods/burstable").join(format!("pod{}", pod.uid));
        let cgroup = pod_cgroup.join(&id);
        write_root(&bundle.join("rootfs"))?;
        write_pipes(&bundle.join("workload"))?;
        let config = config(&bundle, &cgroup, pod, setup);
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;

        let log = bundle.join("log");
        let pid_file = bundle.join("pid");
        let mut run = Command::new(&runc);
        run.arg("--root").arg(&runc_root).arg("run").arg("--pid-file").arg(&pid_file);
        run.arg("--bundle").arg(&bundle);
        let undo = [
            Undo::Cgroup(pod_cgroup),
            Undo::Container { runc: runc.clone(), root: runc_root.clone(), id: id.clone() },
        ];
        let making = cgroups::about_to_make(&cgroup)?;
        sandbox.ledger().change(|list| {
            list.extend(undo);
            Ok(())
        })?;
        let console = if setup.terminal {
            // What passes the terminal on is runc itself, for as long as the container lives.
            Some(spawn_with_terminal(sandbox.ledger(), run.arg(&id))?)
        } else {
            run.args(["--detach", &id])
                // The container keeps these descriptors: a pipe of ours would never see its end.
                .stdin(Stdio::null())
                .stdout(File::create(&log)?)
                .stderr(OpenOptions::new().append(true).open(&log)?);
            let status =
                sandbox.ledger().change(|_| run.status().context("could not start runc"))?;
            if !status.success() {
                bail!("runc could not start a container: {}", fs::read_to_string(&log)?.trim());
            }
            None
        };
        let main_pid = wait_until(PATIENCE, "runc has started the container", || {
            Ok(fs::read_to_string(&pid_file).ok().and_then(|it| it.trim().parse().ok()))
        })?;
        drop(making);
        let ledger = Arc::clone(sandbox.ledger());
        Ok(Self { _console: console, ledger, id, runc, runc_root, bundle, cgroup, main_pid })
    }

    /// Its id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Process id of its main process, seen from the host.
    pub fn main_pid(&self) -> u32 {
        self.main_pid
    }

    /// Its folder on the host: `rootfs` is its root, `workload` is mounted at `/workload`.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Its cgroup, as a path from each hierarchy's root.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its root directory, seen from the host.
    pub fn root(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Adds a program of this machine to its `/bin`, with the shared libraries that it needs.
    ///
    /// # Errors
    /// If the program is not installed, or cannot be copied.
    pub fn install(&self, name: &str) -> Result<()> {
        let program = find_program(name).with_context(|| format!("{name} is not installed"))?;
        self.add(&program, &Path::new("/bin").join(name))?;
        // Asked so, the dynamic linker lists what it would load: `name => /path (address)`.
        let libraries = Command::new(&program).env("LD_TRACE_LOADED_OBJECTS", "1").output()?;
        for line in String::from_utf8_lossy(&libraries.stdout).lines() {
            if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.add(Path::new(path), Path::new(path))?;
            }
        }
        Ok(())
    }

    /// Adds a copy of a file of this machine, at this absolute path within.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn add(&self, file: &Path, at: &Path) -> Result<()> {
        let inside = self.root().join(at.strip_prefix("/")?);
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(file, &inside).with_context(|| format!("could not copy {file:?}"))?;
        Ok(())
    }

    /// Runs a program in it as `kubectl exec` does: no terminal, output through pipes.
    ///
    /// # Errors
    /// If runc cannot be started or the program does not end in time; not if the program fails.
    pub fn exec(&self, args: &[&str]) -> Result<Finished> {
        run_with_pipes(&self.ledger, self.runc_exec(false).arg(&self.id).args(args))
    }

    /// Runs a program in it as `kubectl exec -it` does: a terminal of the container's own, which
    /// controls the program and is its descriptors 0, 1 and 2.
    ///
    /// # Errors
    /// As [`Container::exec`].
    pub fn exec_tty(&self, args: &[&str]) -> Result<Finished> {
        run_with_terminal(&self.ledger, self.runc_exec(true).arg(&self.id).args(args))
    }

    /// As [`Container::exec_tty`], with the program's standard error redirected to `/dev/null`.
    ///
    /// # Errors
    /// As [`Container::exec`].
    pub fn exec_tty_without_errors(&self, args: &[&str]) -> Result<Finished> {
        let redirect = [&["sh", "-c", r#"exec "$@" 2>/dev/null"#, "sh"], args].concat();
        self.exec_tty(&redirect)
    }

    /// Lets the container's own main process run one line of shell: what the workload does itself.
    ///
    /// # Errors
    /// If the main process takes no command or gives no answer in time.
    pub fn workload(&self, command: &str) -> Result<Finished> {
        if command.contains('\n') {
            bail!("the main process reads one line: {command:?} has more");
        }
        let pipes = self.bundle.join("workload");
        // Opened first: it takes the answer even if that comes at once.
        let mut answers = open_pipe(&pipes.join("output"), OFlags::RDONLY)?;
        // Without a reader this fails: the main process may still be starting.
        let mut commands = wait_until(PATIENCE, "the main process reads commands", || {
            Ok(open_pipe(&pipes.join("commands"), OFlags::WRONLY).ok())
        })?;
        commands.write_all(format!("{command}\n").as_bytes())?;
        drop(commands);
        let answer = read_answer(&mut answers)
            .with_context(|| format!("the main process did not answer to {command:?}"))?;
        let (output, code) = answer
            .trim_end()
            .rsplit_once("exit ")
            .with_context(|| format!("the answer {answer:?} has no exit code"))?;
        Ok(Finished { code: code.parse().ok(), output: output.to_owned(), errors: String::new() })
    }

    fn runc_exec(&self, terminal: bool) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.runc_root).arg("exec");
        if terminal {
            command.arg("--tty");
        }
        command
    }
}

/// Reads what comes until the writer closes, at most [`PATIENCE`] between two pieces.
fn read_answer(pipe: &mut File) -> Result<String> {
    let pause = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if poll(&mut [PollFd::new(&*pipe, PollFlags::IN)], Some(&pause))? == 0 {
            bail!("nothing came within {PATIENCE:?}");
        }
        match pipe.read(&mut piece)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            count => bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
        }
    }
}

fn open_pipe(path: &Path, access: OFlags) -> Result<File> {
    // Non-blocking: an end without its counterpart must not hang the test.
    let pipe = rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("could not open {path:?}"))?;
    Ok(pipe.into())
}

fn write_pipes(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("could not create {folder:?}"))?;
    for name in ["commands", "output"] {
        mknodat(CWD, folder.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    }
    Ok(())
}

/// A root file system as images have it: one userland, and `/var/run` a link to `/run`.
fn write_root(root: &Path) -> Result<()> {
    let busybox = find_program("busybox").context("busybox (static) is not installed")?;
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "workload"] {
        fs::create_dir_all(root.join(folder))?;
    }
    symlink("../run", root.join("var/run"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let inside = root.join("bin/busybox");
    fs::copy(&busybox, &inside).with_context(|| format!("could not copy {busybox:?}"))?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in
        String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

/// The OCI configuration, with what containerd gives an ordinary pod's container.
fn config(bundle: &Path, cgroup: &Path, pod: &Pod, setup: ContainerSetup<'_>) -> Value {
    let mut capabilities = vec![
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ];
    capabilities.extend(setup.privileged.then_some(PRIVILEGED).into_iter().flatten());
    let bind = |source: &Path, destination: &str, access: &str| {
        json!({"destination": destination, "type": "bind", "source": source,
               "options": ["rbind", "rprivate", access]})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        bind(&bundle.join("workload"), "/workload", "rw"),
        bind(pod.volume(), SERVICE_ACCOUNT_FOLDER, "ro"),
    ];
    mounts.extend(setup.host_path.map(|folder| bind(folder, "/host", "ro")));
    let mut namespaces =
        vec![json!({"type": "mount"}), json!({"type": "ipc"}), json!({"type": "uts"})];
    namespaces.extend(match setup.processes {
        Processes::Own => Some(json!({"type": "pid"})),
        Processes::SharedWith(other) => {
            Some(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", other.main_pid)}))
        }
        Processes::Host => None,
    });
    json!({
        "ociVersion": "1.0.2",
        "hostname": pod.name,
        "root": {"path": "rootfs"},
        "process": {
            "args": ["sh", "-c", MAIN],
            "terminal": setup.terminal,
            "cwd": "/",
            "env": ["PATH=/bin", "HOME=/", "TERM=dumb"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": Path::new("/").join(cgroup),
            "namespaces": namespaces,
        },
    })
}
