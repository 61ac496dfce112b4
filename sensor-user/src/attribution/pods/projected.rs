//! What a pod's spec projects into its volumes: which paths are tokens for the API server, which is the
//! cluster's CA certificate. It never looks at a volume; called by `object`, kept by the index.
//!
//! Source of the field semantics: kubernetes `staging/src/k8s.io/api/core/v1/types.go`,
//! `ProjectedVolumeSource`.

use serde::{Deserialize, de::IgnoredAny};

use super::super::TokenFile;

/// What is kept of a pod's projected volumes, bytes. One that does not fit is left out, hence judged as
/// a volume of a pod that is not known.
const ROOM: usize = 8 << 10;

/// The ConfigMap with the CA certificate of the API server, which each namespace has, and its key.
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";

/// A projected volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    /// Its name in the pod's spec.
    pub name: Box<str>,
    /// Its service-account tokens, of any audience, and the CA certificate.
    pub files: Vec<ProjectedFile>,
    /// Whether there are Secrets among its sources, which may hold anything.
    pub has_secret: bool,
}

/// A file of a projected volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectedFile {
    /// Its path in the volume, as `api/token`: names with a slash between each two.
    pub path: Box<str>,
    /// What it is; `None`: a token for another audience than the API server.
    pub file: Option<TokenFile>,
}

impl Projected {
    /// Whether it has a token for the API server.
    pub fn has_token(&self) -> bool {
        self.files.iter().any(|it| it.file == Some(TokenFile::Token))
    }

    pub(super) fn bytes(&self) -> usize {
        let files = self.files.iter().map(|it| size_of::<ProjectedFile>() + it.path.len());
        size_of::<Self>() + self.name.len() + files.sum::<usize>()
    }
}

/// An entry of `spec.volumes`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct VolumeSpec {
    name: String,
    projected: Option<ProjectedSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ProjectedSpec {
    /// `null` if there are none.
    sources: Option<Vec<SourceSpec>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SourceSpec {
    service_account_token: Option<TokenSpec>,
    config_map: Option<ConfigMapSpec>,
    secret: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TokenSpec {
    audience: String,
    path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigMapSpec {
    name: String,
    /// Without any, each key is a file of its name.
    items: Vec<Item>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Item {
    key: String,
    path: String,
}

/// The projected volumes among a pod's.
pub(super) fn projected(volumes: &[VolumeSpec]) -> Vec<Projected> {
    let mut room = ROOM;
    let mut fits = |volume: &Projected| {
        let left = room.checked_sub(volume.bytes());
        room = left.unwrap_or(room);
        left.is_some()
    };
    volumes.iter().filter_map(volume).filter(|it| fits(it)).collect()
}

fn volume(VolumeSpec { name, projected }: &VolumeSpec) -> Option<Projected> {
    let sources = projected.as_ref()?.sources.as_deref().unwrap_or_default();
    Some(Projected {
        name: name.as_str().into(),
        files: sources.iter().flat_map(files).collect::<Option<_>>()?,
        has_secret: sources.iter().any(|source| source.secret.is_some()),
    })
}

/// The files of a source; `None` for one whose path is none.
fn files(source: &SourceSpec) -> impl Iterator<Item = Option<ProjectedFile>> {
    let token = source.service_account_token.as_ref().map(|token| {
        let file = is_api_server(&token.audience).then_some(TokenFile::Token);
        Some(ProjectedFile { path: path(&token.path)?, file })
    });
    let map = source.config_map.as_ref().filter(|map| map.name == ROOT_CA);
    let whole = map.filter(|map| map.items.is_empty()).map(|_| ROOT_CA_KEY);
    let items = map.into_iter().flat_map(|map| &map.items);
    let certificates = items.filter(|item| item.key == ROOT_CA_KEY).map(|item| item.path.as_str());
    token.into_iter().chain(
        whole
            .into_iter()
            .chain(certificates)
            .map(|it| Some(ProjectedFile { path: path(it)?, file: Some(TokenFile::CaCert) })),
    )
}

/// Whether a token of this audience is for the API server. That one's own audience, which is meant if
/// none is given, is nowhere told (`--api-audiences`); nearly everywhere it is a name of its Service.
fn is_api_server(audience: &str) -> bool {
    const SERVICE: &str = "kubernetes.default.svc";
    let host = audience.strip_prefix("https://").unwrap_or(audience);
    let host = host.split([':', '/']).next().unwrap_or_default();
    audience.is_empty()
        || host.strip_prefix(SERVICE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A path as the kubelet writes it (`filepath.Clean`); `None` if it leads elsewhere.
fn path(path: &str) -> Option<Box<str>> {
    let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    let is_below = !path.starts_with('/') && !names.is_empty() && !names.contains(&"..");
    is_below.then(|| names.join("/").into())
}

#[cfg(test)]
mod tests;
