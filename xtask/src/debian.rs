//! Debian packages: the ones that commands need on this machine, and single files out of packages
//! of another release.
//!
//! Installing goes through the machine's own apt, after the list was printed. Unpacking never
//! touches it: a private apt root with its own source list, index and cache takes the package, and
//! `dpkg -x` unfolds it in a folder.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use tokentrail_tests::machine::find_program;

use crate::shell::{announce, cache_dir, program, read, run};

/// A package and the program in it, by name or path, that tells whether it is there.
#[derive(Clone, Copy)]
pub(crate) struct Package {
    name: &'static str,
    program: &'static str,
}

/// Starts the demo's and the tests' containers.
pub(crate) const RUNC: Package = Package { name: "runc", program: "runc" };
/// The whole userland of those containers and of the VM.
pub(crate) const BUSYBOX: Package = Package { name: "busybox-static", program: "busybox" };
/// Makes terminals within the tests' containers.
pub(crate) const TMUX: Package = Package { name: "tmux", program: "tmux" };
/// The same, in a simpler way.
pub(crate) const SCRIPT: Package = Package { name: "bsdutils", program: "script" };
/// Boots x86-64 kernels.
pub(crate) const QEMU_AMD64: Package =
    Package { name: "qemu-system-x86", program: "qemu-system-x86_64" };
/// Boots arm64 ones.
pub(crate) const QEMU_ARM64: Package =
    Package { name: "qemu-system-arm", program: "qemu-system-aarch64" };
/// `opensnoop`, which the benchmark compares with.
pub(crate) const LIBBPF_TOOLS: Package = Package { name: "libbpf-tools", program: "opensnoop" };
/// `jq`, which the benchmark of replays compares with.
pub(crate) const JQ: Package = Package { name: "jq", program: "jq" };
/// The broker between the tests' agents.
pub(crate) const NATS_SERVER: Package = Package { name: "nats-server", program: "nats-server" };
/// Compiles libFuzzer.
pub(crate) const GXX: Package = Package { name: "g++", program: "c++" };
/// `musl-gcc`, which compiles C for this machine's static agent.
pub(crate) const MUSL_TOOLS: Package = Package { name: "musl-tools", program: "musl-gcc" };
/// Compiles C for the other architecture's; C++ because that package alone brings C's headers.
pub(crate) const GCC_AMD64: Package =
    Package { name: "g++-x86-64-linux-gnu", program: "x86_64-linux-gnu-g++" };
/// The same, the other way.
pub(crate) const GCC_ARM64: Package =
    Package { name: "g++-aarch64-linux-gnu", program: "aarch64-linux-gnu-g++" };
/// Runs the other architecture's programs.
pub(crate) const QEMU_USER: Package =
    Package { name: "qemu-user-static", program: "qemu-aarch64-static" };
/// The certificate authorities that images trust.
pub(crate) const CA_CERTIFICATES: Package =
    Package { name: "ca-certificates", program: "update-ca-certificates" };

/// What a Kubernetes cluster consists of besides Kubernetes.
pub(crate) const CLUSTER: [Package; 6] = [
    RUNC,
    BUSYBOX,
    Package { name: "containerd", program: "containerd" },
    // No folder of programs: the runtime is told where they are.
    Package { name: "containernetworking-plugins", program: "/usr/lib/cni/bridge" },
    Package { name: "iproute2", program: "ip" },
    Package { name: "iptables", program: "iptables" },
];

