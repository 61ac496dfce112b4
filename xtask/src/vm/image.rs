//! The initramfs of an architecture: busybox, runc, the agent and the test programs, with the shared
//! libraries that they need. Of this machine's architecture these are its own programs, at the paths
//! where it has them; of the other one static builds, and Debian's packages unpacked.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use tokentrail_tests::machine::find_program;

use crate::{
    build::Arch,
    debian::Archive,
    shell::{announce, cache_dir, program, read, root as workspace, run as shell},
};

/// Process 1 of the VM.
const INIT: &str = include_str!("init.sh");

/// What runs in the VM beside busybox, the agent and its tests.
const PROGRAMS: [&str; 4] = ["runc", "nohup", "script", "tmux"];

/// What tmux does not start without; it comes with the libraries of packages.
const LOCALE: &str = "/usr/lib/locale/C.utf8/LC_CTYPE";

/// The packages of the other architecture: programs first, then the libraries that they need.
const PACKAGES: [&str; 15] = [
    "busybox-static",
    "runc",
    "coreutils",
    "bsdutils",
    "tmux",
    "libc6",
    "libc-bin",
    "libcap2",
    "libevent-core-2.1-7t64",
    "libgcc-s1",
    "libjemalloc2",
    "libseccomp2",
    "libstdc++6",
    "libsystemd0",
    "libtinfo6",
];

/// Programs of an architecture.
struct Userland {
    busybox: PathBuf,
    programs: Vec<PathBuf>,
    /// Unpacked packages to take libraries from; `None`: from where this machine has them.
    packages: Option<PathBuf>,
}

impl Userland {
    fn of_this_machine() -> Result<Self> {
        let found =
            |name: &str| find_program(name).with_context(|| format!("{name} is not installed"));
        let programs = PROGRAMS.into_iter().map(found).collect::<Result<_>>()?;
        Ok(Self { busybox: found("busybox")?, programs, packages: None })
    }

    fn of_packages(arch: Arch) -> Result<Self> {
        let cache = cache_dir()?;
        let packages = cache.join("vm").join(format!("userland-{}", arch.oci_name()));
        let names = PACKAGES.join(", ");
        // Of fewer packages, if another version of this command made it.
        if !fs::read_to_string(packages.join("packages")).is_ok_and(|of| of == names) {
            announce(format_args!("{names} for {}: downloading", arch.oci_name()));
            let archive = Archive::open()?;
            // Renamed when whole: half of it would pass for all.
            fs::create_dir_all(cache.join("vm"))?;
            let unpacked = tempfile::tempdir_in(cache.join("vm"))?;
            for package in PACKAGES {
                archive.unpack(&format!("{package}:{}", arch.oci_name()), unpacked.path())?;
            }
            fs::write(unpacked.path().join("packages"), &names)?;
            if packages.exists() {
                fs::remove_dir_all(&packages)?;
            }
            fs::rename(unpacked.keep(), &packages)
                .with_context(|| format!("could not write {packages:?}"))?;
        }
        // Where /bin is a link to /usr/bin packages name either.
        let program = |name: &str| {
            let places = ["usr/bin", "usr/sbin", "bin", "sbin"];
            let mut paths = places.iter().map(|place| packages.join(place).join(name));
            paths
                .find(|path| path.is_file() && !path.is_symlink())
                .with_context(|| format!("Debian's packages {names} hold no {name}"))
        };
        let programs = PROGRAMS.into_iter().map(program).collect::<Result<_>>()?;
        Ok(Self { busybox: program("busybox")?, programs, packages: Some(packages) })
    }
}

