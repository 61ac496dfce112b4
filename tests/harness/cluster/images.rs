//! Container images without a registry: archives as `docker save` writes them, made of static
//! programs alone.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::machine::find_program;

/// The image of the tests' pods: a userland, and `apicall` to talk to the API server.
pub const BOX_IMAGE: &str = "registry.test/box:1";

/// The same with `kubectl`: for pods that do what an administrator does.
pub const KUBECTL_IMAGE: &str = "registry.test/kubectl:1";

/// What a pod of these images does unless told otherwise: nothing, and it ends when it is asked to.
const REST: &str = "trap 'exit 0' TERM; while true; do sleep 3600 & wait $!; done";

/// Writes the image of pods as an archive. It serves for their sandboxes too.
///
/// # Errors
/// If busybox is not installed, or the archive cannot be written.
pub(crate) fn write_box(archive: &Path, apicall: &Path) -> Result<()> {
    write(archive, BOX_IMAGE, "apicall", apicall)
}

/// Writes the image with `kubectl` as an archive.
///
/// # Errors
/// As [`write_box`].
pub(crate) fn write_kubectl(archive: &Path, kubectl: &Path) -> Result<()> {
    write(archive, KUBECTL_IMAGE, "kubectl", kubectl)
}

/// Writes an image of busybox and one program.
fn write(archive: &Path, image: &str, name: &str, program: &Path) -> Result<()> {
    let layer = layer(name, program)
        .with_context(|| format!("could not put together a layer of busybox and {name}"))?;
    let layer_id = digest(&layer);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", REST], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_id}")]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let layer_name = format!("{layer_id}/layer.tar");
    let manifest = json!([
        {"Config": config_name, "RepoTags": [image], "Layers": [layer_name]},
    ])
    .to_string();

    let file =
        File::create(archive).with_context(|| format!("could not create the image {archive:?}"))?;
    let mut builder = Builder::new(file);
    add_file(&mut builder, &layer_name, &layer, 0o644)?;
    add_file(&mut builder, &config_name, config.as_bytes(), 0o644)?;
    add_file(&mut builder, "manifest.json", manifest.as_bytes(), 0o644)?;
    builder.into_inner()?;
    Ok(())
}

fn layer(name: &str, program: &Path) -> Result<Vec<u8>> {
    let busybox = find_program("busybox").context("busybox (static) is not installed")?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();

    let mut layer = Builder::new(Vec::new());
    for (folder, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("run/", 0o755), ("tmp/", 0o1777), ("var/", 0o755)]
    {
        let mut header = header(EntryType::Directory, 0, mode);
        layer.append_data(&mut header, folder, std::io::empty())?;
    }
    let users = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    add_file(&mut layer, "etc/passwd", users.as_bytes(), 0o644)?;
    add_file(&mut layer, "bin/busybox", &fs::read(&busybox)?, 0o755)?;
    add_file(&mut layer, &format!("bin/{name}"), &fs::read(program)?, 0o755)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        add_link(&mut layer, &format!("bin/{applet}"), "busybox")?;
    }
    // As in every common image: a token's path leads through a link.
    add_link(&mut layer, "var/run", "../run")?;
    Ok(layer.into_inner()?)
}

fn add_file(
    builder: &mut Builder<impl std::io::Write>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = header(EntryType::Regular, content.len() as u64, mode);
    Ok(builder.append_data(&mut header, path, content)?)
}

fn add_link(builder: &mut Builder<impl std::io::Write>, path: &str, target: &str) -> Result<()> {
    Ok(builder.append_link(&mut header(EntryType::Symlink, 0, 0o777), path, target)?)
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
