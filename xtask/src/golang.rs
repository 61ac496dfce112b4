//! Programs that are built from Go modules pinned in this repository: Kubernetes as one program for
//! the test cluster, and the tools that only exist in Go.
//!
//! Each is built once and kept in the cache that all clones share, under a name that holds the hash
//! of everything that made it. Go itself is a given, as rustup is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::shell::{announce, cache_dir, line, program, read, root, run};

/// Oldest Go that the modules can be built with.
const GO: (u32, u32) = (1, 24);

/// A main package of a module of this repository.
struct Source<'name> {
    /// The program's file name.
    name: &'name str,
    /// The module's folder, from the repository's root.
    module: &'name str,
    /// The main package, by import path or by folder in the module.
    package: &'name str,
    /// Values for variables of the program: `path.variable`, value.
    variables: &'name [(&'name str, &'name str)],
    /// What one may want to know while waiting.
    remark: &'name str,
}

/// The version of Kubernetes that `tests/cluster/kube/go.mod` names: no component knows its own.
const KUBERNETES: (&str, &str, &str) = ("v1.34.4", "1", "34");

/// All of Kubernetes and etcd as one program: called by a component's name, it is that component.
///
/// # Errors
/// If it does not build.
pub(crate) fn kube() -> Result<PathBuf> {
    let (version, major, minor) = KUBERNETES;
    build(&Source {
        name: "kube",
        module: "tests/cluster/kube",
        package: ".",
        variables: &[
            ("k8s.io/component-base/version.gitVersion", version),
            ("k8s.io/component-base/version.gitMajor", major),
            ("k8s.io/component-base/version.gitMinor", minor),
            ("k8s.io/client-go/pkg/version.gitVersion", version),
            ("k8s.io/client-go/pkg/version.gitMajor", major),
            ("k8s.io/client-go/pkg/version.gitMinor", minor),
        ],
        remark: "all of Kubernetes: 5 minutes on two cores",
    })
}

/// A client of the API that fits into an image without anything else.
///
/// # Errors
/// If it does not build.
pub(crate) fn apicall() -> Result<PathBuf> {
    build(&Source {
        name: "apicall",
        module: "tests/cluster/apicall",
        package: ".",
        variables: &[],
        remark: "some seconds",
    })
}

/// Helm, which the chart is checked and installed with.
///
/// # Errors
/// If it does not build.
pub(crate) fn helm() -> Result<PathBuf> {
    build(&Source {
        name: "helm",
        module: "tests/cluster/tools",
        package: "helm.sh/helm/v3/cmd/helm",
        variables: &[],
        remark: "about a minute",
    })
}

/// kubeconform, which holds manifests against schemas.
///
/// # Errors
/// If it does not build.
pub(crate) fn kubeconform() -> Result<PathBuf> {
    build(&Source {
        name: "kubeconform",
        module: "tests/cluster/tools",
        package: "github.com/yannh/kubeconform/cmd/kubeconform",
        variables: &[],
        remark: "some seconds",
    })
}

/// Builds the program unless it is there, and returns it.
fn build(source: &Source<'_>) -> Result<PathBuf> {
    let module = root().join(source.module);
    let flags = linker_flags(source.variables);
    let key = hash(source, &module, &flags)?;
    let name = source.name;
    let folder = cache_dir()?.join("go").join(format!("{name}-{key}"));
    let built = folder.join(name);
    if built.exists() {
        return Ok(built);
    }
    check_version()?;
    announce(format_args!("{name}: building it from its Go modules ({})", source.remark));
    // Built beside its place and renamed: half a program would pass for a whole one.
    fs::create_dir_all(&folder).with_context(|| format!("could not create {folder:?}"))?;
    let fresh = tempfile::tempdir_in(&folder)?;
    let fresh = fresh.path().join(name);
    run(program("go")
        .current_dir(&module)
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"])
        .arg(&fresh)
        .arg(source.package)
        // A static program: it also runs in an image that holds nothing else.
        .env("CGO_ENABLED", "0"))?;
    fs::rename(&fresh, &built).with_context(|| format!("could not move {fresh:?} to {built:?}"))?;
    Ok(built)
}

/// No symbol tables: they are half of the program and nobody debugs it.
fn linker_flags(variables: &[(&str, &str)]) -> String {
    let mut flags = "-s -w".to_owned();
    for (name, value) in variables {
        flags.push_str(&format!(" -X {name}={value}"));
    }
    flags
}

/// Names what a program is made of: the module's own files, the package, the flags.
fn hash(source: &Source<'_>, module: &Path, flags: &str) -> Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(module).with_context(|| format!("could not list {module:?}"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "go" || kind == "mod" || kind == "sum") {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        // Lengths keep the end of one part from passing for the start of the next.
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    };
    for file in &files {
        add(file.file_name().unwrap_or_default().as_encoded_bytes());
        add(&fs::read(file).with_context(|| format!("could not read {file:?}"))?);
    }
    add(source.package.as_bytes());
    add(flags.as_bytes());
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn check_version() -> Result<()> {
    let mut ask = program("go");
    ask.args(["env", "GOVERSION"]);
    let version = read(&mut ask).with_context(|| {
        format!("`{}` does not run: install Go {}.{} or newer", line(&ask), GO.0, GO.1)
    })?;
    if parse_version(&version).is_none_or(|found| found < GO) {
        bail!("this is {version}; the modules need Go {}.{} or newer", GO.0, GO.1);
    }
    Ok(())
}

/// `go1.26.8` → (1, 26).
fn parse_version(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.strip_prefix("go")?.split_once('.')?;
    let minor = rest.split(|it: char| !it.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_by_number() {
        let cases = [
            ("go1.26.8", Some((1, 26))),
            ("go1.9", Some((1, 9))),
            ("go1.24rc1", Some((1, 24))),
            ("go1.25.0-custom", Some((1, 25))),
            ("devel", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_version(text), expected, "{text}");
        }
        assert!(parse_version("go1.9").is_some_and(|found| found < GO));
    }
}