/// Installs those of the packages that are missing, after listing them.
///
/// # Errors
/// Names the packages if this machine has no apt, this user may not install, or apt fails.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| find_program(package.program).is_none())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find_program("apt-get").is_none() || !rustix::process::geteuid().is_root() {
        bail!(
            "this needs the Debian packages {names}; install them, or run this as root on Debian"
        );
    }
    announce(format_args!("apt-get install {names}"));
    let install = || {
        run(program("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(&missing))
    };
    // The index of a fresh image is empty, that of an old one names files that are gone.
    install().or_else(|_| {
        announce("apt-get update");
        run(program("apt-get").args(["update", "--quiet"]))?;
        install()
    })
}

/// Where kernels of all ages, and what is newer than this machine's release, come from.
const SUITES: [&str; 3] = ["trixie", "trixie-backports", "bookworm"];
/// The same, of the archive of security updates: where the oldest kernels still are.
const SECURITY_SUITES: [&str; 2] = ["bookworm-security", "bullseye-security"];

/// A private apt root that knows Debian's releases of either architecture.
pub(crate) struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Sets the root up and brings its index up to date, at most once a day.
    ///
    /// # Errors
    /// If this is no Debian, or the archive cannot be reached.
    pub(crate) fn open() -> Result<Self> {
        // Not `apt`: what other versions of this command keep there knows other releases.
        let archive = Self { folder: cache_dir()?.join("apt-releases") };
        for part in ["lists/partial", "cache/archives/partial", "downloads"] {
            let part = archive.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("could not create {part:?}"))?;
        }
        // Clones share the index: one brings it up to date, the others wait for that.
        let lock = archive.folder.join("lock");
        let lock = File::create(&lock).with_context(|| format!("could not create {lock:?}"))?;
        lock.lock().context("could not lock the private apt index")?;
        let stamp = archive.folder.join("updated");
        let sources = archive.sources()?;
        let list = archive.source_list();
        let unchanged = fs::read_to_string(&list).is_ok_and(|old| old == sources);
        if unchanged && younger_than(&stamp, Duration::from_hours(24)) {
            return Ok(archive);
        }
        fs::write(&list, sources).with_context(|| format!("could not write {list:?}"))?;
        announce(format_args!("private apt index: Debian {}", SUITES.join(", ")));
        run(archive.apt("apt-get").args(["update", "--quiet"]))?;
        fs::write(&stamp, "").with_context(|| format!("could not write {stamp:?}"))?;
        Ok(archive)
    }

    /// Versions of a package.
    ///
    /// # Errors
    /// If `apt-cache` fails.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listing = read(self.apt("apt-cache").args(["madison", package]))?;
        Ok(listing
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// Names of packages that match a regular expression.
    ///
    /// # Errors
    /// If `apt-cache` fails.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let listing = read(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(listing
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Downloads a package (`name`, `name=version` or `name:architecture`) and unfolds it in `into`.
    ///
    /// # Errors
    /// If the download or `dpkg` fails.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let downloads = tempfile::tempdir_in(self.folder.join("downloads"))?;
        run(self
            .apt("apt-get")
            .current_dir(downloads.path())
            .args(["download", "--quiet", package]))?;
        let file = fs::read_dir(downloads.path())?
            .next()
            .with_context(|| format!("apt-get downloaded nothing for {package}"))??
            .path();
        fs::create_dir_all(into).with_context(|| format!("could not create {into:?}"))?;
        run(program("dpkg").arg("--extract").args([&file, into]))
    }

    fn source_list(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    /// The lines of the source list: the mirror is the one that the machine itself uses.
    fn sources(&self) -> Result<String> {
        let targets = read(program("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))
            .context("no private apt root can be made: this is not Debian")?;
        let mirror = targets
            .lines()
            .find(|uri| uri.contains("debian") && !uri.contains("security"))
            .context("this machine's apt has no Debian source to take packages from")?;
        let mirror = mirror.trim_end_matches('/');
        // Where the machine has none, mirrors keep the security archive beside the other.
        let security = targets.lines().find(|uri| uri.contains("debian-security"));
        let security = security.map_or_else(|| format!("{mirror}-security"), str::to_owned);
        let keyring = ["gpg", "pgp"]
            .map(|kind| format!("/usr/share/keyrings/debian-archive-keyring.{kind}"))
            .into_iter()
            .find(|file| Path::new(file).exists())
            .context("this machine lacks the package debian-archive-keyring")?;
        let main = SUITES.map(|suite| (mirror, suite));
        let security = SECURITY_SUITES.map(|suite| (security.as_str(), suite));
        Ok(main
            .iter()
            .chain(&security)
            .map(|(uri, suite)| {
                format!("deb [arch=amd64,arm64 signed-by={keyring}] {uri} {suite} main\n")
            })
            .collect())
    }

    fn apt(&self, tool: &str) -> std::process::Command {
        let mut command = program(tool);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // Root's cache is no place that apt's own download user may enter.
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Whether a file exists and was written less than `age` ago.
fn younger_than(file: &Path, age: Duration) -> bool {
    fs::metadata(file)
        .and_then(|facts| facts.modified())
        .is_ok_and(|written| written.elapsed().is_ok_and(|elapsed| elapsed < age))
}
