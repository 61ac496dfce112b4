//! An image in the OCI layout, as one tar: what `ctr images import`, podman and skopeo read.
//!
//! Written from a list of files alone. Times, owners, modes and order are fixed, so that the same
//! files give the same bytes. Knows nothing about what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// What becomes an image of one layer.
pub(super) struct Image<'data> {
    /// The reference, with registry and tag.
    pub(super) name: &'data str,
    /// What it says about itself, under the specification's names.
    pub(super) labels: &'data [(&'data str, &'data str)],
    /// As Go names it.
    pub(super) architecture: &'data str,
    pub(super) entrypoint: &'data str,
    pub(super) files: &'data [File<'data>],
}

/// A file in it, by its path without a leading slash.
pub(super) struct File<'data> {
    pub(super) path: &'data str,
    pub(super) mode: u32,
    pub(super) content: &'data [u8],
}

/// What containers are told their image was made at: a time would be this machine's.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Returns the archive.
///
/// # Errors
/// If the name has no registry or no tag, or a file does not fit into a tar.
pub(super) fn write(image: &Image<'_>) -> Result<Vec<u8>> {
    let tag = tag(image.name)?;
    let labels: BTreeMap<String, &str> = image
        .labels
        .iter()
        .map(|(name, value)| (format!("org.opencontainers.image.{name}"), *value))
        .collect();
    let files = tar(image.files)?;
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&files)?);
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "created": CREATED,
            "architecture": image.architecture,
            "os": "linux",
            "config": {
                "User": "0:0",
                "Entrypoint": [image.entrypoint],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&files))]},
            "history": [{"created": CREATED, "created_by": "cargo xtask image"}],
        }),
    )?;
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
            "annotations": labels,
        }),
    )?;
    let mut described = manifest.descriptor();
    described
        .insert("platform".to_owned(), json!({"architecture": image.architecture, "os": "linux"}));
    // The first is containerd's and podman's, the second the specification's.
    let names = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": tag,
    });
    described.insert("annotations".to_owned(), names);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }))?;
    let blobs = [&config, &layer, &manifest].map(|blob| (blob.path(), blob.content.as_slice()));
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()),
        ("index.json".to_owned(), &index),
    ];
    members.extend(blobs);
    let members: Vec<File<'_>> =
        members.iter().map(|(path, content)| File { path, mode: 0o644, content }).collect();
    tar(&members)
}

/// The tag of a full name.
fn tag(name: &str) -> Result<&str> {
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, ""));
    let host = repository.split_once('/').map_or("", |(host, _)| host);
    if tag.is_empty() || tag.contains('/') || !(host == "localhost" || host.contains(['.', ':'])) {
        bail!("{name:?} is no full name of an image; name registry and tag, as localhost/it:1");
    }
    Ok(tag)
}

/// A member of the archive that is known by its hash.
struct Blob {
    media_type: &'static str,
    hash: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self { media_type, hash: sha256(&content), content }
    }

    fn json(media_type: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(media_type, serde_json::to_vec(value)?))
    }

    fn descriptor(&self) -> Map<String, Value> {
        let fields = [
            ("mediaType", self.media_type.into()),
            ("digest", format!("sha256:{}", self.hash).into()),
            ("size", self.content.len().into()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }
}

/// Files and the folders above them, all of them root's and from 1970.
fn tar(files: &[File<'_>]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(tar::HeaderMode::Deterministic);
    let mut folders = BTreeSet::new();
    for file in files {
        let above: Vec<&Path> = Path::new(file.path).ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|it| !it.as_os_str().is_empty()) {
            if folders.insert(folder) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                archive
                    .append_data(&mut header, folder, std::io::empty())
                    .with_context(|| format!("could not pack {folder:?}"))?;
            }
        }
        let size = u64::try_from(file.content.len())?;
        let mut header = header(tar::EntryType::Regular, file.mode, size);
        archive
            .append_data(&mut header, file.path, file.content)
            .with_context(|| format!("could not pack {:?}", file.path))?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Without name and time in its header.
fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new().write(Vec::new(), Compression::best());
    packer.write_all(data)?;
    Ok(packer.finish()?)
}

/// As lower-case hexadecimal.
pub(crate) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const IMAGE: Image<'_> = Image {
        name: "localhost/it:1",
        labels: &[("version", "1")],
        architecture: "arm64",
        entrypoint: "/it",
        files: &[
            File { path: "etc/deep/file", mode: 0o644, content: b"text" },
            File { path: "it", mode: 0o755, content: b"program" },
        ],
    };

    fn members(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!(entry.header().uid().unwrap() + entry.header().gid().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
            (path, (entry.header().mode().unwrap(), content))
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn every_part_is_found_by_the_hash_and_size_that_the_part_before_names() {
        let members = members(&write(&IMAGE).unwrap());
        let blob = |descriptor: &Value| {
            let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &members[&format!("blobs/sha256/{hash}")].1;
            assert_eq!(sha256(content), hash);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = parse(&members["index.json"].1);
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "localhost/it:1"
        );
        let manifest = parse(&blob(&index["manifests"][0]));
        let config = parse(&blob(&manifest["config"]));
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["config"]["Entrypoint"], json!(["/it"]));
        let mut layer = Vec::new();
        let packed = blob(&manifest["layers"][0]);
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
        let files = self::members(&layer);
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["etc", "etc/deep", "etc/deep/file", "it"]);
        assert_eq!(files["it"], (0o755, b"program".to_vec()));
    }

    #[test]
    fn only_a_full_name_is_taken() {
        for (name, expected) in [
            ("localhost/tokentrail:0.1.0", Some("0.1.0")),
            ("registry.example:5000/team/tokentrail:v1", Some("v1")),
            ("tokentrail:0.1.0", None),
            ("team/tokentrail:0.1.0", None),
            ("localhost/tokentrail", None),
            ("registry.example:5000/tokentrail", None),
        ] {
            assert_eq!(tag(name).ok(), expected, "{name}");
        }
    }
}
