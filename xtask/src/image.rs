//! `cargo xtask image`: the agent as an OCI archive that holds the static program, the certificate
//! authorities that Debian trusts, and nothing else.
//!
//! The same sources give the same bytes: no time, no path and no order of this machine gets in. What
//! an archive looks like inside is in `archive`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build::{self, Arch},
    debian,
    shell::{announce, say, target_dir},
};

mod archive;

pub(crate) use archive::sha256;
use archive::{File, Image};

/// The workspace has one version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What an image is called unless told otherwise. With a registry in it nothing completes the name:
/// no cluster takes such an image from anywhere but from where it was imported.
const NAME: &str = concat!("localhost/tokentrail:", env!("CARGO_PKG_VERSION"));

/// What the archive may weigh: each node pulls it.
const LIMIT: u64 = 15 << 20;

/// Where Debian's package puts each authority's certificate. Its bundle in /etc would bring in what
/// this machine's owner added.
const AUTHORITIES: &str = "/usr/share/ca-certificates/mozilla";

/// Builds the image and returns the archive.
///
/// # Errors
/// Names the step that failed, or says that the archive is too large.
pub(crate) fn run(arch: Option<Arch>, name: Option<&str>) -> Result<PathBuf> {
    let arch = arch.map_or_else(Arch::of_this_machine, Ok)?;
    let name = name.unwrap_or(NAME);
    let agent = build::static_agent(arch)?;
    announce(format_args!("image {name} for {}", arch.oci_name()));
    let archive = assemble(arch, name, &agent)?;
    let path = target_dir().join(format!("image/tokentrail-{}.tar", arch.oci_name()));
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("could not create {folder:?}"))?;
    fs::write(&path, &archive).with_context(|| format!("could not write {path:?}"))?;
    let size = u64::try_from(archive.len())?;
    say(format_args!(
        "built {}: {name}, {:.1} MB, sha256:{}",
        path.display(),
        megabytes(size),
        sha256(&archive)
    ));
    ensure!(
        size <= LIMIT,
        "the image has {:.1} MB, more than {:.0} MB",
        megabytes(size),
        megabytes(LIMIT)
    );
    Ok(path)
}

/// Builds all of it again, from the BPF object on, in a folder of its own, and compares.
///
/// # Errors
/// If a build fails, or the bytes differ.
pub(crate) fn verify(arch: Option<Arch>, name: Option<&str>) -> Result<()> {
    let first = run(arch, name)?;
    let arch = arch.map_or_else(Arch::of_this_machine, Ok)?;
    let name = name.unwrap_or(NAME);
    let folder = tempfile::tempdir_in(target_dir())?;
    let agent = build::static_agent_in(folder.path(), arch)?;
    let again = assemble(arch, name, &agent)?;
    ensure!(
        fs::read(&first)? == again,
        "another build of the same sources gave other bytes: the image is not reproducible"
    );
    say("built twice, the same bytes");
    Ok(())
}

/// Assembles what is built already twice; the bytes must be the same.
///
/// # Errors
/// If they are not.
pub(crate) fn assembles_the_same_twice() -> Result<()> {
    let arch = Arch::of_this_machine()?;
    let agent = build::static_agent(arch)?;
    ensure!(
        assemble(arch, NAME, &agent)? == assemble(arch, NAME, &agent)?,
        "two archives of the same files differ"
    );
    Ok(())
}

fn assemble(arch: Arch, name: &str, agent: &Path) -> Result<Vec<u8>> {
    let program = fs::read(agent).with_context(|| format!("could not read {agent:?}"))?;
    archive::write(&Image {
        name,
        labels: &[
            ("title", "tokentrail"),
            ("description", "Who opened a pod's token, joined with the requests made with it"),
            ("version", VERSION),
            ("licenses", "(Apache-2.0 OR MIT) AND GPL-2.0-only"),
        ],
        architecture: arch.oci_name(),
        entrypoint: "/tokentrail",
        files: &[
            File {
                path: "etc/ssl/certs/ca-certificates.crt",
                mode: 0o644,
                content: &authorities()?,
            },
            File { path: "tokentrail", mode: 0o755, content: &program },
        ],
    })
}

/// The certificates of Debian's package as one file, in the order of their names.
fn authorities() -> Result<Vec<u8>> {
    debian::install(&[debian::CA_CERTIFICATES])?;
    let entries =
        fs::read_dir(AUTHORITIES).with_context(|| format!("could not list {AUTHORITIES}"))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    ensure!(!files.is_empty(), "{AUTHORITIES} holds no certificate; reinstall ca-certificates");
    let mut bundle = Vec::new();
    for file in files {
        let certificate = fs::read(&file).with_context(|| format!("could not read {file:?}"))?;
        bundle.extend_from_slice(certificate.trim_ascii());
        bundle.push(b'\n');
    }
    Ok(bundle)
}

/// For people: a tenth of a megabyte is exact enough.
fn megabytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "archives have far less than 2^52 bytes")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}