/// Writes the image into `folder` and returns its path.
///
/// # Errors
/// If a program is missing or a file cannot be written.
pub(super) fn write(
    folder: &Path,
    arch: Arch,
    agent: &Path,
    tests: &[(String, PathBuf)],
) -> Result<PathBuf> {
    let userland = if arch.is_this_machines() {
        Userland::of_this_machine()?
    } else {
        Userland::of_packages(arch)?
    };
    announce(format_args!("image for VMs, {}", arch.oci_name()));
    let root = folder.join("root");
    let system = root.join("system");
    let mut image = Image { root: system.clone() };

    image.add(&userland.busybox, "bin/busybox")?;
    for program in &userland.programs {
        let name = program.file_name().with_context(|| format!("{program:?} is no program"))?;
        image.add_with_libraries(program, &format!("bin/{}", name.display()))?;
    }
    match &userland.packages {
        Some(packages) => image.add_libraries_of(packages)?,
        None => image.add(Path::new(LOCALE), LOCALE)?,
    }
    // The same in either architecture's package, but only this machine's can be asked. Where there is a
    // program of the name, a link in its place would be written through.
    for applet in read(program("busybox").arg("--list"))?.lines() {
        let link = system.join("bin").join(applet);
        if !link.exists() {
            symlink("busybox", link)?;
        }
    }
    image.add_with_libraries(agent, "bin/tokentrail")?;
    let strip =
        if arch.is_this_machines() { "" } else { &format!("{}-linux-gnu-", arch.rust_name()) };
    for (name, test) in tests {
        let inside = format!("tests/{name}");
        image.add_with_libraries(test, &inside)?;
        // Most of a test's bytes are for debuggers; the VM holds each of them in memory, twice.
        shell(program(format!("{strip}strip")).arg("--strip-debug").arg(system.join(inside)))?;
    }
    for place in ["dev", "proc", "sys", "tmp", "run", "var", "usr", "etc"] {
        fs::create_dir_all(system.join(place))?;
    }
    symlink("../bin", system.join("usr/bin"))?;
    // Test programs know the workspace by the path that it has here.
    fs::write(system.join("etc/workspace"), path_text(&workspace())?)?;

    // What the kernel unpacks: the system above, and an init that moves into it.
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(&userland.busybox, root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(&root, &folder.join("image"))
}

/// The image with a kernel's modules added, as a file of its own.
///
/// # Errors
/// If it cannot be written.
pub(super) fn with_modules(image: &Path, modules: &Path, named: &str) -> Result<PathBuf> {
    let folder = image.with_file_name(named);
    let inside = folder.join("root/system");
    fs::create_dir_all(&inside).with_context(|| format!("could not create {inside:?}"))?;
    shell(program("cp").arg("-r").arg(modules).arg(inside.join("modules")))?;
    let added = pack(&folder.join("root"), &folder.join("modules"))?;
    // The kernel unpacks archives one after the other.
    let whole = folder.join("image");
    let mut file = File::create(&whole).with_context(|| format!("could not create {whole:?}"))?;
    for part in [image, &added] {
        io::copy(&mut File::open(part)?, &mut file)?;
    }
    Ok(whole)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{path:?} is not UTF-8"))
}

struct Image {
    root: PathBuf,
}

impl Image {
    fn add(&mut self, file: &Path, at: &str) -> Result<()> {
        let inside = self.root.join(at.trim_start_matches('/'));
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(file, &inside).with_context(|| format!("could not copy {file:?}"))?;
        Ok(())
    }

    /// `ldd` prints `name => /path (address)` or `/path (address)`; a static program has none, and one of
    /// another architecture is none to it.
    fn add_with_libraries(&mut self, file: &Path, at: &str) -> Result<()> {
        self.add(file, at)?;
        let Ok(libraries) = read(program("ldd").arg(file)) else { return Ok(()) };
        for line in libraries.lines() {
            if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.add(Path::new(path), path)?;
            } else if line.contains("not found") {
                bail!("{file:?} needs a library that is missing: {}", line.trim());
            }
        }
        Ok(())
    }

    /// All that packages have below `/usr/lib`, which is where `/lib` leads to.
    fn add_libraries_of(&mut self, packages: &Path) -> Result<()> {
        fs::create_dir_all(self.root.join("usr"))?;
        shell(program("cp").arg("-a").arg(packages.join("usr/lib")).arg(self.root.join("usr")))?;
        symlink("usr/lib", self.root.join("lib"))?;
        Ok(())
    }
}

/// `find | cpio`, both of busybox: Debian's cpio is not installed everywhere.
fn pack(root: &Path, image: &Path) -> Result<PathBuf> {
    let mut find = program("busybox")
        .args(["find", "."])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start busybox find")?;
    let names = find.stdout.take().context("busybox find has no output")?;
    let packed = program("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(names)
        .stdout(File::create(image)?)
        .stderr(Stdio::null())
        .status()
        .context("could not start busybox cpio")?;
    if !find.wait()?.success() || !packed.success() {
        bail!("busybox could not pack {root:?}");
    }
    Ok(image.to_path_buf())
}
