//! The VM's initramfs: busybox, runc, the agent and the test programs, with the shared libraries
//! that they need, at the paths where this machine has them.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use tokentrail_tests::machine::find_program;

use crate::shell::{program, read, root as workspace};

/// Process 1 of the VM.
const INIT: &str = include_str!("init.sh");

/// Writes the image into `folder` and returns its path.
///
/// # Errors
/// If a program is missing or a file cannot be written.
pub(super) fn write(folder: &Path, agent: &Path, tests: &[(String, PathBuf)]) -> Result<PathBuf> {
    let root = folder.join("root");
    let system = root.join("system");
    let found = |name: &str| find_program(name).with_context(|| format!("{name} is not installed"));
    let mut image = Image { root: system.clone() };

    image.add(&found("busybox")?, "bin/busybox")?;
    for applet in read(program("busybox").arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", system.join("bin").join(applet))?;
        }
    }
    for name in ["runc", "nohup", "script", "tmux"] {
        image.add_with_libraries(&found(name)?, &format!("bin/{name}"))?;
    }
    let locale = "/usr/lib/locale/C.utf8/LC_CTYPE";
    image.add(Path::new(locale), locale)?;
    image.add_with_libraries(agent, "bin/tokentrail")?;
    for (name, test) in tests {
        image.add_with_libraries(test, &format!("tests/{name}"))?;
    }
    for place in ["dev", "proc", "sys", "tmp", "run", "var", "usr", "etc"] {
        fs::create_dir_all(system.join(place))?;
    }
    symlink("../bin", system.join("usr/bin"))?;
    // Test programs know the workspace by the path that it has here.
    fs::write(system.join("etc/workspace"), path_text(&workspace())?)?;

    // What the kernel unpacks: the system above, and an init that moves into it.
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(found("busybox")?, root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(&root, &folder.join("image"))
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

    /// `ldd` prints `name => /path (address)` or `/path (address)`; a static program has none.
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
